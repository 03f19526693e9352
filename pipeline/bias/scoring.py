"""The audit of a compressed network: every measure with its interval and its floor, by class and by group."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from pipeline.bias.measures import MEASURES, Measure, Pair
from pipeline.bias.rates import Predictions, changes_of, paired_up, refuse_smoothing
from pipeline.bias.resampling import Interval, Table, bootstrap, class_significance, corrected_interval, interval
from pipeline.registry import UserError, nearest

FEWEST_RESAMPLES = 100  # the 2.5 % quantile of fewer draws is little more than their smallest


@dataclass(frozen=True)
class Floor:
    """What two equally good dense networks show when they are compared with each other, over ordered pairs.

    Attributes:
        mean, low, high: mean and 2.5 and 97.5 percent quantiles over the pairs.
        excess: the candidates' estimate minus the mean.
        percentile: percent of the pairs whose value is at most the candidates' estimate.
        pairs: how many pairs have a value.
    """

    mean: float
    low: float
    high: float
    excess: float
    percentile: float
    pairs: int


@dataclass(frozen=True)
class Value:
    """One measure of the candidates.

    Attributes:
        value: the mean over trials, None where it does not exist. One that estimates the value without sampling noise
            (``Measure.noise_free``) and falls outside its interval is put at the nearer end; ``interval.note`` says so.
        estimate: the mean over trials as it is.
        interval: for the value that an endless test set would give; a value that sampling noise inflates, such as that
            of CEV, may lie above it. None where it does not exist.
        trials: the value of each trial; one value for a measure of all trials together.
        published: the value of sums averaged over trials first, None for a measure of all trials together.
        floor: None without at least two dense networks.
    """

    measure: str
    title: str
    unit: str
    better: str
    value: float | None
    estimate: float | None
    interval: Interval | None
    trials: tuple[float | None, ...]
    published: float | None
    floor: Floor | None


@dataclass(frozen=True)
class Audit:
    """What compression did to a classifier.

    Attributes:
        classes: number of classes.
        classes_used: how many have reference errors of both kinds in every trial. The value of a trial rests on its own
            ``classes_used``, which may be more where the trials have different references.
        class_names: in order.
        examples: N.
        cev, sde: mean over trials; see ``cev_interval`` for what noise adds.
        cev_interval, sde_interval: for the values without sampling noise.
        published: cev and sde of rates averaged over trials first.
        trials: file, accuracy, cev, sde and classes_used of each candidate.
        per_class: one dict a class, see ``per_class_rows``.
        measures: name -> Value, every measure that the inputs allow.
        left_out: name -> why the measure is missing.
        floor_networks: how many dense networks the floor rests on, 0 for none.
        significance: the test behind ``significant``.
        groups: results by group, or None.
        notes: what a reader must know.
    """

    classes: int
    classes_used: int
    class_names: tuple[str, ...]
    examples: int
    cev: float
    sde: float
    cev_interval: Interval | None
    sde_interval: Interval | None
    published: dict[str, float]
    trials: list[dict[str, Any]]
    per_class: list[dict[str, Any]]
    measures: dict[str, Value]
    left_out: dict[str, str]
    floor_networks: int
    significance: str
    groups: dict[str, Any] | None
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
                    "trials": list(each.trials),
                    "published": each.published,
                    "unit": each.unit,
                    "better": each.better,
                    "floor": asdict(each.floor) if each.floor else None,
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
                "excess": each.floor.excess if each.floor else None,
                "percentile": each.floor.percentile if each.floor else None,
                "classes_used": self.classes_used,
                "classes": self.classes,
            }
            for name, each in self.measures.items()
        ]

    def per_class_rows(self) -> list[dict[str, Any]]:
        """One flat dict a class: names, support, rates before and after, changes in percent (None where undefined)."""
        return [dict(row) for row in self.per_class]


@dataclass(frozen=True)
class Comparison:
    """Two methods, each compared with its reference; below 0 the first has less of the measure.

    Attributes:
        difference: mean over the first method's trials minus mean over the second's.
        interval: of the difference, over examples, and over seeds where both have several trials.
        p_examples: permutation p when the two methods' predictions of each example change places; None where the
            numbers of trials differ. Its null says that they are interchangeable example by example, which is more
            than equal values.
        p_seeds: permutation p over trials; None with one trial on either side.
        smallest_p_seeds: the smallest p_seeds that so few trials can give.
    """

    measure: str
    difference: float
    interval: Interval | None
    p_examples: float | None
    p_seeds: float | None
    smallest_p_seeds: float | None


def audit(
    *,
    references: Predictions | Sequence[Predictions],
    candidates: Predictions | Sequence[Predictions],
    floor_references: Sequence[Predictions] = (),
    groups: np.ndarray | None = None,
    group_names: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    method: str = "best",
    undefined: str = "omit",
    smoothing: float = 0.0,
    measures: Sequence[str] | None = None,
) -> Audit:
    """Scores candidates against their references.

    Args:
        references: one network for all candidates, or one per candidate (trial i against its own dense parent i).
        candidates: trials of one method.
        floor_references: K dense networks; the K (K - 1) ordered pairs of them are the floor.
        groups: int64 [N], a column to report by; the first candidate's, where it has one.
        group_names, classes: names in the order of the numbers.
        resamples: bootstrap resamples behind each interval, at least 100.
        seed: of the resamples, 0 or more.
        level: nominal coverage.
        method: ``"best"`` takes for each measure the one that covers best, see ``Measure.interval``; or ``"basic"``,
            ``"percentile"``, ``"bca"`` for all.
        undefined, smoothing: see ``pipeline.bias.relative_changes``.
        measures: names; all of them by default. cev and sde are always there.

    Raises:
        UserError: inputs that do not belong together; an unknown measure; no class with a relative change.
    """
    _refuse_draws(resamples, seed)
    references, candidates = paired_up(references, candidates, Predictions)
    floor_references = list(floor_references)
    everything = [*references, *candidates, *floor_references]
    names = _class_names(everything, classes)
    everything = _in_one_order(everything)
    many = len(references)
    # One object per network keeps "the same reference for all" visible after reordering.
    references, candidates, floor_references = everything[:many], everything[many : 2 * many], everything[2 * many :]
    count, labels = len(names), references[0].labels
    pairs = [Pair(a, b, count, a.labels, count) for a, b in zip(references, candidates, strict=True)]
    for pair in pairs[1:]:
        Pair(references[0], pair.candidate, count, labels, count)  # refuses other labels than those of the first
    for each in floor_references:
        Pair(references[0], each, count, labels, count)
    if count < 2 or not (labels != labels[0]).any():
        raise UserError(f"{references[0].source}: only one class among the labels; error rates need at least two")
    chosen, left_out = _choose(pairs, measures, smoothing)
    _refuse_undefined(pairs, names, undefined, smoothing)

    unit = "both" if len(pairs) > 1 else "examples"
    options = {"resamples": resamples, "seed": seed, "unit": unit, "level": level, "method": method}
    floors = _floors(floor_references, chosen, count)
    values = _values(pairs, chosen, smoothing=smoothing, floors=floors, **options)
    if values["cev"].value is None:
        raise UserError(
            f"{references[0].source}: in some trial the reference makes no errors of both kinds in any class, so CEV "
            "and SDE do not exist; take a larger test set, or add a pseudo-count with smoothing=0.5 (--smoothing 0.5)"
        )
    p_values, test = class_significance(pairs)
    per_class, has_change = _per_class(pairs, names, p_values, level, smoothing)
    used = int(has_change.all(0).sum())
    if groups is None:
        own = next((each for each in candidates + references if each.groups is not None), None)
        groups, group_names = (own.groups, group_names or own.group_names) if own else (None, None)
    notes = []
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
        f"{each.title}: {each.interval.note.split('; ')[-1]}" for each in values.values() if each.value != each.estimate
    ]
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
        floor_networks=len(floor_references) if len(floor_references) > 1 else 0,
        significance=test,
        groups=_by_group(pairs, groups, group_names, names, chosen, options, smoothing) if groups is not None else None,
        resamples=resamples,
        seed=seed,
        notes=tuple(notes),
    )


def compare(
    *,
    references: Predictions | Sequence[Predictions],
    first: Predictions | Sequence[Predictions],
    second: Predictions | Sequence[Predictions],
    measure: str = "cev",
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """Is one method's measure below another's on the same test set, such as the CEV of distillation and of fine-tuning?

    Args:
        references: one network for all, or one per trial; then both methods have as many trials, paired in order.
        first, second: trials of the two methods.
        measure: a name in the table of measures that exists per trial.

    Raises:
        UserError: as ``audit``; a measure that exists only for all trials together.
    """
    _refuse_draws(resamples, seed)
    kind = _measure(measure)
    if kind.over_trials:
        raise UserError(f"measure: '{measure}' exists only for all trials together and cannot be compared by trial")
    shared = isinstance(references, Predictions) or len(references) == 1
    befores, firsts = paired_up(references, first, Predictions)
    befores_second, seconds = paired_up(references, second, Predictions)
    everything = _in_one_order([*befores, *befores_second, *firsts, *seconds])
    count = len(_class_names(everything, None))
    half = len(everything) // 2
    pairs = [Pair(a, b, count, a.labels, count) for a, b in zip(everything[:half], everything[half:], strict=True)]
    chosen, missing = _choose(pairs, [measure], 0.0)
    if measure in missing:
        raise UserError(f"measure: '{measure}' {missing[measure]}")
    chosen = [each for each in chosen if each.name == measure]
    table = Table(pairs, chosen)
    a, b = len(firsts), len(seconds)
    observed = table.point()[0][measure]
    weights = np.repeat([1 / a, -1 / b], [a, b])
    difference = float(observed[:a].mean() - observed[a:].mean())
    if not np.isfinite(difference):
        raise UserError(f"measure: '{measure}' does not exist for every trial, so there is no difference")
    unit = "both" if min(a, b) > 1 else "examples"
    bounds = (
        corrected_interval(pairs, measure, level=level, unit=unit, signs=weights) if measure.startswith("cev") else None
    )
    if bounds is None:
        draws = bootstrap(table, resamples=resamples, seed=seed).trials[measure]
        values = draws @ weights
        if unit == "both":
            values = values + _seed_noise(draws, a, b, weights, paired=not shared, seed=seed)
        bounds = interval(difference, values, level=level, unit=unit)
    generator = np.random.default_rng(np.random.SeedSequence(seed).spawn(3)[2])
    by_seeds = (
        _permute_seeds(observed[:a], observed[a:], not shared, resamples, generator) if min(a, b) > 1 else (None, None)
    )
    p_examples = _permute_examples(table, measure, a, difference, resamples, generator) if a == b else None
    return Comparison(measure, difference, bounds, p_examples, *by_seeds)


def _seed_noise(draws: np.ndarray, a: int, b: int, weights: np.ndarray, *, paired: bool, seed: int) -> np.ndarray:
    """What drawing trials adds to a difference of means [resamples], widened as in ``bootstrap``."""
    generator = np.random.default_rng(np.random.SeedSequence(seed).spawn(2)[1])
    rows = np.arange(len(draws))[:, None]
    first = generator.integers(0, a, (len(draws), a))
    second = first if paired else generator.integers(0, b, (len(draws), b))
    moved = [
        np.sqrt(n / (n - 1)) * (draws[rows, picked + offset].mean(1) - draws[:, offset : offset + n].mean(1))
        for picked, offset, n in ((first, 0, a), (second, a, b))
    ]
    return moved[0] - moved[1]


def _permute_seeds(first, second, paired: bool, resamples: int, generator) -> tuple[float, float]:
    """Two-sided permutation p of a difference of means, exact up to 20,000 arrangements, and the least possible p."""
    a, b = len(first), len(second)
    if paired:
        change = first - second
        total = 2**a
        if total <= 20_000:
            signs = np.array(list(itertools.product((1, -1), repeat=a)))
        else:
            signs = generator.choice((1, -1), (resamples, a))
        found, observed = (signs * change).mean(1), change.mean()
    else:
        pooled = np.concatenate([first, second])
        total = math.comb(a + b, a)
        if total <= 20_000:
            picks = np.array(list(itertools.combinations(range(a + b), a)))
        else:
            picks = generator.permuted(np.tile(np.arange(a + b), (resamples, 1)), axis=1)[:, :a]
        own = pooled[picks].sum(1)
        found, observed = own / a - (pooled.sum() - own) / b, first.mean() - second.mean()
    least = abs(observed) - 1e-9 * np.abs(np.concatenate([first, second])).mean()  # arrangements tie but for rounding
    extreme = int((np.abs(found) >= least).sum())
    exact = total <= 20_000
    p = extreme / len(found) if exact else (extreme + 1) / (len(found) + 1)
    both_tails = 2 if paired or a == b else 1
    return float(p), float(both_tails / total if exact else 1 / (len(found) + 1))


def _permute_examples(table: Table, measure: str, trials: int, difference: float, resamples: int, generator) -> float:
    """Two-sided p when the two methods' predictions change places at random, example by example."""
    extreme = 0
    multiplicity = table.multiplicity[:, None]
    batch = int(np.clip(2**19 // max(table.contributions.shape), 16, 512))
    for start in range(0, resamples, batch):
        size = min(batch, resamples - start)
        stay = generator.binomial(multiplicity, 0.5, (len(multiplicity), size)).astype(np.float64)
        own, other = table.sums(stay), table.sums(multiplicity - stay)
        mixed = [
            {name: own[i][name] + other[(i + trials) % (2 * trials)][name] for name in own[i]}
            for i in range(2 * trials)
        ]
        values = table.values([*mixed, own[-1]])[measure]
        found = values[:, :trials].mean(1) - values[:, trials:].mean(1)
        least = abs(difference) - 1e-9 * np.abs(values[np.isfinite(values)]).mean()  # arrangements tie but for rounding
        extreme += int((~(np.abs(found) < least)).sum())  # one that does not exist counts as extreme
    return (extreme + 1) / (resamples + 1)


def _measure(name: str) -> type[Measure]:
    if name not in MEASURES:
        raise UserError(f"measures: '{name}' is no measure; {nearest(name, MEASURES)}")
    return MEASURES[name]


def _choose(
    pairs: Sequence[Pair], names: Sequence[str] | None, smoothing: float
) -> tuple[list[Measure], dict[str, str]]:
    """The measures that the inputs allow, and why others are missing."""
    wanted = list(dict.fromkeys(["cev", "sde", *(names if names is not None else MEASURES)]))
    logits, paired = all(pair.has_logits for pair in pairs), all(pair.paired for pair in pairs)
    chosen, left_out = [], {}
    for name in wanted:
        kind = _measure(name)
        if kind.needs_logits and not logits:
            left_out[name] = "needs logits of both networks"
        elif kind.needs_pairing and not paired:
            left_out[name] = "needs predictions per example of both networks, not a confusion matrix"
        else:
            chosen.append(kind(smoothing=smoothing) if name in ("cev", "sde") else kind())
    return chosen, left_out


def _class_names(everything: Sequence[Predictions], classes: Sequence[str] | None) -> tuple[str, ...]:
    names, source = (tuple(classes), "classes") if classes is not None else (None, "")
    for each in everything:
        if each.classes is None:
            continue
        if names is None:
            names, source = each.classes, each.source
        elif names != each.classes and classes is None:
            missing = sorted(set(names) ^ set(each.classes))
            trouble = f"class '{missing[0]}' is in one of them only" if missing else "the order differs"
            raise UserError(
                f"{each.source}: classes differ from those of {source}: {trouble}; give the same classes to all"
            )
    widths = {each.logits.shape[1]: each for each in everything if each.logits is not None}
    count = len(names) if names is not None else max(each.class_count for each in everything)
    for width, each in widths.items():
        if width != count:
            raise UserError(
                f"{each.source}: logits of {width} classes, but there are {count}; give the same classes to all"
            )
    for each in everything:
        if each.class_count > count:
            raise UserError(
                f"{each.source}: class {each.class_count - 1} is out of range for {count} classes of {source}"
            )
    return names if names is not None else tuple(str(c) for c in range(count))


def _in_one_order(everything: Sequence[Predictions]) -> list[Predictions]:
    """Puts examples in order of class where some input is a confusion matrix, its own at random within each class.

    Examples of one class that are matched at random are independent given the class, which is what not knowing the
    match amounts to. The shuffles are fixed.
    """
    if all(each.paired for each in everything):
        return list(everything)
    done: dict[int, Predictions] = {}
    for i, each in enumerate(everything):
        if id(each) in done:
            continue
        keys = np.random.default_rng(i).random(len(each.labels)) if not each.paired else np.arange(len(each.labels))
        order = np.lexsort([keys, each.labels])
        done[id(each)] = replace(
            each,
            labels=each.labels[order],
            predictions=each.predictions[order],
            logits=each.logits[order] if each.logits is not None else None,
            groups=each.groups[order] if each.groups is not None else None,
        )
    return [done[id(each)] for each in everything]


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


def _tables(pairs: Sequence[Pair], chosen: Sequence[Measure]) -> list[Table]:
    """Measures of predictions, whose cells are few, apart from measures of logits, whose cells are the examples."""
    kinds = ([each for each in chosen if each.needs_logits is wanted] for wanted in (False, True))
    return [Table(pairs, kind) for kind in kinds if kind]


def _values(pairs, chosen, *, smoothing, floors, resamples, seed, unit, level, method) -> dict[str, Value]:
    found = {}
    for table in _tables(pairs, chosen):
        per_trial, averaged = table.point()
        draws = bootstrap(table, resamples=resamples, seed=seed, unit=unit)
        needs = {each.name: each.interval if method == "best" else method for each in table.measures}
        left_out = table.jackknife()[0] if "bca" in needs.values() else {}
        for each in table.measures:
            trials = per_trial[each.name]
            value = float(trials.mean())
            if needs[each.name] == "corrected" and (each.noise_free or not smoothing):  # those know no smoothing
                bounds = corrected_interval(pairs, each.name, level=level, unit=unit)
            else:
                bounds = interval(
                    value,
                    draws.mean[each.name],
                    method="basic" if needs[each.name] == "corrected" else needs[each.name],
                    level=level,
                    unit=unit,
                    left_out=left_out[each.name].mean(1) if each.name in left_out else None,
                    multiplicity=table.multiplicity,
                )
            if bounds is not None and bounds.low < each.lowest:
                bounds = replace(bounds, low=each.lowest, high=max(bounds.high, each.lowest))
            shown = value
            if each.noise_free and bounds is not None and not bounds.low <= value <= bounds.high:
                shown = min(max(value, bounds.low), bounds.high)
                outside = f"the estimate of {value:.4g} is shown as the nearer end of its interval"
                if value < 0:
                    outside += ": the changes are no more uneven than noise"
                bounds = replace(bounds, note="; ".join(filter(None, [bounds.note, outside])))
            found[each.name] = Value(
                measure=each.name,
                title=each.title,
                unit=each.unit,
                better=each.better,
                value=_number(shown),
                estimate=_number(value),
                interval=bounds,
                trials=tuple(_number(trial) for trial in trials),
                published=_number(averaged[each.name]) if each.name in averaged else None,
                floor=_floor(floors.get(each.name), value),
            )
    return {each.name: found[each.name] for each in chosen}


def _floors(networks: Sequence[Predictions], chosen: Sequence[Measure], count: int) -> dict[str, np.ndarray]:
    """Each measure over the ordered pairs of dense networks: name -> [pairs]."""
    found: dict[str, list[float]] = {}
    for a, b in itertools.permutations(networks, 2):
        pair = Pair(a, b, count, a.labels, count)
        allowed = [
            each
            for each in chosen
            if (pair.has_logits or not each.needs_logits) and (pair.paired or not each.needs_pairing)
        ]
        for table in _tables([pair], allowed):
            for name, value in table.point()[0].items():
                found.setdefault(name, []).append(float(value[0]))
    return {name: np.array(values) for name, values in found.items()}


def _floor(values: np.ndarray | None, value: float) -> Floor | None:
    if values is None or not np.isfinite(value) or not np.isfinite(values).any():
        return None
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [0.025, 0.975])
    mean = float(values.mean())
    share = 100 * float((values <= value).mean())
    return Floor(mean, float(low), float(high), value - mean, share, len(values))


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
            "fpr_reference": float(before[:, 0, c].mean() / negatives[c]),
            "fnr_reference": float(before[:, 1, c].mean() / positives[c]) if support[c] else None,
            "fpr": float(after[:, 0, c].mean() / negatives[c]),
            "fnr": float(after[:, 1, c].mean() / positives[c]) if support[c] else None,
            "d_fpr": float(change[0, c]) if defined[c] else None,
            "d_fnr": float(change[1, c]) if defined[c] else None,
            "excess_accuracy_gap": float(gap[c]) if support[c] else None,
            "p_value": _number(p_values[c]),
            "significant": bool(p_values[c] < 1 - level),  # NaN is not
        }
        for c in range(count)
    ]
    return rows, has_change


def _by_group(pairs, groups, group_names, names, chosen, options, smoothing) -> dict[str, Any]:
    """Every measure inside each group, the measures of recall over groups, and CEV and SDE over class within group."""
    groups = np.asarray(groups)
    if groups.shape != pairs[0].labels.shape:
        raise UserError(f"groups: {len(groups)} values for {len(pairs[0].labels)} examples; give one per example")
    if not all(pair.paired for pair in pairs):
        raise UserError(
            "groups: a confusion matrix does not tell the group of an example; give predictions per example"
        )
    if groups.dtype.kind not in "iu" or groups.min() < 0:
        raise UserError("groups: give whole numbers from 0, one per example")
    many = int(groups.max()) + 1
    labels_of = tuple(group_names) if group_names is not None else tuple(str(g) for g in range(many))
    if len(labels_of) < many:
        raise UserError(f"groups: {len(labels_of)} names for {many} groups; name each group")
    size = np.bincount(groups, minlength=many)
    count = len(names)

    inside: dict[str, np.ndarray] = {}
    for table in _tables(pairs, chosen):
        weights = np.zeros((len(table.multiplicity), many))
        np.add.at(weights, (table.cell, groups), 1.0)
        sums = [{name: value[size > 0] for name, value in each.items()} for each in table.sums(weights)]
        for name, value in table.values(sums).items():
            inside[name] = np.full(many, np.nan)
            inside[name][size > 0] = value.mean(1)
    over = [Pair(pair.reference, pair.candidate, count, groups, many) for pair in pairs]
    p_values, test = class_significance(over)
    of_recall = [each for each in chosen if "part_size" in each.counts(over if each.over_trials else over[0])]
    of_groups = _values(over, of_recall, smoothing=smoothing, floors={}, **options)

    def shifted(each: Predictions) -> Predictions:
        return Predictions(groups * count + each.labels, groups * count + each.predictions, source=each.source)

    before = {id(pair.reference): shifted(pair.reference) for pair in pairs}
    labels = groups * count + pairs[0].labels
    within = [
        Pair(before[id(pair.reference)], shifted(pair.candidate), count * many, labels, count * many) for pair in pairs
    ]
    bias = [each for each in chosen if each.name in ("cev", "sde", "cev_corrected", "sde_corrected")]
    of_both = _values(within, bias, smoothing=smoothing, floors={}, **options)
    both_p, _ = class_significance(within)
    long_names = [f"{group} / {name}" for group in labels_of[:many] for name in names]
    rows, has_change = _per_class(within, long_names, both_p, options["level"], smoothing)
    for i, row in enumerate(rows):
        # Negatives of a class inside a group are the other examples of that group, not of the whole test set.
        negatives = max(size[i // count] - row["support"], 1)
        scale = max(len(labels) - row["support"], 1) / negatives
        row.update({key: row[key] * scale for key in ("fpr_reference", "fpr")})
        row.update({"group": labels_of[i // count], "class": names[i % count]})

    def brief(values: dict[str, Value]) -> dict[str, Any]:
        return {name: {"value": each.value, "interval": _ends(each.interval)} for name, each in values.items()}

    return {
        "per_group": [
            {
                "group": labels_of[g],
                "support": int(size[g]),
                **{name: _number(value[g]) for name, value in inside.items()},
                "excess_accuracy_gap": _number(inside_gap),
                "p_value": _number(p_values[g]),
                "significant": bool(p_values[g] < 1 - options["level"]),
            }
            for g, inside_gap in enumerate(_group_gaps(over, size))
        ],
        "measures": brief(of_groups),
        "class_within_group": brief(of_both)
        | {
            "classes": int((np.bincount(labels, minlength=count * many) > 0).sum()),
            "classes_used": int(has_change.all(0).sum()),
        },
        "per_class_within_group": rows,
        "significance": test,
    }


def _group_gaps(over: Sequence[Pair], size: np.ndarray) -> np.ndarray:
    lost = np.mean(
        [(p.reference.predictions == p.labels) * 1.0 - (p.candidate.predictions == p.labels) for p in over], 0
    )
    total = np.bincount(over[0].parts, weights=lost, minlength=len(size))
    return np.where(size > 0, total / np.maximum(size, 1) - lost.mean(), np.nan)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _ends(bounds: Interval | None) -> list[float] | None:
    return [bounds.low, bounds.high] if bounds is not None else None
