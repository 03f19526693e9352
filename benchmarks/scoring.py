"""Scoring a method: the floor of a study, which is made once, and the audit of each method that is compared with it.

    OMP_NUM_THREADS=1 python benchmarks/scoring.py [--networks 20] [--classes 100] [--examples 10000] [--rounds 1]

Predictions are made up. The networks are new to every call, so that nothing is known of them from the call before; in
a study the floor leaves behind what the audits need of the dense networks.
"""

import argparse
import resource

import numpy as np
from measuring import alternate, show_machine

from pipeline import bias
from pipeline.bias import Predictions


def network(labels, classes, wrong, generator):
    """Logits of a network that is right but for a share of examples, which go to a few classes as in life."""
    near = (labels + generator.integers(1, min(classes, 8), len(labels))) % classes
    answers = np.where(generator.random(len(labels)) < wrong, near, labels)
    logits = generator.normal(size=(len(labels), classes)).astype(np.float32)
    logits[np.arange(len(labels)), answers] += 5
    return logits


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=20, help="dense networks, and as many of the method")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=1, help="rounds that count, after one that does not")
    arguments = parser.parse_args()
    show_machine()
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(arguments.classes), arguments.examples // arguments.classes)
    dense, pruned = (
        [network(labels, arguments.classes, wrong, generator) for _ in range(arguments.networks)]
        for wrong in (0.2, 0.3)
    )

    def anew(logits):
        return [Predictions.from_logits(labels, each) for each in logits]

    floor = bias.floor(anew(dense))
    seconds = alternate(
        {
            "floor": lambda: bias.floor(anew(dense)),
            "audit with the floor": lambda: bias.audit(
                references=anew(dense), candidates=anew(pruned), floor=floor, resamples=arguments.resamples
            ),
        },
        rounds=arguments.rounds,
    )
    pairs = arguments.networks * (arguments.networks - 1)
    print(
        f"{arguments.networks} networks, {arguments.classes} classes, {len(labels):,} examples, "
        f"{arguments.resamples:,} resamples, {len(floor.values)} measures; median of {arguments.rounds} rounds"
    )
    print(f"floor of {pairs} pairs: {seconds['floor']:.1f} s, {1000 * seconds['floor'] / pairs:.0f} ms a pair")
    print(f"audit with the floor handed in: {seconds['audit with the floor']:.1f} s")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
