"""Pruning: criteria -> masks, physical removal of channels, schedules, and what was really reached."""

from pipeline.pruning.channels import replay
from pipeline.pruning.masker import Masker, rewind
from pipeline.pruning.masks import apply_masks
from pipeline.pruning.method import METHODS, Masks, Method, Pruned, check, prunable, prune
from pipeline.pruning.schedules import SCHEDULES, Iterative, OneShot, Schedule
from pipeline.pruning.size import Latency, Size, latency, measure

__all__ = [
    "METHODS",
    "SCHEDULES",
    "Iterative",
    "Latency",
    "Masker",
    "Masks",
    "Method",
    "OneShot",
    "Pruned",
    "Schedule",
    "Size",
    "apply_masks",
    "check",
    "latency",
    "measure",
    "prunable",
    "prune",
    "replay",
    "rewind",
]
