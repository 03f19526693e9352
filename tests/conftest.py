"""One thread per process: the suite must be deterministic, and fast on two cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    torch.set_flush_denormal(False)  # a test that ran a study in this process left it on, and hypothesis refuses that
