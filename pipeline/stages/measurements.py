"""The stages that measure networks: Predict, Floor, Score, Similarity, Latency; each writes rows of the long table."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from pipeline import bias, inference, predictions, pruning, similarities
from pipeline.data import ClassGroups, Data
from pipeline.data.batches import Batches, ImageView
from pipeline.files import write_atomically
from pipeline.machine import require_memory
from pipeline.models import Observer
from pipeline.predictions import Predictions
from pipeline.registry import UserError
from pipeline.stage import Context, Stage
from pipeline.stages.networks import Prune, Recover, Train, load_network, load_splits
from pipeline.table import measured, read_long, write_long, write_rows

ROWS = "rows.csv"


def _said(measure: type[bias.Measure] | similarities.SimilarityMeasure) -> dict[str, str]:
    """The columns of a row that say how to read its value."""
    return {"unit": measure.unit, "better": measure.better}


@dataclass(frozen=True)
class Predict(Stage):
    """What a network says about every test example, and the groups of these. No other stage touches the test split.

    groups_identity: names what the dataset's groups hold, where its options do not. class_groups: see ``Data.groups``.
    """

    files: ClassVar[tuple[str, ...]] = ("predictions.npz", "classes.json")

    network: Train | Prune | Recover
    groups_identity: str = ""
    class_groups: ClassGroups = ()

    @property
    def threads(self) -> int:
        return self.network.dense.threads

    @property
    def _data(self) -> Data:
        return replace(self.network.dense.data, groups=self.class_groups)

    def label(self) -> str:
        return f"predict · {self.network.label()}"

    def check(self, data_root: Path) -> None:
        load_splits(self._data, data_root)

    def run(self, folder: Path, context: Context) -> None:
        stored = load_network(context.open(self.network))
        dense = self.network.dense
        splits = load_splits(self._data, context.data_root)
        if self.groups_identity and splits.groups_fingerprint != self.groups_identity:
            load_splits.cache_clear()  # an earlier study of this process may have read other ones
            splits = load_splits(self._data, context.data_root)
        if self.groups_identity and splits.groups_fingerprint != self.groups_identity:
            raise UserError("the groups changed after this study was planned; run the same command again")
        test = splits.test
        size = dense.fit.evaluation_batch_size
        batches = Batches(test, ImageView(test, stored.normalisation, device=context.device), batch_size=size)
        logits = inference.predict(stored.network, batches)
        predictions.write(folder, logits, test.labels, test.ids, test.classes, test.groups)


def load_predictions(context: Context, stage: Predict) -> Predictions:
    """Named by its place below the results, wherever these lie: what is stored must not depend on that."""
    return predictions.load(context.open(stage), source=f"{stage.kind}/{stage.key}")


@dataclass(frozen=True)
class Floor(Stage):
    """What equally good dense networks show when they are compared with each other, and each by itself.

    measures: those that are taken, so that one more makes another floor.
    """

    version: ClassVar[int] = 2
    files: ClassVar[tuple[str, ...]] = (ROWS,)

    networks: tuple[Predict, ...]
    measures: tuple[bias.Measure, ...]
    smoothing: float = 0.0

    def label(self) -> str:
        return f"floor · {len(self.networks)} dense networks"

    def run(self, folder: Path, context: Context) -> None:
        networks = [load_predictions(context, stage) for stage in self.networks]
        seeds = [stage.network.seed for stage in self.networks]
        rows = [
            measured("bias", name, value, seed=seed, **_said(bias.MEASURES[name]))
            for seed, network in zip(seeds, networks, strict=True)
            for name, value in bias.alone(network, measures=self.measures).items()
        ]
        floor = bias.floor(networks, measures=self.measures, smoothing=self.smoothing)
        write_long(folder / ROWS, rows + floor.long_rows(seeds))


@dataclass(frozen=True)
class Score(Stage):
    """Per-class rates, CEV, SDE and every other measure of one method's networks, each against its own dense parent.

    candidates and references go in pairs, one for each seed. floor: of the references, in their order.
    """

    version: ClassVar[int] = 2
    files: ClassVar[tuple[str, ...]] = (ROWS, "audit.json")

    references: tuple[Predict, ...]
    candidates: tuple[Predict, ...]
    floor: Floor
    resamples: int = 2000
    minimum_errors: int = 5

    def check(self, data_root: Path) -> None:
        classes = len(load_splits(self.candidates[0].network.dense.data, data_root).train.classes)
        numbers = len(self.floor.measures) + 2 * classes
        require_memory(8 * numbers * self.resamples, f"resamples: {self.resamples} draws of {numbers} numbers")

    def label(self) -> str:
        origin = self.candidates[0].network.label().rpartition(" · ")[0]
        return f"score · {origin} · {len(self.candidates)} seeds"

    def run(self, folder: Path, context: Context) -> None:
        seeds = [stage.network.seed for stage in self.candidates]
        audit = bias.audit(
            references=[load_predictions(context, stage) for stage in self.references],
            candidates=[load_predictions(context, stage) for stage in self.candidates],
            floor=bias.Floors.from_rows(read_long(context.open(self.floor) / ROWS)),
            measures=self.floor.measures,
            resamples=self.resamples,
            smoothing=self.floor.smoothing,
            minimum_errors=self.minimum_errors,
        )
        write_atomically(folder / "audit.json", json.dumps(audit.to_json(), indent=1) + "\n")
        write_long(folder / ROWS, audit.long_rows(seeds))


@dataclass(frozen=True)
class Similarity(Stage):
    """How similar two networks are at every block end, on the validation split (test is for Predict alone)."""

    files: ClassVar[tuple[str, ...]] = (ROWS,)

    reference: Train
    candidate: Train | Prune | Recover
    measures: tuple[similarities.SimilarityMeasure, ...]
    examples: int = 1000

    @property
    def threads(self) -> int:
        return self.reference.threads

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
            split = split.take(rows)
            view = ImageView(split, stored.normalisation, device=context.device)
            batches = Batches(split, view, batch_size=len(rows))
            with Observer(stored.network, stored.info.blocks, stored.info.classifier) as observer:
                found.append(inference.observe(observer, batches))
        # Two dense networks are a pair of the floor.
        kind = "floor" if isinstance(self.candidate, Train) else "similarity"
        seeds = {"seed": self.candidate.seed, "reference_seed": self.reference.seed}
        write_long(
            folder / ROWS,
            [
                measured(kind, measure.name, value, layer=layer, reference_layer=layer, **seeds, **_said(measure))
                for measure in self.measures
                for layer, value in similarities.by_layer(measure, *found).items()
            ],
        )


@dataclass(frozen=True)
class Latency(Stage):
    """Time of a forward pass of a pruned network over that of its dense network.

    A stage of its own, because time is no pure function of the networks: their folders stay the same bytes. Recovery
    changes no shape, so the pruned network stands for what is recovered from it.
    runs, seconds: at most, per batch size; see `pipeline.pruning.latency`.
    """

    files: ClassVar[tuple[str, ...]] = (ROWS, "timings.csv")
    alone: ClassVar[bool] = True

    network: Prune
    runs: int = 30
    seconds: float = 3.0

    @property
    def threads(self) -> int:
        return self.network.dense.threads

    def inputs(self) -> tuple[Stage, ...]:
        return (*super().inputs(), self.network.dense)

    def label(self) -> str:
        return f"latency · {self.network.label()}"

    def run(self, folder: Path, context: Context) -> None:
        stored = load_network(context.open(self.network))
        dense = load_network(context.open(self.network.dense)).network.to(context.device)
        example = torch.rand(1, *stored.info.input_shape, generator=torch.Generator().manual_seed(0)).to(context.device)
        network = stored.network.to(context.device)
        found = pruning.latency(network, dense=dense, example=example, runs=self.runs, seconds=self.seconds)
        write_rows(folder / "timings.csv", [vars(one) for one in found])
        write_long(folder / ROWS, pruning.latency_rows(found, self.network.seed))
