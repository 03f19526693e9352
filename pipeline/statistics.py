"""Statistics over seeds and networks: paired comparisons, the correction for many tests, correlations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Annotated

import numpy as np
from pydantic import Field

from pipeline.registry import options
from pipeline.table import Row

COMPARISONS = ("ratio", "difference")
# What is corrected together: what a study asked beforehand, and everything else that it shows.
FAMILIES = ("declared", "exploratory")
LEVEL = 0.05  # of false findings in a family


@options
class Place:
    """A pruning at a sparsity; the dense networks at sparsity 0."""

    pruning: Annotated[str, Field(description="the title of a pruning of the study, or dense")]
    sparsity: Annotated[float, Field(description="one of its sparsities; 0 for dense", ge=0, lt=1)]


@options
class Claim:
    """A comparison of two recoveries that a study asks beforehand."""

    measure: Annotated[str, Field(description="a measure of bias that single networks have")]
    first: Annotated[str, Field(description="the title of a recovery of the study")]
    second: Annotated[str, Field(description="that of the recovery that it is compared with")]
    at: Annotated[Place, Field(description="the pruning and the sparsity at which they are compared")]


def compare(
    rows: Iterable[Row], kinds: Mapping[str, str], *, explored: Sequence[str], claims: Sequence[Claim] = ()
) -> list[Row]:
    """The comparisons that were declared, then every other two recoveries of the same pruning and sparsity.

    Seeds are paired: a ratio by a paired t test on logarithms, a difference by one on the values. The p of the declared
    comparisons are corrected together, and so are those of all others, over all measures (Holm 1979).

    Args:
        rows: of the long table, one per network and measure: pruning, sparsity_asked, recovery, seed, measure, value.
            Rows without seed (of several networks together) take no part, nor do, but in a claim, networks without
            recovery: that recovery changes them needs no test.
        kinds: measure -> ``"ratio"`` or ``"difference"``; one that it does not name is compared as a difference.
        explored: the measures of the second family.
        claims: the first family.

    Returns:
        One row per comparison: pruning, sparsity, measure, kind, first, second; ``value`` (geometric mean ratio, or
        mean difference, of ``first`` over ``second``), ``low`` and ``high`` (95 percent t interval over seeds, of this
        comparison alone), ``p`` (two-sided), ``seeds``; ``family`` (declared, exploratory), ``family_size`` (its number
        of tests), ``p_corrected`` in it, and ``verdict``: ``first`` is higher or lower than ``second`` (p_corrected
        below 0.05), else cannot tell. None where fewer than two seeds have both values, where a ratio would need the
        logarithm of 0, or, but for the value, where all seeds differ by the same amount: these are no tests.

    Raises:
        ValueError: another word than ratio or difference.
    """
    places: dict[tuple[str, str, float], dict[str, dict[int, float | None]]] = {}
    for row in rows:
        if row.get("seed") is not None:
            recoveries = places.setdefault((row["measure"], row["pruning"], row["sparsity_asked"]), {})
            recoveries.setdefault(row["recovery"], {})[row["seed"]] = row["value"]

    def compared(measure: str, pruning: str, sparsity: float, first: str, second: str) -> Row:
        kind, recoveries = kinds.get(measure, "difference"), places.get((measure, pruning, sparsity), {})
        ours, theirs = (recoveries.get(name, {}) for name in (first, second))
        pairs = [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
        row = {"pruning": pruning, "sparsity": sparsity, "measure": measure, "kind": kind}
        row |= {"first": first, "second": second}
        return row | paired([pair for pair in pairs if None not in pair], kind)

    asked = [(one.measure, one.at.pruning, one.at.sparsity, one.first, one.second) for one in claims]
    declared = {(*each[:3], frozenset(each[3:])) for each in asked}
    others = [
        (*place, first, second)  # the later named one over the earlier named one
        for measure in explored
        for place, recoveries in places.items()
        if place[0] == measure
        for second, first in combinations([name for name in recoveries if name != "none"], 2)
        if (*place, frozenset((first, second))) not in declared
    ]
    families = ([compared(*each) for each in family] for family in (asked, others))
    return [row for name, family in zip(FAMILIES, families, strict=True) for row in _corrected(family, name)]


def _corrected(family: Sequence[Row], name: str) -> list[Row]:
    """The rows of a family with what follows from the correction for its number of tests."""
    found = [row | {"family": name, "p_corrected": None, "verdict": "cannot tell"} for row in family]
    tests = [row for row in found if row["p"] is not None]
    for row, p in zip(tests, holm([row["p"] for row in tests]), strict=True):
        row["p_corrected"] = float(p)
        if p < LEVEL:
            row["verdict"] = "higher" if row["value"] > (1 if row["kind"] == "ratio" else 0) else "lower"
    return [row | {"family_size": len(tests)} for row in found]


def paired(pairs: Sequence[tuple[float, float]], kind: str) -> Row:
    """Value, 95 percent t interval and p of one comparison; see ``compare``."""
    from scipy import stats  # a second to load, which whoever compares nothing need not wait

    if kind not in COMPARISONS:
        raise ValueError(f"'{kind}' is no way to compare; one of {', '.join(COMPARISONS)}")
    row: Row = dict.fromkeys(("value", "low", "high", "p")) | {"seeds": len(pairs)}
    values = np.array(pairs, dtype=float).reshape(-1, 2)
    if len(values) < 2 or (kind == "ratio" and values.min() <= 0):
        return row
    scale = np.log(values) if kind == "ratio" else values
    differences = scale[:, 0] - scale[:, 1]
    back = np.exp if kind == "ratio" else np.asarray
    row["value"] = float(back(differences.mean()))
    if np.ptp(differences) > 1e-12:  # equal to the last digit: a t test would be sure of anything
        test = stats.ttest_1samp(differences, 0)
        interval = test.confidence_interval(0.95)
        row |= {"low": float(back(interval.low)), "high": float(back(interval.high)), "p": float(test.pvalue)}
    return row


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """p values, [n], corrected so that one false finding among all tests has the stated probability (Holm 1979).

    NaN stays NaN and is not counted as a test.
    """
    p = np.asarray(p, dtype=float)
    corrected = np.full(len(p), np.nan)
    tests = np.flatnonzero(~np.isnan(p))
    order = tests[np.argsort(p[tests], kind="stable")]
    stepped = p[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.maximum.accumulate(stepped).clip(max=1)
    return corrected


def correlate(x: np.ndarray, y: np.ndarray) -> list[Row]:
    """Pearson and Spearman correlation of two series, with 95 % intervals.

    Args:
        x, y: float [n]; pairs in which either is NaN are left out and counted.

    Returns:
        One record per statistic: value, low, high, p (two-sided), n, left_out. Pearson's interval and p are exact for
        normal data (Fisher z, t distribution); Spearman's use the Fisher z with the variance 1.06 / (n - 3) of Fieller
        et al. 1957. Below 4 pairs, or when a series is constant, value, interval and p are NaN, and n says why.

    The p takes the networks as independent, which networks of one parent are not: read it as a lower bound.
    """
    from scipy import stats

    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    usable = np.isfinite(x) & np.isfinite(y)
    x, y = x[usable], y[usable]
    count, records = len(x), []
    defined = count >= 4 and np.ptp(x) > 0 and np.ptp(y) > 0
    for name, function, factor in (("pearson", stats.pearsonr, 1.0), ("spearman", stats.spearmanr, 1.06)):
        value = low = high = p = float("nan")
        if defined:
            value, p = (float(part) for part in function(x, y))
            width = stats.norm.ppf(0.975) * np.sqrt(factor / (count - 3))
            centre = np.arctanh(np.clip(value, -1 + 1e-12, 1 - 1e-12))
            low, high = float(np.tanh(centre - width)), float(np.tanh(centre + width))
        records.append(
            {
                "statistic": name,
                "value": value,
                "low": low,
                "high": high,
                "p": p,
                "n": count,
                "left_out": int((~usable).sum()),
            }
        )
    return records
