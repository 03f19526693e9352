"""What pruning buys: latency of ResNet-20 with channels removed or masked, and what torchvision's networks reach.

    python benchmarks/pruning.py latency    ResNet-20, 3 x 32 x 32, uniform removal, eager, over the dense network
    python benchmarks/pruning.py networks   torchvision classifiers, physical removal: sparsity reached, MACs, seconds

How the latencies are measured: dense and pruned forward passes alternate in one process, the number is the median of
the pairs' ratios, quartiles in brackets. Weights are random: what is computed does not depend on them.
"""

from __future__ import annotations

import argparse
import platform
import time

import torch
import torch_pruning
import torchvision

from pipeline import models
from pipeline.folding import fold_batchnorm
from pipeline.pruning import METHODS, latency, measure, prune
from pipeline.registry import UserError

# (batch size, folded): the latency relative to the dense network that the project set itself, at 50 / 75 / 90 % of the
# channels gone. The folded column is what a prototype reached.
GOALS = {
    (128, False): (0.45, 0.25, 0.17),
    (1, False): (0.75, 0.62, 0.50),
    (128, True): (0.28, 0.16, 0.12),
    (1, True): (0.54, 0.41, 0.31),
}


def latencies(runs: int, device: str) -> None:
    """Prints one line per share of channels, kind and batch size."""
    torch.manual_seed(0)
    example = torch.randn(128, 3, 32, 32).to(device)
    dense = models.build(models.network("resnet20"), input_shape=(3, 32, 32), classes=10).eval().to(device)
    channels, filters = METHODS["channels"](scope="uniform", target="channels"), METHODS["filters"]()
    print(f"{'gone':>5} {'what':<22} {'weights':>8} {'MACs':>6} {'batch':>6} {'latency / dense':>24} {'goal':>6}")
    for column, share in enumerate((0.5, 0.75, 0.9)):
        removed = prune(dense, channels, share, images=example).network
        masked = prune(dense, filters, share, images=example).network
        rows = [
            ("channels removed", removed, channels, False),
            ("removed, BN folded", fold_batchnorm(removed, example), channels, True),
            ("filters masked", masked, filters, None),
        ]
        for title, network, method, folded in rows:
            origin = removed if folded else network  # folding adds biases: the sizes are those before it
            size = measure(origin, dense=dense, method=method, example=example)
            for result in latency(network, dense=dense, example=example, runs=runs):
                goal = GOALS.get((result.batch_size, folded))
                print(
                    f"{share:>5.0%} {title:<22} {size.sparsity:>8.3f} {size.macs / size.dense_macs:>6.3f}"
                    f" {result.batch_size:>6} {result.ratio:>10.3f} [{result.low:.3f}, {result.high:.3f}]"
                    f" {goal[column] if goal else '':>6}",
                    flush=True,
                )
    for result in latency(fold_batchnorm(dense, example), dense=dense, example=example, runs=runs):
        print(f"{0:>5.0%} {'dense, BN folded':<22} {0:>8.3f} {1:>6.3f} {result.batch_size:>6} {result.ratio:>10.3f}"
              f" [{result.low:.3f}, {result.high:.3f}]")  # fmt: skip


def networks(scope: str) -> None:
    """Prints what physical removal reaches on torchvision's networks, or the line that says why not."""
    sizes = {"resnet18": 64, "vgg16_bn": 64, "mobilenet_v3_small": 64, "wide_resnet50_2": 64, "vit_b_16": 64}
    more = ["resnext50_32x4d", "densenet121", "efficientnet_b0", "convnext_tiny", "squeezenet1_1", "googlenet"]
    more += ["regnet_y_400mf", "mnasnet0_5", "alexnet", "swin_t", "shufflenet_v2_x0_5"]
    for name in [*sizes, *more]:
        size = sizes.get(name, 64)
        torch.manual_seed(0)
        images = torch.randn(2, 3, size, size)
        dense = models.build(models.network(name), input_shape=(3, size, size), classes=10)
        method = METHODS["channels"](scope=scope)
        for sparsity in (0.3, 0.5, 0.75, 0.9) if name in sizes else (0.5, 0.9):
            start = time.perf_counter()
            try:
                pruned = prune(dense, method, sparsity, images=images)
            except UserError as error:
                print(f"{name:<20} {scope:<10} {sparsity:.2f}  {error}", flush=True)
                continue
            seconds = time.perf_counter() - start
            with torch.no_grad():
                logits = pruned.network.eval()(images)
            assert logits.shape == (2, 10) and logits.isfinite().all()
            reached = measure(pruned.network, dense=dense, method=method, example=images)
            macs = reached.macs / reached.dense_macs
            print(f"{name:<20} {scope:<10} {sparsity:.2f} -> {reached.sparsity:.4f}  MACs {macs:.3f}  {seconds:.1f} s",
                  flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("latency", "networks"), default="latency")
    parser.add_argument("--runs", type=int, default=30, help="pairs of runs per latency")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scope", default="uniform", choices=("uniform", "global", "isomorphic"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    print(
        f"{platform.processor() or platform.machine()}, {options.threads} threads, device {options.device},"
        f" torch {torch.__version__}, torchvision {torchvision.__version__}, torch-pruning {torch_pruning.__version__}"
    )
    latencies(options.runs, options.device) if options.part == "latency" else networks(options.scope)


if __name__ == "__main__":
    main()
