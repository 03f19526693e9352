"""The table of measures of bias; each says what it counts on the examples and how its value follows from the sums."""

from pipeline.bias.measures import agreement, between_groups, confidence, recall, unevenness  # noqa: F401 (they register themselves)
from pipeline.bias.measures.declared import MEASURES, DenseNetworks, Measure, Pair, Sums, one_hot
from pipeline.bias.measures.unevenness import CorrectedSymmetricDistanceError, distance_shape, squared_distance

__all__ = [
    "MEASURES",
    "CorrectedSymmetricDistanceError",
    "DenseNetworks",
    "Measure",
    "Pair",
    "Sums",
    "distance_shape",
    "one_hot",
    "squared_distance",
]
