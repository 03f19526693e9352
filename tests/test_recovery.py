"""Recoveries as a study writes them: teachers, controls from scratch, cached logits, budgets; on the small study."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline import config, efficiency, models
from pipeline.__main__ import main
from pipeline.distillation import Teacher
from pipeline.plan import plan as make_plan
from pipeline.recovery import Scratch
from pipeline.registry import UserError
from pipeline.stage import Context, in_order
from pipeline.stages import Recover, Train, load_network, load_splits
from pipeline.stages.networks import load_teacher
from pipeline.store import StageFailed, Store
from pipeline.table import read_rows, write_rows

pytestmark = pytest.mark.slow

SMOKE = Path(__file__).parents[1] / "configs" / "smoke.yaml"
QUICK = ("train.epochs=2", "data.examples=240", "sparsities=[0.5]", "seeds=2")


def study(*overrides):
    return config.load(SMOKE, [*QUICK, *overrides])


def recoveries(tmp_path, recovery, *overrides):
    """The pruned students of the only recovery, by seed."""
    plan = make_plan(study(f"recoveries=[{recovery}]", *overrides), tmp_path)
    return plan, [network for network in plan.cells[-1].networks if isinstance(network, Recover)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A place where the dense networks are kept between tests."""
    return Store(tmp_path_factory.mktemp("results"))


def make(store, *targets, **changes):
    """Computes stages and what they need; returns the folder of the first."""
    context = replace(Context(store, store.root / "data"), **changes)
    for stage in in_order(targets):
        store.execute(stage, context)
    return store.open(targets[0])


def check_before_training(plan, root):
    for stage in in_order([plan.report]):
        stage.check(root)


def with_keys(stages):
    return [stage.key for stage in stages]


def test_teachers_default_to_the_parent(tmp_path):
    _, students = recoveries(tmp_path, "kd")
    for words in ("parent", "{}", "[parent]", "{network: resnet8}"):
        _, others = recoveries(tmp_path, f"{{losses: kd, teachers: {words}}}")
        assert with_keys(others) == with_keys(students) and not any(one.teachers for one in others)


def test_teachers_of_other_seeds_leave_the_floor_alone(tmp_path):
    plain, _ = recoveries(tmp_path, "kd")
    plan, students = recoveries(tmp_path, "{losses: kd, teachers: [parent, {seeds: [7, 8]}], ensemble: random}")
    for student in students:
        assert [teacher.seed for teacher in student.teachers] == [student.seed, 7, 8]
        assert student.teachers[0].key == student.dense.key and student.ensemble == "random"
        assert {teacher.key for teacher in student.teachers} <= {stage.key for stage in student.inputs()}
    assert plan.floor.key == plain.floor.key and with_keys(plan.similar) == with_keys(plain.similar)
    assert with_keys(plan.dense) == with_keys(plain.dense)
    assert with_keys(plan.cells[0].score.references) == with_keys(plain.cells[0].score.references)
    trained = [stage for stage in in_order([plan.report]) if isinstance(stage, Train)]
    assert sorted(stage.seed for stage in trained) == [0, 1, 7, 8]


def test_a_bigger_and_a_poorer_teacher(tmp_path):
    _, students = recoveries(tmp_path, "{losses: kd, teachers: [{network: resnet14}, {train: {epochs: 1}, seeds: 2}]}")
    big, *poor = students[1].teachers
    assert (big.network.title, big.seed, big.fit) == ("resnet14", 1, students[1].dense.fit)
    assert [(one.network.title, one.seed, one.fit.epochs) for one in poor] == [("resnet8", 0, 1), ("resnet8", 1, 1)]
    assert poor[0].fit.batch_size == students[0].dense.fit.batch_size, "what is not said is the study's"


@pytest.mark.parametrize(
    "recovery,message",
    [
        ("{losses: kd, teachers: granny}", r"^recoveries.0.teachers: 'granny' is no teacher"),
        ("{losses: kd, teachers: []}", r"^recoveries.0.teachers: empty"),
        ("{losses: kd, teachers: [{seed: 1}]}", r"^recoveries.0.teachers.0.seed: unknown option.*'seeds'\?"),
        ("{losses: kd, teachers: {network: resnet15}}", r"^recoveries.0.teachers.network: 'resnet15' is no network"),
        ("{losses: kd, teachers: {train: {epochs: 0}}}", r"^recoveries.0.teachers.train.epochs: 0 is refused"),
        ("{losses: kd, teachers: {seeds: [-1]}}", r"^recoveries.0.teachers.seeds.0: -1 is refused"),
        ("{losses: finetune, teachers: parent}", r"^recoveries.0.teachers: no loss here asks a teacher"),
        ("{losses: none, window: [0, 0.5]}", r"^recoveries.0.window: no loss here asks a teacher"),
        ("{losses: kd + at, cache_logits: true}", r"^recoveries.0.cache_logits: 'at' reads features"),
        ("{losses: finetune, cache_logits: true}", r"^recoveries.0.cache_logits: no loss here asks a teacher"),
        ("{losses: none, start: scratch}", r"^recoveries.0.start: nothing is trained here"),
        ("{losses: kd, ensemble: random}", r"^recoveries.0.ensemble: 'random' takes two teachers"),
        ("{losses: none, fit: {epochs: 3}}", r"^recoveries.0.fit: nothing is trained here"),
        ("{losses: none, title: idle}", r"^recoveries.0.title: nothing is trained here"),
        ("{losses: kd, window: [0.5]}", r"^recoveries.0.window: \[0.5\] is refused; give two rising shares"),
        ("{losses: kd, window: {a: 1}}", r"^recoveries.0.window: .* is refused"),
        ("{losses: kd, window: [0.5, 0.2]}", r"^recoveries.0.window: .* is refused"),
        ("{losses: kd, window: [0, .nan]}", r"^recoveries.0.window: .* is refused"),
        ("{losses: kd, window: [-0.1, 1]}", r"^recoveries.0.window: .* is refused"),
        ("{losses: kd, teachers: {seeds: 1e30}}", r"^recoveries.0.teachers.seeds: 1e\+30 is refused"),
        ("{losses: true}", r"^recoveries.0.losses: true is no loss"),
        ("{losses: kd, fit: {augmentation: 3}}", r"^recoveries.0.fit.augmentation: 3 is not a mapping"),
    ],
)
def test_mistakes_are_named(recovery, message):
    with pytest.raises(UserError, match=message) as error:
        study(f"recoveries=[{recovery}]")
    assert "\n" not in str(error.value)


def test_one_teacher_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match="'train resnet8 · seed 1' twice for the student of seed 1"):
        recoveries(tmp_path, "{losses: kd, teachers: [parent, {seeds: [1]}]}")


def test_a_teacher_that_cannot_read_the_images_is_refused_before_training(tmp_path):
    plan, _ = recoveries(tmp_path, "{losses: kd, teachers: {network: vgg8}}", "data.size=8")
    with pytest.raises(UserError, match="vgg8 does not take 3x8x8 images"):
        check_before_training(plan, tmp_path)


@pytest.mark.parametrize(
    "recovery,message",
    [
        ("{losses: kd, window: [0, 0.01]}", r"'kd': window: \[0.0, 0.01\] holds none of the steps"),
        ("{losses: [{name: fitnet, block: 9}]}", r"'ce \+ fitnet \(block 9\)': losses: fitnet.block 9 is refused"),
    ],
)
def test_what_cannot_be_computed_is_refused_before_training(tmp_path, recovery, message):
    plan, _ = recoveries(tmp_path, recovery)
    with pytest.raises(UserError, match=message):
        check_before_training(plan, tmp_path)


def test_budgets_and_rounds_are_refused_together():
    with pytest.raises(UserError, match="budgets: pruning 'magnitude iterative' trains again after each"):
        study("budgets=[1,2]", "recoveries=[finetune]", "prunings=[{name: magnitude, schedule: iterative}]")


def test_a_spoiled_teacher_ends_with_status_2(store, tmp_path, capsys, monkeypatch):
    """What a person can mend is status 2, wherever it shows; a fault of this program is 1."""
    monkeypatch.setattr("pipeline.executors.prepare_process", lambda threads: None)  # this process has other tests
    plan, (student, _) = recoveries(store.root / "data", "{losses: kd, fit: {epochs: 1}}")
    make(store, student.network)
    results = tmp_path / "results"
    shutil.copytree(store.root, results)
    arguments = ["recover", "--config", str(SMOKE), "--results", str(results), "--data", str(store.root / "data")]
    arguments += [*QUICK, "seeds=1", "recoveries=[{losses: kd, fit: {epochs: 1}}]", "workers=1"]
    weights = Store(results).folder(plan.dense[0]) / "weights.safetensors"
    weights.rename(tmp_path / "aside")
    assert main(arguments) == 2
    assert "weights.safetensors: " in capsys.readouterr().err
    (tmp_path / "aside").rename(weights)
    monkeypatch.setattr("pipeline.stages.networks.load_teacher", None)
    assert main(arguments) == 1
    assert "unexpected TypeError" in capsys.readouterr().err


def test_a_teacher_is_checked_against_student_and_history(store):
    dense = make_plan(study(), store.root / "data").dense[0]
    folder = make(store, dense)
    context, info = Context(store, store.root / "data"), models.load_info(folder)
    validation = load_splits(dense.data, context.data_root).validation
    assert load_teacher(context, dense, info, validation).runs == 0
    with pytest.raises(UserError, match=r"'train resnet8 · seed 0' has the classes class0.*\(4\), the student cat"):
        load_teacher(context, dense, replace(info, classes=("cat", "dog")), validation)
    with pytest.raises(UserError, match="has the input shape 3, 16, 16"):
        load_teacher(context, dense, replace(info, input_shape=(1, 28, 28)), validation)
    with pytest.raises(UserError, match="of the validation images, .* when it was trained; delete"):
        load_teacher(context, dense, info, replace(validation, labels=(validation.labels + 1) % 4))


def test_a_study_with_three_teachers_and_a_late_window(store):
    """Each term has its column from the first epoch on, empty where it was not asked for."""
    _, students = recoveries(
        store.root / "data",
        "{losses: kd + at, teachers: [parent, {seeds: [7]}, {network: resnet14}], ensemble: random, window: [0.5, 1],"
        " fit: {epochs: 2}}",
    )
    student = students[0]
    rows = read_rows(make(store, student) / "history.csv")
    assert [row["kd"] == "" for row in rows] == [True, False]
    assert all(float(row["ce"]) > 0 for row in rows) and float(rows[1]["at"]) > 0
    assert 0.25 < float(rows[1]["teacher_accuracy"]) <= 1


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_cached_logits_change_no_bit_and_spare_the_teacher(store, tmp_path, precision, monkeypatch):
    shape = f"fit: {{epochs: 2, precision: {precision}}}"
    recovery = f"{{losses: kd, teachers: [parent, {{seeds: [7]}}], window: [0, 0.5], {shape}"
    _, (plain, _) = recoveries(tmp_path, recovery + "}")
    _, (cached, other) = recoveries(tmp_path, recovery + ", cache_logits: true}")
    assert plain.key == cached.key, "a cache names no result"
    data = {"data_root": tmp_path / "data"}
    without = [(make(store, plain) / name).read_bytes() for name in ("weights.safetensors", "history.csv")]
    (store.folder(plain)).rename(tmp_path / "aside")  # the store would say that there is nothing to do
    store._checked.clear()
    first = make(store, cached, **data)
    assert [(first / name).read_bytes() for name in ("weights.safetensors", "history.csv")] == without
    assert len(list((tmp_path / "data" / "logits").glob("*.npy"))) == 2, "one for each teacher"

    if precision == "bfloat16":  # slow here, and what follows is the same
        return
    # Another arm of the same seed asks no network at all; another seed has other images and other files.
    warm = recovery.replace("kd", "[{name: kd, temperature: 2}]")
    _, (warmer, _) = recoveries(tmp_path, warm + ", cache_logits: true}")
    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "_run", None)
        make(store, warmer, **data)
    make(store, other, **data)
    assert len(list((tmp_path / "data" / "logits").glob("*.npy"))) == 4


@pytest.mark.parametrize("pruning", ["magnitude", "channels"])
def test_from_scratch_keeps_the_shape_and_nothing_else(store, pruning):
    """At learning rate 0 the result is what training started from."""
    fit = "fit: {learning_rate: 0, weight_decay: 0}"
    plan, students = recoveries(
        store.root / "data", f"{{losses: finetune, start: scratch, {fit}}}", f"prunings=[{pruning}]"
    )
    found = [load_network(make(store, student)) for student in students]
    pruned = [load_network(store.open(student.network)) for student in students]
    for student, mine, old in zip(students, found, pruned, strict=True):
        first = models.build(models.network("resnet8"), input_shape=(3, 16, 16), classes=4, seed=student.seed)
        for (name, new), before in zip(mine.network.named_parameters(), old.network.parameters(), strict=True):
            assert new.shape == before.shape
            if new.dim() == 4 and "stem" not in name:
                mask = mine.masks.get(name, torch.ones_like(new, dtype=torch.bool))
                assert torch.equal(mask, old.masks.get(name, mask))
                assert torch.count_nonzero(new) == mask.sum() and not torch.equal(new, before)
                assert torch.isin(new[mask], first.get_parameter(name)).float().mean() < 0.01, "the old start"
    weights = [mine.network.get_parameter("stem.0.weight") for mine in found]
    assert not torch.equal(*weights), "another seed, other weights"
    size, dense = json.loads((store.open(students[0]) / "size.json").read_text()), store.open(plan.dense[0])
    assert size["sparsity"] == pytest.approx(0.5, abs=0.06) and (dense / "weights.safetensors").exists()


def test_a_born_again_network_learns_from_its_parent(store):
    plan, _ = recoveries(store.root / "data", "{losses: kd, start: scratch, fit: {epochs: 2, learning_rate: 0.1}}")
    student = plan.cells[0].networks[0]
    assert isinstance(student.network, Train) and student.start == Scratch()
    rows = read_rows(make(store, student) / "history.csv")
    assert float(rows[-1]["kd"]) < float(rows[0]["kd"]) and not (store.open(student) / "size.json").exists()


@pytest.fixture(scope="module")
def budgets(store):
    """A study of two budgets with a window, whole: plan and the folder of its report."""
    late = "{losses: kd, window: [0.5, 1], title: late kd}"
    plan = make_plan(study("budgets=[1,3]", f"recoveries=[none,finetune,{late}]"), store.root)
    return plan, make(store, plan.report)


def test_budgets_give_every_recovery_at_every_budget(tmp_path, budgets):
    plan, _ = budgets
    titles = [cell.recovery for cell in plan.cells if cell.sparsity]
    assert titles == ["none", *(f"{name}, {epochs} epochs" for name in ("finetune", "late kd") for epochs in (1, 3))]
    with pytest.raises(UserError, match=r"^recoveries.1.fit.epochs: the study's budgets set it"):
        study("budgets=[1,2]", "recoveries=[kd,{losses: finetune, fit: {epochs: 3}}]")
    with pytest.raises(UserError, match=r"^budgets.0: 0 is refused"):
        study("budgets=[0,2]")


def test_the_report_compares_quality_at_equal_cost(store, budgets):
    """Steps, seconds and accuracy again from the stages' own files; then the table, the figure and the words."""
    plan, report = budgets
    points = read_rows(report / "efficiency.csv")
    assert len(points) == 2 * 2 * 2 * 2, "dense and pruned, two recoveries, two budgets, two seeds"
    cells = {(c.sparsity, c.recovery): c for c in plan.cells}
    for point in points:
        cell = cells[float(point["sparsity_asked"]), f"{point['recovery']}, {point['epochs']} epochs"]
        stage = cell.networks[int(point["seed"])]
        history = read_rows(store.open(stage) / "history.csv")
        assert point["validation_accuracy"] == history[-1]["validation_accuracy"]
        per_epoch = len(load_splits(stage.dense.data, store.root).train) // 32
        assert float(point["steps"]) == int(point["epochs"]) * per_epoch
        parents = len(read_rows(store.open(stage.dense) / "history.csv")) * per_epoch * (point["recovery"] == "late kd")
        assert float(point["steps_with_teachers"]) == float(point["steps"]) + parents
        own, parent = (store.manifest(one).facts["training_seconds"] for one in (stage, stage.dense))
        assert float(point["seconds"]) == own and 0 < own < store.manifest(stage).facts["seconds"]
        assert float(point["seconds_with_teachers"]) == pytest.approx(own + parent * (point["recovery"] == "late kd"))
    rows = read_rows(report / "speed_up.csv")
    assert {(row["recovery"], row["against"]) for row in rows} == {("late kd", "finetune")} and len(rows) == 2 * len(
        efficiency.COSTS
    )
    assert {row["cost"] for row in rows} == set(efficiency.COSTS)
    summary, page = json.loads((report / "summary.json").read_text()), (report / "index.html").read_text()
    said = [sentence for sentence in summary["sentences"] if "late kd" in sentence and "reach" in sentence]
    assert len(said) == 2 and "efficiency.png" in page and (report / "efficiency.png").stat().st_size > 1000


def test_seconds_of_an_interrupted_run_are_not_compared(store, budgets):
    plan, _ = budgets
    stage = plan.cells[-1].networks[0]
    manifest = store.folder(stage) / "manifest.json"
    whole = manifest.read_text()
    try:
        manifest.write_text(whole.replace('"resumed": false', '"resumed": true'))
        places = plan.report._curves(Context(store, store.root))
    finally:
        manifest.write_text(whole)
    assert any("the seconds of late kd are not compared" in sentence for sentence in efficiency.sentences(places))
    costs = {row["cost"] for row in efficiency.speed_up_rows(places) if row["sparsity_asked"]}
    assert costs <= {"steps", "steps_with_teachers"}


def test_the_dashboard_has_each_term(budgets):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, report = budgets
    events = EventAccumulator(str(report / "tensorboard" / "magnitude 0.5" / "late kd, 3 epochs" / "seed1")).Reload()
    names = ("ce", "kd", "teacher_accuracy")
    steps = {name: [event.step for event in events.Scalars(f"training/{name}")] for name in names}
    assert steps == {"ce": [1, 2, 3], "kd": [2, 3], "teacher_accuracy": [2, 3]}


def test_a_term_that_teaches_nothing_stops_the_stage(store, monkeypatch):
    _, students = recoveries(store.root, "{losses: [{name: kd, temperature: 3}], fit: {epochs: 8}}")
    monkeypatch.setattr(type(students[0].losses[1]), "value", lambda self, student, *_: 0 * student.logits.sum())
    with pytest.raises(StageFailed, match="'kd' was exactly zero in .* steps"):
        make(store, students[0])


def test_rows_of_unequal_columns(tmp_path):
    write_rows(tmp_path / "rows.csv", [{"a": 1}, {"a": 2, "b": 3}])
    assert read_rows(tmp_path / "rows.csv") == [{"a": "1", "b": ""}, {"a": "2", "b": "3"}]
