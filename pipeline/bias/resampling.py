"""Exact bootstrap, jackknife and permutation of every measure, done on counts and not on examples.

A measure depends on sums over examples only, and examples that contribute the same are one *cell*. Drawing N examples
with replacement is drawing how often each cell occurs: the few heavy cells (all examples that both networks got right)
from a multinomial, only what is left one by one. That is the ordinary paired bootstrap in distribution, not an
approximation of it; one sparse product then gives the sums of a whole batch of resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from pipeline.bias.measures import (
    Corrected,
    CorrectedDistance,
    CorrectedVariance,
    Measure,
    Pair,
    Sums,
    error_columns,
    signed_root,
    sums_of_errors,
)
from pipeline.registry import UserError
from pipeline.statistics import holm

METHODS = ("basic", "percentile", "bca", "outer")  # by bootstrap; "corrected" is the one of corrected_interval
UNITS = ("examples", "seeds", "both")  # what is drawn
ESTIMANDS = {
    "examples": "these networks on an endless test set",
    "seeds": "the method over seeds, on this test set",
    "both": "the method over seeds, on an endless test set",
    "candidates": "more candidates of this one reference, on an endless test set",
}
FEWEST_ERRORS = 3  # reference errors of either kind that a class needs for an interval of CEV or SDE
FEWEST_ON_AVERAGE = 9  # harmonic mean of these errors and one
HEAVY = 32  # examples in a cell from which one binomial draw is cheaper than drawing them one by one


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        low, high: its ends.
        level: nominal coverage.
        method: corrected, basic, percentile, bca or outer, the one in fact used.
        unit: what would be others in a repetition: examples, seeds, both, or examples and candidates of one reference.
        resamples: how many resamples it rests on, 0 for the corrected one.
        note: what the reader must know, or an empty string.
    """

    low: float
    high: float
    level: float
    method: str
    unit: str
    resamples: int
    note: str = ""

    @property
    def estimand(self) -> str:
        """What it is for."""
        return ESTIMANDS[self.unit]


class Table:
    """Trials of one method as cells: what each kind of example contributes, and how many there are of it.

    Attributes:
        contributions: sparse [cells, columns].
        multiplicity: int64 [cells], examples in each cell; it sums to N.
        cell: int64 [N], the cell of each example.
    """

    def __init__(self, pairs: Sequence[Pair], measures: Sequence[Measure]) -> None:
        self.pairs, self.measures = list(pairs), list(measures)
        self.examples = len(pairs[0].labels)
        blocks, self._slices, self._used, start = [], {}, {}, 0
        for trial, name, block in self._counts():
            block = columns_of(block)
            self._slices[trial, name] = slice(start, start + block.shape[1])
            start += block.shape[1]
            blocks.append(block)
        rows = sparse.hstack(blocks, format="csr")
        self.cell, self._first = self._cells(rows)
        self.multiplicity = np.bincount(self.cell)
        self.contributions = rows[self._first]
        self._transposed = self.contributions.T.tocsr()
        # Resamples in one product: a few megabytes. It decides which random numbers belong to which resample.
        self._batch = int(np.clip(2**18 // max(self.contributions.shape), 16, 256))

    def only(self, measures: Sequence[Measure]) -> Table:
        """The same cells and the same resamples for some of the measures, without the columns of the others."""
        part = copy(self)
        part.measures = list(measures)
        part._used = {each.name: self._used[each.name] for each in measures}
        wanted = dict.fromkeys(place for places in part._used.values() for place in places)
        part._slices, columns, start = {}, [], 0
        for place in wanted:
            own = np.arange(self._slices[place].start, self._slices[place].stop)
            part._slices[place] = slice(start, start + len(own))
            start += len(own)
            columns.append(own)
        part._transposed = self._transposed[np.concatenate(columns)]
        part.contributions = part._transposed.T.tocsr()
        return part

    def _counts(self):
        for measure in self.measures:
            found = (
                [(-1, measure.counts(self.pairs))]
                if measure.over_trials
                else [(trial, measure.counts(pair)) for trial, pair in enumerate(self.pairs)]
            )
            self._used[measure.name] = [(trial, name) for trial, counts in found for name in counts]
            for trial, counts in found:
                for name, block in counts.items():
                    if (trial, name) not in self._slices:
                        yield trial, name, block

    def _cells(self, rows: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
        if self._real:
            return np.arange(self.examples), np.arange(self.examples)  # real numbers: no two examples are alike
        columns = _parts(self.pairs[0])
        networks = {}
        for pair in self.pairs:
            known = pair.dense.networks if pair.dense else ()
            networks |= {id(each): each for each in (pair.reference, pair.candidate, *known)}
        columns += [each.predictions for each in networks.values()]
        code = _numbered(columns)
        code = np.where(rows.getnnz(1) == 0, 0, code + 1)  # examples that contribute nothing are one cell
        _, first, cell = np.unique(code, return_index=True, return_inverse=True)
        return cell, first

    @property
    def _real(self) -> bool:
        return any(measure.needs_logits for measure in self.measures)

    def sums(self, weights: np.ndarray) -> list[Sums]:
        """Sums of each trial, then of all trials together, when cell k counts weights[k, b] times; each [b, width]."""
        products = self._transposed @ weights
        examples = weights.sum(0)[:, None]
        found: list[Sums] = [{"examples": examples} for _ in range(len(self.pairs) + 1)]
        for (trial, name), place in self._slices.items():
            found[trial][name] = np.ascontiguousarray(products[place].T)
        return found

    def values(self, sums: list[Sums]) -> dict[str, np.ndarray]:
        """Each measure per trial, [b, trials], or [b, 1] where it is one of all trials together."""
        trials = {name: np.stack([each[name] for each in sums[:-1]]) for name in sums[0]}
        return {
            # Contiguous: the order in which a mean over trials adds them, and so its last bit, depends on it.
            measure.name: np.ascontiguousarray(
                measure.value(sums[-1])[:, None] if measure.over_trials else measure.value(trials).T
            )
            for measure in self.measures
        }

    def point(self) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """The measures of the examples as they are: per trial [trials], and of the trials' mean sums."""
        sums = self.sums(self.multiplicity[:, None].astype(np.float64))
        share = 1 / len(self.pairs)
        mean = {name: sum(share * each[name] for each in sums[:-1]) for name in sums[0]}
        averaged = {each.name: float(each.value(mean)[0]) for each in self.measures if not each.over_trials}
        return {name: value[0] for name, value in self.values(sums).items()}, averaged

    def draw(self, size: int, generator: np.random.Generator) -> np.ndarray:
        """How often each cell occurs among N examples drawn with replacement: float64 [cells, size]."""
        heavy = np.flatnonzero(self.multiplicity >= HEAVY)
        light_cells = np.flatnonzero(self.multiplicity < HEAVY)
        light = np.repeat(light_cells, self.multiplicity[light_cells])  # one entry per example
        shares = np.append(self.multiplicity[heavy], len(light)) / self.examples
        lumps = generator.multinomial(self.examples, shares / shares.sum(), size=size)
        kind = np.uint16 if len(light) < 2**16 else np.uint32
        weights = np.zeros((size, len(self.multiplicity)))
        if len(light):
            which = light[generator.integers(0, len(light), lumps[:, -1].sum(), dtype=kind)]
            ends = np.cumsum(lumps[:, -1])
            # Counting one resample at a time stays in the processor's cache: faster than one count of the whole batch.
            for row, start, end in zip(weights, ends - lumps[:, -1], ends, strict=True):
                row[:] = np.bincount(which[start:end], minlength=len(row))
        weights[:, heavy] = lumps[:, :-1]
        return np.ascontiguousarray(weights.T)

    def batches(self, resamples: int, generator: np.random.Generator) -> Iterator[list[Sums]]:
        """Sums of bootstrap resamples, in batches that stay within a few megabytes."""
        for start in range(0, resamples, self._batch):
            yield self.sums(self.draw(min(self._batch, resamples - start), generator))

    def jackknife(self) -> dict[str, np.ndarray]:
        """Values with one example of each cell left out: measure -> [cells, trials], or [cells, 1] of all trials."""
        whole = self.sums(self.multiplicity[:, None].astype(np.float64))
        found: dict[str, list[np.ndarray]] = {each.name: [] for each in self.measures}
        for trial in range(-1, len(self.pairs)):
            own = [each for each in self.measures if each.over_trials == (trial < 0)]
            if not own:
                continue
            first, kind = self._kinds(trial)
            places = {name: place for (of, name), place in self._slices.items() if of == trial}
            step = max(1, 2**21 // sum(place.stop - place.start for place in places.values()))
            values: dict[str, list[np.ndarray]] = {each.name: [] for each in own}
            for start in range(0, len(first), step):
                chosen = first[start : start + step]
                sums: Sums = {"examples": whole[trial]["examples"] - np.ones((len(chosen), 1))}
                for name, place in places.items():
                    sums[name] = whole[trial][name] - self.contributions[chosen, place].toarray()
                for each in own:
                    values[each.name].append(each.value(sums))
            for name, parts in values.items():
                found[name].append(np.concatenate(parts)[kind])
        return {name: np.stack(columns, 1) for name, columns in found.items()}

    def _kinds(self, trial: int) -> tuple[np.ndarray, np.ndarray]:
        """Cells that differ in what they contribute to one trial, one of each kind, and the kind of every cell."""
        cells = np.arange(len(self.multiplicity))
        if trial < 0 or self._real:
            return cells, cells
        pair = self.pairs[trial]
        columns = [*_parts(self.pairs[0]), pair.reference.predictions, pair.candidate.predictions]
        # Where all trials agree that an example contributes nothing its cell has another number, but is no other kind.
        return np.unique(
            _numbered([column[self._first] for column in columns]), return_index=True, return_inverse=True
        )[1:]


def _parts(pair: Pair) -> list[np.ndarray]:
    """What counts may depend on besides the predictions, int64 [N] each."""
    return [pair.labels, pair.parts, *([pair.groups] if pair.groups is not None else [])]


def columns_of(counts: np.ndarray | sparse.csr_matrix) -> sparse.csr_matrix:
    """Counts [N] or [N, width] as a sparse matrix [N, width]."""
    if sparse.issparse(counts):
        return sparse.csr_matrix(counts)
    counts = np.asarray(counts, np.float64)
    return sparse.csr_matrix(counts.reshape(len(counts), -1))


def total(counts: np.ndarray | sparse.csr_matrix) -> np.ndarray:
    """Sum over examples of counts [N] or [N, width], one after the other as the sums of a table are: [width]."""
    columns = columns_of(counts)
    return np.bincount(columns.indices, weights=columns.data, minlength=columns.shape[1])


def _numbered(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Equal rows get equal numbers from 0: int64 [rows]."""
    code = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        code = np.unique(code * (column.max() + 1) + column, return_inverse=True)[1]
    return code


def bootstrap(table: Table, *, resamples: int, seed: int, unit: str = "examples") -> dict[str, np.ndarray]:
    """The mean over trials of every measure of the table on resamples: name -> [resamples].

    ``examples`` draws test examples and keeps the trials: what another test set would give for these networks.
    ``seeds`` keeps the examples: what other seeds would give on this test set. ``both`` does both. All trials, and
    reference and candidate, see the same drawn examples. Drawing from two or three trials would tell little of their
    spread, so the mean of T trials is moved by s/sqrt(T) times Student's t with T - 1 degrees of freedom instead. The
    sum of that and of the examples' noise is the fiducial distribution of Behrens and Fisher, whose quantiles cover a
    little more often than they say (Robinson 1976). A measure of all trials together has no spread over seeds.

    Raises:
        UserError: an unknown unit, or seeds to be drawn from a single trial.
    """
    trials = len(table.pairs)
    if unit not in UNITS:
        raise UserError(f"unit: '{unit}' is not known; one of {', '.join(UNITS)}")
    if unit != "examples" and trials < 2:
        raise UserError(
            f"unit: '{unit}' resamples the trials, but there is one; give more candidates or use 'examples'"
        )
    if resamples < 1:
        raise UserError(f"resamples: {resamples}; give at least 1")
    # Two streams, so that the same examples are drawn whether or not trials are.
    for_examples, for_trials = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    whole = table.values(table.sums(table.multiplicity[:, None].astype(np.float64)))
    if unit == "seeds":
        means = {name: np.full(resamples, value.mean()) for name, value in whole.items()}
    else:
        parts: dict[str, list[np.ndarray]] = {}
        for sums in table.batches(resamples, for_examples):
            for name, value in table.values(sums).items():
                parts.setdefault(name, []).append(value.mean(1))
        means = {name: np.concatenate(value) for name, value in parts.items()}
    if unit == "examples":
        return means
    # Every quantile of t once, in an order of their own: with few trials its tails are too long for random draws.
    steps = stdtrit(trials - 1, (for_trials.permutation(resamples) + 0.5) / resamples)
    spread = {name: value.std(ddof=1) if value.size == trials else 0.0 for name, value in whole.items()}
    return {name: value + spread[name] / np.sqrt(trials) * steps for name, value in means.items()}


def interval(
    estimate: float,
    draws: np.ndarray,
    *,
    method: str = "basic",
    level: float = 0.95,
    unit: str = "examples",
    left_out: np.ndarray | None = None,
    multiplicity: np.ndarray | None = None,
) -> Interval | None:
    """A confidence interval from bootstrap values.

    ``percentile`` takes the quantiles of the draws. ``basic`` mirrors them at the estimate (Davison and Hinkley 1997,
    eq. 5.6). ``bca`` moves the quantiles for median bias and skewness (Efron 1987); where every draw lies on one side
    of the estimate its correction does not exist, and the result is the basic interval with a note. ``outer`` takes the
    outer ends of the first two: noise moves a value such as a largest gap to one side, by how much depends on how far
    the classes truly lie apart, and neither of the two covers for both near and far. Where they do not differ at all,
    both lie on one side of the truth; an audit therefore takes one end of such intervals alone (``Measure.noise``).

    Args:
        estimate: the value on the examples as they are.
        draws: [resamples] bootstrap values; those that do not exist (NaN) are left out and mentioned.
        left_out, multiplicity: [cells] from ``Table.jackknife`` and ``Table.multiplicity``; for BCa's acceleration.

    Returns:
        None where the estimate does not exist or fewer than half of the resamples have a value.

    Raises:
        UserError: an unknown method, a level outside (0, 1), BCa without the jackknife.
    """
    if method not in METHODS:
        raise UserError(f"method: '{method}' is not known; one of {', '.join(METHODS)}")
    if not 0 < level < 1:
        raise UserError(f"level: {level}; give a share between 0 and 1, such as 0.95")
    exists = draws[np.isfinite(draws)]
    if not np.isfinite(estimate) or len(exists) < max(2, len(draws) / 2):
        return None
    missing = len(draws) - len(exists)
    note = f"{missing} of {len(draws)} resamples have no value and are left out" if missing else ""
    if unit == "both" and method != "outer":  # those of extremes were seen to miss where nothing differs
        more = "conservative: the spread over seeds holds some of the examples' noise, which is added as well"
        note = "; ".join(filter(None, [note, more]))
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if method == "bca":
        if left_out is None or multiplicity is None:
            raise UserError("method: 'bca' needs the jackknife values and how many examples each stands for")
        below = ((exists < estimate).sum() + 0.5 * (exists == estimate).sum()) / len(exists)  # ties count half
        if 0 < below < 1:
            shift = ndtri(below)
            normal = shift + ndtri(tails)
            low, high = np.quantile(exists, ndtr(shift + normal / (1 - _acceleration(left_out, multiplicity) * normal)))
            return Interval(float(low), float(high), level, method, unit, len(draws), note)
        note = "; ".join(filter(None, [note, "every resample lies on one side of the estimate: basic instead of bca"]))
        method = "basic"
    low, high = np.quantile(exists, tails)
    if method == "basic":
        low, high = 2 * estimate - high, 2 * estimate - low
    elif method == "outer":
        low, high = min(low, 2 * estimate - high), max(high, 2 * estimate - low)
        note = "; ".join(filter(None, [note, "the outer ends of the basic and the percentile interval"]))
    return Interval(float(low), float(high), level, method, unit, len(draws), note)


def _acceleration(left_out: np.ndarray, multiplicity: np.ndarray) -> float:
    exists = np.isfinite(left_out)
    values, weights = left_out[exists], multiplicity[exists]
    distance = np.average(values, weights=weights) - values
    spread = (weights * distance**2).sum()
    return float((weights * distance**3).sum() / (6 * spread**1.5)) if spread > 0 else 0.0


def too_few_errors(pairs: Sequence[Pair], names: Sequence[str]) -> str:
    """Why the intervals of CEV and SDE, and both corrected values, are withheld; an empty string where they are not.

    A class whose reference errors are few may have had none, and then it is not there; its relative change is nearly
    anything. So every class that has examples must have ``FEWEST_ERRORS`` reference errors of either kind (missed,
    falsely claimed) on average over the trials, and one in every trial; and the harmonic mean over all classes, kinds
    and trials of the errors and one must be ``FEWEST_ON_AVERAGE``. Only the reference's errors are looked at: a rule
    that looked at the changes would show those that chance made large.

    Args:
        pairs: the trials.
        names: of the classes, for the words.
    """
    present = np.flatnonzero(np.bincount(pairs[0].labels, minlength=pairs[0].class_count))
    counts = np.stack([_error_counts(error_columns(pair), pair.class_count) for pair in pairs])
    errors = counts[:, :2].sum(1)[:, :, present]  # [trials, kinds, classes]: of both, and of the reference alone

    def place(least: np.ndarray) -> tuple[str, str]:
        kind, number = np.unravel_index(least.argmin(), least.shape)
        return f"class '{names[present[number]]}'", ("falsely claimed", "missed")[kind]

    mean, remedy = errors.mean(0), "take a larger test set or merge classes"
    if mean.min() < FEWEST_ERRORS:
        which, kind = place(mean)
        many = f"{mean.min():.3g} reference error{'' if mean.min() == 1 else 's'} ({kind})"
        trials = " on average over the trials" if len(pairs) > 1 else ""
        return f"{which} has {many}{trials}, and CEV and SDE need {FEWEST_ERRORS} in every class; {remedy}"
    if not errors.all():
        which, kind = place(errors.min(0))
        return f"{which} has no reference error ({kind}) in some trial; {remedy}"
    typical = 1 / (1 / (errors + 1)).mean()
    if typical < FEWEST_ON_AVERAGE:
        many = f"harmonic mean {typical - 1:.3g}, {FEWEST_ON_AVERAGE - 1} are needed"
        return f"the classes have too few reference errors ({many}); {remedy}"
    return ""


def corrected_interval(
    pairs: Sequence[Pair], name: str, *, level: float = 0.95, unit: str = "examples"
) -> Interval | None:
    """An interval for the CEV or SDE that an endless test set would give.

    Resampling errors adds their noise a second time, so the bootstrap intervals of CEV and SDE lie above the truth (the
    percentile interval hardly ever covers it at 100 examples a class). This is an interval around the corrected value.
    It need not contain the plain CEV or SDE, which noise inflates, and does not go below 0.

    The variance over examples is a jackknife's; the examples make trials vary together too. Over trials (``both``) the
    variance of their mean, with the quantile of Student's t of T - 1 degrees of freedom, is added to what the examples
    make all trials share, with a normal quantile: the squares of the two reaches are added (Cochran 1964), which is
    exact where either is absent. See ``_score_interval`` for the shape. Where the interval begins at 0, noise hides the
    effect, it covers more than it promises, and a note says so.

    Whether there are errors enough for it is for ``too_few_errors`` to say.

    Args:
        pairs: the trials.
        name: cev, sde, cev_corrected or sde_corrected.
        unit: examples, or both for several trials.

    Returns:
        None where the corrected value does not exist.
    """
    return corrected_intervals(pairs, [name], level=level, unit=unit)[name]


def corrected_intervals(
    pairs: Sequence[Pair], names: Sequence[str], *, level: float = 0.95, unit: str = "examples"
) -> dict[str, Interval | None]:
    """See ``corrected_interval``; what the intervals of several measures share is done once."""
    columns = np.stack([error_columns(pair) for pair in pairs])
    kinds = {name: name.removesuffix("_corrected") for name in names}
    found = {
        kind: _corrected(kind, columns, pairs[0].class_count, level=level, unit=unit)
        for kind in dict.fromkeys(kinds.values())
    }
    return {name: found[kind] for name, kind in kinds.items()}


def _error_counts(columns: np.ndarray, classes: int) -> np.ndarray:
    """Counts [3, 2, C] of the columns [N, 3] of ``error_columns``."""
    return np.bincount(columns.ravel(), minlength=6 * classes + 1)[:-1].reshape(3, 2, classes).astype(np.float64)


def _corrected(kind: str, columns: np.ndarray, classes: int, *, level: float, unit: str) -> Interval | None:
    """The interval of "cev" or "sde" from the errors [T, N, 3] that the examples stand for in each trial."""
    corrected = CorrectedDistance if kind == "sde" else CorrectedVariance
    found = [_influences(corrected, _error_counts(each, classes), each) for each in columns]
    squares, noise, influences = (np.array(each) for each in zip(*found, strict=True))
    if not np.isfinite(squares).all() or not np.isfinite(influences).all():
        return None
    trials, examples = influences.shape
    covariance = (examples - 1) ** 2 / examples * np.cov(influences).reshape(trials, trials)
    z, seeds, shared = ndtri((1 + level) / 2), 0.0, covariance.mean()
    values = signed_root(squares) if kind == "sde" and trials > 1 else squares
    if trials > 1 and unit != "examples":
        seeds = stdtrit(trials - 1, (1 + level) / 2) ** 2 * values.var(ddof=1) / trials
        shared = max(covariance[~np.eye(trials, dtype=bool)].mean(), 0.0) if unit == "both" else 0.0
    estimate = float(values.mean())
    if kind == "sde" and trials > 1:
        # A root is taken of each trial, since the mean is over them; its slope is no steeper than noise lets it be.
        slope = 1 / (4 * max(abs(squares.mean()), np.sqrt(covariance.mean()), np.finfo(float).tiny))
        reach = np.sqrt(seeds + z**2 * shared * slope)
        low, high = max(estimate - reach, 0.0), max(estimate, 0.0) + reach
    else:
        low, high = _score_interval(estimate, float(noise.mean()), z**2 * shared, seeds)
        low, high = (np.sqrt(low), np.sqrt(high)) if kind == "sde" else (low, high)
    note = "conservative: noise hides the effect" if low == 0 < high else ""
    return Interval(float(low), float(high), level, "corrected", unit, 0, note)


def _influences(corrected: type[Corrected], counts: np.ndarray, columns: np.ndarray) -> tuple[float, float, np.ndarray]:
    """An estimate from the errors, how much noise was taken away, and what the estimate gains by each example: [N].

    The gains of the errors that one example stands for add up but for terms of second order. So one error of each kind
    and class is left out in turn, which changes the terms of one class, and not one example.
    """
    terms = corrected.terms(sums_of_errors(counts))
    whole = corrected.value(terms.sum(0))
    fewer = np.maximum(counts - np.eye(6).reshape(6, 3, 2, 1), 0)  # one fewer of a kind, in every class at once
    changed = corrected.value(terms.sum(0) - terms + corrected.terms(sums_of_errors(fewer)))  # [6, C]
    gains = np.append(whole - changed, 0.0)
    return float(whole), float(corrected.noise(terms.sum(0))), gains[columns].sum(1)


def _score_interval(estimate: float, noise: float, examples: float, seeds: float) -> tuple[float, float]:
    """All θ >= 0 with (estimate - θ)² <= unit (noise + 2θ).

    Squared normal deviates with a mean noise of m around a true mean square θ have a variance in proportion to m + 2θ.
    An interval that gives each θ its own variance is longer upwards; a symmetric one misses large θ whenever the
    estimate, and its standard error with it, came out small. The jackknife takes the square that was observed for the
    true one: its variance is in proportion to 2 (estimate + m), too large by up to 2 where noise hides the effect
    (Efron and Stein 1981).

    Args:
        estimate: of θ. noise: m.
        examples: jackknife variance over examples, times the square of its quantile.
        seeds: variance of the mean over seeds, times the square of its quantile, as it is at the estimate.
    """
    unit = 0.0
    # Neither divisor goes to 0: the ends stay within a few times the reach.
    if examples > 0:
        unit += examples / max(2 * (estimate + noise), noise, np.sqrt(examples))
    if seeds > 0:
        unit += seeds / max(noise + 2 * estimate, 0.5 * noise, np.sqrt(seeds))
    shown = max(estimate, 0.0)  # an estimate far below 0 is noise; it must not leave an interval without width
    reach = np.sqrt(unit**2 + 2 * shown * unit + unit * noise)
    return max(float(shown + unit - reach), 0.0), float(shown + unit + reach)


def class_significance(pairs: Sequence[Pair]) -> tuple[np.ndarray, str]:
    """Did a class's recall change by more or less than the network's accuracy? Holm-adjusted two-sided p-values.

    With two or more candidates the unit is the trial: x = recall minus accuracy, Welch's t-test between candidates and
    references as in Hooker et al. (2019); where every candidate has its own reference, a paired t-test; where one
    reference serves all, a one-sample t-test that takes the reference as given. With a single pair the unit is the
    example: Welch's t-test between the class and all other examples of right(candidate) - right(reference), which says
    something about these two networks and not about the method.

    Returns:
        [parts] of p-values, NaN where there is nothing to test, and a sentence that names the test.
    """
    size = np.bincount(pairs[0].parts, minlength=pairs[0].part_count).astype(np.float64)
    right = {
        word: np.stack([getattr(pair, word).predictions == pair.labels for pair in pairs])
        for word in ("reference", "candidate")
    }
    if len(pairs) == 1:
        change = right["candidate"][0].astype(np.float64) - right["reference"][0]
        total, square = (np.bincount(pairs[0].parts, weights=each, minlength=len(size)) for each in (change, change**2))
        rest_size, rest_total, rest_square = size.sum() - size, total.sum() - total, square.sum() - square
        p = _welch(size, total, square, rest_size, rest_total, rest_square)
        return holm(p), "Welch's t-test over examples of one pair, Holm-corrected"
    shift = {}
    for word, each in right.items():
        recall = np.stack([np.bincount(pairs[0].parts, weights=row, minlength=len(size)) for row in each])
        recall = np.divide(recall, size, out=np.full(recall.shape, np.nan), where=size > 0)
        shift[word] = recall - each.mean(1)[:, None]
    change = shift["candidate"] - shift["reference"]
    trials = len(pairs)
    mean, spread = change.mean(0), change.std(0, ddof=1) / np.sqrt(trials)
    p = _two_sided(mean, spread, np.full(len(size), trials - 1.0))
    shared = len({id(pair.reference) for pair in pairs}) == 1
    kind = "one-sample t-test over trials, the reference taken as given" if shared else "paired t-test over trials"
    return holm(p), f"{kind}, Holm-corrected"


def _welch(n, total, square, n_rest, total_rest, square_rest) -> np.ndarray:
    """Two-sided p of Welch's t-test from counts, sums and sums of squares; NaN below two values on a side."""
    enough = (n > 1) & (n_rest > 1)
    n, n_rest = np.maximum(n, 2), np.maximum(n_rest, 2)
    mean, mean_rest = total / n, total_rest / n_rest
    part = np.maximum(square - n * mean**2, 0) / (n - 1) / n
    part_rest = np.maximum(square_rest - n_rest * mean_rest**2, 0) / (n_rest - 1) / n_rest
    both = part + part_rest
    down = part**2 / (n - 1) + part_rest**2 / (n_rest - 1)
    freedom = np.divide(both**2, down, out=np.ones_like(both), where=down > 0)
    return np.where(enough, _two_sided(mean - mean_rest, np.sqrt(both), freedom), np.nan)


def _two_sided(mean: np.ndarray, error: np.ndarray, freedom: np.ndarray) -> np.ndarray:
    """p of mean / error under Student's t; 1 for an exact 0, NaN for a change without any spread to judge it by."""
    t = np.divide(np.abs(mean), error, out=np.full(mean.shape, np.nan), where=error > 1e-12)
    return np.where(np.isnan(t) & (np.abs(mean) < 1e-12), 1.0, 2 * stdtr(freedom, -t))
