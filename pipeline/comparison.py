"""Recoveries against each other: paired by seed, and corrected for how many pairs are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

Row = dict[str, Any]
MEASURES = {"cev": "ratio", "sde": "ratio", "accuracy": "difference"}  # spread of the bias grows with its size


def compare(runs: Sequence[Row]) -> list[Row]:
    """Every two recoveries of the same pruning and sparsity.

    Bias is compared as a ratio (paired t test on logarithms), accuracy as a difference. The p of a measure are
    corrected together, over all of its comparisons in the study (Holm 1979).

    Args:
        runs: one row per network with pruning, sparsity_asked, recovery, seed and the measures, which may be None.
            Networks without recovery take no part: that recovery changes them needs no test.

    Returns:
        One row per place, pair and measure: ``value`` (geometric mean ratio, or mean difference, of ``first`` over
        ``second``), ``low`` and ``high`` (95 percent t interval over seeds, of this comparison alone), ``p``
        (two-sided), ``p_corrected``, ``seeds``. None where fewer than two seeds have both values, where a ratio would
        need the logarithm of 0, or, but for the value, where all seeds differ by the same amount.
    """
    places: dict[tuple[str, float], dict[str, dict[int, Row]]] = {}
    for run in runs:
        if run["recovery"] != "none":
            place = places.setdefault((run["pruning"], run["sparsity_asked"]), {})
            place.setdefault(run["recovery"], {})[run["seed"]] = run
    found = []
    for measure, kind in MEASURES.items():
        rows = []
        for (pruning, sparsity), recoveries in places.items():
            for second, first in combinations(recoveries, 2):  # the later named one over the earlier named one
                seeds = sorted(recoveries[first].keys() & recoveries[second].keys())
                pairs = [tuple(recoveries[name][seed][measure] for name in (first, second)) for seed in seeds]
                rows.append(
                    {"pruning": pruning, "sparsity": sparsity, "measure": measure, "kind": kind}
                    | {"first": first, "second": second}
                    | paired([pair for pair in pairs if None not in pair], kind)
                )
        known = [row for row in rows if row["p"] is not None]
        for row, p in zip(known, holm([row["p"] for row in known]), strict=True):
            row["p_corrected"] = float(p)
        found += rows
    return found


def paired(pairs: Sequence[tuple[float, float]], kind: str) -> Row:
    """Value, 95 percent t interval and p of one comparison; see ``compare``."""
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


def holm(p: Sequence[float]) -> np.ndarray:
    """p values, [n], corrected so that one false finding among all n has the stated probability (Holm 1979)."""
    p = np.asarray(p, dtype=float)
    order = p.argsort()
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))).clip(max=1)
    return corrected
