"""What a study stands for: which stages, which of them are shared, and which networks are compared."""

from pathlib import Path

import pytest

from pipeline import config
from pipeline.plan import plan as make_plan
from pipeline.recovery import Kept, Rewound
from pipeline.registry import UserError
from pipeline.stage import in_order
from pipeline.stages import Prune, Recover, Train

SMOKE = Path(__file__).parents[1] / "configs" / "smoke.yaml"


def test_a_study_contains_its_controls(tmp_path):
    study = config.load(SMOKE, ["seeds=3", "sparsities=[0.5,0.9]", "recoveries=[none,finetune,kd]"])
    plan = make_plan(study, tmp_path)
    controls = [cell for cell in plan.cells if cell.sparsity == 0]
    assert {cell.recovery for cell in controls} == {"finetune", "kd"}
    assert all(isinstance(network.network, Train) for cell in controls for network in cell.networks)
    assert len(plan.similar) == 3 and len(plan.floor.networks) == 3
    assert len([cell for cell in plan.cells if cell.sparsity == 0.9]) == 3
    assert len({network.key for network in plan.dense}) == 3
    for cell in plan.cells:
        for reference, network in zip(cell.score.references, cell.networks, strict=True):
            assert reference.network == network.dense, "a network is compared with its own parent"


def test_a_further_sparsity_shares_what_exists(tmp_path):
    stages = []
    for sparsities in ("[0.9]", "[0.5,0.9]"):
        plan = make_plan(config.load(SMOKE, [f"sparsities={sparsities}"]), tmp_path)
        stages.append({stage.key: stage for stage in in_order([plan.report])})
    new = [stage for key, stage in stages[1].items() if key not in stages[0]]
    assert not [stage for stage in new if isinstance(stage, Train)]
    assert {stage.sparsity for stage in new if isinstance(stage, Prune)} == {0.5}
    networks = [stage.network for stage in new if isinstance(stage, Recover)]
    assert all(isinstance(network, Prune) and network.sparsity == 0.5 for network in networks)


def test_titles_and_workers_name_no_result(tmp_path):
    keys = set()
    for override in ("prunings=[{name: magnitude, title: renamed}]", "workers=1", "threads=1"):
        plan = make_plan(config.load(SMOKE, [override]), tmp_path)
        keys.add(tuple(cell.networks[0].key for cell in plan.cells))
    assert len(keys) == 1


@pytest.mark.parametrize(
    "prunings,recovery,kept",
    [
        ("magnitude", "kd", ()),
        ("magnitude", "{losses: kd, start: {name: rewound, epoch: 2}}", (2,)),
        ("magnitude", "{losses: kd, start: {name: rewound, epoch: 2, weights: false}}", ()),
        ("{name: magnitude, schedule: {name: iterative, rewind: weights, epoch: 3}}", "kd", (3,)),
        ("{name: magnitude, schedule: {name: iterative, rewind: learning_rate, epoch: 3}}", "kd", ()),
    ],
)
def test_dense_networks_keep_the_early_weights_that_somebody_starts_from(tmp_path, prunings, recovery, kept):
    study = config.load(SMOKE, [f"prunings=[{prunings}]", f"recoveries=[{recovery}]"])
    assert {network.keep_epochs for network in make_plan(study, tmp_path).dense} == {kept}


def test_rounds_that_rewind_are_the_same_start_as_that_of_a_recovery(tmp_path):
    rounds = "prunings=[{name: magnitude, schedule: {name: iterative, steps: 1, rewind: weights, epoch: 2}}]"
    in_rounds, at_once = (
        make_plan(config.load(SMOKE, words), tmp_path).cells[-1].networks[0]
        for words in ([rounds, "recoveries=[kd]"], ["recoveries=[{losses: kd, start: {name: rewound, epoch: 2}}]"])
    )
    assert in_rounds.start == at_once.start == Rewound(2) and in_rounds.fit == at_once.fit == at_once.dense.fit
    assert in_rounds.key == at_once.key, "one round of iterative pruning is that recovery"


def test_rounds_that_go_on_have_the_fit_of_the_recovery(tmp_path):
    rounds = "prunings=[{name: magnitude, schedule: {name: iterative, steps: 3, rewind: none}}]"
    network = make_plan(config.load(SMOKE, [rounds, "recoveries=[kd]"]), tmp_path).cells[-1].networks[0]
    count = 0
    while network is not None:
        assert network.start == Kept() and network.fit.epochs == 1
        network, count = network.network.previous, count + 1
    assert count == 3


def test_a_study_without_cells_is_refused(tmp_path):
    with pytest.raises(UserError, match="nothing to compare: give a sparsity above 0, or a recovery other than none"):
        make_plan(config.load(SMOKE, ["sparsities=[0]", "recoveries=[none]"]), tmp_path)
