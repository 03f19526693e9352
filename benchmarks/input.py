"""Input path: random crop (padding 4), flip and normalisation of 32x32 colour images, against torchvision.

The peer is ImageFolder + transforms + DataLoader with 0 workers on JPEG files (made here from random images), one
thread each, in turns. Usage: python benchmarks/input.py [images]
"""

import os
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
import torchvision
from measuring import alternate, show_machine
from PIL import Image
from torchvision import transforms

from pipeline.data import Augmentation, Normalisation, Split
from pipeline.data.batches import Batches, ImageView

BATCH = 128


def main(count: int = 2048) -> None:
    torch.set_num_threads(1)
    show_machine()
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)  # smooth images: JPEG decodes noise slowly
    with tempfile.TemporaryDirectory() as folder:
        for number, pixels in enumerate(coarse):
            place = Path(folder) / f"class{number % 10}"
            place.mkdir(exist_ok=True)
            Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC).save(place / f"{number}.jpg", quality=90)
        peer = torchvision.datasets.ImageFolder(
            folder,
            transforms.Compose(
                [
                    transforms.RandomCrop(32, padding=4),
                    transforms.RandomHorizontalFlip(),
                    transforms.ToTensor(),
                    transforms.Normalize((0.5,) * 3, (0.25,) * 3),
                ]
            ),
        )
        loader = torch.utils.data.DataLoader(peer, batch_size=BATCH, shuffle=True, drop_last=True)
        images = np.stack([np.asarray(image) for image, _ in torchvision.datasets.ImageFolder(folder)])
        split = Split(images, np.zeros(count, dtype=np.int64), np.arange(count), ("only",))
        normalisation = Normalisation((0.5,) * 3, (0.25,) * 3)
        view = ImageView(split, normalisation, augmentation=Augmentation(4, True))
        augmented = Batches(split, view, batch_size=BATCH)

        def through(batches) -> None:
            for _ in batches:
                pass

        rows = np.arange(BATCH)
        zeros = np.zeros((BATCH, 3), dtype=np.int64)
        seconds = alternate(
            {
                "torchvision": lambda: through(loader),
                "pipeline": lambda: [through(augmented.epoch((0, 0), epoch)) for epoch in range(20)],
                "crop alone": lambda: [view.crop(rows, zeros) for _ in range(20 * count // BATCH)],
            },
            rounds=5,
        )
    base = seconds["torchvision"] / count
    for name, repeats in (("torchvision", 1), ("pipeline", 20), ("crop alone", 20)):
        each = seconds[name] / repeats / count
        print(f"{name:12} {1 / each:12,.0f} images/s   {base / each:6.1f} times torchvision")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
