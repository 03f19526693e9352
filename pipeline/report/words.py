"""Numbers and sentences of a report: one format for every number, and words that promise no more than the table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.report.catalogue import Shown

NOTHING = "–"


def number(value: float | None, significant: int = 3, *, decimals: int | None = None) -> str:
    """Three significant digits, thousands grouped, powers of ten from a million on; a dash where there is no value.

    >>> [number(value) for value in (0, 0.000012, 0.9587, 33.29, 3264.5, 12345678, None)]
    ['0', '1.2e-05', '0.959', '33.3', '3,264', '1.2e7', '–']

    Args:
        decimals: a fixed number of digits behind the point instead.
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    if decimals is not None:
        text = f"{value:,.{decimals}f}"
        return text.lstrip("-") if float(text.replace(",", "")) == 0 else text
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 999_999.5:  # what would be rounded to a million
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    if size >= 10 ** (significant - 1):
        return f"{value:,.0f}"
    return f"{value:.{significant}g}" if size >= 1e-4 else f"{value:.1e}"


def plus_minus(value: float | None, spread: float | None, digits: int | None = None) -> str:
    """Mean and standard deviation; the mean alone where there is no spread."""
    text = number(value, decimals=digits)
    return text if spread is None or value is None else f"{text} ± {number(spread, decimals=digits)}"


def span(low: float | None, high: float | None) -> str:
    """An interval; empty where there is none."""
    return "" if low is None or high is None else f"{number(low)} to {number(high)}"


def origin_of(line: Mapping[str, Any]) -> str:
    """What a network was before its recovery: ``magnitude 0.9`` or ``dense``."""
    return "dense" if line["pruning"] == "dense" else f"{line['pruning']} {line['sparsity_asked']:g}"


def name_of(line: Mapping[str, Any]) -> str:
    """``magnitude 0.9 + kd``, ``dense without recovery``."""
    recovery = line["recovery"]
    return f"{origin_of(line)} + {recovery}" if recovery != "none" else f"{origin_of(line)} without recovery"


def listed(names: Sequence[str], last: str = "and") -> str:
    """``a, b and c``."""
    return f" {last} ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""


def beyond(value: float | None, floor: Mapping[str, float], better: str) -> bool:
    """Whether a value is worse than the central 95 % of the dense pairs; for a signed change, outside of them."""
    if value is None:
        return False
    above, below = value > floor["high"], value < floor["low"]
    return {"lower": above, "higher": below}.get(better, above or below)


def sentences(summary: Mapping[str, Any], headline: Sequence[Shown]) -> list[str]:
    """What the table says of each headline measure that has a floor, and of the comparisons of recoveries."""
    lines, seeds = summary["lines"][1:], summary["lines"][0]["seeds"]
    comparing = [shown for shown in headline if shown.compares]
    floors = {shown.measure: summary["floor"][shown.measure] for shown in comparing}
    said = []
    if seeds < 2 and comparing:
        said.append(
            "With one seed there is no floor: two equally good dense networks also differ, so no "
            f"{listed([shown.short for shown in comparing], 'or')} here can be read. Run at least three seeds."
        )
    elif any(floors.values()) and seeds < 3:
        said.append("Two seeds make one pair, seen from both sides: no floor to rely on. Run at least three seeds.")
    for shown in comparing if seeds > 1 else ():
        said += _beside_the_floor(shown, floors[shown.measure], lines, seeds)
    used = [line["classes_used"] for line in lines if line["classes_used"] is not None]
    if used and min(used) < summary["classes"]:
        said.append(
            "Measures of relative change leave out classes in which a dense network makes no errors of one kind: down "
            f"to {min(used)} of {summary['classes']} classes are used in every seed (classes_used in summary.json)."
        )
    ordered = [*comparing, *(shown for shown in headline if not shown.compares)]
    return said + compared(summary["comparisons"], {shown.measure: shown.short for shown in ordered})


def _beside_the_floor(shown: Shown, floor: Mapping | None, lines: Sequence[Mapping], seeds: int) -> list[str]:
    name, where = shown.short, {"lower": "above", "higher": "below"}.get(shown.better, "outside of")
    if not floor:
        return [f"{name}: no pair of dense networks has a value, so there is no floor and no {name} here can be read."]
    said = [
        f"{name}: dense networks that differ only in their seed already show {number(floor['mean'])} against each other"
        f" ({span(floor['low'], floor['high'])}, {floor['pairs']} ordered pairs of {seeds} networks): this is the "
        "floor."
    ]
    above = f"{shown.measure}_above"
    valued = [line for line in lines if line[shown.measure] is not None]
    groups = {
        f"{where} the floor in every seed": [
            name_of(line) for line in valued if line[f"{shown.measure}_clear"] and line[above]
        ],
        f"{where} the floor in some seeds only": [
            f"{name_of(line)} ({line[above]} of {line['seeds']})"
            for line in valued
            if line[above] and not line[f"{shown.measure}_clear"]
        ],
        "not distinguishable from a change of seed": [name_of(line) for line in valued if not line[above]],
        "has no value": [name_of(line) for line in lines if line[shown.measure] is None],
    }
    return said + [f"{name} {words}: {'; '.join(names)}." for words, names in groups.items() if names]


def compared(comparisons: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[str]:
    """Which recoveries differ, and how many would seem to by chance.

    Args:
        names: what the measures to speak of are called, in order.
    """
    said = []
    for measure, title in names.items():
        tested = [one for one in comparisons if one["measure"] == measure and one["p"] is not None]
        if not tested:
            continue
        certain = [one for one in tested if one["p_corrected"] < 0.05]
        for one in certain:
            value, low, high = (number(one[key]) for key in ("value", "low", "high"))
            how = (
                f"{value} times that of '{one['second']}'"
                if one["kind"] == "ratio"
                else f"that of '{one['second']}' {'plus' if one['value'] > 0 else 'minus'} {value.lstrip('-')}"
            )
            chance = "below 0.001" if one["p_corrected"] < 0.001 else f"{one['p_corrected']:.2g}"
            corrected = f", corrected for {len(tested)} comparisons" if len(tested) > 1 else ""
            place = "sparsity 0" if one["pruning"] == "dense" else f"{one['pruning']} {one['sparsity']:g}"
            said.append(
                f"At {place}, the {title} of '{one['first']}' is {how} (95 % interval over {one['seeds']} seeds "
                f"{low} to {high}; p {chance}{corrected})."
            )
        seeming = sum(one["p"] < 0.05 for one in tested) - len(certain)
        if len(tested) == 1 and not certain:
            said.append(f"{title}: the seeds' spread hides any difference between the two recoveries.")
        elif len(certain) < len(tested):
            said.append(
                f"{title}: in {len(tested) - len(certain)} of {len(tested)} comparisons of two recoveries the seeds' "
                f"spread hides any difference; {seeming} of them would pass for one without the correction for their "
                f"number, where chance alone gives about {number(0.05 * len(tested))}."
            )
    return said


def notes(summary: Mapping[str, Any], counted: Mapping[str, Sequence[str]], *, timed: bool) -> list[str]:
    """What the columns of the table mean, where that depends on the study.

    Args:
        counted: which weights sparsity is a share of, in words, and the prunings that this holds for.
        timed: whether a latency was measured.
    """
    parts = [words + (f" ({', '.join(names)})" if len(counted) > 1 else "") for words, names in counted.items()]
    found = [f"Sparsity: share that is gone of the {'; of the '.join(parts)}."] if parts else []
    if timed and any(line["pruning"] != "dense" for line in summary["lines"]):
        found.append(
            "Latency: of one seed over its dense network at batch 1 and 128, median of alternating runs while no other "
            "stage ran. A mask saves no time and no MACs: its zeros are multiplied like any other weight."
        )
    return found
