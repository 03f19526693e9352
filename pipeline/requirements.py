"""The gate: what is required of measures and yardsticks, and whether what was measured meets it.

``worst_recall>=0.8`` is a requirement, and so is ``cev_over_floor=no_worse``. The 95 % interval decides, not the value;
what cannot be told does not pass.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TextIO

from pipeline.registry import Registry, UserError, nearest, shown
from pipeline.report.words import name_of, number, span
from pipeline.table import Row, grouped, select

if TYPE_CHECKING:
    from pipeline.bias import Measure

YARDSTICKS = ("floor", "control")
VERDICTS = ("above", "below", "equivalent", "no_worse")
MET, NOT_MET, CANNOT_TELL = "met", "not met", "cannot tell"
STATUS = 3  # of a command whose requirements are not all met

# What holds of a number, and what holds of an interval's ends when it holds of every number in between.
_HOLDS: dict[str, Callable[[float, float], bool]] = {
    ">=": lambda number, bound: number >= bound,
    "<=": lambda number, bound: number <= bound,
    ">": lambda number, bound: number > bound,
    "<": lambda number, bound: number < bound,
}
_FORM = re.compile(r"(?P<name>\w+)(?P<operator>>=|<=|>|<|=)(?P<value>[^=].*)")


@dataclass(frozen=True)
class Requirement:
    """A bound on a measure or on its ratio to a yardstick (``cev_over_floor``), or the verdict that a ratio must have.

    text: as it was given, less the spaces. operator: >=, <=, > or < with a number, = with a verdict.
    """

    text: str
    name: str
    operator: str
    value: float | str

    @classmethod
    def parse(cls, text: str, measures: Registry[Measure], yardsticks: Sequence[str] = YARDSTICKS) -> Requirement:
        """Reads ``NAME OP VALUE``.

        Args:
            measures: that there are; those that compare a network with its dense parent name, with ``_over_`` and one
                of the yardsticks, a ratio to it.

        Raises:
            UserError: one line that says what is wrong with it and what there is.
        """
        found = _FORM.fullmatch(text := "".join(text.split()))

        def refused(reason: str) -> UserError:
            return UserError(f"requirement {shown(text)}: {reason}")

        if not found:
            raise refused(
                "has not the form NAME OP VALUE; give one such as worst_recall>=0.8 or cev_over_floor=no_worse"
            )
        name, operator, value = found.groups()
        measure, over, yardstick = (name, "", "") if name in measures else name.partition("_over_")
        if measure not in measures:
            raise refused(f"{shown(measure)} is no measure; {nearest(measure, measures)}")
        if over and yardstick not in yardsticks:
            raise refused(f"{shown(yardstick)} is no yardstick here; {nearest(yardstick, yardsticks)}")
        if over and measure not in (beside := [name for name in measures if _has_yardsticks(measures[name])]):
            raise refused(f"{shown(measure)} has no yardstick; {nearest(measure, beside)}")
        if operator == "=":
            if not over:
                raise refused(
                    "= goes with a verdict on a yardstick, such as cev_over_floor=no_worse; give >=, <=, > or <"
                )
            if value not in VERDICTS:
                raise refused(f"{shown(value)} is no verdict; {nearest(value, VERDICTS)}")
            return cls(text, name, operator, value)
        try:
            bound = float(value)
        except ValueError:
            bound = math.nan
        if not math.isfinite(bound):
            more = f"; a verdict goes with =, as in {name}={value}" if over and value in VERDICTS else ""
            raise refused(f"{shown(value)} is no number{more}")
        return cls(text, name, operator, bound)


def _has_yardsticks(measure: type[Measure]) -> bool:
    """Whether single networks have it, over the whole test set, and it says how far they are from a dense one."""
    return measure.compares and not measure.over_trials and not measure.needs_groups


def read(
    texts: Iterable[str], measures: Registry[Measure], yardsticks: Sequence[str] = YARDSTICKS
) -> list[Requirement]:
    """Every requirement; UserError with a line for each that is refused."""
    found, wrong = [], []
    for text in texts:
        try:
            found.append(Requirement.parse(text, measures, yardsticks))
        except UserError as error:
            wrong.append(str(error))
    if wrong:
        raise UserError("\n".join(wrong))
    return found


@dataclass(frozen=True)
class Outcome:
    """What became of a requirement: met, not met, or cannot tell; and what was seen."""

    requirement: Requirement
    outcome: str
    reason: str


def judge(requirement: Requirement, measured: Mapping[str, Mapping[str, Any] | None]) -> Outcome:
    """Holds a requirement against what was measured.

    A bound is met when the whole interval keeps to it, and not met when none of it does. A verdict is met when it is
    the one that was given, and not met when it is another one; ``no_worse`` is not met when the whole interval is worse
    than the margin. All else cannot be told, nor can anything where the interval has no width.

    Args:
        measured: name of a measure or a ratio -> ``value``, ``low`` and ``high`` (95 % interval; None where there is
            none), ``note`` (why something is missing, or taken for granted), and of a ratio ``kind``, ``margin``,
            ``verdict`` and ``no_worse``, see `pipeline.bias.Yardstick`. What compares groups has these under
            ``by_column``, for each column of groups, and must be met in all.
    """
    found = measured.get(requirement.name)
    if not isinstance(found, Mapping):
        return Outcome(requirement, CANNOT_TELL, "was not measured")
    if "by_column" in found:
        judged = {name: judge(requirement, {requirement.name: each}) for name, each in found["by_column"].items()}
        worst = min((one.outcome for one in judged.values()), key=(NOT_MET, CANNOT_TELL, MET).index)
        return Outcome(requirement, worst, "; ".join(f"{name}: {one.reason}" for name, one in judged.items()))
    low, high = _finite(found.get("low")), _finite(found.get("high"))
    seen, note = number(_finite(found.get("value"))), str(found.get("note") or "")
    if low is None or high is None:
        return Outcome(requirement, CANNOT_TELL, f"{seen} without interval" + (f": {note}" if note else ""))
    seen = f"{seen} ({span(low, high)})"
    if low == high:  # of a resampling that never saw an error, or was cut off at the end of the scale
        return Outcome(requirement, CANNOT_TELL, f"{seen} is no interval: it has no width")
    if requirement.operator == "=":
        outcome, verdict = _of_verdict(str(requirement.value), found, low, high)
        return Outcome(requirement, outcome, "; ".join(filter(None, [f"{seen}: {verdict}", note])))
    holds = [_HOLDS[requirement.operator](end, requirement.value) for end in (low, high)]
    outcome = MET if all(holds) else NOT_MET if not any(holds) else CANNOT_TELL
    sides = "" if outcome != CANNOT_TELL else f" lies on both sides of {number(requirement.value)}"
    return Outcome(requirement, outcome, "; ".join(filter(None, [seen + sides, note])))


def _of_verdict(wanted: str, found: Mapping[str, Any], low: float, high: float) -> tuple[str, str]:
    """The outcome, and the verdict in words."""
    verdict = str(found.get("verdict") or CANNOT_TELL)
    if wanted != "no_worse":
        return (CANNOT_TELL if verdict == CANNOT_TELL else MET if verdict == wanted else NOT_MET), verdict
    margin, known = _finite(found.get("margin")), found.get("no_worse")
    if margin is None:
        return CANNOT_TELL, "the measure states no margin for no_worse"
    if known is True:
        return MET, f"no worse (margin {number(margin)})"
    least = 1 / margin if found.get("kind") == "ratio" else -margin
    if known is False and (low > margin or high < least):  # outside on the good side it would be no worse
        return NOT_MET, f"worse (margin {number(margin)})"
    return CANNOT_TELL, f"may be worse (margin {number(margin)})"


def _finite(value: Any) -> float | None:
    """A number, also where a file may hold something else in its place."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


@dataclass(frozen=True)
class Gate:
    """The outcomes of all requirements in all cells. passed: all of them are met."""

    outcomes: tuple[tuple[str, Outcome], ...]

    @property
    def passed(self) -> bool:
        return all(one.outcome == MET for _, one in self.outcomes)

    @property
    def status(self) -> int:
        """Exit status of a command."""
        return 0 if self.passed else STATUS

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "requirements": [
                {"cell": cell, "requirement": one.requirement.text, "outcome": one.outcome, "reason": one.reason}
                for cell, one in self.outcomes
            ],
        }

    def tell(self, file: TextIO) -> None:
        """Writes a line for each outcome; whatever a name holds, no escape sequence reaches a terminal."""
        for cell, one in self.outcomes:
            line = f"{one.outcome + ':':13}{cell}: {one.requirement.text}: {one.reason}"
            print("".join(part if part.isprintable() else ascii(part)[1:-1] for part in line), file=file)


def gate(requirements: Sequence[Requirement], cells: Mapping[str, Mapping[str, Mapping[str, Any] | None]]) -> Gate:
    """Every requirement in every cell. cells: name -> what was measured, see `judge`."""
    return Gate(tuple((name, judge(each, measured)) for name, measured in cells.items() for each in requirements))


def of_study(
    requirements: Sequence[Requirement], summary: Mapping[str, Any], rows: Sequence[Row], pattern: str | None = None
) -> Gate:
    """Every requirement in the cells of a study's report.

    Args:
        summary, rows: summary.json and rows.csv of the report.
        pattern: of cells, by name as in ``magnitude 0.9 + kd``, with ``*``, ``?`` and ``[...]`` as in a shell; default:
            every cell that was pruned.

    Raises:
        UserError: no cell of this name; a summary without cells.
    """
    try:
        lines = {name_of(line): line for line in summary["lines"]}
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"summary.json: names no cells ({error}); make the report again with the verb run") from None
    chosen = {
        name: line
        for name, line in lines.items()
        if line["pruning"] != "dense" or (pattern is not None and line["recovery"] != "none")
        if pattern is None or pattern == name or fnmatchcase(name, pattern)
    }
    if pattern in lines and pattern not in chosen:
        raise UserError(f"--cell: '{pattern}' is what the others are held against; name another")
    if not chosen:
        said = "no cell was pruned" if pattern is None else f"{shown(pattern)} is no cell"
        raise UserError(f"--cell: {said}; {nearest(pattern or '', lines)}")
    whole = select(rows, kind="bias", seed=None)
    return gate(requirements, {name: _of_cell(line, whole) for name, line in chosen.items()})


def _of_cell(line: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Mapping[str, Any] | None]:
    own = select(rows, **{key: line[key] for key in ("pruning", "sparsity_asked", "recovery")})
    found: dict[str, Any] = {row["measure"]: row for row in own if row["group"] is None}
    # The place group holds a column, for what compares its groups, or one group of it, as in kind=animal.
    between = [row for row in own if row["group"] and "=" not in row["group"] and row["measure"] not in found]
    for (measure,), columns in grouped(between, "measure").items():
        found[measure] = {"by_column": {row["group"]: row for row in columns}}
    for yardstick in YARDSTICKS:
        beside = line.get(f"over_{yardstick}")
        if isinstance(beside, Mapping):
            found |= {f"{measure}_over_{yardstick}": fields for measure, fields in beside.items()}
    return found
