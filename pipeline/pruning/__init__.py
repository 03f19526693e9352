"""Pruning: criteria -> masks, physical removal of channels, schedules, and what was really reached."""

from pipeline.pruning.channels import replay
from pipeline.pruning.masker import Masker, rewind
from pipeline.pruning.masks import apply_masks
from pipeline.pruning.method import METHODS, Masks, Method, Pruned, check, prunable, prune
from pipeline.pruning.schedules import SCHEDULES, Iterative, OneShot, Schedule
from pipeline.pruning.size import Size, Timing, latency, latency_rows, measure, size_rows

__all__ = [
    "METHODS",
    "SCHEDULES",
    "Iterative",
    "Masker",
    "Masks",
    "Method",
    "OneShot",
    "Pruned",
    "Schedule",
    "Size",
    "Timing",
    "apply_masks",
    "check",
    "latency",
    "latency_rows",
    "measure",
    "prunable",
    "prune",
    "replay",
    "rewind",
    "size_rows",
]
