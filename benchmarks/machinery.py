"""What the machinery costs beside the science: the walk, the look at what is there, an empty stage, a run with nothing
to do, and a small study with one worker and with two.

    python benchmarks/machinery.py [--stages 15000] [--finished 3000] [--rounds 5]

Stages are pretended: they have the options of a recovery and write nothing. Figures are medians, with their range.
"""

import argparse
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from pipeline.executors import needed, walk
from pipeline.progress import Display
from pipeline.stage import Context, Stage, in_order
from pipeline.store import Store

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Options:
    epochs: int = 12
    rate: float = 0.1
    schedule: str = "cosine"
    milestones: tuple[float, ...] = (0.625, 0.75, 0.875)


@dataclass(frozen=True)
class Pretended(Stage):
    number: int
    parts: tuple["Pretended", ...] = ()
    options_of_it: Options = Options(epochs=4)

    def run(self, folder: Path, context: Context) -> None:
        """Nothing."""


def graph(stages: int) -> list[Pretended]:
    """Chains of five (train, prune, recover, predict, score), all of them under one report."""
    ends, number = [], 0
    while number < stages - 1:
        stage = Pretended(number)
        for step in range(1, min(5, stages - 1 - number)):
            stage = Pretended(number + step, (stage,))
        ends.append(stage)
        number += 5
    return in_order([Pretended(-1, tuple(ends))])


def timed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def said(name: str, seconds: list[float], count: int = 1, unit: str = "s") -> None:
    scale = {"s": 1, "ms": 1e3}[unit] / count
    low, middle, high = (scale * part for part in (min(seconds), statistics.median(seconds), max(seconds)))
    print(f"{name:58} {middle:8.3f} {unit}  ({low:.3f} to {high:.3f}, {len(seconds)} rounds)", flush=True)


def at_once(stage: Stage) -> Future:
    future: Future = Future()
    future.set_result(True)
    return future


def command(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pipeline", *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, default=15_000, help="pretended stages in the walk")
    parser.add_argument("--finished", type=int, default=3_000, help="pretended stages that are made and looked at")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    quiet = Console(file=io.StringIO())

    stages = graph(chosen.stages)
    times = [
        timed(lambda: walk(stages, at_once, at_once=2, display=Display(quiet, len(stages))))
        for _ in range(chosen.rounds)
    ]
    said(f"walk, {chosen.stages} stages, each", times, chosen.stages, "ms")

    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        made = graph(chosen.finished)
        context = Context(store, Path(folder))
        times = [timed(lambda stage=stage: store.execute(stage, context)) for stage in made]
        said("an empty stage", times, unit="ms")
        times = []
        for _ in range(chosen.rounds):
            fresh = graph(chosen.finished)[-1]  # no key is known yet, as in a new process
            times.append(timed(lambda fresh=fresh: needed([fresh], Store(Path(folder)))))
        said(f"the look at {chosen.finished} finished stages, each, keys included", times, chosen.finished, "ms")

    with tempfile.TemporaryDirectory() as folder:
        study = ("--config", "configs/smoke.yaml", "--results", folder)
        command("run", *study)
        said("a run of smoke with nothing to do", [timed(lambda: command("run", *study)) for _ in range(chosen.rounds)])
        said("show", [timed(lambda: command("show", *study)) for _ in range(chosen.rounds)])
    one, two = [], []
    for _ in range(chosen.rounds):
        for workers, times in ((1, one), (2, two)):
            with tempfile.TemporaryDirectory() as folder:
                study = ("run", "--config", "configs/smoke.yaml", "--results", folder, f"workers={workers}")
                times.append(timed(lambda study=study: command(*study)))
    said("smoke with one worker", one)
    said("smoke with two workers", two)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
