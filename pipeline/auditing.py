"""Compares any two classifiers class by class, from files or arrays, without config or store; the verb ``audit``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import bias, requirements
from pipeline.bias import Audit, Value
from pipeline.bias.resampling import ESTIMANDS
from pipeline.files import write_atomically
from pipeline.groups import Column, checked
from pipeline.predictions import GROUP, Predictions, read, read_groups
from pipeline.registry import UserError
from pipeline.report.words import listed, number, verdict_text, yardstick_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    parser.description = (
        "Compares candidates with a reference on the same test set, class by class. A file is .npz with 'labels' and "
        "'logits' or 'predictions', or with 'confusion' [C, C] (rows = true class); .csv with the header "
        "label,prediction[,group]; or a Predict folder of the store."
    )
    parser.add_argument(
        "--reference",
        required=True,
        nargs="+",
        metavar="REF",
        help="predictions of the dense network; or one for each candidate, in their order: its own dense parent",
    )
    parser.add_argument(
        "--candidate", required=True, nargs="+", metavar="CAND", help="predictions of trials of one method"
    )
    parser.add_argument(
        "--reference-trials",
        nargs="+",
        default=[],
        metavar="REF2",
        help="more dense networks: with a single REF they make the floor; several REF make it themselves",
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
        "--minimum-errors",
        type=int,
        default=5,
        help="classes with fewer reference errors are named wherever they move a number (default: %(default)s)",
    )
    parser.add_argument(
        "--undefined",
        choices=("omit", "error"),
        default="omit",
        help="what to do with such classes (default: %(default)s)",
    )
    add_requirements(parser, "cev_over_floor=no_worse")


def add_requirements(parser: argparse.ArgumentParser, example: str) -> None:
    """Adds the option --require to a verb."""
    parser.add_argument(
        "--require",
        action="append",
        default=[],
        metavar="REQUIREMENT",
        help=f"such as 'worst_recall>=0.8' or '{example}'; exit status 3 unless 95 %% intervals show that all are met",
    )


# A classifier's answers: a file or folder that `pipeline.predictions.read` knows, or [N] predictions or [N, C] logits.
Answers = str | Path | np.ndarray | Predictions


def audit(
    *,
    reference: Answers | Sequence[Answers],
    candidates: Answers | Sequence[Answers],
    reference_trials: Sequence[Answers] = (),
    labels: np.ndarray | None = None,
    groups: str | Path | Sequence[object] | Mapping[str, Sequence[object]] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    smoothing: float = 0.0,
    minimum_errors: int = 5,
    undefined: str = "omit",
) -> Audit:
    """Compares classifiers with a reference on the same test set, class by class: what the verb ``audit`` does.

    Args:
        reference: of the dense network, or of one for each candidate: its own dense parent.
        candidates: of one network, or of several trials of one method.
        reference_trials: of more dense networks, which with a single ``reference`` make the floor; several references
            make it themselves.
        labels: [N] true classes, counted from 0; needed for arrays, files have their own.
        groups: [N] names of groups to report by, or a file as for ``--groups``: the column ``group``; a mapping holds
            several columns by name. By default those of the files.
        resamples, seed: of the bootstrap. smoothing, undefined: for classes without reference errors.
        minimum_errors: classes with fewer reference errors are named wherever they move a number.

    Raises:
        UserError: a file that cannot be read, or answers that do not belong together.
    """
    several = list(candidates) if isinstance(candidates, list | tuple) else [candidates]
    parents = list(reference) if isinstance(reference, list | tuple) else [reference]
    if len(parents) > 1 and reference_trials:
        raise UserError(
            f"reference_trials: {len(parents)} references make the floor themselves; drop them, or give one reference"
        )
    named = [(f"reference {number}" if len(parents) > 1 else "reference", one) for number, one in enumerate(parents, 1)]
    named += [(f"candidate {number}", each) for number, each in enumerate(several, 1)]
    named += [(f"reference trial {number}", each) for number, each in enumerate(reference_trials, 1)]
    predictions = _understood(named, labels)
    if not 0 <= minimum_errors <= 10_000_000:
        raise UserError(f"minimum_errors: {minimum_errors} is refused; give a whole number from 0 to 10000000")
    dense, rest = predictions[: len(parents)], predictions[len(parents) :]
    _refuse_copies([*dense, *rest[len(several) :]], "dense networks")
    _refuse_copies(rest[: len(several)], "trials")
    first = dense[0]
    classes = bias.class_names(predictions)
    trials = rest[len(several) :]
    known = [*dense, *trials]
    return bias.audit(
        references=dense,
        candidates=rest[: len(several)],
        floor=bias.floor(known, classes=classes, smoothing=smoothing) if len(known) > 1 else None,
        dense=trials,
        minimum_errors=minimum_errors,
        classes=classes,
        groups=None if groups is None else _columns(groups, len(first.labels)),
        resamples=resamples,
        seed=seed,
        smoothing=smoothing,
        undefined=undefined,
    )


def _refuse_copies(networks: Sequence[Predictions], what: str) -> None:
    """One network given twice would count as two and make intervals narrow that are not."""
    for place, one in enumerate(networks):
        for other in networks[:place]:
            if not (one.paired and other.paired and np.array_equal(one.predictions, other.predictions)):
                continue
            logits = one.logits is not None and other.logits is not None
            wrong = (one.predictions != one.labels).any() if len(one.labels) == len(one.predictions) else False
            if np.array_equal(one.logits, other.logits) if logits else wrong:
                raise UserError(
                    f"{one.source}: says the same as {other.source} of every example; give each of the {what} once"
                )


def _columns(
    groups: str | Path | Sequence[object] | Mapping[str, Sequence[object]], examples: int
) -> dict[str, Column]:
    """The columns that a caller gave; raises UserError where one has another length than the test set."""
    if isinstance(groups, str | Path):
        return checked(read_groups(groups), examples, str(groups))
    named = groups if isinstance(groups, Mapping) else {GROUP: groups}
    return checked({name: Column.of(np.asarray(words).ravel()) for name, words in named.items()}, examples, "groups")


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
    """Runs the verb: prints a summary, writes what was asked for; returns 0, or 3 where a requirement is not met.

    Raises:
        UserError: a requirement or a file that cannot be read, or files that do not belong together.
    """
    required = requirements.read(arguments.require, bias.MEASURES, yardsticks=["floor"])
    result = audit(
        reference=arguments.reference,
        candidates=arguments.candidate,
        reference_trials=arguments.reference_trials,
        groups=arguments.groups,
        resamples=arguments.resamples,
        seed=arguments.seed,
        smoothing=arguments.smoothing,
        minimum_errors=arguments.minimum_errors,
        undefined=arguments.undefined,
    )
    reference = ", ".join(str(Path(one)) for one in arguments.reference)
    gate = requirements.gate(required, {names_of(result): measured(result)})
    content = {"reference": reference, **result.to_json(), **({"gate": gate.to_json()} if required else {})}
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    if arguments.json == "-":
        sys.stdout.write(text + "\n")
    else:
        show(result, reference)
        if arguments.json:
            _write(arguments.json, text + "\n")
    gate.tell(sys.stderr if arguments.json == "-" else sys.stdout)
    if arguments.html:
        _write(arguments.html, page(result, reference))
    return gate.status


def names_of(result: Audit) -> str:
    """The names of the candidates' files."""
    return ", ".join(trial["file"] for trial in result.trials)


def measured(result: Audit) -> dict[str, dict[str, Any]]:
    """What requirements may be about: each measure, and its ratio to the floor; see `pipeline.requirements.judge`."""
    found: dict[str, dict[str, Any]] = {name: {"note": reason} for name, reason in result.left_out.items()}
    for name, each in result.measures.items():
        ends = {"low": each.interval.low, "high": each.interval.high} if each.interval else {}
        found[name] = {"value": each.value, "note": each.withheld, **ends}
        none = {"note": "there is no floor; give more dense networks with --reference-trials"}
        found[f"{name}_over_floor"] = asdict(each.over_floor) if each.over_floor else none
    for column, of_column in (result.groups or {}).items():
        for name, each in of_column["measures"].items():
            if name not in result.measures:  # it compares the groups
                low, high = each["interval"] or (None, None)
                fields = {"value": each["value"], "low": low, "high": high, "note": each["withheld"]}
                found.setdefault(name, {"by_column": {}})["by_column"][column] = fields
    return found


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
    units = dict.fromkeys(each.interval.unit for each in result.measures.values() if each.interval)
    estimands = [ESTIMANDS[unit] for unit in units] or [ESTIMANDS["examples"]]
    words = (
        f"Intervals are for {listed(estimands, 'or')}. A value that sampling noise inflates, such as CEV or SDE, may "
        "lie above its interval."
    )
    withheld = any(each.withheld for each in result.measures.values())
    return words + " Where none is known to cover it is withheld; the reason is in the notes." * withheld


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
    if result.cev is None:
        parts.append("but CEV and SDE do not exist: in no class does the reference make errors of both kinds.")
    elif result.cev == 0 and result.sde == 0 and not moved:
        parts.append(
            "and every class changed alike."
            if result.classes_used == result.classes
            else f"and the {result.classes_used} classes that CEV and SDE can use changed alike."
        )
    elif moved or (low is not None and low > 0):
        parts.append("and the change is uneven: some classes changed more than sampling of the test set explains.")
    else:
        parts.append("and this test set does not show that some classes changed more than others.")
    if moved:
        row = max(moved, key=lambda row: abs(row["fnr"] - row["fnr_reference"]))
        parts.append(
            f"{len(moved)} of {result.classes} classes moved away from the trend; for '{row['class']}' the share "
            f"missed went from {100 * row['fnr_reference']:.0f} % to {100 * row['fnr']:.0f} %."
        )
    return " ".join([*parts, *_beside_the_floor(result)])


def _beside_the_floor(result: Audit) -> list[str]:
    """What the floor says of CEV, and on which class it rests."""
    cev, said = result.measures["cev"], []
    record = cev.over_floor
    if record is None:
        said.append("Whether a change of seed does the same was not asked; give more dense networks.")
    elif record.verdict:
        value = f"{number(record.value)} times ({number(record.low)} to {number(record.high)})"
        what = f"Its CEV is {value} what equally good dense networks show against the same reference"
        words = {
            "above": "more than a change of seed does",
            "below": "less than a change of seed does",
            "equivalent": f"no different, within a factor of {number(record.margin)}",
        }
        told = f"could have shown {number(record.detectable)} times"
        said.append(
            f"{what}: {words.get(record.verdict, f'whether that is more cannot be told; these networks {told}')}."
        )
        said += [f"Of these, {record.note}."] if record.note.startswith("left out") else []
    else:
        said.append(f"Its CEV has no verdict: {record.note}.")
    if cev.carried_by:
        name, share = next(iter(cev.carried_by.items()))
        few = [each for each in result.scarce if cev.carried_by.get(each, 0) >= 0.1]
        if share > 0.5:
            said.append(f"{share:.0%} of it rest on the class '{name}'.")
        if few:
            verb = "has" if len(few) == 1 else "have"
            names = ", ".join(f"'{each}'" for each in few[:5])
            said.append(
                f"{names} {verb} fewer than {result.minimum_errors} reference errors of a kind; a tenth of it or more "
                "rests on each."
            )
    return said


def show(result: Audit, reference: str) -> None:
    """Prints headline, worst classes, measures and the sentence."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    console.print(Text(f"{names_of(result)}  against  {reference}", style="bold"))
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
    for heading in ("measure", "value", INTERVAL, "unit", *(("floor", "over floor") if floors else ())):
        table.add_column(heading, justify="right" if heading == "value" else "left")
    for each in result.measures.values():
        floor = each.floor
        beside = asdict(each.over_floor) if each.over_floor else {}
        told = " ".join(filter(None, [yardstick_text(beside), verdict_text(beside)]))
        more = (f"{number(floor.low)} to {number(floor.high)}" if floor else "–", told)
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
        candidates=names_of(result),
        lead=sentence(result),
        rests_on=" · ".join([*rests_on, counted(len(result.trials), "trial")]),
        footnote=footnote(result),
        interval=INTERVAL,
        classes=worst(result, len(result.per_class)),
    )
