"""How unevenly the error rates of the classes changed: CEV and SDE, and both without sampling noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.special import ndtr

from pipeline.bias.measures.declared import MEASURES, Counts, DenseNetworks, Measure, Pair, Sums, once, one_hot
from pipeline.bias.rates import cev_by_class, cev_of, changes_of, sde_by_class, sde_of


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
    margin = 1.5
    corrected = "cev_corrected"
    interval = "corrected"
    smoothing: float = 0.0

    def counts(self, pair: Pair) -> Counts:
        return _errors(pair)

    def changes(self, sums: Sums) -> tuple[np.ndarray, np.ndarray]:
        """d [..., 2, C] in percent and which classes have it [..., C]."""
        return _changes(sums, self.smoothing)

    def value(self, sums: Sums) -> np.ndarray:
        return cev_of(*self.changes(sums))

    def by_class(self, sums: Sums) -> np.ndarray:
        return cev_by_class(*self.changes(sums))


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
    margin = 1.5**0.5  # CEV is a square, SDE is not
    corrected = "sde_corrected"
    interval = "corrected"
    smoothing: float = 0.0

    def counts(self, pair: Pair) -> Counts:
        return _errors(pair)

    def changes(self, sums: Sums) -> tuple[np.ndarray, np.ndarray]:
        """d [..., 2, C] in percent and which classes have it [..., C]."""
        return _changes(sums, self.smoothing)

    def value(self, sums: Sums) -> np.ndarray:
        return sde_of(*self.changes(sums))

    def by_class(self, sums: Sums) -> np.ndarray:
        return sde_by_class(*self.changes(sums))


@once
def _mean_errors(dense: DenseNetworks, count: int) -> Counts:
    """False negatives and false positives per class, mean over all dense networks."""
    wrong = [each.labels != each.predictions for each in dense.networks]
    share = 1 / len(dense.networks)

    def mean(columns: list[np.ndarray]) -> sparse.csr_matrix:
        counts = [one_hot(column, count, where=where) for column, where in zip(columns, wrong, strict=True)]
        return (share * sum(counts[1:], counts[0])).tocsr()

    return {
        "false_negatives_dense": mean([each.labels for each in dense.networks]),
        "false_positives_dense": mean([each.predictions for each in dense.networks]),
    }


@once
def _errors_beside_dense(pair: Pair) -> Counts:
    return _errors(pair) | _mean_errors(pair.dense or DenseNetworks((pair.reference,)), pair.class_count)


def _common_changes(sums: Sums, smoothing: float) -> tuple[np.ndarray, np.ndarray]:
    """d [..., 2, C] in percent of the dense networks' mean rates, and which classes have it [..., C]."""
    before, after, dense = (
        np.stack([sums[f"false_positives_{word}"], sums[f"false_negatives_{word}"]], -2) + smoothing
        for word in ("reference", "candidate", "dense")
    )
    return changes_of(dense, dense + (after - before))


class _OverMeanRates:
    """What CEV and SDE over the dense networks' mean rates have otherwise than CEV and SDE."""

    source = "derived here"
    headline = 0
    corrected = ""
    interval = ""  # a bootstrap adds the noise a second time; what takes it away is made for CEV and SDE alone

    def counts(self, pair: Pair) -> Counts:
        return _errors_beside_dense(pair)

    def changes(self, sums: Sums) -> tuple[np.ndarray, np.ndarray]:
        return _common_changes(sums, self.smoothing)


@MEASURES.register("cev_common")
@dataclass(frozen=True)
class CommonCombinedErrorVariance(_OverMeanRates, CombinedErrorVariance):
    """CEV whose changes are relative to the mean rates of all dense networks, and not to those of one.

    One network may make one error in a class where the others make five; a change there is then five times as large
    against that one. A mean over seeds is a steadier denominator. With one dense network it is CEV. Derived here; not
    the published definition, which is ``cev``.
    """

    title = "CEV over the dense networks' mean rates"
    equation = "as CEV,  d_c = (rate'_c - rate_c) / mean over dense networks of rate_c"
    short = "cev_common"


@MEASURES.register("sde_common")
@dataclass(frozen=True)
class CommonSymmetricDistanceError(_OverMeanRates, SymmetricDistanceError):
    """SDE whose changes are relative to the mean rates of all dense networks, see ``cev_common``."""

    title = "SDE over the dense networks' mean rates"
    equation = "as SDE,  d_c = (rate'_c - rate_c) / mean over dense networks of rate_c"
    short = "sde_common"


class Corrected:
    """What takes sampling noise away from CEV, or from the square of SDE: a function of totals over classes.

    ``terms(sums)`` gives what each class adds, [..., C, K]; ``value(totals)`` the estimate from totals [..., K], NaN
    where no class has a relative change. So a class can be changed without another look at all the others.
    """

    @staticmethod
    def terms(sums: Sums) -> np.ndarray:
        raise NotImplementedError

    @staticmethod
    def value(totals: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    @staticmethod
    def noise(totals: np.ndarray) -> np.ndarray:
        """How much sampling noise adds, at least 0 on average."""
        raise NotImplementedError

    @classmethod
    def of(cls, sums: Sums) -> np.ndarray:
        """The estimate from sums over examples: [...]."""
        return cls.value(cls.terms(sums).sum(-2))


class CorrectedVariance(Corrected):
    """CEV: each square of its mean of squares is estimated by itself, the mean's square over pairs of classes."""

    @staticmethod
    def terms(sums: Sums) -> np.ndarray:
        first, second, used = _unbiased_changes(sums)
        return np.stack([first[..., 0, :], first[..., 1, :], (first**2).sum(-2), second.sum(-2), used], -1)

    @staticmethod
    def value(totals: np.ndarray) -> np.ndarray:
        positives, negatives, own, squares, used = np.moveaxis(totals, -1, 0)
        count = np.where(used > 0, used, np.nan)
        products = positives**2 + negatives**2 - own  # of two different classes, which are nearly independent
        return 0.5 * (squares - (squares + products) / count) / count

    @staticmethod
    def noise(totals: np.ndarray) -> np.ndarray:
        _, _, own, squares, used = np.moveaxis(totals, -1, 0)
        count = np.where(used > 0, used, np.nan)
        return 0.5 * (own - squares) * (1 - 1 / count) / count


class CorrectedDistance(Corrected):
    """SDE squared, by simulation and extrapolation (Cook and Stefanski 1994) in closed form.

    Let x_c estimate d_FPR - d_FNR with variance v_c. Noise of variance m v_c on top of it would turn |x_c| into the
    mean of a folded normal variable (Leone et al. 1961); E(m) is SDE with that noise. Were the true distances all 0, or
    normal around 0, E² would be a straight line in m; at m = -1, where there is no noise, it is 2 E(0)² - E(1)².
    """

    @staticmethod
    def terms(sums: Sums) -> np.ndarray:
        first, second, used = _unbiased_changes(sums)
        distance = np.abs(first[..., 0, :] - first[..., 1, :])
        variance = (first**2 - second).sum(-2)  # of two unbiased estimates; never below 0
        spread = np.sqrt(variance)
        far = np.divide(distance, spread, out=np.full(distance.shape, np.inf), where=spread > 0)
        noisy = spread * np.sqrt(2 / np.pi) * np.exp(-(far**2) / 2) + distance * (1 - 2 * ndtr(-far))
        return np.stack([distance, noisy, variance, used], -1)

    @staticmethod
    def value(totals: np.ndarray) -> np.ndarray:
        distance, noisy, _, used = np.moveaxis(totals, -1, 0)
        count = np.where(used > 0, used, np.nan)
        return (2 * (distance / count) ** 2 - (noisy / count) ** 2) / 2

    @staticmethod
    def noise(totals: np.ndarray) -> np.ndarray:
        variance, used = totals[..., -2], totals[..., -1]
        return variance / np.where(used > 0, used, np.nan) / 2


def signed_root(values: np.ndarray) -> np.ndarray:
    """The root of an estimated square, with its sign: a root of 0 for all below 0 would estimate 0 too high."""
    return np.sign(values) * np.sqrt(np.abs(values))


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
        return CorrectedVariance.of(sums)


@MEASURES.register("sde_corrected")
@dataclass(frozen=True)
class CorrectedSymmetricDistanceError(Measure):
    """SDE without what sampling noise adds to it: the signed root of ``CorrectedDistance``.

    Below 0 it says that the distances are no larger than noise. Derived here; its bias and coverage are measured in
    benchmarks/coverage.py.
    """

    title = "SDE, corrected for sampling noise"
    noise_free = True
    source = "derived here, by the method of Cook and Stefanski 1994"
    equation = "±√|2 E(0)² - E(1)²|,  E(m) = SDE with m times its sampling noise added"
    unit = "percent"
    lowest = -np.inf
    better = "lower"
    interval = "corrected"

    def counts(self, pair: Pair) -> Counts:
        return _joint_errors(pair)

    def value(self, sums: Sums) -> np.ndarray:
        return signed_root(CorrectedDistance.of(sums))


@once
def error_columns(pair: Pair) -> np.ndarray:
    """Which errors an example stands for: int64 [N, 3] into [both, lost, gained] x [false positive, negative] x class.

    The reference alone makes an error that was *lost*, the candidate alone one that was *gained*. An example has one
    false negative and up to two false positives; 6 C stands for none.
    """
    before, after, labels, count = pair.reference.predictions, pair.candidate.predictions, pair.labels, pair.class_count
    missed, missed_after, alike = before != labels, after != labels, before == after
    none = 6 * count
    negative = np.select(
        [missed & missed_after, missed, missed_after], [labels + (2 * j + 1) * count for j in range(3)], none
    )
    was = np.where(missed, before + np.where(alike, 0, 2 * count), none)
    now = np.where(missed_after & ~alike, after + 4 * count, none)
    return np.stack([negative, was, now], 1)


def sums_of_errors(counts: np.ndarray) -> Sums:
    """Counts [..., 3, 2, C] of ``error_columns`` as the sums that CEV, SDE and both corrected are functions of."""
    both = counts[..., 0, :, :]
    found = {"both": both, "reference": both + counts[..., 1, :, :], "candidate": both + counts[..., 2, :, :]}
    return {
        f"false_{kind}_{word}": each[..., place, :]
        for word, each in found.items()
        for place, kind in enumerate(("positives", "negatives"))
    }
