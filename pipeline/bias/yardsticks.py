"""What a value is worth: beside a change of seed (the floor), and beside the same recovery without pruning (control).

A method has one network for each seed, each measured against its own dense parent. Two yardsticks say how much of that
value is owed to pruning:

- over floor: M(C_s | D_s) beside M(D_t | D_s), the other dense networks against the *same* reference, so that a class
  in which D_s makes few errors inflates both alike;
- over control: M(C_s | D_s) beside M(K_s | D_s), where K_s is D_s recovered in the same way without pruning: what
  training on does by itself.

Ratios of strictly positive measures are taken on logarithms, so that their mean is a geometric one; other measures are
compared by differences. The unit of every interval is the seed. Derived here; how often the intervals hold the truth
and the verdicts are right is measured in benchmarks/verdicts.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.statistics import COMPARISONS

VERDICTS = ("above", "below", "equivalent", "cannot tell")
FEWEST_NETWORKS = 3  # distinct dense networks behind a floor: the jackknife leaves one out, and two make one pair
MOST_SEEDS = 1000  # how far `seeds_needed` looks
LEVEL, POWER = 0.95, 0.8


@dataclass(frozen=True)
class Yardstick:
    """How the networks of a method stand to a yardstick.

    Attributes:
        kind: ``"ratio"`` or ``"difference"``; what ``value``, ``low``, ``high``, ``margin`` and ``detectable`` are.
        margin: up to which ratio (to either side, m and 1/m) or difference (±m) a change counts as none; None where the
            measure states none, and then there is no equivalence.
        value: geometric mean over seeds of the ratio, or mean difference; None where there is none, see ``note``.
        low, high: 95 percent interval whose unit is the seed.
        seeds: how many took part.
        verdict: ``above`` (all of the interval above no change), ``below``, else ``equivalent`` (all of it within the
            margin), else ``cannot tell``; empty where there is no interval.
        no_worse: all of the interval is better than, or within the margin of, no change; None where that cannot be said
            because the measure has no margin or there is no interval.
        detectable: the smallest ratio or difference above none that as many seeds with this spread would call ``above``
            in 80 of 100 studies.
        seeds_needed: where the verdict is ``cannot tell``: with how many seeds about half of such studies would settle
            it, if value and spread stayed what they are; None beyond a thousand, and for a shared floor.
        note: why there is no value or no interval, or an empty string.
    """

    kind: str
    margin: float | None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int = 0
    verdict: str = ""
    no_worse: bool | None = None
    detectable: float | None = None
    seeds_needed: int | None = None
    note: str = ""


def over_floor(
    values: Sequence[float | None],
    floor: np.ndarray,
    *,
    kind: str,
    margin: float | None = None,
    better: str = "lower",
    seeds: Sequence[int] | None = None,
) -> Yardstick:
    """Candidates beside the dense networks of other seeds, each against the same reference.

    The statistic is the mean over seeds s of M(C_s | D_s) - mean over t of M(D_t | D_s), on logarithms for a ratio.
    Every dense network is in the floor of all others, so that the seeds are not independent: the standard error is that
    of the jackknife that leaves out a seed altogether (its candidate, its row and its column of the floor), with a t
    quantile of one degree of freedom less than seeds.

    Args:
        values: [S], the candidate of each seed against its own dense parent; None or NaN where it does not exist.
        floor: [S, S], reference by candidate, see ``Floors.values``; the diagonal is not looked at.
        kind: ratio or difference. margin, better: see ``Measure``.
        seeds: their numbers, for the note; 0, 1, ... by default.

    A seed whose candidate or whose floor does not exist takes no part, and ``note`` names it. With fewer than three
    dense networks there is no floor. A ratio needs values above 0.

    Raises:
        ValueError: another kind; a floor of another shape.
    """
    c, f = _scaled(values, kind), _scaled(floor, kind)
    numbers = list(range(len(c))) if seeds is None else list(seeds)
    if f.shape != (len(c), len(c)):
        raise ValueError(f"floor {f.shape} for {len(c)} candidates; give one of each reference by each candidate")
    np.fill_diagonal(f, np.nan)
    used, note = _usable(c, f, numbers, kind)
    if len(used) < FEWEST_NETWORKS:
        fewer = f"no floor: it takes {FEWEST_NETWORKS} dense networks with values, and here are {len(used)}"
        return Yardstick(kind, margin, seeds=len(used), note="; ".join(filter(None, [fewer, note])))
    c, f, many = c[used], f[np.ix_(used, used)], len(used)
    rows, columns = np.nansum(f, 1), np.nansum(f, 0)
    estimate = float((c - rows / (many - 1)).mean())
    # Without seed k the sums lose c_k, row k and column k: the left out statistics scatter as these do, over (S - 1).
    left_out = c - (rows + columns) / (many - 2)
    error = float(left_out.std(ddof=1) / np.sqrt(many))
    return _judged(kind, margin, better, estimate, error, freedom=many - 1, seeds=many, note=note)


def over_control(
    values: Sequence[float | None],
    control: Sequence[float | None],
    *,
    kind: str,
    margin: float | None = None,
    better: str = "lower",
    seeds: Sequence[int] | None = None,
) -> Yardstick:
    """Candidates beside the same recovery of the unpruned network, paired by seed: what pruning added to training on.

    A paired t interval over seeds, on logarithms for a ratio. Arguments as for ``over_floor``; control: [S].
    """
    c, k = _scaled(values, kind), _scaled(control, kind)
    numbers = list(range(len(c))) if seeds is None else list(seeds)
    known = np.isfinite(c) & np.isfinite(k)
    note = _left_out([number for number, there in zip(numbers, known, strict=True) if not there], kind)
    differences = (c - k)[known]
    if len(differences) < 2:
        fewer = f"no interval: it takes two seeds with values, and here are {len(differences)}"
        return Yardstick(kind, margin, seeds=len(differences), note="; ".join(filter(None, [fewer, note])))
    error = float(differences.std(ddof=1) / np.sqrt(len(differences)))
    return _judged(
        *(kind, margin, better, float(differences.mean()), error),
        freedom=len(differences) - 1,
        seeds=len(differences),
        note=note,
    )


def over_shared_floor(
    values: Sequence[float | None],
    floor: Sequence[float | None],
    *,
    kind: str,
    margin: float | None = None,
    better: str = "lower",
) -> Yardstick:
    """Candidates and other dense networks, all against one reference, as the verb ``audit`` is given them.

    Given the reference the values of the candidates and those of the floor are independent, so that two samples are
    compared: by Welch's t interval; a single candidate by the prediction interval of one more dense network, which
    takes the candidate's own scatter over seeds to be that of the floor, and says so in ``note``.

    Args:
        values: [K], candidates. floor: [T], the other dense networks; fewer than two make no floor.
    """
    c, f = _scaled(values, kind), _scaled(floor, kind)
    without = [f"candidate {i + 1}" for i in np.flatnonzero(~np.isfinite(c))]
    without += [f"network {i + 1} of the floor" for i in np.flatnonzero(~np.isfinite(f))]
    note = _left_out(without, kind)
    c, f = c[np.isfinite(c)], f[np.isfinite(f)]
    if len(f) < FEWEST_NETWORKS - 1 or not len(c):
        fewer = (
            f"no floor: it takes {FEWEST_NETWORKS} dense networks with values, and here are {len(f) + 1}"
            if len(c)
            else "no candidate has a value"
        )
        return Yardstick(kind, margin, seeds=len(c), note="; ".join(filter(None, [fewer, note])))
    estimate = float(c.mean() - f.mean())
    of_floor = f.var(ddof=1) / len(f)
    if len(c) == 1:
        error, freedom = float(np.sqrt(f.var(ddof=1) + of_floor)), float(len(f) - 1)
        single = "one candidate: its own scatter over seeds is taken to be that of the floor"
        note = "; ".join(filter(None, [single, note]))
    else:
        of_candidates = c.var(ddof=1) / len(c)
        error = float(np.sqrt(of_candidates + of_floor))
        down = of_candidates**2 / (len(c) - 1) + of_floor**2 / (len(f) - 1)
        freedom = float((of_candidates + of_floor) ** 2 / down) if down > 0 else 1.0
    # More candidates leave the floor as it is, so that no number of them need settle anything.
    found = _judged(kind, margin, better, estimate, error, freedom=freedom, seeds=len(c), note=note)
    return replace(found, seeds_needed=None)


def _scaled(values, kind: str) -> np.ndarray:
    """float64, logarithms for a ratio; NaN where a value does not exist or has no logarithm."""
    if kind not in COMPARISONS:
        raise ValueError(f"'{kind}' is no way to compare; one of {', '.join(COMPARISONS)}")
    found = np.array(values, dtype=float)  # None becomes NaN
    if kind == "difference":
        return found
    return np.log(found, out=np.full(found.shape, np.nan), where=found > 0)


def _usable(c: np.ndarray, f: np.ndarray, numbers: Sequence[int], kind: str) -> tuple[np.ndarray, str]:
    """The seeds that have a candidate and, against the other ones that do, a whole row of the floor."""
    used = np.flatnonzero(np.isfinite(c))
    while len(used):
        missing = ~np.isfinite(f[np.ix_(used, used)])
        np.fill_diagonal(missing, False)
        if not missing.any():
            break
        # The seed with most gaps goes first: one reference without errors must not take the others along.
        used = np.delete(used, (missing.sum(0) + missing.sum(1)).argmax())
    return used, _left_out([number for i, number in enumerate(numbers) if i not in used], kind)


def _left_out(names: Sequence[object], kind: str) -> str:
    if not names:
        return ""
    named = [f"seed {name}" if not isinstance(name, str) else name for name in names]
    why = "has no value" if kind == "difference" else "has no value, or one of 0, which has no logarithm"
    return f"left out: {', '.join(named)} ({why})"


def _judged(
    kind: str,
    margin: float | None,
    better: str,
    estimate: float,
    error: float,
    *,
    freedom: float,
    seeds: int,
    note: str,
) -> Yardstick:
    """Interval, verdict and power from an estimate and its standard error, on logarithms for a ratio."""
    from scipy.special import nctdtrinc, stdtrit  # a tenth of a second to load

    back = np.exp if kind == "ratio" else float
    if error < 1e-12 * max(1.0, abs(estimate)):  # equal to the last digit: an interval would be sure of anything
        same = "no interval: all seeds differ by the same amount"
        return Yardstick(kind, margin, float(back(estimate)), seeds=seeds, note="; ".join(filter(None, [same, note])))
    quantile = float(stdtrit(freedom, (1 + LEVEL) / 2))
    low, high = estimate - quantile * error, estimate + quantile * error
    reach = None if margin is None else float(np.log(margin)) if kind == "ratio" else margin
    if low > 0:
        verdict = "above"
    elif high < 0:
        verdict = "below"
    elif reach is not None and -reach <= low and high <= reach:
        verdict = "equivalent"
    else:
        verdict = "cannot tell"
    no_worse = None
    if reach is not None:
        no_worse = {"lower": high <= reach, "higher": low >= -reach}.get(better, -reach <= low and high <= reach)
    return Yardstick(
        kind=kind,
        margin=margin,
        value=float(back(estimate)),
        low=float(back(low)),
        high=float(back(high)),
        seeds=seeds,
        verdict=verdict,
        no_worse=no_worse,
        detectable=float(back(nctdtrinc(freedom, 1 - POWER, quantile) * error / _shrinks(freedom))),
        seeds_needed=_seeds_needed(estimate, error * np.sqrt(seeds), seeds, reach)
        if verdict == "cannot tell"
        else None,
        note=note,
    )


def _shrinks(freedom: float) -> float:
    """By how much a standard deviation of few values falls short of the true one on average (c4 of normal values)."""
    from scipy.special import gammaln

    return float(np.sqrt(2 / freedom) * np.exp(gammaln((freedom + 1) / 2) - gammaln(freedom / 2)))


def _seeds_needed(estimate: float, spread: float, seeds: int, reach: float | None) -> int | None:
    from scipy.special import stdtrit

    n = np.arange(seeds + 1, MOST_SEEDS + 1)
    half = stdtrit(n - 1.0, (1 + LEVEL) / 2) * spread / np.sqrt(n)
    settled = abs(estimate) > half
    if reach is not None:
        settled |= abs(estimate) + half <= reach
    return int(n[settled.argmax()]) if settled.any() else None
