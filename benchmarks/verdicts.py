"""How often are the verdicts over floor and over control right? Simulated studies of known truth.

A study has S dense networks D_s, a candidate C_s of each, and one test set that all share. An example belongs to a
true class, to the class that it may be taken for, and to one of three levels of difficulty, so that networks fail on
the same examples. A network leans towards some classes and away from others; a false positive of one is a false
negative of another. Only counts of errors are drawn: given its kind every example is an independent draw, so that the
counts are exact. The setting `default` is fitted to five dense networks of the default study (4,000 digits, 0.945
right, 11 to 40 missed examples a class, two networks share 0.7 of their errors, mean CEV of their pairs near 650).

A candidate is *as far* from its D_s as another seed is, or *tied* to it: it keeps half of its leaning and fails on many
of the same examples, as recovered networks of sparsity 0 do. Pruning adds a leaning of a size of its own, half of it
the same in every seed; that size is found by simulation, so that the truth of a yardstick in CEV (its geometric mean
over studies on test sets of this size) is 1, 1.5, 2 or 4. SDE of the same studies has a truth of its own, simulated as
well. The first 3, 5 and 8 of 10 seeds make the smaller studies.

    python benchmarks/verdicts.py [--studies 2000] [--settings default rare] [--parts tables power]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import sparse
from scipy.special import stdtrit
from scipy.stats import beta

from pipeline.bias import MEASURES, over_control, over_floor, over_shared_floor
from pipeline.bias.rates import cev_of, changes_of, sde_of

NAMES = ("cev", "sde")
SEEDS = (3, 5, 8, 10)
FACTORS = (1.0, 1.5, 2.0, 4.0)
SIZES = np.linspace(0, 6, 13)  # of the leaning that pruning adds, among which the right one is interpolated
CHUNK = 200  # studies at once
CHANCE = np.array([0.98, 0.5, 0.045])  # that a dense network fails on a hard, a middling, an easy example
SHARE = np.array([0.52, 0.33, 0.15])  # of the errors that fall on each of them
KEPT_LEANING, SAME_LUCK = 0.5, 0.4  # of a tied candidate


@dataclass(frozen=True)
class Setting:
    """A population of examples and the scatter of dense networks.

    Attributes:
        errors: expected missed examples of a class of a dense network, on average over classes.
        scatter: standard deviation of a network's leaning towards a class, in log odds.
        rare: the expected missed and wrongly claimed examples of class 0, where it has others than the rest.
        confusions: how many classes a class is taken for.
        uneven: standard deviation over networks of the logarithm of the scatter, and of the size of what pruning does.
    """

    classes: int
    errors: float
    scatter: float
    rare: float | None = None
    confusions: int = 9
    uneven: float = 0.0


SETTINGS = {
    "default": Setting(10, 22, 0.3),
    "uneven": Setting(10, 22, 0.25, uneven=0.5),
    "rare": Setting(10, 22, 0.3, rare=2),
    "hundred": Setting(100, 25, 0.3, confusions=5),
    "hundred few": Setting(100, 5, 0.3, confusions=5),
}


class Population:
    """Kinds of examples [M], how many a test set holds of each on average, and what an error on one counts for."""

    def __init__(self, setting: Setting) -> None:
        generator = np.random.default_rng(7)
        classes, width = setting.classes, setting.confusions
        source = np.repeat(np.arange(classes), width)
        others = np.array([generator.permutation(np.delete(np.arange(classes), c))[:width] for c in range(classes)])
        target = others.ravel()
        hard, drawn = generator.normal(0, 0.35, (2, classes))
        weight = np.exp(hard[source] + drawn[target] + generator.normal(0, 1, len(source)))
        weight *= setting.errors * classes / weight.sum()
        if setting.rare is not None:
            for of_class in (source == 0, target == 0):
                weight[of_class] *= setting.rare / weight[of_class].sum()
        self.source, self.target = np.repeat(source, 3), np.repeat(target, 3)
        self.odds = np.tile(np.log(CHANCE / (1 - CHANCE)), len(source))
        self.examples = (weight[:, None] * SHARE / CHANCE).ravel()
        kinds = np.arange(len(self.source))
        ones = np.ones(2 * len(kinds))
        where = (np.tile(kinds, 2), np.concatenate([self.target, classes + self.source]))
        self.counts_for = sparse.csr_matrix((ones, where), (len(kinds), 2 * classes))
        self.leaning = generator.normal(0, 1, classes)  # that pruning adds in every seed

    def chances(self, leaning: np.ndarray, worse: np.ndarray | float = 0.0) -> np.ndarray:
        """That a network with these leanings [..., C] fails on an example of each kind, [..., M]."""
        odds = self.odds + worse + leaning[..., self.target] - leaning[..., self.source]
        return 1 / (1 + np.exp(-odds))

    def counted(self, failures: np.ndarray) -> np.ndarray:
        """False positives and false negatives by class [..., 2, C] of failures by kind [..., M]."""
        flat = failures.reshape(-1, failures.shape[-1]) @ self.counts_for
        return flat.reshape(*failures.shape[:-1], 2, -1)


@dataclass(frozen=True)
class Candidate:
    """How candidates come about: tied to their D_s or not, and the size of the leaning that pruning adds."""

    tied: bool
    size: float


class Networks:
    """Counts of errors [N, S, 2, C] of the dense networks of N studies, on a test set each, and of their candidates."""

    def __init__(self, setting, population, studies, seeds, generator, *, endless=False) -> None:
        self.setting, self.population, self.generator, self.endless = setting, population, generator, endless
        self.shape = (studies, seeds, setting.classes)
        self.test = generator.poisson(population.examples, (studies, len(population.examples)))[:, None]
        self.leaning = self._scatter()
        self.chance = population.chances(self.leaning)
        self.failed = population.examples * self.chance if endless else generator.binomial(self.test, self.chance)
        self.dense = population.counted(self.failed)

    def _scatter(self) -> np.ndarray:
        """Leanings [N, S, C] of networks of their own."""
        return self._sizes() * self.generator.normal(0, 1, self.shape)

    def _sizes(self) -> np.ndarray:
        several = self.generator.normal(0, 1, (*self.shape[:2], 1))
        return self.setting.scatter * np.exp(self.setting.uneven * several)

    def candidate(self, each: Candidate) -> np.ndarray:
        own, worse = self._scatter(), 0.0
        if each.tied:
            own = KEPT_LEANING * self.leaning + np.sqrt(1 - KEPT_LEANING**2) * own
        if each.size:
            size = each.size * self._sizes()
            own += size * (self.population.leaning + self.generator.normal(0, 1, self.shape)) / np.sqrt(2)
            worse = 0.3 * size
        after = self.population.chances(own, worse)
        if self.endless:
            return self.population.counted(self.population.examples * after)
        if not each.tied:
            return self.population.counted(self.generator.binomial(self.test, after))
        before = self.chance
        where_failed = SAME_LUCK * np.minimum(1, after / before) + (1 - SAME_LUCK) * after
        where_right = SAME_LUCK * np.maximum(0, (after - before) / (1 - before)) + (1 - SAME_LUCK) * after
        again = self.generator.binomial(self.failed, where_failed)
        return self.population.counted(again + self.generator.binomial(self.test - self.failed, where_right))


class Studies:
    """Logarithms of measures of some studies, by measure: what dense networks and candidates show against each D_s.

    Attributes:
        floor: [N, F, F], reference by candidate, of the first F seeds.
        beside: [N, S], each dense network against the one before it.
        control, values: [N, S], controls and, by (candidate, measure), candidates against their own D_s.
    """

    def __init__(
        self, setting, population, studies, seeds, candidates, generator, *, floor_of=None, endless=False
    ) -> None:
        """Args: endless: expected counts in place of drawn ones, which an endless test set would give."""
        self.floor, self.beside, self.control = ({name: [] for name in NAMES} for _ in range(3))
        self.values = {(each, name): [] for each in candidates for name in NAMES}
        for start in range(0, studies, CHUNK):
            drawn = Networks(setting, population, min(CHUNK, studies - start), seeds, generator, endless=endless)
            first = drawn.dense[:, : floor_of or seeds]
            self._keep(self.floor, logarithms(first[:, :, None], first[:, None]))
            self._keep(self.beside, logarithms(np.roll(drawn.dense, 1, 1), drawn.dense))
            self._keep(self.control, logarithms(drawn.dense, drawn.candidate(Candidate(True, 0.0))))
            for each in candidates:
                found = logarithms(drawn.dense, drawn.candidate(each))
                self._keep(self.values, {(each, name): value for name, value in found.items()})
        for table in (self.floor, self.beside, self.control, self.values):
            for key, parts in table.items():
                table[key] = np.concatenate(parts)

    @staticmethod
    def _keep(table: dict, found: dict) -> None:
        for key, value in found.items():
            table[key].append(value)

    def truth(self, each: Candidate, name: str) -> tuple[float, float]:
        """Over floor and over control, on logarithms."""
        apart = ~np.eye(self.floor[name].shape[1], dtype=bool)
        mean = np.nanmean(self.values[each, name])
        return float(mean - np.nanmean(self.floor[name][:, apart])), float(mean - np.nanmean(self.control[name]))


def logarithms(before: np.ndarray, after: np.ndarray) -> dict[str, np.ndarray]:
    """log CEV and log SDE of counts [..., 2, C]: [...]; NaN where there is none."""
    changes, used = changes_of(before, after)
    used = np.broadcast_to(used, changes.shape[:-2] + used.shape[-1:])
    found = {"cev": cev_of(changes, used), "sde": sde_of(changes, used)}
    return {name: np.log(value, out=np.full(value.shape, np.nan), where=value > 0) for name, value in found.items()}


MARGINS = {name: MEASURES[name].margin for name in NAMES}
WORDS = ("above", "below", "equivalent", "cannot tell")


@dataclass(frozen=True)
class Case:
    """One sort of candidates before one yardstick."""

    yardstick: str
    word: str
    candidate: Candidate


@cache
def cases(setting: Setting) -> list[Case]:
    """No effect and the factors, with the sizes that give them in CEV."""
    population, generator = Population(setting), np.random.default_rng(11)
    ladders = {tied: [Candidate(tied, float(size)) for size in SIZES] for tied in (False, True)}
    tried = Studies(setting, population, 1000, 5, ladders[False] + ladders[True], generator)
    found = [Case("floor", "tied, nothing added", ladders[True][0])]
    for yardstick, tied in (("floor", False), ("floor", True), ("control", True)):
        reached = [tried.truth(each, "cev")[yardstick == "control"] for each in ladders[tied]]
        for factor in FACTORS:
            no_effect = factor == 1 and (yardstick, tied) != ("floor", True)
            size = 0.0 if no_effect else float(np.interp(np.log(factor), reached, SIZES))
            word = "no effect" if no_effect else f"{'tied' if tied else 'as far'}, factor {factor:g}"
            found.append(Case(yardstick, word, Candidate(tied, size)))
    return found


def judged(case: Case, studies: Studies, name: str, seeds: int) -> list:
    """What the package says of each study, from the first seeds of it."""
    c, f = np.exp(studies.values[case.candidate, name][:, :seeds]), np.exp(studies.floor[name][:, :seeds, :seeds])
    says = {"kind": "ratio", "margin": MARGINS[name]}
    if case.yardstick == "floor":
        return [over_floor(values, floor, **says) for values, floor in zip(c, f, strict=True)]
    k = np.exp(studies.control[name][:, :seeds])
    return [over_control(values, control, **says) for values, control in zip(c, k, strict=True)]


def tallied(found: list, truth: float) -> dict[str, float]:
    """Shares of the studies that have a verdict; half width as a factor.

    Args: truth: a ratio.
    """
    there = [each for each in found if each.verdict]
    shares = {word: np.mean([each.verdict == word for each in there]) for word in WORDS}
    shares["holds"] = np.mean([each.low <= truth <= each.high for each in there])
    shares["no worse"] = np.mean([each.no_worse for each in there])
    shares["half"] = np.exp(np.mean([np.log(each.high / each.low) for each in there]) / 2)
    return {key: float(value) for key, value in shares.items()} | {"studies": len(there)}


def highest(share: float, studies: int) -> float:
    """Upper 95 % bound of a share (Clopper and Pearson 1934, one-sided)."""
    hits = round(share * studies)
    return float(beta.ppf(0.95, hits + 1, studies - hits)) if hits < studies else 1.0


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


COLUMNS = ("holds", *WORDS, "no worse")


def row(*cells) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def heading(title: str, *cells: str) -> None:
    print(f"\n{title}\n")
    row(*cells)
    row(*["---"] * len(cells))


def drawn_for(word: str, arguments) -> tuple[Setting, Population, np.random.Generator]:
    """A setting with its population and random numbers of its own, so that it comes out alike whatever else is run."""
    setting = SETTINGS[word]
    return setting, Population(setting), np.random.default_rng([arguments.seed, *word.encode()])


def verdicts_of(word: str, arguments) -> list[dict]:
    """One table of a setting; returns its rows, with what the constructions compared say of the same studies."""
    setting, population, generator = drawn_for(word, arguments)
    found = cases(setting)
    candidates = list({case.candidate: None for case in found})
    many = Studies(setting, population, arguments.studies, 5, candidates, generator)
    endless = Studies(setting, population, 500, 5, candidates, generator, endless=True)
    studies = Studies(setting, population, arguments.studies, max(SEEDS), candidates, generator)
    heading(
        f"Setting {word}: {setting}; shares in percent of {arguments.studies} studies",
        *("over", "candidates", "measure", "truth", "without noise", "seeds", *COLUMNS, "half width"),
    )
    rows = []
    for case in found:
        which = case.yardstick == "control"
        for name in NAMES:
            truth = 0.0 if case.word == "no effect" else many.truth(case.candidate, name)[which]
            clean = endless.truth(case.candidate, name)[which]
            for seeds in SEEDS:
                said = tallied(judged(case, studies, name, seeds), np.exp(truth))
                named = {"setting": word, "case": case, "measure": name, "seeds": seeds, "truth": float(np.exp(truth))}
                rows.append(named | said)
                if case.yardstick == "floor":
                    rows[-1]["constructions"] = compared(case, studies, name, seeds, truth)
                told = [percent(said[column]) for column in COLUMNS]
                row(
                    *(case.yardstick, case.word, name.upper(), f"{np.exp(truth):.2f}", f"{np.exp(clean):.2f}", seeds),
                    *(*told, f"{said['half']:.2f}"),
                )
    return rows


CONSTRUCTIONS = ("jackknife", "linear", "plain")


def compared(case: Case, studies: Studies, name: str, seeds: int, truth: float) -> dict[str, dict[str, float]]:
    """What three constructions of the interval over floor would say.

    ``jackknife`` is the one that the package has. ``plain``: the scatter over seeds of C_s less its row of the floor.
    ``linear``: the jackknife to first order, which leaves out a vanishing part of a seed (infinitesimal jackknife).
    """
    c = studies.values[case.candidate, name][:, :seeds]
    f = np.where(np.eye(seeds, dtype=bool), 0.0, studies.floor[name][:, :seeds, :seeds])
    across, down = f.sum(2), f.sum(1)
    estimate = (c - across / (seeds - 1)).mean(1)
    parts = {
        "jackknife": c - (across + down) / (seeds - 2),
        "linear": c - (across + down) / (seeds - 1),
        "plain": c - across / (seeds - 1),
    }
    reach, found = np.log(MARGINS[name]), {}
    for construction, part in parts.items():
        half = stdtrit(seeds - 1, 0.975) * part.std(1, ddof=1) / np.sqrt(seeds)
        there = np.isfinite(half)
        low, high = (estimate - half)[there], (estimate + half)[there]
        found[construction] = {
            "holds": float(((low <= truth) & (truth <= high)).mean()),
            "above": float((low > 0).mean()),
            "equivalent": float(((low <= 0) & (high >= 0) & (low >= -reach) & (high <= reach)).mean()),
        }
    return found


def errors_of_verdicts(rows: list[dict]) -> None:
    heading(
        "Wrong verdicts: the largest share over the settings, in percent, with its upper 95 % bound",
        *("over", "seeds", "measure", "above under no effect", "equivalent under factor 2 or 4 in CEV"),
    )
    for yardstick in ("floor", "control"):
        for seeds in SEEDS:
            for name in NAMES:
                here = [r for r in rows if (r["case"].yardstick, r["seeds"], r["measure"]) == (yardstick, seeds, name)]
                none = max((r for r in here if r["case"].word == "no effect"), key=lambda r: r["above"])
                two = [r for r in here if r["case"].word.endswith(("factor 2", "factor 4"))]
                two = max(two, key=lambda r: r["equivalent"])
                cells = []
                for of, word in ((none, "above"), (two, "equivalent")):
                    bound = highest(of[word], of["studies"])
                    cells.append(f"{percent(of[word])} (up to {percent(bound)}; {of['setting']})")
                row(yardstick, seeds, name.upper(), *cells)


def constructions(rows: list[dict]) -> None:
    heading(
        "Three constructions of the interval over floor, over all settings and candidates, in percent",
        *("construction", "seeds", "holds: least", "mean", "rows below 94.0", "above under no effect: most"),
        *("equivalent under factor 2 or 4: most", "power under factor 2, CEV: mean"),
    )
    for construction in CONSTRUCTIONS:
        for seeds in SEEDS:
            here = [
                (r["case"], r["measure"], r["constructions"][construction])
                for r in rows
                if r["seeds"] == seeds and "constructions" in r
            ]
            holds = np.array([said["holds"] for _, _, said in here])
            above = max(said["above"] for case, _, said in here if case.word == "no effect")
            effects = [said for case, _, said in here if case.word.endswith(("factor 2", "factor 4"))]
            power = np.mean(
                [said["above"] for case, name, said in here if case.word.endswith("factor 2") and name == "cev"]
            )
            row(
                *(construction, seeds, percent(holds.min()), percent(holds.mean())),
                *(f"{(holds < 0.94).sum()} of {len(holds)}", percent(above)),
                *(percent(max(said["equivalent"] for said in effects)), percent(power)),
            )


def given_the_test_set(arguments) -> None:
    """Coverage of what endlessly many seeds would give on the very test set of the study."""
    heading(
        "The same intervals and the truth of the study's own test set (from 100 more seeds on it), CEV, in percent",
        *("setting", "candidates", "seeds", "holds, over test sets", "holds, this test set"),
    )
    more = 100
    for word in (word for word in arguments.settings if SETTINGS[word].classes == 10):
        setting, population, generator = drawn_for(word, arguments)
        chosen = [case for case in cases(setting) if case.word in ("no effect", "as far, factor 4", "tied, factor 4")]
        for case in [case for case in chosen if case.yardstick == "floor"]:
            most = max(SEEDS)
            studies = Studies(
                setting, population, arguments.studies, most + more, [case.candidate], generator, floor_of=most
            )
            c, beside = studies.values[case.candidate, "cev"], studies.beside["cev"]
            own = np.nanmean(c[:, most:], 1) - np.nanmean(beside[:, most:], 1)
            overall = 0.0 if case.word == "no effect" else own.mean()
            for seeds in SEEDS:
                found = judged(case, studies, "cev", seeds)
                there = [(each, truth) for each, truth in zip(found, own, strict=True) if each.verdict]
                both = (
                    np.mean([each.low <= np.exp(truth) <= each.high for each, truth in pairs])
                    for pairs in ([(each, overall) for each, _ in there], there)
                )
                row(word, case.word, seeds, *map(percent, both))


def what_would_be_found(arguments) -> None:
    """Does an effect of the size `detectable` come out above in 80 of 100 studies? Do `seeds_needed` settle it?"""
    setting, population, generator = drawn_for("default", arguments)
    none = Case("floor", "no effect", Candidate(False, 0.0))
    some = [case for case in cases(setting) if case.word == "as far, factor 1.5"][0]
    studies = Studies(setting, population, arguments.studies, 30, [none.candidate, some.candidate], generator)
    for yardstick in ("floor", "control"):
        heading(
            f"Over {yardstick}, setting default: studies without effect, moved by the mean of `detectable`",
            *("measure", "seeds", "detectable: mean (middle half of studies)", "then above, in percent"),
        )
        case = Case(yardstick, "no effect", Candidate(yardstick == "control", 0.0))
        drawn = (
            studies
            if yardstick == "floor"
            else Studies(setting, population, arguments.studies, 10, [case.candidate], generator)
        )
        for name in NAMES:
            for seeds in SEEDS:
                found = [each for each in judged(case, drawn, name, seeds) if each.verdict]
                detectable = np.array([each.detectable for each in found])
                mean, middle = np.exp(np.log(detectable).mean()), np.quantile(detectable, [0.25, 0.75])
                above = np.mean([each.low * mean > 1 for each in found])
                row(name.upper(), seeds, f"{mean:.2f} ({middle[0]:.2f} to {middle[1]:.2f})", percent(above))
    heading(
        "Over floor, setting default: five seeds cannot tell; as many as `seeds_needed` says, up to 30, are taken",
        *("candidates", "measure", "cannot tell with five, percent", "seeds needed: median (middle half)"),
        *("of these up to 30, percent", "settled with that many, percent"),
    )
    for case in (none, some):
        for name in NAMES:
            first = judged(case, studies, name, 5)
            open_ones = [i for i, each in enumerate(first) if each.verdict == "cannot tell"]
            needed = np.array([first[i].seeds_needed or np.inf for i in open_ones])
            settled, tried = 0, 0
            for i, number in zip(open_ones, needed, strict=True):
                if number > 30:
                    continue
                one = int(number)
                c = np.exp(studies.values[case.candidate, name][i, :one])
                again = over_floor(c, np.exp(studies.floor[name][i, :one, :one]), kind="ratio", margin=MARGINS[name])
                tried += 1
                settled += again.verdict in ("above", "below", "equivalent")
            low, middle, high = np.quantile(needed, [0.25, 0.5, 0.75], method="lower")
            row(
                *(
                    case.word,
                    name.upper(),
                    percent(len(open_ones) / len(first)),
                    f"{middle:.0f} ({low:.0f} to {high:.0f})",
                ),
                *(percent(tried / len(open_ones)), percent(settled / max(tried, 1))),
            )


def shared_floor(arguments) -> None:
    """One reference for all, as the verb audit is given it; the truth is that of the study's reference and test set."""
    heading(
        f"Over a shared floor (audit): one reference, candidates as far, percent of {arguments.studies} studies",
        *(
            "setting",
            "candidates",
            "dense beside the reference",
            "measure",
            "factor over studies",
            *COLUMNS,
            "half width",
        ),
    )
    more = 100
    for word in ("default", "rare"):
        setting, population, generator = drawn_for(word, arguments)
        chosen = [case for case in cases(setting) if case.word == "no effect" or case.word.startswith("as far")]
        for case in [case for case in chosen if case.yardstick == "floor"]:
            floor, values = shared(setting, population, arguments.studies, case.candidate, 4 + more, generator)
            for name in NAMES:
                truth = np.nanmean(values[name][:, 4:], 1) - np.nanmean(floor[name][:, 4:], 1)
                overall = np.exp(np.nanmean(truth))
                if case.word == "no effect":
                    truth[:], overall = 0.0, 1.0
                for candidates in (1, 3):
                    for beside in (2, 4):
                        found, own = [], []
                        for c, f, one in zip(values[name], floor[name], truth, strict=True):
                            said = over_shared_floor(
                                np.exp(c[:candidates]), np.exp(f[:beside]), kind="ratio", margin=MARGINS[name]
                            )
                            found.append(said)
                            own.append(np.exp(one))
                        said = tallied(found, 1.0)
                        there = [(each, one) for each, one in zip(found, own, strict=True) if each.verdict]
                        said["holds"] = np.mean([each.low <= one <= each.high for each, one in there])
                        told = [percent(said[column]) for column in COLUMNS]
                        row(word, candidates, beside, name.upper(), f"{overall:.2f}", *told, f"{said['half']:.2f}")


def shared(setting, population, studies, each: Candidate, many: int, generator) -> tuple[dict, dict]:
    """Logarithms [N, many] of dense networks and of candidates, all against one more dense network."""
    floor, values = ({name: [] for name in NAMES} for _ in range(2))
    for start in range(0, studies, CHUNK):
        drawn = Networks(setting, population, min(CHUNK, studies - start), 1 + many, generator)
        reference = drawn.dense[:, :1]
        for table, after in ((floor, drawn.dense[:, 1:]), (values, drawn.candidate(each)[:, 1:])):
            for name, value in logarithms(reference, after).items():
                table[name].append(value)
    return tuple({name: np.concatenate(parts) for name, parts in table.items()} for table in (floor, values))


def tables(arguments) -> None:
    rows = [row for word in arguments.settings for row in verdicts_of(word, arguments)]
    errors_of_verdicts(rows)
    constructions(rows)


PARTS = {"tables": tables, "test_set": given_the_test_set, "power": what_would_be_found, "audit": shared_floor}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000, help="a setting")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.perf_counter()
    for part in arguments.parts:
        PARTS[part](arguments)
    print(f"\n{arguments.studies} studies a setting, seed {arguments.seed}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
