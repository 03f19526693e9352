"""Measures of logits: how far confidence is from accuracy, and whether the label is among the first five."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from pipeline.bias.measures.declared import MEASURES, Counts, Measure, Pair, Sums, log_softmax, once, one_hot
from pipeline.predictions import Predictions


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
    interval = "outer"
    noise = "up"
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
    margin = 0.01
    interval = "outer"
    noise = ""  # of both networks

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
    margin = 0.01

    def value(self, sums: Sums) -> np.ndarray:
        return super().value(sums) - (sums["top_5_reference"] / sums["examples"])[..., 0]
