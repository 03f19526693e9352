"""Networks: registered and built by name, observed between their layers, stored and read again."""

from pipeline.models.networks import NETWORKS, Network, build, network, training_format
from pipeline.models.observe import Observer, Outputs, find_blocks
from pipeline.models.storage import (
    NetworkInfo,
    describe,
    fresh,
    load_info,
    load_tensors,
    load_weights,
    parse_info,
    read_tensors,
    save,
    save_tensors,
    with_removed,
)

__all__ = [
    "NETWORKS",
    "Network",
    "NetworkInfo",
    "Observer",
    "Outputs",
    "build",
    "describe",
    "find_blocks",
    "fresh",
    "load_info",
    "load_tensors",
    "load_weights",
    "network",
    "parse_info",
    "read_tensors",
    "save",
    "save_tensors",
    "training_format",
    "with_removed",
]
