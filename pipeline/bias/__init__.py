"""Bias measures that can be trusted: what one classifier did to each class, compared with another."""

from pipeline.bias.floors import Floor, Floors, alone, floor
from pipeline.bias.given import class_names
from pipeline.bias.measures import MEASURES, Measure, Pair
from pipeline.bias.rates import OverTrials, Rates, cev, rates, rates_from_confusion, relative_changes, sde
from pipeline.bias.resampling import Interval, Table, bootstrap, class_significance, corrected_interval, interval
from pipeline.bias.scoring import Audit, Value, audit
from pipeline.bias.yardsticks import Yardstick, over_control, over_floor, over_shared_floor
from pipeline.predictions import Predictions

__all__ = [
    "MEASURES",
    "Audit",
    "Floor",
    "Floors",
    "Interval",
    "Measure",
    "OverTrials",
    "Pair",
    "Predictions",
    "Rates",
    "Table",
    "Value",
    "Yardstick",
    "alone",
    "audit",
    "bootstrap",
    "cev",
    "class_names",
    "class_significance",
    "corrected_interval",
    "floor",
    "interval",
    "over_control",
    "over_floor",
    "over_shared_floor",
    "rates",
    "rates_from_confusion",
    "relative_changes",
    "sde",
]
