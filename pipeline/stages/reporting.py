"""The stages that put a study together: Correlate and Report, over the cells of its result table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from pipeline import efficiency, pruning, report, similarities, statistics
from pipeline.data import steps_per_epoch
from pipeline.stage import Context, Stage
from pipeline.stages.measurements import ROWS, Floor, Latency, Score, Similarity
from pipeline.stages.networks import Prune, Recover, Train
from pipeline.table import Row, measured, read_long, read_rows, write_rows

Place = tuple[str, float, str]  # pruning, sparsity asked, recovery
DENSE: Place = ("dense", 0.0, "none")


@dataclass(frozen=True)
class Cell:
    """One row of the result table: a pruning at a sparsity with a recovery, and what was measured of its networks.

    networks: one for each seed; similarities: of each of them to its dense parent, in the same order.
    latency: of the first seed's network; None where it has the shape of the dense one.
    """

    pruning: str
    sparsity: float
    recovery: str
    networks: tuple[Train | Prune | Recover, ...]
    score: Score
    similarities: tuple[Similarity, ...]
    latency: Latency | None

    @property
    def place(self) -> Place:
        return self.pruning, self.sparsity, self.recovery


def _rows_of_cell(context: Context, cell: Cell) -> list[Row]:
    """What its stages wrote."""
    stages: list[Stage] = [cell.score, *cell.similarities, *([cell.latency] if cell.latency else [])]
    return [row for stage in stages for row in read_long(context.open(stage) / ROWS)]


@dataclass(frozen=True)
class Correlate(Stage):
    """How every similarity goes along with every measure of bias, over all networks of a study."""

    files: ClassVar[tuple[str, ...]] = ("correlation.csv",)

    cells: tuple[Cell, ...]

    def run(self, folder: Path, context: Context) -> None:
        similarities: dict[tuple, dict[tuple, float]] = {}
        biases: dict[tuple, dict[tuple, float]] = {}
        for cell in self.cells:
            for row in _rows_of_cell(context, cell):
                network = (*cell.place, row["seed"])
                if row["kind"] == "similarity":
                    similarities.setdefault((row["measure"], row["layer"]), {})[network] = row["value"]
                elif row["kind"] == "bias" and row["seed"] is not None and row["group"] is None:
                    biases.setdefault((row["measure"],), {})[network] = row["value"]
        rows = [
            {"similarity": name, "layer": layer, "measure": measure, **record}
            for (name, layer), seen in similarities.items()
            for (measure,), errors in biases.items()
            for record in statistics.correlate(*_side_by_side(seen, errors))
        ]
        write_rows(folder / "correlation.csv", rows)


def _side_by_side(first: dict[tuple, float | None], second: dict[tuple, float | None]) -> tuple[np.ndarray, np.ndarray]:
    """The values of the networks that both have, [n] each; NaN for one that does not exist."""
    both = [network for network in first if network in second]
    return tuple(np.array([values[network] for network in both], dtype=float) for values in (first, second))


@dataclass(frozen=True)
class Report(Stage):
    """Everything that a person reads about a study: tables, figures, a page, and events for TensorBoard.

    floor, similar: what the dense networks show among each other. claims: comparisons that were asked beforehand.
    """

    version: ClassVar[int] = 4
    files: ClassVar[tuple[str, ...]] = report.FILES
    optional_files: ClassVar[tuple[str, ...]] = report.OPTIONAL_FILES

    study: str
    dense: tuple[Train, ...]
    floor: Floor
    similar: tuple[Similarity, ...]
    cells: tuple[Cell, ...]
    correlate: Correlate
    claims: tuple[statistics.Claim, ...] = ()
    configuration: str = ""

    def label(self) -> str:
        return f"report {self.study}"

    def inputs(self) -> tuple[Stage, ...]:
        return (*super().inputs(), *(teacher for network in self._recovered() for teacher in network.teachers))

    def _recovered(self) -> list[Recover]:
        return [network for cell in self.cells for network in cell.networks if isinstance(network, Recover)]

    def run(self, folder: Path, context: Context) -> None:
        rows, audits, counted = self._dense_rows(context), [], {}
        for cell in self.cells:
            if cell.latency is not None:
                counted.setdefault(cell.latency.network.method.counted, {})[cell.pruning] = True
            audits.append((cell.place, json.loads((context.open(cell.score) / "audit.json").read_text())))
            rows += self._cell_rows(context, cell)
        networks = {(*DENSE, stage.seed): stage for stage in self.dense}
        networks |= {(*cell.place, stage.seed): stage for cell in self.cells for stage in cell.networks}
        folders = {place: context.open(stage) for place, stage in networks.items()}
        report.write(
            folder,
            study=self.study,
            rows=rows,
            histories={place: _history(found) for place, found in folders.items()},
            audits=audits,
            correlation=[_correlation(row) for row in read_rows(context.open(self.correlate) / "correlation.csv")],
            curves=self._curves(context),
            claims=self.claims,
            configuration=self.configuration,
            counted={words: list(prunings) for words, prunings in counted.items()},
            folders={place: str(found.relative_to(context.store.root)) for place, found in folders.items()},
        )

    def _dense_rows(self, context: Context) -> list[Row]:
        """Of the dense networks: each by itself, and their pairs, which are the floor."""
        found = read_long(context.open(self.floor) / ROWS)
        for stage in self.similar:
            found += read_long(context.open(stage) / ROWS)
        found += _like_itself(self.dense, self.cells[0].similarities[0].measures)
        found += [row for stage in self.dense for row in pruning.latency_rows(None, stage.seed)]
        for stage in self.dense:
            found += _size(context, stage)[1]
        reached = dict.fromkeys([None, *(stage.seed for stage in self.dense)], 0.0)
        return self._with_run(found, DENSE, reached)

    def _cell_rows(self, context: Context, cell: Cell) -> list[Row]:
        found, reached = _rows_of_cell(context, cell), {}
        if cell.latency is None:
            found += [row for network in cell.networks for row in pruning.latency_rows(None, network.seed)]
        for network in cell.networks:
            reached[network.seed], size = _size(context, network)
            found += size
        reached[None] = float(np.mean(list(reached.values())))
        return self._with_run(found, cell.place, reached)

    def _with_run(self, rows: Sequence[Row], place: Place, reached: dict[int | None, float]) -> list[Row]:
        """The rows with the columns of their run in front."""
        first = self.dense[0]
        shared = {"dataset": first.data.dataset.name, "network": first.network.title}
        named = dict(zip(("pruning", "sparsity_asked", "recovery"), place, strict=True))
        return [{**row, **shared, **named, "sparsity_reached": reached.get(row["seed"])} for row in rows]

    def _curves(self, context: Context) -> list[tuple[str, float, list[efficiency.Curve]]]:
        """(pruning, sparsity, curves) wherever recoveries differ in nothing but their epochs."""
        families: dict[tuple, dict[int, tuple[str, tuple[Recover, ...]]]] = {}
        for cell in self.cells:
            stages = cell.networks
            if isinstance(stages[0], Recover):
                epochs = stages[0].fit.epochs
                alike = tuple(replace(stage, fit=replace(stage.fit, epochs=1)).key for stage in stages)
                family = families.setdefault((cell.pruning, cell.sparsity, alike), {})
                family[epochs] = cell.recovery.removesuffix(f", {epochs} epochs"), stages
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
        facts, first = (context.store.manifest(each).facts for each in (stage, self.dense[0]))
        alike = all(facts[name] == first[name] for name in ("device", "threads", "machine"))
        return facts.get("training_seconds", np.nan) if alike and not facts["resumed"] else np.nan


def _like_itself(networks: Sequence[Train], measures: Sequence[similarities.SimilarityMeasure]) -> list[Row]:
    """The rows of dense networks, which are their own parents."""
    layer = similarities.SUMMARY_LAYER
    return [
        measured(
            *("similarity", measure.name, measure.itself),
            seed=network.seed,
            reference_seed=network.seed,
            layer=layer,
            reference_layer=layer,
            unit=measure.unit,
            better=measure.better,
        )
        for measure in measures
        for network in networks
    ]


def _size(context: Context, stage: Train | Prune | Recover) -> tuple[float, list[Row]]:
    """The sparsity that was reached, and the rows of a network's size."""
    folder = context.open(stage)
    size = json.loads((folder / "size.json").read_text()) if (folder / "size.json").exists() else None
    stored = (folder / "weights.safetensors").stat().st_size
    return (size["sparsity"] if size else 0.0), pruning.size_rows(size, stored, stage.seed)


def _correlation(row: dict[str, str]) -> Row:
    """A row as Correlate wrote it, with its numbers as such; NaN for one that does not exist."""
    return {
        name: text if name in ("similarity", "layer", "measure", "statistic") else float(text)
        for name, text in row.items()
    }


def _history(folder: Path) -> list[dict[str, float]]:
    """A network's training, epoch by epoch; a term outside its window has no entry. Empty for one only pruned."""
    path = folder / "history.csv"
    rows = read_rows(path) if path.exists() else []
    return [{key: float(value) for key, value in row.items() if value} for row in rows]
