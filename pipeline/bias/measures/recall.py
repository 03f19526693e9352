"""Measures of the recalls of classes or groups: the worst, their range, their balance, and accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.bias.measures.declared import MEASURES, Counts, Measure, Pair, Sums, once, one_hot


@once
def _recall(pair: Pair) -> Counts:
    counts: Counts = {"part_size": one_hot(pair.parts, pair.part_count)}
    for word, each in pair.both:
        wrong = each.labels != each.predictions
        counts[f"part_wrong_{word}"] = one_hot(pair.parts, pair.part_count, where=wrong)
    return counts


def _recalls(sums: Sums, word: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Recall of each part [..., P] (0 for an empty one), accuracy [..., 1], and which parts have examples [..., P]."""
    size, wrong = sums["part_size"], sums[f"part_wrong_{word}"]
    recall = np.where(size > 0, 1 - wrong / np.maximum(size, 1), 0.0)
    return recall, 1 - wrong.sum(-1, keepdims=True) / sums["examples"], size > 0


@dataclass(frozen=True)
class _OfRecalls(Measure):
    """A measure that depends only on the recalls of the parts (classes or groups)."""

    def counts(self, pair: Pair) -> Counts:
        return _recall(pair)


@MEASURES.register("max_excess_accuracy_gap")
@dataclass(frozen=True)
class MaxExcessAccuracyGap(_OfRecalls):
    """Accuracy lost by the worst class beyond what the test set lost; the gap of each class is in ``per_class``.

    Never below 0: the gaps, weighed by the sizes of the classes, add up to 0.
    """

    title = "Largest excess accuracy gap"
    source = "Hashemizadeh et al. 2024, max_g ψ_g"
    equation = "max_c [(recall_c - recall'_c) - (accuracy - accuracy')]"
    unit = "share"
    better = "lower"
    margin = 0.01
    interval = "outer"
    noise = "up"

    def value(self, sums: Sums) -> np.ndarray:
        before, whole_before, some = _recalls(sums, "reference")
        after, whole_after, _ = _recalls(sums, "candidate")
        return np.where(some, (before - after) - (whole_before - whole_after), -np.inf).max(-1)


@MEASURES.register("worst_recall")
@dataclass(frozen=True)
class WorstRecall(_OfRecalls):
    """Recall of the candidate's worst class."""

    title = "Worst-class recall"
    source = "Sagawa et al. 2020 (worst-group accuracy)"
    equation = "min_c recall'_c"
    unit = "share"
    better = "higher"
    compares = False
    interval = "outer"
    noise = "down"

    def value(self, sums: Sums) -> np.ndarray:
        recall, _, some = _recalls(sums, "candidate")
        return np.where(some, recall, np.inf).min(-1)


@MEASURES.register("recall_range")
@dataclass(frozen=True)
class RecallRange(_OfRecalls):
    """Distance between the candidate's best and worst class."""

    title = "Range of class recall"
    source = "max-min disparity, as in Lin et al. 2022 (FairGRAPE)"
    equation = "max_c recall'_c - min_c recall'_c"
    unit = "share"
    better = "lower"
    compares = False
    interval = "outer"
    noise = "up"

    def value(self, sums: Sums) -> np.ndarray:
        recall, _, some = _recalls(sums, "candidate")
        return np.where(some, recall, -np.inf).max(-1) - np.where(some, recall, np.inf).min(-1)


@MEASURES.register("recall_variance")
@dataclass(frozen=True)
class RecallVariance(_OfRecalls):
    """Variance of recall between the candidate's classes (division by C: the classes are all there are)."""

    title = "Variance of class recall"
    source = "population variance over classes"
    equation = "1/C Σ_c (recall'_c - mean recall')²"
    unit = "squared share"
    better = "lower"
    compares = False
    interval = "outer"
    noise = "up"

    def value(self, sums: Sums) -> np.ndarray:
        recall, _, some = _recalls(sums, "candidate")
        share = some / some.sum(-1, keepdims=True)
        mean = (share * recall).sum(-1, keepdims=True)
        return (share * (recall - mean) ** 2).sum(-1)


@MEASURES.register("intensification")
@dataclass(frozen=True)
class Intensification(_OfRecalls):
    """Slope of the candidate's recall balance on the reference's: above 1 pruning spreads the classes further apart.

    Recall balance is a class's recall relative to the network's accuracy, here divided by that accuracy, so that a
    network that lost the same share of every recall has slope 1. The slope is that of ordinary least squares with an
    intercept over classes; where classes have equal support the balances sum to zero and the intercept is zero anyway.
    Noise in the reference's recalls pulls the slope below 1: two equally good networks do not reach 1 either.
    """

    title = "Intensification of recall balance"
    source = "Good et al. 2022 (recall balance normalised by accuracy)"
    equation = "slope of b' on b,  b_c = (recall_c - accuracy) / accuracy"
    unit = "ratio"
    lowest = -np.inf
    better = "near 1"
    margin = 0.1
    interval = "outer"

    def value(self, sums: Sums) -> np.ndarray:
        balances = []
        for word in ("reference", "candidate"):
            recall, accuracy, some = _recalls(sums, word)
            balance = np.divide(recall - accuracy, accuracy, out=np.full(recall.shape, np.nan), where=accuracy > 0)
            share = some / some.sum(-1, keepdims=True)
            balances.append(balance - (share * balance).sum(-1, keepdims=True))
        before, after = balances
        down = (some * before**2).sum(-1)
        return np.divide((some * before * after).sum(-1), down, out=np.full(down.shape, np.nan), where=down > 1e-18)


@MEASURES.register("accuracy")
@dataclass(frozen=True)
class Accuracy(_OfRecalls):
    """Top-1 accuracy of the candidate."""

    title = "Top-1 accuracy"
    source = "share of examples whose prediction is the label"
    equation = "1/N Σ_i [prediction'_i = label_i]"
    unit = "share"
    better = "higher"
    short = "accuracy"
    headline = 1
    compares = False
    digits = 4
    complement = "wrong predictions (%)"

    def value(self, sums: Sums) -> np.ndarray:
        # The number of right answers over N is exact to the last bit; 1 minus a share of wrong ones is not.
        return ((sums["examples"] - sums["part_wrong_candidate"].sum(-1, keepdims=True)) / sums["examples"])[..., 0]


@MEASURES.register("accuracy_change")
@dataclass(frozen=True)
class AccuracyChange(_OfRecalls):
    """Top-1 accuracy of the candidate minus that of the reference."""

    title = "Change of top-1 accuracy"
    source = "difference of the two accuracies"
    equation = "accuracy' - accuracy"
    unit = "share"
    lowest = -np.inf
    better = "higher"
    margin = 0.01

    def value(self, sums: Sums) -> np.ndarray:
        return (_recalls(sums, "candidate")[1] - _recalls(sums, "reference")[1])[..., 0]
