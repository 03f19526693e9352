"""How often does a study without any effect find one, and how often is a real one found? Simulated studies.

The logarithm of CEV has a standard deviation of 1 over seeds, half of its variance shared by the networks of one seed;
that of SDE 0.5, correlated with it by 0.8; accuracy is correlated with it by -0.6. (In the study mnist5k_claim: 0.99,
0.46, 0.87 on average, and -0.69 to 0.31.) With an effect, the last recovery has twice the CEV of all others, and 1.3
times the SDE, at one place.

    python benchmarks/families.py [--studies 400]
"""

import argparse
import time

import numpy as np

from pipeline.statistics import Claim, Place, compare, holm
from pipeline.table import measured

KINDS = {"cev": "ratio", "sde": "ratio", "accuracy": "difference"}
# seeds, places, recoveries
SETTINGS = ((3, 5, 2), (5, 5, 2), (10, 5, 2), (5, 3, 4))


def study(generator, seeds, places, recoveries, factor):
    """Rows of the long table, one per network and measure."""
    rows = []
    for place in range(places):
        shared = generator.normal(size=(seeds, 3))
        for recovery in range(recoveries):
            own = (shared + generator.normal(size=(seeds, 3))) / np.sqrt(2)
            cev = own[:, 0] + np.log(factor) * (place == 0 and recovery == recoveries - 1)
            sde = 0.5 * (0.8 * cev + 0.6 * own[:, 1])
            accuracy = 0.9 + 0.01 * (-0.6 * own[:, 0] + 0.8 * own[:, 2])
            for seed in range(seeds):
                run = {"pruning": f"p{place}", "sparsity_asked": 0.5, "recovery": f"r{recovery}", "seed": seed}
                for name, value in (("cev", np.exp(cev)), ("sde", np.exp(sde)), ("accuracy", accuracy)):
                    rows.append(measured("bias", name, value[seed], **run))
    return rows


def found(rows, last):
    """Whether anything is found: without correction, within each measure, in one family; and of one comparison."""
    claim = Claim("cev", last, "r0", Place("p0", 0.5))
    declared = compare(rows, KINDS, explored=(), claims=[claim])[0]
    everything = compare(rows, KINDS, explored=list(KINDS))
    p = np.array([row["p"] for row in everything])
    measures = np.array([row["measure"] for row in everything])
    asked = {"measure": "cev", "pruning": "p0", "first": last, "second": "r0"}
    (same,) = [row for row in everything if row.items() >= asked.items()]
    return {
        "any, uncorrected": (p < 0.05).any(),
        "any, by measure": any((holm(p[measures == name]) < 0.05).any() for name in KINDS),
        "any, one family": any(row["verdict"] != "cannot tell" for row in everything),
        "this, declared": declared["verdict"] != "cannot tell",
        "this, exploratory": same["verdict"] != "cannot tell",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=400, help="of each setting")
    arguments = parser.parse_args()
    start, head = time.perf_counter(), None
    for factor in (1, 2):
        for seeds, places, recoveries in SETTINGS:
            generator = np.random.default_rng(0)
            each = [
                found(study(generator, seeds, places, recoveries, factor), f"r{recoveries - 1}")
                for _ in range(arguments.studies)
            ]
            if head is None:
                head = list(each[0])
                print("| factor | seeds | comparisons | " + " | ".join(head) + " |")
                print("|---|---|---|" + "---|" * len(head))
            shares = " | ".join(f"{100 * np.mean([one[name] for one in each]):.1f} %" for name in head)
            comparisons = 3 * places * recoveries * (recoveries - 1) // 2
            print(f"| {factor} | {seeds} | {comparisons} | {shares} |", flush=True)
    print(f"\n{arguments.studies} studies a setting, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
