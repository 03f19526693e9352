"""Every file in configs/ loads and plans; every mistake in one is named in one line."""

from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from pipeline import config
from pipeline.data import DATASETS, Augmentation
from pipeline.distillation import LOSSES
from pipeline.plan import plan as make_plan
from pipeline.pruning import METHODS, SCHEDULES
from pipeline.recovery import MIXTURES, SELECTIONS, STARTS, UPDATES
from pipeline.registry import UserError, options_of
from pipeline.schema import Pruning, Recovery, Reference, Study
from pipeline.stage import in_order
from pipeline.statistics import Claim, Place
from pipeline.training import Fit

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


def test_every_option_is_described():
    """What documentation is made of."""
    registries = (DATASETS, LOSSES, METHODS, SCHEDULES, STARTS, SELECTIONS, MIXTURES, UPDATES)
    classes = [registry[name] for registry in registries for name in registry]
    classes += [Study, Recovery, Pruning, Reference, Fit, Augmentation, Claim, Place]
    missing = [
        f"{cls.__name__}.{option.name}"
        for cls in classes
        for option in options_of(cls)
        if not option.description or not option.allowed
    ]
    assert not missing and all(cls.__doc__ for cls in classes)
    (epochs,) = [option for option in options_of(Fit) if option.name == "epochs"]
    assert (epochs.allowed, epochs.default) == ("a whole number from 1 to 100000", 12)


def test_options_refuse_in_python_too():
    for options in ({"epochs": 0}, {"epochs": True}, {"epochs": 2.5}, {"schedule": "cosin"}, {"nesterov": 1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Fit(**options)
    assert Fit(learning_rate=1) == Fit(learning_rate=1.0) and hash(Fit()) == hash(Fit(epochs=12))
    assert replace(Fit(), epochs=3).epochs == 3
    with pytest.raises(ValueError, match="epochs"):
        replace(Fit(), epochs=-3)
    with pytest.raises(FrozenInstanceError):
        Fit().epochs = 3


def test_text_from_the_environment_is_the_number_that_it_writes(monkeypatch):
    monkeypatch.setenv("EPOCHS", "7")
    assert config.load(SMOKE, ["train.epochs=${oc.env:EPOCHS}", "recover.epochs=${train.epochs}"]).recover.epochs == 7
    monkeypatch.setenv("EPOCHS", "seven")
    with pytest.raises(UserError, match="^train.epochs: 'seven' is refused; give a whole number"):
        config.load(SMOKE, ["train.epochs=${oc.env:EPOCHS}"])


def test_whole_numbers_may_be_written_with_a_point_or_exponent():
    study = config.load(SMOKE, ["resamples=1e3", "train.epochs=2.0", "budgets=1,2.0"])
    assert (study.resamples, study.train.epochs) == (1000, 2) and isinstance(study.train.epochs, int)
    assert [one.fit.epochs for one in study.recoveries if one.losses] == [1, 2]


def test_overrides_reach_into_lists_and_keep_what_they_do_not_name():
    study = config.load(
        SMOKE, ["recoveries=[none,{losses: kd}]", "recoveries.1.window=[0,0.5]", "train={epochs: 3}", "study=2026"]
    )
    assert study.recoveries[1].window == (0.0, 0.5) and study.study == "2026"
    assert (study.train.epochs, study.train.batch_size) == (3, 32)


def test_a_fit_says_what_is_other_than_in_its_section():
    study = config.load(SMOKE, ["recoveries=[{losses: kd, fit: {epochs: 3, augmentation: {flip: true}}}]"])
    fit = study.recoveries[0].fit
    assert (fit.epochs, fit.batch_size, fit.augmentation) == (3, 32, Augmentation(crop_padding=1, flip=True))


def test_what_a_study_does_not_say_is_filled_in():
    said = {"study": "x", "data": "synthetic", "network": "resnet8"}
    study = config.parse(said)
    assert [one.called() for one in study.recoveries] == ["none", "finetune", "kd"] and study.seeds == (0, 1, 2)
    said_again = config.parse({"threads": 1, **said, "sparsities": [0.5, 0.9, 0.95]})
    assert list(said_again.resolved.items()) == list(study.resolved.items())
    again = config.parse(study.resolved)
    assert again == study and study.resolved["sparsities"] == [0.5, 0.9, 0.95]


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
        ("seeds=257", r"^seeds: 257 is refused; give a whole number from 1 to 256"),
        (f"seeds={list(range(300))}", r"^seeds: 300 seeds are refused; give at most 256"),
        ("seeds=2.5", r"^seeds: 2.5 is refused; give a whole number"),
        ("train.epochs=2.5", r"^train.epochs: 2.5 is refused; give a whole number"),
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


@pytest.mark.parametrize(
    "text,message",
    [
        ("<<: {seeds: 1:30}", "1:30 is a number of base 60"),
        ("<<: {seeds: 012}", "012 is an octal number"),
        ("<<: {yes: 3}", "'yes' is no text to YAML"),
        ("<<: {seeds: 2}\n<<: {seeds: 3}", "stands there twice"),
        ("train: {<<: {epochs: 1:30}}", "train.epochs.*1:30 is a number of base 60|1:30 is a number of base 60"),
        ("train: {1:30: 2}", "'1:30' is no text to YAML"),
        ("network: resnet8x014", "network: 'resnet8x014' is no network"),
    ],
)
def test_merge_keys_and_keys_are_looked_at_like_all_else(tmp_path, text, message):
    head = {"study": "s", "data": "{name: synthetic}", "network": "resnet8"}
    lines = [f"{name}: {value}" for name, value in head.items() if not text.startswith(name)]
    (tmp_path / "study.yaml").write_text("\n".join([*lines, text]) + "\n")
    with pytest.raises(UserError, match=message):
        config.load(tmp_path / "study.yaml")


def test_a_merge_key_that_is_plain_is_read(tmp_path):
    (tmp_path / "study.yaml").write_text(
        "study: s\ndata: {name: synthetic}\nnetwork: resnet8\ntrain: &shared {epochs: 3}\nrecover: {<<: *shared}\n"
    )
    assert config.load(tmp_path / "study.yaml").recover.epochs == 3


# Claims

CLAIM = "{measure: cev, first: kd, second: none, at: {pruning: magnitude, sparsity: 0.8}}"


def claiming(*claims, **studied):
    """The small study with two recoveries that train, two prunings, and these claims."""
    told = {"prunings": "[magnitude,{name: channels, title: narrow}]", "recoveries": "[none,finetune,kd]", **studied}
    return config.load(SMOKE, [*(f"{key}={value}" for key, value in told.items()), f"claims=[{','.join(claims)}]"])


def test_claims_are_read_and_change_the_key_of_the_report_alone(tmp_path):
    dense = "{measure: worst_recall, first: finetune, second: kd, at: {pruning: dense, sparsity: 0}}"
    study, plain = claiming(CLAIM, dense), claiming()
    assert study.claims == (
        Claim(measure="cev", first="kd", second="none", at=Place(pruning="magnitude", sparsity=0.8)),
        Claim(measure="worst_recall", first="finetune", second="kd", at=Place(pruning="dense", sparsity=0.0)),
    )
    assert plain.claims == () and plain.resolved["claims"] == [] and len(study.resolved["claims"]) == 2
    ours, theirs = (make_plan(one, tmp_path) for one in (study, plain))
    assert ours.report.claims == study.claims
    keys, others = ({stage.key for stage in in_order([plan.report])} for plan in (ours, theirs))
    assert keys - others == {ours.report.key} and others - keys == {theirs.report.key}


def test_claims_name_recoveries_as_budgets_call_them():
    claim = CLAIM.replace("kd", "'kd, 2 epochs'").replace("second: none", "second: 'finetune, 1 epochs'")
    assert claiming(claim, budgets="[1,2]").claims[0].first == "kd, 2 epochs"
    with pytest.raises(UserError, match="^claims.0.first: 'kd' is no recovery of this study; known: .*kd, 2 epochs"):
        claiming(CLAIM, budgets="[1,2]")


@pytest.mark.parametrize(
    "old,new,message",
    [
        ("cev", "cevs", r"^claims.0.measure: 'cevs' is no measure of bias; known: .*; did you mean 'cev'\?$"),
        ("cev", "cka", r"^claims.0.measure: 'cka' is no measure of bias; known: "),
        ("cev", "pie", r"^claims.0.measure: 'pie' is of all networks together; known: "),
        (
            "cev",
            "worst_group_accuracy",
            r"^claims.0.measure: 'worst_group_accuracy' compares groups; known: accuracy, ",
        ),
        ("cev", "3", r"^claims.0.measure: '3' is no measure"),
        ("first: kd", "first: KD", r"^claims.0.first: 'KD' is no recovery of this study; known: finetune, kd, none"),
        ("second: none", "second: fine", r"^claims.0.second: 'fine' is no recovery of .*did you mean 'finetune'\?$"),
        ("second: none", "second: kd", r"^claims.0.second: 'kd' is compared with itself; name another recovery$"),
        ("magnitude", "magnitud", r"^claims.0.at.pruning: 'magnitud' is no pruning .*did you mean 'magnitude'\?$"),
        ("magnitude", "channels", r"^claims.0.at.pruning: 'channels' is no pruning .*known: dense, magnitude, narrow"),
        ("0.8", "0.9", r"^claims.0.at.sparsity: 0.9 is no sparsity of this study; known of magnitude: 0.8$"),
        ("0.8", "0", r"^claims.0.at.sparsity: 0 is no sparsity of this study; known of magnitude: 0.8$"),
        ("0.8", "1.5", r"^claims.0.at.sparsity: 1.5 is refused; give a number, 0 or more and below 1$"),
        ("0.8", "high", r"^claims.0.at.sparsity: 'high' is refused"),
        ("magnitude", "dense", r"^claims.0.at.sparsity: 0.8 is no sparsity of this study; known of dense: 0\n.*second"),
        (
            "magnitude, sparsity: 0.8",
            "dense, sparsity: 0",
            r"^claims.0.second: the dense networks without recovery are what the others are measured against; name",
        ),
        (
            "measure",
            "measur",
            r"^claims.0.measur: unknown option; .*'measure'\?\nclaims.0.measure: missing; give text$",
        ),
        (CLAIM, "cev", r"^claims.0: 'cev' is not a mapping of options; known: at, first, measure, second$"),
        (CLAIM, f"{CLAIM},{CLAIM}", r"^claims.1: asks the same as claims.0; leave one of them out$"),
        (
            CLAIM,
            f"{CLAIM},{CLAIM.replace('kd', 'x').replace('none', 'kd').replace('x', 'none')}",
            r"^claims.1: asks the same as claims.0; leave one of them out$",
        ),
    ],
)
def test_a_claim_that_names_no_cell_is_refused_with_what_there_is(old, new, message):
    with pytest.raises(UserError, match=message):
        claiming(CLAIM.replace(old, new, 1))
