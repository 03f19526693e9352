"""The measures: published numbers, exact fractions, slow loops, properties, resampling and bad input."""

import contextlib
import csv
import itertools
import math
import warnings
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline import bias
from pipeline.bias import MEASURES, Pair, Predictions, Rates, Table, cev, rates, rates_from_confusion, sde
from pipeline.groups import Column
from pipeline.registry import UserError
from pipeline.statistics import holm
from pipeline.table import read_long, select, write_long

PUBLISHED = Path(__file__).parent / "data"


def network(seed, *, labels, classes, wrong=0.3, logits=False, source="network"):
    """A made-up classifier: right but for a share of examples that it answers at random."""
    generator = np.random.default_rng(seed)
    answers = np.where(generator.random(len(labels)) < wrong, generator.integers(0, classes, len(labels)), labels)
    if not logits:
        return Predictions(labels, answers, source=source)
    scores = generator.normal(size=(len(labels), classes)).astype(np.float32)
    scores[np.arange(len(labels)), answers] += 4
    return Predictions.from_logits(labels, scores, source=source)


def groups_of(examples):
    """A group of three for each example, the last one small."""
    return np.random.default_rng(11).choice(3, examples, p=[0.5, 0.4, 0.1])


def pair_of(reference, candidate, classes, groups=None):
    groups = groups_of(len(reference.labels)) if groups is None else groups
    return Pair(reference, candidate, classes, reference.labels, classes, groups, 3)


# What a network has without another.
ALONE = {"accuracy", "calibration_error", "recall_range", "recall_variance", "top5_accuracy", "worst_recall"}
ALONE |= {"demographic_parity_difference", "equal_opportunity_difference", "equalized_odds_difference"}
ALONE |= {"equalized_odds_ratio", "worst_group_accuracy"}
WITHOUT_GROUPS = {name for name in MEASURES if not MEASURES[name].needs_groups}

LABELS = np.random.default_rng(0).integers(0, 4, 400)
DENSE = network(1, labels=LABELS, classes=4, logits=True, source="dense")
PRUNED = [network(seed, labels=LABELS, classes=4, wrong=0.4, logits=True, source=f"pruned{seed}") for seed in (2, 3, 4)]


# Published and exact numbers


def test_all_published_values_of_simon_says():
    with np.load(PUBLISHED / "simon_says_cifar100.npz") as archive:
        arrays = dict(archive)
    dense = rates(arrays["labels"], arrays["dense_predictions"])
    with (PUBLISHED / "simon_says_cifar100_published.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    for row in rows:
        picked = (arrays["method"] == row["method"]) & np.isclose(arrays["sparsity"], float(row["sparsity"]))
        assert picked.sum() == int(row["trials"])
        counts = zip(arrays["false_positives"][picked], arrays["false_negatives"][picked], strict=True)
        trials = [Rates.from_counts(positives, negatives, dense.support) for positives, negatives in counts]
        assert f"{float(cev(dense, trials, average='rates')):.6f}" == row["cev"]
        assert f"{float(sde(dense, trials, average='rates')):.6f}" == row["sde"]


def test_three_classes_by_hand():
    before = np.array([[8, 1, 1], [2, 6, 2], [0, 4, 6]])
    after = np.array([[6, 2, 2], [1, 7, 2], [1, 3, 6]])
    # FP 2 5 3 -> 2 5 4, FN 2 4 4 -> 4 3 4, so d_FPR = 0, 0, 100/3 and d_FNR = 100, -25, 0.
    d = [(Fraction(0), Fraction(100)), (Fraction(0), Fraction(-25)), (Fraction(100, 3), Fraction(0))]
    centre = [sum(point[axis] for point in d) / 3 for axis in (0, 1)]
    exact = sum((point[axis] - centre[axis]) ** 2 for point in d for axis in (0, 1)) / 6
    distance = sum(abs(x - y) for x, y in d) / 3
    assert exact == Fraction(128125, 81)
    reference, candidate = rates_from_confusion(before), rates_from_confusion(after)
    assert np.allclose(reference.fpr, [2 / 20, 5 / 20, 3 / 20]) and np.allclose(reference.fnr, [0.2, 0.4, 0.4])
    assert cev(reference, candidate).value == pytest.approx(float(exact), rel=1e-12)
    assert cev(reference, candidate, halved=False).value == pytest.approx(2 * float(exact), rel=1e-12)
    assert sde(reference, candidate).value == pytest.approx(float(distance) / math.sqrt(2), rel=1e-12)
    assert cev(reference, candidate).classes_used == 3


def test_logits_predictions_and_confusion_agree():
    confusion = np.zeros((4, 4), int)
    np.add.at(confusion, (DENSE.labels, DENSE.predictions), 1)
    found = [rates(LABELS, DENSE.logits), rates(LABELS, DENSE.predictions), rates_from_confusion(confusion)]
    for c in range(4):
        positive, answered = c == LABELS, DENSE.predictions == c
        for each in found:
            assert each.fnr[c] == pytest.approx((positive & ~answered).sum() / positive.sum())
            assert each.fpr[c] == pytest.approx((~positive & answered).sum() / (~positive).sum())
            assert each.support[c] == positive.sum()


def test_classes_without_reference_errors():
    reference = Rates(fpr=np.array([0.1, 0.1, 0.0]), fnr=np.array([0.2, 0.1, 0.1]), support=np.full(3, 10.0))
    candidate = Rates(fpr=np.array([0.2, 0.1, 0.1]), fnr=np.array([0.2, 0.1, 0.1]), support=np.full(3, 10.0))
    found = cev(reference, candidate)
    assert (found.classes_used, found.classes) == (2, 3)
    assert found.value == pytest.approx((50**2 + 50**2) / 4)  # d = (100, 0) and (0, 0)
    with pytest.raises(UserError, match="classes 2: the reference makes no error"):
        cev(reference, candidate, undefined="error")
    smoothed = cev(reference, candidate, smoothing=1.0)
    assert smoothed.classes_used == 3
    # (FP + 1) / (20 + 2): 3 -> 5, 3 -> 3, 1 -> 3, in units of 1/22; the negatives do not change.
    d = np.array([[200 / 3, 0, 200], [0, 0, 0]])
    assert smoothed.value == pytest.approx(0.5 * ((d - d.mean(1, keepdims=True)) ** 2).sum() / 3)
    with pytest.raises(UserError, match="no class has reference errors"):
        cev(Rates(np.zeros(3), np.zeros(3), np.full(3, 10.0)), candidate)


def test_trials_and_averaged_rates():
    dense, trials = rates(LABELS, DENSE.predictions), [rates(LABELS, each.predictions) for each in PRUNED]
    found = cev(dense, trials)
    assert found.trials == tuple(cev(dense, trial).value for trial in trials)
    assert found.value == pytest.approx(np.mean(found.trials)) and found.spread == pytest.approx(
        np.std(found.trials, ddof=1)
    )
    mean = Rates(np.mean([t.fpr for t in trials], 0), np.mean([t.fnr for t in trials], 0), dense.support)
    assert cev(dense, trials, average="rates").value == pytest.approx(cev(dense, mean).value)
    assert cev([dense, trials[0]], trials[1:]).trials == (cev(dense, trials[1]).value, cev(trials[0], trials[2]).value)
    with pytest.raises(UserError, match="2 references for 3 candidates"):
        cev([dense, dense], trials)


# Every measure against slow loops


def slow_softmax(row):
    top = max(row)
    powers = [math.exp(value - top) for value in row]
    return [power / sum(powers) for power in powers]


def slow_d(reference, candidate, classes):
    """Per class: (d_FPR, d_FNR), or None."""
    found = []
    for c in range(classes):
        counts = []
        for each in (reference, candidate):
            fp = sum(1 for t, p in zip(each.labels, each.predictions, strict=True) if p == c and t != c)
            fn = sum(1 for t, p in zip(each.labels, each.predictions, strict=True) if p != c and t == c)
            counts.append((fp, fn))
        (fp, fn), (fp2, fn2) = counts
        found.append((100 * (fp2 / fp - 1), 100 * (fn2 / fn - 1)) if fp and fn else None)
    return [each for each in found if each is not None]


def slow_recalls(each, classes):
    right = [[p == t for t, p in zip(each.labels, each.predictions, strict=True) if t == c] for c in range(classes)]
    return [sum(part) / len(part) for part in right if part]


def slow_accuracy(each):
    return sum(t == p for t, p in zip(each.labels, each.predictions, strict=True)) / len(each.labels)


def slow_ece(each, bins=15):
    inside = [[] for _ in range(bins)]
    for label, row in zip(each.labels, each.logits.astype(float), strict=True):
        p = slow_softmax(row)
        place = next(b for b in range(bins) if max(p) <= (b + 1) / bins + 1e-15)
        inside[place].append((max(p), p.index(max(p)) == label))
    return sum(abs(sum(c for c, _ in b) / len(b) - sum(r for _, r in b) / len(b)) * len(b) for b in inside if b) / len(
        each.labels
    )


def slow_top5(each):
    return sum(
        label in sorted(range(len(row)), key=lambda c: (-row[c], c))[:5]
        for label, row in zip(each.labels, each.logits, strict=True)
    ) / len(each.labels)


def slow_js(reference, candidate):
    total = 0.0
    for a, b in zip(reference.logits.astype(float), candidate.logits.astype(float), strict=True):
        p, q = slow_softmax(a), slow_softmax(b)
        total += sum(
            x * math.log(2 * x / (x + y)) / 2 + y * math.log(2 * y / (x + y)) / 2 for x, y in zip(p, q, strict=True)
        )
    return total / len(reference.labels)


def slow_corrected(reference, candidate, classes):
    """Sums over pairs of examples and of classes, as the derivation has them."""
    first, second = [], []
    for c in range(classes):
        row1, row2 = [], []
        for kind in ("fp", "fn"):
            n = r = s = 0
            for t, p, q in zip(reference.labels, reference.predictions, candidate.predictions, strict=True):
                a = (p == c and t != c) if kind == "fp" else (p != c and t == c)
                b = (q == c and t != c) if kind == "fp" else (q != c and t == c)
                n, r, s = n + a, r + (a and not b), s + (b and not a)
            if not n:
                break
            row1.append(100 * (s / (n + 1) - r / n))
            row2.append(
                1e4
                * (
                    s * (s - 1) / ((n + 1) * (n + 2))
                    - 2 * r * s / ((n + 1) * n)
                    + (r * (r - 1) / (n * (n - 1)) if n > 1 else 0)
                )
            )
        if len(row1) == 2:
            first.append(row1)
            second.append(row2)
    return first, second


def slow_cev_corrected(reference, candidate, classes):
    first, second = slow_corrected(reference, candidate, classes)
    many = len(first)
    total = 0.0
    for k in (0, 1):
        total += sum(row[k] for row in second) / many
        for i, j in itertools.product(range(many), repeat=2):
            total -= (second[i][k] if i == j else first[i][k] * first[j][k]) / many**2
    return total / 2


def slow_sde_corrected(reference, candidate, classes):
    """SDE as estimated and with its noise added once more, extrapolated to none."""
    plain = noisy = 0.0
    first, second = slow_corrected(reference, candidate, classes)
    for (x, y), (x_squared, y_squared) in zip(first, second, strict=True):
        spread = math.sqrt(x * x - x_squared + y * y - y_squared)
        plain += abs(x - y) / len(first) / math.sqrt(2)
        noisy += stats.foldnorm.mean(abs(x - y) / spread, scale=spread) / len(first) / math.sqrt(2)
    square = 2 * plain**2 - noisy**2
    return math.copysign(math.sqrt(abs(square)), square)


def slow_cev(r, c, n):
    d = slow_d(r, c, n)
    centre = [sum(x[k] for x in d) / len(d) for k in (0, 1)]
    return sum((x[k] - centre[k]) ** 2 for x in d for k in (0, 1)) / (2 * len(d))


def slow_intensification(r, c, n):
    balances = []
    for each in (r, c):
        accuracy = slow_accuracy(each)
        balances.append([(recall - accuracy) / accuracy for recall in slow_recalls(each, n)])
    return stats.linregress(*balances).slope


def slow_kl(reference, candidate):
    total = 0.0
    for first, second in zip(reference.logits, candidate.logits, strict=True):
        p, q = slow_softmax(first.astype(float)), slow_softmax(second.astype(float))
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(reference.labels)


def slow_flips(reference, candidate):
    rows = zip(reference.labels, reference.predictions, candidate.predictions, strict=True)
    return sum((before == label) != (after == label) for label, before, after in rows) / len(reference.labels)


def slow_group_rates(each, classes):
    """Of each class the rates of the groups that have them: called by its name, found, falsely claimed."""
    groups, found = groups_of(len(each.labels)), []
    for c in range(classes):
        rates_of_class = []
        for among in (lambda label: True, lambda label, c=c: label == c, lambda label, c=c: label != c):
            of_groups = []
            for g in range(3):
                rows = [i for i in range(len(groups)) if groups[i] == g and among(each.labels[i])]
                if rows:
                    of_groups.append(sum(each.predictions[i] == c for i in rows) / len(rows))
            rates_of_class.append(of_groups)
        found.append(rates_of_class)
    return found


def slow_apart(each, classes, *kinds):
    return max(max(rates[k]) - min(rates[k]) for rates in slow_group_rates(each, classes) for k in kinds)


def slow_odds_ratio(each, classes):
    both = [rates[k] for rates in slow_group_rates(each, classes) for k in (1, 2)]
    return min(min(rates) / max(rates) if max(rates) else 1.0 for rates in both if len(rates) > 1)


def slow_worst_group(each):
    groups, right = groups_of(len(each.labels)), each.predictions == each.labels
    return min(sum(right[groups == g]) / sum(groups == g) for g in range(3))


SLOW = {
    "accuracy": lambda r, c, n: slow_accuracy(c),
    "accuracy_change": lambda r, c, n: slow_accuracy(c) - slow_accuracy(r),
    "calibration_error": lambda r, c, n: slow_ece(c),
    "calibration_error_change": lambda r, c, n: slow_ece(c) - slow_ece(r),
    "cev": slow_cev,
    "cev_corrected": slow_cev_corrected,
    "churn": lambda r, c, n: sum(a != b for a, b in zip(r.predictions, c.predictions, strict=True)) / len(r.labels),
    "demographic_parity_difference": lambda r, c, n: slow_apart(c, n, 0),
    "equal_opportunity_difference": lambda r, c, n: slow_apart(c, n, 1),
    "equalized_odds_difference": lambda r, c, n: slow_apart(c, n, 1, 2),
    "equalized_odds_difference_change": lambda r, c, n: slow_apart(c, n, 1, 2) - slow_apart(r, n, 1, 2),
    "equalized_odds_ratio": lambda r, c, n: slow_odds_ratio(c, n),
    "flips": lambda r, c, n: slow_flips(r, c),
    "intensification": slow_intensification,
    "js_divergence": lambda r, c, n: slow_js(r, c),
    "kl": lambda r, c, n: slow_kl(r, c),
    "max_excess_accuracy_gap": lambda r, c, n: max(
        (a - b) - (slow_accuracy(r) - slow_accuracy(c))
        for a, b in zip(slow_recalls(r, n), slow_recalls(c, n), strict=True)
    ),
    "recall_range": lambda r, c, n: max(slow_recalls(c, n)) - min(slow_recalls(c, n)),
    "recall_variance": lambda r, c, n: np.var(slow_recalls(c, n)),
    "sde": lambda r, c, n: sum(abs(x - y) for x, y in slow_d(r, c, n)) / len(slow_d(r, c, n)) / math.sqrt(2),
    "sde_corrected": slow_sde_corrected,
    "cev_common": slow_cev,  # of one dense network; of several in test_yardsticks.py
    "sde_common": lambda r, c, n: SLOW["sde"](r, c, n),
    "top5_accuracy": lambda r, c, n: slow_top5(c),
    "top5_accuracy_change": lambda r, c, n: slow_top5(c) - slow_top5(r),
    "worst_group_accuracy": lambda r, c, n: slow_worst_group(c),
    "worst_group_accuracy_change": lambda r, c, n: slow_worst_group(c) - slow_worst_group(r),
    "worst_recall": lambda r, c, n: min(slow_recalls(c, n)),
}


def slow_mode(votes):
    return min(set(votes), key=lambda c: (-votes.count(c), c))


def slow_pie(reference, candidates):
    rows = zip(reference.predictions, *(each.predictions for each in candidates), strict=True)
    return sum(slow_mode(votes) != before for before, *votes in rows)


SLOW_OVER_TRIALS = {
    "pie": slow_pie,
    "pie_unanimous": lambda r, cs: sum(
        all(c.predictions[i] != r.predictions[i] for c in cs) for i in range(len(r.labels))
    ),
}


@pytest.mark.parametrize("name", list(MEASURES))
def test_measure_against_a_slow_loop(name):
    """A newly registered measure fails here until it has an independent reference."""
    labels = np.random.default_rng(5).integers(0, 7, 300)
    dense = network(6, labels=labels, classes=7, logits=True)
    pruned = [network(seed, labels=labels, classes=7, wrong=0.45, logits=True) for seed in (7, 8, 9)]
    measure = MEASURES[name]()
    found = Table([pair_of(dense, each, 7) for each in pruned], [measure]).point()[0][name]
    if measure.over_trials:
        assert found == pytest.approx([SLOW_OVER_TRIALS[name](dense, pruned)])
    else:
        assert found == pytest.approx([SLOW[name](dense, each, 7) for each in pruned], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", list(MEASURES))
def test_measure_says_what_it_is(name):
    kind = MEASURES[name]
    assert kind.__doc__ and kind.better in ("lower", "higher", "near 1")
    assert all(getattr(kind, field).strip() for field in ("title", "source", "equation", "unit"))


@pytest.mark.parametrize("name", list(MEASURES))
def test_measure_of_a_network_and_itself(name):
    value = Table([pair_of(DENSE, DENSE, 4)], [MEASURES[name]()]).point()[0][name][0]
    if name in ALONE:
        assert value >= 0
    else:
        assert value == pytest.approx(1.0 if name == "intensification" else 0.0, abs=1e-12)


# Properties

tests = st.integers(2, 6).flatmap(
    lambda classes: st.lists(st.tuples(*[st.integers(0, classes - 1)] * 3), min_size=8, max_size=60).map(
        lambda rows: (classes, np.array(rows).T)
    )
)


def both_scores(classes, rows):
    labels, before, after = rows
    try:
        pair = rates(labels, before, classes=classes), rates(labels, after, classes=classes)
        return cev(*pair), sde(*pair)
    except UserError:
        return None


@settings(max_examples=60, deadline=None, derandomize=True)
@given(tests, st.randoms(use_true_random=False))
def test_names_order_and_copies_do_not_matter(test, random):
    classes, rows = test
    expected = both_scores(classes, rows)
    names = np.array(random.sample(range(classes), classes))
    order = random.sample(range(rows.shape[1]), rows.shape[1])
    for changed in (names[rows], rows[:, order], np.tile(rows, 3)):
        found = both_scores(classes, changed)
        if expected is None:
            assert found is None
            continue
        for one, other in zip(found, expected, strict=True):
            assert (
                one.value == pytest.approx(other.value, rel=1e-9, abs=1e-9) and one.classes_used == other.classes_used
            )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(tests)
def test_counts_and_slow_recomputation_agree(test):
    classes, rows = test
    reference, candidate = (Predictions(rows[0], row) for row in rows[1:])
    d = slow_d(reference, candidate, classes)
    found = both_scores(classes, rows)
    values = Table([pair_of(reference, candidate, classes)], [MEASURES["cev"](), MEASURES["sde"]()]).point()[0]
    if not d:
        assert found is None and np.isnan(values["cev"][0]) and np.isnan(values["sde"][0])
        return
    assert found[0].classes_used == len(d)
    for score, name in zip(found, ("cev", "sde"), strict=True):
        assert score.value == pytest.approx(SLOW[name](reference, candidate, classes), rel=1e-9, abs=1e-9)
        assert values[name][0] == pytest.approx(score.value, rel=1e-9, abs=1e-9)
    assert both_scores(classes, rows[[0, 1, 1]])[0].value == 0 == both_scores(classes, rows[[0, 1, 1]])[1].value


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(0.01, 0.3), st.floats(0.01, 0.3)), min_size=2, max_size=9), st.floats(0.1, 3))
def test_equal_relative_change_is_no_bias(pairs, factor):
    fpr, fnr = np.array(pairs).T
    before = Rates(fpr, fnr, np.full(len(fpr), 100.0))
    after = Rates(fpr * factor, fnr * factor, before.support)
    assert cev(before, after).value == pytest.approx(0, abs=1e-6) and sde(before, after).value == pytest.approx(
        0, abs=1e-6
    )


# Resampling


def test_a_resample_has_the_values_of_the_same_examples_written_out():
    measures = [MEASURES[name]() for name in MEASURES if not MEASURES[name].needs_logits]
    pairs = [pair_of(DENSE, each, 4) for each in PRUNED]
    table = Table(pairs, measures)
    weights = table.draw(5, np.random.default_rng(0))
    assert (weights.sum(0) == len(LABELS)).all()
    values = table.values(table.sums(weights))
    members = [np.flatnonzero(table.cell == cell) for cell in range(len(table.multiplicity))]
    for b in range(5):
        rows = np.concatenate([np.resize(members[k], int(weights[k, b])) for k in range(len(members))])
        dense, groups = Predictions(LABELS[rows], DENSE.predictions[rows]), groups_of(len(LABELS))[rows]
        drawn = [pair_of(dense, Predictions(LABELS[rows], each.predictions[rows]), 4, groups) for each in PRUNED]
        expected = Table(drawn, measures).point()[0]
        for name, value in values.items():
            assert value[b] == pytest.approx(expected[name], rel=1e-9, abs=1e-9), name
        assert values["cev"][b, 0] == pytest.approx(slow_cev(dense, drawn[0].candidate, 4), rel=1e-9)


def test_bootstrap_has_the_distribution_of_drawing_examples():
    pair = pair_of(DENSE, PRUNED[0], 4)
    fast = bias.bootstrap(Table([pair], [MEASURES["cev"](), MEASURES["sde"]()]), resamples=3000, seed=1)
    generator = np.random.default_rng(2)
    naive = {"cev": [], "sde": []}
    for _ in range(1500):
        rows = generator.integers(0, len(LABELS), len(LABELS))
        before, after = (rates(LABELS[rows], each.predictions[rows], classes=4) for each in (DENSE, PRUNED[0]))
        naive["cev"].append(cev(before, after).value)
        naive["sde"].append(sde(before, after).value)
    for name in naive:
        assert stats.ks_2samp(fast[name], naive[name]).pvalue > 0.001


def test_bootstrap_repeats_and_shares_examples_between_trials():
    pair = pair_of(DENSE, PRUNED[0], 4)
    table, alone = (Table([pair] * trials, [MEASURES["cev"]()]) for trials in (2, 1))
    first, again = (bias.bootstrap(table, resamples=50, seed=3, unit="both")["cev"] for _ in range(2))
    assert np.array_equal(first, again)
    # Equal trials stay equal, because both see the same examples, so that seeds add nothing.
    assert first == pytest.approx(bias.bootstrap(alone, resamples=50, seed=3)["cev"])


def test_jackknife_leaves_one_example_out():
    measures = [MEASURES[name]() for name in ("cev", "cev_corrected", "churn", "worst_recall")]
    measures += [MEASURES[name]() for name in ("equalized_odds_difference", "worst_group_accuracy")]
    pair = pair_of(DENSE, PRUNED[0], 4)
    table = Table([pair], measures)
    values = table.jackknife()
    for row in range(0, len(LABELS), 57):
        kept = np.arange(len(LABELS)) != row
        both = [Predictions(LABELS[kept], each.predictions[kept]) for each in (DENSE, PRUNED[0])]
        expected = Table([pair_of(*both, 4, groups_of(len(LABELS))[kept])], measures).point()[0]
        for name, value in values.items():
            assert value[table.cell[row]] == pytest.approx(expected[name], rel=1e-9), name


def test_classes_used_belong_to_a_trial():
    """Trial 0 has a reference that never errs at class 3, trial 1 one that does."""
    perfect = np.where((LABELS == 3) | (DENSE.predictions == 3), LABELS, DENSE.predictions)
    references = [Predictions(LABELS, perfect), DENSE]
    result = bias.audit(references=references, candidates=PRUNED[:2], resamples=100)
    assert [trial["classes_used"] for trial in result.trials] == [3, 4]
    for trial, before, after in zip(result.trials, references, PRUNED, strict=False):
        alone = cev(rates(LABELS, before.predictions, classes=4), rates(LABELS, after.predictions))
        assert (alone.classes_used, alone.value) == (trial["classes_used"], pytest.approx(trial["cev"]))
    assert result.classes_used == 3 and any("in some trial" in note for note in result.notes)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_endless_numbers_are_refused_without_a_warning(value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for make in (
            lambda: Predictions([0, value], [0, 1]),
            lambda: Predictions([0, 1], [0, value]),
            lambda: Predictions.from_confusion([[5, value], [1, 5]]),
            lambda: cev(rates([0, 1], [1, 0]), rates([0, 1], [1, 0]), smoothing=value),
            lambda: bias.audit(references=DENSE, candidates=PRUNED, smoothing=value),
        ):
            with pytest.raises(UserError, match="infinity|not finite"):
                make()


def test_class_significance_against_scipy():
    pair = pair_of(DENSE, PRUNED[0], 4)
    change = (PRUNED[0].predictions == LABELS) * 1.0 - (DENSE.predictions == LABELS)
    raw = [stats.ttest_ind(change[c == LABELS], change[c != LABELS], equal_var=False).pvalue for c in range(4)]
    assert bias.class_significance([pair])[0] == pytest.approx(holm(np.array(raw)))
    pairs = [pair_of(DENSE, each, 4) for each in PRUNED]
    shift = [
        [(each.predictions == LABELS)[c == LABELS].mean() - (each.predictions == LABELS).mean() for c in range(4)]
        for each in (DENSE, *PRUNED)
    ]
    raw = stats.ttest_1samp(np.array(shift[1:]) - shift[0], 0).pvalue
    found, test = bias.class_significance(pairs)
    assert found == pytest.approx(holm(raw)) and "one-sample" in test


# The audit


def test_audit_holds_the_plain_functions():
    result = bias.audit(references=DENSE, candidates=PRUNED, floor=bias.floor([DENSE, *PRUNED[:2]]), resamples=200)
    dense, trials = rates(LABELS, DENSE.predictions), [rates(LABELS, each.predictions) for each in PRUNED]
    assert result.cev == pytest.approx(cev(dense, trials).value)
    assert result.published["sde"] == pytest.approx(sde(dense, trials, average="rates").value)
    assert [trial["cev"] for trial in result.trials] == pytest.approx(list(cev(dense, trials).trials))
    assert result.per_class[2]["fnr_reference"] == pytest.approx(dense.fnr[2])
    assert result.per_class[2]["fpr"] == pytest.approx(np.mean([trial.fpr[2] for trial in trials]))
    assert set(result.measures) == WITHOUT_GROUPS
    assert result.left_out == dict.fromkeys(set(MEASURES) - WITHOUT_GROUPS, "needs groups")
    dense_rates = [dense, *trials[:2]]
    floor = [cev(a, b).value for a, b in itertools.permutations(dense_rates, 2)]
    found = result.measures["cev"].floor
    assert found.pairs == 6 and found.mean == pytest.approx(stats.gmean(floor))
    assert [found.low, found.high] == pytest.approx([min(floor), max(floor)])
    beside = (
        np.log([cev(dense, each).value for each in trials]).mean()
        - np.log([cev(dense, x).value for x in trials[:2]]).mean()
    )
    assert result.measures["cev"].over_floor.value == pytest.approx(np.exp(beside))
    without = {name for name, each in result.measures.items() if each.interval is None}
    assert without == {"cev_common", "sde_common", "top5_accuracy", "top5_accuracy_change"} and all(
        result.measures[name].withheld for name in without
    )
    assert {row["measure"] for row in result.rows()} == WITHOUT_GROUPS and len(result.per_class_rows()) == 4
    assert (
        bias.audit(references=DENSE, candidates=PRUNED, resamples=200).to_json()
        == bias.audit(references=DENSE, candidates=PRUNED, resamples=200).to_json()
    )


def test_groups_are_the_test_set_cut_up():
    groups = np.random.default_rng(3).integers(0, 3, len(LABELS))
    columns = {"site": Column.of(groups)}
    result = bias.audit(references=DENSE, candidates=PRUNED[:1], groups=columns, resamples=100).groups["site"]
    for g, row in enumerate(result["per_group"]):
        inside = groups == g
        before, after = (Predictions.from_logits(LABELS[inside], each.logits[inside]) for each in (DENSE, PRUNED[0]))
        alone = bias.audit(references=before, candidates=after, resamples=100)
        for name, value in alone.measures.items():
            assert row[name] == pytest.approx(value.estimate), name
        for c in range(4):
            found = next(r for r in result["per_class_within_group"] if r["group"] == str(g) and r["class"] == str(c))
            assert found["fpr"] == pytest.approx(alone.per_class[c]["fpr"])
            assert found["d_fnr"] == pytest.approx(alone.per_class[c]["d_fnr"])
    accuracies = [row["accuracy"] for row in result["per_group"]]
    assert result["measures"]["worst_recall"]["value"] == pytest.approx(min(accuracies))
    d = np.array([[r["d_fpr"], r["d_fnr"]] for r in result["per_class_within_group"] if r["d_fpr"] is not None])
    assert result["class_within_group"]["cev"]["value"] == pytest.approx(0.5 * ((d - d.mean(0)) ** 2).sum(1).mean())
    assert result["class_within_group"]["classes_used"] == len(d)


def test_confusion_matrices_have_what_counts_allow():
    tables = []
    for each in (DENSE, PRUNED[0]):
        confusion = np.zeros((4, 4), int)
        np.add.at(confusion, (each.labels, each.predictions), 1)
        tables.append(Predictions.from_confusion(confusion))
    result = bias.audit(references=tables[0], candidates=tables[1], resamples=100)
    full = bias.audit(references=DENSE, candidates=PRUNED[0], resamples=100)
    for name in ("cev", "sde", "accuracy", "worst_recall", "intensification"):
        assert result.measures[name].value == pytest.approx(full.measures[name].value)
    assert "churn" in result.left_out and "js_divergence" in result.left_out and result.notes
    mixed = bias.audit(references=DENSE, candidates=tables[1], resamples=100)
    assert mixed.cev == pytest.approx(full.cev)


@contextlib.contextmanager
def registered(measure):
    """What somebody else's ten lines would do, for the length of a test."""
    MEASURES.register("wrong_twice")(measure)
    try:
        yield measure()
    finally:
        del MEASURES._classes["wrong_twice"]


@dataclass(frozen=True)
class WrongTwice(bias.Measure):
    """Share of the examples that both networks get wrong."""

    title, source, equation = "Wrong in both", "a test", "1/N Σ_i [both wrong]"
    unit, better = "share", "lower"

    def counts(self, pair):
        wrong = (pair.reference.predictions != pair.labels) & (pair.candidate.predictions != pair.labels)
        return {"wrong_twice": np.stack([wrong, ~wrong], 1)}  # two columns, to be summed apart

    def value(self, sums):
        return sums["wrong_twice"][..., 0] / sums["wrong_twice"].sum(-1)


def test_a_measure_of_ten_lines_is_everywhere():
    dense = [DENSE, *(network(seed, labels=LABELS, classes=4, logits=True) for seed in (21, 22))]
    wrong = [each.predictions != LABELS for each in (*dense, *PRUNED)]
    with registered(WrongTwice) as measure:
        assert (measure.short, measure.headline, measure.compares, measure.comparison) == (
            *("wrong_twice", 0, True),
            "difference",
        )
        assert (measure.corrected, measure.digits, measure.complement) == ("", None, "")
        floor = bias.floor(dense)
        found = bias.audit(references=dense, candidates=PRUNED, floor=floor, resamples=100)
        rows, floor_rows = found.long_rows((3, 4, 5)), floor.long_rows((3, 4, 5))
        assert "wrong_twice" not in bias.alone(DENSE)
        given = bias.audit(references=dense, candidates=PRUNED, floor=floor, resamples=100, measures=[measure])
    expected = [(before & after).mean() for before, after in zip(wrong[:3], wrong[3:], strict=True)]
    assert found.measures["wrong_twice"].trials == pytest.approx(expected)
    assert found.measures["wrong_twice"].interval.low < np.mean(expected) < found.measures["wrong_twice"].interval.high
    assert [row["value"] for row in select(rows, measure="wrong_twice")] == pytest.approx(
        [*expected, np.mean(expected)]
    )
    for (i, j), row in zip(
        itertools.permutations(range(3), 2), select(floor_rows, measure="wrong_twice"), strict=False
    ):
        assert (row["reference_seed"], row["seed"]) == (3 + i, 3 + j)
        assert row["value"] == pytest.approx((wrong[i] & wrong[j]).mean())
    assert set(given.measures) == {"cev", "sde", "wrong_twice"}
    assert given.measures["wrong_twice"] == found.measures["wrong_twice"]


@pytest.mark.parametrize("name", list(MEASURES))
def test_measure_declares_what_reports_ask(name):
    kind = MEASURES[name]
    assert kind.short and kind.comparison in ("ratio", "difference") and kind.headline >= 0
    assert kind.corrected == "" or MEASURES[kind.corrected].noise_free
    assert kind.compares == (name not in ALONE)
    # What is alone does not look at the reference, what compares does.
    labels = np.random.default_rng(5).integers(0, 7, 300)
    one, other, candidate = (network(seed, labels=labels, classes=7, logits=True) for seed in (31, 32, 33))
    first, second = (Table([pair_of(each, candidate, 7)], [kind()]).point()[0][name][0] for each in (one, other))
    assert (first == second) != kind.compares


def test_headline_columns():
    heads = sorted((MEASURES[name].headline, MEASURES[name].short) for name in MEASURES if MEASURES[name].headline)
    assert heads == [(1, "accuracy"), (2, "CEV"), (3, "SDE")]
    assert MEASURES["churn"].short == "churn" and MEASURES["accuracy"].digits == 4
    assert {name for name in MEASURES if MEASURES[name].comparison == "ratio"} == {
        *("cev", "sde", "cev_common", "sde_common"),
        *("churn", "flips", "js_divergence", "kl"),
    }


def test_floor_is_every_pair_taken_by_itself():
    """Against the plain functions for CEV and SDE, and against an audit of each pair for every measure."""
    dense = [network(seed, labels=LABELS, classes=4, logits=True) for seed in range(4)]
    plain = [rates(LABELS, each.predictions) for each in dense]
    found = bias.floor(dense)
    assert found.networks == 4 and set(found.values) == {
        name for name in WITHOUT_GROUPS if not MEASURES[name].over_trials
    }
    for i, j in itertools.product(range(4), repeat=2):
        if i == j:
            assert all(np.isnan(values[i, j]) for values in found.values.values())
            continue
        assert found.values["cev"][i, j] == pytest.approx(cev(plain[i], plain[j]).value, rel=1e-12)
        assert found.values["sde"][i, j] == pytest.approx(sde(plain[i], plain[j]).value, rel=1e-12)
        alone = bias.audit(references=dense[i], candidates=dense[j], dense=dense, resamples=100)
        for name, values in found.values.items():
            if name.endswith("_common"):  # the dense networks' mean is taken in another order
                assert values[i, j] == pytest.approx(alone.measures[name].estimate, rel=1e-12)
            else:
                assert values[i, j] == alone.measures[name].estimate, name  # to the last bit
    values = np.array([found.values["cev"][place] for place in itertools.permutations(range(4), 2)])
    audited = bias.audit(references=dense[0], candidates=PRUNED[0], floor=found, resamples=100).measures["cev"]
    assert audited.floor == bias.Floor(pytest.approx(stats.gmean(values)), values.min(), values.max(), 12)
    change = found.summary("accuracy_change")
    assert change.mean == pytest.approx(found.values["accuracy_change"][~np.eye(4, dtype=bool)].mean())
    smoothed = bias.floor(dense, smoothing=0.5, measures=["churn"])
    assert set(smoothed.values) == {"cev", "sde", "churn"}
    # The measure's pseudo-count stands above equal denominators, that of the function in both.
    expected = bias.audit(references=dense[0], candidates=dense[1], smoothing=0.5, resamples=100)
    assert smoothed.values["cev"][0, 1] == expected.cev != found.values["cev"][0, 1]


def test_a_floor_of_networks_that_know_less():
    bare = network(1, labels=LABELS, classes=4, source="bare")
    found = bias.floor([DENSE, PRUNED[0], bare])
    assert np.isfinite(found.values["js_divergence"]).tolist() == [
        [False, True, False],
        [True, False, False],
        [False] * 3,
    ]
    assert found.summary("cev").pairs == found.summary("churn").pairs == 6 and found.summary("js_divergence").pairs == 2
    assert bias.floor([DENSE]).networks == 1 and bias.floor([DENSE]).summary("cev") is None
    lonely = bias.audit(references=DENSE, candidates=PRUNED, floor=bias.floor([DENSE]), resamples=100)
    assert lonely.measures["cev"].floor is None and lonely.to_json()["floor"] is None
    with pytest.raises(UserError, match="b: labels differ from a"):
        bias.floor([Predictions([0, 1], [1, 0], source="a"), Predictions([1, 0], [0, 1], source="b")])


def test_floor_rows_come_back_as_they_were(tmp_path):
    found = bias.floor([DENSE, *PRUNED], measures=[name for name in MEASURES if name != "pie"])
    found.values["churn"][0, 1] = np.nan
    rows = found.long_rows((7, 3, 5, 9))
    write_long(tmp_path / "floor.csv", rows)
    again = bias.Floors.from_rows(read_long(tmp_path / "floor.csv"))
    assert again.networks == 4 and set(again.values) == set(found.values)
    for name, values in found.values.items():
        assert np.array_equal(again.values[name], values, equal_nan=True), name
        (summary,) = rows_without_seed(rows, name)
        known = values[np.isfinite(values)]
        mean = stats.gmean(known) if MEASURES[name].comparison == "ratio" else known.mean()
        assert summary["value"] == pytest.approx(mean, rel=1e-12)
        assert (summary["low"], summary["high"]) == (known.min(), known.max())
        assert (summary["unit"], summary["better"]) == (MEASURES[name].unit, MEASURES[name].better)
        pairs = [row for row in rows if row["measure"] == name and row.get("seed") is not None]
        assert len(pairs) == 12
        for row in pairs:
            i, j = ((7, 3, 5, 9).index(row[key]) for key in ("reference_seed", "seed"))
            assert row["value"] == (None if np.isnan(values[i, j]) else values[i, j])


def rows_without_seed(rows, measure):
    return [row for row in rows if row["measure"] == measure and row.get("seed") is None]


def test_alone_against_slow_loops():
    labels = np.random.default_rng(5).integers(0, 7, 300)
    one = network(6, labels=labels, classes=7, logits=True)
    found = bias.alone(one)
    assert set(found) == {name for name in WITHOUT_GROUPS if not MEASURES[name].compares}
    for name, value in found.items():
        assert value == pytest.approx(SLOW[name](None, one, 7), rel=1e-9, abs=1e-12), name
    assert set(bias.alone(network(6, labels=labels, classes=7))) == set(found) - {"calibration_error", "top5_accuracy"}
    assert bias.alone(one, measures=["accuracy", "churn"]) == {"accuracy": found["accuracy"]}
    with pytest.raises(UserError, match="only one class"):
        bias.alone(Predictions([1, 1], [0, 1]))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(2, 5000), st.integers(0, 2**32))
def test_accuracy_is_the_exact_share(examples, seed):
    generator = np.random.default_rng(seed)
    labels = np.append([0, 1], generator.integers(0, 3, examples))
    predictions = np.where(generator.random(len(labels)) < generator.random(), labels, (labels + 1) % 3)
    one = Predictions(labels, predictions)
    exact = float((predictions == labels).mean())
    assert bias.alone(one, measures=["accuracy"])["accuracy"] == exact == (predictions == labels).sum() / len(labels)
    assert Table([pair_of(one, one, 3)], [MEASURES["accuracy"]()]).point()[0]["accuracy"][0] == exact


def test_long_rows_agree_with_the_json(tmp_path):
    groups = np.random.default_rng(3).integers(0, 2, len(LABELS))
    dense = [network(seed, labels=LABELS, classes=4, logits=True) for seed in (1, 2, 3)]
    columns = {"site": Column(groups, ("north", "south"))}
    found = bias.audit(references=dense, candidates=PRUNED, groups=columns, resamples=100)
    write_long(tmp_path / "bias.csv", found.long_rows((4, 5, 6)))
    rows, result = read_long(tmp_path / "bias.csv"), found.to_json()
    whole = [row for row in rows if row["group"] is None]
    for name, said in result["measures"].items():
        of_trials = [row for row in whole if row["measure"] == name and row["seed"] is not None]
        if MEASURES[name].over_trials:
            assert not of_trials
        else:
            assert [(row["seed"], row["reference_seed"], row["value"]) for row in of_trials] == [
                (seed, seed, value) for seed, value in zip((4, 5, 6), said["trials"], strict=True)
            ]
        (summary,) = [row for row in whole if row["measure"] == name and row["seed"] is None]
        assert (summary["kind"], summary["value"], [summary["low"], summary["high"]]) == (
            *("bias", said["value"]),
            said["interval"] or [None, None],
        )
        assert {(row["unit"], row["better"]) for row in [*of_trials, summary]} == {(said["unit"], said["better"])}
    quantities = set(bias.scoring.OF_A_CLASS)
    assert quantities | {"class", "significant"} == set(result["per_class"][0])
    of_classes = select(whole, kind="class")
    assert len(of_classes) == 4 * len(quantities) and all(row["better"] is None for row in of_classes)
    for said in result["per_class"]:
        own = select(of_classes, **{"class": said["class"]})
        assert {row["measure"]: row["value"] for row in own} == {name: said[name] for name in quantities}
    assert {row["unit"] for row in select(of_classes, measure="d_fpr")} == {"percent"}
    assert {row["unit"] for row in select(of_classes, measure="support")} == {"examples"}
    for said in result["groups"]["site"]["per_group"]:
        inside = select(rows, group=f"site={said['group']}")
        for row in select(inside, **{"class": None}):
            assert row["value"] == said[row["measure"]] and row["seed"] is None
        assert {row["measure"] for row in select(inside, kind="bias")} == WITHOUT_GROUPS
    for said in result["groups"]["site"]["per_class_within_group"]:
        own = select(rows, group=f"site={said['group']}", **{"class": said["class"]})
        inside = {name for name in quantities if not name.endswith("_share")}  # what a class carries is of all groups
        assert {row["measure"]: row["value"] for row in own} == {name: said[name] for name in inside}
    with pytest.raises(ValueError):
        found.long_rows((4, 5))


def test_measures_by_name_and_with_options():
    ten, fifteen = (MEASURES["calibration_error"](bins=bins) for bins in (10, 15))
    found = bias.audit(references=DENSE, candidates=PRUNED[0], measures=[ten, "churn"], resamples=100)
    assert set(found.measures) == {"cev", "sde", "churn", "calibration_error"}
    assert found.measures["calibration_error"].value == pytest.approx(slow_ece(PRUNED[0], bins=10), rel=1e-9)
    everything = bias.audit(references=DENSE, candidates=PRUNED[0], resamples=100, smoothing=0.5)
    by_value = [MEASURES[name]() for name in MEASURES]
    same = bias.audit(references=DENSE, candidates=PRUNED[0], resamples=100, smoothing=0.5, measures=by_value)
    assert everything.to_json() == same.to_json()  # the pseudo-count reaches those that have none of their own
    own = bias.audit(references=DENSE, candidates=PRUNED[0], measures=[MEASURES["cev"](smoothing=0.5)], resamples=100)
    assert own.cev == everything.cev and own.cev_interval is everything.cev_interval is None
    with pytest.raises(UserError, match="'calibration_error' stands there twice"):
        bias.floor([DENSE, PRUNED[0]], measures=[ten, fifteen])


def test_what_is_remembered_of_a_network_changes_nothing():
    """The second pair of a network is served from what the first left behind, in either order."""
    fresh = [Predictions.from_logits(LABELS, each.logits.copy()) for each in (DENSE, PRUNED[0])]
    measures = [MEASURES[name]() for name in MEASURES]
    first, back, again = (
        [table.point()[0] for table in (Table([pair_of(a, b, 4)], [each]) for each in measures)]
        for a, b in (fresh, fresh[::-1], [Predictions.from_logits(LABELS, each.logits.copy()) for each in fresh[::-1]])
    )
    assert back == again and first != back


def test_part_of_a_table_has_the_same_resamples():
    pairs = [pair_of(DENSE, each, 4) for each in PRUNED]
    for wanted in (True, False):
        measures = [MEASURES[name]() for name in MEASURES if MEASURES[name].needs_logits is wanted]
        table = Table(pairs, measures)
        whole, left_out = bias.bootstrap(table, resamples=60, seed=0, unit="both"), table.jackknife()
        for measure in measures:
            part = table.only([measure])
            assert np.array_equal(
                bias.bootstrap(part, resamples=60, seed=0, unit="both")[measure.name], whole[measure.name]
            )
            assert np.array_equal(part.jackknife()[measure.name], left_out[measure.name], equal_nan=True)
            assert np.array_equal(part.point()[0][measure.name], table.point()[0][measure.name])


# Bad input

ONES = np.ones(5, int)
BAD = {
    "3 labels but 2 predictions": lambda: Predictions([0, 1, 1], [0, 1]),
    "no examples": lambda: Predictions([], []),
    "out of range; count classes from 0": lambda: Predictions([0, -1], [0, 0]),
    "not whole numbers": lambda: Predictions([0.5, 1.0], [0, 1]),
    "NaN or infinity, first in row 1": lambda: Predictions.from_logits([0, 1], [[0.0, 1.0], [np.nan, 0.0]]),
    "label 2 is out of range for 2 columns": lambda: Predictions.from_logits([0, 2], np.zeros((2, 2))),
    "2 class names for 3 classes": lambda: Predictions([0, 2], [1, 1], classes=("a", "b")),
    "is not square": lambda: rates_from_confusion(np.ones((2, 3), int)),
    "negative or broken": lambda: rates_from_confusion(np.array([[1, -1], [0, 1]])),
    "only one class": lambda: rates([0, 0], [0, 0]),
    "class 3 is out of range for 3 classes": lambda: rates([0, 1], [3, 1], classes=3),
    "average: 'mean' is not known": lambda: cev(rates([0, 1], [1, 0]), rates([0, 1], [1, 0]), average="mean"),
    "smoothing: -1": lambda: cev(rates([0, 1], [1, 0]), rates([0, 1], [1, 0]), smoothing=-1),
    "5 examples, but a has 6": lambda: bias.audit(
        references=Predictions([0, 1] * 3, [1, 0] * 3, source="a"), candidates=Predictions(ONES, ONES, source="b")
    ),
    "b: labels differ from a, first in row 0": lambda: bias.audit(
        references=Predictions([0, 1], [1, 0], source="a"), candidates=Predictions([1, 0], [0, 1], source="b")
    ),
    "b: class '2' is missing from the labels, a has it": lambda: bias.audit(
        references=Predictions([0, 1, 2], [1, 0, 0], source="a"),
        candidates=Predictions([0, 1, 1], [1, 0, 0], source="b"),
    ),
    "only one class among the labels": lambda: bias.audit(
        references=Predictions(ONES, ONES * 0), candidates=Predictions(ONES, ONES)
    ),
    "is no measure; known": lambda: bias.audit(references=DENSE, candidates=PRUNED, measures=["cve"]),
    "groups: 3 groups in column 'site' for 400 examples": lambda: bias.audit(
        references=DENSE, candidates=PRUNED, groups={"site": Column.of([0, 1, 0])}, resamples=100
    ),
    "counts 1,000,000,000,003 examples": lambda: Predictions.from_confusion([[10**12, 1], [1, 1]]),
    "more than 2.53 are not exact": lambda: rates_from_confusion([[1e300, 1], [1, 1]]),
    "smoothing: 1e.07 is above 1e.06": lambda: bias.audit(references=DENSE, candidates=PRUNED, smoothing=1e7),
    "seed: -1 is negative": lambda: bias.audit(references=DENSE, candidates=PRUNED, seed=-1),
    "resamples: 99 are too few": lambda: bias.audit(references=DENSE, candidates=PRUNED, resamples=99),
    "resamples: 5 are too few": lambda: bias.audit(references=DENSE, candidates=PRUNED[0], resamples=5),
    "no networks for the floor": lambda: bias.floor([]),
    "method: 'bcaa'": lambda: bias.audit(references=DENSE, candidates=PRUNED, method="bcaa", resamples=100),
}


def test_a_reference_without_errors_leaves_the_rest_of_the_audit():
    labels = np.arange(40) % 4
    perfect = [Predictions(labels, labels, source=f"perfect {number}") for number in range(3)]
    candidate = network(3, labels=labels, classes=4)
    found = bias.audit(references=perfect[0], candidates=candidate, floor=bias.floor(perfect), resamples=100)
    assert found.cev is found.sde is found.cev_interval is None and found.classes_used == 0
    assert any(note.startswith("CEV and SDE do not exist: in it the reference makes no errors") for note in found.notes)
    assert found.measures["accuracy"].value == (candidate.predictions == labels).mean()
    record = found.measures["cev"].over_floor
    assert record.verdict == "" and record.value is None and "no candidate has a value" in record.note


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_line(message):
    with pytest.raises(UserError, match=message) as raised:
        BAD[message]()
    assert "\n" not in str(raised.value)
