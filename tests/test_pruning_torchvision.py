"""Pruning of torchvision's classifiers: every sparsity reached, outputs finite, rebuilt to the same bits."""

import copy
import functools

import pytest
import torch
import torchvision
from torch import nn

from pipeline.pruning import METHODS, measure, prune, replay
from pipeline.pruning.size import count_macs
from pipeline.registry import UserError

pytestmark = pytest.mark.slow

NETWORKS = ["resnet18", "vgg16_bn", "mobilenet_v3_small", "wide_resnet", "vit"]


@functools.lru_cache(maxsize=1)
def build(name):
    """A randomly initialised network and two images; the dense network is never changed by a test.

    The largest are built with fewer blocks or a narrower head, to keep the test short; benchmarks/pruning.py prunes
    vgg16_bn, wide_resnet50_2 and vit_b_16 as they are.
    """
    torch.manual_seed(0)
    models = torchvision.models
    if name == "wide_resnet":
        network = models.ResNet(models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=10, width_per_group=128)
    elif name == "vit":
        network = models.VisionTransformer(
            image_size=32, patch_size=16, num_layers=2, num_heads=12, hidden_dim=768, mlp_dim=3072, num_classes=10
        )
    else:
        network = models.get_model(name, weights=None, num_classes=10)
    if name == "vgg16_bn":
        network.classifier[0], network.classifier[3] = nn.Linear(512 * 49, 128), nn.Linear(128, 128)
        network.classifier[6] = nn.Linear(128, 10)
    return network.eval(), torch.randn(2, 3, 32, 32)


def rebuild(network):
    """The same architecture with other weights, without the cost of drawing them."""
    fresh = copy.deepcopy(network)
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    return fresh


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("name", NETWORKS)
def test_physical_removal_reaches_the_sparsity(name, sparsity):
    dense, images = build(name)
    method = METHODS["channels"](scope="uniform")
    pruned = prune(dense, method, sparsity, images=images)
    size = measure(pruned.network, dense=dense, method=method, example=images)
    assert abs(size.sparsity - sparsity) <= 0.02
    assert size.macs < size.dense_macs and size.parameters < size.dense_parameters
    with torch.no_grad():
        logits = pruned.network(images)
    assert logits.shape == (2, 10) and logits.isfinite().all()


@pytest.mark.parametrize("name", NETWORKS)
def test_global_removal_is_rebuilt_to_the_same_bits(name):
    dense, images = build(name)
    method = METHODS["channels"](scope="global")
    pruned = prune(dense, method, 0.75, images=images)
    fresh = rebuild(dense)
    replay(fresh, pruned.removed, images)
    fresh.load_state_dict(pruned.network.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(fresh(images), pruned.network(images))


def test_layernorm_loses_the_same_channels_as_the_rest():
    # torch-pruning 1.6.0 by itself permutes the LayerNorm parameters that stay, once few are left
    torch.manual_seed(0)
    network = torchvision.models.VisionTransformer(
        image_size=16, patch_size=8, num_layers=1, num_heads=4, hidden_dim=768, mlp_dim=64, num_classes=3
    ).eval()
    with torch.no_grad():
        network.encoder.ln.weight.copy_(torch.arange(768))
        network.class_token[0, 0].copy_(torch.arange(768))
    pruned = prune(network, METHODS["channels"](scope="uniform"), 0.9, images=torch.randn(2, 3, 16, 16)).network
    kept = pruned.encoder.ln.weight.detach()
    assert 4 <= len(kept) < 300 and torch.equal(kept, kept.sort().values)
    assert torch.equal(kept, pruned.class_token[0, 0])
    # every head keeps the same positions
    assert len(kept) % 4 == 0
    assert torch.equal(kept.view(4, -1) % 192, (kept.view(4, -1) % 192)[:1].expand(4, -1))


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnet18", torchvision.models.ResNet18_Weights.IMAGENET1K_V1),
        ("vgg16_bn", torchvision.models.VGG16_BN_Weights.IMAGENET1K_V1),
        ("mobilenet_v3_small", torchvision.models.MobileNet_V3_Small_Weights.IMAGENET1K_V1),
        ("wide_resnet50_2", torchvision.models.Wide_ResNet50_2_Weights.IMAGENET1K_V1),
        ("vit_b_16", torchvision.models.ViT_B_16_Weights.IMAGENET1K_V1),
    ],
)
def test_macs_and_parameters_are_those_that_torchvision_publishes(name, weights):
    with torch.device("meta"):
        network, images = torchvision.models.get_model(name, weights=None), torch.randn(1, 3, 224, 224)
    assert count_macs(network, images) / 1e9 == pytest.approx(weights.meta["_ops"], abs=6e-4)  # printed to three digits
    assert sum(parameter.numel() for parameter in network.parameters()) == weights.meta["num_params"]


@pytest.mark.parametrize("name", ["swin_t", "shufflenet_v2_x0_5"])
def test_what_torch_pruning_cannot_follow_is_one_clear_line(name):
    network = torchvision.models.get_model(name, weights=None)
    with pytest.raises(UserError, match="use masks") as refused:
        prune(network, METHODS["channels"](), 0.5, images=torch.randn(2, 3, 64, 64))
    assert "\n" not in str(refused.value)
