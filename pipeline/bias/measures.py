"""The table of measures: each entry says what it counts on the examples and how its value follows from the sums.

Every measure here is a function of sums over examples. That one fact serves the value itself (add all rows), the
bootstrap (add rows as often as they were drawn), the jackknife (all but one) and groups (the rows of a group), so a
measure is written once. To add one, register a dataclass with ``counts`` and ``value``; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from scipy import sparse

from pipeline.bias.rates import cev_of, changes_of, sde_of
from pipeline.predictions import Predictions
from pipeline.registry import Registry, UserError

MEASURES: Registry[Measure] = Registry("measure")

Counts = dict[str, "np.ndarray | sparse.csr_matrix"]
Sums = dict[str, np.ndarray]
Found = TypeVar("Found")


def once(function: Callable[..., Found]) -> Callable[..., Found]:
    """A function of a pair or a network, and of plain values, whose answer is kept while that pair or network lives.

    A network is in many pairs (in 2 (K - 1) of the floor of K), and a pair is looked at by many measures.
    """
    known: WeakKeyDictionary[Any, dict[tuple, Found]] = WeakKeyDictionary()

    @wraps(function)
    def asked(each: Any, *options: Any) -> Found:
        found = known.setdefault(each, {})
        if options not in found:
            found[options] = function(each, *options)
        return found[options]

    return asked


@dataclass(frozen=True, eq=False)
class Pair:
    """One candidate beside its reference on the same examples.

    Attributes:
        reference, candidate: their predictions; labels are equal.
        class_count: C.
        parts: int64 [N], what recall is taken over: the labels, or a group column.
        part_count: the number of parts.
    """

    reference: Predictions
    candidate: Predictions
    class_count: int
    parts: np.ndarray
    part_count: int

    def __post_init__(self) -> None:
        if len(self.reference.labels) != len(self.candidate.labels):
            raise UserError(
                f"{self.candidate.source}: {len(self.candidate.labels)} examples, but {self.reference.source} has "
                f"{len(self.reference.labels)}; predict the same test set with both"
            )
        missing = np.setxor1d(self.reference.labels, self.candidate.labels)
        if len(missing):
            with_it = self.reference if (self.reference.labels == missing[0]).any() else self.candidate
            without = self.candidate if with_it is self.reference else self.reference
            name = with_it.classes[missing[0]] if with_it.classes is not None else missing[0]
            raise UserError(
                f"{without.source}: class '{name}' is missing from the labels, {with_it.source} has it; "
                "predict the same test set with both"
            )
        differ = self.reference.labels != self.candidate.labels
        if differ.any():
            raise UserError(
                f"{self.candidate.source}: labels differ from {self.reference.source}, first in row "
                f"{int(differ.argmax())}; predict the same test set, in the same order, with both"
            )

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]."""
        return self.reference.labels

    @property
    def both(self) -> tuple[tuple[str, Predictions], tuple[str, Predictions]]:
        """The two with the words that name their sums."""
        return ("reference", self.reference), ("candidate", self.candidate)

    @property
    def paired(self) -> bool:
        """Whether row i is known to be the same example in both."""
        return self.reference.paired and self.candidate.paired

    @property
    def has_logits(self) -> bool:
        """Whether both have logits."""
        return self.reference.logits is not None and self.candidate.logits is not None

    @property
    def log_probabilities(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 [N, C] of reference and candidate: log softmax of the logits."""
        return log_softmax(self.reference), log_softmax(self.candidate)


@once
def log_softmax(network: Predictions) -> np.ndarray:
    """float64 [N, C] of its logits; rows of exponentials sum to 1."""
    shifted = network.logits.astype(np.float64)
    shifted -= shifted.max(1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(1, keepdims=True))
    return shifted


def one_hot(columns: np.ndarray, width: int, *, where: np.ndarray | None = None) -> sparse.csr_matrix:
    """[N, width] with a one in row i at columns[i], where asked."""
    keep = np.ones(len(columns), bool) if where is None else where
    ends = np.concatenate([[0], np.cumsum(keep)])
    return sparse.csr_matrix((np.ones(ends[-1]), columns[keep], ends), (len(columns), width))


class _RegisteredName:
    """A class attribute that is the registered name until a measure declares another."""

    def __get__(self, measure: Measure | None, kind: type[Measure]) -> str:
        return kind.name


@dataclass(frozen=True)
class Measure:
    """What all measures declare.

    ``counts(pair)`` gives named arrays or sparse matrices [N] or [N, width]; ``value(sums)`` gets their sums over
    examples, each [..., width], and ``sums["examples"]`` [..., 1], and gives the value [...], NaN for none.
    Counts of equal name are equal counts: they are made once. With ``over_trials`` the measure exists for all trials of
    a method together and ``counts`` gets the list of pairs.

    Attributes:
        name: the one it is registered under.
        title, source, equation, unit: words for tables.
        better: ``"lower"``, ``"higher"``, ``"near 1"``, or ``"either way"`` for a signed change.
        needs_logits: it exists only where both networks have logits.
        needs_pairing: it exists only where row i is known to be the same example in both.
        over_trials: it exists for all trials of a method together.
        lowest: no interval goes below it.
        noise_free: it estimates what its interval is for, so that an audit shows it inside of it.
        interval: the method that covers best, see benchmarks/coverage.py.
        short: heading of a column; the name where a measure has no shorter one.
        headline: position among the columns of the main tables, 0 for full lists only.
        compares: it says how candidate and reference differ; False for what the candidate has alone.
        comparison: how the values of two methods are compared: ``"difference"``, or ``"ratio"`` for a positive value
            whose spread grows with its size.
        corrected: name of the measure that estimates it without sampling noise, or an empty string.
        digits: decimals in tables, None for three significant digits.
        complement: what 1 - value, in percent, is called where the logarithmic axis of a figure needs it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    equation: ClassVar[str]
    unit: ClassVar[str]
    better: ClassVar[str]
    needs_logits: ClassVar[bool] = False
    needs_pairing: ClassVar[bool] = False
    over_trials: ClassVar[bool] = False
    lowest: ClassVar[float] = 0.0
    noise_free: ClassVar[bool] = False
    interval: ClassVar[str] = "bca"
    short: ClassVar[str] = _RegisteredName()
    headline: ClassVar[int] = 0
    compares: ClassVar[bool] = True
    comparison: ClassVar[str] = "difference"
    corrected: ClassVar[str] = ""
    digits: ClassVar[int | None] = None
    complement: ClassVar[str] = ""

    def counts(self, pair: Pair | Sequence[Pair]) -> Counts:
        """What each example contributes."""
        raise NotImplementedError

    def value(self, sums: Sums) -> np.ndarray:
        """The measure of the sums."""
        raise NotImplementedError


@once
def _errors(pair: Pair) -> Counts:
    """False negatives and false positives per class of both networks: all that CEV and SDE depend on.

    The negatives and positives of a class are the same for both networks, so they cancel from the relative change.
    """
    counts = {}
    for word, each in pair.both:
        wrong = each.labels != each.predictions
        counts[f"false_negatives_{word}"] = one_hot(each.labels, pair.class_count, where=wrong)
        counts[f"false_positives_{word}"] = one_hot(each.predictions, pair.class_count, where=wrong)
    return counts


@once
def _joint_errors(pair: Pair) -> Counts:
    """The errors of a class that both networks make (both miss it, both call an example by its name)."""
    before, after, labels = pair.reference.predictions, pair.candidate.predictions, pair.labels
    return _errors(pair) | {
        "false_negatives_both": one_hot(labels, pair.class_count, where=(before != labels) & (after != labels)),
        "false_positives_both": one_hot(before, pair.class_count, where=(before != labels) & (after == before)),
    }


def _unbiased_changes(sums: Sums) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimates of d and d² [..., 2, C] in percent that sampling noise does not inflate, and the classes used [..., C].

    Let b errors of a class be made by both, r by the reference alone, s by the candidate alone: d = (s - r)/(b + r).
    Counts of errors are nearly independent Poisson numbers, and b + r = n has E[1/(n+1)] = 1/λ and
    E[1/((n+1)(n+2))] = 1/λ² but for terms of e^-λ. Hence s/(n+1) - r/n and
    s(s-1)/((n+1)(n+2)) - 2 s r/((n+1) n) + r(r-1)/(n(n-1)) have the expectations d and d². The second may be negative.
    """
    before, after, both = (
        np.stack([sums[f"false_positives_{word}"], sums[f"false_negatives_{word}"]], -2)
        for word in ("reference", "candidate", "both")
    )
    lost, gained = before - both, after - both
    n, n_less = np.maximum(before, 1), np.maximum(before - 1, 1)
    first = gained / (before + 1) - lost / n
    second = gained * (gained - 1) / ((before + 1) * (before + 2))
    second += lost * (lost - 1) / (n * n_less) - 2 * gained * lost / ((before + 1) * n)
    used = (before > 0).all(-2)
    return 100 * first * used[..., None, :], 1e4 * second * used[..., None, :], used


def _per_class(total: np.ndarray, used: np.ndarray) -> np.ndarray:
    """A total over the classes used, divided by their number: [...], NaN where there is none."""
    count = used.sum(-1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _changes(sums: Sums, smoothing: float) -> tuple[np.ndarray, np.ndarray]:
    """d [..., 2, C] and which classes have it [..., C]; equal denominators cancel, so the pseudo-count stays above."""
    before, after = (
        np.stack([sums[f"false_positives_{word}"], sums[f"false_negatives_{word}"]], -2) + smoothing
        for word in ("reference", "candidate")
    )
    return changes_of(before, after)


@MEASURES.register("cev")
@dataclass(frozen=True)
class CombinedErrorVariance(Measure):
    """See ``pipeline.bias.cev``."""

    title = "Combined Error Variance"
    source = "Blakeney et al. 2021 (released code)"
    equation = "1/(2C) Σ_c |d_c - mean d|²,  d_c = (d_FPR,c, d_FNR,c)"
    unit = "squared percent"
    better = "lower"
    short = "CEV"
    headline = 2
    comparison = "ratio"
    corrected = "cev_corrected"
    interval = "corrected"
    smoothing: float = 0.0

    def counts(self, pair: Pair) -> Counts:
        return _errors(pair)

    def value(self, sums: Sums) -> np.ndarray:
        return cev_of(*_changes(sums, self.smoothing))


@MEASURES.register("sde")
@dataclass(frozen=True)
class SymmetricDistanceError(Measure):
    """See ``pipeline.bias.sde``."""

    title = "Symmetric Distance Error"
    source = "Blakeney et al. 2021"
    equation = "1/C Σ_c |d_FPR,c - d_FNR,c| / √2"
    unit = "percent"
    better = "lower"
    short = "SDE"
    headline = 3
    comparison = "ratio"
    corrected = "sde_corrected"
    interval = "corrected"
    smoothing: float = 0.0

    def counts(self, pair: Pair) -> Counts:
        return _errors(pair)

    def value(self, sums: Sums) -> np.ndarray:
        return sde_of(*_changes(sums, self.smoothing))


@MEASURES.register("cev_corrected")
@dataclass(frozen=True)
class CorrectedCombinedErrorVariance(Measure):
    """CEV without what sampling noise adds to it: an estimate of the value that an endless test set would give.

    CEV is a mean of squares less the square of a mean; each square is replaced by an estimate that is unbiased when the
    counts of errors are Poisson numbers, and the mean's square is written out over pairs of classes. It may come out
    below 0, which says that the changes are no more uneven than noise. Derived here; its bias and coverage are measured
    in benchmarks/coverage.py. An example that the reference calls c and the candidate c', both wrongly, ties two
    classes together; that is neglected (0.3 % of the value with 5 classes, less with more).
    """

    title = "CEV, corrected for sampling noise"
    noise_free = True
    source = "derived here"
    equation = "½ Σ_FPR,FNR [mean_c est(d_c²) - (Σ_c est(d_c²) + Σ_c≠c' est(d_c) est(d_c'))/C²]"
    unit = "squared percent"
    lowest = -np.inf
    better = "lower"
    interval = "corrected"

    def counts(self, pair: Pair) -> Counts:
        return _joint_errors(pair)

    def value(self, sums: Sums) -> np.ndarray:
        first, second, used = _unbiased_changes(sums)
        products = first.sum(-1) ** 2 - (first**2).sum(-1)  # of two different classes, which are nearly independent
        mean_squared = (second.sum(-1) + products) / np.maximum(used.sum(-1, keepdims=True), 1)
        return 0.5 * _per_class((second.sum(-1) - mean_squared).sum(-1), used)


def squared_distance(sums: Sums) -> np.ndarray:
    """Mean over classes of (d_FPR - d_FNR)², corrected for sampling noise, in squared percent: [...]."""
    first, second, used = _unbiased_changes(sums)
    return _per_class((second.sum(-2) - 2 * first[..., 0, :] * first[..., 1, :]).sum(-1), used)


def distance_shape(sums: Sums) -> np.ndarray:
    """Mean of |d_FPR - d_FNR| over its root mean square, as observed: in (0, 1], 1 where all are equal: [...]."""
    changes, used = _changes(sums, 0.0)
    apart = np.where(used, np.abs(changes[..., 0, :] - changes[..., 1, :]), 0.0)
    mean, square = _per_class(apart.sum(-1), used), _per_class((apart**2).sum(-1), used)
    return np.divide(mean, np.sqrt(square), out=np.where(np.isnan(square), np.nan, 1.0), where=square > 0)


@MEASURES.register("sde_corrected")
@dataclass(frozen=True)
class CorrectedSymmetricDistanceError(Measure):
    """SDE without what sampling noise adds to it.

    A mean of absolute values has no unbiased estimate, its mean square has: the corrected root mean square is
    multiplied by the ratio of the two as observed. That ratio is between 0.6 and 1 for any usual distribution over
    classes (0.80 for a normal one), so that little rests on it. 0 where the corrected mean square is negative.
    Derived here.
    """

    title = "SDE, corrected for sampling noise"
    noise_free = True
    source = "derived here"
    equation = "(mean|x| / rms x) √(mean_c est(x²) / 2),  x_c = d_FPR,c - d_FNR,c"
    unit = "percent"
    better = "lower"
    interval = "corrected"

    def counts(self, pair: Pair) -> Counts:
        return _joint_errors(pair)

    def value(self, sums: Sums) -> np.ndarray:
        return distance_shape(sums) * np.sqrt(np.maximum(squared_distance(sums), 0) / 2)


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
    interval = "basic"

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
    interval = "basic"

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
    interval = "basic"

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
    interval = "basic"

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
    interval = "basic"

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

    def value(self, sums: Sums) -> np.ndarray:
        return (_recalls(sums, "candidate")[1] - _recalls(sums, "reference")[1])[..., 0]


@MEASURES.register("churn")
@dataclass(frozen=True)
class Churn(Measure):
    """Share of examples on which the two networks disagree, right or wrong."""

    title = "Prediction disagreement (churn)"
    source = "Milani Fard et al. 2016"
    equation = "1/N Σ_i [prediction_i ≠ prediction'_i]"
    unit = "share"
    better = "lower"
    comparison = "ratio"
    needs_pairing = True

    def counts(self, pair: Pair) -> Counts:
        return {"disagree": pair.reference.predictions != pair.candidate.predictions}

    def value(self, sums: Sums) -> np.ndarray:
        return (sums["disagree"] / sums["examples"])[..., 0]


def modal(predictions: np.ndarray, count: int) -> np.ndarray:
    """The most frequent class of each column of [K, N] predictions, the lowest number among equals: int64 [N]."""
    votes = np.zeros((predictions.shape[1], count), np.int32)
    for row in predictions:
        votes[np.arange(len(row)), row] += 1
    return votes.argmax(1)


@MEASURES.register("pie")
@dataclass(frozen=True)
class PruningIdentifiedExemplars(Measure):
    """Examples whose modal label over the candidates differs from that over the references.

    With one network on either side its prediction is the mode. Ties go to the lowest class number.
    """

    title = "Pruning Identified Exemplars"
    source = "Hooker et al. 2019"
    equation = "Σ_i [mode_k prediction_i,k ≠ mode_k prediction'_i,k]"
    unit = "examples"
    better = "lower"
    needs_pairing = True
    over_trials = True

    def counts(self, pairs: Sequence[Pair]) -> Counts:
        # One shared reference appears in every pair; that repetition does not change a mode.
        before, after = (
            modal(np.stack([getattr(pair, word).predictions for pair in pairs]), pairs[0].class_count)
            for word in ("reference", "candidate")
        )
        return {"modal_disagree": before != after}

    def value(self, sums: Sums) -> np.ndarray:
        return sums["modal_disagree"][..., 0]


@MEASURES.register("pie_unanimous")
@dataclass(frozen=True)
class UnanimousExemplars(Measure):
    """Examples on which every candidate disagrees with its reference: the stricter count of the Simon Says code."""

    title = "Exemplars on which all candidates disagree"
    source = "Blakeney et al. 2021 (released code)"
    equation = "Σ_i Π_k [prediction_i ≠ prediction'_i,k]"
    unit = "examples"
    better = "lower"
    needs_pairing = True
    over_trials = True

    def counts(self, pairs: Sequence[Pair]) -> Counts:
        disagree = [pair.reference.predictions != pair.candidate.predictions for pair in pairs]
        return {"all_disagree": np.logical_and.reduce(disagree)}

    def value(self, sums: Sums) -> np.ndarray:
        return sums["all_disagree"][..., 0]


@once
def _divergences(network: Predictions) -> WeakKeyDictionary[Predictions, np.ndarray]:
    return WeakKeyDictionary()


def _divergence(first: Predictions, second: Predictions) -> np.ndarray:
    """Of each example, float64 [N]; equal to the last bit for either order, so that it is computed for one."""
    if first in _divergences(second):
        return _divergences(second)[first]
    if second not in _divergences(first):
        p, q = log_softmax(first), log_softmax(second)
        rows = max(1, 2**15 // p.shape[1])  # few enough to stay in the processor's cache
        found = [_divergence_of(p[i : i + rows], q[i : i + rows]) for i in range(0, len(p), rows)]
        _divergences(first)[second] = np.concatenate(found)
    return _divergences(first)[second]


def _divergence_of(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    middle = np.logaddexp(first, second) - np.log(2)
    divergence = 0.5 * (np.exp(first) * (first - middle) + np.exp(second) * (second - middle)).sum(1)
    return np.maximum(divergence, 0.0)


@MEASURES.register("js_divergence")
@dataclass(frozen=True)
class JensenShannonDivergence(Measure):
    """Mean Jensen-Shannon divergence between the two networks' class probabilities, at most log 2."""

    title = "Jensen-Shannon divergence"
    source = "Lin 1991"
    equation = "1/N Σ_i [KL(p_i|m_i) + KL(q_i|m_i)] / 2,  m_i = (p_i + q_i) / 2"
    unit = "nats"
    better = "lower"
    comparison = "ratio"
    needs_logits = True
    needs_pairing = True

    def counts(self, pair: Pair) -> Counts:
        return {"js": _divergence(pair.reference, pair.candidate)}

    def value(self, sums: Sums) -> np.ndarray:
        return (sums["js"] / sums["examples"])[..., 0]


@once
def _calibration_gaps(network: Predictions, bins: int) -> sparse.csr_matrix:
    """[N, bins]: right (1) or wrong (0) minus the confidence, in the bin of the confidence."""
    log_probability = log_softmax(network)
    confidence = np.exp(log_probability.max(1))
    # Bins are open below and closed above, as in Guo et al. 2017; the last one holds confidence 1.
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = one_hot(place, bins)
    gap.data = (network.labels == log_probability.argmax(1)) - confidence
    return gap


def _calibration(pair: Pair, bins: int) -> Counts:
    return {f"calibration_{word}_{bins}": _calibration_gaps(each, bins) for word, each in pair.both}


@MEASURES.register("calibration_error")
@dataclass(frozen=True)
class CalibrationError(Measure):
    """Expected calibration error of the candidate: distance of confidence from accuracy, in bins of equal width."""

    title = "Expected calibration error"
    source = "Naeini et al. 2015, Guo et al. 2017 (15 bins)"
    equation = "Σ_b n_b/N |accuracy'_b - confidence'_b|"
    unit = "share"
    better = "lower"
    compares = False
    interval = "basic"
    needs_logits = True
    bins: int = 15

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise ValueError(f"bins is {self.bins}; give at least 1")

    def counts(self, pair: Pair) -> Counts:
        return _calibration(pair, self.bins)

    def value(self, sums: Sums) -> np.ndarray:
        return np.abs(sums[f"calibration_candidate_{self.bins}"] / sums["examples"]).sum(-1)


@MEASURES.register("calibration_error_change")
@dataclass(frozen=True)
class CalibrationErrorChange(CalibrationError):
    """Expected calibration error of the candidate minus that of the reference."""

    title = "Change of calibration error"
    equation = "ECE' - ECE"
    lowest = -np.inf
    better = "lower"
    compares = True
    interval = "basic"

    def value(self, sums: Sums) -> np.ndarray:
        return super().value(sums) - np.abs(sums[f"calibration_reference_{self.bins}"] / sums["examples"]).sum(-1)


@once
def _in_top(network: Predictions, k: int) -> np.ndarray:
    """bool [N]: the label is among the k largest logits."""
    own = np.take_along_axis(network.logits, network.labels[:, None], 1)
    # Classes ahead of the true one: larger logits, and equal ones of a lower number, so that k = 1 is the argmax.
    ahead = (network.logits > own).sum(1)
    ahead += ((network.logits == own) & (np.arange(network.logits.shape[1]) < network.labels[:, None])).sum(1)
    return ahead < k


def _top(pair: Pair, k: int) -> Counts:
    return {f"top_{k}_{word}": _in_top(each, k) for word, each in pair.both}


@MEASURES.register("top5_accuracy")
@dataclass(frozen=True)
class TopFiveAccuracy(Measure):
    """Share of examples whose label is among the candidate's five largest logits (1 where there are but five)."""

    title = "Top-5 accuracy"
    source = "Russakovsky et al. 2015"
    equation = "1/N Σ_i [label_i among the 5 largest logits'_i]"
    unit = "share"
    better = "higher"
    compares = False
    needs_logits = True

    def counts(self, pair: Pair) -> Counts:
        return _top(pair, 5)

    def value(self, sums: Sums) -> np.ndarray:
        return (sums["top_5_candidate"] / sums["examples"])[..., 0]


@MEASURES.register("top5_accuracy_change")
@dataclass(frozen=True)
class TopFiveAccuracyChange(TopFiveAccuracy):
    """Top-5 accuracy of the candidate minus that of the reference."""

    title = "Change of top-5 accuracy"
    equation = "top5' - top5"
    lowest = -np.inf
    compares = True

    def value(self, sums: Sums) -> np.ndarray:
        return super().value(sums) - (sums["top_5_reference"] / sums["examples"])[..., 0]
