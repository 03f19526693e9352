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
    np.testing.assert_allclose([found.average, *found.per_seed], factor)


def test_the_average_is_the_mean_of_the_log_ratio_over_the_range():
    plain = curve("finetune", [1, 4, 8, 40], [0.5, 0.7, 0.75, 0.8], taught=False)
    taught = curve("kd", [2, 3, 20], [0.6, 0.72, 0.78], taught=True)
    found = speed_up(plain, taught, "seconds")
    assert (found.low, found.high) == (0.6, 0.78)
    grid = np.linspace(0.6, 0.78, 20001)
    logs = [np.log(cost_at(one.costs["steps"][0], one.quality[0], grid)) for one in (plain, taught)]
    assert np.log(found.average) == pytest.approx((logs[0] - logs[1]).mean(), abs=1e-3)
    np.testing.assert_allclose(found.per_seed, found.average)


def test_one_common_quality_is_enough():
    plain, taught = curve("finetune", [6], [0.5], taught=False), curve("kd", [3, 4], [0.5, 0.6], taught=True)
    assert speed_up(plain, taught, "steps").average == pytest.approx(2)


def test_a_worse_budget_is_passed_over():
    plain = curve("finetune", [1, 2, 4], [0.5, 0.4, 0.9], taught=False)
    assert speed_up(plain, curve("kd", [1, 4], [0.5, 0.9], taught=True), "seconds").ratio == pytest.approx([1, 1])


def test_curves_that_do_not_overlap_have_no_speed_up():
    curves = curve("finetune", [1, 2], [0.5, 0.6], taught=False), curve("kd", [1, 2], [0.7, 0.8], taught=True)
    found = speed_up(*curves, "steps")
    assert (found.low, found.high) == (0.7, 0.6) and not len(found.quality)
    assert np.isnan([found.average, *found.per_seed]).all()
    assert efficiency.sentences([("magnitude", 0.9, curves)]) == [
        "At magnitude 0.9, no mean validation accuracy is reached by both kd and finetune at these budgets, so there "
        "is no speed-up to give."
    ]


def test_curves_that_meet_in_one_cost_only_are_said_to():
    """The longer budget of one took less time, which leaves that budget alone on its curve in seconds."""
    plain = curve("finetune", [1, 2], [0.5, 0.7], taught=False)
    taught = curve("kd", [1, 2], [0.6, 0.8], taught=True)
    plain.costs["seconds"], taught.costs["seconds"] = np.array([[1.0, 2.0]] * 2), np.array([[2.0, 1.0]] * 2)
    (said,) = efficiency.sentences([("magnitude", 0.9, (plain, taught))])
    assert "from 60.0% to 70.0% validation accuracy" in said
    assert "none in seconds of the recovery's steps, the teachers' answers included (in which the curves" in said
    rows = {row["cost"]: row["speed_up"] for row in efficiency.speed_up_rows([("magnitude", 0.9, (plain, taught))])}
    assert rows["seconds"] is None and rows["steps"] > 1


def test_what_is_compared():
    plain = curve("finetune", [1, 2], [0.5, 0.6], taught=False)
    taught = curve("kd", [1, 2], [0.5, 0.6], taught=True)
    other = curve("of one seed", [1, 2], [0.5, 0.6], taught=True, seeds=(0,))
    costs = dict(taught.costs, seconds=taught.costs["seconds"] * [[1, np.nan], [1, 1]])
    gaps = Curve("resumed", True, taught.seeds, taught.epochs, taught.quality, costs)
    found = speed_ups([plain, taught, other, gaps])
    assert [one.candidate for one in found] == ["kd"] * len(COSTS) + ["resumed"] * (len(COSTS) - 1)
    assert {one.cost for one in found if one.candidate == "resumed"} == set(COSTS) - {"seconds"}
    with pytest.raises(ValueError, match="seconds of finetune or resumed are not known"):
        speed_up(plain, gaps, "seconds")
    with pytest.raises(ValueError, match="has the seeds"):
        efficiency.speed_up(plain, other, "steps")
