"""Paired bootstrap of CEV and SDE: resampling counts beside the usual way, a confusion matrix for each resample.

    OMP_NUM_THREADS=1 python benchmarks/bootstrap.py [--classes 100] [--examples 10000] [--naive 200]

Two usual ways are timed on a share of the resamples: scikit-learn's ``confusion_matrix`` where it is installed, and a
``bincount`` in NumPy. Seconds are processor seconds, so that a busy machine does not count; set one thread. Then the
same resample is scored by both, and the two distributions are compared.
"""

import argparse
import resource
import time

import numpy as np
from scipy import stats

from pipeline.bias import MEASURES, Pair, Predictions, Table, bootstrap
from pipeline.bias.rates import cev_of, changes_of, sde_of


def networks(classes, examples, generator):
    """Labels and two networks of about 80 % and 76 % accuracy that share most of their errors."""
    labels = np.repeat(np.arange(classes), examples // classes)
    near = (
        labels + generator.integers(1, min(classes, 8), examples)
    ) % classes  # errors go to a few classes, as in life
    before = np.where(generator.random(examples) < 0.2, near, labels)
    other = (labels + generator.integers(1, min(classes, 8), examples)) % classes
    after = np.where(generator.random(examples) < 0.08, other, before)
    return labels, before, after


def by_bincount(labels, predictions, classes):
    return np.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes)


def usual(labels, before, after, rows, classes, confusion):
    errors = []
    for predictions in (before, after):
        table = confusion(labels[rows], predictions[rows], classes)
        errors.append(np.stack([table.sum(0) - table.diagonal(), table.sum(1) - table.diagonal()]).astype(float))
    changes = changes_of(*errors)
    return float(cev_of(*changes)), float(sde_of(*changes))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[100, 10])
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--naive", type=int, default=200, help="resamples done the usual way")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    ways = {"bincount": by_bincount}
    try:
        from sklearn.metrics import confusion_matrix

        ways["confusion_matrix"] = lambda t, p, c: confusion_matrix(t, p, labels=np.arange(c))
    except ImportError:
        print("scikit-learn is not installed: its confusion_matrix is not timed")
    for classes in arguments.classes:
        generator = np.random.default_rng(0)
        labels, before, after = networks(classes, arguments.examples, generator)
        pair = Pair(Predictions(labels, before), Predictions(labels, after), classes, labels, classes)
        seconds = []
        for _ in range(arguments.repeats):
            start = time.process_time()
            table = Table([pair], [MEASURES["cev"](), MEASURES["sde"]()])
            draws = bootstrap(table, resamples=arguments.resamples, seed=0)
            seconds.append(time.process_time() - start)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        best = np.median(seconds)
        print(
            f"{classes} classes, {arguments.examples:,} examples, {arguments.resamples:,} resamples: "
            f"median {best:.3f} CPU s of {arguments.repeats} "
            f"({min(seconds):.3f} to {max(seconds):.3f}), peak memory {memory:.2f} GiB"
        )
        for name, confusion in ways.items():
            start = time.process_time()
            for _ in range(arguments.naive):
                rows = generator.integers(0, arguments.examples, arguments.examples)
                usual(labels, before, after, rows, classes, confusion)
            each = (time.process_time() - start) / arguments.naive
            whole = each * arguments.resamples
            print(
                f"  {name}: {1000 * each:.2f} ms a resample, {whole:.1f} s for all (from {arguments.naive}): "
                f"{whole / best:.0f} times"
            )
        weights = table.draw(20, np.random.default_rng(1))
        scored = table.values(table.sums(weights))
        members = [np.flatnonzero(table.cell == cell) for cell in range(len(table.multiplicity))]
        worst = 0.0
        for b in range(20):
            rows = np.concatenate([np.resize(members[k], int(weights[k, b])) for k in range(len(members))])
            expected = usual(labels, before, after, rows, classes, by_bincount)
            worst = max(worst, abs(scored["cev"][b, 0] / expected[0] - 1), abs(scored["sde"][b, 0] / expected[1] - 1))
        generator = np.random.default_rng(2)
        values = [
            usual(labels, before, after, generator.integers(0, len(labels), len(labels)), classes, by_bincount)
            for _ in range(1500)
        ]
        tests = [stats.ks_2samp(draws[name], np.array(values)[:, i]).pvalue for i, name in enumerate(("cev", "sde"))]
        print(
            f"  same resample, largest relative difference: {worst:.1e}; "
            f"Kolmogorov-Smirnov p: CEV {tests[0]:.3f}, SDE {tests[1]:.3f}"
        )


if __name__ == "__main__":
    main()
