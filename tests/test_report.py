"""The report of a study: every number against the input by other code, new measures everywhere, names that bite."""

import csv
import html
import itertools
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from pipeline import bias, report
from pipeline.bias import MEASURES, Measure
from pipeline.efficiency import COSTS, Curve
from pipeline.groups import Column
from pipeline.predictions import Predictions
from pipeline.registry import Registry
from pipeline.report import catalogue, words
from pipeline.report.figures import plain
from pipeline.report.words import number
from pipeline.similarities import SUMMARY_LAYER
from pipeline.statistics import Claim, Place, compare
from pipeline.table import RUN, measured, read_long, select

LAYERS = (SUMMARY_LAYER, "block1", "embedding")
CELLS = [
    ("magnitude", 0.5, "none"),
    ("magnitude", 0.9, "none"),
    ("magnitude", 0.9, "finetune"),
    ("channels", 0.9, "kd"),
]
CLASSES = ("cat", "dog", "bird", "fish")
DENSE = ("dense", 0.0, "none")
WHOLE = [name for name in MEASURES if not MEASURES[name].needs_groups]  # those of the whole test set


def declare(monkeypatch):
    """A registry of similarities, and one of measures; what a test adds to them is gone after it."""
    monkeypatch.setattr(MEASURES, "_classes", dict(MEASURES._classes))
    similarities = Registry("similarity")

    @similarities.register("cka")
    @dataclass(frozen=True)
    class LinearCka:
        title, short, unit, better, headline, digits, itself = "Linear CKA", "CKA", "share", "higher", 4, 3, 1.0

    monkeypatch.setattr(catalogue, "SIMILARITIES", similarities)
    return SimpleNamespace(bias=MEASURES, similarity=similarities)


@pytest.fixture
def registries(monkeypatch):
    return declare(monkeypatch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study with all that a report can have, made once: the arguments, and what was written."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        declare(monkeypatch)
        arguments = build(curves=CURVES)
        return arguments, written(tmp_path_factory.mktemp("report") / "a", arguments)


def predictions(seed, wrong, classes=CLASSES):
    generator = np.random.default_rng(seed)
    labels = np.arange(240) % len(classes)
    said = np.where(generator.random(240) < wrong, generator.integers(0, len(classes), 240), labels)
    logits = generator.normal(size=(240, len(classes)))
    logits[np.arange(240), said] += 5
    return Predictions.from_logits(labels, logits, classes=classes)


def audited(references, candidates):
    floor = bias.floor(references) if len(references) > 1 else None
    return bias.audit(references=references, candidates=candidates, floor=floor, resamples=100)


def build(seeds=3, cells=CELLS, classes=CLASSES, similarities=("cka",), study="tiny", latency=True, curves=()):
    """The arguments of ``write`` for a study of random predictions."""
    generator = np.random.default_rng(0)
    rows, histories, folders, audits = [], {}, {}, []
    dense = [predictions(seed, 0.25, classes) for seed in range(seeds)]

    def network(title, seed, itself):
        pruning, asked, recovery = title
        run = {"dataset": "noise", "network": "resnet8", "seed": seed, "pruning": pruning, "sparsity_asked": asked}
        run |= {"sparsity_reached": asked + 0.001 * seed * (asked > 0), "recovery": recovery}
        histories[*title, seed] = [{"epoch": float(e), "ce": 1 / e, "validation_accuracy": e / 5} for e in (1, 2, 3)]
        folders[*title, seed] = f"store/network/{len(folders):020x}"
        for name, value in (("parameters", 1000 * (1 - asked)), ("bytes", 4096), ("macs_ratio", 1 - asked / 2)):
            rows.append(measured("size", name, value, **run))
        for name, layer in itertools.product(similarities, LAYERS):
            rows.append(measured("similarity", name, 1.0 if itself else generator.uniform(0.3, 1), layer=layer, **run))
        if latency and (seed == 0 or itself):
            for name in ("latency_b1", "latency_b128"):
                ends = {} if itself else {"low": 0.8, "high": 0.95}
                rows.append(measured("latency", name, 1.0 if itself else 0.9, **ends, **run))
        return run

    for seed in range(seeds):
        run = network(DENSE, seed, itself=True)
        for name, value in bias.alone(dense[seed]).items():
            rows.append(run | measured("bias", name, value, unit=MEASURES[name].unit, better=MEASURES[name].better))
    for place, title in enumerate(cells):
        candidates = [predictions(100 + 10 * place + seed, 0.3 + 0.04 * place, classes) for seed in range(seeds)]
        audit = audited(dense, candidates)
        audits.append((title, audit.to_json()))
        runs = {seed: network(title, seed, itself=False) for seed in range(seeds)}
        runs[None] = runs[0] | {"seed": None, "sparsity_reached": None}
        rows += [runs[row.get("seed")] | row for row in audit.long_rows(range(seeds))]
    run = {column: rows[0][column] for column in RUN} | {"seed": None}
    if seeds > 1:
        rows += [run | row for row in bias.floor(dense).long_rows(range(seeds))]
    for mine, other in itertools.permutations(range(seeds), 2):
        for name, layer in itertools.product(similarities, LAYERS):
            pair = {"layer": layer, "seed": mine, "reference_seed": other}
            rows.append(run | measured("floor", name, 0.7 + 0.1 * mine + 0.01 * other, **pair))
    correlation = [
        {"similarity": name, "layer": layer, "measure": measure, "statistic": "pearson", "value": -0.5, "low": -0.7}
        | {"high": float("nan") if layer == "embedding" else -0.25, "p": 0.01, "n": 12, "left_out": 0}
        for name, layer, measure in itertools.product(similarities, LAYERS, audits[0][1]["measures"])
    ]
    return {
        "study": study,
        "rows": rows,
        "histories": histories,
        "audits": audits,
        "correlation": correlation,
        "curves": curves,
        "configuration": f"study: {study}\n",
        "counted": {"weights of convolutions": [title[0] for title in cells]},
        "folders": folders,
    }


def written(folder, arguments):
    folder.mkdir()
    report.write(folder, **arguments)
    return SimpleNamespace(
        folder=folder,
        page=(folder / "index.html").read_text(),
        summary=json.loads((folder / "summary.json").read_text()),
        runs=table(folder / "runs.csv"),
        rows=read_long(folder / "rows.csv"),
    )


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def text_of(page):
    """The tables of a page: rows of cells as a reader sees them."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", page, re.DOTALL)
    return [[html.unescape(cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL)] for row in rows]


def printed(summary):
    from rich.console import Console

    console = Console(width=250)
    with console.capture() as capture:
        console.print(report.terminal_table(summary))
    return capture.get()


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


CURVES = [
    ("magnitude", 0.9, [
        Curve(title, taught, (0, 1), (1, 2), np.array([[0.5, 0.7], [0.55, 0.72]]) + 0.02 * taught,
              dict.fromkeys(COSTS, np.array([[1.0, 2.0], [1.0, 2.0]])))
        for title, taught in (("finetune", False), ("kd", True))
    ])
]  # fmt: skip


# ---------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    "value,text",
    [
        *((0, "0"), (-0.0, "0"), (1, "1"), (0.95871, "0.959"), (33.29, "33.3"), (-4.5678, "-4.57")),
        *((99.96, "100"), (3264.49, "3,264"), (999_999.4, "999,999"), (999_999.6, "1.0e6"), (1.25e12, "1.2e12")),
        *((-2.5e7, "-2.5e7"), (1.2e-5, "1.2e-05"), (0.0001, "0.0001"), (None, "–"), (float("nan"), "–")),
        (float("inf"), "–"),
    ],
)
def test_one_format_of_numbers(value, text):
    assert number(value) == text


def test_fixed_digits_and_fewer():
    assert number(0.95, decimals=4) == "0.9500" and number(-0.00001, decimals=2) == "0.00"
    assert number(12345.678, decimals=1) == "12,345.7" and number(0.01234, 2) == "0.012" and number(None, 2) == "–"


@pytest.mark.slow
def test_wide_table_holds_the_long_one(finished):
    arguments, found = finished
    columns = list(found.runs[0])
    assert columns[:17] == [
        *("dataset", "model", "seed", "pruning", "sparsity_asked", "sparsity_reached", "recovery"),
        *("accuracy", "cev", "sde", "cka", "parameters", "bytes", "macs_ratio", "latency_b1", "latency_b128", "folder"),
    ]
    per_network = {name for name in WHOLE if not MEASURES[name].over_trials}
    assert set(columns[17:]) == per_network - {"accuracy", "cev", "sde"}
    assert [(run["pruning"], run["sparsity_asked"], run["recovery"], run["seed"]) for run in found.runs] == [
        (pruning, str(asked), recovery, str(seed)) for pruning, asked, recovery in (DENSE, *CELLS) for seed in range(3)
    ]
    cells = 0
    for run in found.runs:
        title = run["pruning"], float(run["sparsity_asked"]), run["recovery"]
        assert run["folder"] == arguments["folders"][*title, int(run["seed"])]
        for name in (*per_network, "cka", "parameters", "bytes", "macs_ratio", "latency_b1", "latency_b128"):
            (value,) = [
                row["value"]
                for row in arguments["rows"]
                if (row["pruning"], row["sparsity_asked"], row["recovery"], row["seed"]) == (*title, int(run["seed"]))
                and (row["measure"], row["kind"] != "floor") == (name, True)
                and row.get("layer") in (None, SUMMARY_LAYER)
            ] or [None]
            assert run[name] == "" if value is None else float(run[name]) == value
            cells += value is not None
    assert cells > 200 and found.runs[0]["bytes"] == "4096"
    given, added = found.rows[: len(arguments["rows"])], found.rows[len(arguments["rows"]) :]
    assert [row["value"] for row in given] == [row["value"] for row in arguments["rows"]]
    for row in added:  # the yardsticks
        title = row["pruning"], row["sparsity_asked"], row["recovery"]
        record = dict(arguments["audits"])[title]["measures"][row["measure"]]["over_floor"]
        assert [row[key] for key in ("value", "low", "high")] == [record[key] for key in ("value", "low", "high")]
        assert row["kind"] == "over_floor" and row["seed"] is None
    assert {row["measure"] for row in added} == {name for name in per_network if MEASURES[name].compares}


def test_main_table_and_summary(finished):
    arguments, found = finished
    header, *body = found.summary["table"]["header"], *found.summary["table"]["rows"]
    assert header == [
        *("pruning", "sparsity", "recovery", "accuracy", "CEV", "CEV over floor", "CEV over control"),
        *("CEV without noise (95 %)", "SDE", "SDE over floor", "SDE over control", "SDE without noise (95 %)", "CKA"),
        *("MACs", "latency b1", "latency b128"),
    ]
    assert len(body) == 1 + len(CELLS) + 1 and body[-1][0] == "floor (dense pairs)"
    assert text_of(found.page)[: len(body) + 1] == [header, *body]
    for cells, line, (title, audit) in zip(body[1:], found.summary["lines"][1:], arguments["audits"], strict=False):
        shown = dict(zip(header, cells, strict=True))
        assert (shown["pruning"], shown["recovery"]) == (title[0], title[2])
        cev = np.array([trial["cev"] for trial in audit["trials"]])
        right = np.array([trial["accuracy"] for trial in audit["trials"]])
        assert shown["accuracy"] == f"{right.mean():.4f} ± {right.std(ddof=1):.4f}"
        assert shown["CEV"] == f"{number(cev.mean())} ± {number(cev.std(ddof=1))}"
        assert line["cev"] == pytest.approx(cev.mean()) and line["cev_spread"] == pytest.approx(cev.std(ddof=1))
        beside = audit["measures"]["cev"]["over_floor"]
        assert line["over_floor"]["cev"] == beside and line["over_control"] == {}
        assert shown["CEV over floor"] == f"{number(beside['value'])} {words.MARKS[beside['verdict']]}"
        assert shown["CEV over control"] == "" and line["carried_by"]["cev"] == audit["measures"]["cev"]["carried_by"]
        assert line["cev_interval"] == audit["cev_interval"] and line["classes_used"] == audit["classes_used"]
        assert line["cev_corrected"] == audit["measures"]["cev_corrected"]["value"]
        low, high = audit["cev_interval"]
        assert shown["CEV without noise (95 %)"].endswith(f"({number(low)} to {number(high)})")
        assert shown["MACs"] == f"{1 - title[1] / 2:.2f}" and shown["latency b1"] == "0.90"
    assert found.summary["lines"][0]["cev"] is found.summary["lines"][0]["cka"] is None
    floor = arguments["audits"][0][1]["floor"]["sde"]
    assert found.summary["floor"]["sde"].pop("carried_by").keys() == set(CLASSES)
    assert found.summary["floor"]["sde"] == floor
    like = [0.7 + 0.1 * mine + 0.01 * other for mine, other in itertools.permutations(range(3), 2)]
    assert found.summary["floor"]["cka"] == pytest.approx(
        {"mean": np.mean(like), "spread": np.std(like, ddof=1), "pairs": 6}
    )
    assert {"study", "dataset", "classes", "examples", "floor", "lines", "comparisons", "notes", "sentences"} <= set(
        found.summary
    )
    seen = printed(found.summary)
    assert "tiny: resnet8 on noise, 3 seeds, mean ± standard deviation over seeds" in seen and "without" not in seen
    assert "control" not in seen
    assert all(cells[4] in seen for cells in body) and "A mask saves no time" in seen


def test_files_hold_the_audits(finished):
    arguments, found = finished
    rows = {
        (r["pruning"], r["sparsity_asked"], r["recovery"], r["measure"]): r
        for r in table(found.folder / "measures.csv")
    }
    assert len(rows) == len(CELLS) * len(WHOLE)
    for (pruning, asked, recovery), audit in arguments["audits"]:
        for name, value in audit["measures"].items():
            row = rows[pruning, str(asked), recovery, name]
            expected = [value["value"], value["published"], (value["floor"] or {"mean": None})["mean"]]
            assert [row["value"], row["published"], row["floor_mean"]] == [
                "" if each is None else str(each) for each in expected
            ]
            beside = value["over_floor"] or dict.fromkeys(("value", "verdict"), "")
            assert [row["over_floor"], row["over_floor_verdict"]] == [str(beside["value"]), beside["verdict"]]
    classes = table(found.folder / "per_class.csv")
    assert [row["fnr"] for row in classes] == [
        str(r["fnr"]) for _, audit in arguments["audits"] for r in audit["per_class"]
    ]
    correlations = table(found.folder / "correlation.csv")
    assert len(correlations) == len(arguments["correlation"]) and correlations[-1]["high"] == ""
    assert (found.folder / "config.yaml").read_text() == "study: tiny\n"
    for name in ("bias", "classes", "similarity"):
        with Image.open(found.folder / f"{name}.png") as image:
            assert min(image.size) > 200 and f'src="{name}.png"' in found.page
    assert "http" not in found.page.replace("http-equiv", "")


@pytest.mark.slow
def test_correlations_are_shown_also_as_text_of_a_file(finished, registries, tmp_path):
    arguments, found = finished
    lines = [row for row in text_of(found.page) if row[0].startswith("CKA, ") and len(row) == 6]
    assert len(lines) == len(arguments["correlation"])
    assert lines[0] == ["CKA, " + SUMMARY_LAYER, "CEV", "pearson", "-0.50", "-0.70 to -0.25", "12"]
    first = {line[1] for line in lines[:3]}
    assert first == {"accuracy", "CEV", "SDE"} and {line[4] for line in lines if "embedding" in line[0]} == {"–"}
    text = [
        {key: "" if value is None else str(value) for key, value in row.items()} for row in arguments["correlation"]
    ]
    again = written(tmp_path / "a", arguments | {"correlation": text})
    assert again.page == found.page
    assert (again.folder / "correlation.csv").read_bytes() == (found.folder / "correlation.csv").read_bytes()


def test_every_measure_of_every_cell_is_on_the_page(finished):
    arguments, found = finished
    cells = dict(re.findall(r"<details><summary>([^<]*)</summary>\s*<div(.*?)</details>", found.page, re.DOTALL))
    for title, audit in arguments["audits"]:
        name = f"{title[0]} {title[1]:g} " + ("without recovery" if title[2] == "none" else f"+ {title[2]}")
        rows = {row[0]: row[1:] for row in text_of(cells[name])}
        for measure, value in audit["measures"].items():
            shown = rows[MEASURES[measure].title]
            decimals = 4 if measure == "accuracy" else None
            assert shown[0].split(" ± ")[0] == number(value["value"], decimals=decimals)
            ends = value["interval"]
            assert shown[1] == (" to ".join(number(end) for end in ends) if ends else "withheld")
            assert shown[2:4] == [value["unit"], value["better"]]
            if MEASURES[measure].over_trials:
                assert shown[4:] == ["–", "–", "–"]
                continue
            assert shown[4].startswith(number(value["floor"]["mean"]) + " (")
            beside = value["over_floor"]
            if beside is None:
                assert shown[5:] == ["–", "–"] and not MEASURES[measure].compares
            else:
                ends = "" if beside["low"] is None else f" ({number(beside['low'])} to {number(beside['high'])})"
                told = f"{number(beside['value'])}{ends} {words.verdict_text(beside)}".rstrip()
                assert shown[5:] == [told, "–"]
        assert {f"Linear CKA, {layer}" for layer in LAYERS} <= set(rows)
        assert rows["Latency over the dense network's, batch 1"][:2] == ["0.90", "0.8 to 0.95"]


def test_curves_are_drawn_and_listed(finished):
    _, found = finished
    assert (found.folder / "efficiency.png").stat().st_size > 1000 and "Does it pay?" in found.page
    assert len(table(found.folder / "efficiency.csv")) == 8
    assert len(table(found.folder / "speed_up.csv")) == len(COSTS)
    assert any("has this speed-up over finetune" in sentence for sentence in found.summary["sentences"])


# ---------------------------------------------------------------------------------------------- new measures


@pytest.mark.slow
def test_a_new_measure_stands_everywhere(registries, tmp_path):
    @registries.bias.register("lost_share")
    @dataclass(frozen=True)
    class LostShare(Measure):
        title, short, source, equation = "Share of right answers lost", "lost", "here", "1/N Σ [right, then wrong]"
        unit, better, headline, comparison = "share", "lower", 9, "ratio"

        def counts(self, pair):
            labels = pair.labels
            return {"lost": (pair.reference.predictions == labels) & (pair.candidate.predictions != labels)}

        def value(self, sums):
            return (sums["lost"] / sums["examples"])[..., 0]

    @registries.similarity.register("overlap")
    @dataclass(frozen=True)
    class Overlap:
        title, short, unit, better, headline, itself = "Overlap of neighbours", "overlap", "share", "higher", 10, 1.0

    @registries.bias.register("quiet")
    @dataclass(frozen=True)
    class Quiet(LostShare):
        title, headline = "Nobody's headline", 0

    arguments = build(similarities=("cka", "overlap"))
    found = written(tmp_path / "a", arguments)
    lost = {row["seed"]: row["value"] for row in select(arguments["rows"], measure="lost_share", recovery="finetune")}
    for name in ("lost_share", "overlap", "quiet"):
        assert len(select(found.rows, measure=name, recovery="finetune")) >= 3
        assert name in found.runs[0]
    assert "lost" in found.summary["table"]["header"] and "overlap" in found.summary["table"]["header"]
    assert "lost over floor" in found.summary["table"]["header"] and "lost" in printed(found.summary)
    for title in ("Share of right answers lost", f"Overlap of neighbours, {SUMMARY_LAYER}", "Nobody&#39;s headline"):
        assert title in found.page
    events = scalars(tmp_path / "a" / "tensorboard" / "magnitude 0.9" / "finetune" / "seed2")
    assert events["result/lost_share"] == [(0, pytest.approx(lost[2]))]
    assert {"result/overlap", "result/quiet", "result/cka", "result/cev"} <= set(events)
    assert any(sentence.startswith("lost: dense networks") for sentence in found.summary["sentences"])
    assert {row["measure"] for row in table(tmp_path / "a" / "measures.csv")} >= {"lost_share", "quiet"}
    assert ["overlap, " + SUMMARY_LAYER, "lost"] in [row[:2] for row in text_of(found.page)]


@pytest.mark.slow
def test_a_measure_of_another_process_is_shown_by_its_rows(registries, tmp_path):
    arguments = build(seeds=2)
    for row in [row for row in arguments["rows"] if row["kind"] == "size" and row["measure"] == "bytes"]:
        arguments["rows"].append(row | {"kind": "bias", "measure": "foreign", "unit": "quarks", "better": "near 1"})
        arguments["rows"].append(row | {"measure": "energy", "value": 3.25, "unit": "joule"})
    found = written(tmp_path / "a", arguments)
    assert found.runs[3]["foreign"] == "4096.0" and found.runs[3]["energy"] == "3.25"
    assert ["foreign", "4,096 ± 0", "–", "quarks", "near 1", "–", "–", "–"] in text_of(found.page)
    assert scalars(tmp_path / "a" / "tensorboard" / "dense" / "none" / "seed0")["result/energy"] == [(0, 3.25)]


# ---------------------------------------------------------------------------------------------- names and gaps


@pytest.mark.slow
def test_hostile_names_stay_text(registries, tmp_path):
    bad = "<script>alert(1)</script>"
    cells = [
        ("magnitude", 0.9, bad),
        ("$\\frac{", 0.9, "../../$x$ [red]"),
        ("_low\n\t", 0.5, ".."),
        ("m", 0.5, "ü" * 300),
    ]
    classes = (bad, "$a$ & <b>", "_x", "ü" * 300)
    found = written(tmp_path / "a", build(cells=cells, classes=classes, study=bad))
    assert "<script" not in found.page and html.escape(bad) in found.page
    assert {path.name for path in tmp_path.iterdir()} == {"a"}
    files = sorted(path for path in (tmp_path / "a").rglob("*") if path.is_file())
    events = [path for path in files if path.name == "events.out.tfevents"]
    assert len(events) == 3 * 5 and all(path.is_relative_to(tmp_path / "a" / "tensorboard") for path in events)
    assert len({path.parts for path in events}) == 15
    assert "[red]" in printed(found.summary) and bad in printed(found.summary)
    assert plain("$x$") == r"\$x\$" and plain("_x") == " _x" and len(plain("u" * 99)) == 40


def test_an_audit_page_is_built_from_the_same_frame(registries):
    from pipeline import auditing

    classes = ("<script>alert(1)</script>", "<b>", "c", "d")
    result = audited([predictions(0, 0.3, classes)], [predictions(1, 0.4, classes)])
    page = auditing.page(result, "<script>alert(2)</script>")
    assert "<script>alert" not in page and page.count("<script>") == 1 and page.count('<circle class="c') == 4
    rows = [row for row in text_of(page) if row and row[0] in classes]
    assert len(rows) == 4
    for row, known in zip(rows, sorted(result.per_class, key=lambda row: -row["excess_accuracy_gap"]), strict=True):
        assert row[0] == known["class"] and row[1] == str(known["support"])
        assert row[2:4] == [str(known["missed_reference"]), str(known["claimed_reference"])]
        assert row[4:7] == [number(known[key]) for key in ("fnr_reference", "fnr", "d_fnr")]


def test_a_headline_measure_stands_on_the_audit_page(registries):
    from pipeline import auditing

    @registries.bias.register("flipped")
    @dataclass(frozen=True)
    class Flipped(MEASURES["churn"]):
        title, short, headline = "Flipped answers", "flips", 9

    dense, pruned = predictions(0, 0.3), predictions(1, 0.4)
    groups = np.arange(240) % 2
    columns = {"group": Column(groups, ("n", "s"))}
    result = bias.audit(references=dense, candidates=pruned, groups=columns, resamples=100)
    page = auditing.page(result, "dense")
    cards = re.findall(r'class="card"><span>(.*?)</span><b>(.*?)</b><span>(.*?)</span>', page)
    assert [card[0] for card in cards] == ["Accuracy", "CEV", "SDE", "Flips", "Classes used"]
    before, after = (100 * np.mean(each.predictions == each.labels) for each in (dense, pruned))
    assert cards[0][1] == f"{before:.1f} → {after:.1f}\u00a0%"
    low, high = result.measures["cev"].interval.low, result.measures["cev"].interval.high
    assert cards[1][1:] == (
        number(result.cev),
        f"squared percent · without sampling noise {number(low)} to {number(high)}",
    )
    assert cards[3][1] == number(np.mean(dense.predictions != pruned.predictions))
    (head,) = [row for row in text_of(page) if row and row[0] == "group"]
    assert head[1:4] == ["support", "accuracy", "accuracy change"] and "flips" in head
    (south,) = [row for row in text_of(page) if row and row[0] == "s"]
    differ = dense.predictions != pruned.predictions
    assert south[head.index("flips")] == number(differ[groups == 1].mean())


def test_a_study_without_pruning(registries, tmp_path):
    found = written(tmp_path / "a", build(cells=[("dense", 0.0, "finetune")], latency=False))
    assert [row[:3] for row in found.summary["table"]["rows"][:2]] == [
        ["dense", "0", "none"],
        ["dense", "0", "finetune"],
    ]
    assert (tmp_path / "a" / "bias.png").exists() and "A mask saves" not in found.page


def test_one_seed_has_no_floor(registries, tmp_path):
    found = written(tmp_path / "a", build(seeds=1))
    assert found.summary["sentences"][0].startswith("With one seed there is no floor: equally good dense")
    assert "no CEV or SDE here can be held against a change of seed" in found.page and "at least three" in found.page
    assert found.summary["floor"] == {"cev": None, "sde": None, "cka": None}
    assert found.summary["table"]["rows"][-1][0] != "floor (dense pairs)" and "±" not in printed(found.summary)
    assert all(line["cev_spread"] is None and line["over_floor"] == {} for line in found.summary["lines"])


def test_two_seeds_are_no_floor(registries, tmp_path):
    found = written(tmp_path / "a", build(seeds=2))
    assert "With two seeds there is no floor" in found.page and "this is the floor" not in found.page
    records = [line["over_floor"]["cev"] for line in found.summary["lines"][1:]]
    assert {record["verdict"] for record in records} == {""} and all("no floor" in record["note"] for record in records)


@pytest.mark.slow
@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, None])
def test_a_measure_that_is_the_same_everywhere(registries, tmp_path, value):
    arguments = build(latency=False, similarities=())
    for row in arguments["rows"]:
        if row["measure"] in ("cev", "sde"):
            row |= {"value": value, "low": value, "high": value}
    arguments["correlation"] = []
    found = written(tmp_path / "a", arguments)
    assert (tmp_path / "a" / "bias.png").stat().st_size > 1000 and not (tmp_path / "a" / "similarity.png").exists()
    assert "similarity.png" not in found.page and "efficiency" not in found.page
    assert "latency" not in found.summary["table"]["header"]
    if value is None:
        assert any(sentence.startswith("CEV: no pair of dense networks") for sentence in found.summary["sentences"])


@pytest.mark.slow
def test_the_same_study_gives_the_same_bytes(finished, registries, tmp_path):
    contents = []
    for folder in (finished[1].folder, written(tmp_path / "b", build(curves=CURVES)).folder):
        contents.append({str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    assert contents[0] == contents[1] and len(contents[0]) == 14 + 3 * (1 + len(CELLS))


def test_events_are_those_of_the_input(finished):
    events = scalars(finished[1].folder / "tensorboard" / "dense" / "none" / "seed1")
    assert events["training/ce"] == [(e, pytest.approx(1 / e)) for e in (1, 2, 3)] and "training/epoch" not in events
    assert events["result/cka"] == [(0, 1.0)] and events["result/sparsity_reached"] == [(0, 0.0)]
    assert "result/cev" not in events


def test_printing_a_summary_loads_nothing_heavy(finished):
    summary = str(finished[1].folder / "summary.json")
    code = (
        "import json, sys\n"
        "from rich.console import Console\n"
        "from pipeline.report.terminal import terminal_table\n"
        f"Console(width=200).print(terminal_table(json.loads(open({summary!r}).read())))\n"
        "print([m for m in ('torch', 'numpy', 'scipy', 'matplotlib', 'jinja2', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert done.stdout.splitlines()[-1] == "[]" and "floor (dense pairs)" in done.stdout


# ---------------------------------------------------------------------------------------------- words


def record(verdict, value=2.5, low=1.2, high=5.0, **more):
    """A yardstick as a summary holds it."""
    known = {"kind": "ratio", "margin": 1.5, "value": value, "low": low, "high": high, "seeds": 3, "verdict": verdict}
    return known | {"no_worse": False, "detectable": 3.5, "seeds_needed": 7, "note": ""} | more


def summary_of(cells, floor, control=None):
    """One headline measure m: its yardsticks by recovery, and its floor."""
    line = {"seeds": 3, "scarce": {}, "carried_by": {}, "over_floor": {}, "over_control": {}, "withheld": {}}
    lines = [line | {"pruning": "dense", "sparsity_asked": 0.0, "recovery": "none", "classes_used": None}]
    for name, beside in cells.items():
        lines.append(line | {"pruning": "magnitude", "sparsity_asked": 0.9, "recovery": name, "classes_used": 4})
        lines[-1] |= {"over_floor": {"m": beside}, "over_control": {"m": control} if control else {}}
    return {"floor": {"m": floor}, "lines": lines, "classes": 4, "comparisons": [], "scarce": {}, "minimum_errors": 5}


SHOWN = catalogue.Shown(
    *("bias", "m", "A measure", "M", "", "lower"), headline=1, compares=True, comparison="ratio", margin=1.5
)
FLOOR = {"mean": 2.0, "low": 1.0, "high": 3.0, "pairs": 6}


def test_each_headline_measure_gets_its_sentences():
    cells = {
        "high": record("above"),
        "low": record("below", 0.5, 0.3, 0.9),
        "same": record("equivalent", 1.01, 0.8, 1.3, no_worse=True),
        "wide": record("cannot tell", 1.1, 0.6, 1.4, no_worse=True, detectable=2.5),
        "far": record("cannot tell", 2.0, 0.9, 4.4, seeds_needed=None),
        "gone": record("", None, None, None, note="no candidate has a value"),
    }
    assert words.sentences(summary_of(cells, FLOOR, control=record("above")), [SHOWN]) == [
        "M: dense networks that differ only in their seed already show 2 against each other (1 to 3, 6 ordered pairs "
        "of 3 networks): this is the floor.",
        "M is above the floor: magnitude 0.9 + high, 2.5 times (1.2 to 5).",
        "M is below the floor: magnitude 0.9 + low, 0.5 times (0.3 to 0.9).",
        "M is equivalent to the floor (within a factor of 1.5): magnitude 0.9 + same, 1.01 times (0.8 to 1.3).",
        "Whether M differs from the floor cannot be told: magnitude 0.9 + wide, 1.1 times (0.6 to 1.4), no worse; "
        "magnitude 0.9 + far, 2 times (0.9 to 4.4). With their spread 3 seeds could have shown 2.5 to 3.5 times, and "
        "about 7 to more than 1,000 would settle half of such studies.",
        "M has no verdict beside the floor for magnitude 0.9 + gone: no candidate has a value.",
        "M is above the control (the same recovery without pruning): "
        + "; ".join(f"magnitude 0.9 + {name}, 2.5 times (1.2 to 5)" for name in cells)
        + ".",
        "How much 3 seeds can say: half of the intervals over the floor reach to either side a factor of more than "
        "1.73 for M (equivalent takes less than 1.5). What is not shown to differ is not shown to be equal.",
        "Each of these 11 verdicts is at 95 % for itself, not corrected for their number: without any effect about "
        "0.275 would be above and as many below by chance.",
    ]


def test_classes_that_carry_a_value_are_named():
    summary = summary_of({"kd": record("above")}, FLOOR | {"carried_by": {"cat": 0.84, "dog": 0.16}})
    summary["scarce"] = {"cat": 1}
    summary["lines"][1] |= {"scarce": {"cat": 1}, "carried_by": {"m": {"dog": 0.7, "cat": 0.2, "bird": 0.1}}}
    said = words.sentences(summary, [SHOWN])
    few = "in which some dense network makes 1 error of a kind"
    assert f"magnitude 0.9 + kd, 2.5 times (1.2 to 5), 70% by class 'dog', 20% by class 'cat', {few}." in said[1]
    assert any("fewer than 5 errors of a kind: 'cat' (1)." in sentence for sentence in said)
    assert "M rests by more than half on one class in the floor (84% by class 'cat') and magnitude 0.9 + kd" in said[-1]


def test_classes_left_out_are_said():
    summary = summary_of({"kd": record("above")}, None)
    summary["lines"][1]["classes_used"] = 2
    assert "down to 2 of 4 classes are used in every seed" in words.sentences(summary, [])[0]


def compared(values, claims=()):
    """Sentences on one place; ``values``: recovery -> CEV per seed."""
    rows = [
        measured("bias", name, value, pruning="magnitude", sparsity_asked=0.9, recovery=recovery, seed=seed)
        for recovery, cevs in values.items()
        for seed, cev in enumerate(cevs)
        for name, value in (("cev", cev), ("accuracy", 0.9 - cev / 1e5))
    ]
    explored = ["cev", "accuracy"] if claims else ["cev"]
    found = compare(rows, {"cev": "ratio"}, explored=explored, claims=claims)
    names = {"cev": "CEV", "accuracy": "accuracy"}
    return [*words.claimed(found, names), *words.compared(found, names)]


APART = {"finetune": [1000.0, 1100.0, 900.0, 1000.0], "kd": [100.0, 111.0, 89.0, 101.0]}
ALIKE = {"finetune": [1000.0, 300.0, 2000.0, 700.0], "kd": [900.0, 400.0, 1500.0, 900.0]}
THREE = {"finetune": [1000.0, 300.0, 2000.0], "kd": [900.0, 410.0, 1500.0], "at": [80.0, 29.0, 190.0]}
KD = Claim("cev", "kd", "finetune", Place("magnitude", 0.9))


def test_the_sentences_say_what_stands_and_what_chance_would_give():
    (said,) = compared(APART)
    assert said.startswith(
        "At magnitude 0.9, the CEV of 'kd' is 0.1 times that of 'finetune' (95 % interval over 4 seeds"
    )
    assert said.endswith("; p below 0.001).") and "corrected" not in said  # there was but one comparison
    *found, count, still = compared(THREE)
    assert len(found) == 2 and all("when corrected for 3 exploratory comparisons" in each for each in found)
    ratio = number(stats.gmean(np.divide(THREE["at"], THREE["finetune"])))
    assert found[0].startswith(f"At magnitude 0.9, the CEV of 'at' is {ratio} times that of 'finetune' (95 % interval")
    assert count == (
        "Exploratory: of 3 comparisons of two recoveries in CEV that nobody declared beforehand, corrected together "
        "(Holm), 2 stand. Without the correction 2 would pass, where chance alone gives about 0.15."
    )
    assert still.startswith("The seeds do not show a difference in the other 1 of them, nor that there is none: the")
    assert compared({"finetune": [1000.0], "kd": [100.0]}) == []


def test_where_nothing_is_found_it_is_said_what_stays_possible():
    (said,) = compared(ALIKE)
    differences = np.subtract(*(np.log(ALIKE[name]) for name in ("kd", "finetune")))
    ends = stats.ttest_1samp(differences, 0).confidence_interval()
    assert said == (
        "The seeds do not show a difference in the one comparison, nor that there is none: the widest 95 % interval of "
        f"each measure still allows {number(np.exp(ends.low))} to {number(np.exp(ends.high))} times (CEV of 'kd' over "
        "'finetune' at magnitude 0.9)."
    )


def test_declared_comparisons_are_told_apart_with_interval_and_verdict():
    said = compared(APART, [KD])
    assert said[0].startswith("Declared: at magnitude 0.9, the CEV of 'kd' is lower than that of 'finetune': 0.1 times")
    assert "(95 % interval over 4 seeds" in said[0] and "corrected" not in said[0]
    assert said[1].startswith("At magnitude 0.9, the accuracy of 'kd' is that of 'finetune' plus 0.009 (95 %")
    said = compared(ALIKE, [KD])
    test = stats.ttest_rel(np.log(ALIKE["kd"]), np.log(ALIKE["finetune"]))
    ratio = number(stats.gmean(np.divide(ALIKE["kd"], ALIKE["finetune"])))
    assert said[0].startswith(
        "Declared: at magnitude 0.9, 4 seeds cannot tell whether the CEV of 'kd' is higher or lower than that of "
        f"'finetune': {ratio} times (95 % interval over 4 seeds"
    )
    assert "still allows -0.00" in said[1] and "(accuracy of 'kd' less that of 'finetune' at magnitude 0.9)" in said[1]
    both = compared(ALIKE, [KD, Claim("worst_recall", "kd", "finetune", Place("magnitude", 0.9))])
    assert both[1] == (
        "Declared: at magnitude 0.9, cannot tell whether the worst_recall of 'kd' is higher or lower than that of "
        "'finetune': fewer than two seeds have both values."
    )
    assert f"; p {test.pvalue:.2g})" in both[0], "what cannot be tested is no test to correct for"
    same = {"finetune": [10.0, 20.0], "kd": [20.0, 40.0], "at": [0.0, 1.0]}
    assert compared(same, [KD])[0].endswith("all seeds differ by the same amount.")
    zero = Claim("cev", "at", "finetune", Place("magnitude", 0.9))
    assert compared(same, [zero])[0].endswith("a ratio needs values above 0.")


def test_declared_comparisons_lead_the_page(finished, registries, tmp_path):
    arguments, found = finished
    assert [row["family"] for row in found.summary["comparisons"]] == ["exploratory"] * len(
        found.summary["comparisons"]
    )
    claim = Claim("worst_recall", "finetune", "none", Place("magnitude", 0.9))
    led = written(tmp_path / "a", arguments | {"claims": (claim,)})
    assert led.summary["sentences"][0].startswith("Declared: at magnitude 0.9, ")
    assert led.summary["sentences"][1:] == found.summary["sentences"]
    (row,) = [row for row in led.summary["comparisons"] if row["family"] == "declared"]
    recalls = {
        name: [
            each["value"]
            for each in select(arguments["rows"], kind="bias", measure="worst_recall", recovery=name)
            if (each["pruning"], each["sparsity_asked"]) == ("magnitude", 0.9) and each["seed"] is not None
        ]
        for name in ("finetune", "none")
    }
    assert row["p"] == pytest.approx(stats.ttest_rel(recalls["finetune"], recalls["none"]).pvalue)
    assert '<div class="said">\n<p>Declared: at magnitude 0.9' in led.page
