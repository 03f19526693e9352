"""Examples as arrays: how a dataset is divided, made imbalanced, normalised and augmented."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from pipeline.groups import Column, Columns, called, checked, is_name
from pipeline.registry import WRONG, Mistakes, Reads, UserError, nearest, options, read, shown
from pipeline.stage import OUTSIDE_KEY


class MappedRows:
    """Chosen rows of a memory map, in place of an array [N, ...]: they are read when they are asked for.

    ``rows[...]`` with an index array, a slice or a number gives an ordinary array that holds those rows and no others.
    """

    def __init__(self, mapped: np.memmap, rows: np.ndarray) -> None:
        self._mapped, self._rows = mapped, rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self._rows), *self._mapped.shape[1:])

    def __getitem__(self, chosen: np.ndarray | slice | int) -> np.ndarray:
        return np.asarray(self._mapped[self._rows[chosen]])

    def take(self, rows: np.ndarray) -> MappedRows:
        return MappedRows(self._mapped, self._rows[rows])


# How much of the images is looked at at a time, in bytes: what goes over them holds a few times as much.
CHUNK = 1024**2


@dataclass(frozen=True)
class Split:
    """Some examples of a dataset.

    inputs: [N, ...]: an array in memory, or rows of a memory map that are read batch by batch. Images are uint8
    [N, height, width, channels].
    labels: int64 [N].
    ids: int64 [N], the position of each example in the dataset's own training or test part.
    classes: the class names, in label order.
    groups: columns that say which group each example is in, by name.
    """

    inputs: np.ndarray | MappedRows
    labels: np.ndarray
    ids: np.ndarray
    classes: tuple[str, ...]
    groups: Columns = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one example, in the order in which networks see it: (channels, height, width) for images."""
        *rest, last = self.inputs.shape[1:]
        return (last, *rest)

    def take(self, rows: np.ndarray) -> Split:
        """The examples of some rows, int64 or bool. What is a memory map stays one: nothing of it is read."""
        inputs = self.inputs
        if isinstance(inputs, np.memmap):
            inputs = MappedRows(inputs, np.arange(len(inputs)))
        inputs = inputs.take(rows) if isinstance(inputs, MappedRows) else inputs[rows]
        groups = {name: column.take(rows) for name, column in self.groups.items()}
        return Split(inputs, self.labels[rows], self.ids[rows], self.classes, groups)

    def chunks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """The inputs in order, about ``CHUNK`` bytes of images at a time, each with its place."""
        size = max(1, CHUNK // max(1, math.prod(self.inputs.shape[1:])))
        for start in range(0, len(self), size):
            place = slice(start, min(start + size, len(self)))
            yield place, self.inputs[place]


@dataclass(frozen=True)
class Source:
    """What a dataset delivers before it is divided.

    test: None where the dataset has no test part of its own. fingerprint: of the examples. groups_fingerprint: of the
    groups, where they can change while the examples stay.
    """

    train: Split
    test: Split | None
    fingerprint: str
    groups_fingerprint: str = ""


class Dataset(ABC):
    """What `pipeline.data.DATASETS` holds: frozen dataclasses that read images.

    One that delivers no test part has a field ``test_share``: the share of each class that becomes it.
    """

    @abstractmethod
    def load(self, root: Path) -> Source:
        """Reads the images; ``root`` holds downloads and caches."""

    def identity(self, root: Path) -> str:
        """Names the contents where the options alone do not; empty where they do."""
        return ""

    def groups_identity(self, root: Path) -> str:
        """Names what the groups hold, where neither options nor ``identity`` do; no network's key depends on it."""
        return ""


@dataclass(frozen=True)
class Splits:
    train: Split
    validation: Split
    test: Split
    fingerprint: str
    groups_fingerprint: str = ""


@dataclass(frozen=True)
class Normalisation:
    """Per-channel mean and standard deviation of pixels in [0, 1], measured on the training split."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @staticmethod
    def of(split: Split) -> Normalisation:
        """Measured chunk by chunk, exactly: a histogram per channel needs no floating-point copy of the images."""
        count, height, width, channels = split.inputs.shape
        pixels = count * height * width
        counts = np.zeros((channels, 256), dtype=np.int64)
        for _, chunk in split.chunks():
            for channel in range(counts.shape[0]):
                counts[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
        values = np.arange(256) / 255.0
        mean = counts @ values / pixels
        variance = counts @ values**2 / pixels - mean**2
        std = np.sqrt(np.maximum(variance, 1e-6))
        return Normalisation(tuple(mean.tolist()), tuple(std.tolist()))


@options
class Augmentation:
    """Random crop out of a zero-padded image and random horizontal flip; a different draw for each image."""

    crop_padding: Annotated[int, Field(description="pixels of zeros around an image", ge=0, le=64)] = 4
    flip: Annotated[bool, Field(description="mirror each image or not, by its own draw")] = True


Kept = Annotated[float, Field(gt=0, le=1)]


def _read_keep(value: Any, where: str, mistakes: Mistakes) -> tuple[tuple[str, float], ...]:
    """In YAML a mapping, here a tuple, which can be hashed."""
    if not isinstance(value, Mapping):
        mistakes.add(where, f"{shown(value)} is no mapping; give class: share, such as {{cat: 0.1}}")
        return WRONG
    shares = {name: read(Kept, share, f"{where}.{name}", mistakes) for name, share in value.items()}
    return WRONG if WRONG in shares.values() else tuple(shares.items())


# Columns of groups, groups of a column, classes of a group.
ClassGroups = tuple[tuple[str, tuple[tuple[str, tuple[str, ...]], ...]], ...]


def _read_groups(value: Any, where: str, mistakes: Mistakes) -> ClassGroups:
    """In YAML a mapping of mappings of lists, here tuples, which can be hashed."""
    columns = _mapping(value, where, "column: {group: [class, ...], ...}", mistakes)
    if columns is WRONG:
        return WRONG
    before, found = len(mistakes), []
    for column, content in columns.items():
        place, groups = f"{where}.{column}", []
        if "=" in column or not is_name(column):
            mistakes.add(place, "no name for a column of groups; give printable text without '='")
        content = _mapping(content, place, "group: [class, ...]", mistakes)
        for group, classes in content.items() if content is not WRONG else ():
            if not is_name(group):
                mistakes.add(place, f"{shown(group)} is no name of a group; give printable text")
            names = read(tuple[str, ...], classes, f"{place}.{group}", mistakes)
            if names == ():
                mistakes.add(f"{place}.{group}", "empty, so that no example is in it; name a class, or leave it out")
            groups.append((group, names))
        named = [name for _, names in groups if names is not WRONG for name in names]
        for name in dict.fromkeys(name for name in named if named.count(name) > 1):
            mistakes.add(place, f"class '{name}' stands there twice; put it into one group")
        if len(groups) == 1:
            mistakes.add(place, "one group has none to be compared with; give two or more")
        found.append((column, tuple(groups)))
    return WRONG if len(mistakes) > before else tuple(found)


def _mapping(value: Any, where: str, form: str, mistakes: Mistakes) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        mistakes.add(where, f"{shown(value)} is no mapping; give {form}")
        return WRONG
    return {str(name): part for name, part in value.items()}


@options
class Data:
    """A dataset, how it is divided, and which training examples are kept."""

    dataset: Dataset
    validation: Annotated[
        float, Field(description="share of each training class that is set aside for early decisions", gt=0, lt=1)
    ] = 0.1
    keep: Annotated[
        tuple[tuple[str, Kept], ...],
        Field(description="class name or index: share of its training examples to keep, such as {cat: 0.1}"),
        Reads(_read_keep, "a mapping of classes to shares, each above 0 and at most 1"),
    ] = ()
    long_tail: Annotated[
        float,
        Field(
            description="imbalance factor: class c of C keeps the share factor**(-c / (C - 1)); 1 is balanced",
            ge=1,
            le=1e9,
        ),
    ] = 1.0
    split_seed: Annotated[
        int, Field(description="fixes which examples go where, alike for networks of all seeds", ge=0, lt=2**32)
    ] = 0
    # No network depends on the groups: the stage Predict carries them in its key.
    groups: Annotated[
        ClassGroups,
        Field(
            description="columns to report by, each with groups that hold every class once, such as "
            "{kind: {animal: [bird, cat], vehicle: [truck]}}"
        ),
        Reads(_read_groups, "a mapping of columns, each a mapping of groups to lists of classes"),
    ] = field(default=(), metadata=OUTSIDE_KEY, repr=False)

    def identity(self, root: Path) -> str:
        """Names the contents where the options alone do not (a folder of files); part of every result's key."""
        return self.dataset.identity(root)

    def groups_identity(self, root: Path) -> str:
        """Names what the dataset's groups hold, where neither options nor ``identity`` do."""
        return self.dataset.groups_identity(root)

    def load(self, root: Path) -> Splits:
        """Reads the dataset (root holds downloads and caches) and divides it, class by class."""
        source = self.dataset.load(root)
        everything, test = source.train, source.test
        for part in (everything, *([test] if test else [])):
            checked(part.groups, len(part), "data")
        if test is not None and (lacking := sorted(set(everything.groups) - set(test.groups))):
            raise UserError(f"data: the test part has no groups in column '{lacking[0]}', the training part has them")
        labels, classes = everything.labels, everything.classes
        # Rows are narrowed down first and images taken last: those in memory are copied once, a memory map never.
        rows = np.arange(len(everything))
        if test is None:
            tested = stratified(labels, self.dataset.test_share, seed=(self.split_seed, 1))
            test, rows = everything.take(rows[tested]), rows[~tested]
            remedy = f"lower data.test_share ({self.dataset.test_share})"
            _require_all_classes(labels[rows], classes, "training", remedy)
        held_out = stratified(labels[rows], self.validation, seed=(self.split_seed, 2))
        validation, rows = everything.take(rows[held_out]), rows[~held_out]
        train = everything.take(rows[self._kept(labels[rows], classes)])
        _require_all_classes(train.labels, classes, "training", f"lower data.validation ({self.validation})")
        _require_all_classes(validation.labels, classes, "validation", f"raise data.validation ({self.validation})")
        _require_all_classes(test.labels, classes, "test", "raise data.test_share")
        train, validation, test = (self._grouped(split) for split in (train, validation, test))
        for name, column in test.groups.items():
            if not column.sizes.all():
                group = called(name, column.names[int(column.sizes.argmin())])
                raise UserError(f"data: group '{group}' has no test example; add some, or leave the group out")
        return Splits(train, validation, test, source.fingerprint, source.groups_fingerprint)

    def _grouped(self, split: Split) -> Split:
        """With the columns that put classes into groups."""
        columns = dict(split.groups)
        for name, groups in self.groups:
            where = f"data.groups.{name}"
            if name in columns:
                raise UserError(f"{where}: the dataset has a column of this name; choose another")
            group_of = np.full(len(split.classes), -1)
            for number, (_, members) in enumerate(groups):
                for member in members:
                    place = _class_number(member, split.classes)
                    if place is None:
                        raise UserError(f"{where}: no class '{member}'; {nearest(member, split.classes)}")
                    if group_of[place] not in (-1, number):
                        raise UserError(f"{where}: class '{split.classes[place]}' is in two groups; put it into one")
                    group_of[place] = number
            if (group_of < 0).any():
                lacking = split.classes[int(group_of.argmin())]
                raise UserError(f"{where}: class '{lacking}' is in no group; put every class into one")
            columns[name] = Column(group_of[split.labels], tuple(group for group, _ in groups))
        return replace(split, groups=columns)

    def _kept(self, labels: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
        shares = np.ones(len(classes))
        if self.long_tail > 1:
            shares = self.long_tail ** (-np.arange(len(classes)) / max(len(classes) - 1, 1))
        for name, share in self.keep:
            place = _class_number(name, classes)
            if place is None:
                raise UserError(f"data.keep: no class '{name}'; the classes are {', '.join(classes)}")
            shares[place] = share
        return stratified(labels, shares, seed=(self.split_seed, 3))


def _class_number(name: str, classes: tuple[str, ...]) -> int | None:
    """Of a class by its name, else by its index as text; None where there is none."""
    if name in classes:
        return classes.index(name)
    return int(name) if name.isascii() and name.isdigit() and int(name) < len(classes) else None


def _require_all_classes(labels: np.ndarray, classes: tuple[str, ...], part: str, remedy: str) -> None:
    counts = np.bincount(labels, minlength=len(classes))
    if counts.min() == 0:
        name = classes[int(counts.argmin())]
        raise UserError(f"data: class '{name}' has no {part} example; {remedy}, or add examples of it")


def stratified(labels: np.ndarray, share: float | np.ndarray, *, seed: tuple[int, ...]) -> np.ndarray:
    """Chooses a share of every class (at least one example of it where the share is above 0). Returns bool [N]."""
    shares = np.broadcast_to(share, (int(labels.max()) + 1 if np.isscalar(share) else len(share),))
    chosen = np.zeros(len(labels), dtype=bool)
    for label, part in enumerate(shares):
        rows = np.flatnonzero(labels == label)
        if len(rows) and part > 0:
            order = np.random.default_rng((*seed, label)).permutation(len(rows))
            chosen[rows[order[: max(1, round(part * len(rows)))]]] = True
    return chosen


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Whole batches only; one smaller batch where there are fewer examples than that."""
    return max(1, examples // batch_size)
