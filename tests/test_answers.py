"""The answers of a recovery: a start and an update of ten lines, and what is held still when little moves."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import config, models
from pipeline.plan import plan as make_plan
from pipeline.recovery import (
    MIXTURES,
    SELECTIONS,
    STARTS,
    UPDATES,
    All,
    Everything,
    Kept,
    Mixture,
    Rewound,
    Scratch,
    Selection,
    Start,
    Uniform,
    Update,
)
from pipeline.registry import UserError, options, options_of
from pipeline.schema import Recovery
from pipeline.stage import Context, in_order
from pipeline.stages import Recover, Train, load_network
from pipeline.store import Store

SMOKE = Path(__file__).parents[1] / "configs" / "smoke.yaml"
QUICK = ("train.epochs=2", "data.examples=240", "sparsities=[0.5]", "seeds=1")


@pytest.fixture
def halved_and_classifier():
    """Ten lines each, and no other edit."""

    @STARTS.register("halved")
    @options
    class Halved(Start):
        """Half of what pruning left."""

        share: float = 0.5

        def begin(self, network, origin):
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.mul_(self.share)
            return network

    @UPDATES.register("classifier")
    @options
    class Classifier(Update):
        """The last layer alone."""

        def moves(self, network, info):
            return [name for name, _ in network.named_parameters() if name.startswith(info.classifier + ".")]

    @UPDATES.register("nothing")
    @options
    class Nothing(Update):
        """No parameter."""

        def moves(self, network, info):
            return []

    yield
    del STARTS._classes["halved"], UPDATES._classes["classifier"], UPDATES._classes["nothing"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("results"))


def recovered(store, recovery, *overrides):
    """The pruned student of the only recovery, computed."""
    study = config.load(SMOKE, [*QUICK, f"recoveries=[{recovery}]", *overrides])
    student = make_plan(study, store.root / "data").cells[-1].networks[0]
    for stage in in_order([student]):
        stage.check(store.root / "data")
    for stage in in_order([student]):
        store.execute(stage, Context(store, store.root / "data"))
    return student, models.load_tensors(store.open(student) / "weights.safetensors")


def test_every_answer_has_a_default_and_reaches_the_stage(tmp_path):
    defaults = {option.name: option.default for option in options_of(Recovery)}
    assert (defaults["start"], defaults["examples"], defaults["mixture"], defaults["update"]) == (
        *(Kept(), All(), Uniform(), Everything()),
    )
    held = {field.name for field in fields(Recover)}
    assert set(defaults) <= held
    plain, said = (
        make_plan(config.load(SMOKE, [f"recoveries=[{words}]"]), tmp_path).cells[-1].networks[0]
        for words in ("kd", "{losses: kd, start: kept, examples: all, mixture: uniform, update: everything}")
    )
    assert plain.key == said.key, "what is said as it is by default names no other result"


def test_a_start_and_an_update_of_ten_lines(store, halved_and_classifier):
    student, weights = recovered(
        store, "{losses: kd, start: {name: halved, share: 0.25}, update: classifier, fit: {epochs: 2}}"
    )
    before = models.load_tensors(store.open(student.network) / "weights.safetensors")
    info = load_network(store.open(student)).info
    for name, value in weights.items():
        if name.startswith(info.classifier):
            assert not torch.equal(value, before[name] * 0.25), "it moves"
        elif "running" in name or "num_batches" in name:
            assert torch.equal(value, before[name]), "nothing moves its layer, so its statistics stay"
        else:
            assert torch.equal(value, before[name] * 0.25), name
    with pytest.raises(UserError, match="^recoveries.0.start.share: true is refused; give a number$"):
        config.load(SMOKE, ["recoveries=[{losses: kd, start: {name: halved, share: true}}]"])
    with pytest.raises(UserError, match="update nothing: resnet8 has no parameter that moves"):
        recovered(store, "{losses: kd, update: nothing}")


def test_the_optimizer_holds_what_moves_and_nothing_else(store, halved_and_classifier, monkeypatch):
    held = []
    optimizer = torch.optim.SGD

    def watched(parameters, **arguments):
        held.append(parameters := list(parameters))
        return optimizer(parameters, **arguments)

    monkeypatch.setattr("torch.optim.SGD", watched)
    recovered(store, "{losses: kd, title: all}")
    recovered(store, "{losses: kd, update: classifier}")
    sizes = [sorted(parameter.numel() for parameter in parameters) for parameters in held[-2:]]
    assert sizes[1] == [4, 4 * 64] and len(sizes[0]) > 20


def test_rewound_in_one_shot_goes_on_with_dense_training(store):
    student, _ = recovered(store, "{losses: finetune, start: {name: rewound, epoch: 1}}")
    assert student.fit == student.dense.fit and student.start == Rewound(1)
    assert isinstance(student.dense, Train) and student.dense.keep_epochs == (1,)
    assert (store.open(student.dense) / "epoch1.safetensors").exists()
    rows = (store.open(student) / "history.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["2"], "the first epoch is left out"
    longer = (
        make_plan(config.load(SMOKE, [*QUICK, "recoveries=[{losses: kd, start: rewound}]"]), store.root / "data")
        .cells[0]
        .networks[0]
    )
    assert longer.network is longer.dense, "and at sparsity 0, from the dense network itself"
    for stage in in_order([longer]):
        store.execute(stage, Context(store, store.root / "data"))
    again, dense = (models.load_tensors(store.open(one) / "weights.safetensors") for one in (longer, longer.dense))
    assert again.keys() == dense.keys()
    rate_only, _ = recovered(store, "{losses: finetune, start: {name: rewound, epoch: 1, weights: false}}")
    assert rate_only.dense.keep_epochs == () and rate_only.fit == student.fit


@pytest.mark.parametrize(
    "recovery,message",
    [
        ("{losses: kd, start: {name: rewound, epoch: 2}}", "^recoveries.0.start.epoch: 2 leaves nothing of 2 epochs"),
        (
            "{losses: kd, start: {name: rewound, epoch: 3}, fit: {epochs: 9}}",
            "^recoveries.0.start: goes back to epoch 3, but train has only 2$",
        ),
        ("{losses: none, update: everything, examples: most}", "^recoveries.0.examples: 'most' is no selection of"),
        ("{losses: kd, mixture: 3}", "^recoveries.0.mixture: 3 is no mixture of examples; known: uniform$"),
    ],
)
def test_mistakes_are_named(recovery, message):
    with pytest.raises(UserError, match=message):
        config.load(SMOKE, [*QUICK, f"recoveries=[{recovery}]"])


def test_starts_need_what_they_say():
    assert Rewound(3).early_epochs == (3,) and Rewound(3).first_epoch == 3
    assert Rewound(3, weights=False).early_epochs == () and Scratch().early_epochs == () and Kept().first_epoch == 0
    with pytest.raises(ValueError):
        Rewound(-1)
    with pytest.raises(ValueError):
        Rewound(True)


def test_what_selected_examples_cannot_fill_is_refused_before_training(tmp_path):
    """A window is counted in the steps of the examples that are chosen."""

    @SELECTIONS.register("few")
    @options
    class Few(Selection):
        """Four of each class."""

        def choose(self, train):
            rows = [row for label in range(len(train.classes)) for row in (train.labels == label).nonzero()[0][:4]]
            return train.take(np.array(sorted(rows)))

    try:
        recovery = "{losses: kd, examples: few, window: [0.0, 0.15], fit: {epochs: 2, batch_size: 16}, title: t}"
        plan = make_plan(config.load(SMOKE, [*QUICK, f"recoveries=[{recovery}]"]), tmp_path)
        with pytest.raises(UserError, match="^recoveries: 't': window: .* holds none of the steps"):
            plan.cells[0].networks[0].check(tmp_path)
    finally:
        del SELECTIONS._classes["few"]


def test_a_mixture_that_nothing_draws_is_refused(tmp_path):
    @MIXTURES.register("never")
    @options
    class Never(Mixture):
        """Not drawn so far."""

    try:
        plan = make_plan(config.load(SMOKE, [*QUICK, "recoveries=[{losses: kd, mixture: never, title: t}]"]), tmp_path)
        with pytest.raises(UserError, match="mixture never: none but uniform"):
            plan.cells[0].networks[0].check(tmp_path)
    finally:
        del MIXTURES._classes["never"]
