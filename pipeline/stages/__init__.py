"""The stages of a study; each reads its inputs from the store, calls plain functions, and writes files."""

from pipeline.stages.measurements import Floor, Latency, Predict, Score, Similarity
from pipeline.stages.networks import Prune, Recover, StoredNetwork, Train, load_network, load_splits
from pipeline.stages.reporting import Cell, Correlate, Report

__all__ = [
    "Cell",
    "Correlate",
    "Floor",
    "Latency",
    "Predict",
    "Prune",
    "Recover",
    "Report",
    "Score",
    "Similarity",
    "StoredNetwork",
    "Train",
    "load_network",
    "load_splits",
]
