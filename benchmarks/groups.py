"""What noise does to the measures between groups, and how often their nominal 95 % intervals hold the truth.

A population of examples is a distribution over (group, label, reference prediction, candidate prediction), so the true
values are exact. Each simulated test set is drawn from it; the intervals are those of an audit of one pair of networks.

    python benchmarks/groups.py [--sets 400] [--resamples 200]
"""

import argparse
import time

import numpy as np

from pipeline.bias import MEASURES, Pair, Predictions, Table, bootstrap, interval

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
    print("| classes | groups | examples | measure | truth | mean value | held the truth |")
    print("|---|---|---|---|---|---|---|")
    start = time.perf_counter()
    for setting, (classes, shares, examples, accuracy, lost) in enumerate(SETTINGS):
        table = population(classes, shares, accuracy, lost)
        exact = truth(table, measures)
        generator = np.random.default_rng(setting)
        found = {name: [] for name in exact}
        held = dict.fromkeys(exact, 0)
        for seed in range(arguments.sets):
            drawn = generator.choice(table.size, examples, p=table.ravel() / table.sum())
            pair = pair_of(np.unravel_index(drawn, table.shape), classes, len(shares))
            cells = Table([pair], measures)
            values, draws = cells.point()[0], bootstrap(cells, resamples=arguments.resamples, seed=seed)
            for each in measures:
                value = values[each.name][0]
                bounds = interval(value, draws[each.name], method=each.interval)
                found[each.name].append(value)
                held[each.name] += max(bounds.low, each.lowest) <= exact[each.name] <= max(bounds.high, each.lowest)
        for name, value in exact.items():
            sizes = " / ".join(f"{share:g}" for share in shares)
            share = held[name] / arguments.sets
            mean = np.mean(found[name])
            print(
                f"| {classes} | {sizes} | {examples:,} | `{name}` | {value:.3f} | {mean:.3f} | {share:.1%} |",
                flush=True,
            )
    error = 100 * np.sqrt(0.05 * 0.95 / arguments.sets)
    print(f"\nStandard error of a share of 95 %: {error:.1f} points. {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
