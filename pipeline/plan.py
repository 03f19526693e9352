"""From a study to the stages that it stands for: dense networks, cells, and what measures and reports them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from omegaconf import OmegaConf

from pipeline import bias, pruning, recovery, similarities
from pipeline.registry import UserError
from pipeline.schema import EXECUTION, RESERVED, Pruning, Recovery, Reference, Study
from pipeline.stage import Stage
from pipeline.stages import (
    Cell,
    Correlate,
    Floor,
    Latency,
    Predict,
    Prune,
    Recover,
    Report,
    Score,
    Similarity,
    Train,
)


@dataclass(frozen=True)
class Plan:
    """Everything that a study stands for, as values; nothing has been computed."""

    dense: tuple[Train, ...]
    floor: Floor
    similar: tuple[Similarity, ...]
    cells: tuple[Cell, ...]
    correlate: Correlate
    report: Report

    def targets(self, verb: str) -> list[Stage]:
        networks = [network for cell in self.cells for network in cell.networks]
        return {
            "train": list(self.dense),
            "prune": list(self._pruned()),
            "recover": [one for one in networks if isinstance(one, Recover)],
            "predict": [*self.floor.networks, *(part for cell in self.cells for part in cell.score.candidates)],
            "score": [self.floor, *(cell.score for cell in self.cells)],
            "latency": [cell.latency for cell in self.cells if cell.latency],
            "similarity": [*self.similar, *(part for cell in self.cells for part in cell.similarities)],
            "correlate": [self.correlate],
            "report": [self.report],
            "run": [self.report],
        }[verb]

    def _pruned(self) -> list[Prune]:
        found: dict[str, Prune] = {}
        for cell in self.cells:
            for network in cell.networks:
                origin = network.network if isinstance(network, Recover) else network
                if isinstance(origin, Prune):
                    found[origin.key] = origin
        return list(found.values())


def plan(study: Study, data_root: Path) -> Plan:
    """The stages of a study. Decodes a folder of images first, since its contents name the results."""
    identity = study.data.identity(data_root)
    first = Train(
        study.data, identity, study.network, study.train, study.seeds[0], _early_epochs(study), threads=study.threads
    )
    dense = tuple(_dense(Reference(study.network, study.train, study.seeds), first))
    predict = partial(Predict, groups_identity=study.data.groups_identity(data_root), class_groups=study.data.groups)
    references = tuple(predict(network) for network in dense)
    floor = Floor(references, tuple(bias.MEASURES[name]() for name in bias.MEASURES), study.smoothing)
    alike = tuple(similarities.SIMILARITIES[name]() for name in similarities.SIMILARITIES)

    def similar(reference: Train, candidate: Train | Prune | Recover) -> Similarity:
        return Similarity(reference, candidate, alike, study.similarity_examples)

    # Sparsity 0 is recovered in the same ways: what training longer does by itself.
    origins = [(None, 0.0), *((one, sparsity) for one in study.prunings for sparsity in study.sparsities)]
    cells = []
    for how, sparsity in origins:
        for then in study.recoveries:
            if not then.losses and sparsity == 0:
                continue  # the dense networks themselves: they are the reference, and the floor among each other
            networks = tuple(_network(one, how, sparsity, then, study.pruning_examples) for one in dense)
            cells.append(
                Cell(
                    pruning=how.called() if how else RESERVED["prunings"],
                    sparsity=sparsity,
                    recovery=then.called(),
                    networks=networks,
                    score=Score(
                        references,
                        tuple(predict(one) for one in networks),
                        floor,
                        study.resamples,
                        minimum_errors=study.minimum_errors,
                    ),
                    similarities=tuple(similar(one.dense, one) for one in networks),
                    latency=_latency(networks[0]),
                )
            )
    if not cells:
        raise UserError("the study has nothing to compare: give a sparsity above 0, or a recovery other than none")
    pairs = tuple(similar(one, other) for number, one in enumerate(dense) for other in dense[number + 1 :])
    correlate = Correlate(tuple(replace(cell, latency=None) for cell in cells))  # it waits for no clock
    report = Report(
        study=study.study,
        dense=dense,
        floor=floor,
        similar=pairs,
        cells=tuple(cells),
        correlate=correlate,
        claims=study.claims,
        configuration=OmegaConf.to_yaml(
            OmegaConf.create({key: value for key, value in study.resolved.items() if key not in EXECUTION})
        ),
    )
    return Plan(dense, floor, pairs, tuple(cells), correlate, report)


def _early_epochs(study: Study) -> tuple[int, ...]:
    """After which epochs the weights of dense networks are kept, because something starts from them."""
    starts = [one.start for one in study.recoveries]
    schedules = [one.schedule for one in study.prunings]
    starts += [_start_of_round(one) for one in schedules if isinstance(one, pruning.Iterative)]
    return tuple(sorted({epoch for start in starts for epoch in start.early_epochs}))


def _start_of_round(schedule: pruning.Iterative) -> recovery.Start:
    if schedule.rewind == "none":
        return recovery.Kept()
    return recovery.Rewound(schedule.epoch, weights=schedule.rewind == "weights")


def _dense(reference: Reference, like: Train) -> list[Train]:
    """The dense networks that a reference means: on the data of one, and trained with as many threads."""
    seeds = reference.seeds or (like.seed,)
    return [replace(like, network=reference.network, fit=reference.train, seed=seed) for seed in seeds]


def _teachers(parent: Train, then: Recovery) -> tuple[Train, ...]:
    """The dense networks that one student learns from; empty for its parent alone."""
    stages: dict[str, Train] = {}
    for reference in then.teachers:
        for stage in _dense(reference, parent):
            if stage.key in stages:
                raise UserError(
                    f"recoveries: '{then.called()}' names the teacher '{stage.label()}' twice for the student of seed "
                    f"{parent.seed}; leave one out"
                )
            stages[stage.key] = stage
    return () if list(stages) == [parent.key] else tuple(stages.values())


def _network(
    dense: Train, how: Pruning | None, sparsity: float, then: Recovery, examples: int
) -> Train | Prune | Recover:
    """What becomes of one dense network in one cell: pruned and recovered, once or in rounds."""

    def recovered(network: Train | Prune) -> Recover:
        return Recover(
            network,
            then.losses,
            then.fit,
            start=then.start,
            examples=then.examples,
            mixture=then.mixture,
            update=then.update,
            window=then.window,
            teachers=_teachers(dense, then),
            ensemble=then.ensemble,
            cache_logits=then.cache_logits,
            title=then.called(),
        )

    if how is None:
        return recovered(dense)
    pruned = Prune(dense, how.method, sparsity, examples=examples, title=how.called())
    if not isinstance(how.schedule, pruning.Iterative):
        pruned = replace(pruned, schedule=how.schedule)
        return recovered(pruned) if then.losses else pruned
    start, network = _start_of_round(how.schedule), None
    fit = dense.fit if start.follows == "train" else then.fit
    for target in how.schedule.rounds(sparsity):
        network = replace(recovered(replace(pruned, sparsity=target, previous=network)), fit=fit, start=start)
    return network


def _latency(network: Train | Prune | Recover) -> Latency | None:
    pruned = network.network if isinstance(network, Recover) else network
    return Latency(pruned) if isinstance(pruned, Prune) else None
