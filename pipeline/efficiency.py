"""What a way of training costs and brings: quality against steps and seconds, and the speed-up at equal quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

COSTS = {
    "steps": "optimizer steps",
    "steps_with_teachers": "optimizer steps, those of training the teachers included",
    "seconds": "seconds of the recovery's steps, the teachers' answers included",
    "seconds_with_teachers": "seconds of the recovery's steps and of training the teachers",
}


@dataclass(frozen=True)
class Curve:
    """One way of training at several budgets, with the same seeds at each.

    title: of the way of training. taught: whether teachers are asked.
    seeds: [seeds]. epochs: [budgets], rising.
    quality: [seeds, budgets], validation accuracy at the end of training.
    costs: [seeds, budgets] by name (see ``COSTS``); NaN where it is not known.
    """

    title: str
    taught: bool
    seeds: tuple[int, ...]
    epochs: tuple[int, ...]
    quality: np.ndarray
    costs: dict[str, np.ndarray]


def pareto(cost: np.ndarray, quality: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points that no other point beats: cost [n], quality [n] -> both rising, [m] with m <= n."""
    cost, quality = np.asarray(cost, float), np.asarray(quality, float)
    order = np.lexsort((-quality, cost))
    best = np.maximum.accumulate(quality[order])
    kept = order[np.r_[True, quality[order][1:] > best[:-1]]]
    return cost[kept], quality[kept]


def cost_at(cost: np.ndarray, quality: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The cost at which the Pareto curve through the points reaches each wanted quality, [wanted].

    Between points log cost is linear in quality, since budgets are chosen by factors. NaN below the worst and above the
    best point: nothing is extrapolated.
    """
    cost, quality = pareto(cost, quality)
    return np.exp(np.interp(wanted, quality, np.log(cost), left=np.nan, right=np.nan))


@dataclass(frozen=True)
class SpeedUp:
    """How many times cheaper ``candidate`` is than ``reference`` at equal quality, in one cost.

    low, high: the range of the qualities that both curves of means reach (low > high: there is none).
    quality: [points], where either of them has a point within that range. ratio: [points], cost of the reference over
    cost of the candidate.
    average: geometric mean of the ratio over the range; NaN where there is none. At the upper end, where quality hardly
    rises any more, the ratio at one point is mostly noise; the average is not.
    per_seed: [seeds], the same average on each seed's own curves, over their own range.
    """

    reference: str
    candidate: str
    cost: str
    low: float
    high: float
    quality: np.ndarray
    ratio: np.ndarray
    average: float
    per_seed: np.ndarray


def speed_up(reference: Curve, candidate: Curve, cost: str) -> SpeedUp:
    """Compares two curves of the same seeds; see `SpeedUp`.

    A Pareto curve is a running maximum and so a little too good where the quality is noisy, on both sides alike.

    Raises:
        ValueError: the seeds differ, or a cost is not known.
    """
    if reference.seeds != candidate.seeds:
        raise ValueError(f"{candidate.title} has the seeds {candidate.seeds}, {reference.title} {reference.seeds}")
    if not all(np.isfinite(curve.costs[cost]).all() for curve in (reference, candidate)):
        raise ValueError(f"{cost} of {reference.title} or {candidate.title} are not known throughout")

    def compare(theirs: tuple[np.ndarray, np.ndarray], mine: tuple[np.ndarray, np.ndarray]) -> tuple:
        fronts = [pareto(*points)[1] for points in (theirs, mine)]
        low, high = max(front[0] for front in fronts), min(front[-1] for front in fronts)
        quality = np.unique(np.concatenate(fronts))
        quality = quality[(quality >= low) & (quality <= high)]
        ratio = cost_at(*theirs, quality) / cost_at(*mine, quality)
        if len(quality) < 2:
            return low, high, quality, ratio, ratio[0] if len(ratio) else np.nan
        # Exact: between the points the logarithms of both costs are linear in quality.
        return low, high, quality, ratio, np.exp(np.trapezoid(np.log(ratio), quality) / (high - low))

    means = [(curve.costs[cost].mean(0), curve.quality.mean(0)) for curve in (reference, candidate)]
    per_seed = [
        compare(*((curve.costs[cost][seed], curve.quality[seed]) for curve in (reference, candidate)))[-1]
        for seed in range(len(reference.seeds))
    ]
    return SpeedUp(reference.title, candidate.title, cost, *compare(*means), np.array(per_seed))


def speed_ups(curves: Sequence[Curve]) -> list[SpeedUp]:
    """Every taught curve against every untaught one, in each cost that is known for both."""
    return [
        speed_up(reference, candidate, cost)
        for reference in curves
        for candidate in curves
        if candidate.taught and not reference.taught and candidate.seeds == reference.seeds
        for cost in COSTS
        if all(np.isfinite(curve.costs[cost]).all() for curve in (reference, candidate))
    ]


# ---------------------------------------------------------------------------------------------- as a report shows it

Places = Sequence[tuple[str, float, Sequence[Curve]]]  # (pruning, sparsity, the curves that are compared there)


def point_rows(places: Places) -> list[dict[str, object]]:
    """One row per trained network: its budget, what it cost and how good it became."""
    return [
        {
            "pruning": pruning,
            "sparsity_asked": sparsity,
            "recovery": curve.title,
            "seed": seed,
            "epochs": epochs,
            **{name: _known(cost[row, column]) for name, cost in curve.costs.items()},
            "validation_accuracy": float(curve.quality[row, column]),
        }
        for pruning, sparsity, curves in places
        for curve in curves
        for row, seed in enumerate(curve.seeds)
        for column, epochs in enumerate(curve.epochs)
    ]


def speed_up_rows(places: Places) -> list[dict[str, object]]:
    """One row per comparison and cost: the average over the qualities that both reach, and its range over seeds."""
    rows = []
    for pruning, sparsity, curves in places:
        for found in speed_ups(curves):
            reached = found.per_seed[np.isfinite(found.per_seed)]
            overlap = found.low <= found.high
            rows.append(
                {
                    "pruning": pruning,
                    "sparsity_asked": sparsity,
                    "recovery": found.candidate,
                    "against": found.reference,
                    "cost": found.cost,
                    "accuracy_from": float(found.low) if overlap else None,
                    "accuracy_to": float(found.high) if overlap else None,
                    "speed_up": _known(found.average),
                    "lowest": float(reached.min()) if len(reached) else None,
                    "highest": float(reached.max()) if len(reached) else None,
                    "seeds_that_overlap": len(reached),
                    "seeds": len(found.per_seed),
                    "speed_up_at_the_best": _known(found.ratio[-1]) if len(found.ratio) else None,
                }
            )
    return rows


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def sentences(places: Places) -> list[str]:
    """The average speed-ups, and where none can be given."""
    said = []
    for pruning, sparsity, curves in places:
        place = "sparsity 0" if pruning == "dense" else f"{pruning} {sparsity:g}"
        pairs: dict[tuple, list[dict]] = {}
        for row in speed_up_rows([(pruning, sparsity, curves)]):
            pairs.setdefault((row["recovery"], row["against"]), []).append(row)
        for (recovery, against), rows in pairs.items():
            first = next((row for row in rows if row["speed_up"] is not None), None)
            if first is None:
                said.append(
                    f"At {place}, no mean validation accuracy is reached by both {recovery} and {against} at these "
                    "budgets, so there is no speed-up to give."
                )
                continue
            parts = "; ".join(_speed_up(row) for row in rows)
            said.append(
                f"At {place}, from {first['accuracy_from']:.1%} to {first['accuracy_to']:.1%} validation accuracy "
                f"(all that both reach), {recovery} has this speed-up over {against}: {parts}. Below 1 it is slower."
            )
        unknown = [curve.title for curve in curves if not np.isfinite(curve.costs["seconds"]).all()]
        if unknown:
            said.append(
                f"At {place}, the seconds of {', '.join(unknown)} are not compared: a run was interrupted, or made "
                "with another device, number of threads or an earlier version that did not time the steps."
            )
    return said


def _speed_up(row: dict[str, object]) -> str:
    if row["speed_up"] is None:  # a longer budget that took less time is no point of the curve in this cost
        return f"none in {COSTS[row['cost']]} (in which the curves reach no accuracy in common)"
    return f"{row['speed_up']:.2f} in {COSTS[row['cost']]}{_range(row)}"


def _range(row: dict[str, object]) -> str:
    if row["seeds_that_overlap"] == 0:
        return " (of means; in no seed do the curves overlap)"
    overlap = f"{row['seeds_that_overlap']} of {row['seeds']} seeds"
    return f" ({row['lowest']:.2f} to {row['highest']:.2f} in {overlap})"
