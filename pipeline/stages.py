"""The stages of a study: Train, Prune, Recover, Latency, Predict, Score, Similarity, Correlate, Report.

Each reads its inputs from the store, calls plain functions, and writes files.
"""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from pipeline import (
    bias,
    distillation,
    efficiency,
    inference,
    models,
    pruning,
    report,
    similarity,
    statistics,
    training,
)
from pipeline.data import Batch, Batches, Data, Normalisation, Split, Splits, steps_per_epoch
from pipeline.folding import fold_batchnorm
from pipeline.models import NetworkInfo, Observer
from pipeline.predictions import Predictions
from pipeline.predictions import load as load_predictions
from pipeline.predictions import write as write_predictions
from pipeline.registry import UserError
from pipeline.stage import OUTSIDE_KEY, Context, Stage

EVALUATION_BATCH = 250
PRUNING_EXAMPLES = 256
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


def rewind(stored: StoredNetwork, early: Path) -> None:
    """Gives a pruned network the weights that the file holds of its dense parent, less what was removed."""
    dense = models.fresh(stored.info)
    dense.load_state_dict(models.load_tensors(early))
    example = torch.zeros(1, *stored.info.input_shape)
    network = pruning.rewind(dense, masks=stored.masks, removed=list(stored.info.removed), example=example)
    stored.network.load_state_dict(network.state_dict())


def pruning_examples(data: Data, context: Context, normalisation: Normalisation, seed: int) -> Batch:
    """What data-driven criteria look at. Drawn: the training split itself is sorted by class in some datasets."""
    train = load_splits(data, context.data_root).train
    rows = np.random.default_rng((seed, 7)).permutation(len(train))[:PRUNING_EXAMPLES]
    batch = next(Batches(train.take(rows), normalisation, batch_size=PRUNING_EXAMPLES).in_order())
    # Contiguous, because criteria differentiate: see models.training_format.
    images = batch.images.clone(memory_format=torch.contiguous_format)
    return replace(batch, images=images)


def write_size(folder: Path, network: nn.Module, *, dense: nn.Module, method: pruning.Method) -> None:
    """Writes ``size.json``: what was reached, measured on the network itself."""
    example = torch.zeros(1, *models.load_info(folder).input_shape)
    size = pruning.measure(network, dense=dense, method=method, example=example)
    (folder / "size.json").write_text(json.dumps(asdict(size), indent=1) + "\n")


def write_rows(path: Path, rows: list[dict]) -> None:
    """A CSV with one column per key that any row has; a row that lacks it leaves its place empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row)) or ["empty"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@dataclass(frozen=True)
class Train(Stage):
    """A dense network, from random initial weights."""

    data: Data
    identity: str  # of the dataset's contents, where the options do not name them
    network: str
    fit: training.Fit
    seed: int
    keep_epochs: tuple[int, ...] = ()  # early weights that pruning rewinds to

    def label(self) -> str:
        return f"train {self.network} · seed {self.seed}"

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
        np.savez(folder / "examples.npz", train=splits.train.ids, validation=splits.validation.ids)
        losses = distillation.parse_losses("ce", "train.losses")
        facts = _fit(
            self, folder, context, network, info, losses, splits, stream=(self.seed, 0), keep_epochs=self.keep_epochs
        )
        models.save(folder, network, info)
        (folder / training.CHECKPOINT).unlink(missing_ok=True)
        return facts


@dataclass(frozen=True)
class Prune(Stage):
    """A network with weights removed, not trained afterwards.

    sparsity: share of the dense network's prunable weights. schedule: under one that grows, this stage makes the start,
    and the recovery goes on from there. previous: the recovered network of the round before, in iterative pruning.
    """

    dense: Train
    method: pruning.Method
    sparsity: float
    schedule: pruning.Schedule = field(default_factory=pruning.OneShot)
    previous: Recover | None = None
    title: str = field(default="", metadata=OUTSIDE_KEY)

    @property
    def seed(self) -> int:
        return self.dense.seed

    def label(self) -> str:
        return f"prune {self.title or self.method.name} {self.sparsity:g} · seed {self.seed}"

    def run(self, folder: Path, context: Context) -> None:
        stored = load_network(context.open(self.previous or self.dense))
        dense = load_network(context.open(self.dense)).network if self.previous else stored.network
        batch = pruning_examples(self.dense.data, context, stored.normalisation, self.seed)
        pruned = pruning.prune(
            stored.network,
            self.method,
            self.schedule.at(0, self.sparsity),
            images=batch.images,
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

    def masker(self, network: nn.Module, masks: pruning.Masks, batch: Batch) -> pruning.Masker:
        return pruning.Masker(
            network,
            masks,
            method=self.method,
            sparsity=self.sparsity,
            schedule=self.schedule,
            images=batch.images,
            labels=batch.labels,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Recover(Stage):
    """Training after pruning (or, at sparsity 0, more training of the dense network): the same loop, other losses.

    teachers: dense networks to learn from; the network's own dense parent where none is given.
    from_scratch: the network keeps its shape or masks and starts from new random weights, drawn by the seed: after
    physical removal a small dense network, at sparsity 0 with a teacher a born-again network (Furlanello et al. 2018).
    cache_logits: teachers' logits are kept beside the data and read by every arm that sees the same images through the
    same teacher; the result is the same to the last bit, so it names nothing.
    start_epoch: epochs of ``fit`` left out at the beginning (see `pipeline.training.fit`). rewind: the weights that are
    left start from what they were in the dense network after ``start_epoch`` epochs.
    """

    network: Train | Prune
    losses: tuple[distillation.Loss, ...]
    fit: training.Fit
    window: tuple[float, float] = (0.0, 1.0)
    teachers: tuple[Train, ...] = ()
    ensemble: str = "average"
    from_scratch: bool = False
    cache_logits: bool = field(default=False, metadata=OUTSIDE_KEY)
    start_epoch: int = 0
    rewind: bool = False
    title: str = field(default="", metadata=OUTSIDE_KEY)

    @property
    def dense(self) -> Train:
        return self.network.dense

    @property
    def seed(self) -> int:
        return self.network.seed

    @property
    def stream(self) -> tuple[int, int]:
        """Every arm of a seed sees the same images, so that differences between arms are the arms'."""
        return self.seed, 1

    def inputs(self) -> list[Stage]:
        return [*super().inputs(), self.dense]

    def label(self) -> str:
        origin = self.network.label().removeprefix("prune ").rpartition(" · ")[0]
        title = self.title or " + ".join(loss.name for loss in self.losses)
        return f"recover {title} · {'dense' if self.network is self.dense else origin} · seed {self.seed}"

    def run(self, folder: Path, context: Context) -> dict[str, float]:
        stored = load_network(context.open(self.network))
        if self.from_scratch:
            stored = reinitialised(stored, self.seed)
        splits = load_splits(self.dense.data, context.data_root)
        if self.rewind:
            rewind(stored, context.open(self.dense) / f"epoch{self.start_epoch}.safetensors")
        masker = None
        if stored.masks:
            batch = pruning_examples(self.dense.data, context, stored.normalisation, self.seed)
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
            masker=masker,
            start_epoch=self.start_epoch,
            objective={"teachers": teachers, "window": self.window, "ensemble": self.ensemble},
        )
        models.save(folder, stored.network, stored.info, masker.masks if masker else None)
        (folder / training.CHECKPOINT).unlink(missing_ok=True)
        if isinstance(self.network, Prune):
            dense = load_network(context.open(self.dense)).network
            write_size(folder, stored.network.to("cpu"), dense=dense, method=self.network.method)
        return facts

    def _cache(self, context: Context, teacher: Train, splits: Splits) -> distillation.LogitsCache:
        """Its file is named by all that a logit depends on, rounding included: teacher, images, batches, arithmetic."""
        fit, data = self.fit, self.dense
        images = (data.data, data.identity, fit.epochs, fit.batch_size, fit.augmentation)
        processor = torch.backends.cpu.get_cpu_capability()
        arithmetic = (fit.precision, context.device, context.threads, processor, torch.__version__)
        digest = hashlib.sha256(repr((images, arithmetic)).encode()).hexdigest()[:12]
        name = f"{teacher.key}-{'-'.join(map(str, self.stream))}-{digest}.npy"
        return distillation.LogitsCache(
            context.data_root / "logits" / name,
            draws=fit.epochs,
            examples=len(splits.train),
            classes=len(splits.train.classes),
        )


def reinitialised(stored: StoredNetwork, seed: int) -> StoredNetwork:
    """A network of the same shape, or with the same masks, and new random weights.

    They are not those that dense training of this seed started from, with which masks can find a lottery ticket
    (Frankle and Carbin 2019). After physical removal the channels that remain keep the scale of the dense network's
    initialisation.
    """
    info = stored.info
    drawn = int(np.random.SeedSequence((seed, 2)).generate_state(1)[0])
    network = models.build(info.name, input_shape=info.input_shape, classes=len(info.classes), seed=drawn)
    if info.removed:
        pruning.replay(network, list(info.removed), torch.zeros(1, *info.input_shape))
    pruning.apply_masks(network, stored.masks)
    return StoredNetwork(network, info, stored.masks)


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
    batches = Batches(validation, stored.normalisation, batch_size=EVALUATION_BATCH, device=context.device)
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
    masker: pruning.Masker | None = None,
    start_epoch: int = 0,
    keep_epochs: tuple[int, ...] = (),
    objective: dict | None = None,
) -> dict[str, float]:
    """Trains in place and writes ``history.csv``, one row per epoch; returns what the manifest keeps of its cost."""
    normalisation = Normalisation(info.mean, info.std)
    fit = stage.fit
    options = {"device": context.device}
    train = Batches(splits.train, normalisation, batch_size=fit.batch_size, augmentation=fit.augmentation, **options)
    validation = Batches(splits.validation, normalisation, batch_size=EVALUATION_BATCH, **options)

    def prepare(outputs: models.Outputs, batch: Batch) -> distillation.Objective:
        made = distillation.Objective(losses, seed=stage.seed, **(objective or {}))
        labels = torch.from_numpy(splits.train.labels)
        made.prepare(outputs, batch, distillation.TrainingSet(labels, len(info.classes)))
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
        masker=masker,
        start_epoch=start_epoch,
        keep_epochs=keep_epochs,
        report=context.report,
    )
    write_rows(folder / "history.csv", history)
    return {"training_seconds": round(seconds, 3)}


@dataclass(frozen=True)
class Latency(Stage):
    """Time of a forward pass of a pruned network over that of its dense network.

    A stage of its own, because time is no pure function of the networks: their folders stay the same bytes. Recovery
    changes no shape, so the pruned network stands for what is recovered from it.
    runs, seconds: at most, per batch size; see `pipeline.pruning.latency`.
    """

    network: Prune
    runs: int = 30
    seconds: float = 3.0
    alone: ClassVar[bool] = True

    def inputs(self) -> list[Stage]:
        return [*super().inputs(), self.network.dense]

    def label(self) -> str:
        return f"latency · {self.network.label()}"

    def run(self, folder: Path, context: Context) -> None:
        stored = load_network(context.open(self.network))
        dense = load_network(context.open(self.network.dense)).network.to(context.device)
        example = torch.rand(1, *stored.info.input_shape, generator=torch.Generator().manual_seed(0)).to(context.device)
        network = stored.network.to(context.device)
        found = pruning.latency(network, dense=dense, example=example, runs=self.runs, seconds=self.seconds)
        write_rows(folder / "rows.csv", [asdict(one) for one in found])


@dataclass(frozen=True)
class Predict(Stage):
    """What a network says about every test example. No other stage touches the test split."""

    network: Train | Prune | Recover

    def label(self) -> str:
        return f"predict · {self.network.label()}"

    def run(self, folder: Path, context: Context) -> None:
        stored = load_network(context.open(self.network))
        test = load_splits(self.network.dense.data, context.data_root).test
        batches = Batches(test, stored.normalisation, batch_size=EVALUATION_BATCH, device=context.device)
        logits = inference.predict(stored.network, batches)
        write_predictions(folder, logits, test.labels, test.ids, test.classes)


def _predictions(context: Context, stage: Predict) -> Predictions:
    folder = context.open(stage)
    return load_predictions(folder, str(folder.relative_to(context.store.root)))


@dataclass(frozen=True)
class Score(Stage):
    """Per-class rates, CEV, SDE and accuracy of one method's networks, each against its own dense parent.

    candidates and references go in pairs, one for each seed; the references among themselves are the floor.
    """

    references: tuple[Predict, ...]
    candidates: tuple[Predict, ...]
    resamples: int = 2000
    smoothing: float = 0.0

    def label(self) -> str:
        origin = self.candidates[0].network.label().rpartition(" · ")[0]
        return f"score · {origin} · {len(self.candidates)} seeds"

    def run(self, folder: Path, context: Context) -> None:
        references = [_predictions(context, stage) for stage in self.references]
        audit = bias.audit(
            references=references,
            candidates=[_predictions(context, stage) for stage in self.candidates],
            floor=bias.floor(references, smoothing=self.smoothing),
            resamples=self.resamples,
            smoothing=self.smoothing,
        )
        (folder / "audit.json").write_text(json.dumps(audit.to_json(), indent=1) + "\n")
        write_rows(folder / "rows.csv", audit.rows())
        write_rows(folder / "per_class.csv", audit.per_class_rows())


@dataclass(frozen=True)
class Similarity(Stage):
    """Linear CKA between two networks at every block end, on the validation split (test is for Predict alone)."""

    reference: Train
    candidate: Train | Prune | Recover
    examples: int = 1000

    def label(self) -> str:
        if isinstance(self.candidate, Train):
            return f"similarity · dense seed {self.reference.seed} and seed {self.candidate.seed}"
        return f"similarity · {self.candidate.label()}"

    def run(self, folder: Path, context: Context) -> None:
        found = []
        for stage in (self.reference, self.candidate):
            stored = load_network(context.open(stage))
            split = load_splits(stage.dense.data, context.data_root).validation
            # The same examples for both: an equal share of each class comes of drawing without replacement.
            rows = np.sort(np.random.default_rng(0).permutation(len(split))[: self.examples])
            batches = Batches(split.take(rows), stored.normalisation, batch_size=len(rows), device=context.device)
            with Observer(stored.network, stored.info.blocks, stored.info.classifier) as observer:
                found.append(inference.observe(observer, batches))
        rows = [{"layer": layer, "cka": value} for layer, value in similarity.compare(*found).items()]
        write_rows(folder / "rows.csv", rows)


@dataclass(frozen=True)
class Correlate(Stage):
    """Pearson and Spearman correlation of similarity with CEV and SDE over all networks of a study.

    similarities[i][s] belongs to trial s of scores[i].
    """

    scores: tuple[Score, ...]
    similarities: tuple[Similarity, ...]

    def run(self, folder: Path, context: Context) -> None:
        layers: dict[str, list[float]] = {}
        measures: dict[str, list[float]] = {"cev": [], "sde": []}
        for score in self.scores:
            for trial in json.loads((context.open(score) / "audit.json").read_text())["trials"]:
                for name, values in measures.items():
                    values.append(np.nan if trial[name] is None else trial[name])
        for stage in self.similarities:
            for row in read_rows(context.open(stage) / "rows.csv"):
                layers.setdefault(row["layer"], []).append(float(row["cka"]))
        blocks = [values for layer, values in layers.items() if layer.startswith("block")]
        layers = {"mean of blocks": list(np.mean(blocks, axis=0)), **layers}
        rows = [
            {"similarity": "cka", "layer": layer, "measure": measure, **record}
            for layer, values in layers.items()
            for measure, errors in measures.items()
            for record in statistics.correlate(np.array(values), np.array(errors))
        ]
        write_rows(folder / "correlation.csv", rows)


@dataclass(frozen=True)
class Report(Stage):
    """Everything that a person reads about a study: tables, figures, a page, and events for TensorBoard.

    titles[i] is (pruning, sparsity, recovery) of scores[i], latencies[i] belongs to its first seed (None: dense);
    similarities go by score and, within it, by seed; floor are the similarities of the dense networks among each other.
    """

    version: ClassVar[int] = 2

    study: str
    titles: tuple[tuple[str, float, str], ...]
    scores: tuple[Score, ...]
    similarities: tuple[Similarity, ...]
    floor: tuple[Similarity, ...]
    correlate: Correlate
    latencies: tuple[Latency | None, ...]
    configuration: str = ""

    def label(self) -> str:
        return f"report {self.study}"

    def inputs(self) -> list[Stage]:
        candidates = [prediction for score in self.scores for prediction in score.candidates]
        predictions = [*self.scores[0].references, *candidates]
        networks = dict.fromkeys(prediction.network for prediction in predictions)
        teachers = [teacher for network in networks if isinstance(network, Recover) for teacher in network.teachers]
        return [*super().inputs(), *predictions, *networks, *teachers]

    def run(self, folder: Path, context: Context) -> None:
        cka = iter([self._cka(context, stage) for stage in self.similarities])
        runs, per_class, audits, counted = [], [], [], {}
        same = {"latency_b1": 1.0, "latency_b128": 1.0}
        for reference in self.scores[0].references:
            runs.append(self._run(context, reference, ("dense", 0.0, "none"), {"cka": 1.0, **same}))
        for title, score, latency in zip(self.titles, self.scores, self.latencies, strict=True):
            times = same
            if latency is not None:
                counted.setdefault(latency.network.method.counted, {})[title[0]] = True
                rows = read_rows(context.open(latency) / "rows.csv")
                times = {f"latency_b{row['batch_size']}": float(row["ratio"]) for row in rows}
            audit = json.loads((context.open(score) / "audit.json").read_text())
            audits.append((title, audit))
            per_class += [
                {"pruning": title[0], "sparsity_asked": title[1], "recovery": title[2], **row}
                for row in audit["per_class"]
            ]
            for candidate, trial in zip(score.candidates, audit["trials"], strict=True):
                found = {"cev": trial["cev"], "sde": trial["sde"], "cka": next(cka)}
                if latency is None or candidate.network.seed == latency.network.seed:
                    found |= times
                runs.append(self._run(context, candidate, title, found))
        report.write(
            folder,
            study=self.study,
            runs=runs,
            per_class=per_class,
            audits=audits,
            floor_cka=[self._cka(context, stage) for stage in self.floor],
            correlation=read_rows(context.open(self.correlate) / "correlation.csv"),
            curves=self._curves(context),
            configuration=self.configuration,
            counted={words: list(prunings) for words, prunings in counted.items()},
        )

    def _curves(self, context: Context) -> list[tuple[str, float, list[efficiency.Curve]]]:
        """(pruning, sparsity, curves) wherever recoveries differ in nothing but their epochs."""
        families: dict[tuple, dict[int, tuple[str, tuple[Recover, ...]]]] = {}
        for (pruned, sparsity, title), score in zip(self.titles, self.scores, strict=True):
            stages = tuple(prediction.network for prediction in score.candidates)
            if isinstance(stages[0], Recover):
                epochs = stages[0].fit.epochs
                alike = tuple(replace(stage, fit=replace(stage.fit, epochs=1)).key for stage in stages)
                family = families.setdefault((pruned, sparsity, alike), {})
                family[epochs] = title.removesuffix(f", {epochs} epochs"), stages
        found: dict[tuple[str, float], list[efficiency.Curve]] = {}
        for (pruned, sparsity, _), family in families.items():
            if len(family) > 1:
                found.setdefault((pruned, sparsity), []).append(self._curve(context, dict(sorted(family.items()))))
        return [(*place, curves) for place, curves in found.items()]

    def _curve(self, context: Context, family: dict[int, tuple[str, tuple[Recover, ...]]]) -> efficiency.Curve:
        titles = list(dict.fromkeys(title for title, _ in family.values()))
        budgets = [stages for _, stages in family.values()]
        taught = any(loss.needs_teacher for loss in budgets[0][0].losses)
        quality = np.zeros((len(budgets[0]), len(budgets)))
        costs = {name: np.zeros_like(quality) for name in efficiency.COSTS}
        for column, stages in enumerate(budgets):
            for row, stage in enumerate(stages):
                history = read_rows(context.open(stage) / "history.csv")
                quality[row, column] = float(history[-1]["validation_accuracy"])
                teachers = (stage.teachers or (stage.dense,)) if taught else ()
                for name, cost_of in (("steps", self._steps), ("seconds", self._seconds)):
                    own = costs[name][row, column] = cost_of(context, stage)
                    taken = sum(cost_of(context, teacher) for teacher in teachers)
                    costs[f"{name}_with_teachers"][row, column] = own + taken
        seeds = tuple(stage.seed for stage in budgets[0])
        return efficiency.Curve(" / ".join(titles), taught, seeds, tuple(family), quality, costs)

    def _steps(self, context: Context, stage: Train | Recover) -> int:
        examples = len(np.load(context.open(stage.dense) / "examples.npz")["train"])
        return len(read_rows(context.open(stage) / "history.csv")) * steps_per_epoch(examples, stage.fit.batch_size)

    def _seconds(self, context: Context, stage: Train | Recover) -> float:
        """Of the steps; NaN for a stage that was interrupted, or made elsewhere than the study's first network."""
        manifest, first = (context.store.manifest(each) for each in (stage, self.scores[0].references[0].network))
        alike = all(manifest[name] == first[name] for name in ("device", "threads", "machine"))
        return manifest.get("training_seconds", np.nan) if alike and not manifest["resumed"] else np.nan

    def _cka(self, context: Context, stage: Similarity) -> float:
        """Mean over the block ends."""
        rows = read_rows(context.open(stage) / "rows.csv")
        return float(np.mean([float(row["cka"]) for row in rows if row["layer"].startswith("block")]))

    def _run(
        self, context: Context, prediction: Predict, title: tuple[str, float, str], found: dict[str, float | None]
    ) -> dict:
        stage, folder = prediction.network, context.open(prediction.network)
        size = json.loads((folder / "size.json").read_text()) if (folder / "size.json").exists() else {}
        predictions = _predictions(context, prediction)
        return {
            "dataset": stage.dense.data.dataset.name,
            "model": stage.dense.network,
            "seed": stage.seed,
            "pruning": title[0],
            "sparsity_asked": title[1],
            "sparsity_reached": size.get("sparsity", 0.0),
            "recovery": title[2],
            "accuracy": float((predictions.predictions == predictions.labels).mean()),
            "cev": found.get("cev"),
            "sde": found.get("sde"),
            "cka": found["cka"],
            "parameters": size.get("nonzero_parameters"),
            "bytes": (folder / "weights.safetensors").stat().st_size,
            "macs_ratio": size["macs"] / size["dense_macs"] if size else 1.0,
            "latency_b1": found.get("latency_b1"),
            "latency_b128": found.get("latency_b128"),
            "folder": str(folder.relative_to(context.store.root)),
            "history": [
                {key: float(value) for key, value in row.items() if value}  # a term outside its window has none
                for row in read_rows(folder / "history.csv")
            ]
            if (folder / "history.csv").exists()
            else [],
        }
