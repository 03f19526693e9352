"""Networks that teach: run in the cheapest form that gives the same logits, or not at all where logits are stored."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.distillation.loss import Labelled
from pipeline.files import ASIDE
from pipeline.models import Observer, Outputs
from pipeline.registry import UserError


class LogitsCache:
    """Logits by position of the training stream, in one memory-mapped file that several runs may share.

    For training whose batches repeat: where the augmented image is a function of seed and position, so is the teacher's
    answer; an example that occurs twice in an epoch has two. One file belongs to one teacher and one stream: share it
    among the arms of one seed, never across seeds, which would otherwise stop being independent. Each row carries a
    checksum: one that was not written whole (a machine that stopped, two writers) counts as absent.

    Args:
        path: the ``.npy`` file; made at its full size if absent, and then what killed processes left half made in its
            folder is removed. That folder also keeps a ``.lock``.
        positions: of the whole stream, that is epochs times positions of an epoch.
        classes: the size of the logits; 4 * positions * (classes + 1) bytes are used.

    Raises:
        UserError: the file holds another shape, or cannot be read or made.
    """

    def __init__(self, path: Path, *, positions: int, classes: int) -> None:
        self.path = path
        shape = (positions, classes + 1)  # the last column is the checksum
        try:
            if not path.exists():
                self._make(path, shape)
            self.rows = np.lib.format.open_memmap(path, "r+")
        except ValueError as error:
            raise UserError(f"{path}: is no cache of logits ({error}); remove the file") from None
        except OSError as error:
            raise UserError(
                f"{path}: the cache of logits cannot be kept ({error.strerror or error}); make room or rights there, "
                "or set cache_logits to false"
            ) from None
        if self.rows.shape != shape or self.rows.dtype != np.float32:
            raise UserError(f"{path}: holds logits of shape {self.rows.shape}, not {shape}; remove the file")

    def get(self, draw: Tensor) -> Tensor | None:
        """float32 [batch, classes] on the CPU for positions int64 [batch], or None unless every one is there."""
        rows = self.rows[draw.cpu().numpy()]
        whole = np.array_equal(rows[:, -1].view(np.uint32), _checksums(rows[:, :-1]))
        return torch.from_numpy(rows[:, :-1]) if whole else None

    def put(self, draw: Tensor, logits: Tensor) -> None:
        """Stores float [batch, classes] for positions int64 [batch], no two of them equal."""
        rows = logits.detach().float().cpu().numpy()
        self.rows[draw.cpu().numpy()] = np.column_stack([rows, _checksums(rows).view(np.float32)])

    @staticmethod
    def _make(path: Path, shape: tuple[int, int]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # gone when the process is, however that ended
            for left in path.parent.glob(f".*{path.suffix}.*{ASIDE}"):  # who wrote them held the lock, and is gone
                left.unlink(missing_ok=True)
            if path.exists():  # somebody else was faster, and may be filling theirs
                return
            unfinished = path.with_name(f".{path.name}.{os.getpid()}{ASIDE}")
            try:
                np.lib.format.open_memmap(unfinished, "w+", np.float32, shape).flush()
                if hasattr(os, "posix_fallocate"):  # a full disk is an error here and would be a crash in a memory map
                    with unfinished.open("r+b") as file:
                        os.posix_fallocate(file.fileno(), 0, unfinished.stat().st_size)
                os.rename(unfinished, path)  # replaces nothing: whoever makes one holds the lock
            finally:
                unfinished.unlink(missing_ok=True)


def _checksums(rows: np.ndarray) -> np.ndarray:
    """uint32 [batch] of float32 [batch, classes]; not zero for a row of zeros, which is what an unwritten one holds."""
    return np.bitwise_xor.reduce(np.ascontiguousarray(rows).view(np.uint32), 1) ^ np.uint32(0x5BD1E995)


class Teacher:
    """A network that answers batches with ``Outputs``: in eval mode, without gradients, in channels_last.

    Args:
        observer: over a network, best one with folded BatchNorm (``pipeline.folding``). The network is taken over:
            frozen, set to eval mode and reordered in memory.
        cache: answers from here where it can, which leaves logits only; it is asked by ``batch.draw``.

    Attributes:
        logits_only: blocks and embedding are absent.
        runs: how often the network ran.
    """

    def __init__(self, observer: Observer, *, cache: LogitsCache | None = None) -> None:
        observer.network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.observer = observer
        self.cache = cache
        self.logits_only = cache is not None
        self.runs = 0

    @torch.no_grad()
    def __call__(self, batch: Labelled) -> Outputs:
        """What the network shows for ``batch.inputs``, float [batch, ...]."""
        if self.cache is None:
            return self._run(batch.inputs)
        logits = self.cache.get(batch.draw)
        if logits is None:
            logits = self._run(batch.inputs).logits
            self.cache.put(batch.draw, logits)
        return Outputs(logits.to(batch.inputs.device), [], logits.new_empty(len(logits), 0))

    def _run(self, inputs: Tensor) -> Outputs:
        self.runs += 1
        images = inputs.ndim == 4
        return self.observer(inputs.contiguous(memory_format=torch.channels_last) if images else inputs)
