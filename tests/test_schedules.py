"""Pruning schedules through the stages: each ends at the sparsity asked, from the start that it promises."""

import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline import config, models, pruning, training
from pipeline.__main__ import main
from pipeline.plan import plan as make_plan
from pipeline.recovery import Kept, Origin, Rewound
from pipeline.registry import UserError
from pipeline.stage import Context, in_order
from pipeline.stages import Prune, Recover, Train, load_network, load_splits
from pipeline.store import Store

pytestmark = pytest.mark.slow

SMOKE = Path(__file__).parents[1] / "configs" / "smoke.yaml"
SHORT = ["seeds=1", "data.examples=240", "train.epochs=2", "recover.epochs=2", "recoveries=[finetune]"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


def compute(root, *overrides):
    """The networks of a small study, computed here; one store for all tests, so that dense networks are shared."""
    study = config.load(SMOKE, [*SHORT, *overrides])
    plan = make_plan(study, root / "data")
    store = Store(root)
    todo = in_order(plan.targets("recover"))
    for stage in todo:
        stage.check(root / "data")
    for stage in todo:
        store.execute(stage, Context(store, root / "data"))
    return store, [network for cell in plan.cells if cell.sparsity for network in cell.networks]


def size(store, stage):
    return json.loads((store.open(stage) / "size.json").read_text())


def removed(masks):
    return {name: ~mask for name, mask in masks.items()}


@pytest.mark.parametrize("name", [name for name in pruning.METHODS if pruning.METHODS[name].grows])
def test_gradual_grows_while_it_recovers(root, name):
    schedule = "{name: gradual, initial: 0.1, updates: 3}"
    store, (network,) = compute(root, f"prunings=[{{name: {name}, schedule: {schedule}}}]", "pruning_examples=32")
    step = 1 / 16 if name == "filters" else 1e-4  # filters go whole, and the narrowest layer has 16
    assert size(store, network.network)["sparsity"] == pytest.approx(0.1, abs=step)
    assert size(store, network)["sparsity"] == pytest.approx(0.8, abs=step)
    start, end = (load_network(store.open(stage)).masks for stage in (network.network, network))
    for parameter, gone in removed(start).items():
        assert not (gone & end[parameter]).any(), "a removed weight came back"


def test_gradual_from_nothing_with_distillation(root):
    store, (network,) = compute(
        root, "recoveries=[kd]", "prunings=[{name: magnitude, schedule: {name: gradual, initial: 0}}]"
    )
    assert size(store, network.network)["sparsity"] == 0
    assert size(store, network)["sparsity"] == pytest.approx(0.8, abs=1e-4)


def test_an_interrupted_gradual_recovery_ends_with_the_same_bytes(root, tmp_path, monkeypatch):
    """Masks that still grow, adapters and the teachers' order all go on where the checkpoint left them."""
    overrides = (
        "recoveries=[{losses: kd + fitnet, teachers: [parent, {seeds: [7]}], ensemble: random, fit: {epochs: 4}}]",
        "prunings=[{name: magnitude, schedule: {name: gradual, initial: 0.1, updates: 5}}]",
    )
    store, (network,) = compute(root, *overrides)
    shutil.copytree(root, tmp_path / "again")
    shutil.rmtree(Store(tmp_path / "again").folder(network))
    save, left = training._save, iter("2")

    def cut(*arguments):
        save(*arguments)
        if next(left, None) is None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "_save", cut)
        compute(tmp_path / "again", *overrides)
    assert list((tmp_path / "again" / "store" / "recover").rglob("checkpoint.safetensors"))
    other, (again,) = compute(tmp_path / "again", *overrides)
    for name in ("weights.safetensors", "masks.safetensors", "history.csv", "size.json"):
        assert (other.open(again) / name).read_bytes() == (store.open(network) / name).read_bytes(), name


@pytest.mark.parametrize("method", ["magnitude", "channels"])
@pytest.mark.parametrize("rewind", ["weights", "learning_rate", "none"])
def test_iterative_rounds(root, method, rewind):
    schedule = f"{{name: iterative, steps: 2, rewind: {rewind}, epoch: 1}}"
    store, (last,) = compute(root, f"prunings=[{{name: {method}, schedule: {schedule}}}]")
    assert isinstance(last, Recover) and isinstance(last.network, Prune)
    first = last.network.previous
    assert isinstance(first, Recover) and first.network.previous is None and isinstance(first.dense, Train)
    tolerance = 1e-4 if method == "magnitude" else 0.02
    assert size(store, first)["sparsity"] == pytest.approx(1 - 0.2**0.5, abs=tolerance)
    assert size(store, last)["sparsity"] == pytest.approx(0.8, abs=tolerance)
    for stage in (first, last):
        with (store.open(stage) / "history.csv").open() as file:
            epochs = [row["epoch"] for row in csv.DictReader(file)]
        assert epochs == (["1", "2"] if rewind == "none" else ["2"]), "rewinding repeats train from its second epoch on"
    assert (last.fit == last.dense.fit) == (rewind != "none")
    starts = {"weights": Rewound(1), "learning_rate": Rewound(1, weights=False), "none": Kept()}
    assert last.start == first.start == starts[rewind]
    if method == "magnitude":
        earlier, later = (load_network(store.open(stage)).masks for stage in (first, last))
        for name, gone in removed(earlier).items():
            assert not (gone & later[name]).any()
    else:
        earlier, later = (load_network(store.open(stage)).info.removed for stage in (first, last))
        assert later[: len(earlier)] == earlier and len(later) > len(earlier)


@pytest.mark.parametrize("method", ["magnitude", "channels"])
def test_rewound_weights_are_the_early_ones(root, method):
    schedule = "{name: iterative, steps: 2, rewind: weights, epoch: 1}"
    store, (network,) = compute(root, f"prunings=[{{name: {method}, schedule: {schedule}}}]")
    stored = load_network(store.open(network.network))
    path = store.open(network.dense) / "epoch1.safetensors"
    shapes = {name: value.shape for name, value in stored.network.state_dict().items()}
    origin = Origin(stored.info, stored.masks, 0, early=lambda epoch: models.load_tensors(path))
    assert Rewound(1).begin(stored.network, origin) is stored.network
    early, dense = models.load_tensors(path), models.load_tensors(path.with_name("weights.safetensors"))
    assert not torch.equal(early["stem.0.weight"], dense["stem.0.weight"])
    for name, value in stored.network.state_dict().items():
        assert value.shape == shapes[name]
        if method == "magnitude":
            assert torch.equal(value, early[name] * stored.masks.get(name, 1)), name
        else:
            assert set(value.flatten().tolist()) <= set(early[name].flatten().tolist()), name


def test_keeping_early_weights_changes_nothing_else(root):
    store = Store(root)
    study = config.load(SMOKE, SHORT)
    plain = make_plan(study, root / "data").dense[0]
    keeping = dataclasses.replace(plain, keep_epochs=(0, 1))
    for stage in (plain, keeping):
        store.execute(stage, Context(store, root / "data"))
    first, second = (models.load_tensors(store.open(stage) / "weights.safetensors") for stage in (plain, keeping))
    assert all(torch.equal(first[name], second[name]) for name in first)
    shape = load_splits(plain.data, root / "data").train.input_shape
    initial = models.build(plain.network, input_shape=shape, classes=4, seed=0).state_dict()
    kept = models.load_tensors(store.open(keeping) / "epoch0.safetensors")
    assert all(torch.equal(initial[name], kept[name]) for name in initial)


def test_damaged_networks_are_refused_on_reload(root, tmp_path):
    store, (network,) = compute(root, "prunings=[magnitude]")
    folder = tmp_path / "network"
    shutil.copytree(store.open(network), folder)
    weights = models.load_tensors(folder / "weights.safetensors")
    name = "stage1.0.conv1.weight"
    alive = weights[name].flatten().nonzero()[0]
    weights[name].view(-1)[alive] = 0
    save_file(weights, folder / "weights.safetensors")
    with pytest.raises(UserError, match=f"{name} has sparsity .*, size.json says"):
        load_network(folder)
    weights[name][:] = 1
    save_file(weights, folder / "weights.safetensors")
    with pytest.raises(UserError, match=f"{name} has weights where its mask has none"):
        load_network(folder)


@pytest.mark.parametrize(
    "overrides,message",
    [
        ("prunings=[{name: lamp, schedule: gradual}] recoveries=[none]", "'none' does not train, which .* gradual"),
        ("prunings=[{name: lamp, schedule: iterative}] recoveries=[kd,none]", "'none' does not train, .* iterative"),
        ("prunings=[{name: channels, schedule: gradual}]", "prunings.0.schedule: channels cannot follow gradual"),
        ("prunings=[{name: lamp, schedule: gradul}]", r"prunings.0.schedule: 'gradul' .*did you mean 'gradual'\?"),
        (
            "prunings=[{name: lamp, schedule: {name: gradual, end: 2}}]",
            "prunings.0.schedule.end: 2 is refused; give .* at most 1",
        ),
        (
            "prunings=[{name: lamp, schedule: {name: gradual, begin: 0.5, end: 0.4}}]",
            "prunings.0.schedule.begin: 0.5 is refused; give less than end, which is 0.4",
        ),
        ("prunings=[{name: lamp, schedule: {name: iterative, epoch: 9}}]", "goes back to epoch 9, but training has"),
        (
            "prunings=[{name: lamp, schedule: iterative}] recoveries=[{losses: kd, fit: {epochs: 3}}]",
            "'kd' has a fit of its own, but pruning 'lamp iterative' repeats train from epoch 1",
        ),
        (
            "prunings=[{name: lamp, schedule: iterative}] recoveries=[{losses: kd, start: scratch}]",
            "'kd' starts scratch, but pruning 'lamp iterative' says itself",
        ),
    ],
)
def test_mistakes_are_named(overrides, message):
    with pytest.raises(UserError, match=message) as error:
        config.load(SMOKE, [*SHORT, *re.split(r" (?=recoveries)", overrides)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "overrides,message",
    [
        (["prunings=[{name: lamp, scope: layer}]", "sparsities=[0.9999]"], "would leave 0 of the .* weights of stage1"),
        (["prunings=[filters]", "sparsities=[0.99]"], "would leave 0 of the 16 filters of stage1"),
        (["prunings=[{name: lamp, layers: 'layr1.*'}]"], r"layers: 'layr1.\*' matches no layer"),
        (["prunings=[{name: channels, layers: stem.0}]"], "nothing to prune with channels"),
        (["prunings=[{name: channels, minimum_channels: 40}]"], "0.8 of the weights .* cannot be removed"),
        (["prunings=[n_m]"], "2:4 has sparsity 0.5, not 0.8"),
    ],
)
def test_what_cannot_be_pruned_is_refused_before_training(overrides, message, tmp_path, capsys):
    command = ["run", "--config", str(SMOKE), "--results", str(tmp_path), "data.examples=240", *overrides]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and len(error.splitlines()) == 1
    assert not (tmp_path / "store").exists()
