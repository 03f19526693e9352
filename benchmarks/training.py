"""Training loop, images/s of resnet8 and resnet20 at batch 128 on 32x32 colour images, in turns.

Against the plain loop (NCHW, eager, torchvision ImageFolder, transforms and DataLoader) and against NCHW eager on
batches that already lie in memory. Usage: python benchmarks/training.py [steps] [threads]
"""

import copy
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torchvision
from measuring import alternate, show_machine
from PIL import Image
from torch.nn import functional
from torchvision import transforms

from pipeline import distillation, models, training
from pipeline.data import Normalisation, Split
from pipeline.data.batches import Batches, ImageView
from pipeline.executors import prepare_process

BATCH = 128


def plain_loop(network, batches, steps: int) -> None:
    """What most scripts hold: SGD with momentum, cross-entropy, nothing else."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    network.train()
    for _, (images, labels) in zip(range(steps), batches, strict=False):
        loss = functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main(steps: int = 8, threads: int = 1) -> None:
    prepare_process(threads)
    show_machine()
    count = steps * BATCH
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    labels = (np.arange(count) % 10).astype(np.int64)
    normalisation = Normalisation((0.5,) * 3, (0.25,) * 3)
    split = Split(images, labels, np.arange(count), tuple("0123456789"))
    options = training.Fit(epochs=1, batch_size=BATCH)
    with tempfile.TemporaryDirectory() as folder:
        for number, pixels in enumerate(images):
            place = Path(folder) / str(labels[number])
            place.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(place / f"{number}.jpg")
        steps_of_transforms = [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.25,) * 3),
        ]
        peer = torchvision.datasets.ImageFolder(folder, transforms.Compose(steps_of_transforms))
        loader = torch.utils.data.DataLoader(peer, batch_size=BATCH, shuffle=True)
        for name in ("resnet8", "resnet20"):
            built = models.build(models.network(name), input_shape=(3, 32, 32), classes=10)
            info = models.describe(built, models.network(name), split.classes, (3, 32, 32), (0.5,) * 3, (0.25,) * 3)
            networks = {kind: copy.deepcopy(built) for kind in ("plain", "memory", "ours")}
            memory = [(torch.randn(BATCH, 3, 32, 32), torch.from_numpy(labels[:BATCH])) for _ in range(steps)]
            view = ImageView(split, normalisation, augmentation=options.augmentation)
            train = Batches(split, view, batch_size=BATCH)
            few = split.take(np.arange(10))
            validation = Batches(few, ImageView(few, normalisation), batch_size=BATCH)

            def prepare(outputs, batch):
                objective = distillation.Objective(distillation.parse_losses("ce", "losses"))
                objective.prepare(outputs, batch, distillation.TrainingSet(torch.from_numpy(labels), 10))
                return objective

            def ours(networks=networks, info=info, train=train, validation=validation, folder=folder):
                training.fit(
                    networks["ours"],
                    info=info,
                    prepare=prepare,
                    options=options,
                    train=train,
                    validation=validation,
                    seed=(0, 0),
                    folder=Path(folder),
                )
                (Path(folder) / training.CHECKPOINT).unlink()  # or the next round would find its work done

            seconds = alternate(
                {
                    "plain loop": lambda networks=networks: plain_loop(networks["plain"], loader, steps),
                    "NCHW in memory": lambda networks=networks, memory=memory: plain_loop(
                        networks["memory"], memory, steps
                    ),
                    "pipeline": ours,
                },
                rounds=5,
            )
            for kind, value in seconds.items():
                ratio = seconds["plain loop"] / value
                print(f"{name:9} {kind:15} {count / value:8,.0f} images/s  {ratio:5.2f} times the plain loop")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
