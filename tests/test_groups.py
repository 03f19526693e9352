"""Groups: measures against fairlearn and slow loops, where columns come from, and a study by group from end to end."""

import json
from dataclasses import dataclass, replace

import fairlearn.metrics as fairlearn
import numpy as np
import pytest
import yaml
from conftest import SMOKE, made_up_logits, plan_of, save
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import accuracy_score

import pipeline
from pipeline import bias, config, predictions
from pipeline.__main__ import main
from pipeline.bias import MEASURES, Pair, Predictions, Table, rates
from pipeline.data import DATASETS, Data, Dataset, Source, Split
from pipeline.divergences import jensen_shannon, kullback_leibler, log_softmax
from pipeline.groups import Column
from pipeline.registry import UserError
from pipeline.stage import in_order
from pipeline.table import read_long, select

LABELS = np.random.default_rng(0).integers(0, 4, 600)
SITE = np.random.default_rng(1).choice(["north", "south", "west"], 600, p=[0.5, 0.3, 0.2])
DENSE, PRUNED = (Predictions.from_logits(LABELS, made_up_logits(LABELS, s, w, 4)) for s, w in ((2, 0.2), (3, 0.4)))


def value(name, labels, answers, groups, *, before=None, classes=None):
    """A measure of one network's answers, or of two."""
    column, classes = Column.of(groups), classes or int(max(labels.max(), answers.max())) + 1
    first = Predictions(labels, answers if before is None else before)
    pair = Pair(first, Predictions(labels, answers), classes, labels, classes, column.numbers, len(column.names))
    return Table([pair], [MEASURES[name]()]).point()[0][name][0]


# ------------------------------------------------------------------------------------- against fairlearn, slow loops


FAIRLEARN = {
    "demographic_parity_difference": (fairlearn.demographic_parity_difference, max),
    "equal_opportunity_difference": (fairlearn.equal_opportunity_difference, max),
    "equalized_odds_difference": (fairlearn.equalized_odds_difference, max),
    "equalized_odds_ratio": (fairlearn.equalized_odds_ratio, min),
}


@pytest.mark.parametrize("name", FAIRLEARN)
@pytest.mark.parametrize("classes", [2, 4])
def test_one_class_against_the_rest_is_fairlearn_on_that_binary_input(name, classes):
    function, worst = FAIRLEARN[name]
    for seed in range(5):
        labels = np.random.default_rng(seed).integers(0, classes, 500)
        answers = made_up_logits(labels, 100 + seed, 0.5, classes).argmax(1)
        groups = np.random.default_rng(200 + seed).choice(["a", "b", "c"], 500, p=[0.6, 0.3, 0.1])
        each = [function(labels == c, answers == c, sensitive_features=groups) for c in range(classes)]
        assert value(name, labels, answers, groups) == pytest.approx(worst(each), rel=1e-12)
        if classes == 2 and name in ("demographic_parity_difference", "equalized_odds_difference"):
            assert each[0] == pytest.approx(each[1]), "whichever class is the positive one"


def test_every_group_against_the_metric_frame():
    found = bias.audit(references=DENSE, candidates=PRUNED, groups={"site": Column.of(SITE)}, resamples=100)
    found = found.groups["site"]
    frame = fairlearn.MetricFrame(
        metrics={"accuracy": accuracy_score, "count": fairlearn.count},
        y_true=LABELS,
        y_pred=PRUNED.predictions,
        sensitive_features=SITE,
    )
    for row in found["per_group"]:
        assert row["accuracy"] == pytest.approx(frame.by_group["accuracy"][row["group"]], rel=1e-12)
        assert row["support"] == frame.by_group["count"][row["group"]]
    assert found["measures"]["worst_group_accuracy"]["value"] == pytest.approx(frame.group_min()["accuracy"])
    for c in range(4):
        frame = fairlearn.MetricFrame(
            metrics={"fpr": fairlearn.false_positive_rate, "fnr": fairlearn.false_negative_rate},
            y_true=c == LABELS,
            y_pred=c == PRUNED.predictions,
            sensitive_features=SITE,
        )
        for row in found["per_class_within_group"]:
            if row["class"] == str(c):
                assert [row["fpr"], row["fnr"]] == pytest.approx(list(frame.by_group.loc[row["group"]]), rel=1e-12)


def test_selection_rates_are_those_of_the_metric_frame():
    groups = np.random.default_rng(7).choice(["a", "b"], 600)
    spreads = []
    for c in range(4):
        frame = fairlearn.MetricFrame(
            metrics=fairlearn.selection_rate,
            y_true=c == LABELS,
            y_pred=c == PRUNED.predictions,
            sensitive_features=groups,
        )
        spreads.append(frame.difference())
    found = value("demographic_parity_difference", LABELS, PRUNED.predictions, groups)
    assert found == pytest.approx(max(spreads), rel=1e-12)


def slow_difference(labels, answers, groups, classes, kinds):
    """Groups without examples of a kind are left out for the class; None where nothing is left."""
    apart = []
    for c in range(classes):
        for kind in kinds:
            of_groups = []
            for group in sorted(set(groups)):
                said = [
                    int(answer == c)
                    for label, answer, g in zip(labels, answers, groups, strict=True)
                    if g == group and {"all": True, "found": label == c, "falsely": label != c}[kind]
                ]
                of_groups += [sum(said) / len(said)] if said else []
            if len(of_groups) > 1:
                apart.append(max(of_groups) - min(of_groups))
    return max(apart) if apart else None


small = st.tuples(st.integers(2, 4), st.integers(1, 3)).flatmap(
    lambda sizes: st.lists(
        st.tuples(*[st.integers(0, sizes[0] - 1)] * 3, st.integers(0, sizes[1] - 1)), min_size=1, max_size=25
    ).map(lambda rows: (sizes[0], *np.array(rows).T))
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(small)
def test_groups_without_a_kind_of_example_are_left_out(test):
    classes, labels, before, after, groups = test
    for name, kinds in (
        ("demographic_parity_difference", ["all"]),
        ("equal_opportunity_difference", ["found"]),
        ("equalized_odds_difference", ["found", "falsely"]),
    ):
        found = value(name, labels, after, groups, classes=classes)
        slow = slow_difference(labels, after, groups, classes, kinds)
        assert np.isnan(found) if slow is None else found == pytest.approx(slow, abs=1e-12)
    ratio = value("equalized_odds_ratio", labels, after, groups, classes=classes)
    assert np.isnan(ratio) or 0 <= ratio <= 1
    odds = value("equalized_odds_difference", labels, after, groups, classes=classes)
    assert np.isnan(ratio) == np.isnan(odds) and (np.isnan(odds) or (odds == 0) == (ratio == 1))
    change = value("worst_group_accuracy_change", labels, after, groups, before=before, classes=classes)
    worst = [min((answers == labels)[groups == g].mean() for g in set(groups)) for answers in (before, after)]
    assert change == pytest.approx(worst[1] - worst[0], abs=1e-12)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(small)
def test_flips_bound_what_any_class_can_lose(test):
    classes, labels, before, after, _ = test
    labels = np.append(labels, range(classes))  # error rates need two classes
    before, after = np.append(before, range(classes)), np.append(after, range(classes))
    flips = value("flips", labels, after, np.zeros(len(labels), int), before=before, classes=classes)
    change = np.abs(rates(labels, after, classes=classes).fnr - rates(labels, before, classes=classes).fnr)
    flipped = (before == labels) != (after == labels)
    for c in range(classes):
        assert change[c] <= flipped[labels == c].mean() + 1e-12
    shares = np.bincount(labels, minlength=classes) / len(labels)
    assert (shares * change).sum() <= flips + 1e-12
    assert abs((before == labels).mean() - (after == labels).mean()) <= flips + 1e-12
    assert flips <= value("churn", labels, after, np.zeros(len(labels), int), before=before, classes=classes) + 1e-12


def test_divergences_are_scipys_and_stay_exact_far_out():
    from scipy.spatial.distance import jensenshannon
    from scipy.special import rel_entr, softmax

    first, second = (np.random.default_rng(seed).normal(size=(50, 6)) * 3 for seed in (1, 2))
    p, q = softmax(first, 1), softmax(second, 1)
    logs = log_softmax(first), log_softmax(second)
    assert kullback_leibler(*logs) == pytest.approx(rel_entr(p, q).sum(1), rel=1e-9)
    assert jensen_shannon(*logs) == pytest.approx(jensenshannon(p, q, axis=1) ** 2, rel=1e-9)
    assert (kullback_leibler(logs[0], logs[0]) == 0).all()
    # A probability of e^-2000 is no float; its logarithm is: KL of (1, 0) to (e^-2000, 1) is 2000.
    far = log_softmax(np.array([[2000.0, 0.0]])), log_softmax(np.array([[0.0, 2000.0]]))
    assert kullback_leibler(*far) == pytest.approx([2000.0])


# --------------------------------------------------------------------------------------------------- in an audit


def test_measures_that_compare_groups_have_intervals_trials_and_a_reference():
    trials = [Predictions.from_logits(LABELS, made_up_logits(LABELS, seed, 0.4, 4)) for seed in (5, 6, 7)]
    columns = {"site": Column.of(SITE), "half": Column.of(np.arange(600) % 2)}
    found = bias.audit(references=DENSE, candidates=trials, groups=columns, resamples=200)
    assert set(found.groups) == {"site", "half"} and not found.left_out
    for column, content in found.groups.items():
        groups = columns[column].numbers
        for name in (name for name in MEASURES if MEASURES[name].needs_groups):
            each = content["measures"][name]
            own = [value(name, LABELS, t.predictions, groups, before=DENSE.predictions) for t in trials]
            assert each["trials"] == pytest.approx(own, abs=1e-12) and each["value"] == pytest.approx(np.mean(own))
            few = name == "equalized_odds_ratio" and column == "site"  # a rate is 0 in many resamples
            assert (each["interval"] is None) == bool(each["withheld"]) == few, name
            assert each["interval"] is None or each["interval"][0] < each["value"] < each["interval"][1], name
            if MEASURES[name].compares:
                assert each["reference"] is None
            else:
                assert each["reference"] == pytest.approx(value(name, LABELS, DENSE.predictions, groups))
    rows = found.long_rows((1, 2, 3))
    of_column = select(rows, measure="equalized_odds_difference")
    assert [(row["group"], row["seed"]) for row in of_column if "seed" in row] == [
        (column, seed) for column in columns for seed in (1, 2, 3)
    ]
    inside = {row["group"]: row["value"] for row in select(rows, measure="flips") if row.get("group")}
    flipped = np.mean([(DENSE.predictions == LABELS) != (each.predictions == LABELS) for each in trials], 0)
    assert inside == pytest.approx(
        {f"site={name}": flipped[name == SITE].mean() for name in ("north", "south", "west")}
        | {f"half={number}": flipped[number::2].mean() for number in (0, 1)}
    )
    names = {row.get("group") for row in rows}
    assert names == {None, "site", "half", "site=north", "site=south", "site=west", "half=0", "half=1"}
    json.dumps(found.to_json(), allow_nan=False)


def test_the_interval_is_that_of_drawing_examples_with_their_groups():
    from scipy import stats

    column = Column.of(SITE)
    pair = Pair(DENSE, PRUNED, 4, LABELS, 4, column.numbers, 3)
    name = "equalized_odds_difference"
    fast = bias.bootstrap(Table([pair], [MEASURES[name]()]), resamples=2000, seed=1)[name]
    generator, naive = np.random.default_rng(2), []
    for _ in range(400):
        rows = generator.integers(0, 600, 600)
        naive.append(value(name, LABELS[rows], PRUNED.predictions[rows], SITE[rows], classes=4))
    assert stats.ks_2samp(fast, naive).pvalue > 0.001


def test_no_value_moves_further_than_the_deviations_of_its_rates():
    """What the simultaneous intervals rest on, resample by resample."""
    column = Column.of(SITE)
    chosen = [MEASURES[name]() for name in MEASURES if getattr(MEASURES[name], "simultaneous", False)]
    assert len(chosen) == 5
    table = Table([Pair(DENSE, PRUNED, 4, LABELS, 4, column.numbers, 3)], chosen)
    whole = table.sums(table.multiplicity[:, None].astype(float))[0]
    drawn = table.sums(table.draw(300, np.random.default_rng(0)))[0]
    for each in chosen:
        of = np.log if each.logarithmic else np.asarray
        moved, bound = np.abs(of(each.value(drawn)) - of(each.value(whole))), each.bound(drawn, whole)
        assert (moved <= bound + 1e-12).all() and np.isfinite(bound).all(), each.name
        assert (each.bound(whole, whole) == 0).all()


def test_simultaneous_intervals_reach_as_far_and_never_beyond_what_is_possible():
    labels, site = LABELS % 2, np.where(SITE == "west", "south", SITE)
    dense, *trials = (Predictions.from_logits(labels, made_up_logits(labels, seed, 0.4, 2)) for seed in (4, 5, 6, 7))
    columns = {"site": Column.of(site)}
    alone, several = (
        bias.audit(references=dense, candidates=each, groups=columns, resamples=300).groups["site"]["measures"]
        for each in (trials[0], trials)
    )
    for name in ("demographic_parity_difference", "equalized_odds_difference", "equalized_odds_ratio"):
        for found in (alone[name], several[name]):
            assert 0 <= found["interval"][0] <= found["value"] <= found["interval"][1] <= 1
    low, high = alone["equalized_odds_difference_change"]["interval"]
    middle = alone["equalized_odds_difference_change"]["value"]
    assert high - middle == pytest.approx(middle - low)
    # A rate of 0 in a group: its ratio to others can be anything.
    perfect = Predictions(labels, np.where(site == "south", labels, trials[0].predictions))
    found = bias.audit(references=dense, candidates=perfect, groups=columns, resamples=100).groups["site"]["measures"]
    assert found["equalized_odds_ratio"]["value"] == 0 and found["equalized_odds_ratio"]["interval"] is None
    assert found["equalized_odds_ratio"]["withheld"].startswith("a rate may be 0 in some group")


def test_classes_as_groups_have_no_equal_opportunity_and_it_is_said():
    kind = Column(np.array([0, 0, 1, 1])[LABELS], ("animal", "vehicle"))
    found = bias.audit(references=DENSE, candidates=PRUNED, groups={"kind": kind}, resamples=100).groups["kind"]
    assert found["left_out"] == {"equal_opportunity_difference": "no class has examples of its kind in two groups"}
    assert found["measures"]["equal_opportunity_difference"]["value"] is None
    assert found["measures"]["equalized_odds_difference"]["value"] > 0, "of what is falsely claimed"


def test_measures_that_were_not_asked_for_are_not_there_by_group():
    columns = {"site": Column.of(SITE)}
    found = bias.audit(references=DENSE, candidates=PRUNED, groups=columns, measures=["churn"], resamples=100)
    assert set(found.groups["site"]["measures"]) == set() and "churn" in found.groups["site"]["per_group"][0]
    found = bias.audit(
        references=DENSE, candidates=PRUNED, groups=columns, measures=["worst_group_accuracy"], resamples=100
    )
    assert set(found.measures) == {"cev", "sde"} and set(found.groups["site"]["measures"]) == {"worst_group_accuracy"}


def test_the_page_of_an_audit_shows_every_column():
    from pipeline import auditing

    columns = {"kind": Column(np.array([0, 0, 1, 1])[LABELS], ("<b>", "vehicle")), "site": Column.of(SITE)}
    result = bias.audit(references=DENSE, candidates=PRUNED, groups=columns, resamples=100)
    page = auditing.page(result, "dense")
    assert "<h2>Groups: kind</h2>" in page and "<h2>Groups: site</h2>" in page
    assert page.count("<td>Equalized odds difference</td>") == 2
    assert '<td class="text">&lt;b&gt;</td>' in page and '<td class="text"><b>' not in page
    assert page.count("Without a value: equal_opportunity_difference") == 1


def test_class_within_group_rests_on_the_classes_that_a_group_has():
    kind = Column(np.array([0, 0, 1, 1])[LABELS], ("animal", "vehicle"))
    found = bias.audit(references=DENSE, candidates=PRUNED, groups={"kind": kind}, resamples=100).groups["kind"]
    changes = np.array(
        [[row["d_fpr"], row["d_fnr"]] for row in found["per_class_within_group"] if row["d_fnr"] is not None]
    )
    within = found["class_within_group"]
    assert within["classes"] == within["classes_used"] == len(changes) == 4 < len(found["per_class_within_group"]) == 8
    assert within["cev"]["value"] == pytest.approx(0.5 * ((changes - changes.mean(0)) ** 2).sum(1).mean())
    assert within["sde"]["value"] == pytest.approx(np.abs(changes[:, 0] - changes[:, 1]).mean() / np.sqrt(2))


@pytest.mark.parametrize(
    "groups,message",
    [
        ({"a=b": SITE}, "^groups: a column of groups cannot be called 'a=b'; give text without '='$"),
        ({"": SITE}, "^groups: a column of groups cannot be called ''"),
        ({"site": SITE[:-1]}, "^groups: 599 groups in column 'site' for 600 examples; give one per example$"),
    ],
)
def test_bad_columns_are_refused(groups, message):
    with pytest.raises(UserError, match=message):
        pipeline.audit(reference=DENSE, candidates=PRUNED, groups=groups, resamples=100)


def test_networks_that_disagree_about_a_group_are_refused():
    first, second = (
        replace(each, groups={"site": Column.of(words)}, source=source)
        for each, words, source in ((DENSE, SITE, "a"), (PRUNED, np.roll(SITE, 1), "b"))
    )
    with pytest.raises(UserError, match="^b: the groups in column 'site' differ from those of a; "):
        bias.audit(references=first, candidates=second, resamples=100)
    # The same groups under other numbers are the same.
    other = Column(2 - Column.of(SITE).numbers, ("west", "south", "north"))
    found = bias.audit(references=first, candidates=replace(second, groups={"site": other}), resamples=100)
    assert [row["group"] for row in found.groups["site"]["per_group"]] == ["north", "south", "west"]


def test_columns_are_written_and_read(tmp_path):
    columns = {"site": Column.of(SITE), "a/b": Column(np.arange(600) % 2, ("é", "ü", "unused"))}
    predictions.write(tmp_path, DENSE.logits, LABELS, np.arange(600), list("abcd"), columns)
    found = predictions.load(tmp_path, "there").groups
    assert set(found) == set(columns)
    for name, column in columns.items():
        assert found[name].names == column.names and (found[name].numbers == column.numbers).all()
    damaged = dict(np.load(tmp_path / "predictions.npz"))
    del damaged["group_names:site"]
    path = save(tmp_path, "damaged.npz", **damaged)
    with pytest.raises(UserError, match="'groups:site' without 'group_names:site'"):
        predictions.read([path])
    damaged["group_names:site"] = np.array(["one"])
    with pytest.raises(UserError, match="damaged.npz: 'groups:site': groups: 0 to 2 for 1 names"):
        predictions.read([save(tmp_path, "damaged.npz", **damaged)])


# --------------------------------------------------------------------------------------------- where columns come from


def sites(examples):
    return Column.of(np.array(["north", "south"])[np.arange(examples) // 4 % 2])


@pytest.fixture
def registered():
    """A dataset with a column of its own."""

    @DATASETS.register("with_sites")
    @dataclass(frozen=True)
    class WithSites(Dataset):
        test_share: float = 0.3
        length: int = 240

        def load(self, root):
            images = np.zeros((240, 8, 8, 1), np.uint8)
            labels = np.arange(240) % 4
            return Source(Split(images, labels, np.arange(240), tuple("abcd"), {"site": sites(self.length)}), None, "x")

    yield WithSites
    del DATASETS._classes["with_sites"]


def test_a_column_of_the_dataset_follows_its_examples(registered, tmp_path):
    test = Data(registered()).load(tmp_path).test
    assert (test.groups["site"].numbers == test.ids // 4 % 2).all()
    with pytest.raises(UserError, match="^data: 236 groups in column 'site' for 240 examples"):
        Data(registered(length=236)).load(tmp_path)
    with pytest.raises(UserError, match="^data.groups.site: the dataset has a column of this name"):
        Data(registered(), groups=(("site", (("x", ("a", "b")), ("y", ("c", "d")))),)).load(tmp_path)


SMALL = ("data.examples=120", "data.size=8", "data.channels=1", "network=resnet8")
KIND = "data.groups={kind: {low: [class0, 1], high: [class2, class3]}}"


def test_classes_become_groups(tmp_path):
    splits = config.load(SMOKE, [*SMALL, KIND]).data.load(tmp_path)
    for split in (splits.train, splits.test):
        assert split.groups["kind"].names == ("low", "high")
        assert (split.groups["kind"].numbers == split.labels // 2).all()


def test_groups_name_predictions_and_no_network(tmp_path):
    plain, with_groups, others = (
        in_order([plan_of(*SMALL, *more, root=tmp_path).report])
        for more in ((), (KIND,), (KIND.replace("low", "small"),))
    )

    def keys(stages, *kinds):
        return {stage.key for stage in stages if stage.kind in kinds}

    networks = ("train", "prune", "recover", "similarity", "latency")
    assert keys(plain, *networks) == keys(with_groups, *networks) == keys(others, *networks)
    for one, other in ((plain, with_groups), (with_groups, others), (plain, others)):
        for kind in ("predict", "floor", "score", "report"):
            assert not keys(one, kind) & keys(other, kind), kind
    plain, with_groups = (config.load(SMOKE, [*SMALL, *more]).data for more in ((), (KIND,)))
    assert plain != with_groups and repr(plain) == repr(with_groups), "which names kept logits"


@pytest.mark.parametrize(
    "groups,message",
    [
        ("5", "^data.groups: 5 is no mapping; give column: "),
        ("{kind: [class0]}", "^data.groups.kind: .* is no mapping; give group: "),
        ("{kind: {low: [class0, class1], high: [class1]}}", "^data.groups.kind: class 'class1' stands there twice"),
        ("{kind: {low: [class0], high: []}}", "^data.groups.kind.high: empty, so that no example is in it"),
        ("{kind: {all: [class0, class1, class2, class3]}}", "^data.groups.kind: one group has none to be compared"),
        ("{'a=b': {low: [class0], high: [class1]}}", "^data.groups.a=b: no name for a column of groups"),
    ],
)
def test_bad_groups_of_classes_are_refused_when_read(groups, message):
    with pytest.raises(UserError, match=message):
        config.load(SMOKE, [f"data.groups={groups}"])


@pytest.mark.parametrize(
    "groups,message",
    [
        ("{kind: {low: [class0, clas1], high: [class2, class3]}}", "no class 'clas1'; .*did you mean 'class1'"),
        ("{kind: {low: [class0, class1], high: [class2]}}", "class 'class3' is in no group; put every class into one"),
        ("{kind: {low: [class0, class1, class3], high: [class2, 3]}}", "class 'class3' is in two groups"),
    ],
)
def test_bad_groups_of_classes_are_refused_before_training(groups, message, tmp_path, capsys):
    command = ["run", "--config", str(SMOKE), "--results", str(tmp_path), f"data.groups={groups}", *SMALL]
    assert main(command) == 2
    line = capsys.readouterr().err
    assert "data.groups.kind: " in line and line.count("\n") == 1 and not list(tmp_path.glob("store/*/*"))
    with pytest.raises(UserError, match=message):
        config.load(SMOKE, [f"data.groups={groups}"]).data.load(tmp_path)


# ------------------------------------------------------------------------------------ a CSV beside a folder of images


def folder(tree, parts=("",), each=24):
    """Images of three classes, a stripe that depends on the class; returns their paths below the tree."""
    generator, files = np.random.default_rng(0), []
    for part in parts:
        for c, name in enumerate(("cat", "dog", "truck")):
            (tree / part / name).mkdir(parents=True)
            for number in range(each):
                image = generator.integers(0, 90, (8, 8, 3), dtype=np.uint8)
                image[2 * c : 2 * c + 3] += generator.integers(10, 90, dtype=np.uint8)
                file = "/".join(filter(None, (part, name, f"{number}.png")))
                Image.fromarray(image).save(tree / file)
                files.append(file)
    return files


def site_of(file):
    return ("north", "south")[int(file.rpartition("/")[2].partition(".")[0]) % 2]


def table_of(path, files, line=lambda file: f"{file},{site_of(file)},{'day' if 'cat' in file else 'night'}"):
    path.write_text("file,site,light\n" + "".join(f"{line(file)}\n" for file in files))
    return path


def images(tree, **options):
    return DATASETS.build({"name": "image_folder", "path": str(tree), "size": 0, **options}, "data")


@pytest.mark.parametrize("parts", [("",), ("train", "test")])
def test_a_table_beside_the_images_says_their_groups(parts, tmp_path):
    files = folder(tmp_path / "images", parts)
    csv = table_of(tmp_path / "groups.csv", reversed(files), lambda file: f"./{file},{site_of(file)},x")
    dataset = images(tmp_path / "images", group_file=str(csv))
    splits = Data(dataset).load(tmp_path / "root")
    for part, split in (("train", splits.train), ("train", splits.validation), ("test", splits.test)):
        own = [file for file in sorted_like_the_tree(files) if len(parts) == 1 or file.startswith(part)]
        column = split.groups["site"]
        assert [column.names[number] for number in column.numbers] == [site_of(own[row]) for row in split.ids]
        assert split.groups["light"].names == ("x",)


def sorted_like_the_tree(files):
    return sorted(files, key=lambda file: (file.rpartition("/")[0], file))


def test_an_edited_table_makes_new_names_for_groups_and_decodes_nothing(tmp_path, monkeypatch):
    files = folder(tmp_path / "images")
    csv = table_of(tmp_path / "groups.csv", files)
    dataset, root = images(tmp_path / "images", group_file=str(csv)), tmp_path / "root"
    first = dataset.identity(root), dataset.groups_identity(root)
    decoded = {path: path.stat().st_mtime_ns for path in (root / "decoded").rglob("*.npy")}
    table_of(csv, reversed(files))
    assert (dataset.identity(root), dataset.groups_identity(root)) == first, "the same in another order"
    table_of(csv, files, lambda file: f"{file},{site_of(file)},day")
    assert dataset.identity(root) == first[0] != dataset.groups_identity(root) != first[1]
    assert {path: path.stat().st_mtime_ns for path in (root / "decoded").rglob("*.npy")} == decoded != {}
    without = images(tmp_path / "images")
    assert without.identity(root) == first[0] and without.groups_identity(root) == ""


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda lines: lines[:-1], "no line for 'truck/23.png'; give every image of .*images a line"),
        (lambda lines: lines[:1] + lines[3:], r"no line for 'cat/0.png' \(and 1 more\)"),
        (lambda lines: [*lines, "truck/99.png,north,day"], "'truck/99.png' is no image of .*images; .* 'cat/0.png'"),
        (lambda lines: [*lines, lines[-1]], "'truck/23.png' stands there twice; remove one of the lines"),
        (lambda lines: [*lines[:-1], "truck/23.png,,day"], "line 73 has not 3 filled columns; mend or remove it"),
        (lambda lines: ["file", *(line.partition(",")[0] for line in lines[1:])], "no column 'file' with another"),
        (lambda lines: ["name,site,light", *lines[1:]], "no column 'file' with another"),
        (lambda lines: ["file,site,site", *lines[1:]], "column 'site' stands there twice"),
        (lambda lines: ["file,site,a=b", *lines[1:]], "a column of groups cannot be called 'a=b'"),
        (lambda lines: [], "empty file; start it with the header file,column"),
    ],
)
def test_trouble_in_the_table_is_one_line_that_names_it(change, message, tmp_path):
    files = folder(tmp_path / "images")
    csv = table_of(tmp_path / "groups.csv", files)
    csv.write_text("".join(f"{line}\n" for line in change(csv.read_text().splitlines())))
    with pytest.raises(UserError, match=message) as raised:
        images(tmp_path / "images", group_file=str(csv)).load(tmp_path / "root")
    assert str(raised.value).startswith(str(csv)) and "\n" not in str(raised.value)


def test_a_missing_table_and_a_group_of_training_images_alone(tmp_path):
    files = folder(tmp_path / "images", ("train", "test"), each=4)
    with pytest.raises(UserError, match="nowhere.csv: not readable as .csv: .*No such file"):
        images(tmp_path / "images", group_file=str(tmp_path / "nowhere.csv")).load(tmp_path / "root")
    csv = table_of(tmp_path / "groups.csv", files, lambda file: f"{file},{file.partition('/')[0]},x")
    with pytest.raises(UserError, match="^data: group 'site=train' has no test example; add some, or leave the group"):
        Data(images(tmp_path / "images", group_file=str(csv))).load(tmp_path / "root")


STUDY = {
    "study": "sites",
    "seeds": 2,
    "network": "resnet8",
    "train": {"epochs": 2, "batch_size": 16, "augmentation": {"crop_padding": 0, "flip": False}},
    "recover": {"epochs": 1, "batch_size": 16, "augmentation": {"crop_padding": 0, "flip": False}},
    "sparsities": [0.8],
    "recoveries": ["none"],
    "resamples": 100,
    "smoothing": 0.5,
    "similarity_examples": 10,
    "workers": 1,
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study on a folder with a table of groups, and classes as groups beside it: its folder, after ``run``."""
    root = tmp_path_factory.mktemp("study")
    table_of(root / "groups.csv", folder(root / "images"))
    data = {"name": "image_folder", "path": str(root / "images"), "size": 0, "group_file": str(root / "groups.csv")}
    data |= {"test_share": 0.4, "validation": 0.2, "groups": {"kind": {"animal": ["cat", "dog"], "vehicle": ["truck"]}}}
    (root / "study.yaml").write_text(yaml.safe_dump({**STUDY, "data": data}))
    assert main(run_of(root)) == 0
    return root


def run_of(root, verb="run"):
    return [verb, "--config", str(root / "study.yaml"), "--results", str(root / "results")]


@pytest.mark.slow
def test_a_study_by_group_from_end_to_end(study):
    report = study / "results" / "reports" / "sites"
    rows = select(read_long(report / "rows.csv"), pruning="magnitude")
    stored = {json.loads((path / "manifest.json").read_text())["label"]: path for path in predict_folders(study)}
    splits = config.load(study / "study.yaml").data.load(study / "results" / "data")
    for name in ("site", "light", "kind"):
        column = splits.test.groups[name]
        assert column.sizes.all()
        networks = {}
        for what in ("train resnet8", "prune magnitude 0.8"):
            networks[what] = [
                predictions.load(stored[f"predict · {what} · seed {seed}"], what).predictions for seed in (0, 1)
            ]
        labels, pruned, dense = splits.test.labels, networks["prune magnitude 0.8"], networks["train resnet8"]
        for number, group in enumerate(column.names):
            inside = column.numbers == number
            (row,) = select(rows, kind="bias", measure="accuracy", group=f"{name}={group}")
            assert row["value"] == pytest.approx(np.mean([(each == labels)[inside].mean() for each in pruned]))
            (row,) = select(rows, kind="bias", measure="flips", group=f"{name}={group}")
            flipped = [((a == labels) != (b == labels))[inside].mean() for a, b in zip(dense, pruned, strict=True)]
            assert row["value"] == pytest.approx(np.mean(flipped))
        words = np.array(column.names)[column.numbers]
        for row in select(rows, kind="bias", measure="demographic_parity_difference", group=name):
            each = [
                max(
                    fairlearn.demographic_parity_difference(labels == c, p == c, sensitive_features=words)
                    for c in range(3)
                )
                for p in pruned
            ]
            assert row["value"] == pytest.approx(np.mean(each) if row["seed"] is None else each[row["seed"]])
        support = {row["group"]: row["value"] for row in select(rows, measure="support", **{"class": None})}
        assert [support[f"{name}={group}"] for group in column.names] == column.sizes.tolist()
    page = (report / "index.html").read_text()
    assert all(f"<h2>Groups: {name}</h2>" in page for name in ("site", "light", "kind"))
    assert "Worst-group accuracy" in page and "<td>north</td>" in page
    correlated = (report / "correlation.csv").read_text()
    assert "accuracy" in correlated and "demographic_parity_difference" not in correlated


def predict_folders(root):
    return [path.parent for path in (root / "results" / "store" / "predict").glob("*/manifest.json")]


@pytest.mark.slow
def test_an_audit_of_two_folders_of_predictions_knows_their_columns(study):
    first, second = sorted(map(str, predict_folders(study)))[:2]
    found = pipeline.audit(reference=first, candidates=second, smoothing=0.5, resamples=100)
    assert set(found.groups) == {"site", "light", "kind"}
    assert [row["group"] for row in found.groups["kind"]["per_group"]] == ["animal", "vehicle"]


@pytest.mark.slow
def test_an_edited_table_makes_predictions_and_scores_anew_and_no_network(study, capsys):
    assert main(run_of(study)) == 0 and "nothing to compute" in capsys.readouterr().out
    csv, networks = study / "groups.csv", {path.name for path in (study / "results" / "store" / "train").iterdir()}
    before = {path.name for path in predict_folders(study)}
    text = csv.read_text()
    try:
        csv.write_text(text.replace("cat/0.png,north", "cat/0.png,south"))
        assert main([*run_of(study, "plan"), "--json"]) == 0
        lines = json.loads(capsys.readouterr().out)
        todo = {line["stage"] for line in lines if line["state"] == "todo"}
        assert todo == {"predict", "floor", "score", "correlate", "report"}
        assert main(run_of(study)) == 0
        assert {path.name for path in (study / "results" / "store" / "train").iterdir()} == networks
        assert len(before) == 4 and len({path.name for path in predict_folders(study)} - before) == 4
        (row,) = select(
            read_long(study / "results" / "reports" / "sites" / "rows.csv"),
            **{"pruning": "magnitude", "measure": "support", "group": "site=south", "class": "cat"},
        )
        splits = config.load(study / "study.yaml").data.load(study / "results" / "data")
        assert row["value"] == (splits.test.groups["site"].numbers == 1)[splits.test.labels == 0].sum()
    finally:
        csv.write_text(text)
