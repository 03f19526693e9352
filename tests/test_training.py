"""The loop: learning rates, going on after a kill with the same bytes, damage noticed, masks held, divergence named."""

import json
import math
import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import distillation, models, pruning, training
from pipeline.data import DATASETS, Augmentation, Data, Normalisation
from pipeline.data.batches import Batches, ImageView
from pipeline.files import DamagedFile
from pipeline.registry import UserError
from pipeline.training import Fit, learning_rate


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    dataset = DATASETS.build({"name": "synthetic", "examples": 300}, "data")
    return Data(dataset, validation=0.2).load(tmp_path_factory.mktemp("data"))


OPTIONS = Fit(epochs=3, batch_size=32, learning_rate=0.05, augmentation=Augmentation(1, True))


@dataclass(frozen=True)
class HalfTwice:
    """An order in which every second example stands twice in an epoch and the others never."""

    examples: int

    @property
    def positions(self):
        return 2 * len(self.occurring)

    @property
    def occurring(self):
        return np.arange(0, self.examples, 2)

    def rows(self, seed, epoch):
        return np.random.default_rng((*seed, epoch)).permutation(np.repeat(self.occurring, 2))


def run(
    splits,
    folder: Path,
    *,
    options=OPTIONS,
    losses="ce",
    window=(0.0, 1.0),
    masked=False,
    keep=(),
    stop_after=None,
    order=None,
    cache=None,
):
    """Trains a small network; returns its weights and the history. stop_after: epochs before an exception ends it."""
    network = models.build(models.network("resnet8"), input_shape=(3, 16, 16), classes=4, seed=0)
    normalisation = Normalisation.of(splits.train)
    info = models.describe(
        network, models.network("resnet8"), splits.train.classes, (3, 16, 16), normalisation.mean, normalisation.std
    )
    masker = None
    if masked:
        method = pruning.METHODS.build("magnitude", "test")
        pruned = pruning.prune(network, method, 0.8, images=torch.zeros(2, 3, 16, 16))
        network = pruned.network
        masker = pruning.Masker(network, pruned.masks, method=method, sparsity=0.8)
    parsed = distillation.parse_losses(losses, "losses")
    teachers = []
    if any(loss.needs_teacher for loss in parsed):
        teacher = models.build(models.network("resnet8"), input_shape=(3, 16, 16), classes=4, seed=9)
        teachers = [distillation.Teacher(models.Observer(teacher, info.blocks, info.classifier), cache=cache)]
    view = ImageView(splits.train, normalisation, augmentation=options.augmentation)
    train = Batches(splits.train, view, batch_size=options.batch_size, order=order)

    def prepare(outputs, batch):
        objective = distillation.Objective(parsed, teachers=teachers, window=window, seed=0)
        labels, occurring = torch.from_numpy(splits.train.labels), torch.from_numpy(train.order.occurring)
        objective.prepare(outputs, batch, distillation.TrainingSet(labels, 4, occurring))
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
        train=train,
        validation=Batches(splits.validation, ImageView(splits.validation, normalisation), batch_size=64),
        seed=(0, 0),
        folder=folder,
        masker=masker,
        keep_epochs=keep,
        report=report,
    )
    return network, history, masker


@pytest.mark.slow
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
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"\x07" * 100)
    with pytest.raises(DamagedFile, match=r"checkpoint.safetensors: damaged \(no safetensors file: ") as error:
        run(splits, tmp_path)
    assert error.value.path == path and "\n" not in str(error.value)
    assert path.read_bytes() == b"\x07" * 100, "what becomes of it is for the caller to say"


class Checkpoint:
    """A checkpoint of the first of three epochs (masks, an adapter, momentum), and what is in memory to restore it to.

    The calls that go through fit() are few; the many go to the function that it calls.
    """

    def __init__(self, splits, folder: Path) -> None:
        options = {"masked": True, "losses": "ce + fitnet"}
        with pytest.raises(Stopped):
            run(splits, folder, stop_after=2, **options)
        self.path = folder / "checkpoint.safetensors"
        self.content = self.path.read_bytes()

        def restore(*arguments):
            self.arguments = arguments
            raise Stopped

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(training, "_restore", restore)
            run(splits, folder, **options)
        self.before = self.state()
        self.progress = training._restore(*self.arguments)
        self.after = self.state()
        self.reset()

    def state(self):
        return {name: value.clone() for name, value in training._state(*self.arguments[3:]).items()}

    def reset(self):
        for name, value in training._state(*self.arguments[3:]).items():
            value.copy_(self.before[name])

    def damage(self, content: bytes) -> str:
        """What is said to a damaged file; that the damage is harmless, or that nothing was changed, is checked."""
        self.path.write_bytes(content)
        try:
            progress = training._restore(*self.arguments)
        except DamagedFile as error:
            assert "\n" not in str(error)
            assert all(torch.equal(value, self.before[name]) for name, value in self.state().items()), str(error)
            return str(error)
        state = self.state()
        self.reset()
        assert progress == self.progress and state.keys() == self.after.keys()
        assert all(torch.equal(value, self.after[name]) for name, value in state.items())
        return "harmless"

    def rewritten(self, change, *, sealed: bool) -> str:
        """As if another program had changed the tensors or the metadata; sealed: and had made the checksum fit."""
        self.path.write_bytes(self.content)
        tensors, metadata = models.read_tensors(self.path)
        checksum = metadata.pop("sha256")
        change(tensors, metadata)
        checksum = training._checksum(tensors, metadata) if sealed else checksum
        models.save_tensors(self.path, tensors, {**metadata, "sha256": checksum})
        return self.damage(self.path.read_bytes())


@pytest.fixture(scope="module")
def checkpoint(splits, tmp_path_factory):
    torch.manual_seed(0)
    return Checkpoint(splits, tmp_path_factory.mktemp("checkpoint"))


def test_the_checkpoint_itself_is_taken(checkpoint):
    assert checkpoint.damage(checkpoint.content) == "harmless"
    assert checkpoint.rewritten(lambda tensors, metadata: None, sealed=True) == "harmless"
    assert any(not torch.equal(value, checkpoint.before[name]) for name, value in checkpoint.after.items())
    parts = {name.split(".")[0] for name in checkpoint.after}
    assert parts == {"network", "objective", "optimizer", "masks"}
    assert len([name for name in checkpoint.after if name.startswith("optimizer.")]) == len(
        [*checkpoint.arguments[3].parameters(), *checkpoint.arguments[4].parameters()]
    )


def test_the_checksum_is_over_all_that_is_said():
    one = {"a": torch.ones(4), "b": torch.zeros(())}
    others = [
        {"a": torch.ones(4), "c": torch.zeros(())},
        {"a": torch.ones(2, 2), "b": torch.zeros(())},
        {"a": torch.ones(4).view(torch.int32), "b": torch.zeros(())},
        {"a": torch.tensor([1.0, 1, 1, -1]), "b": torch.zeros(())},
        {"a": torch.ones(4)},
    ]
    sums = [training._checksum(tensors, {"epoch": "1"}) for tensors in (one, *others)]
    sums += [training._checksum(one, {"epoch": "2"}), training._checksum(one, {})]
    assert len(set(sums)) == len(sums)
    assert training._checksum(dict(reversed(one.items())), {"epoch": "1"}) == sums[0]


@pytest.mark.slow
def test_no_flipped_byte_of_a_checkpoint_goes_unnoticed(checkpoint):
    content, draw = checkpoint.content, random.Random(0)
    header = 8 + int.from_bytes(content[:8], "little")
    places = [*range(8), *draw.sample(range(8, header), 400), *draw.sample(range(header, len(content)), 200)]
    places += range(header - 9, header)  # where the padding is
    harmless = 0
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= draw.choice([1 << draw.randrange(8), draw.randrange(1, 256)])
        if checkpoint.damage(bytes(damaged)) == "harmless":  # white space of another kind, in the padding
            assert place >= header - 8 and damaged[place] in b"\t\n\r", place
            harmless += 1
    assert harmless < 8


def test_no_truncated_or_extended_checkpoint_goes_unnoticed(checkpoint):
    content, draw = checkpoint.content, random.Random(1)
    for length in [0, 1, 7, 8, 9, len(content) - 1, *(draw.randrange(len(content)) for _ in range(50))]:
        assert "no safetensors file" in checkpoint.damage(content[:length]), length
    assert "no safetensors file" in checkpoint.damage(content + b"\0")


@pytest.mark.slow
def test_no_missing_or_foreign_tensor_of_a_checkpoint_goes_unnoticed(checkpoint):
    for name in checkpoint.after:
        for sealed in (False, True):
            said = checkpoint.rewritten(lambda tensors, _, name=name: tensors.pop(name), sealed=sealed)
            assert (f"({name} is missing)" in said) if sealed else ("does not match its checksum" in said), said
    for name in ("masks.more", "other.weight", "optimizer.0.exp_avg", "optimizer.999.momentum_buffer", "plain"):
        said = checkpoint.rewritten(lambda tensors, _, name=name: tensors.update({name: torch.ones(1)}), sealed=True)
        assert f"({name} is not of this training)" in said
    without = checkpoint.rewritten(
        lambda tensors, _: [tensors.pop(name) for name in list(tensors) if name.startswith("masks.")], sealed=True
    )
    assert "(masks." in without and without.endswith(" is missing)")


def test_swapped_tensors_of_a_checkpoint_are_noticed(checkpoint):
    names = sorted(checkpoint.after)
    pairs = [
        (one, other)
        for one, other in zip(names, names[1:], strict=False)
        if checkpoint.after[one].shape == checkpoint.after[other].shape
        and checkpoint.after[one].dtype == checkpoint.after[other].dtype
        and not torch.equal(checkpoint.after[one], checkpoint.after[other])
    ]
    assert len(pairs) > 5
    for one, other in pairs:
        said = checkpoint.rewritten(
            lambda tensors, _, one=one, other=other: tensors.update({one: tensors[other], other: tensors[one]}),
            sealed=False,
        )
        assert "does not match its checksum" in said


@pytest.mark.parametrize("part", ["network.", "objective.", "optimizer.", "masks."])
def test_tensors_of_another_shape_or_type_are_noticed(checkpoint, part):
    name = next(name for name, value in checkpoint.after.items() if name.startswith(part) and value.numel() > 1)
    for change in (lambda value: value[:-1], lambda value: value[None], lambda value: value.to(torch.float16)):
        said = checkpoint.rewritten(
            lambda tensors, _, change=change: tensors.update({name: change(tensors[name])}), sealed=True
        )
        assert f"({name} is " in said and ", this training has " in said


@pytest.mark.parametrize("epoch", ["9999", "4", "0", "-1", "x", "", "1.0", "1e0", "01", " 1", "\u0661", None])
def test_an_epoch_that_cannot_be_is_noticed(checkpoint, epoch):
    def change(_, metadata):
        metadata.pop("epoch") if epoch is None else metadata.update(epoch=epoch)

    assert "is none of 1 to 3" in checkpoint.rewritten(change, sealed=True)
    assert "does not match its checksum" in checkpoint.rewritten(change, sealed=False)


RECORD = {"epoch": 1, "loss": 0.5}


@pytest.mark.parametrize(
    "history",
    [None, "", "{", "{}", "1", "null", "[]", "[1]", [RECORD] * 2, [{"epoch": 2}], [{}], [{**RECORD, "loss": "x"}]],
)
def test_a_history_that_cannot_be_is_noticed(checkpoint, history):
    def change(_, metadata):
        text = history if isinstance(history, str) else json.dumps(history)
        metadata.pop("history") if history is None else metadata.update(history=text)

    assert "its history " in checkpoint.rewritten(change, sealed=True)


def test_a_later_epoch_needs_a_longer_history(checkpoint):
    said = checkpoint.rewritten(lambda _, metadata: metadata.update(epoch="2"), sealed=True)
    assert "its history is not one record for each of the epochs 1 to 2" in said


@pytest.mark.parametrize("kept", [None, "", "[]", "null", '{"epoch1.safetensors": ""}', '{"../x": ""}'])
def test_a_list_of_kept_weights_that_cannot_be_is_noticed(checkpoint, kept):
    def change(_, metadata):
        metadata.pop("kept") if kept is None else metadata.update(kept=kept)

    assert "its list of kept weights " in checkpoint.rewritten(change, sealed=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["epoch0.safetensors", "epoch1.safetensors"])
def test_weights_kept_before_an_interruption_are_checked(splits, tmp_path, name):
    """The store takes the checksums of a stage's files at its end, too late for what was damaged on the way."""
    keep = (0, 1, 3)
    run(splits, tmp_path / "whole", keep=keep)
    with pytest.raises(Stopped):
        run(splits, tmp_path / "cut", keep=keep, stop_after=2)
    path = tmp_path / "cut" / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    for damaged in (bytes(content), None):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        with pytest.raises(DamagedFile, match=rf"{name}: damaged \(missing, or not what was there when") as error:
            run(splits, tmp_path / "cut", keep=keep)
        assert error.value.path == path
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(Stopped):
        run(splits, tmp_path / "cut", keep=keep, stop_after=3)
    run(splits, tmp_path / "cut", keep=keep)
    for epoch in keep:
        whole, cut = (tmp_path / run / f"epoch{epoch}.safetensors" for run in ("whole", "cut"))
        assert whole.read_bytes() == cut.read_bytes()


@pytest.mark.parametrize("optimizer,states", [("sgd", 1), ("adamw", 3)])
def test_every_parameter_has_its_state_in_the_checkpoint(splits, tmp_path, optimizer, states):
    """Those of an adapter that waits for its window as well, so that one that is missing is known to be."""
    options = Fit(epochs=2, batch_size=64, optimizer=optimizer, learning_rate=1e-3)
    with pytest.raises(Stopped):
        run(splits, tmp_path, options=options, losses="ce + fitnet", window=(0.6, 1.0), stop_after=2)
    tensors, _ = models.read_tensors(tmp_path / "checkpoint.safetensors")
    numbers = [name.split(".")[1] for name in tensors if name.startswith("optimizer.")]
    network = models.build(models.network("resnet8"), input_shape=(3, 16, 16), classes=4)
    parameters = len(list(network.parameters())) + 2  # the adapter's
    assert {number: numbers.count(number) for number in numbers} == {
        str(number): states for number in range(parameters)
    }


def test_a_checkpoint_of_another_training_is_refused_before_anything_is_changed(splits, tmp_path):
    with pytest.raises(Stopped):
        run(splits, tmp_path, stop_after=2)
    for options, named in (
        ({"losses": "ce + fitnet"}, "objective"),
        ({"masked": True}, "masks"),
        ({"options": Fit(**{**vars(OPTIONS), "momentum": 0.0})}, "optimizer"),
        ({"options": Fit(**{**vars(OPTIONS), "optimizer": "adamw"})}, "optimizer"),
    ):
        with pytest.raises(DamagedFile, match=rf"checkpoint.safetensors: damaged \({named}\."):
            run(splits, tmp_path, **options)


def test_one_step_equals_plain_torch(splits, tmp_path):
    """One epoch of one batch against a loop written with torch alone."""
    options = Fit(
        epochs=1, batch_size=1000, learning_rate=0.1, schedule="constant", warmup=0, augmentation=Augmentation(0, False)
    )
    ours, _, _ = run(splits, tmp_path / "ours", options=options)
    network = models.build(models.network("resnet8"), input_shape=(3, 16, 16), classes=4, seed=0).to(
        memory_format=torch.channels_last
    )
    batches = Batches(splits.train, ImageView(splits.train, Normalisation.of(splits.train)), batch_size=1000)
    batch = next(batches.epoch((0, 0), 0))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    torch.nn.functional.cross_entropy(network(batch.inputs), batch.labels).backward()
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


@pytest.mark.slow
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
    [
        {"epochs": 0},
        {"evaluation_batch_size": 0},
        {"learning_rate": -1.0},
        {"learning_rate": math.nan},
        {"milestones": (0.9, 0.5)},
        {"warmup": 1.0},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Fit(**options)


def test_narrow_strided_shortcuts_train_in_a_safe_memory_format(splits):
    """oneDNN issue 6035 corrupts memory there, so physically pruned networks must not meet it."""
    network = models.build(models.network("resnet8"), input_shape=(3, 16, 16), classes=4, seed=0)
    assert models.training_format(network) == torch.channels_last
    method = pruning.METHODS.build("channels", "test")
    narrow = pruning.prune(network, method, 0.9, images=torch.zeros(2, 3, 16, 16)).network
    assert narrow.stage2[0].shortcut[0].in_channels < 16
    assert models.training_format(narrow) == torch.contiguous_format


def test_stored_logits_are_right_when_an_example_occurs_twice_or_never(splits, tmp_path, monkeypatch):
    """Each occurrence is cropped in its own way, so it has an answer of its own."""
    found, get = [], distillation.LogitsCache.get
    monkeypatch.setattr(
        distillation.LogitsCache, "get", lambda cache, draw: found.append(get(cache, draw)) or found[-1]
    )
    order = HalfTwice(len(splits.train))
    options = replace(OPTIONS, epochs=2, augmentation=Augmentation(3, True))
    plain, history, _ = run(splits, tmp_path / "plain", options=options, losses="kd", order=order)
    for time in ("first", "second"):
        cache = distillation.LogitsCache(tmp_path / "logits.npy", positions=2 * order.positions, classes=4)
        stored, same, _ = run(splits, tmp_path / time, options=options, losses="kd", order=order, cache=cache)
        assert same == history
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), stored.parameters(), strict=True))
    asked = len(found) // 2
    assert any(logits is None for logits in found[:asked]) and not any(logits is None for logits in found[asked:])
    steps = order.positions // options.batch_size * options.batch_size
    written = np.flatnonzero(cache.rows[:, -1].view(np.uint32))
    assert written.tolist() == [epoch * order.positions + place for epoch in (0, 1) for place in range(steps)]


@pytest.mark.parametrize("losses", ["ce", "kd + crd"])
def test_a_stream_of_repeated_examples_goes_on_with_the_same_bytes(splits, tmp_path, losses):
    order = HalfTwice(len(splits.train))
    whole, history, _ = run(splits, tmp_path / "whole", losses=losses, order=order)
    with pytest.raises(Stopped):
        run(splits, tmp_path / "cut", losses=losses, order=order, stop_after=2)
    again, same, _ = run(splits, tmp_path / "cut", losses=losses, order=order)
    assert same == history
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    tensors, _ = models.read_tensors(tmp_path / "whole" / "checkpoint.safetensors")
    for name in ("student", "teacher") if "crd" in losses else ():
        lengths = tensors[f"objective.adapters.crd.0.{name}_memory"].norm(dim=1)
        seen = torch.zeros(len(splits.train), dtype=torch.bool)
        seen[order.occurring] = True
        assert torch.allclose(lengths[seen], torch.ones(int(seen.sum()))), "remembered rows have length 1"
        assert (lengths[~seen] - 1).abs().mean() > 0.01, "the others are noise as at the start"
