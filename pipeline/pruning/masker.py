"""The Masker: what a training loop holds so that a masked network stays masked; and rewinding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.folding import copy_network
from pipeline.pruning.channels import replay
from pipeline.pruning.masks import MaskMethod, apply_masks
from pipeline.pruning.method import Examples, Masks, prunable, refuse_schedule
from pipeline.pruning.schedules import OneShot, Schedule
from pipeline.registry import UserError


class Masker:
    """Keeps a masked network truly sparse while something else trains it.

    Call :meth:`step` after every optimizer step: whatever momentum or weight decay put into a masked weight is
    multiplied away, so the network is sparse at every moment. Under a gradual schedule it also lets the masks grow; a
    removed weight never comes back. Its state is ``masks`` and nothing else: a resumed run that is given the saved
    masks goes on as if it had not stopped.

    Args:
        network: already masked, trained in place.
        masks: of the network as it is (``Pruned.masks``, or what was saved).
        method, sparsity: as given to ``prune``; ``sparsity`` is the one at the end.
        schedule: under a gradual one, ``prune`` the network to ``schedule.at(0, sparsity)`` first.
        images, labels, seed: as for ``prune``; read when a gradual schedule chooses more weights.

    Raises:
        UserError: the masks belong to another network, or the schedule grows and the method cannot.
    """

    def __init__(
        self,
        network: nn.Module,
        masks: Masks,
        *,
        method: MaskMethod,
        sparsity: float,
        schedule: Schedule | None = None,
        images: Tensor | None = None,
        labels: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        self.network, self.method, self.sparsity = network, method, sparsity
        self.schedule = schedule or OneShot()
        refuse_schedule(method, self.schedule)
        self.examples = Examples(images, labels, seed)
        self.progress = 0.0
        self.grown = None  # the sparsity at the last growth; None makes the first step look, which changes nothing new
        self.use(masks)

    def use(self, masks: Masks) -> None:
        """Takes over masks, such as those of a checkpoint, in the memory order that the network has now."""
        known = dict(self.network.named_parameters())
        for name, mask in masks.items():
            if name not in known or known[name].shape != mask.shape:
                raise UserError(f"the mask of {name} does not fit this network: it belongs to another one")
        self.masks = {name: mask.to(known[name].device) for name, mask in masks.items()}
        self.parameters = [known[name] for name in masks]
        # in the weights' own type and memory layout, so that one fused multiplication does them all
        self.factors = [torch.empty_like(p).copy_(m) for p, m in zip(self.parameters, self.masks.values(), strict=True)]
        self._apply()

    @torch.no_grad()
    def _apply(self) -> None:
        if self.parameters and self.parameters[0].device != self.factors[0].device:  # the network has moved
            self.use(self.masks)
        elif self.parameters:
            torch._foreach_mul_(self.parameters, self.factors)

    def step(self, progress: float) -> None:
        """Call after each optimizer step.

        Args:
            progress: share of training done, this step included, from 0 to 1.
        """
        self.progress = progress
        self._apply()
        wanted = self.schedule.at(progress, self.sparsity)
        if self.schedule.grows and wanted != self.grown:
            examples = self.examples.to(next(self.network.parameters()).device)
            self.use(self.method.masks(self.network, wanted, examples, previous=self.masks))
            self.grown = wanted

    def verify(self) -> None:
        """Checks that the network is what the masks and the schedule say.

        Raises:
            UserError: a masked weight is not zero (names the layer), or the number of removed weights is not the one
                that the schedule asks for at this point.
        """
        for parameter, (name, mask) in zip(self.parameters, self.masks.items(), strict=True):
            alive = int(torch.count_nonzero(parameter.detach()[~mask]))
            if alive:
                raise UserError(f"{name}: {alive} masked weights are not zero; Masker.step belongs after each update")
        asked = self.schedule.at(self.progress, self.sparsity)
        weights = prunable(self.network, self.method)
        removed = sum(int((~self.masks[name]).sum()) for name in weights if name in self.masks)
        expected = self.method.removed_count(self.network, asked)
        if removed != expected:
            total = sum(weight.numel() for weight in weights.values())
            raise UserError(
                f"{removed} of {total} prunable weights are masked, but sparsity {asked:.4f} takes {expected}:"
                " the masks belong to another sparsity, or Masker.step was not called"
            )


def rewind(
    early: nn.Module, *, masks: Masks, removed: list[dict[str, Any]] | None = None, example: Tensor | None = None
) -> nn.Module:
    """A copy of the dense network at an earlier time, with the same weights or channels removed as later.

    Frankle et al. 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis": train, prune by the final
    weights, go back to the weights of an early step, train again.

    Args:
        early: the dense network with its earlier weights and buffers.
        masks, removed: of the pruned network. example: as for ``replay``, which needs it where channels are removed.
    """
    result = copy_network(early)
    replay(result, removed or [], example)
    apply_masks(result, masks)
    return result
