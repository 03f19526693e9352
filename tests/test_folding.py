"""BatchNorm folding: the same logits, the same module paths, and the original left alone."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from pipeline.folding import batchnorm_after, fold_batchnorm
from pipeline.registry import UserError

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def trained(network):
    """BatchNorm as after training: statistics, scales and shifts that differ from their initial values."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network


@pytest.mark.parametrize(("name", "left"), [("resnet18", 0), ("mobilenet_v3_small", 0), ("densenet121", 62)])
def test_folded_network_gives_the_same_logits(name, left):
    options = {"num_classes": 10, "weights": None}
    network = trained(torchvision.models.get_model(name, **options)).train()
    before = copy.deepcopy(network.state_dict())
    folded = fold_batchnorm(network, IMAGES)
    assert network.training and not folded.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(folded(IMAGES), network.eval()(IMAGES), rtol=1e-3, atol=1e-4)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == left
    assert dict(folded.named_modules()).keys() == dict(network.named_modules()).keys()


def test_blocks_still_fire_with_the_same_maps():
    network = trained(torchvision.models.resnet18(num_classes=10)).eval()
    maps = []
    for each in (network, fold_batchnorm(network, IMAGES)):
        each.layer3.register_forward_hook(lambda _module, _inputs, output: maps.append(output))
        with torch.no_grad():
            each(IMAGES)
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-3, atol=1e-4)


def test_pairs_are_found_without_knowing_the_architecture():
    pairs = batchnorm_after(torchvision.models.resnet18(), IMAGES)
    assert pairs["conv1"] == "bn1" and pairs["layer2.0.downsample.0"] == "layer2.0.downsample.1"
    assert len(pairs) == 20


class Shared(nn.Module):
    """The convolution's output is read by its BatchNorm and by an addition."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images):
        x = self.conv(images)
        return (x + self.norm(x)).mean((2, 3))


def test_a_convolution_with_another_reader_is_left_alone():
    network = nn.Sequential(Shared(), nn.Unflatten(1, (4, 1, 1)), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).eval()
    trained(network)
    folded = fold_batchnorm(network, IMAGES)
    assert isinstance(folded[0].norm, nn.BatchNorm2d) and isinstance(folded[3], nn.Identity)
    with torch.no_grad():
        torch.testing.assert_close(folded(IMAGES), network(IMAGES), rtol=1e-3, atol=1e-4)


class Repeated(nn.Module):
    """One BatchNorm behind two convolutions cannot be folded into either."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images):
        return (self.norm(self.first(images)) + self.norm(self.second(images))).mean((2, 3))


def test_a_module_that_runs_twice_is_left_alone():
    network = Repeated().eval()
    assert batchnorm_after(network, IMAGES) == {}
    assert isinstance(fold_batchnorm(network, IMAGES).norm, nn.BatchNorm2d)


def test_hooks_are_refused():
    network = torchvision.models.resnet18()
    network.layer1.register_forward_hook(lambda *_: None)
    with pytest.raises(UserError, match="layer1 has hooks"):
        fold_batchnorm(network, IMAGES)
