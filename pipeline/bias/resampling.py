"""Exact bootstrap, jackknife and permutation of every measure, done on counts and not on examples.

A measure depends on sums over examples only, and examples that contribute the same are one *cell*. Drawing N examples
with replacement is drawing how often each cell occurs: the few heavy cells (all examples that both networks got right)
from a multinomial, only what is left one by one. That is the ordinary paired bootstrap in distribution, not an
approximation of it; one sparse product then gives the sums of a whole batch of resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
        blocks, self._slices, start = [], {}, 0
        for trial, name, block in self._counts():
            block = sparse.csr_matrix(block if sparse.issparse(block) else np.asarray(block, np.float64).reshape(-1, 1))
            self._slices[trial, name] = slice(start, start + block.shape[1])
            start += block.shape[1]
            blocks.append(block)
        rows = sparse.hstack(blocks, format="csr")
        self.cell, first = self._cells(rows)
        self.multiplicity = np.bincount(self.cell)
        self.contributions = rows[first]
        self._transposed = self.contributions.T.tocsr()

    def _counts(self):
        for measure in self.measures:
            found = (
                [(-1, measure.counts(self.pairs))]
                if measure.over_trials
                else [(trial, measure.counts(pair)) for trial, pair in enumerate(self.pairs)]
            )
            for trial, counts in found:
                for name, block in counts.items():
                    if (trial, name) not in self._slices:
                        yield trial, name, block

    def _cells(self, rows: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
        if any(measure.needs_logits for measure in self.measures):
            return np.arange(self.examples), np.arange(self.examples)  # real numbers: no two examples are alike
        code = np.zeros(self.examples, np.int64)
        columns = [self.pairs[0].labels, self.pairs[0].parts]
        columns += [each.predictions for pair in self.pairs for each in (pair.reference, pair.candidate)]
        for column in columns:
            code = np.unique(code * (column.max() + 1) + column, return_inverse=True)[1]
        code = np.where(rows.getnnz(1) == 0, 0, code + 1)  # examples that contribute nothing are one cell
        _, first, cell = np.unique(code, return_index=True, return_inverse=True)
        return cell, first

    def sums(self, weights: np.ndarray) -> list[Sums]:
        """Sums of each trial, then of all trials together, when cell k counts weights[k, b] times; each [b, width]."""
        total = self._transposed @ weights
        examples = weights.sum(0)[:, None]
        found: list[Sums] = [{"examples": examples} for _ in range(len(self.pairs) + 1)]
        for (trial, name), place in self._slices.items():
            found[trial][name] = np.ascontiguousarray(total[place].T)
        return found

    def values(self, sums: list[Sums]) -> dict[str, np.ndarray]:
        """Each measure per trial, [b, trials], or [b, 1] where it is one of all trials together."""
        return {
            measure.name: np.stack(
                [measure.value(sums[-1])] if measure.over_trials else [measure.value(each) for each in sums[:-1]], 1
            )
            for measure in self.measures
        }

    def averaged(self, sums: list[Sums], shares: np.ndarray) -> dict[str, np.ndarray]:
        """Each measure of the trials' mean sums, [b]; ``shares`` [b, trials] weighs the trials."""
        found = {}
        for measure in self.measures:
            if not measure.over_trials:
                mean = {
                    name: sum(shares[:, [trial]] * each[name] for trial, each in enumerate(sums[:-1]))
                    for name in sums[0]
                }
                found[measure.name] = measure.value(mean)
        return found

    def point(self) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """The measures of the examples as they are: per trial [trials], and of the averaged sums."""
        sums = self.sums(self.multiplicity[:, None].astype(np.float64))
        trials = len(self.pairs)
        averaged = self.averaged(sums, np.full((1, trials), 1 / trials))
        return {name: value[0] for name, value in self.values(sums).items()}, {
            name: float(value[0]) for name, value in averaged.items()
        }

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
        cells, columns = self.contributions.shape
        batch = int(np.clip(2**18 // max(cells, columns), 16, 256))
        for start in range(0, resamples, batch):
            yield self.sums(self.draw(min(batch, resamples - start), generator))

    def jackknife(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Values with one example of each cell left out: measure -> [cells, trials], and of averaged sums, [cells]."""
        cells, columns = self.contributions.shape
        step = max(1, 2**21 // columns)
        trials = len(self.pairs)
        whole = self.sums(self.multiplicity[:, None].astype(np.float64))
        values: dict[str, list] = {}
        averaged: dict[str, list] = {}
        for start in range(0, cells, step):
            rows = self.contributions[start : start + step].toarray()
            sums: list[Sums] = [{"examples": each["examples"] - np.ones((len(rows), 1))} for each in whole]
            for (trial, name), place in self._slices.items():
                sums[trial][name] = whole[trial][name] - rows[:, place]
            for found, into in (
                (self.values(sums), values),
                (self.averaged(sums, np.full((len(rows), trials), 1 / trials)), averaged),
            ):
                for name, value in found.items():
                    into.setdefault(name, []).append(value)
        return tuple({name: np.concatenate(value) for name, value in each.items()} for each in (values, averaged))


@dataclass(frozen=True, eq=False)
class Draws:
    """Bootstrap values.

    Attributes:
        mean: measure -> [resamples], the mean over trials.
        averaged: measure -> [resamples], of the averaged sums; empty for a single trial, where it is the mean.
        trials: measure -> [resamples, trials], each trial on the same resample of the examples.
        unit: what was resampled.
    """

    mean: dict[str, np.ndarray]
    averaged: dict[str, np.ndarray]
    trials: dict[str, np.ndarray]
    unit: str


def bootstrap(table: Table, *, resamples: int, seed: int, unit: str = "examples") -> Draws:
    """Values of every measure of the table on resamples.

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
    means: dict[str, list] = {}
    averages: dict[str, list] = {}
    all_values: dict[str, list] = {}
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
            all_values.setdefault(name, []).append(value)
        for name, value in (table.averaged(sums, shares) if trials > 1 else {}).items():
            averages.setdefault(name, []).append(value)
    return Draws(
        *({name: np.concatenate(value) for name, value in each.items()} for each in (means, averages, all_values)), unit
    )


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
    pairs: Sequence[Pair],
    name: str,
    *,
    level: float = 0.95,
    unit: str = "examples",
    signs: Sequence[float] | None = None,
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
        signs: weights of the trials instead of their mean, for a difference of two methods; CEV only.

    Returns:
        None where the corrected value does not exist, or for a difference of SDE, whose root cannot be brought back.
    """
    squared = name.startswith("sde")
    if squared and signs is not None:
        return None
    measure = _SquaredDistance() if squared else MEASURES["cev_corrected"]()
    table = Table(pairs, [measure])
    weights = np.full(len(pairs), 1 / len(pairs)) if signs is None else np.asarray(signs)
    per_trial = table.point()[0][measure.name]
    left_out = table.jackknife()[0][measure.name] @ weights
    estimate = float(per_trial @ weights)
    if not np.isfinite(estimate) or not np.isfinite(left_out).all():
        return None
    n, m = table.examples, table.multiplicity
    examples = (n - 1) / n * (m * (left_out - np.average(left_out, weights=m)) ** 2).sum()
    seeds, freedom = 0.0, np.inf
    if unit in ("seeds", "both"):
        parts = []
        for weight in np.unique(weights):  # one method each
            own = per_trial[weights == weight]
            if len(own) > 1:
                parts.append((weight**2 * len(own) * own.var(ddof=1), len(own) - 1))
        seeds = sum(part for part, _ in parts)
        if seeds > 0:
            total = seeds + (examples if unit == "both" else 0)
            freedom = total**2 / sum(part**2 / own for part, own in parts)
    variance = (examples if unit != "seeds" else 0) + seeds
    quantile = stdtrit(freedom, (1 + level) / 2)
    note = "for the value without sampling noise"
    reach = quantile * np.sqrt(variance)
    low, high = float(estimate - reach), float(estimate + reach)
    if squared:
        plain = Table(pairs, [MEASURES["sde"]()])
        sums = plain.sums(plain.multiplicity[:, None].astype(np.float64))[:-1]
        shape = np.mean([distance_shape(each)[0] for each in sums])
        low, high = (float(shape * np.sqrt(max(end, 0) / 2)) for end in (low, high))
    elif signs is None:
        observed = float(Table(pairs, [MEASURES["cev"]()]).point()[0]["cev"].mean())
        low, high = _score_interval(estimate, observed, reach**2)
    return Interval(low, high, level, "corrected", unit, 0, note)


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


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's (1979) adjusted p-values [C]; NaN stays NaN and is not counted as a test."""
    adjusted = np.full(len(p_values), np.nan)
    tests = np.flatnonzero(~np.isnan(p_values))
    order = tests[np.argsort(p_values[tests], kind="stable")]
    stepped = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted


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
