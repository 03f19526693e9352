"""Group columns: what says for every example which group it is in, such as a site, an attribute, a kind of class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from pipeline.registry import UserError, shown


@dataclass(frozen=True, eq=False)
class Column:
    """The group of every example.

    Attributes:
        numbers: int64 [N], places in ``names``.
        names: of the groups, each once; some may have no example here (in one part of a data set, say).
    """

    numbers: np.ndarray
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        numbers, names = np.asarray(self.numbers), tuple(self.names)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            raise UserError("groups: give one whole number per example, counted from 0")
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(names):
            raise UserError(f"groups: {numbers.min()} to {numbers.max()} for {len(names)} names; name each group")
        if len(set(names)) < len(names):
            raise UserError(f"groups: the names {', '.join(names)} are not all different; name each group once")
        if wrong := [name for name in names if not is_name(name)]:
            raise UserError(f"groups: {shown(wrong[0])} is no name of a group; give printable text")
        object.__setattr__(self, "numbers", numbers.astype(np.int64))
        object.__setattr__(self, "names", names)

    @classmethod
    def of(cls, words: Iterable[object], names: Sequence[str] | None = None) -> Column:
        """From the name of every example's group; without ``names`` in order of value, else of the alphabet."""
        words = [str(word) for word in words]
        names = ordered(set(words)) if names is None else tuple(names)
        place = {name: number for number, name in enumerate(names)}
        return cls(np.array([place[word] for word in words], np.int64), names)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def sizes(self) -> np.ndarray:
        """How many examples each group has: int64 [groups]."""
        return np.bincount(self.numbers, minlength=len(self.names))

    def take(self, rows: np.ndarray) -> Column:
        """The groups of some examples, int64 or bool; the names stay."""
        return Column(self.numbers[rows], self.names)

    def same(self, other: Column) -> bool:
        """Whether every example is in a group of the same name."""
        place = {name: number for number, name in enumerate(self.names)}
        there = np.array([place.get(name, -1) for name in other.names], np.int64)
        return len(self) == len(other) and bool((self.numbers == there[other.numbers]).all())


Columns = Mapping[str, Column]


def called(column: str, group: str = "") -> str:
    """How tables name a group, ``kind=animal``; and, without one, what compares the groups of a column, ``kind``."""
    return f"{column}={group}" if group else column


def checked(columns: Columns, examples: int, source: str) -> dict[str, Column]:
    """The same columns, each of them named and as long as there are examples; raises UserError."""
    for name, column in columns.items():
        if not is_name(name) or "=" in name:
            raise UserError(f"{source}: a column of groups cannot be called {shown(name)}; give text without '='")
        if not isinstance(column, Column):
            raise UserError(f"{source}: column '{name}' is no pipeline.groups.Column; make one with Column.of(words)")
        if len(column) != examples:
            more = "groups" if name == "group" else f"groups in column '{name}'"
            raise UserError(f"{source}: {len(column)} {more} for {examples} examples; give one per example")
    return dict(columns)


def is_name(name: object) -> bool:
    """Whether a column or a group can be called so: files and tables must be able to hold it."""
    return isinstance(name, str) and bool(name.strip()) and name.isprintable()


def ordered(words: Iterable[str]) -> tuple[str, ...]:
    """Numbers by value, names by the alphabet."""
    words = set(words)
    if words and all(is_number(word) for word in words):
        return tuple(sorted(words, key=Decimal))
    return tuple(sorted(words))


def is_number(word: str) -> bool:
    """Whether text writes a whole number, of however many digits."""
    return word.isascii() and (word[1:] if word.startswith("-") else word).isdigit()
