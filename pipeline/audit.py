"""The verb ``audit``: compares any two classifiers class by class from prediction files, without config or store."""

from __future__ import annotations

import argparse
import csv
import json
import sys
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bias import Audit, Predictions
from pipeline.bias import audit as score
from pipeline.registry import UserError, nearest
from pipeline.report.words import number

COLUMNS = ("label", "prediction", "group")
ARRAYS = ("labels", "logits", "predictions", "confusion", "groups", "classes", "ids")


@dataclass(frozen=True)
class _Words:
    """A CSV as it was read: class and group names that get numbers once all files are known."""

    source: str
    labels: list[str]
    predictions: list[str]
    groups: list[str] | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    parser.description = (
        "Compares candidates with a reference on the same test set, class by class. A file is .npz with 'labels' and "
        "'logits' or 'predictions', or with 'confusion' [C, C] (rows = true class); .csv with the header "
        "label,prediction[,group]; or a Predict folder of the store."
    )
    parser.add_argument("--reference", required=True, metavar="REF", help="predictions of the dense network")
    parser.add_argument(
        "--candidate", required=True, nargs="+", metavar="CAND", help="predictions of trials of one method"
    )
    parser.add_argument(
        "--reference-trials",
        nargs="+",
        default=[],
        metavar="REF2",
        help="more dense networks: with REF they make the floor",
    )
    parser.add_argument(
        "--groups", metavar="FILE", help=".csv with a column 'group' or .npz with 'groups', a row an example"
    )
    parser.add_argument(
        "--json", metavar="PATH", help="write the result here; - for the standard output and nothing else"
    )
    parser.add_argument("--html", metavar="PATH", help="write one self-contained page here")
    parser.add_argument(
        "--resamples", type=int, default=2000, help="bootstrap resamples, at least 100 (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the resamples, 0 or more (default: %(default)s)")
    parser.add_argument(
        "--smoothing",
        type=float,
        default=0.0,
        help="pseudo-count for classes without reference errors (default: %(default)s)",
    )
    parser.add_argument(
        "--undefined",
        choices=("omit", "error"),
        default="omit",
        help="what to do with such classes (default: %(default)s)",
    )


def main(arguments: argparse.Namespace) -> int:
    """Runs the verb: prints a summary, writes what was asked for, returns 0.

    Raises:
        UserError: a file that cannot be read, or files that do not belong together.
    """
    paths = [arguments.reference, *arguments.candidate, *arguments.reference_trials]
    predictions = read(paths)
    groups, group_names = read_groups(arguments.groups) if arguments.groups else (None, None)
    reference, rest = predictions[0], predictions[1:]
    candidates, trials = rest[: len(arguments.candidate)], rest[len(arguments.candidate) :]
    if groups is not None and len(groups) != len(reference.labels):
        raise UserError(
            f"{arguments.groups}: {len(groups)} groups for {len(reference.labels)} examples; give one per example"
        )
    result = score(
        references=reference,
        candidates=candidates,
        floor_references=[reference, *trials] if trials else [],
        groups=groups,
        group_names=group_names,
        resamples=arguments.resamples,
        seed=arguments.seed,
        smoothing=arguments.smoothing,
        undefined=arguments.undefined,
    )
    text = json.dumps(
        {"reference": reference.source, **result.to_json()}, indent=2, allow_nan=False, ensure_ascii=False
    )
    if arguments.json == "-":
        sys.stdout.write(text + "\n")
    else:
        show(result, reference.source)
        if arguments.json:
            _write(arguments.json, text + "\n")
    if arguments.html:
        _write(arguments.html, page(result, reference.source))
    return 0


# Reading


def read(paths: Sequence[str | Path]) -> list[Predictions]:
    """Predictions of each path, with class numbers that mean the same in all of them.

    Raises:
        UserError: naming the file and the trouble.
    """
    found = [_read(Path(path)) for path in paths]
    words = [each for each in found if isinstance(each, _Words)]
    named = next((each for each in found if isinstance(each, Predictions) and each.classes is not None), None)
    if words:
        used = sorted({word for each in words for word in [*each.labels, *each.predictions]})
        numbers = all(_is_number(word) for word in used)
        if named is not None and not numbers:
            classes = named.classes
        elif numbers:
            classes = None
        else:
            classes = tuple(used)
        group_names = _ordered({word for each in words for word in each.groups or []})
        found = [_numbered(each, classes, group_names) if isinstance(each, _Words) else each for each in found]
    return found


def read_groups(path: str | Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Group numbers [N] and the names of the groups, from ``.npz`` ('groups') or ``.csv`` (column 'group')."""
    path = Path(path)
    if path.suffix == ".npz":
        arrays = _arrays(path)
        if "groups" not in arrays:
            raise UserError(f"{path}: no array 'groups'; it holds {', '.join(sorted(arrays)) or 'nothing'}")
        words = [str(value) for value in np.asarray(arrays["groups"]).ravel()]
    else:
        rows = _rows(path, known=None)
        if not rows or "group" not in rows[0]:
            raise UserError(f"{path}: no column 'group' with values; start the file with a header that names it")
        words = [row["group"] for row in rows]
    names = _ordered(set(words))
    place = {name: i for i, name in enumerate(names)}
    return np.array([place[word] for word in words], np.int64), names


def _read(path: Path) -> Predictions | _Words:
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise UserError(f"{path}: no such file; give .npz, .csv or a folder with predictions.npz")
    if path.suffix == ".npz":
        return _from_arrays(_arrays(path), str(path))
    if path.suffix == ".csv":
        rows = _rows(path, known=COLUMNS)
        if not rows:
            raise UserError(f"{path}: no examples; give at least one row below the header")
        for column in COLUMNS[:2]:
            if column not in rows[0]:
                raise UserError(f"{path}: no column '{column}'; the header is label,prediction[,group]")
        groups = [row["group"] for row in rows] if "group" in rows[0] else None
        return _Words(str(path), [row["label"] for row in rows], [row["prediction"] for row in rows], groups)
    raise UserError(f"{path}: '{path.suffix}' is not read here; give .npz, .csv or a folder with predictions.npz")


def _read_folder(path: Path) -> Predictions:
    file = path / "predictions.npz"
    if not file.exists():
        raise UserError(f"{path}: holds no predictions.npz; give a folder that the stage Predict wrote")
    read = _from_arrays(_arrays(file), str(path))
    names = path / "classes.json"
    if not names.exists():
        return read
    try:
        classes = json.loads(names.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{names}: not readable as JSON: {error}") from None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{names}: must be a list of class names")
    return replace(read, classes=tuple(classes))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: not readable as .npz: no archive; save with numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except ValueError as error:
        if "pickle" in str(error).lower() or "object" in str(error).lower():
            raise UserError(f"{path}: holds a pickle, which is never read; save plain arrays of numbers") from None
        raise UserError(f"{path}: not readable as .npz: {str(error).splitlines()[0]}") from None
    except MemoryError:
        raise UserError(f"{path}: an array is larger than the memory of this machine; give fewer examples") from None
    except (OSError, EOFError, KeyError, NotImplementedError, zlib.error, zipfile.BadZipFile) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: not readable as .npz: {first}") from None
    broken = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
    if broken:  # a member that is no array comes back as its bytes
        raise UserError(f"{path}: not readable as .npz: '{broken[0]}' is no array; save with numpy.savez")
    return arrays


def _from_arrays(arrays: dict[str, np.ndarray], source: str) -> Predictions:
    for name in arrays:
        if name not in ARRAYS:
            raise UserError(f"{source}: unknown array '{name}'; {nearest(name, ARRAYS)}")
    classes = tuple(str(name) for name in arrays["classes"].ravel()) if "classes" in arrays else None
    if "confusion" in arrays:
        for name in arrays:
            if name not in ("confusion", "classes"):
                raise UserError(f"{source}: '{name}' beside 'confusion'; give the matrix or the examples, not both")
        return Predictions.from_confusion(arrays["confusion"], classes=classes, source=source)
    if "labels" not in arrays or not ("logits" in arrays or "predictions" in arrays):
        held = ", ".join(sorted(arrays)) or "nothing"
        raise UserError(f"{source}: holds {held}; give 'labels' with 'logits' or 'predictions', or 'confusion'")
    if len(np.atleast_1d(arrays["labels"])) == 0:
        raise UserError(f"{source}: no examples; give at least one")
    if "logits" in arrays:
        read = Predictions.from_logits(arrays["labels"], arrays["logits"], classes=classes, source=source)
        if "predictions" in arrays and not np.array_equal(read.predictions, arrays["predictions"]):
            raise UserError(f"{source}: 'predictions' are not the largest 'logits'; give one of them")
    else:
        read = Predictions(arrays["labels"], arrays["predictions"], classes=classes, source=source)
    return replace(read, groups=arrays["groups"]) if "groups" in arrays else read


def _rows(path: Path, *, known: Sequence[str] | None) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            if not header:
                raise UserError(f"{path}: empty file; start it with the header label,prediction[,group]")
            twice = next((name for i, name in enumerate(header) if name in header[:i]), None)
            if twice is not None:
                raise UserError(f"{path}: column '{twice}' stands there twice; remove one")
            for name in header if known is not None else ():
                if name not in known:
                    raise UserError(f"{path}: unknown column '{name}'; {nearest(name, known)}")
            rows = []
            for number, row in enumerate(reader, 2):
                if not row:
                    continue
                if len(row) != len(header) or not all(cell.strip() for cell in row):
                    raise UserError(f"{path}: line {number} has not {len(header)} filled columns; mend or remove it")
                rows.append({name: cell.strip() for name, cell in zip(header, row, strict=True)})
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not readable as .csv: {error}") from None


def _numbered(words: _Words, classes: tuple[str, ...] | None, group_names: tuple[str, ...]) -> Predictions:
    place = {name: i for i, name in enumerate(classes)} if classes is not None else None

    def numbers(values: list[str], name: str) -> np.ndarray:
        if place is None:
            long = next((value for value in values if len(value) > 18), None)  # int64 holds any 18 digits
            if long is not None:
                raise UserError(f"{words.source}: {name} {long[:24]} is out of range for a class number")
            return np.array([int(value) for value in values], np.int64)
        for value in values:
            if value not in place:
                raise UserError(
                    f"{words.source}: {name} '{value}' is no class of the other files; {nearest(value, place)}"
                )
        return np.array([place[value] for value in values], np.int64)

    groups = None
    if words.groups is not None:
        spot = {name: i for i, name in enumerate(group_names)}
        groups = np.array([spot[value] for value in words.groups], np.int64)
    return Predictions(
        numbers(words.labels, "label"),
        numbers(words.predictions, "prediction"),
        classes=classes,
        groups=groups,
        group_names=group_names if groups is not None else None,
        source=words.source,
    )


def _is_number(word: str) -> bool:
    return word.isascii() and (word[1:] if word.startswith("-") else word).isdigit()


def _ordered(words: set[str]) -> tuple[str, ...]:
    """Numbers by value, names by the alphabet."""
    if words and all(_is_number(word) for word in words):
        return tuple(sorted(words, key=Decimal))
    return tuple(sorted(words))


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


# Telling

INTERVAL = "95 % interval for the value without sampling noise"


def footnote(result: Audit) -> str:
    """What the intervals are for."""
    units = "test examples and trials" if len(result.trials) > 1 else "test examples"
    return (
        f"Intervals, over {units}, are for the value that an endless test set would give. A value that sampling noise "
        "inflates, such as CEV, SDE or a largest gap, may lie above its interval."
    )


def counted(many: int, noun: str) -> str:
    """'1 trial', '2 trials'."""
    return f"{many:,} {noun}{'' if many == 1 else 's'}"


def classes_used(result: Audit) -> str:
    """How many classes the values rest on; those of each trial apart where the trials differ."""
    several = " in every trial" if len(result.trials) > 1 else ""
    whole = f"{result.classes_used} of {result.classes} classes{several}"
    own = sorted({trial["classes_used"] for trial in result.trials})
    if own == [result.classes_used]:
        return whole
    return f"{' to '.join(map(str, own[:: max(len(own) - 1, 1)]))} of {result.classes} classes by trial, {whole}"


def _range(bounds) -> str:
    return f"{number(bounds.low)} to {number(bounds.high)}" if bounds is not None else "no interval"


def worst(result: Audit, many: int = 10) -> list[dict[str, Any]]:
    """Classes that lost most recall beyond what the whole test set lost, worst first."""
    rows = [row for row in result.per_class if row["excess_accuracy_gap"] is not None]
    return sorted(rows, key=lambda row: -row["excess_accuracy_gap"])[:many]


def sentence(result: Audit) -> str:
    """What was found, for somebody who has never heard of CEV."""
    change = result.measures.get("accuracy_change")
    lost = -change.value * 100 if change is not None and change.value is not None else 0.0
    parts = []
    if abs(lost) < 0.05:
        parts.append("The candidate is as accurate as the reference overall")
    else:
        parts.append(f"The candidate gets {abs(lost):.1f} {'fewer' if lost > 0 else 'more'} of 100 examples right")
    low = result.cev_interval.low if result.cev_interval is not None else None
    moved = [row for row in worst(result, len(result.per_class)) if row["significant"]]
    if result.cev == 0 and result.sde == 0:
        parts.append("and every class changed alike.")
    elif moved or (low is not None and low > 0):
        parts.append("and the change is uneven: some classes were hit harder than chance explains.")
    else:
        parts.append("and this test set does not show that some classes were hit harder than others.")
    if moved:
        row = moved[0]
        parts.append(
            f"{len(moved)} of {result.classes} classes moved away from the trend; for '{row['class']}' the share "
            f"missed went from {100 * row['fnr_reference']:.0f} % to {100 * row['fnr']:.0f} %."
        )
    floor = result.measures["cev"].floor
    if floor is not None:
        beside = (
            "more than" if floor.percentile == 100 else "less than" if floor.percentile == 0 else "within the range of"
        )
        parts.append(f"Its CEV is {beside} what equally good dense networks show among each other.")
    return " ".join(parts)


def show(result: Audit, reference: str) -> None:
    """Prints headline, worst classes, measures and the sentence."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    names = ", ".join(trial["file"] for trial in result.trials)
    console.print(Text(f"{names}  against  {reference}", style="bold"))
    console.print(
        Text(f"CEV {number(result.cev)}   SDE {number(result.sde)}   ", style="bold cyan")
        + Text(f"{classes_used(result)}, {result.examples:,} examples, {counted(len(result.trials), 'trial')}")
    )
    console.print(
        Text(
            f"{INTERVAL}: CEV {_range(result.cev_interval)}, SDE {_range(result.sde_interval)}",
            style="dim",
        )
    )
    if len(result.trials) > 1:
        published = result.published
        console.print(
            Text(
                f"rates averaged over trials first: CEV {number(published['cev'])}, SDE {number(published['sde'])}",
                style="dim",
            )
        )
    console.print(Text(sentence(result)))
    table = Table(title="Worst classes", title_justify="left", box=None, pad_edge=False)
    for heading in ("class", "support", "FNR %", "after", "d_FNR", "FPR %", "after", "d_FPR", "p"):
        left = heading == "class"
        table.add_column(heading, justify="left" if left else "right", no_wrap=True, max_width=24 if left else None)
    for row in worst(result):
        shares = [number(100 * row[key]) for key in ("fnr_reference", "fnr", "fpr_reference", "fpr")]
        changes = [f"{row[key]:+.0f}" if row[key] is not None else "–" for key in ("d_fnr", "d_fpr")]
        texts = [str(row["support"]), *shares[:2], changes[0], *shares[2:], changes[1]]
        p = number(row["p_value"], 2) + (" *" if row["significant"] else "")
        table.add_row(Text(row["class"]), *texts, p)
    console.print(table)
    table = Table(title="Measures", title_justify="left", box=None, pad_edge=False)
    floors = result.floor_networks > 0
    for heading in ("measure", "value", INTERVAL, "unit", *(("floor", "percentile") if floors else ())):
        table.add_column(heading, justify="right" if heading in ("value", "percentile") else "left")
    for each in result.measures.values():
        floor = each.floor
        more = (f"{number(floor.low)} to {number(floor.high)}", f"{floor.percentile:.0f}") if floor else ("–", "–")
        table.add_row(each.title, number(each.value), _range(each.interval), each.unit, *(more if floors else ()))
    console.print(table)
    console.print(Text(footnote(result), style="dim"))
    console.print(Text(f"* {result.significance}", style="dim"))
    for note in result.notes:
        console.print(Text(f"note: {note}", style="dim"))
    if result.left_out:
        reasons = sorted(set(result.left_out.values()))
        many = counted(len(result.left_out), "measure") + (" is" if len(result.left_out) == 1 else " are")
        console.print(Text(f"note: {many} missing: {'; '.join(reasons)}", style="dim"))


def page(result: Audit, reference: str) -> str:
    """The audit as one HTML page that loads nothing from elsewhere."""
    from pipeline.report.audit_page import audit_page

    several = len(result.trials) > 1
    rests_on = [*([classes_used(result)] if several else []), f"{result.examples:,} examples"]
    return audit_page(
        result,
        reference=reference,
        candidates=", ".join(trial["file"] for trial in result.trials),
        lead=sentence(result),
        rests_on=" · ".join([*rests_on, counted(len(result.trials), "trial")]),
        footnote=footnote(result),
        interval=INTERVAL,
        classes=worst(result, len(result.per_class)),
    )
