"""Debiased linear CKA against a slow loop over the definition, and the invariances that it declares."""

import math

import pytest
import torch

from pipeline.registry import UserError
from pipeline.similarities import linear_cka


def slow_hsic(k, l):
    """Song et al. 2012, equation 4: the U-statistic, as a sum over distinct quadruples of examples."""
    n, total = len(k), 0.0
    for i in range(n):
        for j in range(n):
            for q in range(n):
                for r in range(n):
                    if len({i, j, q, r}) == 4:
                        total += float(k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]))
    return total / (n * (n - 1) * (n - 2) * (n - 3))


def slow_cka(x, y):
    k, l = x @ x.T, y @ y.T
    return slow_hsic(k, l) / math.sqrt(slow_hsic(k, k) * slow_hsic(l, l))


def test_against_the_definition():
    x, y = torch.randn(8, 5).double(), torch.randn(8, 3).double()
    y[:, :2] += x[:, :2]
    assert linear_cka([(x, y)]) == pytest.approx(slow_cka(x, y), rel=1e-9)


def test_streamed_batches_are_averaged_before_the_ratio():
    x, y = torch.randn(20, 6).double(), torch.randn(20, 6).double()
    y += x
    parts = [(x[start : start + 10], y[start : start + 10]) for start in (0, 10)]
    cross, left, right = (
        sum(slow_hsic(a @ a.T, b @ b.T) for a, b in chosen)
        for chosen in (parts, [(a, a) for a, _ in parts], [(b, b) for _, b in parts])
    )
    assert linear_cka(parts) == pytest.approx(cross / math.sqrt(left * right), rel=1e-9)


def test_agrees_with_ckatorch_for_many_examples():
    """The biased estimator converges to the debiased one when examples far outnumber features."""
    from ckatorch.core import cka_base

    x = torch.randn(2000, 4)
    y = x @ torch.randn(4, 4) + 0.5 * torch.randn(2000, 4)
    assert linear_cka([(x, y)]) == pytest.approx(float(cka_base(x, y)), abs=2e-3)


def test_invariances():
    x, y = torch.randn(30, 7), torch.randn(30, 9)
    y[:, :7] += x
    rotation, _ = torch.linalg.qr(torch.randn(9, 9))
    before = linear_cka([(x, y)])
    assert linear_cka([(x, 3 * y @ rotation + 5)]) == pytest.approx(before, abs=1e-5)
    assert linear_cka([(y, x)]) == pytest.approx(before, abs=1e-9)
    order = torch.randperm(30)
    assert linear_cka([(x[order], y[order])]) == pytest.approx(before, abs=1e-9)
    assert linear_cka([(x, x)]) == pytest.approx(1, abs=1e-9)
    # an invertible map that is no rotation does change it
    assert abs(linear_cka([(x, y @ torch.diag(torch.linspace(0.1, 3, 9)))]) - before) > 1e-3


def test_unrelated_wide_features_are_near_zero():
    """Where plain CKA would be near 1: many more features than examples."""
    assert abs(linear_cka([(torch.randn(60, 3, 30, 30), torch.randn(60, 2000))])) < 0.1


def test_dead_layer_and_small_batches():
    assert math.isnan(linear_cka([(torch.zeros(10, 4), torch.randn(10, 4))]))
    with pytest.raises(UserError, match="at least 4 examples"):
        linear_cka([(torch.randn(3, 4), torch.randn(3, 4))])
