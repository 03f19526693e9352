"""What a forward pass shows: its outputs between the layers, and which modules end the blocks of a network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.registry import UserError


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


def find_blocks(network: nn.Module, input_shape: tuple[int, ...]) -> tuple[tuple[str, ...], str]:
    """The modules that end the blocks of a network, and its classifier.

    A network may name its block ends itself, in an attribute ``block_ends`` (a tuple of module paths). Otherwise the
    shapes tell, of one forward pass over zeros: the last module at each resolution; where what passes between modules
    is tokens [batch, tokens, width], its layers, or four of them, evenly spaced. The classifier is the last linear
    layer (or, in a fully convolutional network, the last convolution).

    Raises:
        UserError: there is no classifier, or no module of a name in ``block_ends``.
    """
    modules = dict(network.named_modules())
    linear = [path for path, module in modules.items() if isinstance(module, nn.Linear)]
    convolutions = [path for path, module in modules.items() if isinstance(module, nn.Conv2d)]
    if not linear and not convolutions:
        raise UserError(
            f"network: {type(network).__name__} has no linear layer and no convolution to be its classifier"
        )
    classifier = (linear or convolutions)[-1]
    declared = getattr(network, "block_ends", None)
    if declared is not None:
        for path in declared:
            if path not in modules:
                raise UserError(f"network: {type(network).__name__} has no module '{path}', which its block_ends name")
        return tuple(declared), classifier
    shapes = _shapes(network, input_shape)
    shown = {path for path, _ in shapes}
    candidates = _candidates(network, shown)
    outer = [(path, shape) for path, shape in shapes if path in candidates]
    if any(len(shape) == 3 for _, shape in outer):
        layers = _layers(network, dict(shapes)) or [path for path, shape in outer if len(shape) == 3]
        if len(layers) > 4:
            layers = [layers[step] for step in torch.linspace(0, len(layers) - 1, 5).round().int().tolist()[1:]]
        return tuple(layers), classifier
    ends: dict[torch.Size, str] = {}
    for path, shape in outer:
        ends[shape[2:]] = path
    return tuple(ends.values()), classifier


def _shapes(network: nn.Module, input_shape: tuple[int, ...]) -> list[tuple[str, torch.Size]]:
    """(path, shape) of every module that puts out maps or tokens, in the order in which they are done.

    Left out is what computes nothing (dropout, a permutation, an identity: its output is its untouched input, perhaps
    seen otherwise), and pooling to a fixed size, which belongs to the head.
    """
    seen: list[tuple[str, torch.Size]] = []
    entered: dict[str, tuple[int, int, int]] = {}

    def storage(value: object) -> tuple[int, int, int]:
        # An operation in place gives the same memory, but a new version of it.
        return (value.data_ptr(), value.numel(), value._version) if isinstance(value, Tensor) else (0, 0, 0)

    def enter(path: str, inputs: tuple) -> None:
        entered[path] = storage(inputs[0] if inputs else None)

    def leave(path: str, output: object) -> None:
        maps = isinstance(output, Tensor) and output.ndim in (3, 4) and output[0, 0].numel() > 1
        if maps and storage(output) != entered[path]:
            seen.append((path, output.shape))

    handles = []
    for path, module in network.named_modules():
        if path and not isinstance(module, nn.AdaptiveAvgPool2d):
            handles += [
                module.register_forward_pre_hook(lambda module, inputs, path=path: enter(path, inputs)),
                module.register_forward_hook(lambda module, inputs, output, path=path: leave(path, output)),
            ]
    modes = {module: module.training for module in network.modules()}
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, *input_shape))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return seen


def _candidates(network: nn.Module, shown: set[str]) -> set[str]:
    """Paths of the modules that may end a block.

    They are the children of the network and, recursively, of its pure containers, and of whatever wraps all the rest.
    """
    found, wrappers, todo = set(), {""}, [("", network)]
    while todo:
        path, module = todo.pop()
        children = _children(path, module)
        showing = [child for child in children if _shows(child[0], shown)]
        for child_path, child in children:
            found.add(child_path)
            if path in wrappers and showing == [(child_path, child)]:
                wrappers.add(child_path)
            if isinstance(child, nn.Sequential | nn.ModuleList) or child_path in wrappers:
                todo.append((child_path, child))
    return found


def _layers(network: nn.Module, shapes: dict[str, torch.Size]) -> list[str]:
    """The layers of a network of tokens, in order: siblings of one class and one shape that hold most parameters.

    Looked for from the outside inwards, in the child that has the most parameters of those that put out tokens.
    """
    shown = {path for path, shape in shapes.items() if len(shape) == 3}
    path, module = "", network
    while True:
        children = [(each, child) for each, child in _children(path, module) if _shows(each, shown)]
        if not children:
            return []
        alike: dict[tuple, list[str]] = {}
        for child_path, child in children:
            if child_path in shown:
                alike.setdefault((type(child), shapes[child_path]), []).append(child_path)
        for paths in alike.values():
            share = sum(_size(network.get_submodule(each)) for each in paths)
            if len(paths) > 1 and 2 * share > _size(module):
                return paths
        path, module = max(children, key=lambda each: _size(each[1]))


def _children(path: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(f"{path}.{name}" if path else name, child) for name, child in module.named_children()]


def _shows(path: str, shown: set[str]) -> bool:
    """Whether a module, or one inside it, is among those shown."""
    return path in shown or any(each.startswith(f"{path}.") for each in shown)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
