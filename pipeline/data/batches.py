"""Batches = Split + View + order: what stands at each position of the training stream, as tensors.

The order says which row stands at each position of an epoch, the view turns rows into the network's input, and every
position has a draw of its own. What an epoch holds is a pure function of (seed, epoch), so that a resumed run sees the
same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.data.split import Augmentation, Normalisation, Split, steps_per_epoch

# A padded and a mirrored copy are kept up to this many bytes; larger sets are padded batch by batch.
PADDED_COPY_LIMIT = 2 * 1024**3


@dataclass(frozen=True)
class Batch:
    """inputs [B, ...] (images: float32 [B, C, H, W], normalised, channels_last), labels, ids and draw int64 [B].

    ids are rows of the split (0 to N - 1), so that a memory bank can be indexed with them; a row may stand in a batch
    twice. draw is the position in the stream, epoch * positions + position: no two share one, so that a teacher's
    answer can be stored under it. It stays on the CPU.
    """

    inputs: Tensor
    labels: Tensor
    ids: Tensor
    draw: Tensor


class Order(Protocol):
    """Which row of the split stands at each position of an epoch."""

    @property
    def positions(self) -> int:
        """How many positions an epoch has."""

    @property
    def occurring(self) -> np.ndarray:
        """The rows that can occur in some epoch, int64, each once, ascending."""

    def rows(self, seed: tuple[int, ...], epoch: int) -> np.ndarray:
        """int64 [positions], a pure function of (seed, epoch)."""


@dataclass(frozen=True)
class UniformOrder:
    """Every example once, in random order."""

    examples: int

    @property
    def positions(self) -> int:
        return self.examples

    @property
    def occurring(self) -> np.ndarray:
        return np.arange(self.examples)

    def rows(self, seed: tuple[int, ...], epoch: int) -> np.ndarray:
        return _random(seed, epoch).permutation(self.examples)


class View(Protocol):
    """Turns rows of a split into the network's input, on a device."""

    device: torch.device

    def draws(self, seed: tuple[int, ...], epoch: int, positions: int) -> np.ndarray:
        """The random numbers that the positions of an epoch take, int64 [positions, any]."""

    def __call__(self, rows: np.ndarray, draws: np.ndarray | None = None) -> Tensor:
        """[B, ...] for rows int64 [B] with their draws [B, any]; without draws untouched, as in evaluation."""


class ImageView:
    """Images: cropped and mirrored as an augmentation says, and normalised.

    A batch is cut out of a padded and a mirrored copy of the images through a strided view, which is bit-equal to pad,
    crop and flip with a different draw per image and touches each pixel once. Sets above ``PADDED_COPY_LIMIT`` are
    read and padded batch by batch.
    """

    def __init__(
        self,
        split: Split,
        normalisation: Normalisation,
        *,
        augmentation: Augmentation | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.split, self.device = split, torch.device(device)
        self.augmentation = augmentation or Augmentation(crop_padding=0, flip=False)
        channels, height, width = split.input_shape
        # One row of pixels (width x channels) is the unit: long enough for vector arithmetic, and memory order.
        scale = 1.0 / (255.0 * np.array(normalisation.std))
        self._scale = torch.tensor(np.tile(scale, width), dtype=torch.float32, device=self.device)
        shift = -np.array(normalisation.mean) / np.array(normalisation.std)
        self._shift = torch.tensor(np.tile(shift, width), dtype=torch.float32, device=self.device)
        padding, copies = self.augmentation.crop_padding, 1 + self.augmentation.flip
        size = copies * len(split) * (height + 2 * padding) * (width + 2 * padding) * channels
        self._padded = None
        if (padding or copies == 2) and size <= PADDED_COPY_LIMIT:
            self._padded = self._frame(len(split))
            for place, images in split.chunks():
                self._fill(self._padded[:, place], images)

    def draws(self, seed: tuple[int, ...], epoch: int, positions: int) -> np.ndarray:
        """Which copy (0, or 1: mirrored), top and left of each crop: int64 [positions, 3]."""
        random = _random(seed, epoch)
        # The uniform order takes the first numbers of this generator. The view goes on behind them, whatever the order
        # is: order and crops must not hang together, and every network trained so far saw these crops.
        random.permutation(positions)
        offsets = 2 * self.augmentation.crop_padding + 1
        columns = [random.integers(0, most, positions) for most in (1 + self.augmentation.flip, offsets, offsets)]
        return np.column_stack(columns)

    def __call__(self, rows: np.ndarray, draws: np.ndarray | None = None) -> Tensor:
        """float32 [B, C, H, W], stored as channels_last."""
        return self._normalise(self.split.inputs[rows] if draws is None else self.crop(rows, draws))

    def crop(self, rows: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Pad, mirror and crop a batch: uint8 [B, height, width, channels]."""
        channels, height, width = self.split.input_shape
        if self._padded is None:
            if not self.augmentation.crop_padding and not self.augmentation.flip:
                return self.split.inputs[rows]
            padded = self._frame(len(rows))
            self._fill(padded, self.split.inputs[rows])
            rows = np.arange(len(rows))
        else:
            padded = self._padded
        copy, image, row, column = padded.strides[:4]
        offsets = 2 * self.augmentation.crop_padding + 1
        windows = np.lib.stride_tricks.as_strided(
            padded,
            (*padded.shape[:2], offsets, offsets, height, width * channels),
            (copy, image, row, column, row, 1),
            writeable=False,
        )
        flips, tops, lefts = draws.T
        return windows[flips, rows, tops, lefts].reshape(len(rows), height, width, channels)

    def _frame(self, count: int) -> np.ndarray:
        """Zeros for padded copies of so many images: [1 or 2, count, height + 2 padding, width + 2 padding, C]."""
        padding = self.augmentation.crop_padding
        channels, height, width = self.split.input_shape
        shape = (1 + self.augmentation.flip, count, height + 2 * padding, width + 2 * padding, channels)
        return np.zeros(shape, dtype=np.uint8)

    def _fill(self, padded: np.ndarray, images: np.ndarray) -> None:
        padding, (_, height, width) = self.augmentation.crop_padding, self.split.input_shape
        padded[0, :, padding : padding + height, padding : padding + width] = images
        if self.augmentation.flip:
            padded[1] = padded[0, :, :, ::-1]

    def _normalise(self, images: np.ndarray) -> Tensor:
        count, height, width, channels = images.shape
        rows = torch.from_numpy(images).to(self.device).view(count, height, width * channels)
        pixels = rows.float().mul_(self._scale).add_(self._shift)
        # A view, no copy: an image stored row by row with its channels together is what channels_last means.
        return pixels.view(count, height, width, channels).permute(0, 3, 1, 2)


class Batches:
    """Batches of a split: in the given order and augmented for training, one by one and untouched for evaluation.

    view: of this split. order: ``UniformOrder`` over it where none is given.
    """

    def __init__(self, split: Split, view: View, *, batch_size: int, order: Order | None = None) -> None:
        self.split, self.view, self.batch_size = split, view, batch_size
        self.order = order or UniformOrder(len(split))

    @property
    def device(self) -> torch.device:
        return self.view.device

    def steps(self) -> int:
        """Steps of a training epoch."""
        return steps_per_epoch(self.order.positions, self.batch_size)

    def epoch(self, seed: tuple[int, ...], epoch: int) -> Iterator[Batch]:
        """One pass over the positions of an epoch."""
        positions = self.order.positions
        rows, draws = self.order.rows(seed, epoch), self.view.draws(seed, epoch, positions)
        size = min(self.batch_size, positions)
        for step in range(self.steps()):
            part = slice(step * size, (step + 1) * size)
            yield self._batch(rows[part], draws[part], epoch * positions + np.arange(part.start, part.stop))

    def in_order(self) -> Iterator[Batch]:
        """One pass over every example, in order, without augmentation."""
        for start in range(0, len(self.split), self.batch_size):
            rows = np.arange(start, min(start + self.batch_size, len(self.split)))
            yield self._batch(rows, None, rows)

    def _batch(self, rows: np.ndarray, draws: np.ndarray | None, positions: np.ndarray) -> Batch:
        labels, ids = torch.from_numpy(self.split.labels[rows]), torch.from_numpy(rows)
        inputs = self.view(rows, draws)
        return Batch(inputs, labels.to(self.device), ids.to(self.device), torch.from_numpy(positions))


def _random(seed: tuple[int, ...], epoch: int) -> np.random.Generator:
    return np.random.default_rng((*seed, epoch))  # a SeedSequence hashes its parts; adding them would collide
