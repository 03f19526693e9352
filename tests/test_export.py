"""Exported networks: one file that repeats the stored network's logits, or none at all."""

import json
import shutil
import sys

import pytest
import torch
from torch import nn

from pipeline import export, models, pruning
from pipeline.__main__ import main
from pipeline.files import sha256_of
from pipeline.registry import UserError

pytestmark = pytest.mark.slow

SHAPE = (3, 16, 16)


@pytest.fixture(scope="module", params=["dense", "magnitude", "filters", "channels"])
def stored(request, tmp_path_factory):
    """A folder as the stages leave it, with BatchNorm statistics and biases that folding must carry over."""
    folder = tmp_path_factory.mktemp(request.param)
    network = models.build(models.network("resnet8"), input_shape=SHAPE, classes=4, seed=0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight, module.bias):
                nn.init.uniform_(tensor, -0.5, 1.0)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    info = models.describe(
        network.eval(), models.network("resnet8"), ("a", "b", "c", "d"), SHAPE, (0.5,) * 3, (0.2,) * 3
    )
    masks = {}
    if request.param != "dense":
        method = pruning.METHODS.build(request.param, "test")
        pruned = pruning.prune(network, method, 0.75, images=torch.randn(4, *SHAPE))
        network, masks, info = pruned.network, pruned.masks, models.with_removed(info, pruned.removed)
    models.save(folder, network, info, masks)
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in folder.iterdir()}
    (folder / "manifest.json").write_text(json.dumps({"options": {}, "inputs": {}, "files": files}))
    return folder, network.eval()


def test_a_damaged_network_is_not_exported(stored, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(stored[0], folder)
    weights = folder / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"weights.safetensors: does not match its checksum"):
        export.export(folder, tmp_path / "network.safetensors", "safetensors")
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest.json: cannot be read"):
        export.export(folder, tmp_path / "network.safetensors", "safetensors")
    assert list(tmp_path.iterdir()) == [folder]


def test_safetensors_builds_again(stored, tmp_path):
    folder, network = stored
    error = export.export(folder, tmp_path / "network.safetensors", "safetensors")
    images = torch.randn(5, *SHAPE)
    again, info = export.load(tmp_path / "network.safetensors")
    torch.testing.assert_close(again(images), network(images), rtol=0, atol=1e-4)
    assert 0 <= error < 1e-4 and info == models.load_info(folder)
    assert not [module for module in again.modules() if isinstance(module, nn.BatchNorm2d)], "folded"
    zeros = sum(int((p == 0).sum()) for name, p in again.named_parameters() if p.dim() == 4)
    assert zeros == sum(int((p == 0).sum()) for p in network.parameters() if p.dim() == 4), "masks stay"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript(stored, tmp_path):
    folder, network = stored
    export.export(folder, tmp_path / "network.pt", "torchscript")
    extra = {"model": ""}
    again = torch.jit.load(tmp_path / "network.pt", _extra_files=extra)
    images = torch.randn(3, *SHAPE)
    torch.testing.assert_close(again(images), network(images), rtol=0, atol=1e-4)
    assert json.loads(extra["model"])["classes"] == ["a", "b", "c", "d"]


def test_onnx(stored, tmp_path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder, network = stored
    export.export(folder, tmp_path / "network.onnx", "onnx")
    images = torch.randn(7, *SHAPE)
    session = runtime.InferenceSession(str(tmp_path / "network.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), network(images).detach(), rtol=0, atol=1e-4)
    graph = onnx.load(tmp_path / "network.onnx")
    onnx.checker.check_model(graph)
    assert "BatchNormalization" not in {node.op_type for node in graph.graph.node}
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    assert json.loads(metadata["model"])["mean"] == [0.5] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["network.onnx"]


@pytest.mark.parametrize("stored", ["magnitude"], indirect=True)
def test_a_mismatch_writes_nothing(stored, tmp_path, monkeypatch):
    folder, _ = stored
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    (tmp_path / "network.pt").write_text("the file before")
    with pytest.raises(UserError, match="logits differ by .* nothing was written"):
        export.export(folder, tmp_path / "network.pt", "torchscript")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["the file before"]


@pytest.mark.parametrize("stored", ["magnitude"], indirect=True)
def test_missing_packages_are_named(stored, tmp_path, monkeypatch):
    folder, _ = stored
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"the package onnxruntime is missing; .*\[export\]"):
        export.export(folder, tmp_path / "network.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_mistakes_on_the_command_line(tmp_path, capsys):
    command = ["export", str(tmp_path), "--format", "safetensors", "--output"]
    for output, message in ((tmp_path / "x", "no readable model.json"), (tmp_path / "no" / "x", "does not exist")):
        assert main([*command, str(output)]) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())
    (tmp_path / "notes.safetensors").write_text("no tensors")
    with pytest.raises(UserError, match="no export of this pipeline"):
        export.load(tmp_path / "notes.safetensors")
