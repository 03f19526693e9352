"""Paired tests and correlations against scipy, the correction for many tests against its definition."""

import math
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.statistics import Claim, Place, compare, correlate, holm, paired
from pipeline.table import measured, read_rows

SEEDS = (0, 1, 2, 3)
HOW = {"cev": "ratio", "sde": "ratio"}
HEADLINE = ("accuracy", "cev", "sde")
PUBLISHED = Path(__file__).parents[1] / "results" / "published"


def study(values, pruning="magnitude", sparsity=0.9):
    """Rows of the long table; ``values``: recovery -> CEV per seed."""
    return [
        measured("bias", name, value, pruning=pruning, sparsity_asked=sparsity, recovery=recovery, seed=seed)
        for recovery, cevs in values.items()
        for seed, cev in enumerate(cevs)
        for name, value in (
            ("cev", cev),
            ("sde", None if cev is None else cev**0.5),
            ("accuracy", 0.9 + 0.001 * seed * len(recovery)),
        )
    ]


def slow_holm(p):
    """The definition: the k-th smallest times (n - k + 1), never below a smaller one's, at most 1."""
    corrected = []
    for one in p:
        candidates = [min(1, (len(p) - sum(q < other for q in p)) * other) for other in p if other <= one]
        corrected.append(max(candidates))
    return corrected


@given(st.lists(st.floats(1e-9, 1), min_size=1, max_size=12, unique=True))
def test_holm_follows_its_definition(p):
    assert holm(p) == pytest.approx(slow_holm(p))


def test_holm_of_a_known_case():
    # The step-down by hand: 5 * 0.01, 4 * 0.02, 3 * 0.03, then 2 * 0.04 and 0.05 raised to what came before.
    assert holm([0.04, 0.01, 0.05, 0.02, 0.03]) == pytest.approx([0.09, 0.05, 0.09, 0.08, 0.09])
    assert holm([]).shape == (0,)


@given(st.lists(st.tuples(st.floats(1, 1e6), st.floats(1, 1e6)), min_size=3, max_size=8))
def test_a_ratio_is_the_paired_t_test_of_logarithms(pairs):
    row = paired(pairs, "ratio")
    first, second = np.log(np.array(pairs)).T
    if np.ptp(first - second) <= 1e-12:
        assert row["p"] is None
        return
    expected = stats.ttest_rel(first, second)
    assert row["p"] == pytest.approx(expected.pvalue)
    assert np.log(row["value"]) == pytest.approx((first - second).mean(), abs=1e-9)
    interval = expected.confidence_interval(0.95)
    assert np.log([row["low"], row["high"]]) == pytest.approx([interval.low, interval.high], abs=1e-9)
    turned = paired([(b, a) for a, b in pairs], "ratio")
    assert turned["value"] == pytest.approx(1 / row["value"]) and turned["p"] == pytest.approx(row["p"])


def test_accuracy_is_a_difference():
    row = paired([(0.92, 0.90), (0.93, 0.90), (0.95, 0.91)], "difference")
    assert row["value"] == pytest.approx(0.03)
    # sd 0.01, t(0.975, 2) = 4.302653: half a width of 0.024841
    assert (row["low"], row["high"]) == pytest.approx((0.03 - 0.0248414, 0.03 + 0.0248414), abs=1e-6)


@pytest.mark.parametrize(
    ("pairs", "value"),
    [
        ([], None),
        ([(2.0, 1.0)], None),
        ([(2.0, 1.0), (0.0, 1.0), (3.0, 1.0)], None),  # no logarithm
        ([(2.0, 1.0), (4.0, 2.0), (6.0, 3.0)], 2.0),  # no spread: a value, but no interval that could be believed
    ],
)
def test_what_cannot_be_tested_has_no_p(pairs, value):
    row = paired(pairs, "ratio")
    assert row["value"] == value if value is None else row["value"] == pytest.approx(value)
    assert row["low"] is row["high"] is row["p"] is None


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_seeds_are_paired_in_every_measure_and_families_corrected_together(number, seeds):
    """Whatever the order of the rows, each p is scipy's of the same seeds, and Holm's of its whole family."""
    generator = np.random.default_rng(number)
    places = [("magnitude", 0.9), ("magnitude", 0.5), ("dense", 0.0)]
    values = {
        (measure, *place, recovery): generator.lognormal(2, 1, seeds)
        for measure in (*HEADLINE, "churn")
        for place in places
        for recovery in ("none", "finetune", "kd", "at")
    }
    rows = [
        measured("bias", measure, value, pruning=pruning, sparsity_asked=sparsity, recovery=recovery, seed=7 + seed)
        for (measure, pruning, sparsity, recovery), of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    ]
    generator.shuffle(rows)
    claims = [
        Claim("cev", "kd", "finetune", Place("magnitude", 0.9)),
        Claim("churn", "finetune", "kd", Place("dense", 0.0)),
        Claim("accuracy", "at", "none", Place("magnitude", 0.5)),
    ]
    found = compare(rows, HOW, explored=HEADLINE, claims=claims)
    declared = [row for row in found if row["family"] == "declared"]
    explored = [row for row in found if row["family"] == "exploratory"]
    assert found == declared + explored
    asked = [(one.measure, one.at.pruning, one.at.sparsity, one.first, one.second) for one in claims]
    keys = ("measure", "pruning", "sparsity", "first", "second")
    assert [tuple(row[key] for key in keys) for row in declared] == asked
    # Three measures, three places, three pairs of what trains; one of them was asked beforehand.
    pairs = {(*(row[key] for key in keys[:3]), frozenset((row["first"], row["second"]))) for row in explored}
    every = {
        (measure, *place, frozenset(pair))
        for measure in HEADLINE
        for place in places
        for pair in combinations(("finetune", "kd", "at"), 2)
    }
    assert len(explored) == len(pairs) == 26 and every - pairs == {(*asked[0][:3], frozenset(asked[0][3:]))}
    for row in found:
        place = row["measure"], row["pruning"], row["sparsity"]
        first, second = (values[*place, row[name]] for name in ("first", "second"))
        if row["measure"] in HOW:
            assert row["kind"] == "ratio"
            first, second = np.log(first), np.log(second)
        else:
            assert row["kind"] == "difference"
        assert row["p"] == pytest.approx(stats.ttest_rel(first, second).pvalue) and row["seeds"] == seeds
        higher = {"higher": True, "lower": False}.get(row["verdict"])
        assert higher is None or higher == (first.mean() > second.mean())
    for family in (declared, explored):
        assert [row["p_corrected"] for row in family] == pytest.approx(slow_holm([row["p"] for row in family]))
        assert all(row["family_size"] == len(family) for row in family)
        assert all((row["verdict"] != "cannot tell") == (row["p_corrected"] < 0.05) for row in family)


def published(study):
    """The rows of a published study's networks, in CEV, SDE and accuracy."""
    return [
        measured("bias", name, float(row[name]), seed=int(row["seed"]), sparsity_asked=float(row["sparsity_asked"]))
        | {"pruning": row["pruning"], "recovery": row["recovery"]}
        for row in read_rows(PUBLISHED / study / "runs.csv")
        for name in HEADLINE
        if row[name]
    ]


@pytest.mark.parametrize(
    "study,measure,pruning,within,together",
    [
        ("mnist5k_claim", "sde", "channels", 0.047, 0.12),
        ("mnist5k_claim", "accuracy", "magnitude", 0.023, 0.082),
        ("cifar10_jpeg", "cev", "dense", 0.022, 0.068),
        ("cifar10_jpeg", "cev", "magnitude", 0.022, 0.059),
    ],
)
def test_published_p_once_corrected_within_a_measure_and_now_together(study, measure, pruning, within, together):
    """The numbers that the findings gave, and what becomes of them in one family."""
    place = {"measure": measure, "pruning": pruning, "sparsity": 0.0 if pruning == "dense" else 0.9}
    for explored, p in ((measure,), within), (HEADLINE, together):
        rows = compare(published(study), HOW, explored=explored)
        (row,) = [row for row in rows if row.items() >= place.items()]
        assert float(f"{row['p_corrected']:.2g}") == p
    assert row["verdict"] == "cannot tell" and row["family_size"] == (15 if study == "mnist5k_claim" else 9)


def test_what_stands_of_the_published_claim_when_it_is_declared():
    claims = [Claim("sde", "kd", "finetune", Place("channels", sparsity)) for sparsity in (0.9, 0.95)]
    first, second, *explored = compare(published("mnist5k_claim"), HOW, explored=HEADLINE, claims=claims)
    assert first["p_corrected"] == pytest.approx(2 * 0.0094265, rel=1e-4) and first["verdict"] == "higher"
    assert second["p_corrected"] == pytest.approx(0.0547763, rel=1e-4) and second["verdict"] == "cannot tell"
    assert len(explored) == 13 and [row["verdict"] for row in explored].count("lower") == 1  # accuracy at sparsity 0


def test_missing_values_leave_their_seed_out():
    runs = study({"finetune": [100.0, None, 300.0, 90.0], "kd": [50.0, 60.0, 100.0, 80.0]})
    (row,) = compare(runs, HOW, explored=["cev"])
    assert row["seeds"] == 3
    assert (row["first"], row["second"]) == ("kd", "finetune")
    assert row["value"] == pytest.approx((1 / 2 * 1 / 3 * 8 / 9) ** (1 / 3))


@pytest.mark.slow
def test_noise_is_called_a_difference_no_more_often_than_promised():
    """200 studies of five equal recoveries: any difference at all, in any measure, in at most about 5 % of them."""
    generator = np.random.default_rng(1)
    wrong = 0
    for _ in range(200):
        runs = [
            measured("bias", name, value, pruning="m", sparsity_asked=0.9, recovery=recovery, seed=seed)
            for name in HEADLINE
            for recovery in "abcde"
            for seed, value in enumerate(generator.lognormal(7, 0.5, len(SEEDS)))
        ]
        rows = compare(runs, HOW | {"accuracy": "ratio"}, explored=HEADLINE)
        assert len(rows) == len(HEADLINE) * len(list(combinations("abcde", 2)))
        wrong += any(row["verdict"] != "cannot tell" for row in rows)
    assert wrong <= 20  # 10 expected at most; 20 lies beyond three standard errors


def test_what_is_not_shown_is_not_compared_and_what_has_no_values_is_told_so():
    values = {"finetune": [1.0, 2.0, 4.0], "kd": [3.0, 2.0, 5.0]}
    runs = [
        measured("bias", name, value + shift, pruning="m", sparsity_asked=0.5, recovery=recovery, seed=seed)
        for name, shift in (("anything", 0.0), ("other", -10.0), ("hidden", 1.0))
        for recovery, of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    ]
    means = [
        measured("bias", name, 1.0, pruning="m", sparsity_asked=0.5, recovery=recovery, low=0.5, high=2.0)
        for name in ("anything", "only_over_seeds")
        for recovery in values
    ]
    how, explored = {"anything": "ratio"}, ["anything", "other", "only_over_seeds"]
    first, second = compare(means + runs, how, explored=explored)
    assert (first["measure"], first["kind"], second["measure"], second["kind"]) == (
        *("anything", "ratio"),
        *("other", "difference"),
    )
    assert first["seeds"] == second["seeds"] == 3
    assert first["value"] == pytest.approx((3 * 1 * 5 / 4) ** (1 / 3))
    assert second["value"] == pytest.approx(1.0)
    assert second["p"] == pytest.approx(stats.ttest_rel([3, 2, 5], [1, 2, 4]).pvalue)
    (asked, *_) = compare(runs, how, explored=explored, claims=[Claim("top5", "kd", "finetune", Place("m", 0.5))])
    assert (asked["seeds"], asked["family_size"], asked["verdict"]) == (0, 0, "cannot tell")
    assert asked["value"] is asked["p"] is asked["p_corrected"] is None
    with pytest.raises(ValueError, match="'quotient' is no way to compare"):
        compare(runs, {"anything": "quotient"}, explored=explored)


def test_holm_leaves_out_what_was_not_tested():
    assert holm([0.01, 0.04, np.nan, 0.03]) == pytest.approx([0.03, 0.06, np.nan, 0.06], nan_ok=True)
    assert np.isnan(holm([np.nan, np.nan])).all()


def test_scipy_stats_is_loaded_by_whoever_tests_only():
    code = "import sys, pipeline.statistics, pipeline.bias; assert 'scipy.stats' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_correlations_against_scipy():
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


def test_undefined_correlation_is_counted():
    pearson, _ = correlate(np.array([1, 2, np.nan, 3, 4, 5.0]), np.array([1, 2, 3, np.nan, 3, 6.0]))
    assert (pearson["n"], pearson["left_out"]) == (4, 2) and math.isfinite(pearson["value"])
    for x in (np.array([1.0, 2, 3]), np.array([2.0, 2, 2, 2, 2])):
        for record in correlate(x, np.arange(len(x), dtype=float)):
            assert math.isnan(record["value"]) and math.isnan(record["p"]) and record["n"] == len(x)
