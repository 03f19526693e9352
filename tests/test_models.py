"""Every network builds for any channel and class count, shows Outputs, and comes back from disk bit for bit."""

import csv
import errno
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline import models, similarities
from pipeline.__main__ import main
from pipeline.files import DamagedFile
from pipeline.models import Observer
from pipeline.registry import UserError
from pipeline.table import read_long, select

SMOKE = Path(__file__).parents[1] / "configs" / "smoke.yaml"
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


# Names and options. --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value,title,name",
    [
        ("resnet20", "resnet20", "cifar_resnet"),
        ("resnet8x4", "resnet8x4", "cifar_resnet"),
        ("resnet50x1", "resnet50x1", "cifar_resnet"),
        ("resnet50", "resnet50", "torchvision"),
        ("wrn_40_2", "wrn_40_2", "wide_resnet"),
        ("vgg11", "vgg11", "small_vgg"),
        ("torchvision/vgg11", "torchvision/vgg11", "torchvision"),
        ("vgg11_bn", "vgg11_bn", "torchvision"),
        ({"name": "resnet20"}, "resnet20", "cifar_resnet"),
        ({"name": "resnet20", "width": 2}, "resnet20x2", "cifar_resnet"),
        ({"name": "cifar_resnet", "depth": 32, "width": 4}, "resnet32x4", "cifar_resnet"),
        ({"name": "torchvision", "model": "resnet18"}, "resnet18", "torchvision"),
    ],
)
def test_a_network_by_name_or_by_name_and_options(value, title, name):
    network = models.network(value)
    assert (network.title, network.name) == (title, name)
    assert network == models.network(title) and hash(network) == hash(models.network(title)), "a title is a name"
    written, options = network.written()
    assert (written, options) == (title, {})


def test_every_listed_name_is_a_network_of_this_title():
    listed = [name for family in models.NETWORKS for name in models.NETWORKS[family].names()]
    assert len(listed) > 80
    for name in listed:
        family = "" if name not in OWN_TOO else "torchvision/"
        assert models.network(family + name).title == family + name


OWN_TOO = ("vgg11", "vgg13", "vgg16", "vgg19")  # names of torchvision's that stand for networks of this package


@pytest.mark.parametrize(
    "value,message",
    [
        ("resnet81", "where: 'resnet81' is no network; known: .*did you mean 'resnet8'"),
        ("torchvision/resnet81", "'torchvision/resnet81' is no network"),
        (None, "'None' is no network"),
        (20, "'20' is no network"),
        ([1], "is no network"),
        ({}, "'None' is no network"),
        ({"name": "resnet8x4", "width": 4}, r"where.width: the name 'resnet8x4' says it already"),
        ({"name": "resnet8", "widht": 4}, r"where.widht: .*did you mean 'width'"),
        ("resnet9x1", "depth is 9; give 6n . 2 up to 1202, such as 8, 14, 20"),
        ("wrn_9_1", "depth is 9; give 6n . 4 up to 1202, such as 10, 16, 22"),
        ("resnet60000002x1", "'resnet60000002x1' is no network .depth is 60000002"),
        ("resnet8x100000", "'resnet8x100000' is no network .width is 100000; give 1 to 1000"),
        ("resnet8x0", "width is 0"),
        ({"name": "torchvision", "model": "resnet19"}, "model 'resnet19' is no classifier of torchvision; .*'resnet1"),
    ],
)
def test_what_is_no_network_is_refused_at_once(value, message):
    started = time.monotonic()
    with pytest.raises(UserError, match=message) as error:
        models.network(value, "where")
    assert time.monotonic() - started < 5 and "\n" not in str(error.value)


def test_a_network_larger_than_memory_is_refused_before_it_is_built():
    started = time.monotonic()
    with pytest.raises(UserError, match=r"resnet8x1000 takes 1,122 GiB to train, and this machine has [0-9,]+; take a"):
        models.build(models.network("resnet8x1000"), input_shape=(3, 32, 32), classes=10)
    assert time.monotonic() - started < 5


# Block ends. ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name,blocks,classifier",
    [  # read off torchvision's definitions: where the resolution changes
        ("alexnet", "features.1 features.4 features.11", "classifier.6"),
        ("resnet18", "relu layer1 layer2 layer3 layer4", "fc"),
        ("vgg11", "features.1 features.4 features.9 features.14 features.19 features", "classifier.6"),
        ("googlenet", "conv1 conv3 inception3b inception4e inception5b", "fc"),
        ("squeezenet1_1", "features.1 features.4 features.7 classifier.2", "classifier.1"),
        ("mobilenet_v2", "features.1 features.3 features.6 features.13 features", "classifier.1"),
        ("shufflenet_v2_x0_5", "conv1 maxpool stage2 stage3 conv5", "fc"),
        ("convnext_tiny", "features.2.0 features.4.0 features.6.0 features", "classifier.2"),
        ("swin_t", "features.0.0 features.1 features.3 features.5 norm", "head"),
        (
            "densenet121",
            "features.relu0 features.transition1.conv features.transition2.conv features.transition3.conv features",
            "classifier",
        ),
        (
            "regnet_y_400mf",
            "stem trunk_output.block1 trunk_output.block2 trunk_output.block3 trunk_output",
            "fc",
        ),
    ],
)
def test_blocks_end_where_the_resolution_changes(name, blocks, classifier):
    network = models.network(f"torchvision/{name}").build((3, 64, 64), 7)
    assert models.find_blocks(network, (3, 64, 64)) == (tuple(blocks.split()), classifier)


def test_blocks_of_a_network_of_tokens_are_evenly_spaced_layers():
    network = models.network("vit_b_32").build((3, 64, 64), 7)
    layers = [f"encoder.layers.encoder_layer_{number}" for number in (3, 6, 8, 11)]
    assert models.find_blocks(network, (3, 64, 64)) == (tuple(layers), "heads.head")


class Tower(nn.Module):
    """Modules one after the other, with a dropout before and a norm behind, under names that say nothing."""

    def __init__(self, modules, end):
        super().__init__()
        self.a, self.b, self.c = nn.Dropout(0.1), nn.ModuleList(modules), end

    def forward(self, x):
        x = self.a(x)
        for module in self.b:
            x = module(x)
        return self.c(x)


class Mixer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.again = nn.LayerNorm(width), nn.LayerNorm(width)
        self.first, self.second = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return self.again(x + self.second(self.first(self.norm(x)).relu()))


class Tokens(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.patches, self.tower = nn.Conv2d(3, 8, 4, 4), Tower([Mixer(8) for _ in range(layers)], nn.LayerNorm(8))
        self.head = nn.Linear(8, 5)

    def forward(self, images):
        return self.head(self.tower(self.patches(images).flatten(2).transpose(1, 2)).mean(1))


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        blocks = [nn.Sequential(nn.Conv2d(width, 8, 3, 2, 1), nn.ReLU(inplace=True)) for width in (3, 8, 8)]
        self.body, self.head = Tower([nn.Identity(), *blocks], nn.BatchNorm2d(8)), nn.Linear(8, 5)

    def forward(self, images):
        return self.head(self.body(images).mean((2, 3)))


def test_blocks_are_found_by_shapes_whatever_the_modules_are_called():
    for layers, chosen in ((2, (0, 1)), (3, (0, 1, 2)), (4, (0, 1, 2, 3)), (6, (1, 2, 4, 5))):
        expected = tuple(f"tower.b.{number}" for number in chosen)
        assert models.find_blocks(Tokens(layers), (3, 16, 16)) == (expected, "head")
    assert models.find_blocks(Tokens(1), (3, 16, 16)) == (("tower",), "head"), "a single layer has no like"
    assert models.find_blocks(Wrapped(), (3, 16, 16)) == (("body.b.1", "body.b.2", "body"), "head")


def test_blocks_that_a_network_names_itself_are_taken_and_checked():
    network = Wrapped()
    network.block_ends = ("body.b.1", "body.b.2")
    assert models.find_blocks(network, (3, 16, 16)) == (network.block_ends, "head")
    network.block_ends = ("body.b.1", "tail")
    with pytest.raises(UserError, match="Wrapped has no module 'tail', which its block_ends name"):
        models.find_blocks(network, (3, 16, 16))
    with pytest.raises(UserError, match="Flatten has no linear layer and no convolution to be its classifier"):
        models.find_blocks(nn.Flatten(), (3, 16, 16))


def test_looking_for_blocks_leaves_the_network_as_it_was():
    network = Wrapped()
    network.body.c.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    models.find_blocks(network, (3, 16, 16))
    assert network.training and not network.body.c.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


# A network of one's own. ---------------------------------------------------------------------------------------------


def register():
    @models.NETWORKS.register("tiny")
    @dataclass(frozen=True)
    class Tiny(models.Network):
        width: int = 8

        def build(self, input_shape, classes):
            widths = (input_shape[0], self.width, 2 * self.width)
            parts = [
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.ReLU()) for a, b in zip(widths, widths[1:], strict=False)
            ]
            return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))


def test_ten_lines_make_a_network_that_is_trained_pruned_recovered_and_compared(tmp_path, capsys):
    arguments = ["run", "--config", str(SMOKE), "--results", str(tmp_path), "workers=1", "train.epochs=2"]
    chosen = ["network={name: tiny, width: 12}", "prunings=[magnitude,channels]", "data.examples=200", "smoothing=0.5"]
    teacher = "recoveries=[none,{losses: kd, teachers: {network: resnet8}},{losses: at, teachers: {network: tiny}}]"
    register()
    try:
        assert main([*arguments, *chosen, teacher]) == 0, capsys.readouterr()
        folders = {}
        for path in (tmp_path / "store").glob("*/*/manifest.json"):
            folders.setdefault(json.loads(path.read_text())["label"], path.parent)
        dense = folders["train tiny(width=12) · seed 0"]
        assert {"train tiny · seed 0", "train resnet8 · seed 1"} <= folders.keys(), "the teachers"
        content = json.loads((dense / "model.json").read_text())
        assert (content["name"], content["options"], content["blocks"]) == ("tiny", {"width": 12}, ["0", "1"])
        info = models.load_info(dense)
        assert info.network == models.network({"name": "tiny", "width": 12})
        assert models.load_weights(dense, models.fresh(info))[0][0].out_channels == 12
    finally:
        del models.NETWORKS._classes["tiny"]
    with (tmp_path / "reports" / "smoke" / "runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert {run["model"] for run in runs} == {"tiny(width=12)"} and {run["pruning"] for run in runs} > {"channels"}
    rows = read_long(tmp_path / "reports" / "smoke" / "rows.csv")
    found = select(rows, kind="similarity", pruning="channels", recovery="kd", seed=0)
    assert {row["layer"] for row in found} == {similarities.SUMMARY_LAYER, "block1", "block2", "embedding"}
    with pytest.raises(UserError, match="name: 'tiny' is no network; known: ") as error:
        models.load_info(dense)
    assert str(error.value).startswith(str(dense)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"name": "resnt8"}, "name: 'resnt8' is no network.*did you mean 'resnet8'"),
        ({"name": ["resnet8"]}, "its name or options are not text and a mapping"),
        ({"name": "resnet8x100000"}, "width is 100000"),
        ({"name": "cifar_resnet", "options": {"depth": "deep"}}, "depth"),
        ({"options": 3}, "its name or options are not text and a mapping"),
        ({"options": {"hight": 3}}, "hight: "),
        ({"colour": 1}, "does not describe a network"),
        ({"blocks": 1}, "no readable model.json"),
    ],
)
def test_a_description_on_disk_is_checked(tmp_path, changes, message):
    network = models.network("resnet8")
    built = models.build(network, input_shape=(3, 16, 16), classes=2)
    models.save(tmp_path, built, models.describe(built, network, ("a", "b"), (3, 16, 16), (0.5,) * 3, (0.2,) * 3))
    path = tmp_path / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=message) as error:
        models.load_info(tmp_path)
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


def test_a_registered_name_does_not_take_a_familys(tmp_path):
    """What is written of a network is read back as that network, whatever else has been registered."""

    @models.NETWORKS.register("resnet20")
    @dataclass(frozen=True)
    class Mine(models.Network):
        width: int = 3

        def build(self, input_shape, classes):
            return nn.Flatten()

    try:
        family = models.NETWORKS["cifar_resnet"](depth=20)
        name, options = family.written()
        assert models.network({"name": name, **options}) == family
    finally:
        del models.NETWORKS._classes["resnet20"]
