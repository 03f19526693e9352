"""A stage is a frozen dataclass that names one call: a hash of that value is its key, the stages in it its inputs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from pipeline.store import Store

# Metadata of a field that must not name a result: where something lies, what it is called in a table.
OUTSIDE_KEY = {"outside_key": True}


class Named(Protocol):
    """What a store must know of a stage to tell whether its result is there: a `Stage`, or what was noted of one."""

    @property
    def key(self) -> str: ...

    @property
    def kind(self) -> str: ...

    def label(self) -> str: ...

    def inputs(self) -> tuple[Named, ...]: ...

    def difference(self, stored: dict[str, Any]) -> str | None: ...


@dataclass(frozen=True)
class Stage:
    """One step of a study. The stages anywhere in its fields are its inputs, all else in them are its options.

    A subclass defines ``run(folder, context)``, which writes its files into an empty or partly filled folder, and
    raises ``version`` when run() changes its answer for the same fields.

    files: the names that run() always writes; optional_files: patterns of names that it writes where they apply. What
    else lies in the folder at the end (checkpoints, what other programs left) is no result and is removed.
    alone: run while no other stage of the study does: it measures time. threads: of the processor, while it runs.
    """

    version: ClassVar[int] = 1
    files: ClassVar[tuple[str, ...]] = ()
    optional_files: ClassVar[tuple[str, ...]] = ()
    alone: ClassVar[bool] = False
    threads = 1  # without a type: a field of this name in a subclass would take a place before all others

    @cached_property
    def key(self) -> str:
        """sha256 over class, version, options that differ from their default, and the keys of the inputs."""
        return digest(_describe_fields(self, full=False))

    @property
    def kind(self) -> str:
        return type(self).__name__.lower()

    @cached_property
    def _inputs(self) -> tuple[Stage, ...]:
        return tuple(stage for name, _ in _named_fields(type(self)) for stage in _stages_in(getattr(self, name)))

    def inputs(self) -> tuple[Stage, ...]:
        """Every stage that stands in a field which names the result, at any depth; some may be equal."""
        return self._inputs

    def options(self) -> dict[str, Any]:
        """Every option in full, defaults included (inputs by key)."""
        return _describe_fields(self, full=True)

    def difference(self, stored: dict[str, Any]) -> str | None:
        """Whether a result was made with other options, as its manifest holds them: the first one, in words."""
        changed = _first_difference(stored, self.options(), self.kind)
        return changed and f"made with {changed[0]}={changed[1]}, the default is now {changed[2]}"

    def label(self) -> str:
        """What a person reads in progress lines and lists."""
        return self.kind

    def check(self, data_root: Path) -> None:
        """Raises UserError, before time is spent on the stages before it, where this one would fail for certain."""

    def run(self, folder: Path, context: Context) -> dict[str, float] | None:
        """Writes the result into an empty folder (or goes on in it), and may return facts for the manifest."""
        raise NotImplementedError(f"{type(self).__name__} defines no run()")


_NO_DEFAULT = object()


@cache
def _named_fields(cls: type) -> tuple[tuple[str, Any], ...]:
    """(name, default) of the fields of a dataclass that name a result."""
    found = []
    for field in dataclasses.fields(cls):
        if field.metadata == OUTSIDE_KEY:
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        found.append((field.name, _NO_DEFAULT if default is dataclasses.MISSING else default))
    return tuple(found)


def _stages_in(value: Any) -> Iterator[Stage]:
    """The stages that `_describe` would name by their key."""
    if isinstance(value, Stage):
        yield value
    elif dataclasses.is_dataclass(value):
        for name, _ in _named_fields(type(value)):
            yield from _stages_in(getattr(value, name))
    elif isinstance(value, tuple | list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _stages_in(part)


def _describe(value: Any, *, full: bool) -> Any:
    """Plain lists, dicts, text and numbers; equal values give equal descriptions, whether 1 or 1.0 was written."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        if value != value:
            raise ValueError("an option that is not a number (NaN) cannot name a stage: it does not equal itself")
        return int(value) if value in (0, 1) or (isinstance(value, float) and value.is_integer()) else value
    if isinstance(value, Stage):
        return {"stage": value.kind, "key": value.key}
    if dataclasses.is_dataclass(value):
        return _describe_fields(value, full=full)
    if isinstance(value, tuple | list):
        return [_describe(part, full=full) for part in value]
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {name: _describe(part, full=full) for name, part in value.items()}
    raise TypeError(f"an option of type {type(value).__name__} cannot name a stage")


def _describe_fields(value: Any, *, full: bool) -> dict[str, Any]:
    cls = type(value)
    named = getattr(cls, "name", None)
    content = {"class": named if isinstance(named, str) else cls.__name__}
    if isinstance(value, Stage) or getattr(cls, "version", 1) != 1:
        content["version"] = cls.version
    for name, default in _named_fields(cls):
        part = getattr(value, name)
        if full or default is _NO_DEFAULT or part != default:
            content[name] = _describe(part, full=full)
    return content


def digest(description: Any) -> str:
    """A short sha256 of plain lists, dicts, text and numbers."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:20]


def _first_difference(stored: Any, now: Any, path: str) -> tuple[str, Any, Any] | None:
    """(place, stored, now), or None; an option that did not exist when the result was made has its default now."""
    if stored == now:
        return None
    if isinstance(stored, dict) and isinstance(now, dict):
        pairs = [(name, value, now.get(name)) for name, value in stored.items()]
    elif isinstance(stored, list) and isinstance(now, list) and len(stored) == len(now):
        pairs = [(str(place), *both) for place, both in enumerate(zip(stored, now, strict=True))]
    else:
        return path, stored, now
    found = (_first_difference(before, after, f"{path}.{name}") for name, before, after in pairs)
    return next((one for one in found if one), None)


@dataclass
class Context:
    """What a running stage may use besides its own fields; nothing here reaches a key.

    store: where inputs lie. data_root: downloads and caches. device: "cpu" or "cuda".
    report: called as report(step, step_count, values) during long work; values are shown, not stored.
    say: shows one line to the person who waits.
    """

    store: Store
    data_root: Path
    device: str = "cpu"
    report: Callable[[int, int, dict[str, float]], None] = lambda step, steps, values: None
    say: Callable[[str], None] = lambda line: None

    def open(self, stage: Stage) -> Path:
        """The folder of a finished input; its files have been checked against the manifest."""
        return self.store.open(stage)


def in_order(targets: Iterable[Stage]) -> list[Stage]:
    """Every stage that the targets need, inputs before users, each once, in a stable order.

    Without recursion, so that no chain of rounds is too long; keys are made on the way up, each from finished ones.
    """
    order: dict[str, Stage] = {}
    entered: set[int] = set()
    todo = [(stage, False) for stage in reversed(list(targets))]
    while todo:
        stage, left = todo.pop()
        if left:
            order.setdefault(stage.key, stage)
        elif id(stage) not in entered:
            entered.add(id(stage))
            todo.append((stage, True))
            todo += [(part, False) for part in reversed(stage.inputs())]
    return list(order.values())
