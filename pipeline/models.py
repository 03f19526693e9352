"""Networks: builders, what a forward pass shows (Outputs), saving and loading.

Every network is a plain module from images [batch, channels, height, width] to logits [batch, classes]. What lies
between is read by an Observer, so the same code serves a CIFAR ResNet, a torchvision network and a pruned one.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as deserialise
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn
from torch.nn import functional

from pipeline.files import DamagedFile, write_atomically
from pipeline.registry import UserError, nearest


@dataclass
class Outputs:
    """What a loss or a similarity may read of one forward pass.

    logits: [batch, classes].
    blocks: the feature map that ends each block, [batch, channels, height, width] (or [batch, tokens, width]).
    embedding: [batch, width], the input of the classifier.
    """

    logits: Tensor
    blocks: list[Tensor]
    embedding: Tensor


@dataclass(frozen=True)
class NetworkInfo:
    """All that is needed to build a network again, and to feed it: the content of ``model.json``.

    input_shape: (channels, height, width). mean, std: normalisation per channel of pixels in [0, 1].
    blocks, classifier: paths of the modules that an Observer reads.
    removed: history of physically removed channels, as `pipeline.pruning.replay` takes it.
    """

    name: str
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    blocks: tuple[str, ...]
    classifier: str
    removed: tuple = ()


# ---------------------------------------------------------------------------------------------- architectures


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
        self.stage_names = tuple(f"stage{number}" for number in range(1, len(stages) + 1))
        for name, stage in zip(self.stage_names, stages, strict=True):
            self.add_module(name, stage)
        self.tail = tail
        self.classifier = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.stem(images)
        for name in self.stage_names:
            hidden = getattr(self, name)(hidden)
        return self.classifier(self.tail(hidden).mean(dim=(2, 3)))


def cifar_resnet(depth: int, width: int, channels: int, classes: int) -> nn.Module:
    """ResNet of 6n + 2 layers for small images (He et al. 2016, section 4.2).

    width 4 gives the resnet8x4 and resnet32x4 of the distillation literature (Tian et al. 2020): stages of 64, 128 and
    256 channels behind a stem of 32. The shortcut is a 1x1 convolution, as there.
    """
    blocks = (depth - 2) // 6
    stem_width = 16 if width == 1 else 8 * width
    stem = nn.Sequential(
        nn.Conv2d(channels, stem_width, 3, 1, 1, bias=False), nn.BatchNorm2d(stem_width), nn.ReLU(inplace=True)
    )
    stages, inputs = [], stem_width
    for number, outputs in enumerate((16 * width, 32 * width, 64 * width)):
        layers = []
        for block in range(blocks):
            layers.append(BasicBlock(inputs, outputs, stride=2 if number and not block else 1))
            inputs = outputs
        stages.append(nn.Sequential(*layers))
    return SmallImageNetwork(stem, stages, nn.Identity(), inputs, classes)


def wide_resnet(depth: int, width: int, channels: int, classes: int) -> nn.Module:
    """WideResNet of 6n + 4 layers for small images (Zagoruyko and Komodakis 2016)."""
    blocks = (depth - 4) // 6
    stages, inputs = [], 16
    for number, outputs in enumerate((16 * width, 32 * width, 64 * width)):
        layers = []
        for block in range(blocks):
            layers.append(WideBlock(inputs, outputs, stride=2 if number and not block else 1))
            inputs = outputs
        stages.append(nn.Sequential(*layers))
    tail = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True))
    return SmallImageNetwork(nn.Conv2d(channels, 16, 3, 1, 1, bias=False), stages, tail, inputs, classes)


VGG_STAGES = {
    8: ((64,), (128,), (256,), (512,), (512,)),
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    13: ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),
    19: ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4),
}


def small_vgg(depth: int, channels: int, classes: int) -> nn.Module:
    """VGG with BatchNorm and one linear layer for small images (Simonyan and Zisserman 2015; Tian et al. 2020).

    Four 2x2 poolings stand before stages 2 to 5, so an image needs at least 16 pixels a side.
    """
    stages, inputs = [], channels
    for number, widths in enumerate(VGG_STAGES[depth]):
        layers = [nn.MaxPool2d(2)] if number else []
        for outputs in widths:
            layers += [nn.Conv2d(inputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
            inputs = outputs
        stages.append(nn.Sequential(*layers))
    return SmallImageNetwork(nn.Identity(), stages, nn.Identity(), inputs, classes)


CIFAR_RESNET_DEPTHS = (8, 14, 20, 26, 32, 38, 44, 56, 110)
OWN_NAMES = (
    *(f"resnet{depth}" for depth in CIFAR_RESNET_DEPTHS),
    *("resnet8x4", "resnet32x4", "wrn_16_1", "wrn_16_2", "wrn_28_10", "wrn_40_1", "wrn_40_2"),
    *(f"vgg{depth}" for depth in VGG_STAGES),
)


def network_names() -> tuple[str, ...]:
    """The names that can be built; resnetDxW and wrn_D_W also work for other depths and widths."""
    import torchvision

    # torchvision's plain vgg11 ... vgg19 (without BatchNorm) are reached as torchvision/vgg11.
    theirs = torchvision.models.list_models(module=torchvision.models)
    return (*OWN_NAMES, *(name for name in theirs if name not in OWN_NAMES))


def check_network(name: str) -> None:
    """Raises UserError where build() would not know the name; builds nothing."""
    if match := re.fullmatch(r"(?:resnet|wrn_)(\d+)(?:[x_](\d+))?", name):
        numbers = [number for number in match.groups() if number]
        if any(len(number) > 4 for number in numbers):
            raise UserError(f"network: '{name[:60]}' is deeper or wider than 9999; ask for less")
    if name in OWN_NAMES or _sizes(name) or name.removeprefix("torchvision/") in network_names():
        return
    own = nearest(name, OWN_NAMES).split(";")[0]
    closest = difflib.get_close_matches(name, network_names(), n=1, cutoff=0.5)
    hint = f"; did you mean '{closest[0]}'?" if closest else ""
    raise UserError(f"network: '{name}' is no network; {own}, and every torchvision classifier by its name{hint}")


def _sizes(name: str) -> tuple[str, int, int] | None:
    if match := re.fullmatch(r"resnet(\d+)x(\d+)", name):
        depth, width = map(int, match.groups())
        return ("resnet", depth, width) if (depth - 2) % 6 == 0 and depth >= 8 and width else None
    if match := re.fullmatch(r"resnet(\d+)", name):
        return ("resnet", int(match[1]), 1) if int(match[1]) in CIFAR_RESNET_DEPTHS else None
    if match := re.fullmatch(r"wrn_(\d+)_(\d+)", name):
        depth, width = map(int, match.groups())
        return ("wrn", depth, width) if (depth - 4) % 6 == 0 and depth >= 10 and width else None
    if (match := re.fullmatch(r"vgg(\d+)", name)) and int(match[1]) in VGG_STAGES:
        return ("vgg", int(match[1]), 1)
    return None


def build(name: str, *, input_shape: tuple[int, int, int], classes: int, seed: int = 0) -> nn.Module:
    """A freshly initialised network; the global random state is left as it was.

    Raises:
        UserError: an unknown name, or an image too small for the network.
    """
    check_network(name)
    channels, height, width = input_shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = _sizes(name)
        if sizes is None:
            network = _torchvision_network(name.removeprefix("torchvision/"), channels, height, classes)
        elif sizes[0] == "resnet":
            network = cifar_resnet(*sizes[1:], channels, classes)
        elif sizes[0] == "wrn":
            network = wide_resnet(*sizes[1:], channels, classes)
        else:
            network = small_vgg(sizes[1], channels, classes)
        try:
            with torch.no_grad():
                network.eval()(torch.zeros(1, channels, height, width))
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"network: {name} does not take {channels}x{height}x{width} images ({reason})") from None
    return network.train()


def _torchvision_network(name: str, channels: int, height: int, classes: int) -> nn.Module:
    import torchvision

    options = {"weights": None, "num_classes": classes}
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        options["image_size"] = height
    try:
        network = torchvision.models.get_model(name, **options)
    except (AssertionError, ValueError) as error:
        raise UserError(f"network: {name} cannot be built for {height}-pixel images ({error})") from None
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


# ---------------------------------------------------------------------------------------------- observation


class Observer:
    """Runs a network and reads what lies between: ``Observer(network, info)(images)`` gives Outputs.

    The hooks stay until `close` (or the end of a with statement). Copy a network before it is observed or after:
    hooks travel with a copy.
    """

    def __init__(self, network: nn.Module, blocks: tuple[str, ...], classifier: str) -> None:
        self.network, self._blocks, self._seen = network, blocks, {}
        modules = dict(network.named_modules())
        self._handles = [
            modules[path].register_forward_hook(lambda module, inputs, output, path=path: self._keep(path, output))
            for path in blocks
        ]
        self._handles.append(
            modules[classifier].register_forward_pre_hook(lambda module, inputs: self._keep(None, inputs[0]))
        )

    def _keep(self, path: str | None, value: Tensor) -> None:
        self._seen[path] = value

    def __call__(self, images: Tensor) -> Outputs:
        logits = self.network(images)
        outputs = Outputs(logits, [self._seen[path] for path in self._blocks], self._seen[None].flatten(1))
        self._seen.clear()  # or the last batch would stay in memory
        return outputs

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def find_blocks(network: nn.Module, input_shape: tuple[int, int, int]) -> tuple[tuple[str, ...], str]:
    """The modules that end the blocks of a network, and its classifier.

    For the networks of this file the stages. For any other the last module at each resolution; where the resolution
    never changes (transformers), four evenly spaced layers. The classifier is the last linear layer (or, in a fully
    convolutional network, the last convolution).
    """
    linear = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    convolutions = [path for path, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    classifier = (linear or convolutions)[-1]
    if isinstance(network, SmallImageNetwork):
        return network.stage_names, classifier
    # Candidates: the children of the network and, recursively, of its pure containers; run once to see the order.
    candidates, todo = [], [("", network)]
    while todo:
        path, module = todo.pop()
        for name, child in module.named_children():
            child_path = f"{path}.{name}" if path else name
            candidates.append((child_path, child))
            if isinstance(child, nn.Sequential | nn.ModuleList) or child_path == "encoder":
                todo.append((child_path, child))
    seen: list[tuple[str, torch.Size]] = []

    def keep(path: str, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim in (3, 4) and output[0, 0].numel() > 1:
            seen.append((path, output.shape))

    handles = [
        module.register_forward_hook(lambda module, inputs, output, path=path: keep(path, output))
        for path, module in candidates
        if not isinstance(module, nn.Dropout | nn.AdaptiveAvgPool2d) and path != "permute"
    ]
    with torch.no_grad():
        training = network.training
        network.eval()(torch.zeros(1, *input_shape))
        network.train(training)
    for handle in handles:
        handle.remove()
    tokens = [path for path, shape in seen if len(shape) == 3]
    if tokens:
        layers = [path for path in tokens if path.rpartition(".")[2] not in ("encoder", "layers", "ln")] or tokens
        steps = torch.linspace(0, len(layers) - 1, min(4, len(layers)) + 1).round().int().tolist()[1:]
        return tuple(layers[step] for step in steps), classifier
    ends: dict[torch.Size, str] = {}
    for path, shape in seen:
        ends[shape[2:]] = path
    return tuple(ends.values()), classifier


# ---------------------------------------------------------------------------------------------- on disk


def save(folder: Path, network: nn.Module, info: NetworkInfo, masks: dict[str, Tensor] | None = None) -> None:
    """Writes ``model.json``, ``weights.safetensors`` and, where there are masks, ``masks.safetensors``."""
    write_atomically(folder / "model.json", json.dumps(asdict(info), indent=1) + "\n")
    save_tensors(folder / "weights.safetensors", network.state_dict())
    if masks:
        save_tensors(folder / "masks.safetensors", masks)


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file in one step. Trouble with the disk is an OSError, as for any other file."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    write_atomically(path, serialise(tensors, metadata))  # safetensors' own writer would hide a full disk in its error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `save_tensors` wrote: the tensors, on the CPU, and the metadata.

    Raises:
        DamagedFile: it is no safetensors file, or not a whole one.
        OSError: trouble with the disk.
    """
    content = path.read_bytes()
    try:
        tensors = deserialise(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:  # of safetensors, and of torch below it
        raise DamagedFile(path, f"no safetensors file: {str(error).splitlines()[0]}") from None
    return tensors, header.get("__metadata__") or {}


def load_info(folder: Path) -> NetworkInfo:
    try:
        return parse_info(json.loads((folder / "model.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder}: no readable model.json ({error}); give the folder of a stored network") from None


def parse_info(content: dict) -> NetworkInfo:
    lists = ("classes", "input_shape", "mean", "std", "blocks", "removed")
    return NetworkInfo(**{key: tuple(value) if key in lists else value for key, value in content.items()})


def load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete its folder to compute it again") from None


def load_weights(folder: Path, network: nn.Module) -> nn.Module:
    """Fills a network of the right shape with the stored weights; in eval mode."""
    try:
        network.load_state_dict(load_tensors(folder / "weights.safetensors"))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{folder}: weights do not fit model.json ({reason})") from None
    return network.eval()


def fresh(info: NetworkInfo) -> nn.Module:
    """The dense network that the description starts from, freshly initialised."""
    return build(info.name, input_shape=info.input_shape, classes=len(info.classes))


def describe(network: nn.Module, name: str, classes: tuple[str, ...], input_shape, mean, std) -> NetworkInfo:
    blocks, classifier = find_blocks(network, input_shape)
    return NetworkInfo(name, tuple(classes), tuple(input_shape), tuple(mean), tuple(std), blocks, classifier)


def with_removed(info: NetworkInfo, removed: list) -> NetworkInfo:
    return replace(info, removed=tuple(info.removed) + tuple(removed))
