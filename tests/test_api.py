"""What ``from pipeline import ...`` gives: exactly these names, light to import, and each does what it says."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, SMOKE, made_up_logits

import pipeline
from pipeline.predictions import Predictions
from pipeline.registry import UserError

NAMES = ["audit", "cev", "prune", "rates", "sde", "similarity", "study"]

LABELS = np.random.default_rng(0).integers(0, 3, 600)
DENSE, AGAIN, PRUNED = (made_up_logits(LABELS, seed) for seed in (1, 2, 3))


def test_exactly_these_names():
    assert sorted(pipeline.__all__) == NAMES
    assert set(NAMES) <= set(dir(pipeline))
    assert all(callable(getattr(pipeline, name)) for name in NAMES)
    with pytest.raises(AttributeError, match="no attribute 'frobnicate'"):
        _ = pipeline.frobnicate


def test_no_module_takes_a_public_name():
    """Importing a module puts it into the package under its own name, whatever stood there before."""
    modules = {path.stem for path in (ROOT / "pipeline").iterdir()}
    assert not modules & set(NAMES)


@pytest.mark.slow
def test_each_name_is_a_function_whatever_was_imported_before():
    code = (
        f"import pkgutil, pipeline; from pipeline import {', '.join(NAMES)}; "
        "[__import__(each.name) for each in pkgutil.walk_packages(pipeline.__path__, 'pipeline.') "
        "if each.name != 'pipeline.__main__']; import pipeline.__main__; "
        f"assert all(callable(getattr(pipeline, name)) for name in {NAMES}), 'a module'; "
        f"from pipeline import {', '.join(NAMES)}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_importing_the_package_and_its_measures_loads_no_torch():
    heavy = "{'torch', 'torchvision', 'matplotlib', 'scipy', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"import sys, pipeline; assert not {heavy}"], check=True, cwd=ROOT)
    code = "import sys; from pipeline import audit, rates, cev, sde; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_audit_of_arrays_files_and_predictions_agree(tmp_path):
    for name, logits in (("dense", DENSE), ("again", AGAIN), ("pruned", PRUNED)):
        np.savez(tmp_path / f"{name}.npz", labels=LABELS, logits=logits)
    of_arrays = pipeline.audit(
        reference=DENSE, candidates=[PRUNED], reference_trials=[AGAIN], labels=LABELS, resamples=100
    )
    of_files = pipeline.audit(
        reference=tmp_path / "dense.npz",
        candidates=str(tmp_path / "pruned.npz"),
        reference_trials=[tmp_path / "again.npz"],
        resamples=100,
    )
    mixed = pipeline.audit(
        reference=Predictions.from_logits(LABELS, DENSE),
        candidates=[tmp_path / "pruned.npz"],
        reference_trials=[AGAIN],
        labels=LABELS,
        resamples=100,
    )
    for found in (of_files, mixed):
        assert (found.cev, found.sde, found.cev_interval) == (of_arrays.cev, of_arrays.sde, of_arrays.cev_interval)
        assert found.measures["cev"].floor == of_arrays.measures["cev"].floor and found.floor_networks == 2
    before, after = pipeline.rates(LABELS, DENSE), pipeline.rates(LABELS, PRUNED)
    assert of_arrays.cev == pytest.approx(pipeline.cev(before, after).value)
    assert of_arrays.sde == pytest.approx(pipeline.sde(before, after).value)


def test_audit_by_groups_given_as_words():
    groups = np.where(np.arange(600) < 200, "few", "many")
    found = pipeline.audit(
        reference=DENSE.argmax(1), candidates=PRUNED.argmax(1), labels=LABELS, groups=groups, resamples=100
    )
    per_group = {row["group"]: row for row in found.groups["group"]["per_group"]}
    assert {name: row["support"] for name, row in per_group.items()} == {"few": 200, "many": 400}
    right = (PRUNED.argmax(1) == LABELS)[:200].mean()
    assert per_group["few"]["accuracy"] == pytest.approx(right)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"reference": DENSE, "candidates": PRUNED}, r"^reference: .*labels="),
        ({"reference": DENSE, "candidates": [], "labels": LABELS}, "nothing to compare"),
        ({"reference": DENSE, "candidates": PRUNED[:5], "labels": LABELS}, "^candidate 1: 600 labels but 5"),
        ({"reference": "nowhere.npz", "candidates": PRUNED, "labels": LABELS}, "nowhere.npz: no such file"),
        ({"reference": DENSE, "candidates": PRUNED, "labels": LABELS, "groups": [1]}, "^groups: 1 groups for 600"),
    ],
)
def test_audit_names_mistakes(options, message):
    with pytest.raises(UserError, match=message):
        pipeline.audit(**options)


def test_prune_takes_a_name_a_mapping_or_a_method():
    from pipeline import models
    from pipeline.pruning import METHODS

    network = models.build(models.network("resnet8"), input_shape=(1, 16, 16), classes=3)
    methods = ("magnitude", {"name": "magnitude", "scope": "global"}, METHODS["magnitude"]())
    weights = [pipeline.prune(network, method, 0.5).network.state_dict() for method in methods]
    for name, first in weights[0].items():
        assert all(torch.equal(first, other[name]) for other in weights[1:])
    smaller = pipeline.prune(network, "channels", 0.5, images=torch.zeros(2, 1, 16, 16)).network
    before, after = (sum(part.numel() for part in each.parameters()) for each in (network, smaller))
    assert after < 0.6 * before
    with pytest.raises(UserError, match=r"^method: 'magnitud' is no pruning method; .*did you mean 'magnitude'\?"):
        pipeline.prune(network, "magnitud", 0.5)


def test_similarity_of_arrays_and_tensors():
    features = np.random.default_rng(1).normal(size=(40, 6))
    rotation, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))
    assert pipeline.similarity(features, 3 * features @ rotation) == pytest.approx(1, abs=1e-9)
    assert pipeline.similarity(features, torch.as_tensor(features), measure="cka") == pytest.approx(1, abs=1e-9)
    with pytest.raises(UserError, match="'ckka' is no similarity measure; .*did you mean 'cka'"):
        pipeline.similarity(features, features, measure="ckka")


SMALL = ("seeds=2", "data.examples=160", "train.epochs=1", "resamples=100", "recoveries=[none]", "data.noise=0.6")


@pytest.mark.slow
def test_study_gives_the_long_table_and_the_second_call_computes_nothing(tmp_path):
    said = []
    torch.set_num_threads(2)
    found = pipeline.study(SMOKE, *SMALL, results=tmp_path, say=said.append)
    assert torch.get_num_threads() == 2 and 5e-324 * 2 > 0, "the process computes as before"
    torch.set_num_threads(1)
    assert found.name == "smoke" and found.folder == tmp_path / "reports" / "smoke"
    assert (found.folder / "index.html").exists()
    assert {row["kind"] for row in found.rows} >= {"bias", "class", "floor", "similarity", "size", "latency"}
    assert {row["seed"] for row in found.select(kind="bias", measure="cev")} == {0, 1, None}
    assert any("train resnet8" in line for line in said) and not any("\n" in line for line in said)
    said.clear()
    again = pipeline.study(str(SMOKE), *SMALL, results=str(tmp_path), say=said.append)
    assert again.rows == found.rows and not said


def test_study_names_mistakes(tmp_path):
    with pytest.raises(UserError, match="^sparsites: unknown key"):
        pipeline.study(SMOKE, "sparsites=0.9", results=tmp_path / "results")
    assert not (tmp_path / "results").exists()
