"""Compares any two classifiers class by class, from files or arrays, without config or store; the verb ``audit``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import bias
from pipeline.bias import Audit, Value
from pipeline.bias.resampling import ESTIMANDS
from pipeline.files import write_atomically
from pipeline.predictions import Predictions, read, read_groups
from pipeline.registry import UserError
from pipeline.report.words import number


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


# A classifier's answers: a file or folder that `pipeline.predictions.read` knows, or [N] predictions or [N, C] logits.
Answers = str | Path | np.ndarray | Predictions


def audit(
    *,
    reference: Answers,
    candidates: Answers | Sequence[Answers],
    reference_trials: Sequence[Answers] = (),
    labels: np.ndarray | None = None,
    groups: str | Path | np.ndarray | None = None,
    resamples: int = 2000,
    seed: int = 0,
    smoothing: float = 0.0,
    undefined: str = "omit",
) -> Audit:
    """Compares classifiers with a reference on the same test set, class by class: what the verb ``audit`` does.

    Args:
        reference: of the dense network.
        candidates: of one network, or of several trials of one method.
        reference_trials: of more dense networks, which with ``reference`` make the floor.
        labels: [N] true classes, counted from 0; needed for arrays, files have their own.
        groups: [N] of a second column to report by, or a file as for ``--groups``.
        resamples, seed: of the bootstrap. smoothing, undefined: for classes without reference errors.

    Raises:
        UserError: a file that cannot be read, or answers that do not belong together.
    """
    several = list(candidates) if isinstance(candidates, list | tuple) else [candidates]
    named = [("reference", reference), *((f"candidate {number}", each) for number, each in enumerate(several, 1))]
    named += [(f"reference trial {number}", each) for number, each in enumerate(reference_trials, 1)]
    predictions = _understood(named, labels)
    first, rest = predictions[0], predictions[1:]
    if isinstance(groups, str | Path):
        source, (numbers, group_names) = groups, read_groups(groups)
    elif groups is not None:
        source, (words, numbers) = "groups", np.unique(np.asarray(groups), return_inverse=True)
        group_names = tuple(map(str, words))
    else:
        source, numbers, group_names = None, None, None
    if numbers is not None and len(numbers) != len(first.labels):
        raise UserError(f"{source}: {len(numbers)} groups for {len(first.labels)} examples; give one per example")
    classes = bias.class_names(predictions)
    trials = rest[len(several) :]
    return bias.audit(
        references=first,
        candidates=rest[: len(several)],
        floor=bias.floor([first, *trials], classes=classes, smoothing=smoothing) if trials else None,
        classes=classes,
        groups=numbers,
        group_names=group_names,
        resamples=resamples,
        seed=seed,
        smoothing=smoothing,
        undefined=undefined,
    )


def _understood(named: Sequence[tuple[str, Answers]], labels: np.ndarray | None) -> list[Predictions]:
    """Each of the answers as predictions, under its file's name or the one given; files are read together."""
    paths = [each for _, each in named if isinstance(each, str | Path)]
    read_already = iter(read(paths))
    found = []
    for name, each in named:
        if isinstance(each, str | Path):
            found.append(next(read_already))
        elif isinstance(each, Predictions):
            found.append(each)
        elif labels is None:
            raise UserError(f"{name}: an array says nothing without labels=; give them, or a file")
        elif np.ndim(each) == 2:
            found.append(Predictions.from_logits(labels, np.asarray(each), source=name))
        else:
            found.append(Predictions(labels, np.asarray(each), source=name))
    return found


def main(arguments: argparse.Namespace) -> int:
    """Runs the verb: prints a summary, writes what was asked for, returns 0.

    Raises:
        UserError: a file that cannot be read, or files that do not belong together.
    """
    result = audit(
        reference=arguments.reference,
        candidates=arguments.candidate,
        reference_trials=arguments.reference_trials,
        groups=arguments.groups,
        resamples=arguments.resamples,
        seed=arguments.seed,
        smoothing=arguments.smoothing,
        undefined=arguments.undefined,
    )
    reference = str(Path(arguments.reference))
    text = json.dumps({"reference": reference, **result.to_json()}, indent=2, allow_nan=False, ensure_ascii=False)
    if arguments.json == "-":
        sys.stdout.write(text + "\n")
    else:
        show(result, reference)
        if arguments.json:
            _write(arguments.json, text + "\n")
    if arguments.html:
        _write(arguments.html, page(result, reference))
    return 0


def _write(path: str, text: str) -> None:
    target = Path(path).resolve()  # what a link leads to
    try:
        if target.exists() and not target.is_file():
            target.write_text(text, encoding="utf-8")  # a pipe or a device must stay what it is
        else:
            write_atomically(target, text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


# Telling

INTERVAL = "95 % interval for the value without sampling noise"


def footnote(result: Audit) -> str:
    """What the intervals are for."""
    words = (
        f"Intervals are for {ESTIMANDS['both' if len(result.trials) > 1 else 'examples']}. A value that sampling noise "
        "inflates, such as CEV, SDE or a largest gap, may lie above its interval."
    )
    withheld = any(each.withheld for each in result.measures.values())
    return words + " Where the reference makes too few errors in some class, they are withheld." * withheld


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


def _range(each: Value) -> str:
    if each.interval is None:
        return "withheld" if each.withheld else "no interval"
    return f"{number(each.interval.low)} to {number(each.interval.high)}"


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
            f"{INTERVAL}: CEV {_range(result.measures['cev'])}, SDE {_range(result.measures['sde'])}",
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
        table.add_row(each.title, number(each.value), _range(each), each.unit, *(more if floors else ()))
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
