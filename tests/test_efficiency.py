"""Pareto curves and speed-ups, against definitions written as loops and cases whose answer is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline import efficiency
from pipeline.efficiency import COSTS, Curve, cost_at, pareto, speed_up, speed_ups

points = st.integers(1, 8).flatmap(
    lambda n: st.tuples(
        arrays.arrays(float, n, elements=st.integers(1, 6).map(float)),
        arrays.arrays(float, n, elements=st.integers(0, 5).map(lambda v: v / 5)),
    )
)


@given(points)
def test_pareto_is_its_definition(values):
    cost, quality = values
    best = {
        (c, q)
        for c, q in zip(cost, quality, strict=True)
        if not any((c2 <= c and q2 > q) or (c2 < c and q2 >= q) for c2, q2 in zip(cost, quality, strict=True))
    }
    assert list(zip(*pareto(cost, quality), strict=True)) == sorted(best)


@given(points, st.floats(0, 1))
def test_cost_lies_on_the_curve_and_is_never_extrapolated(values, wanted):
    cost, quality = pareto(*values)
    found = cost_at(*values, np.array([*quality, wanted, quality[0] - 1e-9, quality[-1] + 1e-9]))
    np.testing.assert_allclose(found[: len(cost)], cost, rtol=1e-12)
    assert np.isnan(found[-2:]).all()
    assert np.isnan(found[-3]) == (not quality[0] <= wanted <= quality[-1])
    if not np.isnan(found[-3]):
        assert cost[quality <= wanted].max() * (1 - 1e-12) <= found[-3] <= cost[quality >= wanted].min() * (1 + 1e-12)


def test_between_points_log_cost_is_linear():
    assert cost_at([1, 16], [0.5, 0.9], np.array([0.7])) == pytest.approx([4.0])


def curve(title, cost, quality, *, taught, seeds=(0, 1)):
    shape = len(seeds), np.shape(cost)[-1]
    cost, quality = (np.broadcast_to(np.asarray(part, float), shape) for part in (cost, quality))
    return Curve(title, taught, seeds, tuple(range(1, cost.shape[1] + 1)), quality, dict.fromkeys(COSTS, cost))


@given(st.floats(0.1, 10))
def test_the_same_curve_at_another_price_has_that_speed_up_everywhere(factor):
    quality = [[0.5, 0.7, 0.8], [0.55, 0.7, 0.85]]
    plain = curve("finetune", [1, 2, 4], quality, taught=False)
    cheap = curve("kd", np.array([1, 2, 4]) / factor, quality, taught=True)
    found = speed_up(plain, cheap, "steps")
    np.testing.assert_allclose(found.quality, np.mean(quality, 0))
    np.testing.assert_allclose(found.ratio, factor)
    np.testing.assert_allclose(found.per_seed[np.isfinite(found.per_seed)], factor)
    assert np.isnan(found.per_seed[1, 0]), "seed 1 begins above the lowest mean"


def test_a_worse_budget_is_passed_over():
    plain = curve("finetune", [1, 2, 4], [0.5, 0.4, 0.9], taught=False)
    assert speed_up(plain, curve("kd", [1, 4], [0.5, 0.9], taught=True), "seconds").ratio == pytest.approx([1, 1])


def test_curves_that_do_not_overlap_have_no_speed_up():
    found = speed_up(
        curve("finetune", [1, 2], [0.5, 0.6], taught=False), curve("kd", [1, 2], [0.7, 0.8], taught=True), "steps"
    )
    assert (found.low, found.high) == (0.7, 0.6) and not len(found.quality) and found.per_seed.shape == (2, 0)


def test_what_is_compared():
    plain = curve("finetune", [1, 2], [0.5, 0.6], taught=False)
    taught = curve("kd", [1, 2], [0.5, 0.6], taught=True)
    other = curve("of one seed", [1, 2], [0.5, 0.6], taught=True, seeds=(0,))
    costs = dict(taught.costs, seconds=taught.costs["seconds"] * [[1, np.nan], [1, 1]])
    gaps = Curve("resumed", True, taught.seeds, taught.epochs, taught.quality, costs)
    found = speed_ups([plain, taught, other, gaps])
    assert [one.candidate for one in found] == ["kd"] * 3 + ["resumed"] * 2
    assert {one.cost for one in found if one.candidate == "resumed"} == set(COSTS) - {"seconds"}
    with pytest.raises(ValueError, match="seconds of finetune or resumed are not known"):
        speed_up(plain, gaps, "seconds")
    with pytest.raises(ValueError, match="has the seeds"):
        efficiency.speed_up(plain, other, "steps")
