"""How similar two networks see the same images: linear CKA at every block end, streamed over batches."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from pipeline.models import Outputs
from pipeline.registry import UserError


def linear_cka(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Linear centred kernel alignment of two feature matrices that arrive in batches.

    Debiased: the unbiased HSIC estimator (Song et al. 2012, equation 5; ckatorch's ``hsic1``) of each batch is averaged
    over the batches before the ratio is taken (Nguyen et al. 2021, "Do Wide and Deep Networks Learn the Same Things?",
    equations 3 and 4). With one batch it is the debiased CKA of the whole sample. Plain CKA is biased upwards when
    there are more features than examples, as is always so for feature maps.

    Args:
        pairs: (x, y) of shapes [n, ...] and [n, ...]; trailing dimensions are flattened. n may differ between batches
            (each counts by its number of examples) and must be at least 4.

    Returns:
        1 for features that agree up to rotation and scale, about 0 for unrelated ones (it can be slightly negative);
        NaN where one side is constant, as a dead layer is.
    """
    from ckatorch.hsic import hsic1  # on import it loads matplotlib

    sums = torch.zeros(3, dtype=torch.float64)
    for x, y in pairs:
        if len(x) != len(y) or len(x) < 4:
            raise UserError(f"CKA compares at least 4 examples of equal number, not {len(x)} and {len(y)}")
        gram_x, gram_y = _gram(x), _gram(y)
        left = torch.stack([gram_x, gram_x, gram_y])
        right = torch.stack([gram_y, gram_x, gram_y])
        sums += len(x) * hsic1(left, right).cpu()
    cross, x_x, y_y = sums.tolist()
    return cross / math.sqrt(x_x * y_y) if x_x > 0 and y_y > 0 else math.nan


def _gram(features: Tensor) -> Tensor:
    matrix = features.flatten(1).double()
    # Centring changes nothing in exact arithmetic; without it the sums cancel badly for features far from zero.
    matrix = matrix - matrix.mean(0)
    return matrix @ matrix.T


def compare(reference: list[Outputs], candidate: list[Outputs]) -> dict[str, float]:
    """CKA at each block end (``block1`` ...) and at the ``embedding``, from the observed batches of both networks."""
    blocks = min(len(reference[0].blocks), len(candidate[0].blocks))
    found = {}
    for block in range(blocks):
        pairs = zip(reference, candidate, strict=True)
        found[f"block{block + 1}"] = linear_cka((left.blocks[block], right.blocks[block]) for left, right in pairs)
    pairs = zip(reference, candidate, strict=True)
    found["embedding"] = linear_cka((left.embedding, right.embedding) for left, right in pairs)
    return found
