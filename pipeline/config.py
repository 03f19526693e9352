"""The configuration of a study: the schema of its YAML file, how that is read, and every mistake in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline import distillation, models, pruning, recovery, yamlfile
from pipeline.data import DATASETS, Data
from pipeline.registry import (
    NO_OPTION,
    WRONG,
    Mistakes,
    Reads,
    Refused,
    UserError,
    listed,
    made,
    nearest,
    options,
    options_of,
    read,
    read_fields,
    read_options,
    shown,
)
from pipeline.training import Fit

# Keys that say where and with what a study runs, not what it is.
EXECUTION = ("device", "workers")
# What a row of the result table is called where nothing is pruned, or nothing is trained after pruning.
RESERVED = {"prunings": "dense", "recoveries": "none"}
# What stands for losses: no training, or training on the labels alone.
WITHOUT_TEACHER = {"none": None, "finetune": "ce"}
RECOVERIES = ("none", "finetune", "kd")  # where a study names none

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Budget = Annotated[int, Field(ge=1, le=100_000)]


# ---------------------------------------------------------------------------------------- how some options are read


def _network(value: Any, where: str, mistakes: Mistakes) -> str:
    if not isinstance(value, str) or not value:
        mistakes.add(where, f"{shown(value)} is no network; give a name such as resnet8")
        return WRONG
    try:
        models.check_network(value)
    except UserError as error:
        mistakes.add(where, str(error).removeprefix("network: "))
        return WRONG
    return value


def _seeds(value: Any, where: str, mistakes: Mistakes) -> tuple[int, ...]:
    if isinstance(value, list | tuple) or (isinstance(value, str) and "," in value):
        seeds = read(tuple[Seed, ...], value, where, mistakes)
        if seeds == ():
            mistakes.add(where, "empty; give a number of seeds or a list of them")
            return WRONG
        return seeds if seeds is WRONG else tuple(dict.fromkeys(seeds))
    count = read(Annotated[int, Field(ge=1, le=10_000)], value, where, mistakes)
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


def _data(value: Any, where: str, mistakes: Mistakes) -> Data:
    """Options of the dataset and those of its division stand in one mapping."""
    if not isinstance(value, str | Mapping) or not value:
        mistakes.add(where, f"{shown(value)} is no dataset; {nearest(value, DATASETS)}")
        return WRONG
    values = {"name": value} if isinstance(value, str) else dict(value)
    own = [option.name for option in options_of(Data) if option.name != "dataset"]
    division = {name: values.pop(name) for name in list(values) if name in own}
    name, before = values.get("name"), len(mistakes)
    if isinstance(name, str) and name in DATASETS:
        # Before the dataset refuses an option, so that the message can offer those of Data too.
        known = {*own, "name", *(option.name for option in options_of(DATASETS[name]))}
        for key in [key for key in values if key not in known]:
            mistakes.add(f"{where}.{key}", f"unknown option; {nearest(key, known)}")
            del values[key]
    dataset = DATASETS.read(values, where, mistakes)
    if "keep" in division:
        shares = division["keep"]
        if not isinstance(shares, Mapping):
            mistakes.add(f"{where}.keep", f"{shown(shares)} is no mapping; give class: share, such as {{cat: 0.1}}")
            division["keep"] = ()
        else:
            division["keep"] = _kept(shares, f"{where}.keep", mistakes)
    found = {
        key: part if key == "keep" else read(option.type, part, f"{where}.{key}", mistakes)
        for option in options_of(Data)
        if (key := option.name) in division
        for part in [division[key]]
    }
    return WRONG if len(mistakes) > before else made(Data, {"dataset": dataset, **found}, where, mistakes)


def _kept(shares: Mapping[str, Any], where: str, mistakes: Mistakes) -> tuple[tuple[str, float], ...]:
    from pipeline.data.split import Kept

    return tuple((name, read(Kept, share, f"{where}.{name}", mistakes)) for name, share in shares.items())


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


def _pruning(value: Any, where: str, mistakes: Mistakes) -> Pruning:
    """Options of the method and those of `Pruning` stand in one mapping."""
    if not isinstance(value, str | Mapping) or not value or (isinstance(value, Mapping) and "name" not in value):
        mistakes.add(where, f"{shown(value)} names no pruning method; {nearest('', pruning.METHODS)}")
        return WRONG
    values, before = {"name": value} if isinstance(value, str) else dict(value), len(mistakes)
    kinds = {option.name: option.type for option in options_of(Pruning)}
    own = {
        name: read(kinds[name], values.pop(name), f"{where}.{name}", mistakes)
        for name in ("schedule", "title")
        if name in values
    }
    method = pruning.METHODS.read(values, where, mistakes)
    return WRONG if len(mistakes) > before else made(Pruning, {"method": method, **own}, where, mistakes)


# ------------------------------------------------------------------------------------------------------- the schema

Title = Annotated[str, Field(description="what tables and reports call it; it names folders too", max_length=80)]
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

    network: Annotated[str, Field(description="default: that of the study"), Reads(_network, "the name of a network")]
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
                if getattr(self, name) != _default(Recovery, name):
                    raise Refused(name, "no loss here asks a teacher; drop it, or add a loss such as kd")
        features = [loss.name for loss in self.losses if loss.needs_features]
        if self.cache_logits and features:
            raise Refused("cache_logits", f"'{features[0]}' reads features, which are not kept; set it to false")
        if self.ensemble != "average" and sum(len(one.seeds) or 1 for one in self.teachers) < 2:
            said = "takes two teachers or more; name them under teachers"
            raise Refused("ensemble", f"'{self.ensemble}' {said}")
        for name in ("start", "examples", "mixture", "update", "title"):
            if not self.losses and getattr(self, name) != _default(Recovery, name):
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


def _default(cls: type, name: str) -> Any:
    return next(option.default for option in options_of(cls) if option.name == name)


def _changes(loss: distillation.Loss) -> str:
    """Options that are not the defaults, but for the weight."""
    fields = [part for part in dataclasses.fields(loss) if part.name != "weight"]
    found = [f"{part.name} {value}" for part in fields if (value := getattr(loss, part.name)) != part.default]
    return f" ({', '.join(found)})" if found else ""


@options
class Study:
    """A checked study. ``resolved`` is the configuration that it came from, defaults filled in."""

    study: Annotated[str, Field(description="its reports and dashboard runs are filed under this name", min_length=1)]
    data: Annotated[
        Data,
        Field(description="name of a dataset and its options, and how it is divided"),
        Reads(_data, "the name of a dataset, or a mapping with it"),
    ]
    network: Annotated[str, Field(description="which architecture"), Reads(_network, "the name of a network")]
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
    ] = field(default_factory=lambda: _read_recoveries(RECOVERIES, Mistakes(), {}))
    budgets: Annotated[
        tuple[int, ...],
        Field(description="epochs of recovery: every recovery runs with each, and the report gives speed-ups"),
        Reads(_budgets, "a list of epochs, each from 1 to 100000"),
    ] = ()
    resamples: Annotated[int, Field(description="bootstrap resamples behind each interval", ge=100, le=10_000_000)] = (
        2000
    )
    smoothing: Annotated[
        float,
        Field(
            description="pseudo-count added to each class's errors (0 leaves out classes without reference errors)",
            ge=0,
            le=1e9,
        ),
    ] = 0.0
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


# ---------------------------------------------------------------------------------------------------------- reading


def load(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Reads a YAML file and applies ``key=value`` overrides.

    Raises:
        UserError: every mistake in a line of its own, with path, value, what is allowed and the nearest known name.
    """
    return parse(yamlfile.load(path, overrides))


def parse(content: Mapping[str, Any]) -> Study:
    """Checks a plain mapping, with text for keys, against the schema; raises UserError as `load`."""
    mistakes = Mistakes()
    told = {key: part for key, part in content.items() if key != "recoveries"}
    found = read_fields(Study, told, "", mistakes)
    defaults = {option.name: option.default for option in options_of(Study)}
    given = content.get("recoveries", RECOVERIES)
    budgets = found.get("budgets", ())
    found["recoveries"] = _read_recoveries(given, mistakes, found)
    if budgets and budgets is not WRONG:
        _refuse_epochs_beside_budgets(given, mistakes)
        found["recoveries"] = _with_budgets(found["recoveries"], budgets, mistakes)
    chosen = {name: found.get(name, defaults[name]) for name in ("prunings", "recoveries", "train")}
    for name in ("prunings", "recoveries"):
        if chosen[name] is not WRONG:
            _check_titles(name, [one.called() for one in chosen[name]], mistakes)
    if any(one.losses and one.called() == RESERVED["recoveries"] for one in _valid(chosen["recoveries"])):
        mistakes.add("recoveries", "the title 'none' stands for no training; choose another")
    if RESERVED["prunings"] in [one.called() for one in _valid(chosen["prunings"])]:
        mistakes.add("prunings", "the title 'dense' stands for the dense networks; choose another")
    if isinstance(name := found.get("study"), str) and (
        not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith(".") or len(name) > 80
    ):
        mistakes.add("study", f"{shown(name)} becomes a folder; use at most 80 letters, digits, '-', '_' and '.'")
    if not len(mistakes):
        _check_schedules(chosen["prunings"], chosen["recoveries"], chosen["train"], bool(budgets), mistakes)
    mistakes.tell()
    return Study(**found, resolved=_filled(content, defaults))


def _valid(values: Any) -> Iterable[Any]:
    return () if values is WRONG else [one for one in values if one is not WRONG]


def _filled(content: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the defaults of keys that it does not name, as YAML could hold them."""
    plain = {
        "train": {},
        "recover": {},
        "prunings": [one.called() for one in defaults["prunings"]],
        "recoveries": [one.called() for one in defaults["recoveries"]],
    }
    missing = {name: value for name, value in defaults.items() if name not in content}
    return dict(content) | {
        name: plain.get(name, list(value) if isinstance(value, tuple) else value) for name, value in missing.items()
    }


def _read_recoveries(value: Any, mistakes: Mistakes, study: Mapping[str, Any]) -> tuple[Recovery, ...]:
    found = [_read_recovery(part, place, mistakes, study) for place, part in listed(value, "recoveries")]
    return WRONG if WRONG in found else tuple(found)


def _read_recovery(value: Any, where: str, mistakes: Mistakes, study: Mapping[str, Any]) -> Recovery:
    """A recovery; fit and teachers say what is other than in the sections of the study, or in what was read of it."""
    values = {"losses": value} if isinstance(value, str) else value
    if not isinstance(values, Mapping):
        mistakes.add(where, f"{shown(value)} is no recovery; give none, finetune, or losses such as kd")
        return WRONG
    before = len(mistakes)
    own = {name: part for name, part in values.items() if name not in ("fit", "teachers")}
    found = read_fields(Recovery, {"losses": None, **own}, where, mistakes)
    start = found.get("start", WRONG)
    section = _section(study, "recover" if start is WRONG else start.follows)
    changes = values.get("fit")
    found["fit"] = section if changes is None else read_options(Fit, changes, f"{where}.fit", mistakes, section)
    found["own_fit"] = changes is not None
    if values.get("teachers") is not None:
        found["teachers"] = _read_teachers(values["teachers"], f"{where}.teachers", mistakes, study)
    if isinstance(value, str) and value in WITHOUT_TEACHER:
        found["title"] = value if value != RESERVED["recoveries"] else ""
    elif isinstance(losses := values.get("losses"), str) and not values.get("title"):
        found["title"] = "" if losses == RESERVED["recoveries"] else losses
    if len(mistakes) > before:
        return WRONG
    return made(Recovery, found, where, mistakes)


def _section(study: Mapping[str, Any], name: str) -> Fit:
    section = study.get(name, WRONG)
    return Fit() if section is WRONG else section


def _read_teachers(value: Any, where: str, mistakes: Mistakes, study: Mapping[str, Any]) -> tuple[Reference, ...]:
    """``parent``, ``{network, train, seeds}`` (each the study's own where it is absent), or a list of these."""
    shared = {"network": study.get("network", ""), "train": _section(study, "train")}
    base = Reference("" if shared["network"] is WRONG else shared["network"], shared["train"])
    found = []
    for place, part in listed(value, where) if isinstance(value, list | tuple) else [(where, value)]:
        if part != "parent" and not isinstance(part, Mapping):
            said = "give parent, or a mapping such as {seeds: [1, 2, 3]}"
            mistakes.add(place, f"{shown(part)} is no teacher; {said}")
            continue
        found.append(read_options(Reference, {} if part == "parent" else part, place, mistakes, base))
    if not found and value in ([], ()):
        mistakes.add(where, "empty; name a teacher, or leave it out for the dense parent")
    return WRONG if WRONG in found else tuple(found)


# ----------------------------------------------------------------------------------------------------------- checks


def _refuse_epochs_beside_budgets(given: Any, mistakes: Mistakes) -> None:
    for place, value in listed(given, "recoveries"):
        fit = value.get("fit") if isinstance(value, Mapping) else None
        if isinstance(fit, Mapping) and "epochs" in fit:
            mistakes.add(f"{place}.fit.epochs", "the study's budgets set it; drop one of the two")


def _with_budgets(
    recoveries: tuple[Recovery, ...], budgets: tuple[int, ...], mistakes: Mistakes
) -> tuple[Recovery, ...]:
    """Each recovery once for each of the study's budgets."""
    found = []
    for number, one in enumerate(_valid(recoveries)):
        for epochs in budgets if one.losses else budgets[:1]:
            title = f"{one.called()}, {epochs} epochs"
            changes = {"title": title, "fit": replace(one.fit, epochs=epochs), "own_fit": True}
            found.append(made(Recovery, changes if one.losses else {}, f"recoveries.{number}", mistakes, one))
    return WRONG if recoveries is WRONG or WRONG in found else tuple(found)


def _check_titles(key: str, titles: Sequence[str], mistakes: Mistakes) -> None:
    for title in sorted({title for title in titles if titles.count(title) > 1}):
        mistakes.add(key, f"'{title}' stands there twice; give each a title of its own")
    if not titles:
        mistakes.add(key, "empty; name at least one")
    for title in titles:
        if len(title) > 80 or title.startswith(".") or not title.isprintable() or set(title) & set("/\\"):
            said = "names folders too; use at most 80 characters, no / or \\"
            mistakes.add(key, f"the title {shown(title)} {said}")


def _check_schedules(
    prunings: Sequence[Pruning], recoveries: Sequence[Recovery], train: Fit, budgeted: bool, mistakes: Mistakes
) -> None:
    """Notes recoveries that do not go with the schedule of a pruning."""
    for one in prunings:
        schedule, title = one.schedule, one.called()
        if isinstance(schedule, pruning.OneShot):
            continue
        rounds = isinstance(schedule, pruning.Iterative)
        back = rounds and schedule.rewind != "none"
        for other in recoveries:
            name = f"'{other.called()}'"
            if not other.losses:
                mistakes.add(
                    "recoveries",
                    f"{name} does not train, which the schedule {schedule.name} of pruning '{title}' needs; leave one "
                    "of them out",
                )
            if rounds and other.start != recovery.Kept():
                mistakes.add(
                    "recoveries",
                    f"{name} starts {other.start.name}, but pruning '{title}' says itself where each of its rounds "
                    "starts; leave the start or that pruning out",
                )
            if back and other.own_fit and not budgeted:
                mistakes.add(
                    "recoveries",
                    f"{name} has a fit of its own, but pruning '{title}' repeats train from epoch {schedule.epoch} on; "
                    "leave the fit out, or use rewind: none",
                )
        if rounds and budgeted:
            mistakes.add(
                "budgets",
                f"pruning '{title}' trains again after each of its rounds, so that one budget means nothing; leave the "
                "budgets or that pruning out",
            )
        if back and schedule.epoch >= train.epochs:
            mistakes.add(
                "prunings",
                f"'{title}' goes back to epoch {schedule.epoch}, but training has only {train.epochs}; give "
                "schedule.epoch less than train.epochs",
            )
