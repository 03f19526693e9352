"""What noise does to the measures between groups, and how often their nominal 95 % intervals hold the truth.

A population of examples is a distribution over (group, label, reference prediction, candidate prediction), so the true
values are exact. Each simulated test set is drawn from it; the intervals are those of an audit of one pair of networks.

    python benchmarks/groups.py [--sets 400] [--resamples 200]
"""

import argparse
import time
from types import SimpleNamespace

import numpy as np

from pipeline.bias import MEASURES, Pair, Predictions, Table, bootstrap, interval
from pipeline.bias.by_group import simultaneous

# classes, shares of the groups, examples, accuracy of the reference, points that the candidate loses in the last group
SETTINGS = (
    (2, (0.5, 0.5), 1_000, 0.9, 0.0),
    (2, (0.5, 0.5), 1_000, 0.9, 0.1),
    (2, (0.9, 0.1), 1_000, 0.9, 0.1),
    (10, (0.5, 0.5), 4_000, 0.9, 0.0),
    (10, (0.5, 0.5), 4_000, 0.9, 0.1),
    (10, (0.4, 0.3, 0.2, 0.1), 4_000, 0.9, 0.1),
    (10, (0.4, 0.3, 0.2, 0.1), 40_000, 0.9, 0.1),
)


def population(classes, shares, accuracy, lost):
    """Probabilities [G, C, C, C] of (group, label, reference, candidate); the first class loses twice as much."""

    def answers(right):
        table = np.full((classes, classes), 1.0) * ((1 - right) / (classes - 1))[:, None]
        np.fill_diagonal(table, right)
        return table

    before = answers(np.full(classes, accuracy))
    table = np.zeros((len(shares), classes, classes, classes))
    for group, share in enumerate(shares):
        right = np.full(classes, accuracy)
        if group == len(shares) - 1:
            right -= lost * (1 + (np.arange(classes) == 0))
        # Where both are right or wrong alike the candidate keeps the answer as often as it can, else it draws anew.
        kept = np.minimum(before, answers(right))
        rest_before, rest_after = before - kept, answers(right) - kept
        moved = rest_before[:, :, None] * rest_after[:, None, :]
        moved /= np.maximum(rest_after.sum(1), 1e-300)[:, None, None]
        stays = kept[:, :, None] * np.eye(classes)
        noisy = before[:, :, None] * answers(right)[:, None, :]
        table[group] = share / classes * (0.7 * (stays + moved) + 0.3 * noisy)
    return table


def pair_of(rows, classes, groups):
    group, label, before, after = rows
    first, second = Predictions(label, before), Predictions(label, after)
    return Pair(first, second, classes, label, classes, group, groups)


def truth(table, measures):
    """The measures of the population: of sums that are its probabilities."""
    groups, classes = table.shape[:2]
    sums = {"examples": np.ones((1, 1)), "group_size": table.sum((1, 2, 3))[None]}
    sums["group_positives"] = table.sum((2, 3)).reshape(1, -1)
    for word, axes in (("reference", 3), ("candidate", 2)):
        answers = table.sum(axes)  # [G, label, answer]
        sums[f"group_claimed_{word}"] = answers.sum(1).reshape(1, -1)
        sums[f"group_right_{word}"] = np.einsum("gcc->gc", answers).reshape(1, groups * classes)
    return {each.name: float(each.value(sums)[0]) for each in measures}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=400)
    parser.add_argument("--resamples", type=int, default=200)
    arguments = parser.parse_args()
    measures = [MEASURES[name]() for name in MEASURES if MEASURES[name].needs_groups]
    print("| classes | groups | examples | measure | truth | mean value | basic | shown | used here | mean width |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    start = time.perf_counter()
    for setting, (classes, shares, examples, accuracy, lost) in enumerate(SETTINGS):
        table = population(classes, shares, accuracy, lost)
        exact = truth(table, measures)
        generator = np.random.default_rng(setting)
        found = {name: [] for name in exact}
        held = {name: [0, 0, 0] for name in exact}  # by basic, by the one used, and of how many
        widths = dict.fromkeys(exact, 0.0)
        for seed in range(arguments.sets):
            drawn = generator.choice(table.size, examples, p=table.ravel() / table.sum())
            pair = pair_of(np.unravel_index(drawn, table.shape), classes, len(shares))
            cells = Table([pair], measures)
            options = {"resamples": arguments.resamples, "seed": seed}
            values, draws, basic = cells.point()[0], bootstrap(cells, **options), {}
            for each in measures:
                value = float(values[each.name][0])
                bounds = interval(value, draws[each.name], method="basic")
                found[each.name].append(value)
                basic[each.name] = SimpleNamespace(estimate=value, trials=(value,), interval=bounds)
                held[each.name][0] += max(bounds.low, each.lowest) <= exact[each.name] <= max(bounds.high, each.lowest)
            used = {name: each.interval for name, each in basic.items()}
            chosen = simultaneous([pair], measures, basic, 0.95, **options)
            used |= {each.name: bounds for each, bounds in chosen}
            for name, bounds in used.items():
                if bounds is not None:
                    held[name][1] += bounds.low - 1e-12 <= exact[name] <= bounds.high + 1e-12
                    held[name][2] += 1
                    widths[name] += bounds.high - bounds.low
        for name, value in exact.items():
            basic_held, used_held, shown = held[name]
            row = [classes, " / ".join(f"{share:g}" for share in shares), f"{examples:,}", f"`{name}`"]
            row += [f"{value:.3f}", f"{np.mean(found[name]):.3f}", f"{basic_held / arguments.sets:.1%}"]
            row += [f"{shown / arguments.sets:.0%}"]
            row += [f"{used_held / shown:.1%}", f"{widths[name] / shown:.3f}"] if shown else ["-", "-"]
            print(f"| {' | '.join(map(str, row))} |", flush=True)
    error = 100 * np.sqrt(0.05 * 0.95 / arguments.sets)
    print(f"\nStandard error of a share of 95 %: {error:.1f} points. {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
