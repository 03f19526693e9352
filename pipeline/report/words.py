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


def yardstick_text(record: Mapping[str, Any]) -> str:
    """Value and interval beside a yardstick: ``2.92 (0.822 to 10.3)``; a dash where there is none."""
    if not record or record["value"] is None:
        return NOTHING
    ends = span(record["low"], record["high"])
    return number(record["value"]) + (f" ({ends})" if ends else "")


def verdict_text(record: Mapping[str, Any]) -> str:
    """The verdict; *no worse* beside it where it does not follow from it anyway."""
    if not record or not record["verdict"]:
        return ""
    more = record["no_worse"] and record["verdict"] in ("above", "cannot tell")
    return record["verdict"] + (", no worse" if more else "")


MARKS = {"above": "↑", "below": "↓", "equivalent": "=", "cannot tell": "?"}


def settled_by(record: Mapping[str, Any]) -> str:
    """How many seeds would settle a verdict."""
    return f"about {record['seeds_needed']:,}" if record["seeds_needed"] else "more than 1,000"


def carried_text(line: Mapping[str, Any], measure: str, *, always: bool = False) -> str:
    """Which class carries most of a value, where that is more than half; and each class with too few errors to count.

    Args:
        always: the largest class however little it carries.
    """
    shares, scarce = line["carried_by"].get(measure, {}), line["scarce"]
    told = [(name, share) for name, share in list(shares.items())[:1] if always or share > 0.5]
    told += [
        (name, share) for name, share in shares.items() if name in scarce and share >= 0.1 and (name, share) not in told
    ]
    return ", ".join(
        f"{share:.0%} by class '{name}'" + (f", {_errors(scarce[name])}" if name in scarce else "")
        for name, share in told
    )


def _errors(count: int) -> str:
    """Of a class with too few of them: the fewest over seeds and kinds."""
    return f"in which some dense network makes {count or 'no'} error{'s' * (count != 1)} of a kind"


def sentences(summary: Mapping[str, Any], headline: Sequence[Shown]) -> list[str]:
    """What the table says of each headline measure beside its yardsticks, and of the comparisons of recoveries."""
    lines, seeds = summary["lines"][1:], summary["lines"][0]["seeds"]
    comparing = [shown for shown in headline if shown.compares]
    floors = {shown.measure: summary["floor"][shown.measure] for shown in comparing}
    said = []
    if seeds < 3 and comparing:
        many = "With one seed" if seeds == 1 else "With two seeds"
        said.append(
            f"{many} there is no floor: equally good dense networks also differ, so no "
            f"{listed([shown.short for shown in comparing], 'or')} here can be held against a change of seed. Run at "
            "least three seeds, better five."
        )
    judged = [shown for shown in comparing if any(line["over_floor"].get(shown.measure) for line in lines)]
    for shown in judged if seeds > 2 else ():
        said += _floor_of(shown, floors[shown.measure], seeds)
        said += _verdicts(shown, "over_floor", "the floor", lines)
    for shown in comparing:
        said += _verdicts(shown, "over_control", "the control (the same recovery without pruning)", lines)
    said += _how_sure(judged, lines, seeds)
    said += _withheld(comparing, lines)
    said += _carried(summary, comparing, lines)
    used = [line["classes_used"] for line in lines if line["classes_used"] is not None]
    if used and min(used) < summary["classes"]:
        said.append(
            "Measures of relative change leave out classes in which a dense network makes no errors of one kind: down "
            f"to {min(used)} of {summary['classes']} classes are used in every seed (classes_used in summary.json)."
        )
    ordered = [*comparing, *(shown for shown in headline if not shown.compares)]
    return said + compared(summary["comparisons"], {shown.measure: shown.short for shown in ordered})


def _floor_of(shown: Shown, floor: Mapping | None, seeds: int) -> list[str]:
    name = shown.short
    if not floor:
        return [f"{name}: no pair of dense networks has a value, so there is no floor and no {name} here can be read."]
    every = seeds * (seeds - 1)
    of = f"{every} " if floor["pairs"] == every else f"{floor['pairs']} of {every} "
    return [
        f"{name}: dense networks that differ only in their seed already show {number(floor['mean'])} against each other"
        f" ({span(floor['low'], floor['high'])}, {of}ordered pairs of {seeds} networks): this is the "
        "floor."
    ]


def _verdicts(shown: Shown, yardstick: str, name: str, lines: Sequence[Mapping]) -> list[str]:
    """A sentence for each verdict that some cell has, and one for each reason why others have none."""
    within = ""
    if shown.margin is not None:
        size = f"a factor of {number(shown.margin)}" if shown.comparison == "ratio" else f"{shown.margin:g}"
        within = f" (within {size})"
    words = {
        "above": f"{shown.short} is above {name}",
        "below": f"{shown.short} is below {name}",
        "equivalent": f"{shown.short} is equivalent to {name}{within}",
        "cannot tell": f"Whether {shown.short} differs from {name} cannot be told",
    }
    reasons: dict[str, list[str]] = {}
    cells: dict[str, list[Mapping]] = {verdict: [] for verdict in words}
    for line in lines:
        record = line[yardstick].get(shown.measure)
        if record and record["verdict"]:
            cells[record["verdict"]].append(line)
        elif record:
            reasons.setdefault(record["note"], []).append(name_of(line))
    said = []
    for verdict, found in cells.items():
        told = []
        untrained = [line for line in found if line["recovery"] == "none"]
        # What was pruned and not recovered is far above everywhere: one entry for all of it.
        if verdict == "above" and len(untrained) > 2 and len(untrained) == sum(x["recovery"] == "none" for x in lines):
            ends = sorted(line[yardstick][shown.measure]["value"] for line in untrained)
            span_of = f"{number(ends[0])} to {_times(ends[-1], shown)}"
            told.append(f"the {len(untrained)} pruned and not recovered, {span_of}")
            found = [line for line in found if line["recovery"] != "none"]
        told += [_told(line, shown, yardstick) for line in found]
        if told:
            said.append(f"{words[verdict]}: {'; '.join(told)}.")
        if verdict == "cannot tell" and found:
            said[-1] += " " + _could_have(shown, [line[yardstick][shown.measure] for line in found])
    said += [f"{shown.short} has no verdict beside {name} for {listed(of)}: {note}." for note, of in reasons.items()]
    return said


def _times(value: float, shown: Shown) -> str:
    return number(value) + (" times" if shown.comparison == "ratio" else "")


def _told(line: Mapping[str, Any], shown: Shown, yardstick: str) -> str:
    """A cell with its value beside a yardstick and with what makes that readable."""
    record = line[yardstick][shown.measure]
    told = [name_of(line), f"{_times(record['value'], shown)} ({span(record['low'], record['high'])})", record["note"]]
    if record["no_worse"] and record["verdict"] in ("above", "cannot tell"):
        told.append("no worse")
    if yardstick == "over_floor":
        told.append(carried_text(line, shown.measure))
    return ", ".join(filter(None, told))


def _could_have(shown: Shown, records: Sequence[Mapping[str, Any]]) -> str:
    """What as many seeds could have shown, and how many would settle it; from one cell to the other."""
    shown_by = sorted(record["detectable"] for record in records)
    needed = sorted(record["seeds_needed"] or math.inf for record in records)
    least, most = ("more than 1,000" if math.isinf(end) else number(end) for end in (needed[0], needed[-1]))
    several = sorted({record["seeds"] for record in records})
    seeds = listed([str(many) for many in several], "or")
    could = _times(shown_by[-1], shown)
    if len(records) > 1:
        could = f"{number(shown_by[0])} to {could}"
    settle = f"{least} to {most}" if least != most else least
    could = f"With their spread {seeds} seeds could have shown {could}"
    return f"{could}, and about {settle} would settle half of such studies."


def _how_sure(judged: Sequence[Shown], lines: Sequence[Mapping], seeds: int) -> list[str]:
    """What a verdict is worth: how wide the intervals are, and that there are many of them."""
    records = [
        (shown, record)
        for shown in judged
        for line in lines
        if (record := line["over_floor"].get(shown.measure)) and record["verdict"]
    ]
    more = [line["over_control"][shown.measure] for shown in judged for line in lines if line["over_control"]]
    many = len(records) + sum(bool(record["verdict"]) for record in more)
    if not many:
        return []
    said = []
    factors: dict[str, list[float]] = {}
    for shown, record in records:
        if record["kind"] == "ratio" and shown.margin is not None:
            factors.setdefault(shown.short, []).append(math.sqrt(record["high"] / record["low"]))
    margins = {shown.short: shown.margin for shown in judged}
    if factors:
        told = [
            f"{number(sorted(found)[len(found) // 2])} for {name} (equivalent takes less than {number(margins[name])})"
            for name, found in factors.items()
        ]
        said.append(
            f"How much {seeds} seeds can say: half of the intervals over the floor reach to either side a factor of "
            f"more than {listed(told)}. What is not shown to differ is not shown to be equal."
        )
    said.append(
        f"Each of these {many} verdicts is at 95 % for itself, not corrected for their number: without any effect "
        f"about {number(0.025 * many)} would be above and as many below by chance."
    )
    return said


def _withheld(comparing: Sequence[Shown], lines: Sequence[Mapping]) -> list[str]:
    """Why values without sampling noise are missing, once for each reason."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for shown in comparing:
        for line in lines:
            if why := line["withheld"].get(shown.measure):
                reasons.setdefault(why, {}).setdefault(name_of(line), []).append(shown.short)
    said = []
    for why, cells in reasons.items():
        measures = list(dict.fromkeys(name for names in cells.values() for name in names))
        where = "everywhere" if len(cells) == len(lines) else f"for {listed(list(cells))}"
        said.append(f"{listed(measures)} without sampling noise, and their intervals, are withheld {where}: {why}.")
    return said


def _carried(summary: Mapping[str, Any], comparing: Sequence[Shown], lines: Sequence[Mapping]) -> list[str]:
    """On which classes values rest, where that is few of them or few errors."""
    said = []
    scarce, fewest = summary["scarce"], summary["minimum_errors"]
    if scarce:
        names = [f"'{name}' ({count})" for name, count in scarce.items()]
        said.append(
            f"Classes in which some dense network makes fewer than {fewest} errors of a kind: {listed(names)}. One "
            "error more or less there changes a rate by a large part; what such a class carries stands beside a value."
        )
    for shown in comparing:
        told = []
        floor = summary["floor"][shown.measure] or {}
        for name, share in list(floor.get("carried_by", {}).items())[:1]:
            if share > 0.5:
                told.append(f"the floor ({share:.0%} by class '{name}')")
        for line in lines:
            for name, share in list(line["carried_by"].get(shown.measure, {}).items())[:1]:
                if share > 0.5:
                    told.append(f"{name_of(line)} ({share:.0%} by class '{name}')")
        if told:
            said.append(f"{shown.short} rests by more than half on one class in {listed(told)}.")
    return said


def claimed(comparisons: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[str]:
    """What became of each comparison that was declared beforehand: higher, lower or cannot tell, with its interval.

    Args:
        comparisons: as `pipeline.statistics.compare` gives them.
        names: what measures are called; one that is not named goes by the name that it is registered under.
    """
    said = []
    for one in (one for one in comparisons if one["family"] == "declared"):
        title = names.get(one["measure"], one["measure"])
        first, second = f"the {title} of '{one['first']}' is", f"than that of '{one['second']}'"
        by = f"{number(one['value'])} times" if one["kind"] == "ratio" else _signed(one["value"])
        if one["p"] is None:
            verdict = f"cannot tell whether {first} higher or lower {second}: {_untested(one)}"
        elif one["verdict"] == "cannot tell":
            verdict = (
                f"{one['seeds']} seeds cannot tell whether {first} higher or lower {second}: {by} {_evidence(one)}"
            )
        else:
            verdict = f"{first} {one['verdict']} {second}: {by} {_evidence(one)}"
        said.append(f"Declared: at {_place(one)}, {verdict}.")
    return said


def compared(comparisons: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[str]:
    """What comparisons show that nobody declared: what stands, what would seem to by chance, and what stays open.

    Args:
        comparisons: as `pipeline.statistics.compare` gives them.
        names: what the measures to speak of are called, in order.
    """
    explored = [one for one in comparisons if one["family"] == "exploratory" and one["measure"] in names]
    tested = [one for one in explored if one["p"] is not None]
    if not tested:
        return []
    said = []
    for one in (one for one in tested if one["verdict"] != "cannot tell"):
        title, second = names[one["measure"]], f"that of '{one['second']}'"
        how = (
            f"{number(one['value'])} times {second}" if one["kind"] == "ratio" else f"{second} {_signed(one['value'])}"
        )
        said.append(f"At {_place(one)}, the {title} of '{one['first']}' is {how} {_evidence(one)}.")
    found, many = len(said), len(tested)
    if many > 1:
        measures = listed([title for name, title in names.items() if any(one["measure"] == name for one in tested)])
        passing = sum(one["p"] < 0.05 for one in tested)
        said.append(
            f"Exploratory: of {many} comparisons of two recoveries in {measures} that nobody declared beforehand, "
            f"corrected together (Holm), {found or 'none'} {'stands' if found < 2 else 'stand'}. Without the "
            f"correction {passing} would pass, where chance alone gives about {number(0.05 * many)}."
        )
    if found < many:
        where = f"the other {many - found} of them" if found else "any of them" if many > 1 else "the one comparison"
        said.append(
            f"The seeds do not show a difference in {where}, nor that there is none: the widest 95 % interval of each "
            f"measure still allows {'; '.join(_widest(tested, names))}."
        )
    if untested := [one for one in explored if one["p"] is None]:
        reasons = listed(sorted({_untested(one) for one in untested}), "or")
        said.append(f"{len(untested)} more comparisons cannot be tested: {reasons}.")
    return said


def _widest(tested: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[str]:
    """Of each measure the interval that leaves most open, among the comparisons in which nothing was found."""
    found = []
    for name, title in names.items():
        of_measure = [one for one in tested if one["measure"] == name and one["verdict"] == "cannot tell"]
        if not of_measure:
            continue
        one = max(
            of_measure, key=lambda one: one["high"] / one["low"] if one["kind"] == "ratio" else one["high"] - one["low"]
        )
        over = "over" if one["kind"] == "ratio" else "less that of"
        ends = span(one["low"], one["high"]) + " times" * (one["kind"] == "ratio")
        found.append(f"{ends} ({title} of '{one['first']}' {over} '{one['second']}' at {_place(one)})")
    return found


def _place(one: Mapping[str, Any]) -> str:
    return "sparsity 0" if one["pruning"] == "dense" else f"{one['pruning']} {one['sparsity']:g}"


def _signed(value: float | None) -> str:
    return f"{'plus' if (value or 0) > 0 else 'minus'} {number(value).lstrip('-')}"


def _evidence(one: Mapping[str, Any]) -> str:
    """The interval of a comparison for itself, and its p: for itself and corrected for the number of its family."""
    alone, corrected = ("below 0.001" if p < 0.001 else f"{p:.2g}" for p in (one["p"], one["p_corrected"]))
    many = (
        f", {corrected} when corrected for {one['family_size']} {one['family']} comparisons"
        if one["family_size"] > 1
        else ""
    )
    return f"(95 % interval over {one['seeds']} seeds {span(one['low'], one['high'])}; p {alone}{many})"


def _untested(one: Mapping[str, Any]) -> str:
    """Why a comparison has no p."""
    if one["seeds"] < 2:
        return "fewer than two seeds have both values"
    return "a ratio needs values above 0" if one["value"] is None else "all seeds differ by the same amount"


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
