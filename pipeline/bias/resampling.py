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
    MEASURES,
    CorrectedSymmetricDistanceError,
    Measure,
    Pair,
    Sums,
    distance_shape,
    squared_distance,
)
from pipeline.registry import UserError
from pipeline.statistics import holm

METHODS = ("basic", "percentile", "bca")  # by bootstrap; "corrected" is the one of corrected_interval
UNITS = ("examples", "seeds", "both")
HEAVY = 32  # examples in a cell from which one binomial draw is cheaper than drawing them one by one


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        low, high: its ends.
        level: nominal coverage.
        method: corrected, basic, percentile or bca, the one in fact used.
        unit: what was resampled: examples, seeds or both.
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
    ``seeds`` draws trials and keeps the examples: what other seeds would give on this test set. ``both`` nests them.
    All trials, and reference and candidate, see the same drawn examples. T drawn trials vary by (T - 1)/T too little;
    their deviation from the mean of all is widened by sqrt(T / (T - 1)) (Rao and Wu 1988), so that the spread of a
    mean over trials has the right variance. With two to four trials it stays a rough one.

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
    means: dict[str, list[np.ndarray]] = {}
    for sums in _still(table, resamples) if unit == "seeds" else table.batches(resamples, for_examples):
        size = len(sums[0]["examples"])
        shares = np.full((size, trials), 1 / trials)
        if unit != "examples":
            drawn = for_trials.integers(0, trials, (size, trials)) + trials * np.arange(size)[:, None]
            shares = np.bincount(drawn.ravel(), minlength=size * trials).reshape(size, trials) / trials
        for name, value in table.values(sums).items():
            mean = value.mean(1)
            if value.shape[1] == trials > 1 and unit != "examples":
                mean = mean + np.sqrt(trials / (trials - 1)) * ((shares * value).sum(1) - mean)
            means.setdefault(name, []).append(mean)
    return {name: np.concatenate(value) for name, value in means.items()}


def _still(table: Table, resamples: int) -> Iterator[list[Sums]]:
    sums = table.sums(table.multiplicity[:, None].astype(np.float64))
    for start in range(0, resamples, 512):
        size = min(512, resamples - start)
        yield [{name: np.repeat(value, size, 0) for name, value in each.items()} for each in sums]


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
    of the estimate its correction does not exist, and the result is the basic interval with a note.

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
    return Interval(float(low), float(high), level, method, unit, len(draws), note)


def _acceleration(left_out: np.ndarray, multiplicity: np.ndarray) -> float:
    exists = np.isfinite(left_out)
    values, weights = left_out[exists], multiplicity[exists]
    distance = np.average(values, weights=weights) - values
    spread = (weights * distance**2).sum()
    return float((weights * distance**3).sum() / (6 * spread**1.5)) if spread > 0 else 0.0


@dataclass(frozen=True)
class _SquaredDistance(CorrectedSymmetricDistanceError):
    """The quantity behind the corrected SDE that has a standard error."""

    name = "squared_distance"

    def value(self, sums: Sums) -> np.ndarray:
        return squared_distance(sums)


def corrected_interval(
    pairs: Sequence[Pair], name: str, *, level: float = 0.95, unit: str = "examples"
) -> Interval | None:
    """An interval for the CEV or SDE that an endless test set would give.

    Resampling errors adds their noise a second time, so the bootstrap intervals of CEV and SDE lie above the truth (the
    percentile interval hardly ever covers it at 100 examples a class). The interval of CEV is a score interval around
    the corrected value, with a t quantile and a jackknife standard error over examples; over trials (``both``) the
    variance of their mean is added, with Satterthwaite's degrees of freedom. The interval of SDE is a symmetric one for
    the corrected mean square, brought back by a root. They need not contain the plain CEV or SDE, which noise inflates,
    and do not go below 0. Where noise hides the effect they cover more than they promise.

    Args:
        pairs: the trials.
        name: cev, sde, cev_corrected or sde_corrected.

    Returns:
        None where the corrected value does not exist.
    """
    return corrected_intervals(pairs, [name], level=level, unit=unit)[name]


def corrected_intervals(
    pairs: Sequence[Pair], names: Sequence[str], *, level: float = 0.95, unit: str = "examples"
) -> dict[str, Interval | None]:
    """See ``corrected_interval``; what the intervals of several measures share is done once."""
    behind = {name: _SquaredDistance() if name.startswith("sde") else MEASURES["cev_corrected"]() for name in names}
    table = Table(pairs, list({each.name: each for each in behind.values()}.values()))
    sums = table.sums(table.multiplicity[:, None].astype(np.float64))
    per_trial, left_out = table.values(sums), table.jackknife()
    found: dict[str, Interval | None] = {}
    for name, measure in behind.items():
        reach = _reach(per_trial[measure.name][0], left_out[measure.name], table.multiplicity, level, unit)
        if reach is None:
            found[name] = None
            continue
        estimate, reach = reach
        low, high = float(estimate - reach), float(estimate + reach)
        if name.startswith("sde"):
            shape = np.mean([distance_shape(each)[0] for each in sums[:-1]])
            low, high = (float(shape * np.sqrt(max(end, 0) / 2)) for end in (low, high))
        else:
            plain = MEASURES["cev"]()
            observed = float(np.array([plain.value(each)[0] for each in sums[:-1]]).mean())
            low, high = _score_interval(estimate, observed, reach**2)
        found[name] = Interval(low, high, level, "corrected", unit, 0, "for the value without sampling noise")
    return found


def _reach(
    per_trial: np.ndarray, left_out: np.ndarray, multiplicity: np.ndarray, level: float, unit: str
) -> tuple[float, float] | None:
    """The mean over trials and how far its symmetric interval reaches to either side, or None."""
    weights = np.full(len(per_trial), 1 / len(per_trial))
    left_out = left_out @ weights
    estimate = float(per_trial @ weights)
    if not np.isfinite(estimate) or not np.isfinite(left_out).all():
        return None
    n, m = multiplicity.sum(), multiplicity
    examples = (n - 1) / n * (m * (left_out - np.average(left_out, weights=m)) ** 2).sum()
    seeds, freedom = 0.0, np.inf
    if unit in ("seeds", "both") and len(per_trial) > 1:
        seeds = weights[0] ** 2 * len(per_trial) * per_trial.var(ddof=1)
        if seeds > 0:
            total = seeds + (examples if unit == "both" else 0)
            freedom = total**2 / (seeds**2 / (len(per_trial) - 1))
    variance = (examples if unit != "seeds" else 0) + seeds
    return estimate, stdtrit(freedom, (1 + level) / 2) * np.sqrt(variance)


def _score_interval(estimate: float, observed: float, reach_squared: float) -> tuple[float, float]:
    """All θ >= 0 with (estimate - θ)² <= reach² V(θ) / V(estimate).

    Squared normal deviates with a mean noise of m around a true mean square θ have a variance in proportion to m + 2θ,
    where m = observed - estimate. An interval that gives θ its own variance is longer upwards; the symmetric one misses
    large θ whenever the estimate, and its standard error with it, came out small. Where the reach exceeds all that was
    observed, noise hides the effect and the proportion says nothing; the scale is then no smaller than the reach, which
    keeps the upper end to a few times it.
    """
    noise = max(observed - estimate, 0.0)
    scale = max(observed + estimate, 0.5 * observed, np.sqrt(reach_squared))  # m + 2 estimate, kept away from 0
    unit = reach_squared / scale if observed > 0 else 0.0
    middle = estimate + unit
    reach = np.sqrt(max(middle**2 - estimate**2 + unit * noise, 0.0))
    return max(float(middle - reach), 0.0), max(float(middle + reach), 0.0)


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
