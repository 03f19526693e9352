"""Every network builds for any channel and class count, shows Outputs, and comes back from disk bit for bit."""

import errno
import os

import pytest
import torch

from pipeline import models
from pipeline.files import DamagedFile
from pipeline.models import Observer
from pipeline.registry import UserError

OWN = ["resnet8", "resnet20", "resnet8x4", "wrn_16_2", "vgg8"]
TORCHVISION = [
    "resnet18",
    "mobilenet_v3_small",
    "vgg11_bn",
    "shufflenet_v2_x0_5",
    "vit_b_32",
    "squeezenet1_1",
    "regnet_y_400mf",
]


@pytest.mark.parametrize("name", OWN + TORCHVISION)
def test_outputs(name):
    shape = (1, 32, 32) if name in OWN else (1, 64, 64)
    network = models.build(models.network(name), input_shape=shape, classes=7).eval()
    info = models.describe(network, models.network(name), tuple("abcdefg"), shape, (0.5,), (0.2,))
    images = torch.randn(3, *shape)
    with Observer(network, info.blocks, info.classifier) as observer:
        outputs = observer(images)
    assert outputs.logits.shape == (3, 7) and outputs.embedding.ndim == 2
    assert 3 <= len(outputs.blocks) <= 6
    assert all(block.shape[0] == 3 and block.ndim in (3, 4) for block in outputs.blocks)
    torch.testing.assert_close(outputs.logits, network(images))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    head = network.get_submodule(info.classifier)
    if isinstance(head, torch.nn.Linear):
        torch.testing.assert_close(head(outputs.embedding), outputs.logits)


@pytest.mark.parametrize(
    "name,parameters",
    [  # He et al. 2016 count 0.27 M for ResNet-20; with 1x1 shortcuts instead of padding, two convolutions more
        ("resnet20", 0.27e6 + 16 * 32 + 32 * 64),
        ("resnet110", 1.7e6),
        ("wrn_16_2", 0.70e6),  # Tian et al. 2020, table of architectures
        ("wrn_40_2", 2.26e6),
        ("resnet8x4", 1.23e6),
        ("resnet32x4", 7.43e6),
        ("vgg8", 3.97e6),
    ],
)
def test_sizes_are_those_of_the_literature(name, parameters):
    classes = 100 if "resnet20" not in name and "110" not in name else 10
    network = models.build(models.network(name), input_shape=(3, 32, 32), classes=classes)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(parameters, rel=0.02)


def test_seed_and_global_state():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (
        models.build(models.network("resnet8"), input_shape=(1, 16, 16), classes=3, seed=seed).state_dict()
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.rand(1), expected), "building a network moved the global random state"
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["stem.0.weight"], other["stem.0.weight"])


def test_save_and_load(tmp_path):
    network = models.build(models.network("resnet8"), input_shape=(3, 16, 16), classes=4, seed=1)
    network(torch.randn(8, 3, 16, 16))  # moves BatchNorm's statistics
    info = models.describe(
        network, models.network("resnet8"), ("a", "b", "c", "d"), (3, 16, 16), (0.5,) * 3, (0.2,) * 3
    )
    models.save(tmp_path, network, info)
    assert models.load_info(tmp_path) == info
    again = models.load_weights(tmp_path, models.fresh(info))
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(again(images), network.eval()(images))


def test_tensors_come_back_with_their_types_and_shapes(tmp_path):
    tensors = {
        "image order": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "half": torch.randn(3).bfloat16(),
        "mask": torch.tensor([True, False]),
        "scalar": torch.tensor(7),
        "none": torch.zeros(0, 2),
    }
    for metadata in (None, {"epoch": "1", "umlaut": "ä\n"}):
        models.save_tensors(tmp_path / "some.safetensors", tensors, metadata)
        found, said = models.read_tensors(tmp_path / "some.safetensors")
        assert said == (metadata or {}) and found.keys() == tensors.keys()
        for name, value in tensors.items():
            assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_tensors_that_cannot_be_written_leave_the_former_ones(tmp_path, monkeypatch, call):
    path = tmp_path / "some.safetensors"
    models.save_tensors(path, {"a": torch.ones(2)})

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"):
        models.save_tensors(path, {"a": torch.zeros(2)})
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert torch.equal(models.read_tensors(path)[0]["a"], torch.ones(2))


def test_what_is_no_safetensors_file_is_damaged(tmp_path):
    path = tmp_path / "some.safetensors"
    for content in (
        b"",
        b"{}",
        b"\xff" * 64,
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"\xff\xfe",
    ):
        path.write_bytes(content)
        with pytest.raises(DamagedFile, match="damaged .no safetensors file: .") as error:
            models.read_tensors(path)
        assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        models.read_tensors(path)


def test_bad_names_and_sizes():
    with pytest.raises(UserError, match="'resnt20' is no network.*did you mean 'resnet20'"):
        models.build(models.network("resnt20"), input_shape=(3, 32, 32), classes=10)
    with pytest.raises(UserError, match="vgg8 does not take 3x4x4 images"):
        models.build(models.network("vgg8"), input_shape=(3, 4, 4), classes=10)
    assert models.network("torchvision/vgg11").title == "torchvision/vgg11"
    assert models.network("resnet32x4").title == "resnet32x4"


def test_damaged_files_are_named(tmp_path):
    network = models.build(models.network("resnet8"), input_shape=(3, 16, 16), classes=4)
    info = models.describe(network, models.network("resnet8"), tuple("abcd"), (3, 16, 16), (0.5,) * 3, (0.2,) * 3)
    models.save(tmp_path, network, info)
    (tmp_path / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="weights.safetensors: cannot be read"):
        models.load_weights(tmp_path, network)
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(UserError, match="no readable model.json"):
        models.load_info(tmp_path)
