"""The loop: learning rates, going on after a kill with the same bytes, masks held, divergence named."""

import math
from pathlib import Path

import pytest
import torch

from pipeline import distillation, models, pruning, training
from pipeline.data import DATASETS, Augmentation, Data, Normalisation
from pipeline.data.batches import Batches
from pipeline.registry import UserError
from pipeline.training import Fit, learning_rate


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    dataset = DATASETS.build({"name": "synthetic", "examples": 300}, "data")
    return Data(dataset, validation=0.2).load(tmp_path_factory.mktemp("data"))


OPTIONS = Fit(epochs=3, batch_size=32, learning_rate=0.05, augmentation=Augmentation(1, True))


def run(splits, folder: Path, *, options=OPTIONS, losses="ce", window=(0.0, 1.0), masked=False, stop_after=None):
    """Trains a small network; returns its weights and the history. stop_after: epochs before an exception ends it."""
    network = models.build("resnet8", input_shape=(3, 16, 16), classes=4, seed=0)
    normalisation = Normalisation.of(splits.train)
    info = models.describe(network, "resnet8", splits.train.classes, (3, 16, 16), normalisation.mean, normalisation.std)
    masker = None
    if masked:
        method = pruning.METHODS.build("magnitude", "test")
        pruned = pruning.prune(network, method, 0.8, images=torch.zeros(2, 3, 16, 16))
        network = pruned.network
        masker = pruning.Masker(network, pruned.masks, method=method, sparsity=0.8)
    parsed = distillation.parse_losses(losses, "losses")
    teachers = []
    if any(loss.needs_teacher for loss in parsed):
        teacher = models.build("resnet8", input_shape=(3, 16, 16), classes=4, seed=9)
        teachers = [distillation.Teacher(models.Observer(teacher, info.blocks, info.classifier))]

    def prepare(outputs, batch):
        objective = distillation.Objective(parsed, teachers=teachers, window=window, seed=0)
        labels = torch.from_numpy(splits.train.labels)
        objective.prepare(outputs, batch, distillation.TrainingSet(labels, 4))
        return objective

    def report(step, steps, values):
        if (
            stop_after is not None
            and "validation accuracy" in values
            and step == stop_after * (steps // options.epochs)
        ):
            # the checkpoint of this epoch is written after this report: an interruption at the worst moment
            raise Stopped

    folder.mkdir(exist_ok=True)
    history, _ = training.fit(
        network,
        info=info,
        prepare=prepare,
        options=options,
        train=Batches(splits.train, normalisation, batch_size=options.batch_size, augmentation=options.augmentation),
        validation=Batches(splits.validation, normalisation, batch_size=64),
        seed=(0, 0),
        folder=folder,
        masker=masker,
        report=report,
    )
    return network, history, masker


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"masked": True},
        {"losses": "ce + fitnet"},
        {"losses": "ce + crd"},
        {"losses": "ce + fitnet", "window": (0.75, 1.0)},  # the regressor gets its first gradient after the others
    ],
)
def test_interrupted_training_ends_with_the_same_bytes(splits, tmp_path, options):
    whole, history, _ = run(splits, tmp_path / "whole", **options)
    with pytest.raises(Stopped):
        run(splits, tmp_path / "cut", stop_after=2, **options)
    assert (tmp_path / "cut" / "checkpoint.safetensors").exists()
    resumed, again, _ = run(splits, tmp_path / "cut", **options)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert history == again
    # the checkpoint of the last epoch stays until the caller has stored the network: going on from it changes nothing
    once_more, again, _ = run(splits, tmp_path / "cut", **options)
    assert history == again and torch.equal(once_more.stem[0].weight, whole.stem[0].weight)


def test_damaged_checkpoint_is_named(splits, tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"\x07" * 100)
    with pytest.raises(UserError, match=r"checkpoint.safetensors: damaged checkpoint .* delete it to train"):
        run(splits, tmp_path)


def test_one_step_equals_plain_torch(splits, tmp_path):
    """One epoch of one batch against a loop written with torch alone."""
    options = Fit(
        epochs=1, batch_size=1000, learning_rate=0.1, schedule="constant", warmup=0, augmentation=Augmentation(0, False)
    )
    ours, _, _ = run(splits, tmp_path / "ours", options=options)
    network = models.build("resnet8", input_shape=(3, 16, 16), classes=4, seed=0).to(memory_format=torch.channels_last)
    batches = Batches(splits.train, Normalisation.of(splits.train), batch_size=1000)
    batch = next(batches.epoch((0, 0), 0))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    torch.nn.functional.cross_entropy(network(batch.images), batch.labels).backward()
    optimizer.step()
    for (name, mine), theirs in zip(ours.state_dict().items(), network.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6, msg=name)


def test_masks_hold_against_momentum_and_decay(splits, tmp_path):
    network, _, masker = run(splits, tmp_path / "run", masked=True)
    zeros = total = 0
    for name, mask in masker.masks.items():
        weight = network.get_parameter(name)
        assert torch.count_nonzero(weight[~mask]) == 0
        zeros, total = zeros + int((weight == 0).sum()), total + weight.numel()
    assert zeros == round(0.8 * total)


def test_divergence_is_named(splits, tmp_path):
    options = Fit(epochs=3, batch_size=32, learning_rate=1e9, warmup=0, schedule="constant")
    with pytest.raises(UserError, match=r"training diverged: the loss became \S+ in epoch 1 .* lower learning_rate"):
        run(splits, tmp_path / "run", options=options)


def test_it_learns(splits, tmp_path):
    _, history, _ = run(
        splits, tmp_path / "run", options=Fit(epochs=8, batch_size=32, augmentation=Augmentation(1, False))
    )
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]
    assert history[-1]["validation_accuracy"] > 0.6


def test_adamw_and_bfloat16_run_and_resume(splits, tmp_path):
    options = Fit(epochs=2, batch_size=64, optimizer="adamw", learning_rate=1e-3, precision="bfloat16")
    whole, _, _ = run(splits, tmp_path / "whole", options=options)
    with pytest.raises(Stopped):
        run(splits, tmp_path / "cut", options=Fit(**{**vars(options), "epochs": 2}), stop_after=2)
    resumed, _, _ = run(splits, tmp_path / "cut", options=options)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_learning_rates():
    cosine = Fit(learning_rate=0.4, warmup=0.1)
    assert learning_rate(cosine, 0.05) == pytest.approx(0.2)
    assert learning_rate(cosine, 0.1) == pytest.approx(0.4)
    assert learning_rate(cosine, 0.55) == pytest.approx(0.2)
    assert learning_rate(cosine, 1.0) == pytest.approx(0.0, abs=1e-12)
    paper = Fit(learning_rate=0.05, schedule="steps", warmup=0, milestones=(150 / 240, 180 / 240, 210 / 240))
    rates = [learning_rate(paper, (epoch + 0.5) / 240) for epoch in (149, 150, 179, 180, 209, 210, 239)]
    assert rates == pytest.approx([0.05, 0.005, 0.005, 0.0005, 0.0005, 0.00005, 0.00005])


@pytest.mark.parametrize(
    "options",
    [{"epochs": 0}, {"learning_rate": -1.0}, {"learning_rate": math.nan}, {"milestones": (0.9, 0.5)}, {"warmup": 1.0}],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Fit(**options)


def test_narrow_strided_shortcuts_train_in_a_safe_memory_format(splits):
    """oneDNN issue 6035 corrupts memory there, so physically pruned networks must not meet it."""
    network = models.build("resnet8", input_shape=(3, 16, 16), classes=4, seed=0)
    assert models.training_format(network) == torch.channels_last
    method = pruning.METHODS.build("channels", "test")
    narrow = pruning.prune(network, method, 0.9, images=torch.zeros(2, 3, 16, 16)).network
    assert narrow.stage2[0].shortcut[0].in_channels < 16
    assert models.training_format(narrow) == torch.contiguous_format
