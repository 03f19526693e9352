"""Does a published study say what its predictions say? Recomputed from predictions.npz, without a line of the package.

Takes the predictions of the dense, the pruned and the recovered networks of a study, and computes from their counts the
measures of every network and dense pair, both yardsticks with interval, verdict and the rest, which class carries how
much, and which classes have few errors; then compares all of it with summary.json and rows.csv. Needs numpy and scipy.

    python benchmarks/recompute.py results mnist5k

Status 1 where any number or verdict is another, or where one is missing on either side.
"""

import csv
import json
import math
import sys
from pathlib import Path

import numpy as np
from scipy import optimize, stats

# How a measure is compared with a yardstick: kind, and the margin within which a change counts as none.
SAID = {
    "cev": ("ratio", 1.5),
    "sde": ("ratio", math.sqrt(1.5)),
    "cev_common": ("ratio", 1.5),
    "sde_common": ("ratio", math.sqrt(1.5)),
    "churn": ("ratio", math.sqrt(1.5)),
    "accuracy_change": ("difference", 0.01),
    "max_excess_accuracy_gap": ("difference", 0.01),
}
HIGHER_IS_BETTER = {"accuracy_change"}
BY_CLASS = ("cev", "sde", "cev_common", "sde_common")
CLOSE = 1e-9  # relative to the larger of 1 and the number; 1e-6 for what either side finds by a search
CELL = ("pruning", "sparsity_asked", "recovery")
DENSE = ("dense", 0.0, "none")


def predictions_of(results: Path, runs: list[dict]) -> tuple[dict, np.ndarray]:
    """The predicted classes by (pruning, sparsity, recovery) and seed, and the labels that all share."""
    folders = {}
    for manifest in results.glob("store/predict/*/manifest.json"):
        network = json.loads(manifest.read_text())["options"]["network"]
        folders[f"store/{network['stage']}/{network['key']}"] = manifest.parent
    found, labels = {}, None
    for run in runs:
        with np.load(folders[run["folder"]] / "predictions.npz") as arrays:
            predicted, own = arrays["logits"].argmax(1), arrays["labels"]
        labels = own if labels is None else labels
        if not np.array_equal(labels, own):
            sys.exit(f"{run['folder']}: other labels than the networks before it")
        cell = (run["pruning"], float(run["sparsity_asked"]), run["recovery"])
        found.setdefault(cell, {})[int(run["seed"])] = predicted
    return found, labels


def errors(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """[2, C]: how often a class is claimed wrongly, how often it is missed."""
    counts = np.zeros((2, classes))
    for label, said in zip(labels, predicted, strict=True):
        if label != said:
            counts[0, said] += 1
            counts[1, label] += 1
    return counts


def uneven(before: np.ndarray, after: np.ndarray, below: np.ndarray) -> tuple[dict, dict]:
    """CEV and SDE of changes over a denominator, and what each class adds; a class with a zero there is left out."""
    used = [c for c in range(before.shape[1]) if below[0, c] > 0 and below[1, c] > 0]
    parts = {"cev": np.zeros(before.shape[1]), "sde": np.zeros(before.shape[1])}
    if not used:
        return {"cev": None, "sde": None}, parts
    d = {c: 100 * (after[:, c] - before[:, c]) / below[:, c] for c in used}
    centre = sum(d.values()) / len(used)
    for c in used:
        parts["cev"][c] = ((d[c] - centre) ** 2).sum() / (2 * len(used))
        parts["sde"][c] = abs(d[c][0] - d[c][1]) / math.sqrt(2) / len(used)
    return {name: float(part.sum()) for name, part in parts.items()}, parts


def compared(labels, reference, candidate, counts, mean) -> tuple[dict, dict]:
    """Every measure of a pair, and what each class adds to those that are sums. counts: of both; mean: over dense."""
    before, after = counts
    values, parts = uneven(before, after, before)
    common, common_parts = uneven(before, after, mean)
    values |= {f"{name}_common": value for name, value in common.items()}
    parts |= {f"{name}_common": part for name, part in common_parts.items()}
    right = [(predicted == labels).astype(float) for predicted in (reference, candidate)]
    lost = right[0].mean() - right[1].mean()
    by_class = [(right[0] - right[1])[labels == c].mean() for c in np.unique(labels)]
    values |= {
        "churn": float((reference != candidate).mean()),
        "accuracy_change": float(-lost),
        "max_excess_accuracy_gap": float(max(by_class) - lost),
    }
    return values, parts


def onto(value: float | None, kind: str) -> float:
    if value is None or (kind == "ratio" and value <= 0):
        return math.nan
    return math.log(value) if kind == "ratio" else value


def beside_floor(values: dict[int, float], floor: dict[tuple[int, int], float], measure: str) -> dict:
    """The jackknife over seeds, one left out at a time. values: by seed; floor: by reference and candidate."""
    kind = SAID[measure][0]
    c = {seed: onto(value, kind) for seed, value in values.items()}
    f = {pair: onto(value, kind) for pair, value in floor.items()}
    seeds = [seed for seed in c if not math.isnan(c[seed])]

    def gaps(seed: int) -> int:
        return sum(math.isnan(f[pair]) for other in seeds if other != seed for pair in ((seed, other), (other, seed)))

    while seeds and max(map(gaps, seeds)):
        seeds.remove(max(seeds, key=gaps))
    if len(seeds) < 3:
        return {"seeds": len(seeds)}

    def statistic(chosen: list[int]) -> float:
        return float(np.mean([c[s] - np.mean([f[s, t] for t in chosen if t != s]) for s in chosen]))

    without = [statistic([other for other in seeds if other != seed]) for seed in seeds]
    many = len(seeds)
    error = math.sqrt((many - 1) / many * sum((one - np.mean(without)) ** 2 for one in without))
    return judged(statistic(seeds), error, many, measure)


def beside_control(values: dict[int, float], control: dict[int, float], measure: str) -> dict:
    kind = SAID[measure][0]
    pairs = [(onto(value, kind), onto(control.get(seed), kind)) for seed, value in values.items()]
    apart = [c - k for c, k in pairs if not math.isnan(c - k)]
    if len(apart) < 2:
        return {"seeds": len(apart)}
    return judged(float(np.mean(apart)), float(stats.sem(apart)), len(apart), measure)


def judged(estimate: float, error: float, seeds: int, measure: str) -> dict:
    kind, margin = SAID[measure]
    back = math.exp if kind == "ratio" else float
    if error < 1e-12 * max(1, abs(estimate)):
        return {"seeds": seeds, "value": back(estimate)}
    reach = math.log(margin) if kind == "ratio" else margin
    low, high = stats.t.interval(0.95, seeds - 1, loc=estimate, scale=error)
    within = -reach <= low and high <= reach
    verdict = "above" if low > 0 else "below" if high < 0 else "equivalent" if within else "cannot tell"
    return {
        "seeds": seeds,
        "value": back(estimate),
        "low": back(low),
        "high": back(high),
        "verdict": verdict,
        "no_worse": bool(low >= -reach if measure in HIGHER_IS_BETTER else high <= reach),
        "detectable": back(shown_in_80_of_100(seeds - 1) * error),
        "seeds_needed": settled_by(estimate, error * math.sqrt(seeds), seeds, reach)
        if verdict == "cannot tell"
        else None,
    }


def shown_in_80_of_100(freedom: int) -> float:
    """In standard errors, whose estimate is too small by c4 on average."""
    critical = stats.t.ppf(0.975, freedom)
    effect = optimize.brentq(lambda size: stats.nct.sf(critical, freedom, size) - 0.8, 0.1, 100, xtol=1e-12)
    c4 = math.sqrt(2 / freedom) * math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2)
    return effect / c4


def settled_by(estimate: float, spread: float, seeds: int, reach: float) -> int | None:
    for many in range(seeds + 1, 1001):
        half = stats.t.ppf(0.975, many - 1) * spread / math.sqrt(many)
        if abs(estimate) > half or abs(estimate) + half <= reach:
            return many
    return None


class Comparison:
    """Counts what was compared, keeps what differs, and the largest deviation of each kind of number."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.numbers, self.largest = 0, {}

    def number(self, what: str, where: str, mine: float | None, published: float | None, close: float = CLOSE) -> None:
        self.numbers += 1
        if mine is None or published is None:
            if mine is not published:
                self.wrong.append(f"{where}: {what} is {mine} here and {published} published")
            return
        apart = abs(mine - published) / max(1, abs(published))
        self.largest[what] = max(self.largest.get(what, 0.0), apart)
        if not apart <= close:
            self.wrong.append(f"{where}: {what} is {mine!r} here and {published!r} published")

    def same(self, what: str, where: str, mine: object, published: object) -> None:
        self.numbers += 1
        if mine != published:
            self.wrong.append(f"{where}: {what} is {mine!r} here and {published!r} published")


def compare_yardstick(compare: Comparison, where: str, mine: dict, published: dict) -> None:
    for key in ("value", "low", "high"):
        compare.number(key, where, mine.get(key), published[key])
    compare.number("detectable", where, mine.get("detectable"), published["detectable"], 1e-6)
    compare.same("verdict", where, mine.get("verdict", ""), published["verdict"])
    for key in ("seeds", "no_worse", "seeds_needed"):
        compare.same(key, where, mine.get(key), published[key])


def shown(record: dict) -> str:
    if record.get("value") is None:
        return "no value"
    ends = "no interval" if record.get("low") is None else f"{record['low']:.4g} to {record['high']:.4g}"
    no_worse = ", no worse" if record.get("no_worse") else ""
    return f"{record['value']:.4g} ({ends}) {record.get('verdict', '')}{no_worse}"


def name_of(cell: tuple) -> str:
    return f"{cell[0]} {cell[1]:g} {cell[2]}"


def main(results: Path, study: str) -> int:
    reports = results / "reports" / study
    with (reports / "runs.csv").open(newline="") as file:
        runs = list(csv.DictReader(file))
    with (reports / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    summary = json.loads((reports / "summary.json").read_text())
    lines_of = [line.strip() for line in (reports / "config.yaml").read_text().splitlines()]
    if any(line.startswith("smoothing:") and float(line.split(":")[1]) for line in lines_of):
        sys.exit("a study with smoothing is not recomputed here")
    networks, labels = predictions_of(results, runs)
    classes = summary["classes"]
    names = [row["class"] for row in summary["reference_errors"]]
    dense = networks[DENSE]
    counts = {cell: {s: errors(labels, p, classes) for s, p in of.items()} for cell, of in networks.items()}
    own = counts[DENSE]
    mean = sum(own.values()) / len(own)
    compare = Comparison()
    numbers = {}
    for row in rows:
        place = tuple(row[key] for key in ("kind", "measure", "class", "group", "layer", "reference_seed", "seed"))
        ends = {key: float(row[key]) if row[key] else None for key in ("value", "low", "high")}
        numbers[(row["pruning"], float(row["sparsity_asked"] or 0), row["recovery"]), place] = ends

    def published(cell: tuple, kind: str, measure: str, *, word="", reference="", seed="", key="value") -> float | None:
        """What rows.csv holds; None for a number that is not there."""
        return numbers.get((cell, (kind, measure, word, "", "", str(reference), str(seed))), {}).get(key)

    # The floor: every ordered pair of dense networks, and what each class adds over all of them.
    floor, added = {}, {name: np.zeros(classes) for name in BY_CLASS}
    for s in dense:
        for t in dense:
            if s != t:
                floor[s, t], parts = compared(labels, dense[s], dense[t], (own[s], own[t]), mean)
                for name in BY_CLASS:
                    added[name] += parts[name]
                for name, value in floor[s, t].items():
                    there = published(DENSE, "floor", name, reference=s, seed=t)
                    compare.number("floor of a pair", f"{name} of {t} against {s}", value, there)
    for name, of_floor in summary["floor"].items():
        values = [pair[name] for pair in floor.values() if name in SAID and pair[name] is not None]
        if name in SAID and of_floor:
            geometric = SAID[name][0] == "ratio" and min(values) > 0
            mean_of = stats.gmean(values) if geometric else np.mean(values)
            for key, value in (("mean", mean_of), ("low", min(values)), ("high", max(values)), ("pairs", len(values))):
                compare.number(f"floor {key}", name, float(value), of_floor[key])
    for name in BY_CLASS:
        for c, word in enumerate(names):
            there = published(DENSE, "class", f"{name}_share", word=word)
            compare.number("share of a class", f"floor, {name}, {word}", added[name][c] / added[name].sum(), there)
    for c, row in enumerate(summary["reference_errors"]):
        where = f"reference errors of {row['class']}"
        compare.same("test examples", where, int((labels == c).sum()), row["support"])
        compare.same("missed", where, int(min(own[s][1, c] for s in own)), row["missed_reference"])
        compare.same("claimed", where, int(min(own[s][0, c] for s in own)), row["claimed_reference"])

    # Every cell beside both yardsticks.
    left_out, lines = set(), {tuple(line[key] for key in CELL): line for line in summary["lines"]}
    compare.same("cells", "the study", sorted(networks), sorted(lines))
    found = {}
    for cell, of_seed in networks.items():
        if cell != DENSE:
            found[cell] = {
                s: compared(labels, dense[s], p, (own[s], counts[cell][s]), mean) for s, p in of_seed.items()
            }
    print(f"{'cell':32} {'yardstick':12} {'measure':24} {'recomputed':52} published")
    for cell, of_seed in found.items():
        line = lines[cell]
        for name in SAID:
            values = {s: measured[0][name] for s, measured in of_seed.items()}
            for s, value in values.items():
                there = published(cell, "bias", name, reference=s, seed=s)
                compare.number("measure of a network", f"{name_of(cell)}, {name}, seed {s}", value, there)
            mine = {"over_floor": beside_floor(values, {pair: each[name] for pair, each in floor.items()}, name)}
            control = found.get(("dense", 0.0, cell[2]))
            if control is not None and cell[0] != "dense":
                before = {s: measured[0][name] for s, measured in control.items()}
                mine["over_control"] = beside_control(values, before, name)
            for yardstick in ("over_floor", "over_control"):
                told, where = (line.get(yardstick) or {}).get(name), f"{name_of(cell)}, {name} {yardstick}"
                if (told is None) != (yardstick not in mine):
                    compare.wrong.append(f"{where}: {'not ' if told is None else ''}published, unlike here")
                if told is None or yardstick not in mine:
                    continue
                before = len(compare.wrong)
                compare_yardstick(compare, where, mine[yardstick], told)
                for key in ("value", "low", "high"):
                    there = published(cell, yardstick, name, key=key)
                    compare.number(f"{key} in rows.csv", where, mine[yardstick].get(key), there)
                mark = "" if len(compare.wrong) == before else "   DIFFERS"
                print(f"{name_of(cell):32} {yardstick:12} {name:24} {shown(mine[yardstick]):52} {shown(told)}{mark}")
        for yardstick in ("over_floor", "over_control"):
            left_out |= set(line.get(yardstick) or {}) - set(SAID)
        for name in BY_CLASS:
            total = sum(measured[1][name] for measured in of_seed.values())
            told = line["carried_by"].get(name, {})
            if total.sum() == 0:
                compare.same("classes that carry it", f"{name_of(cell)}, {name}", {}, told)
                continue
            shares = {word: float(total[c] / total.sum()) for c, word in enumerate(names)}
            for word, share in shares.items():
                compare.number("share of a class", f"{name_of(cell)}, {name}, {word}", share, told.get(word))
            most = max(shares, key=shares.get)
            compare.same("class that carries most", f"{name_of(cell)}, {name}", most, next(iter(told), None))
            if name == "cev":
                print(f"{name_of(cell):32} {'':12} {name:24} carried most by class {most}: {shares[most]:.0%}")
        scarce = {
            word: int(fewest)
            for c, word in enumerate(names)
            if any(own[s][:, c].min() > 0 for s in of_seed)
            and (fewest := min(own[s][:, c].min() for s in of_seed)) < summary["minimum_errors"]
        }
        compare.same("scarce classes", name_of(cell), scarce, line["scarce"])

    print("\nlargest deviation, relative to the larger of 1 and the number:")
    for what, apart in compare.largest.items():
        print(f"  {what:28} {apart:.1e}")
    if left_out:
        print(f"not recomputed here: {', '.join(sorted(left_out))}")
    print(f"{compare.numbers} numbers and verdicts compared, {len(compare.wrong)} differ")
    for each in compare.wrong:
        print(f"  {each}")
    return int(bool(compare.wrong))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
