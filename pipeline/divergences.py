"""How far two distributions over the classes lie apart, example by example, from logarithms of their probabilities."""

from __future__ import annotations

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float64 [N, C] of logits [N, C]; rows of exponentials sum to 1."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(1, keepdims=True))
    return shifted


def kullback_leibler(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """KL(p || q) of each example in nats, from log p and log q [N, C]: float64 [N], never below 0.

    Computed from the logarithms, so that it stays exact where a probability is too small for a float: such a class
    counts 0 in p, and the logarithm of q that it is held against is finite. (Kullback and Leibler 1951)
    """
    return np.maximum((np.exp(first) * (first - second)).sum(1), 0.0)


def jensen_shannon(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Half of KL(p || m) + KL(q || m), m the mean of p and q, from log p and log q [N, C]: float64 [N] in nats.

    Between 0 and log 2. (Lin 1991)
    """
    middle = np.logaddexp(first, second) - np.log(2)
    divergence = 0.5 * (np.exp(first) * (first - middle) + np.exp(second) * (second - middle)).sum(1)
    return np.maximum(divergence, 0.0)
