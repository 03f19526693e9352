"""Ten lines each and no other edit: what this file registers is named in one YAML file and shows up where it should."""

import csv
import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import bias, models
from pipeline.__main__ import main
from pipeline.data import DATASETS, Dataset, Source, Split
from pipeline.distillation import LOSSES, Loss
from pipeline.pruning import METHODS
from pipeline.pruning.masks import Unstructured
from pipeline.recovery import STARTS, UPDATES, Start, Update
from pipeline.similarities import SIMILARITIES, SUMMARY_LAYER, SimilarityMeasure
from pipeline.stages import load_network
from pipeline.table import read_long, select

YAML = """
study: own
seeds: 2
data: {name: own_halves, validation: 0.2}
network: own_layers
train: {epochs: 2, batch_size: 32, augmentation: {crop_padding: 0, flip: false}}
recover: {epochs: 1, batch_size: 32, augmentation: {crop_padding: 0, flip: false}}
sparsities: [0.5]
prunings: [own_largest, magnitude]
recoveries:
  - none
  - {losses: 0.5 ce + own_distance, start: own_start, update: own_biases, title: own}
resamples: 100
smoothing: 0.5
similarity_examples: 30
workers: 1
"""


def register():
    """Eight kinds of things, ten lines each, and no other edit."""

    @DATASETS.register("own_halves")
    @dataclass(frozen=True)
    class Halves(Dataset):
        examples: int = 240
        test_share: float = 0.3

        def load(self, root):
            labels = np.arange(self.examples) % 2
            images = np.random.default_rng(0).integers(0, 200, (self.examples, 12, 12, 1), dtype=np.uint8)
            for image, label in zip(images, labels, strict=True):
                image[6 * label : 6 * label + 6] += 5
            return Source(Split(images, labels, np.arange(self.examples), ("above", "below")), None, "halves")

    @models.NETWORKS.register("own_layers")
    @dataclass(frozen=True)
    class Layers(models.Network):
        width: int = 8

        def build(self, input_shape, classes):
            first, second = (
                nn.Sequential(nn.Conv2d(inputs, self.width, 3, stride, 1), nn.BatchNorm2d(self.width), nn.ReLU())
                for inputs, stride in ((input_shape[0], 1), (self.width, 2))
            )
            return nn.Sequential(first, second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(self.width, classes))

    @METHODS.register("own_largest")
    @dataclass(frozen=True)
    class Largest(Unstructured):
        def scores(self, network, weights, examples):
            return {name: -weight.abs() for name, weight in weights.items()}

    @LOSSES.register("own_distance")
    @dataclass(frozen=True)
    class Distance(Loss):
        def value(self, student, teacher, batch, adapters):
            return nn.functional.mse_loss(student.logits, teacher.logits)

    @STARTS.register("own_start")
    @dataclass(frozen=True)
    class NewClassifier(Start):
        def begin(self, network, origin):
            network[-1].reset_parameters()
            return network

    @UPDATES.register("own_biases")
    @dataclass(frozen=True)
    class Biases(Update):
        def moves(self, network, info):
            return [name for name, _ in network.named_parameters() if name.endswith("bias")]

    @bias.MEASURES.register("own_disagreement")
    @dataclass(frozen=True)
    class Disagreement(bias.Measure):
        title, source, equation = "Disagreement on the first class", "this test", "share"
        unit, better, needs_pairing, headline = "share", "lower", True, 9

        def counts(self, pair):
            return {"first": (pair.reference.predictions == 0) != (pair.candidate.predictions == 0)}

        def value(self, sums):
            return (sums["first"] / sums["examples"])[..., 0]

    @SIMILARITIES.register("own_agreement")
    @dataclass(frozen=True)
    class MeanAgreement(SimilarityMeasure):
        title, source, unit = "Agreement of mean activations", "this test", "correlation"

        def between(self, pairs):
            ((x, y),) = [(x.flatten(1).mean(0), y.flatten(1).mean(0)) for x, y in pairs]
            return float(np.corrcoef(x.numpy(), y.numpy())[0, 1])


REGISTRIES = (DATASETS, models.NETWORKS, METHODS, LOSSES, STARTS, UPDATES, bias.MEASURES, SIMILARITIES)
MEASURE, SIMILARITY = "own_disagreement", "own_agreement"


@pytest.fixture(scope="module")
def own():
    """All eight are registered while the tests of this file run."""
    before = [dict(registry._classes) for registry in REGISTRIES]
    register()
    yield
    for registry, classes in zip(REGISTRIES, before, strict=True):
        registry._classes.clear()
        registry._classes.update(classes)


@pytest.fixture(scope="module")
def report(own, tmp_path_factory):
    """The folder of the published report of a study that names them in one YAML file."""
    results = tmp_path_factory.mktemp("results")
    config = results / "own.yaml"
    config.write_text(YAML)
    assert main(["run", "--config", str(config), "--results", str(results)]) == 0
    return results / "reports" / "own"


def stored_predictions(report, label):
    for path in (report.parents[1] / "store" / "predict").glob("*/manifest.json"):
        if json.loads(path.read_text())["label"] == label:
            return np.load(path.with_name("predictions.npz"))["logits"].argmax(1)
    raise LookupError(label)


def test_in_the_long_table_with_the_numbers_of_the_stored_predictions(report):
    rows = read_long(report / "rows.csv")
    of_own = select(rows, kind="bias", measure=MEASURE, pruning="own_largest", recovery="own")
    assert sorted(row["seed"] for row in of_own if row["seed"] is not None) == [0, 1]
    for row in (row for row in of_own if row["seed"] is not None):
        dense, own = (
            stored_predictions(report, f"predict · {name} · seed {row['seed']}")
            for name in ("train own_layers", "recover own · own_largest 0.5")
        )
        assert row["value"] == ((dense == 0) != (own == 0)).mean() and row["unit"] == "share"
    (whole,) = [row for row in of_own if row["seed"] is None]
    assert whole["low"] <= whole["value"] <= whole["high"]
    assert len(select(rows, kind="floor", measure=MEASURE)) == 3, "two ordered pairs and their mean"
    layers = [row["layer"] for row in select(rows, kind="similarity", measure=SIMILARITY, recovery="own", seed=0)]
    assert set(layers) == {SUMMARY_LAYER, "block1", "block2", "embedding"}


def test_in_the_wide_tables_and_on_the_page(report):
    with (report / "runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert all(run[MEASURE] != "" for run in runs if run["recovery"] == "own")
    assert all(run[SIMILARITY] != "" for run in runs)
    page = (report / "index.html").read_text()
    assert "Disagreement on the first class" in page and "Agreement of mean activations" in page
    assert MEASURE in json.loads((report / "summary.json").read_text())["floor"], "a headline measure has its floor"
    with (report / "measures.csv").open() as file:
        assert {row["measure"] for row in csv.DictReader(file)} > {MEASURE, "cev"}


def test_in_the_dashboard(report):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(report.parents[1] / "tensorboard" / "own" / "own_largest 0.5" / "own" / "seed1"))
    tags = events.Reload().Tags()["scalars"]
    assert {f"result/{MEASURE}", f"result/{SIMILARITY}", "result/cev", "training/own_distance"} <= set(tags)


def test_in_the_correlation(report):
    with (report / "correlation.csv").open() as file:
        rows = list(csv.DictReader(file))
    pairs = {(row["similarity"], row["measure"]) for row in rows}
    assert {(SIMILARITY, "cev"), ("cka", MEASURE), (SIMILARITY, MEASURE)} <= pairs


def networks(report, kind, title):
    """The stored networks of a stage whose label begins so, by seed."""
    found = {}
    for path in (report.parents[1] / "store" / kind).glob("*/manifest.json"):
        label = json.loads(path.read_text())["label"]
        if label.startswith(title):
            found[int(label.rpartition(" ")[2])] = load_network(path.parent).network.state_dict()
    return found


def test_dataset_network_and_criterion_did_what_they_say(report):
    rows = read_long(report / "rows.csv")
    assert {(row["dataset"], row["network"]) for row in rows} == {("own_halves", "own_layers")}
    dense, pruned = networks(report, "train", "train own_layers"), networks(report, "prune", "prune own_largest")
    for seed, weights in pruned.items():
        kept, before = weights["1.0.weight"].abs(), dense[seed]["1.0.weight"].abs()
        assert (kept > 0).float().mean() == pytest.approx(0.5, abs=0.01)
        assert before[kept > 0].max() <= before[kept == 0].min(), "the largest are gone"


def test_loss_start_and_update_did_what_they_say(report):
    pruned, recovered = (
        networks(report, "prune", "prune own_largest"),
        networks(report, "recover", "recover own · own_l"),
    )
    for seed, weights in recovered.items():
        assert torch.equal(weights["0.0.weight"], pruned[seed]["0.0.weight"]), "only biases move"
        assert not torch.equal(weights["0.0.bias"], pruned[seed]["0.0.bias"])
        assert not torch.equal(weights["4.weight"], pruned[seed]["4.weight"]), "the classifier began anew"
    with next((report.parents[1] / "store" / "recover").glob("*/history.csv")).open() as file:
        (epoch,) = csv.DictReader(file)
    assert float(epoch["own_distance"]) > 0


def test_without_the_measures_the_same_study_is_another(report, own, capsys):
    """What is measured is in the key: a result of more measures is not taken for one of fewer."""
    arguments = ["plan", "--json", "--config", str(report.parents[1] / "own.yaml"), "--results", str(report.parents[1])]
    kept = bias.MEASURES._classes.pop(MEASURE), SIMILARITIES._classes.pop(SIMILARITY)
    try:
        assert main(arguments) == 0
    finally:
        bias.MEASURES._classes[MEASURE], SIMILARITIES._classes[SIMILARITY] = kept
    states = {(line["stage"], line["state"]) for line in json.loads(capsys.readouterr().out)}
    assert ("score", "todo") in states and ("similarity", "todo") in states and ("predict", "done") in states
