"""The audit of a compressed network: every measure with its interval and its floor, by class and by group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from pipeline.bias.by_group import by_group, columns_of, group_rows, tables
from pipeline.bias.floors import Floor, Floors, carried_by_class, sums_of
from pipeline.bias.given import choose, class_names, existing, in_one_order, refuse_one_label
from pipeline.bias.measures import MEASURES, DenseNetworks, Measure, Pair
from pipeline.bias.rates import changes_of, paired_up, refuse_smoothing
from pipeline.bias.resampling import (
    Interval,
    bootstrap,
    class_significance,
    corrected_intervals,
    interval,
    too_few_errors,
)
from pipeline.bias.yardsticks import Yardstick, over_floor, over_shared_floor
from pipeline.groups import Columns, called, checked
from pipeline.predictions import Predictions
from pipeline.registry import UserError
from pipeline.table import Row, measured

FEWEST_RESAMPLES = 100  # the 2.5 % quantile of fewer draws is little more than their smallest


PART = ("class", "group")  # which part of the test set
# What is known of a class or a group: quantity -> unit.
OF_A_CLASS = {
    "support": "examples",
    "missed_reference": "examples",
    "claimed_reference": "examples",
    "fpr_reference": "share",
    "fnr_reference": "share",
    "fpr": "share",
    "fnr": "share",
    "d_fpr": "percent",
    "d_fnr": "percent",
    "excess_accuracy_gap": "share",
    "p_value": "probability",
    # What a class carries of each measure that is a sum over classes.
    **{f"{name}_share": "share" for name in MEASURES if MEASURES[name].by_class is not Measure.by_class},
}


@dataclass(frozen=True)
class Value:
    """One measure of the candidates.

    Attributes:
        value: the mean over trials, None where it does not exist. One that estimates the value without sampling noise
            (``Measure.noise_free``) is withheld with its interval; one that falls outside its interval is put at the
            nearer end, and ``interval.note`` says so.
        estimate: the mean over trials as it is.
        interval: for what ``interval.estimand`` says; a value that sampling noise inflates, such as that of CEV, may
            lie above it. None where it does not exist or is withheld.
        withheld: why the interval is withheld, an empty string where it is not.
        trials: the value of each trial; one value for a measure of all trials together.
        published: the value of sums averaged over trials first, None for a measure of all trials together.
        floor: what dense networks show among each other; None without at least two.
        over_floor: the candidates beside the floor, with a verdict; None where there is no floor.
        carried_by: class name -> share of the value that this class adds, the largest first; empty for a measure that
            is no sum over classes.
        over_trials: it is one of all trials together.
    """

    measure: str
    title: str
    unit: str
    better: str
    value: float | None
    estimate: float | None
    interval: Interval | None
    withheld: str
    trials: tuple[float | None, ...]
    published: float | None
    floor: Floor | None
    over_floor: Yardstick | None
    carried_by: dict[str, float]
    over_trials: bool


@dataclass(frozen=True)
class Audit:
    """What compression did to a classifier.

    Attributes:
        classes: number of classes.
        classes_used: how many have reference errors of both kinds in every trial. The value of a trial rests on its own
            ``classes_used``, which may be more where the trials have different references.
        class_names: in order.
        examples: N.
        cev, sde: mean over trials; see ``cev_interval`` for what noise adds. None where no class of some reference has
            errors of both kinds.
        cev_interval, sde_interval: for the values without sampling noise.
        published: cev and sde of rates averaged over trials first.
        trials: file, accuracy, cev, sde and classes_used of each candidate.
        per_class: one dict a class, see ``per_class_rows``.
        measures: name -> Value, every measure that the inputs allow, but for those that compare groups.
        minimum_errors: a class with fewer reference errors of a kind in some trial is in ``scarce``.
        scarce: class name -> fewest reference errors of a kind over trials; for classes that CEV and SDE use.
        left_out: name -> why the measure is missing.
        floor_networks: how many dense networks the floor rests on, 0 for none.
        significance: the test behind ``significant``.
        groups: results by group of each column, see ``pipeline.bias.by_group``, or None.
        notes: what a reader must know.
    """

    classes: int
    classes_used: int
    class_names: tuple[str, ...]
    examples: int
    cev: float | None
    sde: float | None
    cev_interval: Interval | None
    sde_interval: Interval | None
    published: dict[str, float]
    trials: list[dict[str, Any]]
    per_class: list[dict[str, Any]]
    measures: dict[str, Value]
    left_out: dict[str, str]
    floor_networks: int
    minimum_errors: int
    scarce: dict[str, int]
    significance: str
    groups: dict[str, dict[str, Any]] | None
    resamples: int
    seed: int
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and finite numbers."""
        return {
            "classes": self.classes,
            "classes_used": self.classes_used,
            "examples": self.examples,
            "cev": self.cev,
            "sde": self.sde,
            "cev_interval": _ends(self.cev_interval),
            "sde_interval": _ends(self.sde_interval),
            "published": self.published,
            "trials": self.trials,
            "per_class": self.per_class,
            "measures": {
                name: {
                    "value": each.value,
                    "estimate": each.estimate,
                    "interval": _ends(each.interval),
                    "interval_method": each.interval.method if each.interval else None,
                    "interval_unit": each.interval.unit if each.interval else None,
                    "interval_note": each.interval.note if each.interval else None,
                    "interval_estimand": each.interval.estimand if each.interval else None,
                    "withheld": each.withheld or None,
                    "trials": list(each.trials),
                    "published": each.published,
                    "unit": each.unit,
                    "better": each.better,
                    "floor": asdict(each.floor) if each.floor else None,
                    "over_floor": asdict(each.over_floor) if each.over_floor else None,
                    "carried_by": each.carried_by,
                }
                for name, each in self.measures.items()
            },
            "left_out": self.left_out,
            "floor": {
                "networks": self.floor_networks,
                **{name: asdict(each.floor) for name, each in self.measures.items() if each.floor},
            }
            if self.floor_networks
            else None,
            "minimum_errors": self.minimum_errors,
            "scarce": self.scarce,
            "significance": self.significance,
            "groups": self.groups,
            "resamples": self.resamples,
            "seed": self.seed,
            "notes": list(self.notes),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One flat dict a measure, for a CSV."""
        return [
            {
                "measure": name,
                "value": each.value,
                "low": each.interval.low if each.interval else None,
                "high": each.interval.high if each.interval else None,
                "method": each.interval.method if each.interval else None,
                "published": each.published,
                "unit": each.unit,
                "better": each.better,
                "floor_mean": each.floor.mean if each.floor else None,
                "floor_low": each.floor.low if each.floor else None,
                "floor_high": each.floor.high if each.floor else None,
                "over_floor": each.over_floor.value if each.over_floor else None,
                "over_floor_low": each.over_floor.low if each.over_floor else None,
                "over_floor_high": each.over_floor.high if each.over_floor else None,
                "verdict": each.over_floor.verdict if each.over_floor else None,
                "classes_used": self.classes_used,
                "classes": self.classes,
            }
            for name, each in self.measures.items()
        ]

    def per_class_rows(self) -> list[dict[str, Any]]:
        """One flat dict a class: names, support, rates before and after, changes in percent (None where undefined)."""
        return [dict(row) for row in self.per_class]

    def long_rows(self, seeds: Sequence[int]) -> list[Row]:
        """Rows of the long table.

        Kind ``bias``: of each measure the value of each trial, where it exists by trial, then the value with its
        interval; of groups see ``by_group.group_rows``. Kind ``class``: the quantities of each class, of each class
        within each group, and, without a class, of each group.

        Args:
            seeds: of the trials, in order; a reference has that of its candidate.
        """
        rows = []
        for name, each in self.measures.items():
            says = {"unit": each.unit, "better": each.better}
            if not each.over_trials:
                rows += [
                    measured("bias", name, value, seed=seed, reference_seed=seed, **says)
                    for seed, value in zip(seeds, each.trials, strict=True)
                ]
            ends = {"low": each.interval.low, "high": each.interval.high} if each.interval else {}
            rows.append(measured("bias", name, each.value, **ends, **says))
        rows += _quantities(self.per_class)
        says = {name: {"unit": each.unit, "better": each.better} for name, each in self.measures.items()}
        for column, found in (self.groups or {}).items():
            rows += group_rows(column, found, says, seeds)
            for part in ("per_group", "per_class_within_group"):
                rows += _quantities([{**row, "group": called(column, row["group"])} for row in found[part]])
        return rows


def _quantities(found: Sequence[Row]) -> list[Row]:
    return [
        measured("class", name, row[name], unit=unit, better="", **{key: row[key] for key in PART if key in row})
        for row in found
        for name, unit in OF_A_CLASS.items()
        if name in row
    ]


def audit(
    *,
    references: Predictions | Sequence[Predictions],
    candidates: Predictions | Sequence[Predictions],
    floor: Floors | None = None,
    dense: Sequence[Predictions] = (),
    minimum_errors: int = 5,
    groups: Columns | None = None,
    classes: Sequence[str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    method: str = "best",
    undefined: str = "omit",
    smoothing: float = 0.0,
    measures: Sequence[str | Measure] | None = None,
) -> Audit:
    """Scores candidates against their references.

    Args:
        references: one network for all candidates, or one per candidate (trial i against its own dense parent i).
        candidates: trials of one method.
        floor: what ``floor`` gave for dense networks, with the same smoothing: for one shared reference, that and more
            networks; otherwise the references, in their order.
        dense: more dense networks than the references, for the mean rates of ``cev_common`` and ``sde_common``.
        minimum_errors: of a class in its reference, below which it is named wherever it moves a number.
        groups: columns to report by, by name; those of the networks by default.
        classes: names in the order of the numbers.
        resamples: bootstrap resamples behind each interval, at least 100.
        seed: of the resamples, 0 or more.
        level: nominal coverage.
        method: ``"best"`` takes for each measure the one that covers best, see ``Measure.interval``; or ``"basic"``,
            ``"percentile"``, ``"bca"``, ``"outer"`` for all.
        undefined, smoothing: see ``pipeline.bias.relative_changes``.
        measures: registered ones, by name or with options; all of them by default. cev and sde are always there.

    Raises:
        UserError: inputs that do not belong together; an unknown measure.
    """
    _refuse_draws(resamples, seed)
    references, candidates = paired_up(references, candidates, Predictions)
    everything = [*references, *candidates, *dense]
    names = class_names(everything, classes)
    everything = in_one_order(everything)
    many = len(references)
    # One object per network keeps "the same reference for all" visible after reordering.
    references, candidates, dense = everything[:many], everything[many : 2 * many], everything[2 * many :]
    known = DenseNetworks(tuple({id(each): each for each in [*references, *dense]}.values()))
    count, labels = len(names), references[0].labels
    pairs = [Pair(a, b, count, a.labels, count, dense=known) for a, b in zip(references, candidates, strict=True)]
    for each in [pair.candidate for pair in pairs[1:]] + dense:
        Pair(references[0], each, count, labels, count)  # refuses other labels than those of the first
    refuse_one_label(references[0], count)
    columns = columns_of(everything) if groups is None else checked(groups, len(labels), "groups")
    allowed, left_out = choose([*references, *candidates], measures, smoothing, grouped=bool(columns))
    chosen = [each for each in allowed if not each.needs_groups]
    _refuse_undefined(pairs, names, undefined, smoothing)

    unit = "both" if len(pairs) > 1 else "examples"
    options = {"resamples": resamples, "seed": seed, "unit": unit, "level": level, "method": method}
    values = _values(pairs, chosen, floor=floor, names=names, **options)
    p_values, test = class_significance(pairs)
    per_class, has_change = _per_class(pairs, names, p_values, level, smoothing)
    used = int(has_change.all(0).sum())
    for row in per_class:
        row |= {f"{name}_share": each.carried_by.get(row["class"]) for name, each in values.items() if each.carried_by}
    scarce = {
        row["class"]: fewest
        for row, there in zip(per_class, has_change.any(0), strict=True)
        if there and (fewest := min(row["missed_reference"], row["claimed_reference"])) < minimum_errors
    }
    notes = []
    if values["cev"].value is None:
        notes.append(
            f"CEV and SDE do not exist: in {'some trial' if len(pairs) > 1 else 'it'} the reference makes no errors of "
            "both kinds in any class; take a larger test set, or add a pseudo-count (smoothing 0.5)"
        )
    if not all(pair.paired for pair in pairs):
        notes.append(
            "a confusion matrix does not tell which examples two networks share: intervals take them as independent "
            "given the class and are wider than they need to be"
        )
    if used < count:
        some = "" if (has_change == has_change[0]).all() else " in some trial"
        where = "there" if some else "of CEV and SDE"
        verb = "has" if count - used == 1 else "have"
        notes.append(
            f"{count - used} of {count} classes {verb} a reference rate of zero or no examples{some}: left out {where}"
        )
    notes += [
        f"{each.title}: {each.interval.note.split('; ')[-1]}"
        for each in values.values()
        if each.interval is not None and each.value != each.estimate
    ]
    notes += dict.fromkeys(f"no interval: {each.withheld}" for each in values.values() if each.withheld)
    accuracy = [float((each.predictions == labels).mean()) for each in candidates]
    return Audit(
        classes=count,
        classes_used=used,
        class_names=names,
        examples=len(labels),
        cev=values["cev"].value,
        sde=values["sde"].value,
        cev_interval=values["cev"].interval,
        sde_interval=values["sde"].interval,
        published={name: values[name].published for name in ("cev", "sde")},
        trials=[
            {
                "file": each.source,
                "accuracy": right,
                "cev": values["cev"].trials[i],
                "sde": values["sde"].trials[i],
                "classes_used": int(has_change[i].sum()),
            }
            for i, (each, right) in enumerate(zip(candidates, accuracy, strict=True))
        ],
        per_class=per_class,
        measures=values,
        left_out=left_out,
        floor_networks=floor.networks if floor is not None and floor.networks > 1 else 0,
        minimum_errors=minimum_errors,
        scarce=scarce,
        significance=test,
        groups=by_group(
            pairs,
            columns,
            names,
            allowed,
            level=level,
            resamples=resamples,
            seed=seed,
            values=partial(_values, floor=None, **options),
            per_class=partial(_per_class, level=level, smoothing=smoothing),
        )
        if columns
        else None,
        resamples=resamples,
        seed=seed,
        notes=tuple(notes),
    )


def _refuse_undefined(pairs: Sequence[Pair], names: Sequence[str], undefined: str, smoothing: float) -> None:
    if undefined not in ("omit", "error"):
        raise UserError(f"undefined: '{undefined}' is not known; one of omit, error")
    refuse_smoothing(smoothing)
    if undefined == "error" and not smoothing:
        for pair in pairs:
            positives, negatives = _error_counts(pair.reference, pair.class_count)
            zero = np.flatnonzero((positives == 0) | (negatives == 0))
            if len(zero):
                raise UserError(
                    f"{pair.reference.source}: class '{names[zero[0]]}' has a reference rate of zero and no relative "
                    f"change ({len(zero)} such classes); use undefined 'omit' or a smoothing"
                )


def _refuse_draws(resamples: int, seed: int) -> None:
    if resamples < FEWEST_RESAMPLES:
        raise UserError(f"resamples: {resamples} are too few for an interval; give at least {FEWEST_RESAMPLES}")
    if seed < 0:
        raise UserError(f"seed: {seed} is negative; give 0 or more")


def _error_counts(each: Predictions, count: int) -> tuple[np.ndarray, np.ndarray]:
    wrong = each.labels != each.predictions
    return np.bincount(each.predictions[wrong], minlength=count), np.bincount(each.labels[wrong], minlength=count)


def _values(pairs, chosen, *, names, floor, resamples, seed, unit, level, method) -> dict[str, Value]:
    few = too_few_errors(pairs, names) if any(each.interval == "corrected" for each in chosen) else ""
    found = {}
    additive = [each for each in chosen if type(each).by_class is not Measure.by_class]
    sums = [sums_of(pair, additive) for pair in pairs]
    for table in tables(pairs, chosen):
        per_trial, averaged = table.point()
        needs = {each.name: _method(each, method) for each in table.measures}
        withheld = {
            each.name: few if needs[each.name] == "corrected" or each.noise_free else "" for each in table.measures
        }
        withheld |= {name: _unknown(name, name in ("cev", "sde")) for name, need in needs.items() if not need}
        bounds: dict[str, Interval | None] = {}
        draws, left_out = {}, {}
        if corrected := [name for name, need in needs.items() if need == "corrected" and not withheld[name]]:
            bounds = corrected_intervals(pairs, corrected, level=level, unit=unit)
        if drawn := [each for each in table.measures if needs[each.name] != "corrected" and not withheld[each.name]]:
            draws = bootstrap(table.only(drawn), resamples=resamples, seed=seed, unit=unit)
        if skewed := [each for each in drawn if needs[each.name] == "bca"]:
            left_out = table.only(skewed).jackknife()
        for each in table.measures:
            trials = per_trial[each.name]
            value = float(trials.mean())
            if each.name in draws:
                bounds[each.name] = interval(
                    value,
                    draws[each.name],
                    method=needs[each.name],
                    level=level,
                    unit="examples" if each.over_trials else unit,
                    left_out=left_out[each.name].mean(1) if each.name in left_out else None,
                    multiplicity=table.multiplicity,
                )
            shares = carried_by_class(each, sums) if each in additive else None
            order = np.argsort(-shares, kind="stable") if shares is not None else ()
            carried = {names[c]: float(shares[c]) for c in order}
            beside = _over_floor(each, trials, floor, pairs)
            found[each.name] = _value(
                each,
                value,
                trials,
                bounds.get(each.name),
                withheld[each.name],
                averaged.get(each.name),
                floor,
                beside,
                carried,
                shared=len({id(pair.reference) for pair in pairs}) == 1,
            )
    return {each.name: found[each.name] for each in chosen}


def _method(measure: Measure, method: str) -> str:
    """How its interval is made; those made from corrected values know no smoothing."""
    if method != "best":
        return method
    smoothed = getattr(measure, "smoothing", 0.0) > 0
    return "" if measure.interval == "corrected" and smoothed else measure.interval


def _unknown(name: str, smoothed: bool) -> str:
    """Why there is no interval; without a pseudo-count CEV and SDE have one."""
    return f"none is known to cover for {name}" + " with a pseudo-count" * smoothed


def _value(
    measure: Measure,
    value: float,
    trials: np.ndarray,
    bounds: Interval | None,
    withheld: str,
    averaged: float | None,
    floor: Floors | None,
    beside: Yardstick | None,
    carried: dict[str, float],
    shared: bool,
) -> Value:
    """Args: shared: all trials have one reference, which is then taken as given."""
    if bounds is not None:
        highest = 1.0 if measure.unit == "share" else np.inf
        low, high = (float(np.clip(end, measure.lowest, highest)) for end in (bounds.low, bounds.high))
        if bounds.method == "outer" and measure.noise:
            up = measure.noise == "up"
            low, high = (measure.lowest, high) if up else (low, highest)
            told = (
                f"one-sided: noise alone moves it {measure.noise}, so that only the {'upper' if up else 'lower'} end "
            )
            bounds = replace(bounds, note="; ".join(filter(None, [bounds.note, f"{told}is told from the data"])))
        bounds = replace(bounds, low=low, high=high)
        if low == high and bounds.method != "corrected":
            bounds, withheld = None, "no resample has another value, which says nothing of an endless test set"
    if bounds is not None and shared and bounds.unit == "both":
        bounds = replace(bounds, unit="candidates")
    shown = np.nan if withheld and measure.noise_free else value
    if measure.noise_free and bounds is not None and not bounds.low <= value <= bounds.high:
        shown = min(max(value, bounds.low), bounds.high)
        outside = f"the estimate of {value:.4g} is shown as the nearer end of its interval"
        if value < 0:
            outside += ": the changes are no more uneven than noise"
        bounds = replace(bounds, note="; ".join(filter(None, [bounds.note, outside])))
    return Value(
        measure=measure.name,
        title=measure.title,
        unit=measure.unit,
        better=measure.better,
        value=existing(shown),
        estimate=existing(value),
        interval=bounds,
        withheld=withheld,
        trials=tuple(existing(trial) for trial in trials),
        published=existing(averaged) if averaged is not None else None,
        floor=floor.summary(measure.name) if floor is not None else None,
        over_floor=beside,
        carried_by=carried,
        over_trials=measure.over_trials,
    )


def _over_floor(measure: Measure, trials: np.ndarray, floor: Floors | None, pairs: Sequence[Pair]) -> Yardstick | None:
    """None for a measure without a floor, or of all trials together: one value has no spread over seeds."""
    if floor is None or not measure.compares or measure.over_trials or measure.name not in floor.values:
        return None
    values = floor.values[measure.name]
    says = {"kind": measure.comparison, "margin": measure.margin, "better": measure.better}
    references = len({id(pair.reference) for pair in pairs})
    if references == 1:
        return over_shared_floor(trials, values[0, 1:], **says)
    if references == len(pairs) == floor.networks:
        return over_floor(trials, values, **says)
    note = "no floor: give one reference for all candidates, or each of them its own, and the floor of these"
    return Yardstick(measure.comparison, measure.margin, seeds=len(pairs), note=note)


def _per_class(pairs, names, p_values, level: float, smoothing: float) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Rows of averaged rates, and bool [trials, C]: which classes have a relative change in each trial."""
    count = len(names)
    before, after = (
        np.array([_error_counts(getattr(pair, word), count) for pair in pairs], np.float64)
        for word in ("reference", "candidate")
    )
    support = np.bincount(pairs[0].labels, minlength=count)
    has_change = ((before + smoothing) > 0).all(1)  # [trials, C]
    change, defined = changes_of(before.mean(0) + smoothing, after.mean(0) + smoothing)
    negatives = np.maximum(len(pairs[0].labels) - support, 1)
    positives = np.maximum(support, 1)
    lost = (after - before).mean(0)[1]
    gap = lost / positives - lost.sum() / len(pairs[0].labels)
    rows = [
        {
            "class": names[c],
            "support": int(support[c]),
            "missed_reference": int(before[:, 1, c].min()),
            "claimed_reference": int(before[:, 0, c].min()),
            "fpr_reference": float(before[:, 0, c].mean() / negatives[c]),
            "fnr_reference": float(before[:, 1, c].mean() / positives[c]) if support[c] else None,
            "fpr": float(after[:, 0, c].mean() / negatives[c]),
            "fnr": float(after[:, 1, c].mean() / positives[c]) if support[c] else None,
            "d_fpr": float(change[0, c]) if defined[c] else None,
            "d_fnr": float(change[1, c]) if defined[c] else None,
            "excess_accuracy_gap": float(gap[c]) if support[c] else None,
            "p_value": existing(p_values[c]),
            "significant": bool(p_values[c] < 1 - level),  # NaN is not
        }
        for c in range(count)
    ]
    return rows, has_change


def _ends(bounds: Interval | None) -> list[float] | None:
    return [bounds.low, bounds.high] if bounds is not None else None
