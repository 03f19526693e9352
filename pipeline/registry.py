"""A name in YAML becomes a frozen dataclass whose fields are its options."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

T = TypeVar("T")

# Classes that were registered from outside of this package: what is noted of a plan does not know of them.
FOREIGN: set[type] = set()


class UserError(Exception):
    """Something the user can mend: shown as one line that names the thing and the remedy, exit status 2."""


def nearest(name: object, known: Iterable[str]) -> str:
    """The part of an error message that lists the known names and points out the closest one."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"known: {', '.join(known) or 'none'}{hint}"


def build(cls: type[T], options: Mapping[str, Any], where: str) -> T:
    """Checks options against the fields of a dataclass (names and types) and makes the value.

    Args:
        cls: a dataclass whose annotations OmegaConf understands.
        options: field name to value; absent fields keep their defaults.
        where: how the user would find the place, such as ``prunings.magnitude``; it opens every message.

    Raises:
        UserError: an unknown name, a wrong type, or a value that ``__post_init__`` refuses with ValueError.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key, value in options.items():
        if key not in fields:
            raise UserError(f"{where}.{key}: unknown option; {nearest(str(key), fields)}")
        if dataclasses.is_dataclass(fields[key].default_factory) and not isinstance(value, Mapping):
            raise UserError(f"{where}.{key}: '{value}' is not a mapping of options")
    try:
        schema = OmegaConf.structured(cls)
        OmegaConf.set_readonly(schema, False)  # a frozen dataclass would refuse the merge
        return OmegaConf.to_object(OmegaConf.merge(schema, dict(options)))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        place = f"{where}.{key}" if key else where
        raise UserError(f"{place}: {str(error).splitlines()[0]}") from None
    except ValueError as error:  # raised by __post_init__
        raise UserError(f"{where}: {error}") from None


class Registry(Generic[T]):
    """Named dataclasses of one kind; a new method registers itself and is known everywhere.

    >>> FRUITS = Registry("fruit")
    >>> @FRUITS.register("apple")
    ... @dataclasses.dataclass(frozen=True)
    ... class Apple:
    ...     weight: float = 0.2
    >>> FRUITS.build({"name": "apple", "weight": 0.3}, "basket")
    Apple(weight=0.3)
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._classes: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """A class decorator, to stand above ``@dataclass(frozen=True)``; gives the class the attribute ``name``."""

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

    def build(self, value: str | Mapping[str, Any], where: str) -> T:
        """``"kd"`` or ``{"name": "kd", "temperature": 4}`` becomes the dataclass registered as ``kd``."""
        options = {"name": value} if isinstance(value, str) else dict(value)
        name = options.pop("name", None)
        if name is None:
            raise UserError(f"{where}.name: missing; {nearest('', self._classes)}")
        if not isinstance(name, str) or name not in self._classes:
            raise UserError(f"{where}: '{name}' is no {self.kind}; {nearest(str(name), self._classes)}")
        return build(self._classes[name], options, where)
