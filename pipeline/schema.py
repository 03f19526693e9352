"""The schema of a study's YAML file: every key with its type, default, bounds and a description."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline import bias, distillation, models, pruning, recovery
from pipeline.data import DATASETS, Data
from pipeline.registry import (
    NO_OPTION,
    WRONG,
    Mistakes,
    Reads,
    Refused,
    Registry,
    UserError,
    listed,
    made,
    nearest,
    options,
    options_of,
    read,
    read_options,
    shown,
)
from pipeline.statistics import Claim
from pipeline.training import Fit

# Keys that say where and with what a study runs, not what it is.
EXECUTION = ("device", "workers")
# What a row of the result table is called where nothing is pruned, or nothing is trained after pruning.
RESERVED = {"prunings": "dense", "recoveries": "none"}
# What stands for losses: no training, or training on the labels alone.
WITHOUT_TEACHER = {"none": None, "finetune": "ce"}

MOST_SEEDS = 256  # each is compared with every other
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Budget = Annotated[int, Field(ge=1, le=100_000)]


# ---------------------------------------------------------------------------------------- how some options are read


def _network(value: Any, where: str, mistakes: Mistakes) -> models.Network:
    if not isinstance(value, str | Mapping) or not value:
        mistakes.add(where, f"{shown(value)} is no network; give a name such as resnet8")
        return WRONG
    try:
        return models.network(value, where)
    except UserError as error:
        for line in str(error).splitlines():
            place, _, said = line.partition(": ")
            mistakes.add(place, said)
        return WRONG


def _seeds(value: Any, where: str, mistakes: Mistakes) -> tuple[int, ...]:
    if isinstance(value, list | tuple) or (isinstance(value, str) and "," in value):
        seeds = read(tuple[Seed, ...], value, where, mistakes)
        if seeds == ():
            mistakes.add(where, "empty; give a number of seeds or a list of them")
            return WRONG
        if seeds is not WRONG and len(seeds) > MOST_SEEDS:
            mistakes.add(where, f"{len(seeds)} seeds are refused; give at most {MOST_SEEDS}")
            return WRONG
        return seeds if seeds is WRONG else tuple(dict.fromkeys(seeds))
    count = read(Annotated[int, Field(ge=1, le=MOST_SEEDS)], value, where, mistakes)
    return count if count is WRONG else tuple(range(count))


def _share(value: Any, where: str, mistakes: Mistakes) -> float:
    number = read(float, value, where, Mistakes())
    if number is WRONG:
        mistakes.add(where, f"{shown(value)} is refused; give a share of weights, 0 or more and below 1")
    elif not 0 <= number < 1:
        hint = f"; did you mean {number / 100:g}?" if 1 < number < 100 else ""
        mistakes.add(where, f"{shown(value)} is outside [0, 1): it is the share of weights removed{hint}")
        return WRONG
    return number


def _sparsities(value: Any, where: str, mistakes: Mistakes) -> tuple[float, ...]:
    found = [_share(part, place, mistakes) for place, part in listed(value, where)]
    return WRONG if WRONG in found else tuple(sorted(set(found) - {0.0}))


def _budgets(value: Any, where: str, mistakes: Mistakes) -> tuple[int, ...]:
    found = read(tuple[Budget, ...], value, where, mistakes)
    return found if found is WRONG else tuple(sorted(set(found)))


def _beside(cls: type, inner: str, registry: Registry, value: Any, where: str, mistakes: Mistakes) -> Any:
    """A dataclass whose options stand in one mapping with those of what its field ``inner`` holds."""
    if not isinstance(value, str | Mapping):
        return registry.read(value, where, mistakes)  # which refuses it
    values, before = {"name": value} if isinstance(value, str) else dict(value), len(mistakes)
    own = {option.name: option.type for option in options_of(cls) if option.name != inner}
    found = {
        name: read(own[name], values.pop(name), f"{where}.{name}", mistakes) for name in list(values) if name in own
    }
    name = values.get("name")
    if isinstance(name, str) and name in registry:  # here, since the registry's class could not offer those of ``cls``
        known = {"name", *own, *(option.name for option in options_of(registry[name]))}
        for key in [key for key in values if key not in known]:
            mistakes.add(f"{where}.{key}", f"unknown option; {nearest(key, known)}")
            del values[key]
    found[inner] = registry.read(values, where, mistakes)
    return WRONG if len(mistakes) > before else made(cls, found, where, mistakes)


def _data(value: Any, where: str, mistakes: Mistakes) -> Data:
    return _beside(Data, "dataset", DATASETS, value, where, mistakes)


def _pruning(value: Any, where: str, mistakes: Mistakes) -> Pruning:
    return _beside(Pruning, "method", pruning.METHODS, value, where, mistakes)


def _claims(value: Any, where: str, mistakes: Mistakes) -> tuple[Claim, ...]:
    found = [read_options(Claim, part, place, mistakes) for place, part in listed(value, where)]
    for (place, _), claim in zip(listed(value, where), found, strict=True):
        if claim is not WRONG and (why := _not_of_one_network(claim.measure)):
            known = [name for name in bias.MEASURES if not _not_of_one_network(name)]
            mistakes.add(f"{place}.measure", f"{shown(claim.measure)} {why}; {nearest(claim.measure, known)}")
    return WRONG if WRONG in found else tuple(found)


def _not_of_one_network(measure: str) -> str:
    """Why no network has a value of its own over the whole test set; empty where each has."""
    if measure not in bias.MEASURES:
        return "is no measure of bias"
    if bias.MEASURES[measure].over_trials:
        return "is of all networks together"
    return "compares groups" if bias.MEASURES[measure].needs_groups else ""


def _losses(value: Any, where: str, mistakes: Mistakes) -> tuple[distillation.Loss, ...]:
    if isinstance(value, str) and value in WITHOUT_TEACHER:
        value = WITHOUT_TEACHER[value]
        return () if value is None else distillation.read_losses(value, where, mistakes)
    if value is None:
        mistakes.add(where, "missing; give none, finetune, or losses such as kd")
        return WRONG
    return distillation.read_losses(value, where, mistakes)


def _window(value: Any, where: str, mistakes: Mistakes) -> tuple[float, float]:
    parts = value if isinstance(value, list | tuple) else []
    shares = [read(float, part, where, Mistakes()) for part in parts]
    if len(shares) != 2 or WRONG in shares or not 0 <= shares[0] < shares[1] <= 1:
        said = "give two rising shares of training in [0, 1], such as [0, 0.3]"
        mistakes.add(where, f"{shown(value)} is refused; {said}")
        return WRONG
    return tuple(shares)


# ------------------------------------------------------------------------------------------------------- the schema

LONGEST_TITLE = 80  # characters
Title = Annotated[str, Field(description="what tables and reports call it; it names folders too")]
Losses = Annotated[
    tuple[distillation.Loss, ...],
    Field(description="none (no training), finetune (the labels), an expression such as 0.1 ce + 0.9 kd, or a list"),
    Reads(_losses, "none, finetune, or losses such as kd"),
]


@options
class Pruning:
    """How networks are pruned: the options of a method, and these."""

    method: Annotated[pruning.Method, Field(description="a name, with its options"), pruning.METHODS]
    schedule: Annotated[
        pruning.Schedule, Field(description="once, in rounds, or while the network trains"), pruning.SCHEDULES
    ] = field(default_factory=pruning.OneShot)
    title: Title = ""

    def __post_init__(self) -> None:
        if self.schedule.grows and not self.method.grows:
            raise Refused(
                "schedule",
                f"{self.method.name} cannot follow {self.schedule.name}, only masks over weights or filters can grow "
                "while the network trains; use one_shot or iterative",
            )

    def called(self) -> str:
        """The title, or what stands for one."""
        name = self.method.name
        return self.title or (name if isinstance(self.schedule, pruning.OneShot) else f"{name} {self.schedule.name}")


@options
class Reference:
    """Dense networks, wherever one is meant: one per seed."""

    network: Annotated[
        models.Network,
        Field(description="default: that of the study"),
        Reads(_network, "the name of a network, or a mapping with it"),
    ]
    train: Annotated[Fit, Field(description="changes to train")]
    seeds: Annotated[
        tuple[int, ...],
        Field(description="a number or a list; default: the seed of the network that refers to it"),
        Reads(_seeds, "a number of seeds, or a list of them"),
    ] = ()


@options
class Recovery:
    """What follows pruning. Every answer is independent of the others and has a default but for the losses."""

    losses: Losses
    title: Title = ""
    start: Annotated[recovery.Start, Field(description="the weights that training starts from"), recovery.STARTS] = (
        field(default_factory=recovery.Kept)
    )
    examples: Annotated[
        recovery.Selection, Field(description="which training examples it sees"), recovery.SELECTIONS
    ] = field(default_factory=recovery.All)
    mixture: Annotated[recovery.Mixture, Field(description="how often each of them comes"), recovery.MIXTURES] = field(
        default_factory=recovery.Uniform
    )
    update: Annotated[recovery.Update, Field(description="which parameters move"), recovery.UPDATES] = field(
        default_factory=recovery.Everything
    )
    window: Annotated[
        tuple[float, float],
        Field(description="shares of the steps in which teachers are asked; outside it they do not run"),
        Reads(_window, "two rising shares in [0, 1]"),
    ] = (0.0, 1.0)
    teachers: Annotated[
        tuple[Reference, ...],
        Field(description="parent, {network, train, seeds} or a list of these; default: the network's dense parent"),
    ] = ()
    ensemble: Annotated[Literal["average", "random"], Field(description="ask all teachers, or one for each step")] = (
        "average"
    )
    cache_logits: Annotated[
        bool, Field(description="keep the teachers' logits in data/logits for all that see the same images")
    ] = False
    fit: Annotated[Fit, Field(description="changes to recover (after start: rewound, to train)")] = field(
        default_factory=Fit
    )
    own_fit: bool = field(default=False, metadata=NO_OPTION)

    def __post_init__(self) -> None:
        if not any(loss.needs_teacher for loss in self.losses):
            for name in ("window", "teachers", "ensemble", "cache_logits"):
                if getattr(self, name) != default(Recovery, name):
                    raise Refused(name, "no loss here asks a teacher; drop it, or add a loss such as kd")
        features = [loss.name for loss in self.losses if loss.needs_features]
        if self.cache_logits and features:
            raise Refused("cache_logits", f"'{features[0]}' reads features, which are not kept; set it to false")
        if self.ensemble != "average" and sum(len(one.seeds) or 1 for one in self.teachers) < 2:
            said = "takes two teachers or more; name them under teachers"
            raise Refused("ensemble", f"'{self.ensemble}' {said}")
        for name in ("start", "examples", "mixture", "update", "title"):
            if not self.losses and getattr(self, name) != default(Recovery, name):
                raise Refused(name, "nothing is trained here; drop it, or give losses such as finetune")
        if not self.losses and self.own_fit:
            raise Refused("fit", "nothing is trained here; drop it, or give losses such as finetune")
        if self.start.first_epoch >= self.fit.epochs:
            raise Refused(
                "start.epoch",
                f"{self.start.first_epoch} leaves nothing of {self.fit.epochs} epochs of training; give less",
            )

    def called(self) -> str:
        """The title, or what stands for one: ``ce + kd (temperature 2)``."""
        return self.title or " + ".join(loss.name + _changes(loss) for loss in self.losses) or RESERVED["recoveries"]


def default(cls: type, name: str) -> Any:
    return next(option.default for option in options_of(cls) if option.name == name)


def _changes(loss: distillation.Loss) -> str:
    """Options that are not the defaults, but for the weight."""
    fields = [part for part in dataclasses.fields(loss) if part.name != "weight"]
    found = [f"{part.name} {value}" for part in fields if (value := getattr(loss, part.name)) != part.default]
    return f" ({', '.join(found)})" if found else ""


def _plain_recovery(losses: str) -> Recovery:
    return Recovery(_losses(losses, "losses", Mistakes()), title="" if losses == RESERVED["recoveries"] else losses)


@options
class Study:
    """A checked study. ``resolved`` is the configuration that it came from, defaults filled in."""

    study: Annotated[str, Field(description="its reports and dashboard runs are filed under this name", min_length=1)]
    data: Annotated[
        Data,
        Field(description="name of a dataset and its options, and how it is divided"),
        Reads(_data, "the name of a dataset, or a mapping with it"),
    ]
    network: Annotated[
        models.Network,
        Field(description="which architecture: a name, with its options"),
        Reads(_network, "the name of a network, or a mapping with it"),
    ]
    seeds: Annotated[
        tuple[int, ...],
        Field(description="how many networks of each kind (3 means seeds 0, 1, 2), or a list of seeds"),
        Reads(_seeds, "a number of seeds, or a list of them"),
    ] = (0, 1, 2)
    train: Annotated[Fit, Field(description="how the dense network is trained")] = field(default_factory=Fit)
    recover: Annotated[Fit, Field(description="how pruned networks are trained further")] = field(default_factory=Fit)
    sparsities: Annotated[
        tuple[float, ...],
        Field(description="shares of the prunable weights to remove, in [0, 1)"),
        Reads(_sparsities, "a list of shares, each 0 or more and below 1"),
    ] = (0.5, 0.9, 0.95)
    prunings: Annotated[
        tuple[Annotated[Pruning, Reads(_pruning, "a pruning method")], ...],
        Field(description="pruning methods: names, or mappings of name, options, schedule, title"),
    ] = field(default_factory=lambda: (Pruning(pruning.METHODS["magnitude"]()),))
    recoveries: Annotated[
        tuple[Recovery, ...],
        Field(description="none, finetune, losses such as kd, or mappings of options"),
    ] = field(default_factory=lambda: tuple(_plain_recovery(name) for name in ("none", "finetune", "kd")))
    budgets: Annotated[
        tuple[int, ...],
        Field(description="epochs of recovery: every recovery runs with each, and the report gives speed-ups"),
        Reads(_budgets, "a list of epochs, each from 1 to 100000"),
    ] = ()
    claims: Annotated[
        tuple[Claim, ...],
        Field(
            description="comparisons of two recoveries asked beforehand: corrected among themselves, they lead the page"
        ),
        Reads(_claims, "a list of {measure, first, second, at: {pruning, sparsity}}"),
    ] = ()
    resamples: Annotated[int, Field(description="bootstrap resamples behind each interval", ge=100, le=10_000_000)] = (
        2000
    )
    smoothing: Annotated[
        float,
        Field(
            description="pseudo-count added to each class's errors (0 leaves out classes without reference errors)",
            ge=0,
            le=1e6,
        ),
    ] = 0.0
    minimum_errors: Annotated[
        int,
        Field(
            description="a class with fewer errors of a dense network is named wherever it moves a number",
            ge=0,
            le=10_000_000,
        ),
    ] = 5
    similarity_examples: Annotated[
        int, Field(description="validation examples that similarity is measured on", ge=4, le=10_000_000)
    ] = 1000
    pruning_examples: Annotated[
        int, Field(description="training examples that data-driven pruning criteria look at", ge=1, le=10_000_000)
    ] = 256
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="what computes")] = "auto"
    workers: Annotated[int, Field(description="stages at a time (0: one per core, one on a GPU)", ge=0, le=4096)] = 0
    threads: Annotated[
        int,
        Field(
            description="of the processor for each stage; more than 1 name results of their own, since sums round "
            "otherwise",
            ge=1,
            le=1024,
        ),
    ] = 1
    resolved: dict[str, Any] = field(default_factory=dict, hash=False, compare=False, repr=False, metadata=NO_OPTION)
