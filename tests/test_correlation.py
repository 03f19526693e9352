"""Correlations against scipy's own intervals, and the cases that have none."""

import math

import numpy as np
import pytest
from scipy import stats

from pipeline.correlation import correlate


def test_against_scipy():
    random = np.random.default_rng(0)
    x = random.normal(size=40)
    y = x + random.normal(size=40)
    pearson, spearman = correlate(x, y)
    expected = stats.pearsonr(x, y)
    interval = expected.confidence_interval()
    assert (pearson["value"], pearson["p"]) == pytest.approx((expected.statistic, expected.pvalue))
    assert (pearson["low"], pearson["high"]) == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert spearman["value"] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert spearman["low"] < spearman["value"] < spearman["high"]


def test_undefined_is_counted():
    pearson, _ = correlate(np.array([1, 2, np.nan, 3, 4, 5.0]), np.array([1, 2, 3, np.nan, 3, 6.0]))
    assert (pearson["n"], pearson["left_out"]) == (4, 2) and math.isfinite(pearson["value"])
    for x in (np.array([1.0, 2, 3]), np.array([2.0, 2, 2, 2, 2])):
        for record in correlate(x, np.arange(len(x), dtype=float)):
            assert math.isnan(record["value"]) and math.isnan(record["p"]) and record["n"] == len(x)
