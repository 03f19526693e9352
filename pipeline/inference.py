"""Predictions: what a network says about every example of a split, as one file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.bias import Predictions
from pipeline.data.batches import Batches
from pipeline.models import Observer, Outputs


@torch.no_grad()
def predict(network: nn.Module, batches: Batches) -> np.ndarray:
    """Logits float32 [N, classes] for every example in order; leaves the network in eval mode."""
    network.to(batches.device, memory_format=torch.channels_last).eval()
    return torch.cat([network(batch.images).float().cpu() for batch in batches.in_order()]).numpy()


@torch.no_grad()
def observe(observer: Observer, batches: Batches) -> list[Outputs]:
    """Outputs of every batch, in order, on the CPU; the caller chooses how many examples fit into memory."""
    observer.network.to(batches.device, memory_format=torch.channels_last).eval()
    found = []
    for batch in batches.in_order():
        outputs = observer(batch.images)
        blocks = [block.float().cpu() for block in outputs.blocks]
        found.append(Outputs(outputs.logits.float().cpu(), blocks, outputs.embedding.float().cpu()))
    return found


def save(folder: Path, logits: np.ndarray, labels: np.ndarray, ids: np.ndarray, classes: tuple[str, ...]) -> None:
    """Writes ``predictions.npz`` (logits, labels, ids) and ``classes.json``, as the verb `audit` reads them."""
    np.savez(folder / "predictions.npz", logits=logits, labels=labels, ids=ids)
    (folder / "classes.json").write_text(json.dumps(list(classes), ensure_ascii=False) + "\n")


def load(folder: Path) -> Predictions:
    """What `save` wrote, as the measures read it."""
    with np.load(folder / "predictions.npz", allow_pickle=False) as arrays:
        labels, logits = arrays["labels"], arrays["logits"]
    classes = json.loads((folder / "classes.json").read_text())
    return Predictions.from_logits(labels, logits, classes=classes, source=str(folder))
