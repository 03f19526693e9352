"""The stages that make networks: Train, Prune, Recover."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from pipeline import distillation, models, pruning, recovery, training
from pipeline.data import Data, Normalisation, Split, Splits, steps_per_epoch
from pipeline.data.batches import Batch, Batches, ImageView, UniformOrder
from pipeline.files import write_atomically, written_aside
from pipeline.folding import fold_batchnorm
from pipeline.machine import require_room
from pipeline.models import Network, NetworkInfo, Observer
from pipeline.registry import UserError
from pipeline.stage import OUTSIDE_KEY, Context, Stage
from pipeline.table import read_rows, write_rows

AGAIN = "delete the folder to compute it again"
TEACHER_TOLERANCE = 0.02  # in validation accuracy: another device moves an example or two, damage moves more


@lru_cache(maxsize=2)
def load_splits(data: Data, root: Path) -> Splits:
    """One copy per process: every stage of a study reads the same arrays."""
    return data.load(root)


@dataclass(frozen=True)
class StoredNetwork:
    """A network of the store, in eval mode on the CPU, with what belongs to it."""

    network: nn.Module
    info: NetworkInfo
    masks: pruning.Masks

    @property
    def normalisation(self) -> Normalisation:
        return Normalisation(self.info.mean, self.info.std)


def load_network(folder: Path) -> StoredNetwork:
    """Reads a folder that Train, Prune or Recover wrote; outputs are bit-equal to those of the saved network."""
    info = models.load_info(folder)
    network = models.fresh(info)
    if info.removed:
        pruning.replay(network, list(info.removed), torch.zeros(1, *info.input_shape))
    models.load_weights(folder, network)
    path = folder / "masks.safetensors"
    masks = models.load_tensors(path) if path.exists() else {}
    for name, mask in masks.items():
        if torch.count_nonzero(network.get_parameter(name)[~mask]):
            raise UserError(f"{folder}: {name} has weights where its mask has none; {AGAIN}")
    if (folder / "size.json").exists():
        size = json.loads((folder / "size.json").read_text())
        for name, share in size["layers"].items() if masks else ():
            found = 1 - int(torch.count_nonzero(weight := network.get_parameter(name))) / weight.numel()
            if abs(found - share) > 1e-9:
                raise UserError(f"{folder}: {name} has sparsity {found:.4f}, size.json says {share:.4f}; {AGAIN}")
        if (found := sum(parameter.numel() for parameter in network.parameters())) != size["parameters"]:
            raise UserError(f"{folder}: {found} parameters, size.json says {size['parameters']}; {AGAIN}")
    return StoredNetwork(network, info, masks)


def pruning_examples(data: Data, context: Context, normalisation: Normalisation, seed: int, count: int) -> Batch:
    """What data-driven criteria look at. Drawn: the training split itself is sorted by class in some datasets."""
    train = load_splits(data, context.data_root).train
    rows = np.random.default_rng((seed, 7)).permutation(len(train))[:count]
    drawn = train.take(rows)
    batch = next(Batches(drawn, ImageView(drawn, normalisation), batch_size=count).in_order())
    # Contiguous, because criteria differentiate: see models.training_format.
    return replace(batch, inputs=batch.inputs.clone(memory_format=torch.contiguous_format))


def write_size(folder: Path, network: nn.Module, *, dense: nn.Module, method: pruning.Method) -> None:
    """Writes ``size.json``: what was reached, measured on the network itself."""
    example = torch.zeros(1, *models.load_info(folder).input_shape)
    size = pruning.measure(network, dense=dense, method=method, example=example)
    write_atomically(folder / "size.json", json.dumps(asdict(size), indent=1) + "\n")


NETWORK_FILES = ("model.json", "weights.safetensors")


@dataclass(frozen=True)
class Train(Stage):
    """A dense network, from random initial weights.

    threads: of the processor, for this network and all that is made from it: sums in another order round otherwise.
    """

    files: ClassVar[tuple[str, ...]] = (*NETWORK_FILES, "examples.npz", "history.csv")
    optional_files: ClassVar[tuple[str, ...]] = ("epoch*.safetensors",)

    data: Data
    identity: str  # of the dataset's contents, where the options do not name them
    network: Network
    fit: training.Fit
    seed: int
    keep_epochs: tuple[int, ...] = ()  # early weights that pruning rewinds to
    threads: int = 1

    def label(self) -> str:
        return f"train {self.network.title} · seed {self.seed}"

    @property
    def dense(self) -> Train:
        return self

    def run(self, folder: Path, context: Context) -> dict[str, float]:
        splits = load_splits(self.data, context.data_root)
        if self.identity and splits.fingerprint != self.identity:
            raise UserError("the images changed after this study was planned; run the same command again")
        normalisation = Normalisation.of(splits.train)
        shape, classes = splits.train.input_shape, splits.train.classes
        network = models.build(self.network, input_shape=shape, classes=len(classes), seed=self.seed)
        info = models.describe(network, self.network, classes, shape, normalisation.mean, normalisation.std)
        with written_aside(folder / "examples.npz") as aside, aside.open("xb") as file:
            np.savez(file, train=splits.train.ids, validation=splits.validation.ids)
        losses = distillation.parse_losses("ce", "train.losses")
        facts = _fit(
            self, folder, context, network, info, losses, splits, stream=(self.seed, 0), keep_epochs=self.keep_epochs
        )
        models.save(folder, network, info)
        return facts

    def check(self, data_root: Path) -> None:
        check_images(self.network, self.data, data_root)


@dataclass(frozen=True)
class Prune(Stage):
    """A network with weights removed, not trained afterwards.

    sparsity: share of the dense network's prunable weights. schedule: under one that grows, this stage makes the start,
    and the recovery goes on from there. previous: the recovered network of the round before, in iterative pruning.
    examples: training images that data-driven criteria look at.
    """

    files: ClassVar[tuple[str, ...]] = (*NETWORK_FILES, "size.json")
    optional_files: ClassVar[tuple[str, ...]] = ("masks.safetensors",)

    dense: Train
    method: pruning.Method
    sparsity: float
    schedule: pruning.Schedule = field(default_factory=pruning.OneShot)
    previous: Recover | None = None
    examples: int = 256
    title: str = field(default="", metadata=OUTSIDE_KEY)

    @property
    def seed(self) -> int:
        return self.dense.seed

    @property
    def threads(self) -> int:
        return self.dense.threads

    def label(self) -> str:
        return f"prune {self.title or self.method.name} {self.sparsity:g} · seed {self.seed}"

    def run(self, folder: Path, context: Context) -> None:
        stored = load_network(context.open(self.previous or self.dense))
        dense = load_network(context.open(self.dense)).network if self.previous else stored.network
        batch = pruning_examples(self.dense.data, context, stored.normalisation, self.seed, self.examples)
        pruned = pruning.prune(
            stored.network,
            self.method,
            self.schedule.at(0, self.sparsity),
            images=batch.inputs,
            labels=batch.labels,
            seed=self.seed,
            previous=stored.masks or None,
            dense=dense,
        )
        if pruned.masks:
            self.masker(pruned.network, pruned.masks, batch).verify()
        info = models.with_removed(stored.info, pruned.removed)
        models.save(folder, pruned.network, info, pruned.masks)
        write_size(folder, pruned.network, dense=dense, method=self.method)

    def check(self, data_root: Path) -> None:
        check_reachable(self.dense.network, self.dense.data, self.method, self.sparsity, self.schedule, data_root)

    def masker(self, network: nn.Module, masks: pruning.Masks, batch: Batch) -> pruning.Masker:
        return pruning.Masker(
            network,
            masks,
            method=self.method,
            sparsity=self.sparsity,
            schedule=self.schedule,
            images=batch.inputs,
            labels=batch.labels,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Recover(Stage):
    """Training after pruning (or, at sparsity 0, more training of the dense network): the same loop, other answers.

    start, examples, mixture, update: see `pipeline.recovery`. losses, window, ensemble: see
    `pipeline.distillation.Objective`.
    teachers: dense networks to learn from; the network's own dense parent where none is given.
    cache_logits: teachers' logits are kept beside the data and read by every arm that sees the same images through the
    same teacher; the result is the same to the last bit, so it names nothing.
    """

    files: ClassVar[tuple[str, ...]] = (*NETWORK_FILES, "history.csv")
    optional_files: ClassVar[tuple[str, ...]] = ("masks.safetensors", "size.json")

    network: Train | Prune
    losses: tuple[distillation.Loss, ...]
    fit: training.Fit
    start: recovery.Start = field(default_factory=recovery.Kept)
    examples: recovery.Selection = field(default_factory=recovery.All)
    mixture: recovery.Mixture = field(default_factory=recovery.Uniform)
    update: recovery.Update = field(default_factory=recovery.Everything)
    window: tuple[float, float] = (0.0, 1.0)
    teachers: tuple[Train, ...] = ()
    ensemble: str = "average"
    cache_logits: bool = field(default=False, metadata=OUTSIDE_KEY)
    title: str = field(default="", metadata=OUTSIDE_KEY)

    @property
    def dense(self) -> Train:
        return self.network.dense

    @property
    def seed(self) -> int:
        return self.network.seed

    @property
    def threads(self) -> int:
        return self.dense.threads

    @property
    def stream(self) -> tuple[int, int]:
        """Every arm of a seed sees the same images, so that differences between arms are the arms'."""
        return self.seed, 1

    def inputs(self) -> tuple[Stage, ...]:
        return (*super().inputs(), self.dense)

    def label(self) -> str:
        origin = self.network.label().removeprefix("prune ").rpartition(" · ")[0]
        title = self.title or " + ".join(loss.name for loss in self.losses)
        return f"recover {title} · {'dense' if self.network is self.dense else origin} · seed {self.seed}"

    def run(self, folder: Path, context: Context) -> dict[str, float]:
        stored = load_network(context.open(self.network))
        splits = load_splits(self.dense.data, context.data_root)
        splits = replace(splits, train=self.examples.choose(splits.train))
        dense = context.open(self.dense)
        origin = recovery.Origin(
            stored.info,
            stored.masks,
            self.seed,
            early=lambda epoch: models.load_tensors(dense / f"epoch{epoch}.safetensors"),
        )
        stored = replace(stored, network=self.start.begin(stored.network, origin))
        masker = None
        if stored.masks:
            examples = self.network.examples
            batch = pruning_examples(self.dense.data, context, stored.normalisation, self.seed, examples)
            masker = self.network.masker(stored.network, stored.masks, batch)
        teachers = []
        if any(loss.needs_teacher for loss in self.losses):
            for stage in self.teachers or (self.dense,):
                cache = self._cache(context, stage, splits) if self.cache_logits else None
                teachers.append(load_teacher(context, stage, stored.info, splits.validation, cache=cache))
        facts = _fit(
            self,
            folder,
            context,
            stored.network,
            stored.info,
            self.losses,
            splits,
            stream=self.stream,
            moving=self.update.moves(stored.network, stored.info),
            masker=masker,
            start_epoch=self.start.first_epoch,
            objective={"teachers": teachers, "window": self.window, "ensemble": self.ensemble},
        )
        models.save(folder, stored.network, stored.info, masker.masks if masker else None)
        if isinstance(self.network, Prune):
            parent = load_network(dense).network
            write_size(folder, stored.network.to("cpu"), dense=parent, method=self.network.method)
        return facts

    def check(self, data_root: Path) -> None:
        if self.cache_logits:
            train = self.examples.choose(load_splits(self.dense.data, data_root).train)
            size = 4 * self.fit.epochs * len(train) * (len(train.classes) + 1) * len(self.teachers or (self.dense,))
            require_room(data_root / "logits", size, f"recoveries: '{self.title}': cache_logits")
        if not isinstance(self.mixture, recovery.Uniform):
            raise UserError(
                f"recoveries: '{self.title}': mixture {self.mixture.name}: none but uniform is drawn so far"
            )
        check_answers(self.dense.network, self.update, self.examples, self.dense.data, data_root)
        teachers = tuple(teacher.network for teacher in self.teachers or (self.dense,))
        try:
            check_objective(
                self.dense.network,
                teachers,
                self.losses,
                self.window,
                self.fit,
                self.start.first_epoch,
                self.examples,
                self.dense.data,
                data_root,
            )
        except UserError as error:
            raise UserError(f"recoveries: '{self.title}': {error}") from None

    def _cache(self, context: Context, teacher: Train, splits: Splits) -> distillation.LogitsCache:
        """Its file is named by all that a logit depends on, rounding included: teacher, images, batches, arithmetic."""
        fit, data = self.fit, self.dense
        order = UniformOrder(len(splits.train))
        chosen = (order, self.examples, self.mixture)
        images = (data.data, data.identity, chosen, fit.epochs, fit.batch_size, fit.augmentation)
        processor = torch.backends.cpu.get_cpu_capability()
        arithmetic = (fit.precision, context.device, self.threads, processor, torch.__version__)
        digest = hashlib.sha256(repr((images, arithmetic)).encode()).hexdigest()[:12]
        name = f"{teacher.key}-{'-'.join(map(str, self.stream))}-{digest}.npy"
        return distillation.LogitsCache(
            context.data_root / "logits" / name,
            positions=fit.epochs * order.positions,
            classes=len(splits.train.classes),
        )


def load_teacher(
    context: Context,
    stage: Train,
    student: NetworkInfo,
    validation: Split,
    *,
    cache: distillation.LogitsCache | None = None,
) -> distillation.Teacher:
    """A finished dense network, ready to teach.

    Raises:
        UserError: it has other classes or reads other images than the student, or does not repeat, within
            ``TEACHER_TOLERANCE``, the validation accuracy that its own training recorded.
    """
    folder = context.open(stage)
    stored = load_network(folder)
    title = f"teachers: '{stage.label()}'"
    for what, theirs, ours in (
        ("classes", stored.info.classes, student.classes),
        ("input shape", stored.info.input_shape, student.input_shape),
    ):
        if theirs != ours:
            raise UserError(
                f"{title} has the {what} {_brief(theirs)}, the student {_brief(ours)}; "
                "take one that was trained on the same data"
            )
    network = fold_batchnorm(stored.network, torch.zeros(2, *stored.info.input_shape)).to(context.device)
    size = stage.fit.evaluation_batch_size
    view = ImageView(validation, stored.normalisation, device=context.device)
    batches = Batches(validation, view, batch_size=size)
    found = training.evaluate(network, batches)
    recorded = float(read_rows(folder / "history.csv")[-1]["validation_accuracy"])
    if abs(found - recorded) > TEACHER_TOLERANCE:
        raise UserError(
            f"{title} is right on {found:.1%} of the validation images, {recorded:.1%} when it was trained; "
            f"delete {folder} to train it again, or take one that was trained on the same data"
        )
    return distillation.Teacher(Observer(network, stored.info.blocks, stored.info.classifier), cache=cache)


def _brief(values: tuple) -> str:
    return f"{', '.join(map(str, values[:4]))}{', ...' if len(values) > 4 else ''} ({len(values)})"


def _fit(
    stage: Train | Recover,
    folder: Path,
    context: Context,
    network: nn.Module,
    info: NetworkInfo,
    losses: tuple[distillation.Loss, ...],
    splits: Splits,
    *,
    stream: tuple[int, int],
    moving: Sequence[str] | None = None,
    masker: pruning.Masker | None = None,
    start_epoch: int = 0,
    keep_epochs: tuple[int, ...] = (),
    objective: dict | None = None,
) -> dict[str, float]:
    """Trains in place and writes ``history.csv``, one row per epoch; returns what the manifest keeps of its cost."""
    normalisation = Normalisation(info.mean, info.std)
    fit = stage.fit
    view = ImageView(splits.train, normalisation, augmentation=fit.augmentation, device=context.device)
    train = Batches(splits.train, view, batch_size=fit.batch_size)
    view = ImageView(splits.validation, normalisation, device=context.device)
    validation = Batches(splits.validation, view, batch_size=fit.evaluation_batch_size)

    def prepare(outputs: models.Outputs, batch: Batch) -> distillation.Objective:
        made = distillation.Objective(losses, seed=stage.seed, **(objective or {}))
        labels, occurring = torch.from_numpy(splits.train.labels), torch.from_numpy(train.order.occurring)
        made.prepare(outputs, batch, distillation.TrainingSet(labels, len(info.classes), occurring))
        return made

    history, seconds = training.fit(
        network,
        info=info,
        prepare=prepare,
        options=fit,
        train=train,
        validation=validation,
        seed=stream,
        folder=folder,
        moving=moving,
        masker=masker,
        start_epoch=start_epoch,
        keep_epochs=keep_epochs,
        report=context.report,
    )
    write_rows(folder / "history.csv", history)
    return {"training_seconds": round(seconds, 3)}


# ---------------------------------------------------------------------------------------------- before any training


@cache
def check_images(network: Network, data: Data, data_root: Path) -> None:
    """Raises UserError for a network that does not take the images, or does not fit into memory."""
    split = load_splits(data, data_root).train
    models.build(network, input_shape=split.input_shape, classes=len(split.classes))


@cache
def check_answers(
    network: Network, update: recovery.Update, examples: recovery.Selection, data: Data, data_root: Path
) -> None:
    """Raises UserError for an update that moves nothing, or examples without one of every class."""
    split = load_splits(data, data_root).train
    chosen = examples.choose(split)
    if missing := set(range(len(split.classes))) - set(chosen.labels.tolist()):
        name = split.classes[min(missing)]
        raise UserError(f"recoveries: examples {examples.name} leaves none of the class '{name}'; choose others")
    built = models.build(network, input_shape=split.input_shape, classes=len(split.classes))
    info = models.describe(built, network, split.classes, split.input_shape, (), ())
    known = {name for name, _ in built.named_parameters()}
    moving = set(update.moves(built, info))
    if not moving or moving - known:
        what = f"no parameter {min(moving - known)}" if moving - known else "no parameter that moves"
        raise UserError(f"recoveries: update {update.name}: {network.title} has {what}; choose another")


@cache
def check_reachable(
    network: Network, data: Data, method: pruning.Method, sparsity: float, schedule: pruning.Schedule, data_root: Path
) -> None:
    """Raises UserError for a sparsity that cannot be reached."""
    split = load_splits(data, data_root).train
    dense = models.build(network, input_shape=split.input_shape, classes=len(split.classes))
    pruning.check(dense, method, sparsity, torch.zeros(2, *split.input_shape), schedule=schedule)


@cache
def check_objective(
    network: Network,
    teachers: Sequence[Network],
    losses: tuple[distillation.Loss, ...],
    window: tuple[float, float],
    fit: training.Fit,
    start_epoch: int,
    examples: recovery.Selection,
    data: Data,
    data_root: Path,
) -> None:
    """Builds the objective over networks that nobody has trained, for a few random images.

    Raises:
        UserError: it cannot be computed, or its window holds no step.
    """
    split = examples.choose(load_splits(data, data_root).train)
    classes = len(split.classes)
    images = torch.randn(4, *split.input_shape, generator=torch.Generator().manual_seed(0))

    def observer(network: Network) -> Observer:
        built = models.build(network, input_shape=split.input_shape, classes=classes).eval()
        return Observer(built, *models.find_blocks(built, split.input_shape))

    ids = torch.arange(4)
    batch = Batch(images, ids % classes, ids, draw=ids)
    objective = distillation.Objective(
        losses, [distillation.Teacher(observer(teacher)) for teacher in teachers], window=window
    )
    with torch.no_grad():
        shown = observer(network)(images)
    objective.prepare(shown, batch, distillation.TrainingSet(torch.from_numpy(split.labels), classes))
    if objective.teachers:
        steps = steps_per_epoch(len(split), fit.batch_size)
        objective.teaching_steps(fit.epochs * steps, start_epoch * steps)
