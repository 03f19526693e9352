"""Bias measures that can be trusted: what one classifier did to each class, compared with another."""

from pipeline.bias.measures import MEASURES, Measure, Pair
from pipeline.bias.rates import Predictions, Rates, Score, cev, rates, rates_from_confusion, relative_changes, sde
from pipeline.bias.resampling import (
    Draws,
    Interval,
    Table,
    bootstrap,
    class_significance,
    corrected_interval,
    holm,
    interval,
)
from pipeline.bias.scoring import Audit, Comparison, Floor, Value, audit, compare

__all__ = [
    "MEASURES",
    "Audit",
    "Comparison",
    "Draws",
    "Floor",
    "Interval",
    "Measure",
    "Pair",
    "Predictions",
    "Rates",
    "Score",
    "Table",
    "Value",
    "audit",
    "bootstrap",
    "cev",
    "class_significance",
    "compare",
    "corrected_interval",
    "holm",
    "interval",
    "rates",
    "rates_from_confusion",
    "relative_changes",
    "sde",
]
