"""How similarity to the dense network goes along with the induced bias, over the networks of a study."""

from __future__ import annotations

import numpy as np
from scipy import stats


def correlate(x: np.ndarray, y: np.ndarray) -> list[dict[str, float | str | int]]:
    """Pearson and Spearman correlation of two series, with 95 % intervals.

    Args:
        x, y: float [n]; pairs in which either is NaN are left out and counted.

    Returns:
        One record per statistic: value, low, high, p (two-sided), n, left_out. Pearson's interval and p are exact for
        normal data (Fisher z, t distribution); Spearman's use the Fisher z with the variance 1.06 / (n - 3) of Fieller
        et al. 1957. Below 4 pairs, or when a series is constant, value, interval and p are NaN, and n says why.

    The p takes the networks as independent, which networks of one parent are not: read it as a lower bound.
    """
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
