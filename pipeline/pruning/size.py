"""What pruning reached, measured on the network itself: sparsity, parameters, MACs, bytes, latency."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.pruning.method import Method, evaluating, prunable
from pipeline.table import Row, measured


@dataclass(frozen=True)
class Size:
    """How large a pruned network is, beside the dense network that it came from.

    sparsity: share of the dense network's prunable weights that are zero or removed; layers: the same per weight.
    filters, dense_filters: filters of prunable convolutions with at least one weight left, and before pruning.
    parameters: all that are stored, zeros included; nonzero_parameters: without the zeros.
    macs: multiply-accumulates per image that are computed. A mask saves none: a zero weight is multiplied like any
    other.
    bytes: of parameters and buffers as stored.
    """

    sparsity: float
    layers: dict[str, float]
    filters: int
    dense_filters: int
    parameters: int
    nonzero_parameters: int
    dense_parameters: int
    macs: int
    dense_macs: int
    bytes: int
    dense_bytes: int


@dataclass(frozen=True)
class Timing:
    """Seconds per forward pass, medians over alternating runs, and ``ratio``: the median of pruned over dense in each
    pair.

    low, high: the quartiles of that ratio.
    """

    batch_size: int
    seconds: float
    dense_seconds: float
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Quantity:
    """How a number of this module is shown; ``headline``: its place in the main tables, 0 for the full lists alone."""

    title: str
    short: str
    unit: str
    better: str = "lower"
    headline: int = 0
    digits: int | None = None


BATCH_SIZES = (1, 128)  # that latency is measured at
QUANTITIES = {
    "parameters": Quantity("Parameters that are not zero", "parameters", "parameters", digits=0),
    "bytes": Quantity("Size of the file of weights", "bytes", "bytes", digits=0),
    "macs_ratio": Quantity("MACs over the dense network's", "MACs", "ratio", headline=5, digits=2),
    "latency_b1": Quantity("Latency over the dense network's, batch 1", "latency b1", "ratio", headline=6, digits=2),
    "latency_b128": Quantity(
        "Latency over the dense network's, batch 128", "latency b128", "ratio", headline=7, digits=2
    ),
}


def count_macs(network: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates per image: half of the FLOPs that PyTorch's FlopCounterMode counts (matmul, convolution)."""
    with evaluating(network), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(example[:1])  # with gradients on, attention is not fused into calls that the counter does not know
    return counter.get_total_flops() // 2


def measure(network: nn.Module, *, dense: nn.Module, method: Method, example: Tensor) -> Size:
    """Measures a pruned network against its dense origin; nothing is taken from what was asked.

    Args:
        network: masked or physically pruned; its layers have the names of ``dense``.
        method: says which weights are prunable.
        example: [batch, channels, height, width]; only its shape matters.
    """
    parameters = dict(network.named_parameters())
    weights = prunable(dense, method)
    left = {name: int(torch.count_nonzero(parameters[name].detach())) for name in weights}
    total = {name: weight.numel() for name, weight in weights.items()}

    def living(tensors: dict[str, Tensor]) -> int:
        return sum(int(t.detach().flatten(1).any(1).sum()) for t in tensors.values() if t.dim() == 4)

    def stored(module: nn.Module) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())

    return Size(
        sparsity=1 - sum(left.values()) / sum(total.values()),
        layers={name: 1 - left[name] / total[name] for name in weights},
        filters=living({name: parameters[name] for name in weights}),
        dense_filters=sum(len(weight) for weight in weights.values() if weight.dim() == 4),
        parameters=sum(p.numel() for p in parameters.values()),
        nonzero_parameters=sum(int(torch.count_nonzero(p.detach())) for p in parameters.values()),
        dense_parameters=sum(p.numel() for p in dense.parameters()),
        macs=count_macs(network, example),
        dense_macs=count_macs(dense, example),
        bytes=stored(network),
        dense_bytes=stored(dense),
    )


def latency(
    network: nn.Module,
    *,
    dense: nn.Module,
    example: Tensor,
    batch_sizes: tuple[int, ...] = BATCH_SIZES,
    runs: int = 30,
    seconds: float = math.inf,
) -> list[Timing]:
    """Times both networks in eval mode, turn by turn, so that whatever else the machine does falls on both.

    Args:
        example: [batch, channels, height, width]; repeated to each batch size, on the networks' device.
        runs: pairs per batch size; three more before them are not counted.
        seconds: per batch size; fewer pairs are run, but at least five, where ``runs`` would take longer.
    """
    modes = {module: module.training for each in (network, dense) for module in each.modules()}

    def timed(module: nn.Module, images: Tensor) -> float:
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        start = time.perf_counter()
        module(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        return time.perf_counter() - start

    results = []
    try:
        network.eval()
        dense.eval()
        with torch.inference_mode():
            for batch_size in batch_sizes:
                copies = -(-batch_size // len(example))
                images = example.repeat(copies, 1, 1, 1)[:batch_size]
                pairs = []
                end = time.perf_counter() + seconds
                while len(pairs) < runs + 3 and (len(pairs) < min(runs, 5) + 3 or time.perf_counter() < end):
                    pairs.append((timed(network, images), timed(dense, images)))
                pairs = pairs[3:]
                low, ratio, high = statistics.quantiles([mine / base for mine, base in pairs], n=4)
                mine, base = (statistics.median(column) for column in zip(*pairs, strict=True))
                results.append(Timing(batch_size, mine, base, ratio, low, high))
    finally:
        for module, mode in modes.items():
            module.training = mode
    return results


# ---------------------------------------------------------------------------------------------- in the long table


def _row(kind: str, name: str, value: float | None, seed: int, *ends: float) -> Row:
    quantity = QUANTITIES[name]
    low, high = ends or (None, None)
    return measured(kind, name, value, seed=seed, low=low, high=high, unit=quantity.unit, better=quantity.better)


def size_rows(size: Mapping[str, Any] | None, stored: int, seed: int) -> list[Row]:
    """Rows of a network's size.

    Args:
        size: the fields of a `Size`; None for a dense network, which is its own measure.
        stored: bytes of its file of weights.
    """
    return [
        _row("size", "parameters", size["nonzero_parameters"] if size else None, seed),
        _row("size", "bytes", stored, seed),
        _row("size", "macs_ratio", size["macs"] / size["dense_macs"] if size else 1.0, seed),
    ]


def latency_rows(timings: Sequence[Timing] | None, seed: int) -> list[Row]:
    """Rows of a network's latency over its dense network's: 1 without timings, for one of that network's shape."""
    if timings is None:
        return [_row("latency", f"latency_b{size}", 1.0, seed) for size in BATCH_SIZES]
    return [_row("latency", f"latency_b{one.batch_size}", one.ratio, seed, one.low, one.high) for one in timings]
