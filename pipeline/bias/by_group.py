"""An audit cut up by groups: every measure inside each group, what compares the groups, and class within group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import stdtrit

from pipeline.bias.given import existing
from pipeline.bias.measures import Measure, Pair
from pipeline.bias.resampling import Interval, Table, class_significance
from pipeline.groups import Column, Columns, called
from pipeline.predictions import Predictions
from pipeline.registry import UserError
from pipeline.table import Row, measured

if TYPE_CHECKING:
    from pipeline.bias.scoring import Value

# The measures of unevenness that are also taken over class within group.
WITHIN = ("cev", "sde", "cev_corrected", "sde_corrected")
# Why a ratio has no interval.
OPEN = "a rate may be 0 in some group, so that its ratio to that of another can be anything"


def columns_of(networks: Sequence[Predictions]) -> dict[str, Column]:
    """The group columns of all networks together.

    Raises:
        UserError: two of them put an example into different groups.
    """
    found: dict[str, tuple[Column, str]] = {}
    for each in networks:
        for name, column in each.groups.items():
            known, source = found.setdefault(name, (column, each.source))
            if known is not column and not known.same(column):
                raise UserError(
                    f"{each.source}: the groups in column '{name}' differ from those of {source}; predict the same "
                    "test set, in the same order, with both"
                )
    return {name: column for name, (column, _) in found.items()}


def tables(pairs: Sequence[Pair], chosen: Sequence[Measure]) -> list[Table]:
    """Measures of predictions, whose cells are few, apart from measures of logits, whose cells are the examples."""
    kinds = ([each for each in chosen if each.needs_logits is wanted] for wanted in (False, True))
    return [Table(pairs, kind) for kind in kinds if kind]


def by_group(
    pairs: Sequence[Pair],
    columns: Columns,
    names: Sequence[str],
    chosen: Sequence[Measure],
    *,
    level: float,
    resamples: int,
    seed: int,
    values: Callable[[Sequence[Pair], Sequence[Measure]], dict[str, Value]],
    per_class: Callable[[Sequence[Pair], Sequence[str], np.ndarray], tuple[list[dict[str, Any]], np.ndarray]],
) -> dict[str, dict[str, Any]]:
    """What was found of each column, by its name, as plain lists, dicts, text and numbers.

    Args:
        pairs: the trials. names: of the classes. chosen: the measures that the inputs allow.
        level: of the tests and intervals. resamples, seed: of the bootstrap.
        values: what an audit makes of pairs and measures. per_class: what it says of the classes of pairs.

    Returns:
        for each column ``per_group`` (a dict a group: every measure inside it, how accuracy moved there beside the
        rest), ``measures`` (those that compare the groups, and those of recall with groups in the place of classes),
        ``left_out`` (name -> why one of these does not exist), ``class_within_group`` (CEV and SDE over the classes of
        all groups), ``per_class_within_group`` (a dict a group and class), ``significance`` (the test).

    Raises:
        UserError: a network of which only a confusion matrix is known.
    """
    if not all(pair.paired for pair in pairs):
        raise UserError(
            "groups: a confusion matrix does not tell the group of an example; give predictions per example"
        )
    return {
        name: _of_column(pairs, column, names, chosen, level, (resamples, seed), values, per_class)
        for name, column in columns.items()
    }


def _of_column(pairs, column: Column, names, chosen, level, draws, values, per_class) -> dict[str, Any]:
    groups, many, size, count = column.numbers, len(column.names), column.sizes, len(names)
    over = [replace(pair, parts=groups, part_count=many, groups=groups, group_count=many) for pair in pairs]
    p_values, test = class_significance(over)
    comparing = [each for each in chosen if each.needs_groups]
    comparing += [
        each
        for each in chosen
        if not each.needs_groups and "part_size" in each.counts(over if each.over_trials else over[0])
    ]
    between = values(over, comparing, names=column.names)
    between |= {
        each.name: replace(between[each.name], interval=bounds)
        for each, bounds in simultaneous(over, comparing, between, level, *draws)
    }
    open_ratios = {
        each.name for each in comparing if getattr(each, "logarithmic", False) and between[each.name].interval is None
    }
    alone = _of_references(over, [each for each in comparing if each.needs_groups and not each.compares])
    within = _within(pairs, column, count)
    long_names = [f"{group} / {name}" for group in column.names for name in names]
    there, called_there = _with_examples(within, long_names)
    of_both = values(there, [each for each in chosen if each.name in WITHIN], names=called_there)
    both_p, _ = class_significance(within)
    rows, has_change = per_class(within, long_names, both_p)
    for i, row in enumerate(rows):
        # Negatives of a class inside a group are the other examples of that group, not of the whole test set.
        negatives = max(size[i // count] - row["support"], 1)
        scale = max(len(groups) - row["support"], 1) / negatives
        row.update({key: row[key] * scale for key in ("fpr_reference", "fpr")})
        row.update({"group": column.names[i // count], "class": names[i % count]})
    inside = _inside(pairs, column, [each for each in chosen if not each.needs_groups])
    return {
        "per_group": [
            {
                "group": column.names[g],
                "support": int(size[g]),
                **{name: existing(value[g]) for name, value in inside.items()},
                "excess_accuracy_gap": existing(gap),
                "p_value": existing(p_values[g]),
                "significant": bool(p_values[g] < 1 - level),  # NaN is not
            }
            for g, gap in enumerate(_gaps(over, size))
        ],
        "measures": {
            name: each | {"reference": alone.get(name), "withheld": OPEN if name in open_ratios else each["withheld"]}
            for name, each in _brief(between).items()
        },
        "left_out": {
            each.name: "no class has examples of its kind in two groups"
            for each in comparing
            if each.needs_groups and between[each.name].value is None
        },
        "class_within_group": _brief(of_both)
        | {
            "classes": int((np.bincount(within[0].labels, minlength=count * many) > 0).sum()),
            "classes_used": int(has_change.all(0).sum()),
        },
        "per_class_within_group": rows,
        "significance": test,
    }


def simultaneous(
    pairs: Sequence[Pair],
    measures: Sequence[Measure],
    found: dict[str, Value],
    level: float,
    resamples: int,
    seed: int,
) -> list[tuple[Measure, Interval | None]]:
    """Intervals of largest differences and smallest ratios between groups, which cover more than they promise.

    Such a value moves by no more than the largest distance between the deviations of the rates behind it
    (``bound``). The interval reaches as far to either side as that distance does in a share ``level`` of bootstrap
    resamples: a simultaneous confidence band of all rates. Over trials the mean of the bounds is taken, and the
    reach of a t interval of the trials is added in squares. The bootstrap of the value itself holds the truth far
    too seldom (benchmarks/groups.py): noise makes a maximum larger, and resampling makes it larger again.

    Returns:
        a pair for each measure that asks for it; None where a rate of 0 leaves a ratio open, or there is no value.
    """
    chosen = [each for each in measures if getattr(each, "simultaneous", False)]
    if not chosen:
        return []
    table = Table(pairs, chosen)
    whole = table.sums(table.multiplicity[:, None].astype(np.float64))[:-1]
    bounds: dict[str, list[np.ndarray]] = {each.name: [] for each in chosen}
    for sums in table.batches(resamples, np.random.default_rng(seed)):
        for each in chosen:
            bounds[each.name].append(np.mean([each.bound(*both) for both in zip(sums[:-1], whole, strict=True)], 0))
    return [(each, _reaching(each, found[each.name], np.concatenate(bounds[each.name]), level)) for each in chosen]


def _reaching(measure: Measure, value: Value, bounds: np.ndarray, level: float) -> Interval | None:
    bounds = np.sort(bounds[~np.isnan(bounds)])
    if value.interval is None or not len(bounds):
        return None
    trials = np.array(value.trials, np.float64)
    if measure.logarithmic and not (trials > 0).all():
        return None
    reach = bounds[min(int(np.ceil(level * len(bounds))), len(bounds)) - 1]
    if len(trials) > 1:
        spread = np.std(np.log(trials) if measure.logarithmic else trials, ddof=1) / np.sqrt(len(trials))
        reach = np.hypot(reach, stdtrit(len(trials) - 1, (1 + level) / 2) * spread)
    if not np.isfinite(reach):
        return None
    low, high = value.estimate - reach, value.estimate + reach
    if measure.logarithmic:
        low, high = value.estimate * np.exp(-reach), value.estimate * np.exp(reach)
    low, high = max(float(low), measure.lowest, -1.0), min(float(high), 1.0)
    return replace(value.interval, low=low, high=high, method="simultaneous", note="conservative")


def _inside(pairs: Sequence[Pair], column: Column, chosen: Sequence[Measure]) -> dict[str, np.ndarray]:
    """Every measure inside each group, the mean over trials: name -> [groups], NaN for a group without examples."""
    many, some = len(column.names), column.sizes > 0
    found: dict[str, np.ndarray] = {}
    for table in tables(pairs, chosen):
        weights = np.zeros((len(table.multiplicity), many))
        np.add.at(weights, (table.cell, column.numbers), 1.0)
        sums = [{name: value[some] for name, value in each.items()} for each in table.sums(weights)]
        for name, value in table.values(sums).items():
            found[name] = np.full(many, np.nan)
            found[name][some] = value.mean(1)
    return found


def _of_references(over: Sequence[Pair], chosen: Sequence[Measure]) -> dict[str, float | None]:
    """What the references have alone, the mean over trials."""
    if not chosen:
        return {}
    values, _ = Table([replace(pair, candidate=pair.reference) for pair in over], chosen).point()
    return {name: existing(value.mean()) for name, value in values.items()}


def _within(pairs: Sequence[Pair], column: Column, count: int) -> list[Pair]:
    """The trials with a class for each group and class."""
    first, total = column.numbers * count, count * len(column.names)

    def shifted(each: Predictions) -> Predictions:
        return Predictions(first + each.labels, first + each.predictions, source=each.source)

    # One object per network keeps "the same reference for all" visible.
    before = {id(pair.reference): shifted(pair.reference) for pair in pairs}
    labels = first + pairs[0].labels
    return [Pair(before[id(pair.reference)], shifted(pair.candidate), total, labels, total) for pair in pairs]


def _with_examples(pairs: Sequence[Pair], names: Sequence[str]) -> tuple[list[Pair], list[str]]:
    """The same trials with the classes that have no example as one class, the last, on which no relative change rests.

    Where groups are made of classes most classes have no example in most groups; to go through each takes seconds.
    """
    exists = np.bincount(pairs[0].labels, minlength=pairs[0].class_count) > 0
    place, total = np.where(exists, np.cumsum(exists) - 1, exists.sum()), int(exists.sum()) + 1
    labels = place[pairs[0].labels]

    def fewer(each: Predictions) -> Predictions:
        return Predictions(labels, place[each.predictions], source=each.source)

    before = {id(pair.reference): fewer(pair.reference) for pair in pairs}
    found = [Pair(before[id(pair.reference)], fewer(pair.candidate), total, labels, total) for pair in pairs]
    return found, [*(name for name, there in zip(names, exists, strict=True) if there), "without examples"]


def _gaps(over: Sequence[Pair], size: np.ndarray) -> np.ndarray:
    """Accuracy lost in each group beyond what the test set lost, mean over trials: [groups]."""
    lost = np.mean(
        [(p.reference.predictions == p.labels) * 1.0 - (p.candidate.predictions == p.labels) for p in over], 0
    )
    total = np.bincount(over[0].parts, weights=lost, minlength=len(size))
    return np.where(size > 0, total / np.maximum(size, 1) - lost.mean(), np.nan)


def _brief(values: dict[str, Value]) -> dict[str, Any]:
    return {
        name: {
            "value": each.value,
            "interval": [each.interval.low, each.interval.high] if each.interval is not None else None,
            "withheld": each.withheld or None,
            "trials": list(each.trials),
            "unit": each.unit,
            "better": each.better,
        }
        for name, each in values.items()
    }


def group_rows(column: str, found: dict[str, Any], says: dict[str, dict[str, str]], seeds: Sequence[int]) -> list[Row]:
    """Rows of the long table, kind ``bias``, of one column of ``by_group``.

    The place ``group`` holds ``kind=animal`` for what was found inside a group (the mean over trials), and ``kind`` for
    what compares the groups of the column, or is taken over class within group: of each trial, then with its interval.

    Args:
        says: unit and better of each measure. seeds: of the trials, in order.
    """
    rows = []
    for row in found["per_group"]:
        group = called(column, row["group"])
        rows += [measured("bias", name, row[name], group=group, **said) for name, said in says.items()]
    for name, each in (found["measures"] | found["class_within_group"]).items():
        if not isinstance(each, dict):
            continue  # how many classes there are
        shared = {"group": called(column), "unit": each["unit"], "better": each["better"]}
        rows += [
            measured("bias", name, value, seed=seed, reference_seed=seed, **shared)
            for seed, value in zip(seeds, each["trials"], strict=True)
        ]
        low, high = each["interval"] or (None, None)
        rows.append(measured("bias", name, each["value"], low=low, high=high, **shared))
    return rows
