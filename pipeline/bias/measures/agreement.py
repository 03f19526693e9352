"""How far two networks agree example by example: churn, exemplars, divergence of their probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from pipeline.bias.measures.declared import MEASURES, Counts, Measure, Pair, Sums, log_softmax, once
from pipeline.divergences import jensen_shannon, kullback_leibler
from pipeline.predictions import Predictions


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
    margin = 1.5**0.5
    needs_pairing = True

    def counts(self, pair: Pair) -> Counts:
        return {"disagree": pair.reference.predictions != pair.candidate.predictions}

    def value(self, sums: Sums) -> np.ndarray:
        return (sums["disagree"] / sums["examples"])[..., 0]


@MEASURES.register("flips")
@dataclass(frozen=True)
class Flips(Measure):
    """Share of examples that go from right to wrong or from wrong to right.

    What accuracy hides where as many are gained as are lost. It bounds what any class can lose: an example of class c
    changes the class's errors by one at most, and only if it flips, so that |FNR'_c - FNR_c| is at most the share of
    flips among the examples of c, and Σ_c n_c/N |FNR'_c - FNR_c| is at most this measure.
    """

    title = "Flips between right and wrong"
    source = "Dutta et al. 2024 (Accuracy is Not All You Need)"
    equation = "1/N Σ_i [right_i ≠ right'_i]  ≥  Σ_c n_c/N |FNR'_c - FNR_c|"
    unit = "share"
    better = "lower"
    comparison = "ratio"
    needs_pairing = True
    margin = 1.5**0.5

    def counts(self, pair: Pair) -> Counts:
        before, after = (each.predictions == pair.labels for each in (pair.reference, pair.candidate))
        return {"flip": before != after}

    def value(self, sums: Sums) -> np.ndarray:
        return (sums["flip"] / sums["examples"])[..., 0]


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
        _divergences(first)[second] = _by_rows(jensen_shannon, first, second)
    return _divergences(first)[second]


def _by_rows(divergence: Callable, first: Predictions, second: Predictions) -> np.ndarray:
    """A divergence of each example, float64 [N], some rows at a time: few enough to stay in the processor's cache."""
    p, q = log_softmax(first), log_softmax(second)
    rows = max(1, 2**15 // p.shape[1])
    return np.concatenate([divergence(p[i : i + rows], q[i : i + rows]) for i in range(0, len(p), rows)])


@once
def _relative_entropy(pair: Pair) -> np.ndarray:
    """KL(reference || candidate) of each example, float64 [N]."""
    return _by_rows(kullback_leibler, pair.reference, pair.candidate)


@MEASURES.register("kl")
@dataclass(frozen=True)
class KullbackLeiblerDivergence(Measure):
    """Mean divergence of the candidate's class probabilities from the reference's, 0 where they are the same."""

    title = "Kullback-Leibler divergence"
    source = "Kullback and Leibler 1951; as in Dutta et al. 2024"
    equation = "1/N Σ_i KL(p_i|p'_i) = 1/N Σ_i Σ_c p_ic (log p_ic - log p'_ic)"
    unit = "nats"
    better = "lower"
    comparison = "ratio"
    needs_logits = True
    needs_pairing = True
    margin = 1.5

    def counts(self, pair: Pair) -> Counts:
        return {"kl": _relative_entropy(pair)}

    def value(self, sums: Sums) -> np.ndarray:
        return (sums["kl"] / sums["examples"])[..., 0]


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
    margin = 1.5  # a divergence is of second order in the change of probabilities
    needs_logits = True
    needs_pairing = True

    def counts(self, pair: Pair) -> Counts:
        return {"js": _divergence(pair.reference, pair.candidate)}

    def value(self, sums: Sums) -> np.ndarray:
        return (sums["js"] / sums["examples"])[..., 0]
