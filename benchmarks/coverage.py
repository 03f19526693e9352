"""How often do nominal 95 % intervals hold the true value, and how often are they withheld? Populations of known truth.

    OMP_NUM_THREADS=1 python benchmarks/coverage.py [--sets 400] [--near 2000] [--part errors|others] [--classes 3 10]

A population is a large number of examples with the answers of many networks to them: pairs of a reference and a
candidate, one pair a seed. It is taken for the whole truth, so that the true CEV and SDE of every pair are known. A
test set is drawn from it with replacement, with some pairs, no pair twice; an interval over one pair is to hold the
value of that pair, one over several the mean of all pairs.

"correlated": every example has scores for the classes that all networks share, each network adds its own, the largest
wins; an example that is hard is hard for all. "independent": what a network answers depends on the label alone, and for
a candidate on what its reference answers. "none" as an effect: reference and candidate change places in half of the
population, so that nothing changed and both values are 0.

The bias of a corrected value is in percent of the truth or, where that is larger, of what noise adds to it; estimates
below 0 count as they are.

Part "errors" is CEV and SDE; part "others" is a choice of the other measures, through ``audit``.
"""

import argparse
import time
from dataclasses import dataclass
from itertools import product

import numpy as np

from pipeline.bias import MEASURES, Pair, Predictions, audit
from pipeline.bias.measures import (
    CorrectedDistance,
    CorrectedVariance,
    error_columns,
    signed_root,
    sums_of_errors,
)
from pipeline.bias.resampling import corrected_intervals, too_few_errors

EXAMPLES = 60_000  # in a population
LARGEST = 30_000  # examples in a test set
BALANCES = ("even", "uneven", "one rare")
PLACES = (("even", "none"), ("even", "small"), ("even", "large"), ("uneven", "small"), ("one rare", "small"))
# Seeds, and the expected number of reference errors of the rarest kind.
SIZES = (*((1, fewest) for fewest in (1, 2, 3, 5, 10, 30, 200)), (2, 10), (3, 3), (3, 10), (3, 30), (5, 10), (10, 10))
OTHERS = (
    "accuracy",
    "accuracy_change",
    "churn",
    "worst_recall",
    "recall_range",
    "recall_variance",
    "max_excess_accuracy_gap",
    "intensification",
)


@dataclass(frozen=True)
class Population:
    """Labels [M] and answers of references and candidates [pairs, M]."""

    classes: int
    labels: np.ndarray
    references: np.ndarray
    candidates: np.ndarray

    def pair(self, number: int, chosen: np.ndarray | slice = slice(None)) -> Pair:
        labels, before, after = (
            each[chosen].astype(np.int64) for each in (self.labels, self.references[number], self.candidates[number])
        )
        return Pair(Predictions(labels, before), Predictions(labels, after), self.classes, labels, self.classes)


def shares(classes: int, balance: str) -> np.ndarray:
    """How frequent each class is: evenly, from 1 to 1/8, or all but one evenly and that one 1/15 of them."""
    found = {"even": np.ones(classes), "uneven": np.geomspace(1, 1 / 8, classes), "one rare": np.ones(classes)}[balance]
    if balance == "one rare":
        found[0] = 1 / 15
    return found / found.sum()


def correlated(classes: int, balance: str, effect: float | None, pairs: int, generator) -> Population:
    """Networks that see the same scores, each with noise and a preference of its own for every class."""
    labels = generator.choice(classes, EXAMPLES, p=shares(classes, balance))
    scores = generator.standard_normal((EXAMPLES, classes), dtype=np.float32)
    margin = 2.6 + 0.4 * np.log(classes / 10) + 0.3 * generator.standard_normal(classes)
    scores[np.arange(EXAMPLES), labels] += margin[labels]
    hit = (effect or 0.0) * generator.standard_normal(classes)
    answers = np.empty((2, pairs, EXAMPLES), np.uint8)
    for number in range(pairs):
        preference = 0.15 * generator.standard_normal(classes)
        own = generator.standard_normal((EXAMPLES, classes), dtype=np.float32)
        answers[0, number] = (scores + 0.5 * own + preference).argmax(1)
        own = 0.6 * own + 0.8 * generator.standard_normal((EXAMPLES, classes), dtype=np.float32)
        preference = 0.5 * preference + 0.12 * generator.standard_normal(classes) + hit
        answers[1, number] = (scores + (0.5 if effect is None else 0.58) * own + preference).argmax(1)
    return Population(classes, labels, *answers)


def independent(classes: int, balance: str, effect: float | None, pairs: int, generator) -> Population:
    """Networks whose answers are drawn for each example: errors of the reference, some lost and some gained."""
    labels = generator.choice(classes, EXAMPLES, p=shares(classes, balance))
    accuracy = 0.7 if classes == 100 else 0.85
    wrong = np.clip(generator.beta(8 * (1 - accuracy), 8 * accuracy, classes), 0.04, 0.9)
    spread = 2 * (effect or 0.0)
    gained, lost = np.exp(spread * generator.standard_normal((2, classes)))
    tables = generator.dirichlet(np.full(classes, 0.3 if classes > 20 else 1.0), classes) + 0.1 / classes

    def confused():
        """A wrong answer for each example: mostly by a table that all share, some by one of its own."""
        table = 0.8 * tables + 0.2 * generator.dirichlet(np.ones(classes), classes)
        np.fill_diagonal(table, 0)
        cumulated = table.cumsum(1)
        drawn = generator.random(EXAMPLES) * cumulated[labels, -1]
        found = np.empty(EXAMPLES, np.int64)
        for c in range(classes):
            found[labels == c] = np.searchsorted(cumulated[c], drawn[labels == c], side="right")
        return found

    answers = np.empty((2, pairs, EXAMPLES), np.uint8)
    for number in range(pairs):
        rate = np.clip(wrong * np.exp(0.15 * generator.standard_normal(classes)), 0.02, 0.9)
        lose, mend = (
            np.clip(0.3 * share * np.exp(0.2 * spread * generator.standard_normal(classes)), 0, 0.9)
            for share in (rate * gained, 0.8 * lost)
        )
        before, chance = (
            np.where(generator.random(EXAMPLES) < rate[labels], confused(), labels),
            generator.random(EXAMPLES),
        )
        other = confused()
        kept = np.where(chance < 0.6 * mend[labels], labels, np.where(chance < mend[labels], other, before))
        answers[0, number] = before
        answers[1, number] = np.where(before == labels, np.where(chance < lose[labels], other, labels), kept)
    return Population(classes, labels, *answers)


def mirrored(found: Population) -> Population:
    """Twice the examples; in the second half reference and candidate change places."""
    before, after = (
        np.concatenate(each, 1) for each in ((found.references, found.candidates), (found.candidates, found.references))
    )
    return Population(found.classes, np.concatenate([found.labels] * 2), before, after)


KINDS = {"correlated": correlated, "independent": independent}
EFFECTS = {"none": None, "small": 0.05, "large": 0.3}


def made(kind: str, classes: int, balance: str, effect: str, pairs: int) -> Population:
    generator = np.random.default_rng([list(KINDS).index(kind), classes, BALANCES.index(balance)])
    found = KINDS[kind](classes, balance, EFFECTS[effect], pairs, generator)
    return mirrored(found) if effect == "none" else found


def errors_of(pair: Pair) -> np.ndarray:
    """Counts [3, 2, C]: both, lost, gained; falsely claimed, missed."""
    return np.bincount(error_columns(pair).ravel(), minlength=6 * pair.class_count + 1)[:-1].reshape(3, 2, -1) * 1.0


def scored(counts: np.ndarray) -> np.ndarray:
    """Plain and corrected CEV and SDE of counts [..., 3, 2, C]: [..., 2, 2], by measure."""
    sums = sums_of_errors(counts)
    cev = [MEASURES["cev"]().value(sums), CorrectedVariance.of(sums)]
    sde = [MEASURES["sde"]().value(sums), signed_root(CorrectedDistance.of(sums))]
    return np.moveaxis(np.array([cev, sde]), (0, 1), (-2, -1))


def one_set(population: Population, truth: np.ndarray, examples: int, seeds: int, generator) -> np.ndarray | None:
    """[measure, (truth, plain, corrected, low, high, noise hides)] of one test set; None where it is withheld."""
    chosen = generator.integers(0, len(population.labels), examples)
    numbers = generator.permutation(len(population.references))[:seeds]
    pairs = [population.pair(number, chosen) for number in numbers]
    if too_few_errors(pairs, range(population.classes)):
        return None
    values = scored(np.stack([errors_of(pair) for pair in pairs])).mean(0)
    true = truth[numbers[0]] if seeds == 1 else truth.mean(0)
    found = corrected_intervals(pairs, ("cev", "sde"), unit="both" if seeds > 1 else "examples")
    ends = [(each.low, each.high, bool(each.note)) for each in found.values()]
    return np.concatenate([true[:, None], values, np.array(ends, float)], 1)


def covered(found: np.ndarray) -> np.ndarray:
    """Of sets [S, measure, 6], whether the interval holds the truth: [S, measure]."""
    slack = 1e-9 * (1 + found[..., 0])
    return (found[..., 3] <= found[..., 0] + slack) & (found[..., 0] <= found[..., 4] + slack)


def verdict(shown: float, hits: np.ndarray, bias: float, bias_error: float) -> str:
    """What a row that is shown in most sets fails: coverage below 92 % or bias above 5 %, by two standard errors."""
    if shown < 0.5:
        return "mostly withheld"
    low = hits.mean() + 2 * np.sqrt(0.92 * 0.08 / len(hits)) < 0.92
    failed = {"covers too little": low, "biased": abs(bias) - 2 * bias_error > 5}
    return ", ".join(name for name, true in failed.items() if true)


def errors_table(arguments) -> None:
    print(
        "| errors | classes | balance | effect | seeds | fewest errors | examples | shown | measure | truth | plain | "
        "corrected | bias (%) | covered (%) | noise hides | |\n" + "|---" * 16 + "|"
    )
    rows, start = [], time.perf_counter()
    for classes, kind, (balance, effect) in product(arguments.classes, KINDS, PLACES):
        pairs = 24 if classes == 100 else 60
        population = made(kind, classes, balance, effect, pairs)
        counts = np.stack([errors_of(population.pair(number)) for number in range(pairs)])
        truth = scored(counts)[..., 0]  # of the whole population there is no noise to correct
        # Fewest expected errors of any class and kind, over the pairs the middle one.
        least = np.median(counts[:, :2].sum(1).min((1, 2))) / len(population.labels)
        for seeds, fewest in SIZES if balance == "even" else [(seeds, each) for seeds, each in SIZES if seeds == 1]:
            examples = round(fewest / least)
            if 20 <= examples <= (LARGEST if seeds == 1 else LARGEST // 2):
                setting = (kind, classes, balance, effect, seeds, fewest, examples)
                rows += errors_row(population, truth, setting, arguments)
    summary(rows)
    print(f"\n{len(rows)} rows, {time.perf_counter() - start:.0f} s")


def errors_row(population, truth, setting, arguments) -> list[dict]:
    """Both measures of one setting, printed; with more sets where the first leave a doubt."""
    *_, seeds, fewest, examples = setting
    generator = np.random.default_rng([fewest, seeds, examples])
    sets = [one_set(population, truth, examples, seeds, generator) for _ in range(arguments.sets)]
    known = [each for each in sets if each is not None]
    if len(known) >= arguments.sets / 2 and (covered(np.array(known)).mean(0) < 0.93).any():
        sets += [one_set(population, truth, examples, seeds, generator) for _ in range(arguments.near - arguments.sets)]
        known = [each for each in sets if each is not None]
    shown, rows = len(known) / len(sets), []
    for place, name in enumerate(("CEV", "SDE")):
        start = "| " + " | ".join(map(str, setting[:5])) + f" | {fewest} | {examples:,} | {100 * shown:.0f} % | {name} "
        if len(known) < 20:
            print(start + "|" * 7 + " mostly withheld |", flush=True)
            rows.append({"setting": setting, "measure": name, "shown": shown, "verdict": "mostly withheld"})
            continue
        found = np.array(known)[:, place]
        true, plain, corrected = found[:, :3].mean(0)
        # In percent of the truth or, where that is larger, of what noise adds to it.
        off = 100 * (found[:, 2] - found[:, 0]) / max(true, plain - true)
        bias, error = off.mean(), off.std(ddof=1) / np.sqrt(len(off))
        hits, hidden = covered(np.array(known))[:, place], found[:, 5].mean()
        said = verdict(shown, hits, bias, error)
        print(
            start + f"| {true:.4g} | {plain:.4g} | {corrected:.4g} | {bias:+.1f} ± {error:.1f} | "
            f"{100 * hits.mean():.1f} ± {100 * hits.std() / np.sqrt(len(hits)):.1f} | {100 * hidden:.0f} % | {said} |",
            flush=True,
        )
        rows.append(
            {"setting": setting, "measure": name, "shown": shown, "verdict": said, "covered": hits.mean(), "bias": bias}
        )
    return rows


def summary(rows: list[dict]) -> None:
    """One line for each number of classes, seeds and fewest errors, of the settings that show most intervals."""
    print("\n| classes | seeds | fewest errors | settings | shown | CEV covered (%): lowest, mean | SDE | ", end="")
    print("CEV biased | SDE biased |\n" + "|---" * 9 + "|")
    place = {}
    for row in rows:
        _, classes, _, _, seeds, fewest, _ = row["setting"]
        place.setdefault((classes, seeds, fewest), []).append(row)
    for (classes, seeds, fewest), some in sorted(place.items()):
        shares, biased = [], []
        for name in ("CEV", "SDE"):
            known = [row for row in some if row["measure"] == name and row["shown"] >= 0.5]
            share = [100 * row["covered"] for row in known]
            shares.append(f"{min(share):.1f}, {np.mean(share):.1f}" if share else "withheld")
            off = [row["bias"] for row in known if "biased" in row["verdict"]]
            biased.append(f"{len(off)} ({min(off):+.0f} to {max(off):+.0f} %)" if off else "")
        shown = 100 * np.mean([row["shown"] for row in some])
        line = (classes, seeds, fewest, len(some) // 2, f"{shown:.0f} %", *shares, *biased)
        print("| " + " | ".join(map(str, line)) + " |")
    ten = [row["shown"] >= 0.5 for row in rows if row["setting"][5] >= 10]
    low = sum("covers" in row["verdict"] for row in rows)
    print(f"\nOf {len(ten) // 2} settings with 10 errors or more, {100 * np.mean(ten):.0f} % show most intervals.")
    print(f"Of {sum(row['shown'] >= 0.5 for row in rows)} rows that show most intervals, {low} cover too little.")


def others_table(arguments) -> None:
    print("| errors | seeds | measure | truth | mean | covered (%) | |\n" + "|---" * 7 + "|")
    start = time.perf_counter()
    for kind, seeds in product(KINDS, (1, 2, 3, 5, 10)):
        population = made(kind, 10, "even", "large", 30)
        whole = [audit_values([population.pair(number)]) for number in range(30)]
        generator = np.random.default_rng(seeds)
        hits, values, truth = ({name: [] for name in OTHERS} for _ in range(3))
        for number in range(arguments.sets):
            chosen = generator.integers(0, len(population.labels), 1000)
            numbers = generator.permutation(30)[:seeds]
            found = audit_values([population.pair(each, chosen) for each in numbers], seed=number)
            for name, each in found.items():
                true = np.mean([one[name].value for one in (whole if seeds > 1 else [whole[numbers[0]]])])
                hits[name].append(each.interval.low <= true <= each.interval.high)
                values[name].append(each.value)
                truth[name].append(true)
        for name, each in hits.items():
            said = "" if np.mean(each) + 2 * np.sqrt(0.92 * 0.08 / len(each)) >= 0.92 else "covers too little"
            print(
                f"| {kind} | {seeds} | {name} | {np.mean(truth[name]):.4g} | {np.mean(values[name]):.4g} | "
                f"{100 * np.mean(each):.1f} ± {100 * np.std(each) / np.sqrt(len(each)):.1f} | {said} |",
                flush=True,
            )
    print(f"\n10 classes, 1,000 examples, {arguments.sets} sets, {time.perf_counter() - start:.0f} s")


def audit_values(pairs: list[Pair], seed: int = 0) -> dict:
    found = audit(
        references=[pair.reference for pair in pairs],
        candidates=[pair.candidate for pair in pairs],
        measures=OTHERS,
        resamples=500,
        seed=seed,
    )
    return {name: found.measures[name] for name in OTHERS}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=400, help="test sets a setting")
    parser.add_argument("--near", type=int, default=2000, help="test sets of a setting that covered less than 93 %%")
    parser.add_argument("--part", choices=("errors", "others"), help="one part alone")
    parser.add_argument("--classes", type=int, nargs="+", default=(3, 10, 100), choices=(3, 10, 100))
    parser.add_argument("--quick", action="store_true", help="100 test sets a setting, 3 and 10 classes")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.sets, arguments.near, arguments.classes = 100, 100, (3, 10)
    arguments.near = max(arguments.near, arguments.sets)
    if arguments.part != "others":
        errors_table(arguments)
    if arguments.part != "errors":
        others_table(arguments)


if __name__ == "__main__":
    main()
