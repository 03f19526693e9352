"""The table of measures of bias; each says what it counts on the examples and how its value follows from the sums."""

from pipeline.bias.measures import agreement, between_groups, confidence, recall, unevenness  # noqa: F401 (they register themselves)
from pipeline.bias.measures.declared import MEASURES, DenseNetworks, Measure, Pair, Sums, one_hot
from pipeline.bias.measures.unevenness import (
    Corrected,
    CorrectedDistance,
    CorrectedVariance,
    error_columns,
    signed_root,
    sums_of_errors,
)

__all__ = [
    "MEASURES",
    "Corrected",
    "CorrectedDistance",
    "CorrectedVariance",
    "DenseNetworks",
    "Measure",
    "Pair",
    "Sums",
    "error_columns",
    "one_hot",
    "signed_root",
    "sums_of_errors",
]
