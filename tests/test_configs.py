"""Every file in configs/ loads and plans; every mistake in one is named in one line."""

from pathlib import Path

import pytest

from pipeline import config
from pipeline.distillation import LOSSES
from pipeline.plan import plan as make_plan
from pipeline.registry import UserError
from pipeline.stage import in_order
from pipeline.stages import Prune, Recover, Train

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
SMOKE = Path(__file__).parents[1] / "configs" / "smoke.yaml"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_loads_and_plans(path, tmp_path):
    study = config.load(path)
    plan = make_plan(study, tmp_path)
    stages = in_order([plan.report])
    assert len({stage.key for stage in stages}) == len(stages)
    assert {verb for verb in ("train", "predict", "score", "run") if plan.targets(verb)} == {
        "train",
        "predict",
        "score",
        "run",
    }
    assert study.study == path.stem, "a study is named like its file, so that its report is found"


def test_the_readme_names_every_loss_and_study():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    missing = [name for name in LOSSES if f"`{name}`" not in readme]
    missing += [path.stem for path in CONFIGS if path.stem not in readme]
    assert not missing


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


@pytest.mark.parametrize("value,seeds", [("3", (0, 1, 2)), ("[4,7]", (4, 7)), ("4,7", (4, 7))])
def test_seeds(value, seeds):
    assert config.load(SMOKE, [f"seeds={value}"]).seeds == seeds


@pytest.mark.parametrize(
    "override,message",
    [
        ("sparsites=0.9", r"^sparsites: unknown key; .*did you mean 'sparsities'\?"),
        ("sparsities=1.5", r"^sparsities: 1.5 is outside \[0, 1\)"),
        ("sparsities=90", r"did you mean 0.9\?"),
        ("sparsities=[0.5,-0.1]", r"^sparsities.1: -0.1 is outside"),
        ("sparsities=high", r"^sparsities: 'high' is refused; give a share"),
        ("seeds=0", r"^seeds: 0 is refused"),
        ("train.epochs=many", r"^train.epochs: 'many' is refused; give a whole number from 1 to 100000$"),
        ("train.epoch=3", r"^train.epoch: unknown option; .*did you mean 'epochs'\?"),
        (
            "train.augmentation.flop=true",
            r"^train\.augmentation\.flop: unknown option; known: crop_padding, flip; did you mean 'flip'\?",
        ),
        ("train.epochs=0", r"^train.epochs: 0 is refused; give a whole number from 1 to 100000$"),
        ("train=fast", r"^train: 'fast' is not a mapping"),
        ("network=resnet81", r"^network: 'resnet81' is no network.*did you mean 'resnet8'\?"),
        ("data.name=mnist", r"^data: 'mnist' is no dataset; .*did you mean 'mnist5k'\?"),
        ("data.sise=3", r"^data.sise: unknown option; .*did you mean 'size'\?"),
        ("data.validation=2", r"^data.validation: 2 is refused; give a number, above 0 and below 1"),
        ("prunings=[magnitud]", r"^prunings.0: 'magnitud' is no pruning method; .*did you mean 'magnitude'\?"),
        ("prunings=[]", r"^prunings: empty"),
        ("prunings=[magnitude,magnitude]", r"^prunings: 'magnitude' stands there twice"),
        ("recoveries=[kdd]", r"^recoveries.0.*kdd.*"),
        ("recoveries=[{losses: kd, window: [0.5, 0.2]}]", r"^recoveries.0.window"),
        ("recoveries=[{losses: kd, ensemble: all}]", r"^recoveries.0.ensemble: 'all'"),
        ("device=gpu", r"^device: 'gpu' is unknown"),
        ("study=a/b", r"^study: 'a/b' becomes a folder"),
        ("workers", r"^'workers': an override has the form key=value"),
        ("resamples=3", r"^resamples: 3 is refused"),
        ("resamples=inf", r"^resamples: 'inf' is refused; give a whole number from 100 "),
        ("seeds=nan", r"^seeds: 'nan' is refused"),
        ("data=5", r"^data: 5 is no dataset"),
        ("data.keep=5", r"^data.keep: 5 is no mapping"),
        ("prunings=[5]", r"^prunings.0: 5 is no pruning method"),
        ("prunings=[{name: magnitude, title: dense}]", r"^prunings: the title 'dense' stands for the dense networks"),
        ("recoveries=[{losses: kd, title: none}]", r"^recoveries: the title 'none' stands for no training"),
        ("recoveries=[{losses: kd, title: ../../x}]", r"^recoveries: the title '../../x' names folders too"),
    ],
)
def test_mistakes_are_named(override, message):
    with pytest.raises(UserError, match=message) as error:
        config.load(SMOKE, [override])
    assert "\n" not in str(error.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match="nowhere.yaml: No such file"):
        config.load(tmp_path / "nowhere.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    (tmp_path / "broken.yaml").write_text("study: [unclosed\n")
    (tmp_path / "empty.yaml").write_text("")
    for name in ("list", "broken"):
        with pytest.raises(UserError) as error:
            config.load(tmp_path / f"{name}.yaml")
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"^study: missing; .*\ndata: missing; .*\nnetwork: missing; .*$"):
        config.load(tmp_path / "empty.yaml")
