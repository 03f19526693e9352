"""Networks: builders, what a forward pass shows (Outputs), saving and loading."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
