"""Inference: what a network says about every example of a split, and what its layers put out."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from pipeline.data.batches import Batches
from pipeline.models import Observer, Outputs


@torch.no_grad()
def predict(network: nn.Module, batches: Batches) -> np.ndarray:
    """Logits float32 [N, classes] for every example in order; leaves the network in eval mode."""
    network.to(batches.device, memory_format=torch.channels_last).eval()
    return torch.cat([network(batch.inputs).float().cpu() for batch in batches.in_order()]).numpy()


@torch.no_grad()
def observe(observer: Observer, batches: Batches) -> list[Outputs]:
    """Outputs of every batch, in order, on the CPU; the caller chooses how many examples fit into memory."""
    observer.network.to(batches.device, memory_format=torch.channels_last).eval()
    found = []
    for batch in batches.in_order():
        outputs = observer(batch.inputs)
        blocks = [block.float().cpu() for block in outputs.blocks]
        found.append(Outputs(outputs.logits.float().cpu(), blocks, outputs.embedding.float().cpu()))
    return found
