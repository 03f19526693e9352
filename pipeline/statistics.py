"""Statistics over seeds and networks: paired comparisons, the correction for many tests, correlations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np

from pipeline.table import Row, grouped

COMPARISONS = ("ratio", "difference")


def compare(rows: Iterable[Row], comparisons: Mapping[str, str]) -> list[Row]:
    """Every two recoveries of the same pruning and sparsity, in every measure.

    Seeds are paired: a ratio by a paired t test on logarithms, a difference by one on the values. The p of a measure
    are corrected together, over all of its comparisons in the study (Holm 1979).

    Args:
        rows: of the long table, one per network and measure: pruning, sparsity_asked, recovery, seed, measure, value.
            Rows without seed (of several networks together) and networks without recovery take no part: that recovery
            changes them needs no test.
        comparisons: measure -> ``"ratio"`` or ``"difference"``; one that it does not name is compared as a difference.

    Returns:
        One row per measure, place and pair: ``value`` (geometric mean ratio, or mean difference, of ``first`` over
        ``second``), ``low`` and ``high`` (95 percent t interval over seeds, of this comparison alone), ``p``
        (two-sided), ``p_corrected``, ``seeds``. None where fewer than two seeds have both values, where a ratio would
        need the logarithm of 0, or, but for the value, where all seeds differ by the same amount.

    Raises:
        ValueError: another word than ratio or difference.
    """
    usable = [row for row in rows if row.get("seed") is not None and row["recovery"] != "none"]
    found = []
    for (measure,), of_measure in grouped(usable, "measure").items():
        kind = comparisons.get(measure, "difference")
        compared = []
        for (pruning, sparsity), place in grouped(of_measure, "pruning", "sparsity_asked").items():
            recoveries = {
                name: {row["seed"]: row["value"] for row in runs}
                for (name,), runs in grouped(place, "recovery").items()
            }
            for second, first in combinations(recoveries, 2):  # the later named one over the earlier named one
                seeds = sorted(recoveries[first].keys() & recoveries[second].keys())
                pairs = [(recoveries[first][seed], recoveries[second][seed]) for seed in seeds]
                compared.append(
                    {"pruning": pruning, "sparsity": sparsity, "measure": measure, "kind": kind}
                    | {"first": first, "second": second}
                    | paired([pair for pair in pairs if None not in pair], kind)
                )
        known = [row for row in compared if row["p"] is not None]
        for row, p in zip(known, holm([row["p"] for row in known]), strict=True):
            row["p_corrected"] = float(p)
        found += compared
    return found


def paired(pairs: Sequence[tuple[float, float]], kind: str) -> Row:
    """Value, 95 percent t interval and p of one comparison; see ``compare``."""
    from scipy import stats  # a second to load, which whoever compares nothing need not wait

    if kind not in COMPARISONS:
        raise ValueError(f"'{kind}' is no way to compare; one of {', '.join(COMPARISONS)}")
    row: Row = dict.fromkeys(("value", "low", "high", "p", "p_corrected")) | {"seeds": len(pairs)}
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
