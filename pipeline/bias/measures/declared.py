"""What every measure of bias declares, and the pairs of networks that it looks at.

A measure is a function of sums over examples. That one fact serves the value itself (add all rows), the bootstrap (add
rows as often as they were drawn), the jackknife (all but one) and groups (the rows of a group), so a measure is written
once. To add one, register a dataclass with ``counts`` and ``value``; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from scipy import sparse

from pipeline import divergences
from pipeline.predictions import Predictions
from pipeline.registry import Registry, UserError

MEASURES: Registry[Measure] = Registry("measure")

Counts = dict[str, "np.ndarray | sparse.csr_matrix"]
Sums = dict[str, np.ndarray]
Found = TypeVar("Found")


def once(function: Callable[..., Found]) -> Callable[..., Found]:
    """A function of a pair or a network, and of plain values, whose answer is kept while that pair or network lives.

    A network is in many pairs (in 2 (K - 1) of the floor of K), and a pair is looked at by many measures.
    """
    known: WeakKeyDictionary[Any, dict[tuple, Found]] = WeakKeyDictionary()

    @wraps(function)
    def asked(each: Any, *options: Any) -> Found:
        found = known.setdefault(each, {})
        if options not in found:
            found[options] = function(each, *options)
        return found[options]

    return asked


@dataclass(frozen=True, eq=False)
class DenseNetworks:
    """All dense networks that are known, which differ in nothing but their seed; labels are equal."""

    networks: tuple[Predictions, ...]


@dataclass(frozen=True, eq=False)
class Pair:
    """One candidate beside its reference on the same examples.

    Attributes:
        reference, candidate: their predictions; labels are equal.
        class_count: C.
        parts: int64 [N], what recall is taken over: the labels, or a group column.
        part_count: the number of parts.
        groups: int64 [N], a group column, or None; what `Measure.needs_groups` compares.
        group_count: the number of groups.
        dense: whose mean rates serve as a common denominator; None: the reference alone.
    """

    reference: Predictions
    candidate: Predictions
    class_count: int
    parts: np.ndarray
    part_count: int
    groups: np.ndarray | None = None
    group_count: int = 0
    dense: DenseNetworks | None = None

    def __post_init__(self) -> None:
        if len(self.reference.labels) != len(self.candidate.labels):
            raise UserError(
                f"{self.candidate.source}: {len(self.candidate.labels)} examples, but {self.reference.source} has "
                f"{len(self.reference.labels)}; predict the same test set with both"
            )
        missing = np.setxor1d(self.reference.labels, self.candidate.labels)
        if len(missing):
            with_it = self.reference if (self.reference.labels == missing[0]).any() else self.candidate
            without = self.candidate if with_it is self.reference else self.reference
            name = with_it.classes[missing[0]] if with_it.classes is not None else missing[0]
            raise UserError(
                f"{without.source}: class '{name}' is missing from the labels, {with_it.source} has it; "
                "predict the same test set with both"
            )
        differ = self.reference.labels != self.candidate.labels
        if differ.any():
            raise UserError(
                f"{self.candidate.source}: labels differ from {self.reference.source}, first in row "
                f"{int(differ.argmax())}; predict the same test set, in the same order, with both"
            )

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]."""
        return self.reference.labels

    @property
    def both(self) -> tuple[tuple[str, Predictions], tuple[str, Predictions]]:
        """The two with the words that name their sums."""
        return ("reference", self.reference), ("candidate", self.candidate)

    @property
    def paired(self) -> bool:
        """Whether row i is known to be the same example in both."""
        return self.reference.paired and self.candidate.paired


@once
def log_softmax(network: Predictions) -> np.ndarray:
    """float64 [N, C] of its logits; rows of exponentials sum to 1."""
    return divergences.log_softmax(network.logits)


def one_hot(columns: np.ndarray, width: int, *, where: np.ndarray | None = None) -> sparse.csr_matrix:
    """[N, width] with a one in row i at columns[i], where asked."""
    keep = np.ones(len(columns), bool) if where is None else where
    ends = np.concatenate([[0], np.cumsum(keep)])
    return sparse.csr_matrix((np.ones(ends[-1]), columns[keep], ends), (len(columns), width))


class _RegisteredName:
    """A class attribute that is the registered name until a measure declares another."""

    def __get__(self, measure: Measure | None, kind: type[Measure]) -> str:
        return kind.name


@dataclass(frozen=True)
class Measure:
    """What all measures declare.

    ``counts(pair)`` gives named arrays or sparse matrices [N] or [N, width]; ``value(sums)`` gets their sums over
    examples, each [..., width], and ``sums["examples"]`` [..., 1], and gives the value [...], NaN for none.
    Counts of equal name are equal counts: they are made once. With ``over_trials`` the measure exists for all trials of
    a method together and ``counts`` gets the list of pairs.

    Attributes:
        name: the one it is registered under.
        title, source, equation, unit: words for tables.
        better: ``"lower"``, ``"higher"``, ``"near 1"``, or ``"either way"`` for a signed change.
        needs_logits: it exists only where both networks have logits.
        needs_pairing: it exists only where row i is known to be the same example in both.
        needs_groups: it compares the groups of a column, and exists only where there is one.
        over_trials: it exists for all trials of a method together.
        lowest: no interval goes below it.
        noise_free: it estimates what its interval is for, so that an audit shows it inside of it.
        interval: the method that covers best, see benchmarks/coverage.py; ``"corrected"`` is for CEV and SDE alone;
            empty where none is known to cover, and then none is shown.
        short: heading of a column; the name where a measure has no shorter one.
        headline: position among the columns of the main tables, 0 for full lists only.
        compares: it says how candidate and reference differ; False for what the candidate has alone.
        comparison: how the values of two methods are compared: ``"difference"``, or ``"ratio"`` for a positive value
            whose spread grows with its size.
        margin: the ratio m (from 1/m to m) or the difference (from -m to m) up to which a change counts as none, see
            ``pipeline.bias.yardsticks``; None where none is stated, and then nothing is called equivalent.
        noise: ``"up"`` or ``"down"`` for an extreme that sampling noise moves to one side even where classes do not
            differ at all: its interval has one end that is told from the data, the other is the bound of the measure.
        corrected: name of the measure that estimates it without sampling noise, or an empty string.
        digits: decimals in tables, None for three significant digits.
        complement: what 1 - value, in percent, is called where the logarithmic axis of a figure needs it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    equation: ClassVar[str]
    unit: ClassVar[str]
    better: ClassVar[str]
    needs_logits: ClassVar[bool] = False
    needs_pairing: ClassVar[bool] = False
    needs_groups: ClassVar[bool] = False
    over_trials: ClassVar[bool] = False
    lowest: ClassVar[float] = 0.0
    noise_free: ClassVar[bool] = False
    interval: ClassVar[str] = "bca"
    short: ClassVar[str] = _RegisteredName()
    headline: ClassVar[int] = 0
    compares: ClassVar[bool] = True
    comparison: ClassVar[str] = "difference"
    margin: ClassVar[float | None] = None
    noise: ClassVar[str] = ""
    corrected: ClassVar[str] = ""
    digits: ClassVar[int | None] = None
    complement: ClassVar[str] = ""

    def counts(self, pair: Pair | Sequence[Pair]) -> Counts:
        """What each example contributes."""
        raise NotImplementedError

    def value(self, sums: Sums) -> np.ndarray:
        """The measure of the sums."""
        raise NotImplementedError

    def by_class(self, sums: Sums) -> np.ndarray | None:
        """What each class adds to the value, [..., C], 0 for one left out; None where it is no sum over classes."""
        return None
