"""Ten lines and no other edit: a measure of bias and a similarity that this file registers show up everywhere."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipeline import bias, similarities
from pipeline.__main__ import main
from pipeline.table import read_long, select

pytestmark = pytest.mark.slow

SMOKE = Path(__file__).parents[1] / "configs" / "smoke.yaml"


def register():
    @bias.MEASURES.register("confident_disagreement")
    @dataclass(frozen=True)
    class ConfidentDisagreement(bias.Measure):
        title, source, equation = "Disagreement on the first class", "this test", "share"
        unit, better, needs_pairing, headline = "share", "lower", True, 9

        def counts(self, pair):
            return {"first": (pair.reference.predictions == 0) != (pair.candidate.predictions == 0)}

        def value(self, sums):
            return (sums["first"] / sums["examples"])[..., 0]

    @similarities.SIMILARITIES.register("mean_agreement")
    @dataclass(frozen=True)
    class MeanAgreement(similarities.SimilarityMeasure):
        title, source, unit = "Agreement of mean activations", "this test", "correlation"

        def between(self, pairs):
            ((x, y),) = [(x.flatten(1).mean(0), y.flatten(1).mean(0)) for x, y in pairs]
            return float(np.corrcoef(x.numpy(), y.numpy())[0, 1])


MEASURE, SIMILARITY = "confident_disagreement", "mean_agreement"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The folder of a published report of a study that was run with both."""
    results = tmp_path_factory.mktemp("results")
    register()
    try:
        arguments = ["run", "--config", str(SMOKE), "--results", str(results), "workers=1", "recoveries=[none,kd]"]
        assert main([*arguments, "train.epochs=2", "resamples=100", "data.examples=240"]) == 0
    finally:
        del bias.MEASURES._classes[MEASURE], similarities.SIMILARITIES._classes[SIMILARITY]
    return results / "reports" / "smoke"


def stored_predictions(report, label):
    for path in (report.parents[1] / "store" / "predict").glob("*/manifest.json"):
        if json.loads(path.read_text())["label"] == label:
            return np.load(path.with_name("predictions.npz"))["logits"].argmax(1)
    raise LookupError(label)


def test_in_the_long_table_with_the_numbers_of_the_stored_predictions(report):
    rows = read_long(report / "rows.csv")
    of_kd = select(rows, kind="bias", measure=MEASURE, pruning="magnitude", recovery="kd")
    assert sorted(row["seed"] for row in of_kd if row["seed"] is not None) == [0, 1]
    for row in (row for row in of_kd if row["seed"] is not None):
        dense, kd = (
            stored_predictions(report, f"predict · {name} · seed {row['seed']}")
            for name in ("train resnet8", "recover kd · magnitude 0.8")
        )
        assert row["value"] == ((dense == 0) != (kd == 0)).mean() and row["unit"] == "share"
    (whole,) = [row for row in of_kd if row["seed"] is None]
    assert whole["low"] <= whole["value"] <= whole["high"]
    assert len(select(rows, kind="floor", measure=MEASURE)) == 3, "two ordered pairs and their mean"
    layers = [row["layer"] for row in select(rows, kind="similarity", measure=SIMILARITY, recovery="kd", seed=0)]
    assert set(layers) == {similarities.SUMMARY_LAYER, "block1", "block2", "block3", "embedding"}


def test_in_the_wide_tables_and_on_the_page(report):
    with (report / "runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert all(run[MEASURE] != "" for run in runs if run["recovery"] == "kd")
    assert all(run[SIMILARITY] != "" for run in runs)
    page = (report / "index.html").read_text()
    assert "Disagreement on the first class" in page and "Agreement of mean activations" in page
    assert MEASURE in json.loads((report / "summary.json").read_text())["floor"], "a headline measure has its floor"
    with (report / "measures.csv").open() as file:
        assert {row["measure"] for row in csv.DictReader(file)} > {MEASURE, "cev"}


def test_in_the_dashboard(report):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(report.parents[1] / "tensorboard" / "smoke" / "magnitude 0.8" / "kd" / "seed1"))
    tags = events.Reload().Tags()["scalars"]
    assert {f"result/{MEASURE}", f"result/{SIMILARITY}", "result/cev", "training/loss"} <= set(tags)


def test_in_the_correlation(report):
    with (report / "correlation.csv").open() as file:
        rows = list(csv.DictReader(file))
    pairs = {(row["similarity"], row["measure"]) for row in rows}
    assert {(SIMILARITY, "cev"), ("cka", MEASURE), (SIMILARITY, MEASURE)} <= pairs


def test_without_them_the_same_study_is_another(report, capsys):
    """What is measured is in the key: a result of more measures is not taken for one of fewer."""
    arguments = ["plan", "--json", "--config", str(SMOKE), "--results", str(report.parents[1]), "workers=1"]
    changed = ["recoveries=[none,kd]", "train.epochs=2", "resamples=100", "data.examples=240"]
    assert main([*arguments, *changed]) == 0
    states = {(line["stage"], line["state"]) for line in json.loads(capsys.readouterr().out)}
    assert ("score", "todo") in states and ("similarity", "todo") in states and ("predict", "done") in states
