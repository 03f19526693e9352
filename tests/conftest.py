"""What several test files share. One thread per process: the suite must be deterministic, and fast on two cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import config as configuration
from pipeline.plan import plan
from pipeline.stage import Context, Stage
from pipeline.store import Store

ROOT = Path(__file__).parents[1]
SMOKE = ROOT / "configs" / "smoke.yaml"

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _alike():
    """The same random numbers for each test, and denormal numbers even after a stage was run in this process."""
    torch.manual_seed(0)
    torch.set_flush_denormal(False)  # a test that ran a study in this process left it on, and hypothesis refuses that


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


@dataclass(frozen=True)
class Written(Stage):
    """A stage that writes the files that it is given: name and content."""

    optional_files = ("[!.]*",)

    texts: tuple[tuple[str, str], ...]
    parts: tuple[Stage, ...] = ()

    def run(self, folder: Path, context: Context) -> None:
        for name, text in self.texts:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)


def execute(store, stage, **changes):
    """Makes a stage in a store; returns its folder."""
    store.execute(stage, Context(store, store.root / "data", **changes))
    return store.open(stage)


def plan_of(*overrides, root, config=SMOKE):
    """The plan of a study, the small one unless another file is given."""
    return plan(configuration.load(config, overrides), root)


def made_up_logits(labels, seed, wrong=0.3, classes=3):
    """float32 [N, classes] of a classifier that is right but for a share of examples, which it answers at random."""
    generator = np.random.default_rng(seed)
    answers = np.where(generator.random(len(labels)) < wrong, generator.integers(0, classes, len(labels)), labels)
    scores = generator.normal(size=(len(labels), classes)).astype(np.float32)
    scores[np.arange(len(labels)), answers] += 4
    return scores


def save(folder, name, **arrays):
    """Arrays as .npz; returns the path as somebody would type it."""
    np.savez(folder / name, **arrays)
    return str(folder / name)


def write(folder, name, text):
    """A text file; returns the path as somebody would type it."""
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)
