"""Over floor and over control: slow loops, scipy, the logic of verdicts, gaps, and a simulation of known truth."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import optimize, stats

from pipeline import bias
from pipeline.bias import MEASURES, Floors, Measure, Pair, Predictions, over_control, over_floor, over_shared_floor
from pipeline.bias.floors import carried_by_class, sums_of
from pipeline.bias.measures import DenseNetworks
from pipeline.table import measured

RATIO = {"kind": "ratio", "margin": 1.5}
DIFFERENCE = {"kind": "difference", "margin": 0.01}
BY_CLASS = [name for name in MEASURES if MEASURES[name].by_class is not Measure.by_class]


def made_up(seed, seeds=5, effect=0.0, scatter=0.5):
    """Candidates [S] and floor [S, S] of a positive measure; NaN on the diagonal, as ``Floors.values`` has it."""
    generator = np.random.default_rng(seed)
    reference, network = generator.normal(0, scatter, (2, seeds))
    floor = reference[:, None] + network + generator.normal(0, scatter, (seeds, seeds))
    np.fill_diagonal(floor, np.nan)
    candidates = reference + effect + generator.normal(0, scatter * math.sqrt(2), seeds)
    return np.exp(candidates), np.exp(floor)


def slow_statistic(c, f, seeds):
    return sum(c[s] - sum(f[s][t] for t in seeds if t != s) / (len(seeds) - 1) for s in seeds) / len(seeds)


def slow_over_floor(c, f):
    """Estimate, low and high: the jackknife written out, with scipy's t interval."""
    seeds = range(len(c))
    left_out = [slow_statistic(c, f, [s for s in seeds if s != k]) for k in seeds]
    centre = sum(left_out) / len(c)
    error = math.sqrt((len(c) - 1) / len(c) * sum((each - centre) ** 2 for each in left_out))
    estimate = slow_statistic(c, f, list(seeds))
    return estimate, *stats.t.interval(0.95, len(c) - 1, loc=estimate, scale=error)


def told(found):
    return found.value, found.low, found.high


@pytest.mark.parametrize("seeds", [3, 4, 5, 10])
def test_over_floor_is_the_jackknife_written_out(seeds):
    c, f = made_up(seeds, seeds)
    assert told(over_floor(c, f, **RATIO)) == pytest.approx(np.exp(slow_over_floor(np.log(c), np.log(f))), rel=1e-12)
    assert told(over_floor(c, f, **DIFFERENCE)) == pytest.approx(slow_over_floor(c, f), rel=1e-12)


def test_where_the_floor_is_a_sum_of_two_effects_the_interval_is_the_one_of_t_for_what_is_left():
    # Without noise of the pair the jackknife finds the effects of each seed exactly: c less both is a plain sample.
    generator = np.random.default_rng(3)
    reference, network, own = generator.normal(size=(3, 7))
    found = over_floor(reference + own, reference[:, None] + network, **DIFFERENCE)
    known = stats.ttest_1samp(own - network, 0)
    assert found.value == pytest.approx((own - network).mean())
    assert (found.low, found.high) == pytest.approx(tuple(known.confidence_interval(0.95)))


def test_over_control_is_the_paired_t_test():
    generator = np.random.default_rng(0)
    c, k = np.exp(generator.normal(0.5, 0.4, (2, 6)))
    for how, scale, back in ((RATIO, np.log, np.exp), (DIFFERENCE, np.asarray, np.asarray)):
        test = stats.ttest_rel(scale(c), scale(k))
        interval = test.confidence_interval(0.95)
        expected = (scale(c) - scale(k)).mean(), interval.low, interval.high
        assert told(over_control(c, k, **how)) == pytest.approx(back(expected))


def test_over_a_shared_floor_is_the_interval_of_welch():
    generator = np.random.default_rng(1)
    c, f = np.exp(generator.normal(0.5, 0.4, 3)), np.exp(generator.normal(0, 0.2, 4))
    for how, scale, back in ((RATIO, np.log, np.exp), (DIFFERENCE, np.asarray, np.asarray)):
        interval = stats.ttest_ind(scale(c), scale(f), equal_var=False).confidence_interval(0.95)
        expected = scale(c).mean() - scale(f).mean(), interval.low, interval.high
        assert told(over_shared_floor(c, f, **how)) == pytest.approx(back(expected))


def test_a_single_candidate_is_held_against_one_more_dense_network():
    floor = np.array([0.2, 0.3, 0.7, 0.4])
    found = over_shared_floor([0.9], floor, **DIFFERENCE)
    error = floor.std(ddof=1) * math.sqrt(1 + 1 / 4)
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 3, loc=0.9 - floor.mean(), scale=error))
    assert "one candidate" in found.note


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_detectable_is_the_effect_that_the_noncentral_t_finds_in_80_of_100(seeds):
    c, k = np.random.default_rng(seeds).normal(size=(2, seeds))
    found, freedom = over_control(c, k, **DIFFERENCE), seeds - 1
    critical = stats.t.ppf(0.975, freedom)
    size = optimize.brentq(lambda nc: stats.nct.sf(critical, freedom, nc) - 0.8, 0, 60)
    shrinks = stats.chi(freedom).mean() / math.sqrt(freedom)
    assert found.detectable == pytest.approx(size * stats.sem(c - k) / shrinks, rel=1e-6)


def test_seeds_needed_is_the_first_number_that_settles_it():
    for seed in range(40):
        c, f = made_up(seed, effect=0.2)
        found = over_floor(c, f, **RATIO)
        if found.verdict != "cannot tell":
            assert found.seeds_needed is None
            continue
        estimate, spread = math.log(found.value), math.log(found.high / found.low) / 2 / stats.t.ppf(0.975, 4)
        spread *= math.sqrt(5)

        def settled(many, estimate=estimate, spread=spread):
            half = stats.t.ppf(0.975, many - 1) * spread / math.sqrt(many)
            return abs(estimate) > half or abs(estimate) + half <= math.log(1.5)

        assert found.seeds_needed == next((many for many in range(6, 1001) if settled(many)), None)


# The logic of verdicts

positive = st.floats(0.01, 100)
samples = st.lists(st.tuples(positive, positive), min_size=2, max_size=8)
betters = st.sampled_from(["lower", "higher", "near 1", "either way"])


def unlike(pairs):
    differences = np.log([c for c, _ in pairs]) - np.log([k for _, k in pairs])
    return np.ptp(differences) > 1e-6


@given(samples, st.floats(1.01, 10), betters)
def test_a_verdict_says_where_the_interval_lies(pairs, margin, better):
    assume(unlike(pairs))
    c, k = zip(*pairs, strict=True)
    found = over_control(c, k, kind="ratio", margin=margin, better=better)
    inside = 1 / margin <= found.low and found.high <= margin
    expected = {
        "above": found.low > 1,
        "below": found.high < 1,
        "equivalent": found.low <= 1 <= found.high and inside,
        "cannot tell": found.low <= 1 <= found.high and not inside,
    }
    assert [word for word, holds in expected.items() if holds] == [found.verdict]
    no_worse = {"lower": found.high <= margin, "higher": found.low >= 1 / margin}.get(better, inside)
    assert found.no_worse is bool(no_worse)
    assert (found.seeds_needed is None) or (found.verdict == "cannot tell" and found.seeds_needed > len(pairs))
    assert found.detectable > 1


@given(samples, st.floats(1.01, 5))
def test_the_inverted_ratio_has_the_inverted_verdict(pairs, margin):
    assume(unlike(pairs))
    c, k = zip(*pairs, strict=True)
    one, other = over_control(c, k, kind="ratio", margin=margin), over_control(k, c, kind="ratio", margin=margin)
    assert (one.value, one.low, one.high) == pytest.approx((1 / other.value, 1 / other.high, 1 / other.low))
    # An end that meets 1 or the margin to the last bit may round to either side.
    ends = np.abs(np.log([one.low, one.high]))
    assume((np.abs(ends) > 1e-9).all() and (np.abs(ends - math.log(margin)) > 1e-9).all())
    swapped = {"above": "below", "below": "above"}
    assert one.verdict == swapped.get(other.verdict, other.verdict)


@given(samples, st.floats(1.01, 5), st.floats(1, 3))
def test_with_a_wider_margin_no_worse_and_equivalent_stay(pairs, margin, wider):
    assume(unlike(pairs))
    c, k = zip(*pairs, strict=True)
    one, other = (over_control(c, k, kind="ratio", margin=each) for each in (margin, margin * wider))
    assert other.no_worse or not one.no_worse
    assert other.verdict == one.verdict or (one.verdict, other.verdict) == ("cannot tell", "equivalent")


@given(st.integers(0, 10_000), st.floats(1e-3, 1e6), st.randoms(use_true_random=False))
def test_neither_the_unit_nor_the_order_of_seeds_matters(seed, unit, random):
    c, f = made_up(seed, 6, effect=0.3)
    plain = over_floor(c, f, **RATIO)
    order = random.sample(range(6), 6)
    for found in (over_floor(unit * c, unit * f, **RATIO), over_floor(c[order], f[np.ix_(order, order)], **RATIO)):
        assert told(found) == pytest.approx(told(plain))
        assert found.detectable == pytest.approx(plain.detectable)
        assert found.verdict == plain.verdict


@given(st.integers(0, 10_000), st.floats(-10, 10))
def test_a_shift_of_all_values_changes_no_difference(seed, shift):
    c, f = made_up(seed, 5)
    plain, moved = over_floor(c, f, **DIFFERENCE), over_floor(c + shift, f + shift, **DIFFERENCE)
    assert told(moved) == pytest.approx(told(plain), abs=1e-9)


def test_without_a_margin_nothing_is_equivalent_and_no_worse_is_unknown():
    found = over_control([1.0, 1.01, 0.99, 1.0], [1.0, 1.0, 1.0, 1.01], kind="ratio")
    assert (found.verdict, found.no_worse) == ("cannot tell", None)
    assert over_control([1.0, 1.01, 0.99, 1.0], [1.0, 1.0, 1.0, 1.01], **RATIO).verdict == "equivalent"


# Gaps

NO_FLOOR = "no floor: it takes 3 dense networks with values, and here are 2"


@pytest.mark.parametrize("gap", [None, math.nan, 0.0])
def test_a_seed_without_a_value_takes_no_part_and_is_named(gap):
    c, f = made_up(0, 5)
    values = [*c[:3], gap, c[4]]
    found = over_floor(values, f, seeds=[10, 11, 12, 13, 14], **RATIO)
    rest = [0, 1, 2, 4]
    assert told(found) == told(over_floor(c[rest], f[np.ix_(rest, rest)], **RATIO))
    assert found.seeds == 4
    assert found.note == "left out: seed 13 (has no value, or one of 0, which has no logarithm)"
    assert over_control(values, c[::-1], **RATIO).note == found.note.replace("13", "3")


def test_a_reference_without_a_floor_does_not_take_the_others_along():
    c, f = made_up(1, 5)
    f[2] = np.nan
    found, rest = over_floor(c, f, **RATIO), [0, 1, 3, 4]
    assert told(found) == told(over_floor(c[rest], f[np.ix_(rest, rest)], **RATIO))
    assert "seed 2" in found.note


def test_zero_is_a_value_of_a_difference():
    found = over_control([0.0, 0.01, 0.02], [0.0, 0.0, 0.0], **DIFFERENCE)
    assert (found.seeds, found.value, found.note) == (3, pytest.approx(0.01), "")


def test_two_seeds_make_no_floor():
    c, f = made_up(0, 2)
    found = over_floor(c, f, **RATIO)
    assert (found.value, found.low, found.verdict, found.no_worse, found.note) == (None, None, "", None, NO_FLOOR)
    c, f = made_up(0, 3)
    assert over_floor([*c[:2], None], f, **RATIO).note.startswith(NO_FLOOR + "; left out: seed 2")


def test_too_few_networks_beside_a_shared_reference_make_no_floor():
    assert over_shared_floor([1.0, 2.0], [1.0], **RATIO).note == NO_FLOOR
    assert over_shared_floor([None], [1.0, 2.0], **RATIO).note.startswith("no candidate has a value; left out: candid")
    found = over_shared_floor([1.0, 2.0], [1.0, 0.0, 2.0], **RATIO)
    assert found.note.startswith("left out: network 2 of the floor")


def test_one_seed_beside_its_control_has_no_interval():
    found = over_control([2.0], [1.0], **RATIO)
    assert (found.verdict, found.note) == ("", "no interval: it takes two seeds with values, and here are 1")


def test_equal_differences_are_not_taken_for_certainty():
    found = over_control([2.0, 4.0, 8.0], [1.0, 2.0, 4.0], **RATIO)
    assert (found.value, found.low, found.verdict) == (pytest.approx(2), None, "")
    assert found.note == "no interval: all seeds differ by the same amount"
    same = np.ones((4, 4))
    assert over_floor(np.full(4, 3.0), same, **RATIO).verdict == ""


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(ValueError, match="no way to compare"):
        over_control([1.0, 2.0], [1.0, 2.0], kind="share")
    with pytest.raises(ValueError, match="floor"):
        over_floor([1.0, 2.0, 3.0], np.ones((2, 2)), **RATIO)


# Networks


def networks(many, *, seed=0, classes=4, examples=400, wrong=0.2):
    generator = np.random.default_rng(seed)
    labels = np.arange(examples) % classes
    found = []
    for _ in range(many):
        answers = np.where(generator.random(examples) < wrong, generator.integers(0, classes, examples), labels)
        found.append(Predictions(labels, answers))
    return found


def counts_of(network, classes=4):
    """Lists of false positives and false negatives, counted one by one."""
    claimed, missed = [0] * classes, [0] * classes
    for label, said in zip(network.labels, network.predictions, strict=True):
        if label != said:
            claimed[said] += 1
            missed[label] += 1
    return claimed, missed


def test_an_audit_holds_each_network_against_its_own_row_of_the_floor():
    dense, pruned = networks(5), networks(5, seed=1, wrong=0.3)
    floors = bias.floor(dense)
    found = bias.audit(references=dense, candidates=pruned, floor=floors, measures=["cev"], resamples=100)
    rates = [bias.rates(each.labels, each.predictions) for each in dense]
    after = [bias.rates(each.labels, each.predictions) for each in pruned]
    c = [math.log(bias.cev(a, b).value) for a, b in zip(rates, after, strict=True)]
    f = [[math.log(bias.cev(a, b).value) if a is not b else math.nan for b in rates] for a in rates]
    assert told(found.measures["cev"].over_floor) == pytest.approx(np.exp(slow_over_floor(c, f)))


def test_a_reference_without_errors_is_left_out_by_name():
    dense, pruned = networks(5), networks(5, seed=1, wrong=0.3)
    perfect = Predictions(dense[0].labels, dense[0].labels.copy())
    dense[1] = perfect
    floors = bias.floor(dense)
    assert np.isnan(floors.values["cev"][1]).all()
    assert np.isfinite(floors.values["cev"][0, 1])
    others = [each for i, each in enumerate(dense) if i != 1]
    rest = bias.audit(
        references=others, candidates=[*pruned[:1], *pruned[2:]], floor=bias.floor(others), measures=[], resamples=100
    )
    values = [*rest.measures["cev"].trials]
    found = over_floor([values[0], None, *values[1:]], floors.values["cev"], **RATIO)
    assert told(found) == told(rest.measures["cev"].over_floor)
    assert found.note.startswith("left out: seed 1 ")


def test_common_denominators_against_a_slow_loop():
    dense, candidate = networks(3), networks(1, seed=5, wrong=0.35)[0]
    pair = Pair(dense[0], candidate, 4, dense[0].labels, 4, dense=DenseNetworks(tuple(dense)))
    every, before, after = [counts_of(each) for each in dense], counts_of(dense[0]), counts_of(candidate)
    d = [
        [100 * (after[k][c] - before[k][c]) / (sum(each[k][c] for each in every) / 3) for c in range(4)] for k in (0, 1)
    ]
    centre = [sum(row) / 4 for row in d]
    expected = {
        "cev_common": sum((d[k][c] - centre[k]) ** 2 for k in (0, 1) for c in range(4)) / 8,
        "sde_common": sum(abs(d[0][c] - d[1][c]) / math.sqrt(2) for c in range(4)) / 4,
    }
    for name, value in expected.items():
        measure = MEASURES[name]()
        assert float(measure.value(sums_of(pair, [measure]))) == pytest.approx(value)


def test_with_one_dense_network_the_common_denominator_is_its_own():
    dense, candidate = networks(2, wrong=0.3)
    for known in (None, DenseNetworks((dense,))):
        pair = Pair(dense, candidate, 4, dense.labels, 4, dense=known)
        for name in ("cev", "sde"):
            own, common = MEASURES[name](), MEASURES[f"{name}_common"]()
            sums = sums_of(pair, [own, common])
            assert float(common.value(sums)) == pytest.approx(float(own.value(sums)))


@pytest.mark.parametrize("name", BY_CLASS)
def test_what_the_classes_add_is_the_value(name):
    reference, candidate = networks(2)
    # One class that the reference never misses: it is left out and adds nothing.
    reference = Predictions(reference.labels, np.where(reference.labels == 2, 2, reference.predictions))
    measure, pair = MEASURES[name](), Pair(reference, candidate, 4, reference.labels, 4)
    sums = sums_of(pair, [measure])
    added = measure.by_class(sums)
    assert added.shape == (4,)
    assert (added >= 0).all()
    assert added[2] == 0
    assert added.sum() == pytest.approx(float(measure.value(sums)))
    shares = carried_by_class(measure, [sums, sums_of(Pair(candidate, reference, 4, reference.labels, 4), [measure])])
    assert shares.sum() == pytest.approx(1)


def test_what_is_carried_by_class_is_said_by_floor_and_audit():
    dense, pruned = networks(3), networks(3, seed=2)
    floors = bias.floor(dense)
    found = bias.audit(references=dense, candidates=pruned, floor=floors, resamples=100)
    assert set(BY_CLASS) <= floors.carried.keys()
    for name in BY_CLASS:
        assert sum(floors.carried[name].values()) == pytest.approx(1)
        shares = list(found.measures[name].carried_by.values())
        assert sum(shares) == pytest.approx(1)
        assert shares == sorted(shares, reverse=True)


def test_the_floor_that_is_read_back_knows_no_layers():
    floors = bias.floor(networks(3))
    more = [
        measured("floor", "cka", 0.9, layer="mean", reference_layer="mean", seed=seed, reference_seed=9)
        for seed in (0, 1)
    ]
    again = Floors.from_rows(more + floors.long_rows([0, 1, 2]))
    assert again.networks == 3
    assert again.values.keys() == floors.values.keys()
    assert all(np.array_equal(again.values[name], floors.values[name], equal_nan=True) for name in floors.values)


# Known truth


def test_without_effect_few_studies_are_called_anything():
    # 600 studies of five seeds that share dense networks: 95 % less three standard errors is 0.923.
    found = [over_floor(*made_up(seed), **RATIO) for seed in range(600)]
    assert np.mean([each.low <= 1 <= each.high for each in found]) > 0.923
    assert np.mean([each.verdict == "above" for each in found]) < 0.05
    assert np.mean([each.verdict == "equivalent" for each in found]) < 0.1


def test_a_factor_of_four_is_seen_and_never_called_equivalent():
    found = [over_floor(*made_up(seed, 8, effect=math.log(4)), **RATIO) for seed in range(300)]
    assert np.mean([each.low <= 4 <= each.high for each in found]) > 0.912
    assert np.mean([each.verdict == "above" for each in found]) > 0.9
    assert not any(each.verdict == "equivalent" or each.no_worse for each in found)
