"""What the benchmarks share: runs by turns, so that whatever else the machine does falls on every side."""

import os
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torchvision


def show_machine() -> None:
    """Prints the machine and the versions that the figures below belong to."""
    with open("/proc/cpuinfo") as file:
        model = next(
            (line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.processor()
        )
    print(
        f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; Python {platform.python_version()}, "
        f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    )


def alternate(calls: dict[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """Median seconds of each call over rounds in which all take their turn; one round before them is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
