"""Networks by name: registered dataclasses whose fields are their options, and families of them.

Every network is a plain module from inputs such as images [batch, channels, height, width] to logits [batch, classes].
"""

from __future__ import annotations

import difflib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.registry import Registry, UserError, nearest, shown


class Network(ABC):
    """What `NETWORKS` holds: frozen dataclasses that say which network is meant, and build it.

    A family whose members have names of their own (``resnet20``) also defines `options_in`, `names` and `title`.
    """

    name: ClassVar[str]

    @abstractmethod
    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """A module from inputs [batch, *input_shape] to logits [batch, classes], with torch's generators as they are.

        A ValueError, AssertionError or RuntimeError tells that there is none for this shape. Sizes should follow from
        the fields alone: the module is first built without memory, to see whether it fits (`pipeline.models.build`).
        """

    @property
    def title(self) -> str:
        """What labels and tables show: the name, and the options that differ from their default."""
        changed = [each.name for each in fields(self) if getattr(self, each.name) != each.default]
        options = ", ".join(f"{each}={getattr(self, each)}" for each in changed)
        return f"{self.name}({options})" if options else self.name

    @classmethod
    def options_in(cls, name: str) -> dict[str, Any] | None:
        """The options that a name stands for; None for a name that is none of this family's."""
        return None

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names that an error message lists."""
        return (cls.name,)

    def written(self) -> tuple[str, dict[str, Any]]:
        """Name and options that `network` makes this value of again, wherever defaults go."""
        if type(self).options_in(self.title) is not None and network(self.title) == self:
            return self.title, {}
        return self.name, asdict(self)


NETWORKS: Registry[Network] = Registry("network")


# ---------------------------------------------------------------------------------------------- for small images


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, post-activation (He et al. 2016)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        return functional.relu(self.bn2(self.conv2(hidden)) + self.shortcut(x), inplace=True)


class WideBlock(nn.Module):
    """BatchNorm and ReLU before each convolution (Zagoruyko and Komodakis 2016)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut = None if inputs == width else nn.Conv2d(inputs, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(hidden)
        return self.conv2(functional.relu(self.bn2(self.conv1(hidden)))) + shortcut


class SmallImageNetwork(nn.Module):
    """stem, stage1 ... stageN, head (mean over positions), classifier: the networks of the distillation literature."""

    def __init__(self, stem: nn.Module, stages: list[nn.Module], tail: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.stem = stem
        self.block_ends = tuple(f"stage{number}" for number in range(1, len(stages) + 1))
        for name, stage in zip(self.block_ends, stages, strict=True):
            self.add_module(name, stage)
        self.tail = tail
        self.classifier = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.stem(images)
        for name in self.block_ends:
            hidden = getattr(self, name)(hidden)
        return self.classifier(self.tail(hidden).mean(dim=(2, 3)))


def _counted(pattern: str, name: str) -> dict[str, int] | None:
    """The numbers in a name, by the group of the pattern; groups that are absent are left out."""
    match = re.fullmatch(pattern, name, re.ASCII)
    numbers = {key: value for key, value in match.groupdict().items() if value is not None} if match else {}
    if not match or any(value.startswith("0") and value != "0" for value in numbers.values()):
        return None
    return {key: int(value[:9]) for key, value in numbers.items()}


def _stages(block: type[nn.Module], stem_width: int, width: int, blocks: int) -> list[nn.Module]:
    """Three stages of residual blocks, of 16, 32 and 64 channels times the width."""
    stages, inputs = [], stem_width
    for number, outputs in enumerate((16 * width, 32 * width, 64 * width)):
        layers = []
        for place in range(blocks):
            layers.append(block(inputs, outputs, stride=2 if number and not place else 1))
            inputs = outputs
        stages.append(nn.Sequential(*layers))
    return stages


# Of the deepest network of He et al. 2016. Beyond, a network is a slip of the finger that would take minutes to refuse.
MAXIMUM_DEPTH = 1202
MAXIMUM_WIDTH = 1000


def _check_sizes(depth: int, width: int, *, layers: int) -> None:
    """Refuses with ValueError what is no residual network of three stages and ``layers`` layers beside the blocks."""
    if not 6 + layers <= depth <= MAXIMUM_DEPTH or (depth - layers) % 6:
        examples = ", ".join(str(6 * blocks + layers) for blocks in (1, 2, 3))
        raise ValueError(f"depth is {depth}; give 6n + {layers} up to {MAXIMUM_DEPTH}, such as {examples}")
    if not 1 <= width <= MAXIMUM_WIDTH:
        raise ValueError(f"width is {width}; give 1 to {MAXIMUM_WIDTH}")


@NETWORKS.register("cifar_resnet")
@dataclass(frozen=True)
class CifarResNet(Network):
    """ResNet of 6n + 2 layers for small images (He et al. 2016, section 4.2): ``resnet20``, ``resnet32x4``.

    width 4 gives the resnet8x4 and resnet32x4 of the distillation literature (Tian et al. 2020): stages of 64, 128 and
    256 channels behind a stem of 32. The shortcut is a 1x1 convolution, as there.
    """

    depth: int = 20
    width: int = 1
    plain_depths: ClassVar[tuple[int, ...]] = (8, 14, 20, 26, 32, 38, 44, 56, 110)  # resnet50 is torchvision's

    def __post_init__(self) -> None:
        _check_sizes(self.depth, self.width, layers=2)

    @property
    def title(self) -> str:
        plain = self.width == 1 and self.depth in self.plain_depths
        return f"resnet{self.depth}" if plain else f"resnet{self.depth}x{self.width}"

    @classmethod
    def options_in(cls, name: str) -> dict[str, int] | None:
        options = _counted("resnet(?P<depth>[0-9]+)(x(?P<width>[0-9]+))?", name)
        return options if options and ("width" in options or options["depth"] in cls.plain_depths) else None

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return (*(f"resnet{depth}" for depth in cls.plain_depths), "resnet8x4", "resnet32x4")

    def build(self, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
        stem_width = 16 if self.width == 1 else 8 * self.width
        stem = nn.Sequential(
            nn.Conv2d(input_shape[0], stem_width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(stem_width),
            nn.ReLU(inplace=True),
        )
        stages = _stages(BasicBlock, stem_width, self.width, (self.depth - 2) // 6)
        return SmallImageNetwork(stem, stages, nn.Identity(), 64 * self.width, classes)


@NETWORKS.register("wide_resnet")
@dataclass(frozen=True)
class WideResNet(Network):
    """WideResNet of 6n + 4 layers for small images (Zagoruyko and Komodakis 2016): ``wrn_16_2``."""

    depth: int = 16
    width: int = 2

    def __post_init__(self) -> None:
        _check_sizes(self.depth, self.width, layers=4)

    @property
    def title(self) -> str:
        return f"wrn_{self.depth}_{self.width}"

    @classmethod
    def options_in(cls, name: str) -> dict[str, int] | None:
        return _counted("wrn_(?P<depth>[0-9]+)_(?P<width>[0-9]+)", name)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return ("wrn_16_1", "wrn_16_2", "wrn_28_10", "wrn_40_1", "wrn_40_2")

    def build(self, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
        stages = _stages(WideBlock, 16, self.width, (self.depth - 4) // 6)
        tail = nn.Sequential(nn.BatchNorm2d(64 * self.width), nn.ReLU(inplace=True))
        stem = nn.Conv2d(input_shape[0], 16, 3, 1, 1, bias=False)
        return SmallImageNetwork(stem, stages, tail, 64 * self.width, classes)


@NETWORKS.register("small_vgg")
@dataclass(frozen=True)
class SmallVgg(Network):
    """VGG with BatchNorm and one linear layer for small images (Simonyan and Zisserman 2015; Tian et al. 2020).

    ``vgg8`` to ``vgg19``; torchvision's are ``vgg11_bn`` and ``torchvision/vgg11``. Four 2x2 poolings stand before
    stages 2 to 5, so an image needs at least 16 pixels a side.
    """

    depth: int = 8
    stages: ClassVar[dict[int, tuple[tuple[int, ...], ...]]] = {
        8: ((64,), (128,), (256,), (512,), (512,)),
        11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
        13: ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
        16: ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),
        19: ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4),
    }

    def __post_init__(self) -> None:
        if self.depth not in self.stages:
            raise ValueError(f"depth is {self.depth}; give one of {', '.join(map(str, self.stages))}")

    @property
    def title(self) -> str:
        return f"vgg{self.depth}"

    @classmethod
    def options_in(cls, name: str) -> dict[str, int] | None:
        options = _counted("vgg(?P<depth>[0-9]+)", name)
        return options if options and options["depth"] in cls.stages else None

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(f"vgg{depth}" for depth in cls.stages)

    def build(self, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
        stages, inputs = [], input_shape[0]
        for number, widths in enumerate(self.stages[self.depth]):
            layers = [nn.MaxPool2d(2)] if number else []
            for outputs in widths:
                layers += [nn.Conv2d(inputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
                inputs = outputs
            stages.append(nn.Sequential(*layers))
        return SmallImageNetwork(nn.Identity(), stages, nn.Identity(), inputs, classes)


# ---------------------------------------------------------------------------------------------- torchvision's


@NETWORKS.register("torchvision")
@dataclass(frozen=True)
class Torchvision(Network):
    """A classifier of torchvision, untrained: by its name, or ``torchvision/NAME`` where another family has that."""

    model: str

    def __post_init__(self) -> None:
        if self.model not in self._models():
            raise ValueError(
                f"model '{self.model}' is no classifier of torchvision; {nearest(self.model, self._models())}"
            )

    @property
    def title(self) -> str:
        return self.model if _family(self.model) is Torchvision else f"torchvision/{self.model}"

    @classmethod
    def options_in(cls, name: str) -> dict[str, str] | None:
        model = name.removeprefix("torchvision/")
        return {"model": model} if model in cls._models() else None

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return cls._models()

    @staticmethod
    def _models() -> tuple[str, ...]:
        import torchvision

        return tuple(torchvision.models.list_models(module=torchvision.models))

    def build(self, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
        import torchvision

        channels, height, _ = input_shape
        options = {"weights": None, "num_classes": classes}
        if self.model in ("googlenet", "inception_v3"):
            options |= {"aux_logits": False, "init_weights": True}
        if self.model.startswith("vit_"):
            options["image_size"] = height
        network = torchvision.models.get_model(self.model, **options)
        path, first = next((path, module) for path, module in network.named_modules() if isinstance(module, nn.Conv2d))
        if first.in_channels != channels:
            parent, _, child = path.rpartition(".")
            changed = nn.Conv2d(
                channels,
                first.out_channels,
                first.kernel_size,
                first.stride,
                first.padding,
                first.dilation,
                bias=first.bias is not None,
            )
            setattr(network.get_submodule(parent), child, changed)
        return network


# ---------------------------------------------------------------------------------------------- from name to module


def _family(name: str) -> type[Network] | None:
    """Whose name it is. torchvision is asked last: vgg11 is ours, theirs is torchvision/vgg11."""
    others = [NETWORKS[each] for each in NETWORKS if each != Torchvision.name]
    return next((family for family in (*others, Torchvision) if family.options_in(name) is not None), None)


def network(value: str | Mapping[str, Any], where: str = "network") -> Network:
    """The network that ``resnet20``, ``{name: resnet20}`` or ``{name: tiny, width: 16}`` means.

    Raises:
        UserError: an unknown name, an unknown option, or a size that there is not; it opens with ``where``.
    """
    options = dict(value) if isinstance(value, Mapping) else {"name": value}
    name = options.pop("name", None)
    if isinstance(name, str) and name in NETWORKS:
        return NETWORKS.build({"name": name, **options}, where)
    family = _family(name) if isinstance(name, str) else None
    if family is None:
        raise UserError(f"{where}: {_unknown(name)}")
    named = family.options_in(name)
    for twice in sorted(map(str, named.keys() & options.keys())):
        raise UserError(f"{where}.{twice}: the name '{name}' says it already; leave it out, or name {family.name}")
    try:
        family(**named)
    except ValueError as error:
        raise UserError(f"{where}: '{name}' is no network ({error})") from None
    return NETWORKS.build({"name": family.name, **named, **options}, where)


def _unknown(name: object) -> str:
    families = [NETWORKS[each] for each in NETWORKS if each != Torchvision.name]
    own = [each for family in families for each in family.names()]
    close = difflib.get_close_matches(str(name), [*own, *Torchvision.names()], n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    known = nearest(str(name), own).split(";")[0]
    return f"{shown(str(name))} is no network; {known}, and every torchvision classifier by its name{hint}"


def build(network: Network, *, input_shape: tuple[int, ...], classes: int, seed: int = 0) -> nn.Module:
    """A freshly initialised network; the global random state is left as it was.

    Raises:
        UserError: it does not take the inputs, or does not fit into memory.
    """
    shape = "x".join(map(str, input_shape))
    with torch.random.fork_rng(devices=[]):
        try:
            _check_memory(network, input_shape, classes)
            torch.manual_seed(seed)
            built = network.build(input_shape, classes)
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UserError(f"network: {network.title} cannot be built for {shape} images ({_reason(error)})") from None
        try:
            with torch.no_grad():
                built.eval()(torch.zeros(1, *input_shape))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UserError(f"network: {network.title} does not take {shape} images ({_reason(error)})") from None
    return built.train()


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _check_memory(network: Network, input_shape: tuple[int, ...], classes: int) -> None:
    """Raises UserError for a network that cannot be trained in this machine's memory, before any is taken.

    Training holds weights, gradients and momentum, and the checkpoint is a copy: four numbers of 4 bytes a parameter.
    """
    try:
        with torch.device("meta"):  # shapes without memory
            sketch = network.build(input_shape, classes)
    except RuntimeError:
        return  # reads numbers out of tensors while it is built (some of torchvision's do), so the size stays unknown
    needed = 16 * sum(parameter.numel() for parameter in sketch.parameters())
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise UserError(
            f"network: {network.title} takes {needed / 2**30:,.0f} GiB to train, and this machine has "
            f"{there / 2**30:,.0f}; take a smaller one"
        )


def training_format(network: nn.Module) -> torch.memory_format:
    """The memory format to train in: channels_last, which is faster, wherever it is safe.

    It is not for a strided 1x1 convolution of fewer than 16 input channels, as physical pruning leaves them: there
    oneDNN's gradient of the weights writes beyond its buffer (its issue 6035: wrong numbers or a crash).
    """
    for module in network.modules():
        if (
            isinstance(module, nn.Conv2d)
            and module.kernel_size == (1, 1)
            and max(module.stride) > 1
            and module.in_channels // module.groups < 16
        ):
            return torch.contiguous_format
    return torch.channels_last
