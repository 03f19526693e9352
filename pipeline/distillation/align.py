"""Blocks of unlike networks side by side: number of blocks, tokens or maps, spatial size."""

from __future__ import annotations

from math import isqrt

from torch import Tensor
from torch.nn import functional as F

from pipeline.models import Outputs
from pipeline.registry import UserError


def paired(student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
    """Maps at the same relative depth: as many pairs as the shallower network has blocks, the last with the last.

    Raises:
        UserError: one of the two shows no blocks.
    """
    count = min(len(student.blocks), len(teacher.blocks))
    if count == 0:
        raise UserError(
            "losses: a loss reads the ends of blocks and the network shows none; name its blocks, or use kd"
        )

    def pick(blocks: list[Tensor]) -> list[Tensor]:
        return [as_map(blocks[(index + 1) * len(blocks) // count - 1]) for index in range(count)]

    return list(zip(pick(student.blocks), pick(teacher.blocks), strict=True))


def aligned(student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
    """``paired``, with both maps averaged down to the smaller height and width of the two; channels may differ."""
    return [_same_size(*pair) for pair in paired(student, teacher)]


def as_map(block: Tensor) -> Tensor:
    """[batch, channels, height, width] of any block.

    Tokens [batch, tokens, width] become a square of positions, without the leading class token if there is one; where
    their number is no square, a line [batch, width, tokens, 1]. A vector per example becomes a map of one position.
    """
    if block.dim() != 3:
        return block.reshape(*block.shape, *[1] * (4 - block.dim()))
    tokens = block.shape[1]
    if tokens > 1 and isqrt(tokens - 1) ** 2 == tokens - 1:
        block, tokens = block[:, 1:], tokens - 1
    side = isqrt(tokens)
    height, width = (side, side) if side**2 == tokens else (tokens, 1)
    return block.transpose(1, 2).reshape(len(block), -1, height, width)


def _same_size(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    sizes = ours.shape[2:], theirs.shape[2:]
    if sizes[0] == sizes[1]:
        return ours, theirs
    if any(height > width == 1 for height, width in sizes):
        shown = " and ".join(f"{height} x {width}" for height, width in sizes)
        raise UserError(f"losses: maps of {shown} positions cannot be aligned; use a loss on logits or embeddings")
    smaller = tuple(min(pair) for pair in zip(*sizes, strict=True))
    return F.adaptive_avg_pool2d(ours, smaller), F.adaptive_avg_pool2d(theirs, smaller)
