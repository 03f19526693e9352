"""BatchNorm folding: the same function with fewer operations, for teachers, latency and export."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pipeline.registry import UserError


def copy_network(network: nn.Module) -> nn.Module:
    """An independent copy of a network.

    Raises:
        UserError: a module carries hooks. A copied hook would go on reporting to whoever registered it on the
            original, and most hooks cannot be copied at all.
    """
    for name, module in network.named_modules():
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            raise UserError(f"{name or 'the network'} has hooks, so it cannot be copied: remove the hooks first")
    return copy.deepcopy(network)


@torch.no_grad()
def batchnorm_after(network: nn.Module, example: Tensor) -> dict[str, str]:
    """The BatchNorm that reads each convolution's output: convolution name -> BatchNorm name.

    Found by running the network once in eval mode and matching the very tensors that pass between modules, so it
    needs no knowledge of the architecture. Modules that run more than once are left out.

    Args:
        example: [batch, channels, height, width], normalised images.
    """
    producer: dict[int, str] = {}
    alive: list[Tensor] = []  # keeps every output alive, so that no id is used twice
    pairs: dict[str, str] = {}
    runs: Counter[str] = Counter()
    handles = []

    def produced(name):
        def hook(_module, _inputs, output):
            runs[name] += 1
            producer[id(output)] = name
            alive.append(output)

        return hook

    def consumed(name):
        def hook(_module, inputs):
            runs[name] += 1
            source = producer.get(id(inputs[0]))
            if source is not None:
                pairs[source] = name

        return hook

    modes = {module: module.training for module in network.modules()}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(produced(name)))
        elif isinstance(module, _BatchNorm):
            handles.append(module.register_forward_pre_hook(consumed(name)))
    try:
        network.eval()
        network(example)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return {conv: norm for conv, norm in pairs.items() if runs[conv] == 1 and runs[norm] == 1}


@torch.no_grad()
def without_other_readers(network: nn.Module, pairs: dict[str, str], example: Tensor) -> dict[str, str]:
    """The pairs whose convolution is read by its BatchNorm alone: nothing else would notice the folding.

    Everybody else is handed NaN in place of the convolution's output; a NaN in the logits betrays another reader (a
    residual addition in networks with BatchNorm before the convolution, for instance). ``network`` is in eval mode.
    """

    def undisturbed(some: dict[str, str]) -> bool:
        outputs: dict[str, Tensor] = {}

        def hide(name):
            def hook(_module, _inputs, output):
                outputs[name] = output
                return torch.full_like(output, torch.nan)

            return hook

        def restore(name):
            return lambda _module, _inputs: (outputs[name],)

        handles = [network.get_submodule(conv).register_forward_hook(hide(conv)) for conv in some]
        handles += [network.get_submodule(some[conv]).register_forward_pre_hook(restore(conv)) for conv in some]
        try:
            return not network(example).isnan().any()
        finally:
            for handle in handles:
                handle.remove()

    if undisturbed(pairs):
        return pairs
    return {conv: norm for conv, norm in pairs.items() if undisturbed({conv: norm})}


@torch.no_grad()
def fold_batchnorm(network: nn.Module, example: Tensor) -> nn.Module:
    """A copy, in eval mode, whose BatchNorms are folded into the convolutions before them.

    Every module keeps its path (a folded BatchNorm becomes ``nn.Identity``), so hooks on blocks and saved names still
    fit. A BatchNorm stays where it does not directly follow a convolution, where something else reads the convolution
    too, or where it keeps no running statistics.

    Args:
        example: [batch, channels, height, width], normalised images; used to find the pairs and to check the result.

    Raises:
        UserError: the folded copy does not compute the same logits on the example.
    """
    folded = copy_network(network).eval()
    for conv_name, norm_name in without_other_readers(folded, batchnorm_after(folded, example), example).items():
        conv, norm = folded.get_submodule(conv_name), folded.get_submodule(norm_name)
        if norm.running_mean is None:
            continue
        weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        conv.weight, conv.bias = weight, bias
        parent, _, attribute = norm_name.rpartition(".")
        setattr(folded.get_submodule(parent), attribute, nn.Identity())
    modes = {module: module.training for module in network.modules()}
    try:
        expected = network.eval()(example)
    finally:
        for module, mode in modes.items():
            module.training = mode
    error = (folded(example) - expected).abs().max().item()
    scale = max(1.0, expected.abs().max().item())
    if not error <= 1e-3 * scale:
        raise UserError(
            f"folding BatchNorm changes the outputs of {type(network).__name__} by {error:.2g} (logits up to"
            f" {scale:.2g}); use the network without folding"
        )
    return folded
