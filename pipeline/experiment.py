"""A study: its YAML schema, overrides, checks, and the plan of stages that it stands for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pipeline import bias, distillation, models, pruning, similarities
from pipeline.data import DATASETS, Data
from pipeline.registry import UserError, build, nearest
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
from pipeline.training import Fit

SECTIONS = {
    "study": "the study's name: its reports and dashboard runs are filed under it",
    "seeds": "how many networks of each kind (3 means seeds 0, 1, 2), or a list of seeds",
    "data": "name of a dataset, its options, and validation, keep, long_tail, split_seed",
    "network": "name of the network",
    "train": "how the dense network is trained (fields of training.Fit)",
    "recover": "how pruned networks are trained further (fields of training.Fit)",
    "sparsities": "shares of the prunable weights to remove, in [0, 1)",
    "prunings": "pruning methods: names, or mappings of name, options, schedule, title",
    "recoveries": "none, finetune, or losses such as kd; or mappings of losses, window, teachers, ensemble, "
    "from_scratch, cache_logits, title, fit",
    "budgets": "epochs of recovery to compare: every recovery runs with each, and the report gives speed-ups",
    "resamples": "bootstrap resamples behind each interval",
    "smoothing": "pseudo-count added to each class's error counts (0 leaves out classes without reference errors)",
    "similarity_examples": "validation examples that similarity is measured on",
    "pruning_examples": "training examples that data-driven pruning criteria look at",
    "device": "auto, cpu or cuda",
    "workers": "stages at a time (0: one per core, one on a GPU)",
    "threads": "of the processor for each stage; more than 1 name results of their own, since sums round otherwise",
}
# Keys that say where and with what a study runs, not what it is.
EXECUTION = ("device", "workers")
# What a row of the result table is called where nothing is pruned, or nothing is trained after pruning.
RESERVED = {"prunings": "dense", "recoveries": "none"}
DEFAULTS = {
    "seeds": 3,
    "train": {},
    "recover": {},
    "sparsities": [0.5, 0.9, 0.95],
    "prunings": ["magnitude"],
    "recoveries": ["none", "finetune", "kd"],
    "budgets": [],
    "resamples": 2000,
    "smoothing": 0.0,
    "similarity_examples": 1000,
    "pruning_examples": 256,
    "device": "auto",
    "workers": 0,
    "threads": 1,
}


@dataclass(frozen=True)
class Pruning:
    title: str
    method: pruning.Method
    schedule: pruning.Schedule = field(default_factory=pruning.OneShot)


@dataclass(frozen=True)
class Reference:
    """Dense networks, wherever one is meant: one per seed. seeds empty: that of the network that refers to it."""

    network: models.Network
    train: Fit
    seeds: tuple[int, ...] = ()

    def stages(self, like: Train) -> list[Train]:
        """Them as stages: on the data of a dense network, and trained with as many threads."""
        seeds = self.seeds or (like.seed,)
        return [replace(like, network=self.network, fit=self.train, seed=seed) for seed in seeds]


@dataclass(frozen=True)
class Recovery:
    """losses empty: nothing is trained after pruning. teachers empty: the dense parent."""

    title: str
    losses: tuple[distillation.Loss, ...]
    fit: Fit
    window: tuple[float, float] = (0.0, 1.0)
    teachers: tuple[Reference, ...] = ()
    ensemble: str = "average"
    from_scratch: bool = False
    cache_logits: bool = False
    own_fit: bool = False


@dataclass(frozen=True)
class Study:
    """A checked study. ``resolved`` is the configuration that it came from, defaults filled in."""

    study: str
    seeds: tuple[int, ...]
    data: Data
    network: models.Network
    train: Fit
    sparsities: tuple[float, ...]
    prunings: tuple[Pruning, ...]
    recoveries: tuple[Recovery, ...]
    resamples: int
    smoothing: float
    similarity_examples: int
    pruning_examples: int
    device: str
    workers: int
    threads: int
    resolved: dict[str, Any] = field(hash=False, compare=False)


def load(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Reads a YAML file and applies ``key=value`` overrides.

    Raises:
        UserError: naming the key, the value, what is allowed and the nearest known name.
    """
    try:
        content = OmegaConf.load(path)
    except OSError as error:
        known = ", ".join(sorted(str(file) for file in path.parent.glob("*.yaml")))
        raise UserError(f"--config {path}: {error.strerror}" + (f"; there are {known}" if known else "")) from None
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--config {path}: not YAML ({reason})") from None
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise UserError(f"'{override}': an override has the form key=value, such as sparsities=[0.5,0.9]")
        if key.split(".")[0] not in SECTIONS:
            raise UserError(f"{key}: unknown key; {nearest(key, SECTIONS)}")
        try:
            content = OmegaConf.merge(content, OmegaConf.from_dotlist([override]))
        except (YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
            raise UserError(f"{override}: {' '.join(str(error).split())}") from None
    try:
        plain = OmegaConf.to_container(content, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(plain, dict):
        raise UserError(f"--config {path}: holds no mapping of keys to values; {nearest('', SECTIONS)}")
    return parse(plain)


def parse(content: Mapping[str, Any]) -> Study:
    """Checks a plain mapping against the schema."""
    for key in content:
        if key not in SECTIONS:
            raise UserError(f"{key}: unknown key; {nearest(key, SECTIONS)}")
    for key in ("study", "data", "network"):
        if content.get(key) in (None, ""):
            raise UserError(f"{key}: missing; give {SECTIONS[key]}")
    content = {**DEFAULTS, **content}
    name = str(content["study"])
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith("."):
        raise UserError(f"study: '{name}' becomes a folder; use letters, digits, '-', '_' and '.'")
    network = models.network(content["network"], "network")
    train = _fit(content["train"], "train")
    recover = _fit(content["recover"], "recover")
    prunings = tuple(
        _pruning(value, f"prunings.{number}") for number, value in enumerate(_list(content["prunings"], "prunings"))
    )
    recoveries = tuple(
        _recovery(value, content, recover, f"recoveries.{number}")
        for number, value in enumerate(_list(content["recoveries"], "recoveries"))
    )
    recoveries = _with_budgets(recoveries, content)
    for key, titles in (
        ("prunings", [one.title for one in prunings]),
        ("recoveries", [one.title for one in recoveries]),
    ):
        double = sorted({title for title in titles if titles.count(title) > 1})
        if double:
            raise UserError(f"{key}: '{double[0]}' stands there twice; give each a title of its own")
        if not titles:
            raise UserError(f"{key}: empty; name at least one")
        for title in titles:
            if len(title) > 80 or title.startswith(".") or not title.isprintable() or set(title) & set("/\\"):
                raise UserError(f"{key}: the title {title!r} names folders too; use at most 80 characters, no / or \\")
    if RESERVED["prunings"] in [one.title for one in prunings]:
        raise UserError("prunings: the title 'dense' stands for the dense networks; choose another")
    if any(one.losses and one.title == RESERVED["recoveries"] for one in recoveries):
        raise UserError("recoveries: the title 'none' stands for no training; choose another")
    _check_schedules(prunings, recoveries, train, budgeted=bool(content["budgets"]))
    device = str(content["device"])
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device: '{device}' is unknown; {nearest(device, ('auto', 'cpu', 'cuda'))}")
    return Study(
        study=name,
        seeds=_seeds(content["seeds"]),
        data=_data(content["data"]),
        network=network,
        train=train,
        sparsities=_sparsities(content["sparsities"]),
        prunings=prunings,
        recoveries=recoveries,
        resamples=_integer(content["resamples"], "resamples", 100),
        smoothing=_not_negative(content["smoothing"], "smoothing"),
        similarity_examples=_integer(content["similarity_examples"], "similarity_examples", 4),
        pruning_examples=_integer(content["pruning_examples"], "pruning_examples", 1),
        device=device,
        workers=_integer(content["workers"], "workers", 0),
        threads=_integer(content["threads"], "threads", 1, 1024),
        resolved=content,
    )


def _list(value: Any, key: str) -> list[Any]:
    """A list, or what a person would write on a command line instead of one: ``0.5,0.9`` or a single value."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if value is None:
        raise UserError(f"{key}: empty; give {SECTIONS[key]}")
    return list(value) if isinstance(value, list | tuple) else [value]


def _number(value: Any, key: str) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError):
        raise UserError(f"{key}: '{value}' is not a number") from None


def _integer(value: Any, key: str, least: int, most: int = 2**32 - 1) -> int:
    number = _number(value, key)
    if not math.isfinite(number) or number != int(number) or not least <= number <= most:
        raise UserError(f"{key}: {value} is refused; give a whole number from {least} to {most}")
    return int(number)


def _not_negative(value: Any, key: str) -> float:
    number = _number(value, key)
    if not 0 <= number < float("inf"):
        raise UserError(f"{key}: {value} is refused; give 0 or more")
    return number


def _sparsities(value: Any) -> tuple[float, ...]:
    found = []
    for part in _list(value, "sparsities"):
        number = _number(part, "sparsities")
        if not 0 <= number < 1:
            hint = f"; did you mean {number / 100:g}?" if 1 < number < 100 else ""
            raise UserError(f"sparsities: {part} is outside [0, 1): it is the share of weights removed{hint}")
        found.append(number)
    return tuple(sorted(set(found) - {0.0}))


def _seeds(value: Any, where: str = "seeds") -> tuple[int, ...]:
    if isinstance(value, list | tuple) or (isinstance(value, str) and "," in value):
        seeds = tuple(dict.fromkeys(_integer(part, where, 0) for part in _list(value, where)))
        if not seeds:
            raise UserError(f"{where}: empty; give a number of seeds or a list of them")
        return seeds
    return tuple(range(_integer(value, where, 1, 10_000)))


def _data(value: Any) -> Data:
    if not isinstance(value, str | Mapping):
        raise UserError(f"data: '{value}' is no dataset; {nearest(value, DATASETS)}")
    options = {"name": value} if isinstance(value, str) else dict(value)
    if not isinstance(options.get("name"), str):
        raise UserError(f"data.name: missing; {nearest('', DATASETS)}")
    own = {part.name for part in dataclasses.fields(Data)} - {"dataset"}
    split = {key: options.pop(key) for key in list(options) if key in own}
    if not isinstance(split.get("keep", {}), Mapping):
        raise UserError(f"data.keep: '{split['keep']}' is no mapping; give class: share, such as {{cat: 0.1}}")
    if "keep" in split:
        split["keep"] = [(str(name), _number(share, f"data.keep.{name}")) for name, share in split["keep"].items()]
    name = options["name"]
    if name in DATASETS:  # before the dataset refuses an option, so that the message can offer those of Data too
        known = own | {part.name for part in dataclasses.fields(DATASETS[name])} | {"name"}
        for key in options:
            if key not in known:
                raise UserError(f"data.{key}: unknown option; {nearest(key, known)}")
    dataset = DATASETS.build(options, "data")
    plain = {key: part for key, part in split.items() if key != "keep"}
    try:
        return replace(build(_DataOptions, plain, "data").of(dataset), keep=tuple(split.get("keep", ())))
    except ValueError as error:
        raise UserError(f"data: {error}") from None


@dataclass(frozen=True)
class _DataOptions:
    """The scalar options of Data, in types that can be checked by name."""

    validation: float = 0.1
    long_tail: float = 1.0
    split_seed: int = 0

    def of(self, dataset: object) -> Data:
        return Data(dataset, self.validation, (), self.long_tail, self.split_seed)


def _fit(value: Any, where: str) -> Fit:
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: '{value}' is not a mapping of options, such as {{epochs: 12}}")
    return build(Fit, value, where)


def _pruning(value: Any, where: str) -> Pruning:
    if not isinstance(value, str | Mapping) or not value or (isinstance(value, Mapping) and "name" not in value):
        raise UserError(f"{where}: '{value}' names no pruning method; {nearest('', pruning.METHODS)}")
    options = {"name": value} if isinstance(value, str) else dict(value)
    title = options.pop("title", None)
    schedule = pruning.SCHEDULES.build(options.pop("schedule", None) or "one_shot", f"{where}.schedule")
    method = pruning.METHODS.build(options, where)
    if schedule.grows and not method.grows:
        raise UserError(
            f"{where}.schedule: {method.name} cannot follow {schedule.name}, only masks over weights or filters can "
            "grow while the network trains; use one_shot or iterative"
        )
    given = method.name if isinstance(schedule, pruning.OneShot) else f"{method.name} {schedule.name}"
    return Pruning(str(title or given), method, schedule)


def _check_schedules(
    prunings: Sequence[Pruning], recoveries: Sequence[Recovery], train: Fit, *, budgeted: bool
) -> None:
    for one in prunings:
        schedule = one.schedule
        if isinstance(schedule, pruning.OneShot):
            continue
        for recovery in recoveries:
            if not recovery.losses:
                raise UserError(
                    f"recoveries: '{recovery.title}' does not train, which the schedule {schedule.name} of pruning "
                    f"'{one.title}' needs; leave one of them out"
                )
            if isinstance(schedule, pruning.Iterative) and budgeted:
                raise UserError(
                    f"budgets: pruning '{one.title}' trains again after each of its rounds, so that one budget means "
                    "nothing; leave the budgets or that pruning out"
                )
            if isinstance(schedule, pruning.Iterative) and recovery.from_scratch:
                raise UserError(
                    f"recoveries: '{recovery.title}' starts from_scratch, which leaves nothing to prune in rounds; "
                    f"leave it or pruning '{one.title}' out"
                )
            if isinstance(schedule, pruning.Iterative) and schedule.rewind != "none" and recovery.own_fit:
                raise UserError(
                    f"recoveries: '{recovery.title}' has a fit or budget of its own, but pruning '{one.title}' repeats "
                    f"train from epoch {schedule.epoch} on; leave the fit out, or use rewind: none"
                )
        if isinstance(schedule, pruning.Iterative) and schedule.rewind != "none" and schedule.epoch >= train.epochs:
            raise UserError(
                f"prunings: '{one.title}' goes back to epoch {schedule.epoch}, but training has only {train.epochs}; "
                "give schedule.epoch less than train.epochs"
            )


@dataclass(frozen=True)
class _RecoveryOptions:
    title: str = ""
    losses: Any = None
    window: Any = None
    teachers: Any = None
    ensemble: str = "average"
    from_scratch: bool = False
    cache_logits: bool = False
    fit: Any = None


def _recovery(value: Any, content: Mapping[str, Any], fit: Fit, where: str) -> Recovery:
    options = {"losses": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else None
    if options is None:
        raise UserError(f"{where}: '{value}' is no recovery; give none, finetune, or losses such as kd")
    chosen = build(_RecoveryOptions, options, where)
    if chosen.losses in ("none", "finetune"):
        expression = {"none": None, "finetune": "ce"}[chosen.losses]
    else:
        expression = chosen.losses
        if expression is None:
            raise UserError(f"{where}.losses: missing; give none, finetune, or losses such as kd")
    if chosen.fit is not None:
        fit = _changed_fit(content["recover"], chosen.fit, f"{where}.fit")
    window = _window(chosen.window, f"{where}.window")
    if chosen.ensemble not in distillation.ENSEMBLES:
        raise UserError(f"{where}.ensemble: '{chosen.ensemble}'; {nearest(chosen.ensemble, distillation.ENSEMBLES)}")
    losses = () if expression is None else distillation.parse_losses(expression, f"{where}.losses")
    if not any(loss.needs_teacher for loss in losses):
        for option in ("window", "teachers", "ensemble", "cache_logits"):
            if getattr(chosen, option) != getattr(_RecoveryOptions(), option):
                raise UserError(f"{where}.{option}: no loss here asks a teacher; drop it, or add a loss such as kd")
    features = [loss.name for loss in losses if loss.needs_features]
    if chosen.cache_logits and features:
        raise UserError(f"{where}.cache_logits: '{features[0]}' reads features, which are not kept; set it to false")
    for option in ("from_scratch", "fit", "title"):
        if not losses and getattr(chosen, option):
            raise UserError(f"{where}.{option}: nothing is trained here; drop it, or give losses such as finetune")
    teachers = _teachers(chosen.teachers, content, f"{where}.teachers")
    if chosen.ensemble != "average" and sum(len(one.seeds) or 1 for one in teachers) < 2:
        raise UserError(f"{where}.ensemble: '{chosen.ensemble}' takes two teachers or more; name them under teachers")
    title = chosen.title or (chosen.losses if isinstance(chosen.losses, str) else _losses_title(losses))
    return Recovery(
        title=title,
        losses=losses,
        fit=fit,
        window=window,
        teachers=teachers,
        ensemble=chosen.ensemble,
        from_scratch=chosen.from_scratch,
        cache_logits=chosen.cache_logits,
        own_fit=chosen.fit is not None,
    )


def _window(value: Any, where: str) -> tuple[float, float]:
    if value is None:
        return 0.0, 1.0
    shares = [_number(part, where) for part in value] if isinstance(value, list | tuple) else []
    if len(shares) != 2 or not 0 <= shares[0] < shares[1] <= 1:
        raise UserError(f"{where}: {value} is refused; give two rising shares of training in [0, 1], such as [0, 0.3]")
    return shares[0], shares[1]


def _losses_title(losses: Sequence[distillation.Loss]) -> str:
    """``ce + kd (temperature 2)``: the names, and options that are not the defaults."""

    def changed(loss: distillation.Loss) -> str:
        fields = [part for part in dataclasses.fields(loss) if part.name != "weight"]
        found = [f"{part.name} {value}" for part in fields if (value := getattr(loss, part.name)) != part.default]
        return f" ({', '.join(found)})" if found else ""

    return " + ".join(loss.name + changed(loss) for loss in losses)


def _with_budgets(recoveries: tuple[Recovery, ...], content: Mapping[str, Any]) -> tuple[Recovery, ...]:
    """Each recovery once for each of the study's budgets."""
    budgets = sorted({_integer(part, "budgets", 1) for part in _list(content["budgets"], "budgets")})
    if not budgets:
        return recoveries
    for number, value in enumerate(_list(content["recoveries"], "recoveries")):
        if isinstance(value, Mapping) and "epochs" in (value.get("fit") or {}):
            raise UserError(f"recoveries.{number}.fit.epochs: the study's budgets set it; drop one of the two")
    return tuple(
        replace(one, title=f"{one.title}, {epochs} epochs", fit=replace(one.fit, epochs=epochs), own_fit=True)
        if one.losses
        else one
        for one in recoveries
        for epochs in (budgets if one.losses else budgets[:1])
    )


def _changed_fit(shared: Mapping[str, Any], changes: Any, where: str) -> Fit:
    """The options of a section with some of them changed."""
    if not isinstance(changes, Mapping):
        return _fit(changes, where)
    return _fit(OmegaConf.to_container(OmegaConf.merge(dict(shared), dict(changes))), where)


@dataclass(frozen=True)
class _ReferenceOptions:
    network: Any = None
    train: Any = None
    seeds: Any = None


def _teachers(value: Any, content: Mapping[str, Any], where: str) -> tuple[Reference, ...]:
    """``parent``, ``{network, train, seeds}`` (each the study's own where it is absent), or a list of these."""
    if value is None:
        return ()
    found = []
    for number, part in enumerate(value if isinstance(value, list | tuple) else [value]):
        place = f"{where}.{number}" if isinstance(value, list | tuple) else where
        if part != "parent" and not isinstance(part, Mapping):
            raise UserError(f"{place}: '{part}' is no teacher; give parent, or a mapping such as {{seeds: [1, 2, 3]}}")
        options = build(_ReferenceOptions, {} if part == "parent" else part, place)
        network = models.network(options.network or content["network"], f"{place}.network")
        fit = _changed_fit(content["train"], options.train or {}, f"{place}.train")
        seeds = () if options.seeds is None else _seeds(options.seeds, f"{place}.seeds")
        found.append(Reference(network, fit, seeds))
    if not found:
        raise UserError(f"{where}: empty; name a teacher, or leave it out for the dense parent")
    return tuple(found)


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
    schedules = [one.schedule for one in study.prunings]
    keep = {one.epoch for one in schedules if isinstance(one, pruning.Iterative) and one.rewind == "weights"}
    first = Train(
        study.data, identity, study.network, study.train, study.seeds[0], tuple(sorted(keep)), threads=study.threads
    )
    dense = tuple(Reference(study.network, study.train, study.seeds).stages(first))
    references = tuple(Predict(network) for network in dense)
    floor = Floor(references, tuple(bias.MEASURES[name]() for name in bias.MEASURES), study.smoothing)
    alike = tuple(similarities.SIMILARITIES[name]() for name in similarities.SIMILARITIES)

    def similar(reference: Train, candidate: Train | Prune | Recover) -> Similarity:
        return Similarity(reference, candidate, alike, study.similarity_examples)

    # Sparsity 0 is recovered in the same ways: what training longer does by itself.
    origins = [(None, 0.0), *((one, sparsity) for one in study.prunings for sparsity in study.sparsities)]
    cells = []
    for how, sparsity in origins:
        for recovery in study.recoveries:
            if not recovery.losses and sparsity == 0:
                continue  # the dense networks themselves: they are the reference, and the floor among each other
            networks = tuple(_network(one, how, sparsity, recovery, study.pruning_examples) for one in dense)
            cells.append(
                Cell(
                    pruning=how.title if how else RESERVED["prunings"],
                    sparsity=sparsity,
                    recovery=recovery.title,
                    networks=networks,
                    score=Score(references, tuple(Predict(one) for one in networks), floor, study.resamples),
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
        configuration=OmegaConf.to_yaml(
            OmegaConf.create({key: value for key, value in study.resolved.items() if key not in EXECUTION})
        ),
    )
    return Plan(dense, floor, pairs, tuple(cells), correlate, report)


def _teacher_stages(parent: Train, recovery: Recovery) -> tuple[Train, ...]:
    """The dense networks that one student learns from; empty for its parent alone."""
    stages: dict[str, Train] = {}
    for reference in recovery.teachers:
        for stage in reference.stages(parent):
            if stage.key in stages:
                raise UserError(
                    f"recoveries: '{recovery.title}' names the teacher '{stage.label()}' twice for the student of seed "
                    f"{parent.seed}; leave one out"
                )
            stages[stage.key] = stage
    return () if list(stages) == [parent.key] else tuple(stages.values())


def _network(
    dense: Train, how: Pruning | None, sparsity: float, recovery: Recovery, examples: int
) -> Train | Prune | Recover:
    """What becomes of one dense network in one cell: pruned and recovered, once or in rounds."""

    def recovered(network: Train | Prune, fit: Fit, start_epoch: int = 0, rewind: bool = False) -> Recover:
        return Recover(
            network,
            recovery.losses,
            fit,
            recovery.window,
            _teacher_stages(dense, recovery),
            recovery.ensemble,
            recovery.from_scratch,
            recovery.cache_logits,
            start_epoch=start_epoch,
            rewind=rewind,
            title=recovery.title,
        )

    if how is None:
        return recovered(dense, recovery.fit)
    pruned = Prune(dense, how.method, sparsity, examples=examples, title=how.title)
    if not isinstance(how.schedule, pruning.Iterative):
        pruned = replace(pruned, schedule=how.schedule)
        return recovered(pruned, recovery.fit) if recovery.losses else pruned
    network = None
    for target in how.schedule.rounds(sparsity):
        pruned = replace(pruned, sparsity=target, previous=network)
        if how.schedule.rewind == "none":
            network = recovered(pruned, recovery.fit)
        else:
            network = recovered(pruned, dense.fit, how.schedule.epoch, how.schedule.rewind == "weights")
    return network


def _latency(network: Train | Prune | Recover) -> Latency | None:
    pruned = network.network if isinstance(network, Recover) else network
    return Latency(pruned) if isinstance(pruned, Prune) else None
