"""The floor: what equally good dense networks show among each other, and what each of them has alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np

from pipeline.bias.given import class_names, existing, in_one_order, refuse_one_label, wanted_measures, why_missing
from pipeline.bias.measures import MEASURES, DenseNetworks, Measure, Pair, Sums
from pipeline.bias.rates import refuse_smoothing
from pipeline.bias.resampling import total
from pipeline.predictions import Predictions
from pipeline.registry import UserError
from pipeline.table import Row, grouped, measured, select


@dataclass(frozen=True, eq=False)
class Floors:
    """The values of measures between equally good dense networks, of every ordered pair of them.

    Attributes:
        networks: K.
        values: measure -> float64 [K, K], reference by candidate; NaN where there is none, as on the diagonal.
        carried: measure -> class name -> share of the sum over all pairs that this class adds; for measures that are
            sums over classes (``Measure.by_class``).
    """

    networks: int
    values: dict[str, np.ndarray]
    carried: dict[str, dict[str, float]] = field(default_factory=dict)

    def summary(self, measure: str) -> Floor | None:
        """Of the pairs that have a value; None where none has one, or the measure is unknown."""
        values = self.values.get(measure)
        if values is None:
            return None
        pairs = values[~np.eye(self.networks, dtype=bool)]
        pairs = pairs[np.isfinite(pairs)]
        if not len(pairs):
            return None
        geometric = MEASURES[measure].comparison == "ratio" and pairs.min() > 0
        mean = np.exp(np.log(pairs).mean()) if geometric else pairs.mean()
        return Floor(float(mean), float(pairs.min()), float(pairs.max()), len(pairs))

    def long_rows(self, seeds: Sequence[int]) -> list[Row]:
        """Rows of the long table.

        Kind ``floor``: of each measure every pair, then their mean with the smallest and the largest. Kind ``class``:
        the share of a measure that a class carries.

        Args:
            seeds: of the K networks, in order.
        """
        rows = []
        for name, values in self.values.items():
            says = {"unit": MEASURES[name].unit, "better": MEASURES[name].better}
            for (i, reference), (j, candidate) in permutations(enumerate(seeds), 2):
                rows.append(measured("floor", name, values[i, j], seed=candidate, reference_seed=reference, **says))
            whole = self.summary(name)
            ends = {"low": whole.low, "high": whole.high} if whole else {}
            rows.append(measured("floor", name, whole.mean if whole else None, **ends, **says))
            for word, share in self.carried.get(name, {}).items():
                rows.append(measured("class", f"{name}_share", share, unit="share", better="", **{"class": word}))
        return rows

    @classmethod
    def from_rows(cls, rows: Iterable[Row]) -> Floors:
        """The values that ``long_rows`` wrote, from rows of the long table of which others may be there.

        The networks come in order of their first place as a reference.
        """
        pairs = [row for row in select(rows, kind="floor", layer=None) if row.get("seed") is not None]
        place = {seed: i for i, seed in enumerate(dict.fromkeys(row["reference_seed"] for row in pairs))}
        values = {}
        for (name,), of_measure in grouped(pairs, "measure").items():
            values[name] = np.full((len(place), len(place)), np.nan)
            for row in of_measure:
                if row["value"] is not None:
                    values[name][place[row["reference_seed"]], place[row["seed"]]] = row["value"]
        return cls(len(place), values)


@dataclass(frozen=True)
class Floor:
    """What two equally good dense networks show when they are compared with each other, over ordered pairs.

    Attributes:
        mean: over the pairs; the geometric one of a positive measure that is compared as a ratio.
        low, high: the smallest and the largest value of a pair.
        pairs: how many pairs have a value. They share networks, so that they say less than as many independent ones.
    """

    mean: float
    low: float
    high: float
    pairs: int


def floor(
    networks: Sequence[Predictions],
    *,
    measures: Sequence[str | Measure] | None = None,
    smoothing: float = 0.0,
    classes: Sequence[str] | None = None,
) -> Floors:
    """What equally good dense networks show among each other: every measure of single pairs, of every ordered pair.

    Args:
        networks: dense networks that differ in nothing but their seed.
        measures, smoothing, classes: as for ``audit``.

    Raises:
        UserError: inputs that do not belong together; an unknown measure.
    """
    refuse_smoothing(smoothing)
    if not networks:
        raise UserError("no networks for the floor; give at least two, which differ in nothing but their seed")
    names = class_names(networks, classes)
    count = len(names)
    networks = in_one_order(networks)
    refuse_one_label(networks[0], count)
    # What is one value of several networks together has no floor of pairs.
    chosen = [each for each in wanted_measures(measures, smoothing) if not each.over_trials]
    dense = DenseNetworks(tuple(networks))
    sums: dict[tuple[int, int], Sums] = {}
    for i, j in permutations(range(len(networks)), 2):
        sums[i, j] = sums_of(Pair(networks[i], networks[j], count, networks[i].labels, count, dense=dense), chosen)
    values, carried = {}, {}
    for each in chosen:
        places = [(i, j) for i, j in sums if not why_missing(each, [networks[i], networks[j]])]
        if places:
            values[each.name] = np.full((len(networks), len(networks)), np.nan)
            found = [sums[place] for place in places]
            values[each.name][tuple(zip(*places, strict=True))] = point(each, found)
            shares = carried_by_class(each, found)
            if shares is not None:
                carried[each.name] = dict(zip(names, shares.tolist(), strict=True))
    return Floors(len(networks), values, carried)


def alone(
    network: Predictions, *, measures: Sequence[str | Measure] | None = None, classes: Sequence[str] | None = None
) -> dict[str, float | None]:
    """What can be said of one network without another: name -> value of the measures that do not compare.

    Args:
        measures: those of them that do not compare (``Measure.compares``); all by default.
        classes: names, where the network does not tell them.

    Raises:
        UserError: an unknown measure; fewer than two classes.
    """
    count = len(class_names([network], classes))
    refuse_one_label(network, count)
    chosen = [each for each in wanted_measures(measures, 0.0) if not each.compares and not why_missing(each, [network])]
    sums = sums_of(Pair(network, network, count, network.labels, count), chosen)
    return {each.name: existing(point(each, [sums])[0]) for each in chosen}


def sums_of(pair: Pair, measures: Sequence[Measure]) -> Sums:
    """What the measures that exist for a pair, as if it were the only trial, sum over its examples, each [width]."""
    found: Sums = {"examples": np.array([len(pair.labels)], np.float64)}
    for each in measures:
        if not why_missing(each, [pair.reference, pair.candidate]):
            counts = each.counts([pair] if each.over_trials else pair)
            found |= {name: total(count) for name, count in counts.items() if name not in found}
    return found


def point(measure: Measure, sums: Sequence[Sums]) -> np.ndarray:
    """A measure of several sums: [sums]. All of them have what it asks for, some may have more."""
    return measure.value(_stacked(sums))


def _stacked(sums: Sequence[Sums]) -> Sums:
    return {name: np.stack([each[name] for each in sums]) for name in set.intersection(*map(set, sums))}


def carried_by_class(measure: Measure, sums: Sequence[Sums]) -> np.ndarray | None:
    """The share of the total of several values that each class adds, [C]; None where a measure is no sum."""
    added = measure.by_class(_stacked(sums))
    if added is None:
        return None
    total_of = np.nansum(added, 0)
    return total_of / total_of.sum() if total_of.sum() > 0 else None
