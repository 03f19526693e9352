"""How unequally a network treats the groups of a column (a sensitive attribute, a site): what fairness usually means.

With more than two classes each class in turn is held against the rest, and the class in which the groups lie farthest
apart counts. With two classes that makes demographic parity and the difference of equalized odds the same whichever
class is called positive; equal opportunity and the ratio of equalized odds take the worse of the two choices.

A rate exists in a group that has examples of its kind: the share found (TPR) where there are examples of the class, the
share falsely claimed (FPR) where there are others. Groups without are left out, for that class and rate; where no class
has a rate in two groups, the measure does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np

from pipeline.bias.measures.declared import MEASURES, Counts, Measure, Pair, Sums, once, one_hot


@once
def _of_groups(pair: Pair) -> Counts:
    """By group and class: examples of the class, examples called by its name, and those that are both."""
    classes, width = pair.class_count, pair.class_count * pair.group_count
    first = pair.groups * classes  # place of a group's class 0
    counts: Counts = {
        "group_size": one_hot(pair.groups, pair.group_count),
        "group_positives": one_hot(first + pair.labels, width),
    }
    for word, each in pair.both:
        right = each.predictions == pair.labels
        counts[f"group_claimed_{word}"] = one_hot(first + each.predictions, width)
        counts[f"group_right_{word}"] = one_hot(first + pair.labels, width, where=right)
    return counts


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where there is nothing to have a share of."""
    return np.divide(part, whole, out=np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan), where=whole > 0)


@dataclass(frozen=True)
class _Rates:
    """Of one network, each [..., groups, classes], NaN where it does not exist.

    claimed: share of a group called by the name of the class. found: TPR. falsely: FPR. accuracy: [..., groups].
    """

    claimed: np.ndarray
    found: np.ndarray
    falsely: np.ndarray
    accuracy: np.ndarray

    def less(self, other: _Rates) -> _Rates:
        """How far these rates are from others."""
        return _Rates(*(getattr(self, each.name) - getattr(other, each.name) for each in fields(self)))

    @classmethod
    def of(cls, sums: Sums, word: str) -> _Rates:
        size = sums["group_size"]
        positives, claimed, right = (
            sums[name].reshape(*size.shape, -1)
            for name in ("group_positives", f"group_claimed_{word}", f"group_right_{word}")
        )
        return cls(
            claimed=_share(claimed, size[..., None]),
            found=_share(right, positives),
            falsely=_share(claimed - right, size[..., None] - positives),
            accuracy=_share(right.sum(-1), size),
        )


def _ends(rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest rate over groups, [..., classes]; NaN where fewer than two groups have it."""
    exists = ~np.isnan(rates)
    some = exists.sum(-2) > 1
    low, high = np.where(exists, rates, np.inf).min(-2), np.where(exists, rates, -np.inf).max(-2)
    return np.where(some, low, np.nan), np.where(some, high, np.nan)


def _difference(*rates: np.ndarray) -> np.ndarray:
    """The largest distance between two groups, over classes and rates: [...], NaN where none exists."""
    ends = np.concatenate([np.subtract(*reversed(_ends(each))) for each in rates], -1)
    return np.fmax.reduce(ends, -1)


def _ratio(*rates: np.ndarray) -> np.ndarray:
    """The smallest rate of one group over that of another, over classes and rates: [...]; 0 in all groups is alike."""
    found = []
    for low, high in map(_ends, rates):
        found.append(np.where(high > 0, _share(low, high), np.where(high == 0, 1.0, np.nan)))
    return np.fmin.reduce(np.concatenate(found, -1), -1)


@dataclass(frozen=True)
class _BetweenGroups(Measure):
    """A measure of one network that compares the groups of a column.

    simultaneous: its interval is that of ``by_group.simultaneous``, made of ``bound``. logarithmic: of its logarithm.
    """

    unit = "share"
    better = "lower"
    compares = False
    interval = "outer"
    needs_groups = True
    margin = 0.01
    simultaneous: ClassVar[bool] = True
    logarithmic: ClassVar[bool] = False

    def counts(self, pair: Pair) -> Counts:
        return _of_groups(pair)

    def of(self, rates: _Rates) -> np.ndarray:
        """The measure of the rates of one network: [...]."""
        raise NotImplementedError

    def value(self, sums: Sums) -> np.ndarray:
        return self.of(_Rates.of(sums, "candidate"))

    def bound(self, drawn: Sums, whole: Sums) -> np.ndarray:
        """How far the value of drawn examples can be from that of all, given how far each rate is: [...].

        A largest distance between rates moves by no more than the largest distance between their deviations.
        """
        return self.of(_Rates.of(drawn, "candidate").less(_Rates.of(whole, "candidate")))


@dataclass(frozen=True)
class _ChangeBetweenGroups(_BetweenGroups):
    """The candidate's value minus the reference's."""

    lowest = -np.inf
    compares = True

    def value(self, sums: Sums) -> np.ndarray:
        return super().value(sums) - self.of(_Rates.of(sums, "reference"))

    def bound(self, drawn: Sums, whole: Sums) -> np.ndarray:
        reference = _Rates.of(drawn, "reference").less(_Rates.of(whole, "reference"))
        return super().bound(drawn, whole) + self.of(reference)


@MEASURES.register("demographic_parity_difference")
@dataclass(frozen=True)
class DemographicParityDifference(_BetweenGroups):
    """How much more often one group is called by the name of a class than another."""

    title = "Demographic parity difference"
    source = "Calders et al. 2009; Agarwal et al. 2018; as in fairlearn"
    equation = "max_c [max_g P(prediction' = c | g) - min_g P(prediction' = c | g)]"

    def of(self, rates: _Rates) -> np.ndarray:
        return _difference(rates.claimed)


@MEASURES.register("equalized_odds_difference")
@dataclass(frozen=True)
class EqualizedOddsDifference(_BetweenGroups):
    """The larger of the distances between two groups in the share found and in the share falsely claimed."""

    title = "Equalized odds difference"
    source = "Hardt et al. 2016; as in fairlearn (worst case)"
    equation = "max_c max(max_g TPR'_gc - min_g TPR'_gc, max_g FPR'_gc - min_g FPR'_gc)"

    def of(self, rates: _Rates) -> np.ndarray:
        return _difference(rates.found, rates.falsely)


@MEASURES.register("equalized_odds_difference_change")
@dataclass(frozen=True)
class EqualizedOddsDifferenceChange(_ChangeBetweenGroups, EqualizedOddsDifference):
    """Equalized odds difference of the candidate minus that of the reference."""

    title = "Change of equalized odds difference"
    equation = "EOD' - EOD"


@MEASURES.register("equalized_odds_ratio")
@dataclass(frozen=True)
class EqualizedOddsRatio(_BetweenGroups):
    """The smaller of the ratios between two groups of the share found and of the share falsely claimed."""

    title = "Equalized odds ratio"
    source = "Hardt et al. 2016; as in fairlearn (worst case)"
    equation = "min_c min(min_g TPR'_gc / max_g TPR'_gc, min_g FPR'_gc / max_g FPR'_gc)"
    unit = "ratio"
    better = "higher"
    logarithmic = True

    def of(self, rates: _Rates) -> np.ndarray:
        return _ratio(rates.found, rates.falsely)

    def bound(self, drawn: Sums, whole: Sums) -> np.ndarray:
        """Of the logarithm of the ratio; infinite where a rate is 0."""
        both = [_Rates.of(sums, "candidate") for sums in (drawn, whole)]
        first, second = (np.concatenate([rates.found, rates.falsely], -1) for rates in both)
        change = np.log(np.where(first == 0, 1, first) / np.where(second == 0, 1, second))  # NaN stays
        return np.where(((first == 0) | (second == 0)).any((-2, -1)), np.inf, _difference(change))


@MEASURES.register("equal_opportunity_difference")
@dataclass(frozen=True)
class EqualOpportunityDifference(_BetweenGroups):
    """How much more often the examples of a class are found in one group than in another."""

    title = "Equal opportunity difference"
    source = "Hardt et al. 2016; as in fairlearn"
    equation = "max_c [max_g TPR'_gc - min_g TPR'_gc]"

    def of(self, rates: _Rates) -> np.ndarray:
        return _difference(rates.found)


@MEASURES.register("worst_group_accuracy")
@dataclass(frozen=True)
class WorstGroupAccuracy(_BetweenGroups):
    """Accuracy in the group where it is lowest."""

    title = "Worst-group accuracy"
    source = "Sagawa et al. 2020"
    equation = "min_g accuracy'_g"
    better = "higher"
    noise = "down"
    simultaneous = False

    def of(self, rates: _Rates) -> np.ndarray:
        return np.fmin.reduce(rates.accuracy, -1)


@MEASURES.register("worst_group_accuracy_change")
@dataclass(frozen=True)
class WorstGroupAccuracyChange(_ChangeBetweenGroups, WorstGroupAccuracy):
    """Worst-group accuracy of the candidate minus that of the reference; the group may be another one."""

    title = "Change of worst-group accuracy"
    noise = ""  # of both networks
    equation = "min_g accuracy'_g - min_g accuracy_g"
