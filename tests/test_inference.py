"""Inference: every example in order, in eval mode, whatever the size of the batches."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import inference, models

IMAGES = torch.randn(10, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@dataclass(frozen=True)
class Batch:
    """images and inputs: the same, under either name that a batch may give them."""

    images: torch.Tensor

    @property
    def inputs(self):
        return self.images


@dataclass(frozen=True)
class InOrder:
    """As much of batches as inference may ask for."""

    size: int
    device: torch.device = torch.device("cpu")

    def in_order(self):
        yield from (Batch(images) for images in IMAGES.split(self.size))


@pytest.fixture
def network():
    """With BatchNorm statistics that tell training from evaluation, and a dropout that would show."""
    network = models.build(models.network("resnet8"), input_shape=(3, 16, 16), classes=4)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
    network.tail = nn.Dropout(0.5)
    return network.train()


def one_by_one(network):
    with torch.no_grad():
        return np.concatenate([network.eval()(image[None]).numpy() for image in IMAGES])


@pytest.mark.parametrize("size", [1, 3, 10])
def test_predictions_are_those_of_each_image_alone(network, size):
    found = inference.predict(network, InOrder(size))
    assert found.dtype == np.float32 and found.shape == (10, 4) and not network.training
    np.testing.assert_allclose(found, one_by_one(network), rtol=1e-4, atol=1e-5)


def test_logits_are_float32_whatever_the_network_computes_in(network):
    assert inference.predict(network.double(), Doubles(5)).dtype == np.float32


class Doubles(InOrder):
    def in_order(self):
        yield from (Batch(images.double()) for images in IMAGES.split(self.size))


def test_no_gradients_are_kept(network):
    observed = observe(network, 5)
    assert not any(part.requires_grad for each in observed for part in (each.logits, *each.blocks, each.embedding))


def observe(network, size):
    blocks, classifier = models.find_blocks(network.eval(), (3, 16, 16))
    with models.Observer(network.train(), blocks, classifier) as observer:
        return inference.observe(observer, InOrder(size))


def test_what_is_observed_is_what_the_layers_put_out(network):
    observed = observe(network, 4)
    assert [len(each.logits) for each in observed] == [4, 4, 2] and not network.training
    seen = []
    handles = [
        getattr(network, f"stage{number}").register_forward_hook(lambda *call: seen.append(call[2]))
        for number in (1, 2, 3)
    ]
    handles.append(network.classifier.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0])))
    with torch.no_grad():
        logits = network(IMAGES)
    for handle in handles:
        handle.remove()
    np.testing.assert_allclose(torch.cat([each.logits for each in observed]), logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(torch.cat([each.embedding for each in observed]), seen[3], rtol=1e-4, atol=1e-5)
    for number in range(3):
        together = torch.cat([each.blocks[number] for each in observed])
        np.testing.assert_allclose(together, seen[number], rtol=1e-4, atol=1e-5)
