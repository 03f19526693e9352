"""A name in YAML becomes a frozen dataclass whose fields are its options; every mistake in them is told with its path.

An option is declared once, beside the code that it configures: a field with type, default, bounds and a description.

    @LOSSES.register("kd")
    @options
    class SoftTargets(Loss):
        temperature: Annotated[float, Field(description="softens the probabilities", gt=0, le=1000)] = 4.0
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Generic, Literal, Protocol, TypeVar, Union, dataclass_transform, get_args, get_origin
from typing import get_type_hints as type_hints

T = TypeVar("T")

# Classes that were registered from outside of this package: what is noted of a plan does not know of them.
FOREIGN: set[type] = set()


class UserError(Exception):
    """Something the user can mend, exit status 2: one line for each mistake, which names the thing and the remedy."""


class Refused(ValueError):
    """Raised by ``__post_init__`` of a dataclass for an option that does not go with the others."""

    def __init__(self, option: str, reason: str) -> None:
        super().__init__(f"{option}: {reason}")
        self.option, self.reason = option, reason


class Mistakes:
    """What is wrong with a configuration, one line for each mistake; nothing stops at the first of them."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __len__(self) -> int:
        return len(self.lines)

    def add(self, where: str, reason: str) -> None:
        line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in f"{where}: {reason}")
        if line not in self.lines:
            self.lines.append(line)

    def tell(self) -> None:
        """Raises UserError if there are any."""
        if self.lines:
            raise UserError("\n".join(self.lines))


def nearest(name: object, known: Iterable[str]) -> str:
    """The part of an error message that lists the known names and points out the closest one."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name)[:80], known, n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"known: {', '.join(known) or 'none'}{hint}"


def shown(value: object) -> str:
    """A value as an error message shows it: text in quotes, and not more than a line of it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    try:
        text = f"'{value}'" if isinstance(value, str) else str(value)
    except ValueError:  # Python does not write out numbers of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:76]} ..."


# ---------------------------------------------------------------------------------------------------------- options


@dataclass_transform(frozen_default=True)
def options(cls: type[T]) -> type[T]:
    """A class decorator: a frozen dataclass that refuses, with ValueError, a field of another type or out of bounds.

    Strict: True is no number, 0.5 no whole one, and numbers are finite.
    """
    from pydantic import ConfigDict
    from pydantic.dataclasses import dataclass

    config = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    return dataclass(cls, frozen=True, config=config)


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a class, as documentation shows it."""

    name: str
    type: Any
    allowed: str
    default: Any
    description: str


@cache
def options_of(cls: type) -> tuple[Option, ...]:
    """Every option of a dataclass in order. ``default`` is ``dataclasses.MISSING`` where it has to be given."""
    hints = type_hints(cls, include_extras=True)
    found = []
    for field in dataclasses.fields(cls):
        if field.init and field.metadata != NO_OPTION:
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            described = [mark.description for mark in _marks(hints[field.name]) if getattr(mark, "description", None)]
            kind = hints[field.name]
            found.append(Option(field.name, kind, allowed(kind), default, described[0] if described else ""))
    return tuple(found)


# Metadata of a field that nobody sets in YAML.
NO_OPTION = {"no_option": True}


def allowed(kind: Any) -> str:
    """What a field of this type takes, in words: ``a whole number from 1 to 100``."""
    if reader := _reader(kind):
        return reader.words()
    plain, bounds = _plain(kind), _bounds(kind)
    origin, parts = get_origin(plain), get_args(plain)
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (Union, UnionType):
        return " or ".join("null" if part is NoneType else allowed(part) for part in parts)
    if origin is tuple and parts[-1] is Ellipsis:
        return f"a list, each {allowed(parts[0])}"
    if origin is tuple:
        return f"a list of {len(parts)}, each {allowed(parts[0])}"
    if plain in (int, float):
        return f"{'a whole number' if plain is int else 'a number'}{_range(bounds)}"
    return {bool: "true or false", str: "text"}.get(plain, "a mapping of options")


def _plain(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _marks(kind: Any) -> tuple[Any, ...]:
    return get_args(kind)[1:] if get_origin(kind) is Annotated else ()


def _reader(kind: Any) -> Reader | None:
    return next((mark for mark in _marks(kind) if isinstance(mark, Registry | Reads)), None)


def _bounds(kind: Any) -> dict[str, float]:
    """The bounds among the marks of a type: ``ge``, ``gt``, ``le``, ``lt``."""
    marks = [bound for mark in _marks(kind) for bound in getattr(mark, "metadata", ())]
    return {name: getattr(mark, name) for mark in marks for name in ("ge", "gt", "le", "lt") if hasattr(mark, name)}


def _range(bounds: Mapping[str, float]) -> str:
    said = {name: f"{bound:g}" if isinstance(bound, float) else str(bound) for name, bound in bounds.items()}
    if "ge" in said and "le" in said:
        return f" from {said['ge']} to {said['le']}"
    words = {"ge": "{} or more", "gt": "above {}", "le": "at most {}", "lt": "below {}"}
    parts = [form.format(said[name]) for name, form in words.items() if name in said]
    return f", {' and '.join(parts)}" if parts else ""


# ---------------------------------------------------------------------------------------------------------- reading


class Reader(Protocol):
    """A mark of a type (``Annotated[..., reader]``) that says how a value is read out of YAML, in place of the type."""

    def read(self, value: Any, where: str, mistakes: Mistakes) -> Any: ...

    def words(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class Reads:
    """A function as a mark of a type: it returns the value, or WRONG after noting a mistake. said: what it takes."""

    function: Callable[[Any, str, Mistakes], Any]
    said: str

    def read(self, value: Any, where: str, mistakes: Mistakes) -> Any:
        return self.function(value, where, mistakes)

    def words(self) -> str:
        return self.said


WRONG: Any = object()  # what stands for a value that was refused: its mistake has been noted


def read(kind: Any, value: Any, where: str, mistakes: Mistakes, base: Any = None) -> Any:
    """A plain value out of YAML as a value of this type; WRONG where it is none.

    A list may also be written as one value, or as text with commas (``0.5,0.9``), as on a command line.

    Args:
        kind: the type of a field, with its bounds.
        where: how the user would find the place, such as ``recoveries.2.losses.0``.
        base: for a dataclass, a value whose options stay where ``value`` does not name them.
    """
    plain = _plain(kind)
    if reader := _reader(kind):
        return reader.read(value, where, mistakes)
    if dataclasses.is_dataclass(plain):
        return read_options(plain, value, where, mistakes, base)
    if get_origin(plain) is tuple and get_args(plain)[-1] is Ellipsis:
        parts = [read(get_args(plain)[0], part, place, mistakes) for place, part in listed(value, where)]
        value = WRONG if any(part is WRONG for part in parts) else tuple(parts)
    return value if value is WRONG else _checked(kind, value, where, mistakes)


def listed(value: Any, where: str) -> list[tuple[str, Any]]:
    """The parts of a list with their places; of one value its own, and those between commas in text."""
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",") if part.strip()]
        return [(where if len(parts) == 1 else f"{where}.{number}", _number(part)) for number, part in enumerate(parts)]
    if isinstance(value, list | tuple):
        return [(f"{where}.{number}", part) for number, part in enumerate(value)]
    return [(where, value)]


def _number(text: str) -> int | float | str:
    """Text that writes a number becomes it: between commas YAML has not looked."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def read_options(cls: type[T], value: Any, where: str, mistakes: Mistakes, base: T | None = None) -> T:
    """A mapping of options as a dataclass, every option checked; see `read`."""
    if not isinstance(value, Mapping):
        known = [option.name for option in options_of(cls)]
        mistakes.add(where, f"{shown(value)} is not a mapping of options; {nearest('', known)}")
        return WRONG
    before = len(mistakes)
    found = read_fields(cls, value, where, mistakes, base)
    return WRONG if len(mistakes) > before else made(cls, found, where, mistakes, base)


def read_fields(
    cls: type, value: Mapping[str, Any], where: str, mistakes: Mistakes, base: Any = None
) -> dict[str, Any]:
    """The options that a mapping names, each checked by itself; WRONG for those that were refused."""
    known = {option.name: option for option in options_of(cls)}
    found = {}
    for key, part in value.items():
        place = f"{where}.{key}" if where else str(key)
        if key in known:
            found[key] = read(known[key].type, part, place, mistakes, getattr(base, key, None))
        else:
            mistakes.add(place, f"unknown {'option' if where else 'key'}; {nearest(key, known)}")
    for name, option in known.items():
        if base is None and name not in found and option.default is dataclasses.MISSING:
            mistakes.add(f"{where}.{name}" if where else name, f"missing; give {option.allowed}")
    return found


def made(cls: type[T], values: Mapping[str, Any], where: str, mistakes: Mistakes, base: T | None = None) -> T:
    """The dataclass of checked values; WRONG where it refuses their combination."""
    try:
        return cls(**values) if base is None else dataclasses.replace(base, **values)
    except ValueError as error:
        for place, reason in _reasons(error):
            mistakes.add(".".join(filter(None, (where, place))), reason)
        return WRONG


def _reasons(error: ValueError) -> list[tuple[str, str]]:
    """(place below the value, what is wrong) for each thing that a dataclass refused."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        found = []
        for detail in error.errors():
            place, cause = ".".join(map(str, detail["loc"])), detail.get("ctx", {}).get("error")
            said = _reasons(cause) if isinstance(cause, ValueError) else [("", detail["msg"])]
            found += [(".".join(filter(None, (place, below))), reason) for below, reason in said]
        return found
    return [(error.option, error.reason)] if isinstance(error, Refused) else [("", str(error))]


def _checked(kind: Any, value: Any, where: str, mistakes: Mistakes) -> Any:
    """A value that is neither dataclass nor list of them, held against its type and bounds."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    if get_origin(_plain(kind)) is Literal:
        choices = get_args(_plain(kind))
        if any(type(value) is type(choice) and value == choice for choice in choices):  # True equals 1
            return value
        mistakes.add(where, f"{shown(value)} is unknown; {nearest(value, map(str, choices))}")
        return WRONG
    try:
        adapter = TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False))
        return adapter.validate_python(_as_meant(kind, tuple(value) if isinstance(value, list) else value))
    except ValidationError as error:
        refused = any(detail["type"] == "value_error" for detail in error.errors())  # by a function that marks the type
        causes = [reason for _, reason in _reasons(error)] if refused else []
        mistakes.add(where, f"{shown(value)} is refused; {causes[0] if causes else f'give {allowed(kind)}'}")
        return WRONG


def _as_meant(kind: Any, value: Any) -> Any:
    """A value that was written in another way than its type: 1e3 where a whole number is wanted, a folder called 2026.

    And text as the number or the truth value that it writes, where one is wanted: what comes of ``${oc.env:...}``.
    """
    plain = _plain(kind)
    if plain is str and type(value) is int:
        return str(value)
    if plain is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and plain in (int, float, bool):
        return {"true": True, "false": False}.get(value, value) if plain is bool else _number(value)
    return value


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Checks options against the fields of a dataclass and makes the value.

    Raises:
        UserError: every unknown name, wrong type, value out of bounds, and what ``__post_init__`` refuses.
    """
    mistakes = Mistakes()
    value = read_options(cls, values, where, mistakes)
    mistakes.tell()
    return value


class Registry(Generic[T]):
    """Named dataclasses of one kind; a new method registers itself and is known everywhere.

    >>> FRUITS = Registry("fruit")
    >>> @FRUITS.register("apple")
    ... @options
    ... class Apple:
    ...     weight: float = 0.2
    >>> FRUITS.build({"name": "apple", "weight": 0.3}, "basket")
    Apple(weight=0.3)

    As a mark of a type (``Annotated[Fruit, FRUITS]``) it says that a field takes one of them.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._classes: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """A class decorator, to stand above ``@options``; gives the class the attribute ``name``."""

        def add(cls: type[T]) -> type[T]:
            if name in self._classes:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            cls.name = name
            self._classes[name] = cls
            if cls.__module__.partition(".")[0] != __package__:
                FOREIGN.add(cls)
            return cls

        return add

    def __iter__(self):
        return iter(sorted(self._classes))

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def __getitem__(self, name: str) -> type[T]:
        return self._classes[name]

    def read(self, value: Any, where: str, mistakes: Mistakes) -> T:
        """``"kd"`` or ``{"name": "kd", "temperature": 4}`` becomes the dataclass registered as ``kd``; see `read`."""
        if not isinstance(value, str | Mapping) or not value:
            mistakes.add(where, f"{shown(value)} is no {self.kind}; {nearest('', self._classes)}")
            return WRONG
        values = {"name": value} if isinstance(value, str) else dict(value)
        name = values.pop("name", None)
        if name is None:
            mistakes.add(f"{where}.name", f"missing; {nearest('', self._classes)}")
            return WRONG
        if not isinstance(name, str) or name not in self._classes:
            mistakes.add(where, f"{shown(name)} is no {self.kind}; {nearest(name, self._classes)}")
            return WRONG
        return read_options(self._classes[name], values, where, mistakes)

    def words(self) -> str:
        return f"a {self.kind} ({', '.join(self)})"

    def build(self, value: str | Mapping[str, Any], where: str) -> T:
        """As `read`; raises UserError."""
        mistakes = Mistakes()
        found = self.read(value, where, mistakes)
        mistakes.tell()
        return found
