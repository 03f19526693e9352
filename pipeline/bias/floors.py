"""The floor: what equally good dense networks show among each other, and what each of them has alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from pipeline.bias.given import class_names, existing, in_one_order, refuse_one_label, wanted_measures, why_missing
from pipeline.bias.measures import MEASURES, Measure, Pair, Sums
from pipeline.bias.rates import refuse_smoothing
from pipeline.bias.resampling import (
    total,
)
from pipeline.predictions import Predictions
from pipeline.registry import UserError
from pipeline.table import Row, grouped, measured, select


@dataclass(frozen=True, eq=False)
class Floors:
    """The values of measures between equally good dense networks, of every ordered pair of them.

    Attributes:
        networks: K.
        values: measure -> float64 [K, K], reference by candidate; NaN where there is none, as on the diagonal.
    """

    networks: int
    values: dict[str, np.ndarray]

    def pairs(self, measure: str) -> np.ndarray:
        """float64 [K (K - 1)], pairs in order of reference, then of candidate; all NaN for an unknown measure."""
        apart = ~np.eye(self.networks, dtype=bool)
        values = self.values.get(measure)
        return values[apart] if values is not None else np.full(apart.sum(), np.nan)

    def long_rows(self, seeds: Sequence[int]) -> list[Row]:
        """Rows of the long table, kind ``floor``: of each measure every pair, then their mean with quantiles.

        Args:
            seeds: of the K networks, in order.
        """
        rows = []
        for name, values in self.values.items():
            says = {"unit": MEASURES[name].unit, "better": MEASURES[name].better}
            for (i, reference), (j, candidate) in permutations(enumerate(seeds), 2):
                rows.append(measured("floor", name, values[i, j], seed=candidate, reference_seed=reference, **says))
            whole = beside(self.pairs(name), 0.0)
            ends = {"low": whole.low, "high": whole.high} if whole else {}
            rows.append(measured("floor", name, whole.mean if whole else None, **ends, **says))
        return rows

    @classmethod
    def from_rows(cls, rows: Iterable[Row]) -> Floors:
        """What ``long_rows`` wrote, from rows of the long table of which others may be there.

        The networks come in order of their first place as a reference.
        """
        pairs = [row for row in select(rows, kind="floor") if row.get("seed") is not None]
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


def floor(
    networks: Sequence[Predictions],
    *,
    measures: Sequence[str | Measure] | None = None,
    smoothing: float = 0.0,
    classes: Sequence[str] | None = None,
) -> Floors:
    """What equally good dense networks show among each other: every measure of every ordered pair of them.

    Args:
        networks: dense networks that differ in nothing but their seed.
        measures, smoothing, classes: as for ``audit``.

    Raises:
        UserError: inputs that do not belong together; an unknown measure.
    """
    refuse_smoothing(smoothing)
    if not networks:
        raise UserError("no networks for the floor; give at least two, which differ in nothing but their seed")
    count = len(class_names(networks, classes))
    networks = in_one_order(networks)
    refuse_one_label(networks[0], count)
    chosen = wanted_measures(measures, smoothing)
    sums: dict[tuple[int, int], Sums] = {}
    for i, j in permutations(range(len(networks)), 2):
        sums[i, j] = _sums(Pair(networks[i], networks[j], count, networks[i].labels, count), chosen)
    values = {}
    for each in chosen:
        places = [(i, j) for i, j in sums if not why_missing(each, [networks[i], networks[j]])]
        if places:
            values[each.name] = np.full((len(networks), len(networks)), np.nan)
            values[each.name][tuple(zip(*places, strict=True))] = _point(each, [sums[place] for place in places])
    return Floors(len(networks), values)


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
    sums = _sums(Pair(network, network, count, network.labels, count), chosen)
    return {each.name: existing(_point(each, [sums])[0]) for each in chosen}


def _sums(pair: Pair, measures: Sequence[Measure]) -> Sums:
    """What the measures that exist for a pair, as if it were the only trial, sum over its examples, each [width]."""
    found: Sums = {"examples": np.array([len(pair.labels)], np.float64)}
    for each in measures:
        if not why_missing(each, [pair.reference, pair.candidate]):
            counts = each.counts([pair] if each.over_trials else pair)
            found |= {name: total(count) for name, count in counts.items() if name not in found}
    return found


def _point(measure: Measure, sums: Sequence[Sums]) -> np.ndarray:
    """A measure of several sums: [sums]. All of them have what it asks for, some may have more."""
    return measure.value({name: np.stack([each[name] for each in sums]) for name in set.intersection(*map(set, sums))})


def beside(values: np.ndarray, value: float) -> Floor | None:
    if not np.isfinite(value) or not np.isfinite(values).any():
        return None
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [0.025, 0.975])
    mean = float(values.mean())
    share = 100 * float((values <= value).mean())
    return Floor(mean, float(low), float(high), value - mean, share, len(values))
