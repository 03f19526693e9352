"""Batches of a split as tensors: shuffled and augmented for training, in order for evaluation.

Small sets live in memory as uint8. A batch is cut out of a padded and a mirrored copy of the images through a strided
view, which is bit-equal to pad, crop and flip with a different draw per image and touches each pixel once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.data.split import Augmentation, Normalisation, Split, steps_per_epoch

# A padded and a mirrored copy are kept up to this many bytes; larger sets are padded batch by batch.
PADDED_COPY_LIMIT = 2 * 1024**3


@dataclass(frozen=True)
class Batch:
    """images float32 [B, C, H, W] (normalised, channels_last), labels int64 [B], ids int64 [B].

    ids are rows of the split (0 to N - 1), so that a memory bank can be indexed with them. draw is the epoch: with the
    id it names one augmented image of the stream, so that a teacher's answer can be stored.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    draw: int = 0


class Batches:
    """Batches of a split: shuffled and augmented for training, in order and untouched for evaluation.

    What an epoch holds is a pure function of (seed, epoch), so that a resumed run sees the same images.
    """

    def __init__(
        self,
        split: Split,
        normalisation: Normalisation,
        *,
        batch_size: int,
        augmentation: Augmentation | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.split, self.batch_size, self.device = split, batch_size, torch.device(device)
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
            self._padded = self._pad(split.images, copies)

    def steps(self) -> int:
        """Steps of a training epoch."""
        return steps_per_epoch(len(self.split), self.batch_size)

    def epoch(self, seed: tuple[int, ...], epoch: int) -> Iterator[Batch]:
        """One shuffled, augmented pass."""
        order, flips, tops, lefts = self.draw(seed, epoch)
        labels = torch.from_numpy(self.split.labels)
        size = min(self.batch_size, len(self.split))
        for step in range(self.steps()):
            part = slice(step * size, (step + 1) * size)
            rows = order[part]
            images = self._normalise(self.crop(rows, flips[part], tops[part], lefts[part]))
            ids = torch.from_numpy(rows)
            yield Batch(images, labels[ids].to(self.device), ids.to(self.device), epoch)

    def in_order(self) -> Iterator[Batch]:
        """One pass over every example, in order, without augmentation."""
        for start in range(0, len(self.split), self.batch_size):
            rows = np.arange(start, min(start + self.batch_size, len(self.split)))
            images = self._normalise(np.ascontiguousarray(self.split.images[rows[0] : rows[-1] + 1]))
            labels = torch.from_numpy(np.ascontiguousarray(self.split.labels[rows]))
            yield Batch(images, labels.to(self.device), torch.from_numpy(rows).to(self.device))

    def draw(self, seed: tuple[int, ...], epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The random numbers of an epoch: order int64 [N], flips, tops and lefts int64 [N] (per position in order)."""
        random = np.random.default_rng((*seed, epoch))  # a SeedSequence hashes its parts; adding them would collide
        count, offsets = len(self.split), 2 * self.augmentation.crop_padding + 1
        return (
            random.permutation(count),
            random.integers(0, 1 + self.augmentation.flip, count),
            random.integers(0, offsets, count),
            random.integers(0, offsets, count),
        )

    def crop(self, rows: np.ndarray, flips: np.ndarray, tops: np.ndarray, lefts: np.ndarray) -> np.ndarray:
        """Pad, mirror and crop a batch: uint8 [B, height, width, channels]."""
        channels, height, width = self.split.input_shape
        if self._padded is None:
            if not self.augmentation.crop_padding and not self.augmentation.flip:
                return self.split.images[rows]
            padded = self._pad(self.split.images[rows], 1 + self.augmentation.flip)
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
        return windows[flips, rows, tops, lefts].reshape(len(rows), height, width, channels)

    def _pad(self, images: np.ndarray, copies: int) -> np.ndarray:
        padding = self.augmentation.crop_padding
        count, height, width, channels = images.shape
        shape = (copies, count, height + 2 * padding, width + 2 * padding, channels)
        padded = np.zeros(shape, dtype=np.uint8)
        padded[0, :, padding : padding + height, padding : padding + width] = images
        if copies == 2:
            padded[1] = padded[0, :, :, ::-1]
        return padded

    def _normalise(self, images: np.ndarray) -> Tensor:
        count, height, width, channels = images.shape
        rows = torch.from_numpy(images).to(self.device).view(count, height, width * channels)
        pixels = rows.float().mul_(self._scale).add_(self._shift)
        # A view, no copy: an image stored row by row with its channels together is what channels_last means.
        return pixels.view(count, height, width, channels).permute(0, 3, 1, 2)
