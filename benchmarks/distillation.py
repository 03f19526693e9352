"""What a step of distillation costs over a step of cross-entropy, networks equal, in the same run.

    python benchmarks/distillation.py [--network resnet20] [--rounds 40] [--steps 1] [--threads 1] [--losses]

Random images, 32 x 32 colour, batch 128, float32, channels_last, SGD with momentum. The arms take turns, one step each
round, in a new random order every round, so that a machine that slows down slows all of them; a ratio is taken within
a round, and the median over the rounds is shown with its quartiles: of the time on the clock, and of the processor's
time, which other people's programs disturb less. ``--losses`` adds every loss of the registry.
"""

from __future__ import annotations

import argparse
import platform
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from pipeline.data.batches import Batch
from pipeline.distillation import LOSSES, LogitsCache, Objective, Teacher, TrainingSet, parse_losses
from pipeline.executors import prepare_process
from pipeline.folding import fold_batchnorm
from pipeline.models import Observer, Outputs, build, find_blocks
from pipeline.models import network as parse_network

SHAPE, CLASSES, BATCH, EXAMPLES = (3, 32, 32), 100, 128, 1280
WARM_UP = 3  # rounds


class PlainTeacher:
    """The teacher as it is often written: eval mode and no_grad, as stored."""

    def __init__(self, observer: Observer, *, inference: bool = False) -> None:
        observer.network.eval().to(memory_format=torch.channels_last)
        self.observer, self.inference = observer, inference

    def __call__(self, batch: Batch) -> Outputs:
        if not self.inference:
            with torch.no_grad():
                return self.observer(batch.inputs)
        with torch.inference_mode():
            outputs = self.observer(batch.inputs)
        # Tensors of inference mode cannot be saved for backward, copies can.
        return Outputs(outputs.logits.clone(), [], outputs.embedding.clone())


class Arm:
    """A student of its own, an objective and an optimizer; ``step`` is one step of training."""

    def __init__(self, name: str, network: str, spec: str, teachers: list) -> None:
        student = build(parse_network(network), input_shape=SHAPE, classes=CLASSES, seed=0)
        student.to(memory_format=torch.channels_last).train()
        blocks, classifier = find_blocks(student, SHAPE)
        self.name, self.count = name, 0
        self.observer = Observer(student, blocks, classifier)
        self.objective = Objective(parse_losses(spec, "benchmark"), teachers)
        first = make_batch(0)
        labels = torch.arange(EXAMPLES) % CLASSES
        with torch.no_grad():
            self.objective.prepare(self.observer(first.inputs), first, TrainingSet(labels, CLASSES))
        parameters = [*student.parameters(), *self.objective.parameters()]
        self.optimizer = torch.optim.SGD(parameters, 0.001, momentum=0.9, fused=True)

    def step(self, batch: Batch) -> None:
        loss, _ = self.objective(self.observer(batch.inputs), batch, step=self.count, steps=10**9)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.count += 1


def make_batch(number: int) -> Batch:
    ids = torch.arange(BATCH) + BATCH * (number % (EXAMPLES // BATCH))
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(BATCH, *SHAPE, generator=generator).contiguous(memory_format=torch.channels_last)
    return Batch(images, ids % CLASSES, ids, draw=ids)


def make_teacher(network: str, *, folded: bool = True) -> Observer:
    teacher = build(parse_network(network), input_shape=SHAPE, classes=CLASSES, seed=1)
    teacher.train()(torch.randn(64, *SHAPE))  # statistics that are not those of a fresh BatchNorm
    blocks, classifier = find_blocks(teacher, SHAPE)
    teacher = fold_batchnorm(teacher, torch.randn(2, *SHAPE)) if folded else teacher
    return Observer(teacher, blocks, classifier)


def compare(arms: list[Arm], *, rounds: int, steps: int) -> dict[str, np.ndarray]:
    """Seconds per step of each arm, [rounds, 2]: on the clock and of the processor."""
    seconds: dict[str, list[list[float]]] = {arm.name: [] for arm in arms}
    batches = [make_batch(number) for number in range(EXAMPLES // BATCH)]
    for arm in arms:
        for batch in batches if any(getattr(teacher, "cache", None) for teacher in arm.objective.teachers) else []:
            arm.step(batch)  # fills the cache
    order = random.Random(0)
    for turn in range(rounds + WARM_UP):
        order.shuffle(arms)
        for arm in arms:
            started = time.perf_counter(), time.process_time()
            for number in range(turn * steps, (turn + 1) * steps):
                arm.step(batches[number % len(batches)])
            if turn >= WARM_UP:
                ended = time.perf_counter(), time.process_time()
                seconds[arm.name].append([(end - start) / steps for start, end in zip(started, ended, strict=True)])
    return {name: np.array(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--steps", type=int, default=1, help="steps of one arm in one round")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--losses", action="store_true", help="every loss of the registry too")
    options = parser.parse_args()
    prepare_process(options.threads)
    network = options.network
    with tempfile.TemporaryDirectory() as folder:
        cache = LogitsCache(Path(folder) / "logits.npy", positions=EXAMPLES, classes=CLASSES)
        arms = [
            Arm("ce", network, "ce", []),
            Arm("kd, as shipped (folded BatchNorm)", network, "kd", [Teacher(make_teacher(network))]),
            Arm("kd, no_grad only", network, "kd", [PlainTeacher(make_teacher(network, folded=False))]),
            Arm("kd, folded, inference_mode", network, "kd", [PlainTeacher(make_teacher(network), inference=True)]),
            Arm("kd, cached logits", network, "kd", [Teacher(make_teacher(network), cache=cache)]),
        ]
        if options.losses:
            others = [name for name in LOSSES if name not in ("ce", "kd")]
            arms += [Arm(name, network, name, [Teacher(make_teacher(network))]) for name in others]
        seconds = compare(arms, rounds=options.rounds, steps=options.steps)
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {options.threads} thread(s), torch {torch.__version__}; {network}, {options.rounds} rounds")
    clock, processor = 1e3 * np.median(seconds["ce"], 0)
    print(f"time of a step over that of ce ({clock:.1f} ms; {processor:.1f} ms of the processor): median (quartiles)")
    for name, values in seconds.items():
        quartiles = np.quantile(values / seconds["ce"], [0.25, 0.5, 0.75], axis=0).T
        shown = [f"{middle:6.3f} ({low:.3f} to {high:.3f})" for low, middle, high in quartiles]
        print(f"  {name:36s} {shown[0]}   processor {shown[1]}")


if __name__ == "__main__":
    main()
