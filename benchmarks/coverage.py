"""How often do nominal 95 % intervals of CEV and SDE hold the true value? Simulated pairs of known truth.

A population of examples is a distribution over (label, reference prediction, candidate prediction), so the true CEV
and SDE are exact. Each simulated test set is drawn from it; each method makes its interval from that test set alone.

    python benchmarks/coverage.py [--sets 200] [--resamples 400]
"""

import argparse
import time

import numpy as np

from pipeline.bias import MEASURES, Pair, Predictions, Table, bootstrap, corrected_interval, interval
from pipeline.bias.rates import cev_of, changes_of, sde_of

# classes, examples, accuracy of the reference, share of its errors that change, spread of that share between classes
SETTINGS = (
    (10, 10_000, 0.9, 0.3, 0.5),
    (10, 2_000, 0.9, 0.3, 0.3),
    (10, 10_000, 0.8, 0.5, 0.8),
    (5, 5_000, 0.7, 0.5, 0.5),
    (100, 10_000, 0.8, 0.3, 0.5),
    (100, 10_000, 0.8, 0.2, 0.0),
    (100, 10_000, 0.7, 0.5, 0.8),
)


def population(classes, accuracy, changed, spread, generator):
    """Probabilities [C, C, C] of (label, reference, candidate), classes equally frequent."""
    wrong = np.clip(generator.beta((1 - accuracy) * 8, accuracy * 8, classes), 0.02, 0.9)

    def confusion():
        table = generator.dirichlet(np.full(classes, 0.3 if classes > 20 else 1.0), classes)
        np.fill_diagonal(table, 0)
        return table / table.sum(1, keepdims=True)

    before = confusion()
    after = 0.5 * before + 0.5 * confusion()
    lose = np.clip(changed * wrong * np.exp(generator.normal(0, spread, classes)), 0, 0.9)
    mend = np.clip(0.8 * changed * np.exp(generator.normal(0, spread, classes)), 0, 0.9)
    own = np.eye(classes)
    same = np.einsum("rk->rk", own)
    right = (1 - wrong)[:, None] * (lose[:, None] * after + (1 - lose)[:, None] * own)  # [label, candidate]
    missed = (wrong[:, None] * before)[:, :, None]  # [label, reference, 1]
    moved = mend[:, None] * (0.6 * own + 0.4 * after)  # [label, candidate]
    table = missed * (moved[:, None, :] + (1 - mend)[:, None, None] * same[None])
    table[np.arange(classes), np.arange(classes)] += right
    return table / classes


def truth(table):
    before, after = table.sum(2), table.sum(1)
    errors = [np.stack([each.sum(0) - each.diagonal(), each.sum(1) - each.diagonal()]) for each in (before, after)]
    changes = changes_of(*errors)
    return {"cev": float(cev_of(*changes)), "sde": float(sde_of(*changes))}, float(errors[0].min())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=200, help="test sets a setting")
    parser.add_argument("--resamples", type=int, default=400)
    arguments = parser.parse_args()
    start = time.perf_counter()
    methods = ("corrected", "basic", "percentile", "bca")
    print("| setting | measure | truth | plain mean | corrected mean | " + " | ".join(methods) + " |")
    print("|---|---|---|---|---|" + "---|" * len(methods))
    for classes, examples, accuracy, changed, spread in SETTINGS:
        generator = np.random.default_rng(1)
        table = population(classes, accuracy, changed, spread, generator)
        true, least = truth(table)
        flat = np.flatnonzero(table)
        share = table.ravel()[flat] / table.sum()
        hits = {(name, method): [] for name in true for method in methods}
        found = {name: [] for name in ("cev", "sde", "cev_corrected", "sde_corrected")}
        measures = [MEASURES[name]() for name in found]
        for number in range(arguments.sets):
            cells = np.repeat(flat, generator.multinomial(examples, share))
            labels, before, after = np.unravel_index(cells, table.shape)
            pair = Pair(Predictions(labels, before), Predictions(labels, after), classes, labels, classes)
            counts = Table([pair], measures)
            point, draws = counts.point()[0], bootstrap(counts, resamples=arguments.resamples, seed=number)
            left_out = counts.jackknife()
            for name in found:
                found[name].append(point[name][0])
            for name, method in hits:
                if method == "corrected":
                    bounds = corrected_interval([pair], name)
                else:
                    bounds = interval(
                        point[name][0],
                        draws[name],
                        method=method,
                        left_out=left_out[name][:, 0],
                        multiplicity=counts.multiplicity,
                    )
                hits[name, method].append(bounds.low <= true[name] <= bounds.high)
        setting = (
            f"C={classes} N={examples:,} acc {accuracy} changed {changed} spread {spread} least {least * examples:.0f}"
        )
        for name in true:
            shares = " | ".join(f"{100 * np.mean(hits[name, method]):.1f} %" for method in methods)
            means = f"{np.mean(found[name]):.1f} | {np.mean(found[name + '_corrected']):.1f}"
            print(f"| {setting} | {name.upper()} | {true[name]:.1f} | {means} | {shares} |", flush=True)
    print(
        f"\n{arguments.sets} test sets a setting, {arguments.resamples} resamples, {time.perf_counter() - start:.0f} s"
    )
    print("least: expected reference errors of the rarest kind in the rarest class")


if __name__ == "__main__":
    main()
