"""Per-class error rates of a classifier, and the two headline measures of what compression did to them: CEV and SDE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.predictions import Predictions, checked_confusion, refuse_one_class
from pipeline.registry import UserError

UNDEFINED = ("omit", "error")
AVERAGES = ("trials", "rates")
LARGEST_SMOOTHING = 1e6  # pseudo-counts beyond any test set: every relative change would be nearly 0


@dataclass(frozen=True, eq=False)
class Rates:
    """One-vs-rest error rates of each class, as fractions.

    Attributes:
        fpr: float64 [C], false positives over negatives, FP / (FP + TN).
        fnr: float64 [C], false negatives over positives, FN / (FN + TP); 0 for a class without examples.
        support: float64 [C], examples of each class.
    """

    fpr: np.ndarray
    fnr: np.ndarray
    support: np.ndarray

    @property
    def false_positives(self) -> np.ndarray:
        """float64 [C], counts."""
        return self.fpr * (self.support.sum() - self.support)

    @property
    def false_negatives(self) -> np.ndarray:
        """float64 [C], counts."""
        return self.fnr * self.support

    @classmethod
    def from_counts(cls, false_positives: np.ndarray, false_negatives: np.ndarray, support: np.ndarray) -> Rates:
        """Rates from counts per class, each [C]."""
        support = np.asarray(support, np.float64)
        negatives = support.sum() - support
        return cls(
            fpr=np.asarray(false_positives, np.float64) / np.maximum(negatives, 1),
            fnr=np.asarray(false_negatives, np.float64) / np.maximum(support, 1),
            support=support,
        )


@dataclass(frozen=True)
class OverTrials:
    """CEV or SDE over one or several trials, with what the value rests on.

    Attributes:
        value: the mean over trials (``average="trials"``), or the value of the averaged rates (``average="rates"``).
        spread: standard deviation between trials (n - 1), None for a single trial or averaged rates.
        trials: the value of each trial; of length 1 for averaged rates.
        classes_used: how many classes have a relative change, the smallest number over the trials.
        classes: how many classes there are.
    """

    value: float
    spread: float | None
    trials: tuple[float, ...]
    classes_used: int
    classes: int

    def __float__(self) -> float:
        return self.value


def rates(labels: np.ndarray, predictions: np.ndarray, *, classes: int | None = None) -> Rates:
    """Error rates per class of one classifier.

    Args:
        labels: [N] integers, counted from 0.
        predictions: [N] predicted classes, or [N, C] logits of which the largest counts.
        classes: C, where the largest number in the arrays does not tell it.

    Raises:
        UserError: empty arrays, unequal lengths, numbers out of range, NaN in the logits, fewer than two classes.
    """
    if np.ndim(predictions) == 2:
        both = Predictions.from_logits(labels, predictions)
    else:
        both = Predictions(labels, predictions)
    count = classes if classes is not None else both.class_count
    if both.class_count > count:
        raise UserError(f"predictions: class {both.class_count - 1} is out of range for {count} classes")
    refuse_one_class(count, both.source)
    wrong = both.labels != both.predictions
    return Rates.from_counts(
        np.bincount(both.predictions[wrong], minlength=count),
        np.bincount(both.labels[wrong], minlength=count),
        np.bincount(both.labels, minlength=count),
    )


def rates_from_confusion(confusion: np.ndarray) -> Rates:
    """Error rates per class from counts [C, C], rows = true class, columns = predicted.

    Raises:
        UserError: not square, negative, not whole numbers, empty, or fewer than two classes.
    """
    confusion = checked_confusion(confusion, "confusion matrix")
    right = confusion.diagonal()
    return Rates.from_counts(confusion.sum(0) - right, confusion.sum(1) - right, confusion.sum(1))


def relative_changes(
    reference: Rates, candidate: Rates, *, undefined: str = "omit", smoothing: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """How much the candidate's error rates differ from the reference's, in percent of the reference's.

    A class whose reference rate is zero has no relative change. With ``smoothing`` s > 0 every rate is taken as
    (errors + s) / (errors + right + 2 s), which always has one.

    Returns:
        float64 [2, C] of d_FPR and d_FNR (NaN where there is none), and bool [C]: the class has both.

    Raises:
        UserError: such a class with ``undefined="error"``; different numbers of classes; no class left.
    """
    if undefined not in UNDEFINED:
        raise UserError(f"undefined: '{undefined}' is not known; one of {', '.join(UNDEFINED)}")
    refuse_smoothing(smoothing)
    if len(reference.support) != len(candidate.support):
        raise UserError(f"reference has {len(reference.support)} classes, candidate has {len(candidate.support)}")
    before, after = (_smoothed(each, smoothing) for each in (reference, candidate))
    changes, used = changes_of(before, after)
    used &= reference.support > 0
    if undefined == "error" and not used.all():
        raise UserError(
            f"classes {', '.join(map(str, np.flatnonzero(~used)[:5]))}: the reference makes no error there, so there "
            "is no relative change; use undefined='omit' or a smoothing"
        )
    if not used.any():
        raise UserError("no class has reference errors of both kinds, so CEV and SDE do not exist; use a smoothing")
    changes[:, ~used] = np.nan
    return changes, used


def cev(
    reference: Rates | Sequence[Rates],
    candidate: Rates | Sequence[Rates],
    *,
    average: str = "trials",
    halved: bool = True,
    undefined: str = "omit",
    smoothing: float = 0.0,
) -> OverTrials:
    """Combined Error Variance: how unevenly the classes' error rates changed, in squared percent.

    CEV = (1 / 2C) sum_c |d_c - mean_c d|^2 with d_c = (d_FPR,c, d_FNR,c) in percent (Blakeney et al. 2021, "Simon Says:
    Evaluating and Mitigating Bias in Pruned Neural Networks with Knowledge Distillation"). The factor 1/2 is what the
    authors' released code computes (a mean over both coordinates) and what reproduces their numbers; the paper's
    formula has 1/C, which is ``halved=False`` and twice as large.

    CEV is a squared quantity: sampling noise in the rates adds to it and never takes away, so that two equally good
    networks do not have a CEV of 0. Read it beside a floor, and with an interval that allows for the bias.

    Args:
        reference: rates of the dense network: one for all candidates, or one per candidate.
        candidate: rates of one network, or of several trials of one method.
        average: ``"trials"`` scores each trial, then takes the mean; ``"rates"`` averages the rates over the trials
            first, as the published numbers do (smaller, since averaging removes noise).
        undefined: ``"omit"`` leaves classes without a relative change out, ``"error"`` refuses them.
        smoothing: pseudo-count added to errors and to right answers before anything else.

    Raises:
        UserError: see ``relative_changes``.
    """
    factor = 1.0 if halved else 2.0
    return _over_trials(
        reference,
        candidate,
        lambda d, used: factor * cev_of(d, used),
        average,
        undefined=undefined,
        smoothing=smoothing,
    )


def sde(
    reference: Rates | Sequence[Rates],
    candidate: Rates | Sequence[Rates],
    *,
    average: str = "trials",
    undefined: str = "omit",
    smoothing: float = 0.0,
) -> OverTrials:
    """Symmetric Distance Error: how differently false positives and false negatives changed, in percent.

    SDE = (1 / C) sum_c |d_FPR,c - d_FNR,c| / sqrt(2), the mean distance of the classes from the line d_FPR = d_FNR
    (Blakeney et al. 2021; paper and code agree). Arguments and errors are those of ``cev``.
    """
    return _over_trials(reference, candidate, sde_of, average, undefined=undefined, smoothing=smoothing)


def changes_of(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Relative changes in percent of rates or counts [..., 2, C], and bool [..., C] where both exist; 0 elsewhere."""
    used = (before > 0).all(-2)
    ratio = np.divide(after, before, out=np.ones(np.broadcast_shapes(before.shape, after.shape)), where=before > 0)
    ratio -= 1
    ratio *= 100
    return ratio, used


def cev_of(changes: np.ndarray, used: np.ndarray) -> np.ndarray:
    """CEV of changes [..., 2, C] over the classes used [..., C]: [...], NaN where no class is used."""
    weights = _shares(used)[..., None, :]
    centred = np.where(used[..., None, :], changes, 0.0)
    centred = np.where(used[..., None, :], centred - (weights * centred).sum(-1, keepdims=True), 0.0)
    return 0.5 * (weights * centred**2).sum((-2, -1))


def sde_of(changes: np.ndarray, used: np.ndarray) -> np.ndarray:
    """SDE of changes [..., 2, C] over the classes used [..., C]: [...], NaN where no class is used."""
    apart = np.where(used, np.abs(changes[..., 0, :] - changes[..., 1, :]), 0.0)
    return (_shares(used) * apart).sum(-1) / np.sqrt(2)


def cev_by_class(changes: np.ndarray, used: np.ndarray) -> np.ndarray:
    """What each class adds to CEV, [..., C]; 0 for a class that is not used."""
    weights = _shares(used)[..., None, :]
    changes = np.where(used[..., None, :], changes, 0.0)
    centred = np.where(used[..., None, :], changes - (weights * changes).sum(-1, keepdims=True), 0.0)
    return 0.5 * (weights * centred**2).sum(-2)


def sde_by_class(changes: np.ndarray, used: np.ndarray) -> np.ndarray:
    """What each class adds to SDE, [..., C]; 0 for a class that is not used."""
    apart = np.where(used, np.abs(changes[..., 0, :] - changes[..., 1, :]), 0.0)
    return _shares(used) * apart / np.sqrt(2)


def _shares(used: np.ndarray) -> np.ndarray:
    count = used.sum(-1, keepdims=True)
    return np.divide(used, count, out=np.full(used.shape, np.nan), where=count > 0)


def _smoothed(rates: Rates, smoothing: float) -> np.ndarray:
    if not smoothing:
        return np.stack([rates.fpr, rates.fnr])
    negatives = rates.support.sum() - rates.support
    return np.stack(
        [
            (rates.false_positives + smoothing) / (negatives + 2 * smoothing),
            (rates.false_negatives + smoothing) / (rates.support + 2 * smoothing),
        ]
    )


def _over_trials(reference, candidate, value, average: str, *, undefined: str, smoothing: float) -> OverTrials:
    if average not in AVERAGES:
        raise UserError(f"average: '{average}' is not known; one of {', '.join(AVERAGES)}")
    references, candidates = paired_up(reference, candidate, Rates)
    if average == "rates":
        references, candidates = [_mean_rates(references)], [_mean_rates(candidates)]
    pairs = [
        relative_changes(before, after, undefined=undefined, smoothing=smoothing)
        for before, after in zip(references, candidates, strict=True)
    ]
    values = tuple(float(value(changes, used)) for changes, used in pairs)
    return OverTrials(
        value=float(np.mean(values)),
        spread=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        trials=values,
        classes_used=min(int(used.sum()) for _, used in pairs),
        classes=len(pairs[0][1]),
    )


def _mean_rates(trials: Sequence[Rates]) -> Rates:
    return Rates(*(np.mean([getattr(rates, name) for rates in trials], 0) for name in ("fpr", "fnr", "support")))


def paired_up(reference, candidate, kind: type) -> tuple[list, list]:
    """One reference per candidate: a single one serves all, several are matched one to one.

    Raises:
        UserError: no candidate, no reference, or another number of references than 1 or that of the candidates.
    """
    references = [reference] if isinstance(reference, kind) else list(reference)
    candidates = [candidate] if isinstance(candidate, kind) else list(candidate)
    if not candidates or not references:
        raise UserError("nothing to compare: give at least one reference and one candidate")
    if len(references) == 1:
        references = references * len(candidates)
    if len(references) != len(candidates):
        raise UserError(
            f"{len(references)} references for {len(candidates)} candidates; give one reference, or one per candidate"
        )
    return references, candidates


def refuse_smoothing(smoothing: float) -> None:
    """Raises a UserError for a pseudo-count that is no number, negative or absurdly large."""
    if not np.isfinite(smoothing):
        raise UserError(f"smoothing: {smoothing} is not finite; give a pseudo-count such as 0.5")
    if smoothing < 0:
        raise UserError(f"smoothing: {smoothing} is negative; give a pseudo-count of 0 or more")
    if smoothing > LARGEST_SMOOTHING:
        raise UserError(f"smoothing: {smoothing:g} is above {LARGEST_SMOOTHING:g}; give a pseudo-count such as 0.5")
