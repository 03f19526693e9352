"""How similar two networks see the same images: registered measures of two sets of features, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pipeline.models import Outputs
from pipeline.registry import Registry, UserError

SIMILARITIES: Registry[SimilarityMeasure] = Registry("similarity measure")

# The layer under which the mean over the block ends stands in tables.
SUMMARY_LAYER = "mean of blocks"


@dataclass(frozen=True)
class SimilarityMeasure:
    """What all similarity measures declare; a new one is a registered dataclass with ``between``.

    title, short: in full, and as the heading of a column. unit, better: as for the measures of bias.
    headline: place among the columns of the main tables; 0: only in the full lists. digits: decimals there.
    itself: the value of a network with itself.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    short: ClassVar[str] = ""
    unit: ClassVar[str] = "share"
    better: ClassVar[str] = "higher"
    headline: ClassVar[int] = 0
    digits: ClassVar[int | None] = None
    itself: ClassVar[float] = 1.0

    def between(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
        """The value of two sets of features [n, ...] of the same n examples, which arrive in batches."""
        raise NotImplementedError


@SIMILARITIES.register("cka")
@dataclass(frozen=True)
class LinearCKA(SimilarityMeasure):
    """See `linear_cka`."""

    title = "Linear centred kernel alignment, debiased"
    source = "Kornblith et al. 2019; Nguyen et al. 2021"
    short = "CKA"
    headline = 4
    digits = 3

    def between(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
        return linear_cka(pairs)


def similarity(
    first: ArrayLike | Tensor, second: ArrayLike | Tensor, measure: str | Mapping[str, Any] = "cka"
) -> float:
    """How similar two sets of features of the same n examples are.

    Args:
        first, second: [n, ...]; trailing dimensions are flattened and may differ.
        measure: a registered one, or a mapping of its name and options.

    Raises:
        UserError: an unknown measure, or features that it cannot compare.
    """
    return SIMILARITIES.build(measure, "measure").between([(torch.as_tensor(first), torch.as_tensor(second))])


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


def by_layer(
    measure: SimilarityMeasure, reference: Sequence[Outputs], candidate: Sequence[Outputs]
) -> dict[str, float]:
    """A measure at each block end (``block1`` ...), their mean (`SUMMARY_LAYER`), and at the ``embedding``.

    Args:
        reference, candidate: the observed batches of both networks, of the same examples.
    """
    blocks = min(len(reference[0].blocks), len(candidate[0].blocks))
    found = {}
    for block in range(blocks):
        pairs = zip(reference, candidate, strict=True)
        found[f"block{block + 1}"] = measure.between((left.blocks[block], right.blocks[block]) for left, right in pairs)
    mean = float(np.mean(list(found.values()))) if found else math.nan
    pairs = zip(reference, candidate, strict=True)
    embedding = measure.between((left.embedding, right.embedding) for left, right in pairs)
    return {SUMMARY_LAYER: mean, **found, "embedding": embedding}
