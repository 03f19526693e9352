"""Pruning: exact counts, true sparsity at every moment, and agreement with independent implementations."""

import copy
import json
import math

import pytest
import torch
import torch_pruning
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn
from torch.nn.functional import cross_entropy, relu
from torch.nn.utils import prune as torch_prune

from pipeline.pruning import (
    METHODS,
    SCHEDULES,
    Masker,
    check,
    latency,
    measure,
    prunable,
    prune,
    replay,
    rewind,
)
from pipeline.pruning.channels import Removal
from pipeline.pruning.masks import MaskMethod, Unstructured, erdos_renyi_kernel, smallest
from pipeline.pruning.method import Examples
from pipeline.registry import UserError


class Net(nn.Module):
    """What removal must see through: a residual block, a grouped convolution, a bias, a flatten, two linear layers."""

    def __init__(self, width=16):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.first, self.first_norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.second, self.second_norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.grouped = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, groups=2)
        self.grouped_norm = nn.BatchNorm2d(2 * width)
        self.hidden = nn.Linear(2 * width * 16, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, images):
        x = relu(self.stem_norm(self.stem(images)))
        x = relu(x + self.second_norm(self.second(relu(self.first_norm(self.first(x))))))
        x = relu(self.grouped_norm(self.grouped(x)))
        return self.head(relu(self.hidden(x.flatten(1))))


def build(seed=0, **options):
    torch.manual_seed(seed)
    network = Net(**options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training: no two channels alike
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.eval()


IMAGES = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(12) % 5
EXAMPLES = {"images": IMAGES, "labels": LABELS}
MASKING = [name for name in METHODS if issubclass(METHODS[name], MaskMethod)]
REMOVING = [name for name in METHODS if issubclass(METHODS[name], Removal)]
UNSTRUCTURED = [name for name in METHODS if issubclass(METHODS[name], Unstructured)]
GROWING = [name for name in MASKING if METHODS[name].grows]


def logits(network):
    with torch.no_grad():
        return network.eval()(IMAGES)


def train(network, masker, steps=6, first=0, total=6):
    """SGD with everything that could revive a weight."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    network.train()
    for step in range(first, first + steps):
        optimizer.zero_grad()
        cross_entropy(network(IMAGES), LABELS).backward()
        optimizer.step()
        masker.step((step + 1) / total)
        yield step


def removed_by_hand(method, network, sparsity):
    """How many weights must go, from the definition of each family."""
    weights = prunable(network, method)
    if method.name == "filters":
        return sum(round(sparsity * len(w)) * w[0].numel() for w in weights.values())
    return round(sparsity * sum(w.numel() for w in weights.values()))


def share_of_zeros(network, method):
    weights = prunable(network, method).values()
    return sum(int((w == 0).sum()) for w in weights)


# ------------------------------------------------------------------------------------------- every registered method


@pytest.mark.parametrize("name", list(METHODS))
def test_zero_sparsity_is_the_identity(name):
    network = build()
    pruned = prune(network, METHODS[name](), 0.0, **EXAMPLES)
    assert pruned.network is not network and pruned.removed == []
    assert all(mask.all() for mask in pruned.masks.values())
    assert network.state_dict().keys() == pruned.network.state_dict().keys()
    for key, value in network.state_dict().items():
        assert torch.equal(value, pruned.network.state_dict()[key])


@pytest.mark.parametrize("name", list(METHODS))
def test_reaches_the_sparsity_and_leaves_the_argument_alone(name):
    network = build().train()
    network.hidden.weight.requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    method = METHODS[name]()
    pruned = prune(network, method, 0.5, **EXAMPLES)
    size = measure(pruned.network, dense=network, method=method, example=IMAGES)
    for key, value in before.items():
        assert torch.equal(value, network.state_dict()[key])
    for each in (network, pruned.network):
        assert each.training and each.head.training
        assert not each.hidden.weight.requires_grad and each.head.weight.requires_grad
        assert all(parameter.grad is None for parameter in each.parameters())
    if pruned.masks:
        assert share_of_zeros(pruned.network, method) == removed_by_hand(method, network, 0.5)
        assert size.macs == size.dense_macs and size.parameters == size.dense_parameters  # masks save no work
    else:
        assert abs(size.sparsity - 0.5) <= 0.02
        assert size.macs < 0.7 * size.dense_macs and size.parameters < 0.7 * size.dense_parameters
    assert logits(pruned.network).isfinite().all()
    assert not torch.equal(logits(pruned.network), logits(network))


@pytest.mark.parametrize("name", list(METHODS))
def test_same_seed_same_result(name):
    first, second = (prune(build(), METHODS[name](), 0.5, **EXAMPLES, seed=3) for _ in range(2))
    assert torch.equal(logits(first.network), logits(second.network))


@pytest.mark.parametrize("name", list(METHODS))
def test_rebuilt_from_files_gives_the_same_bits(name):
    pruned = prune(build(), METHODS[name](), 0.5, **EXAMPLES)
    weights, removed = load(save(pruned.network.state_dict())), json.loads(json.dumps(pruned.removed))
    fresh = Net().train()
    replay(fresh, removed, IMAGES)
    assert fresh.training
    fresh.load_state_dict(weights, strict=True)
    masks = load(save(pruned.masks))
    assert all(torch.equal(masks[key], mask) for key, mask in pruned.masks.items())
    assert torch.equal(logits(fresh), logits(pruned.network))


@pytest.mark.parametrize("name", MASKING)
def test_masked_weights_stay_zero_under_momentum_and_weight_decay(name):
    method = METHODS[name]()
    pruned = prune(build(), method, 0.5, **EXAMPLES)
    before = logits(pruned.network)
    masker = Masker(pruned.network, pruned.masks, method=method, sparsity=0.5)
    for _ in train(pruned.network, masker):
        masker.verify()
        assert share_of_zeros(pruned.network, method) == removed_by_hand(method, pruned.network, 0.5)
    assert not torch.equal(logits(pruned.network), before)  # it did learn
    assert all(torch.equal(masker.masks[key], mask) for key, mask in pruned.masks.items())


@pytest.mark.parametrize("name", GROWING)
def test_gradual_masks_start_low_fire_never_shrink_and_end_at_the_target(name):
    method, schedule = METHODS[name](), SCHEDULES["gradual"](initial=0.1, end=0.75, updates=5)
    pruned = prune(build(), method, schedule.at(0, 0.8), **EXAMPLES)
    masker = Masker(pruned.network, pruned.masks, method=method, sparsity=0.8, schedule=schedule, **EXAMPLES)
    masker.verify()
    counts, masks = [share_of_zeros(pruned.network, method)], masker.masks
    assert counts == [removed_by_hand(method, pruned.network, 0.1)]
    for step in train(pruned.network, masker, steps=8, total=8):
        masker.verify()
        counts.append(share_of_zeros(pruned.network, method))
        assert counts[-1] == removed_by_hand(method, pruned.network, schedule.at((step + 1) / 8, 0.8))
        assert not any((masker.masks[key] & ~mask).any() for key, mask in masks.items())  # nothing comes back
        masks = masker.masks
    assert counts == sorted(counts) and len(set(counts)) >= 4
    assert counts[6] == counts[8] == removed_by_hand(method, pruned.network, 0.8)


@pytest.mark.parametrize("name", ["magnitude", "filters"])
def test_resumed_gradual_run_gives_the_same_bits(name):
    method, schedule = METHODS[name](), SCHEDULES["gradual"](updates=4)

    def run(*stops):
        network = prune(build(), method, schedule.at(0, 0.8), **EXAMPLES)
        network, masks = network.network, network.masks
        for first, last in zip((0, *stops), (*stops, 8), strict=True):
            network = copy.deepcopy(network)
            masker = Masker(network, masks, method=method, sparsity=0.8, schedule=schedule, **EXAMPLES)
            optimizer = torch.optim.SGD(network.parameters(), lr=0.05, weight_decay=1e-3)
            for step in range(first, last):
                optimizer.zero_grad()
                cross_entropy(network(IMAGES), LABELS).backward()
                optimizer.step()
                masker.step((step + 1) / 8)
            masks = load(save(masker.masks))
        return network

    assert torch.equal(logits(run()), logits(run(3, 4)))


@pytest.mark.parametrize("name", list(SCHEDULES))
@given(target=st.floats(0, 0.99))
@settings(max_examples=25, deadline=None)
def test_schedules_are_monotone_and_end_at_the_target(name, target):
    schedule = SCHEDULES[name]()
    rounds = schedule.rounds(target)
    assert rounds == sorted(rounds) and rounds[-1] == target and rounds[0] >= 0
    path = [schedule.at(step / 200, target) for step in range(201)]
    assert path == sorted(path) and path[-1] == target
    if schedule.grows:
        assert path[0] == pytest.approx(min(schedule.initial, target))
        assert path[150] == target  # three quarters, the paper's setting


def test_gradual_follows_the_published_cubic():
    schedule = SCHEDULES["gradual"](initial=0.05, begin=0.25, end=0.75, updates=10**6)
    for progress in (0.25, 0.3, 0.5, 0.7):  # Zhu & Gupta 2017, equation 1, in their letters
        s_i, s_f, t, t_0, n_delta_t = 0.05, 0.9, progress, 0.25, 0.5
        published = s_f + (s_i - s_f) * (1 - (t - t_0) / n_delta_t) ** 3
        assert schedule.at(progress, 0.9) == pytest.approx(published, abs=1e-5)


def test_iterative_rounds_remove_an_equal_share_of_what_is_left():
    left = [1 - sparsity for sparsity in SCHEDULES["iterative"](steps=4).rounds(0.9)]
    assert [b / a for a, b in zip([1.0, *left], left, strict=False)] == pytest.approx([0.1**0.25] * 4)


# ------------------------------------------------------------------------------------------- independent oracles


def targets(network, method):
    return [(network.get_submodule(name.removesuffix(".weight")), "weight") for name in prunable(network, method)]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_global_magnitude_equals_torch(memory_format):
    method, network, reference = METHODS["magnitude"](), build().to(memory_format=memory_format), build()
    masks = prune(network, method, 0.7).masks
    torch_prune.global_unstructured(targets(reference, method), torch_prune.L1Unstructured, amount=0.7)
    for name, mask in masks.items():
        assert torch.equal(mask, reference.get_buffer(f"{name}_mask").bool())


@pytest.mark.parametrize("scope", ["layer", "erk"])
def test_random_equals_torch_with_the_same_seed(scope):
    method, reference = METHODS["random"](scope=scope), build()
    masks = prune(build(), method, 0.6, seed=7).masks
    torch.manual_seed(7)
    for module, attribute in targets(reference, method):
        weight = module.weight
        amount = 0.6 if scope == "layer" else int((~masks[name_of(reference, module)]).sum())
        torch_prune.random_unstructured(module, attribute, amount)
        assert torch.equal(masks[name_of(reference, module)], module.weight_mask.bool()), weight.shape


def name_of(network, module):
    return next(name for name, each in network.named_modules() if each is module) + ".weight"


def test_magnitude_per_layer_equals_torch():
    method, reference = METHODS["magnitude"](scope="layer", prune_first=True, prune_classifier=True), build()
    masks = prune(build(), method, 0.6).masks
    assert "stem.weight" in masks and "head.weight" in masks
    for module, attribute in targets(reference, method):
        torch_prune.l1_unstructured(module, attribute, 0.6)
        assert torch.equal(masks[name_of(reference, module)], module.weight_mask.bool())


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("sparsity", [0.3, 0.45, 0.75, 0.9])
def test_filters_equal_torch_ln_structured(norm, sparsity):
    method, reference = METHODS["filters"](norm=norm), build()
    pruned = prune(build(), method, sparsity, images=IMAGES)
    for module, attribute in targets(reference, method):
        torch_prune.ln_structured(module, attribute, sparsity, n=norm, dim=0)
        assert torch.equal(pruned.masks[name_of(reference, module)], module.weight_mask.bool())


def test_a_removed_filter_sends_nothing_on_unless_its_batchnorm_is_left():
    for batchnorm in (True, False):
        pruned = prune(build(), METHODS["filters"](batchnorm=batchnorm), 0.5, images=IMAGES)
        gone = ~pruned.masks["first.weight"].flatten(1).any(1)
        seen = {}
        handle = pruned.network.first_norm.register_forward_hook(lambda m, i, output, seen=seen: seen.update(x=output))
        logits(pruned.network)
        handle.remove()
        assert gone.sum() == 8
        assert (seen["x"][:, gone] == 0).all() == batchnorm
        assert ("grouped.bias" in pruned.masks) == batchnorm


def lamp_by_the_paper(weight):
    """Lee et al. 2021, equation 2, in the indices of the paper."""
    flat = weight.flatten().double()
    order = sorted(range(len(flat)), key=lambda index: flat[index].square().item())
    scores = torch.empty(len(flat), dtype=torch.float64)
    for u, index in enumerate(order):
        scores[index] = flat[index].square() / sum(flat[v].square() for v in order[u:])
    return scores.view(weight.shape)


def test_lamp_equals_a_loop_written_from_the_paper():
    torch.manual_seed(0)
    weights = {"a": torch.randn(4, 3, 3, 3), "b": torch.randn(7, 5) * 10}
    scores = METHODS["lamp"]().scores(None, weights, None)
    for name, weight in weights.items():
        torch.testing.assert_close(scores[name], lamp_by_the_paper(weight))
        assert scores[name].max() == 1


def erk_by_the_paper(shapes, density):
    """Evci et al. 2020, as the released code goes about it: layers that would be denser than 1 become dense in turn."""
    dense = set()
    while True:
        left = sum(math.prod(s) * density for n, s in shapes.items())
        left -= sum(math.prod(shapes[n]) for n in dense)
        scale = left / sum(sum(s) for n, s in shapes.items() if n not in dense)
        over = {n: scale * sum(s) / math.prod(s) for n, s in shapes.items() if n not in dense}
        worst = max(over, key=over.get)
        if over[worst] <= 1:
            return {n: 1.0 if n in dense else over[n] for n in shapes}
        dense.add(worst)


@given(density=st.floats(0.02, 0.95))
@settings(max_examples=50, deadline=None)
def test_erk_equals_a_loop_written_from_the_paper(density):
    shapes = {"a": (16, 3, 3, 3), "b": (64, 16, 3, 3), "c": (128, 64, 1, 1), "d": (10, 128)}
    keep = round(density * sum(map(math.prod, shapes.values())))
    kept = erdos_renyi_kernel({n: torch.Size(s) for n, s in shapes.items()}, keep, minimum=0)
    assert sum(kept.values()) == keep
    for name, expected in erk_by_the_paper(shapes, keep / sum(map(math.prod, shapes.values()))).items():
        assert abs(kept[name] - expected * math.prod(shapes[name])) <= 1 + 1e-6


def test_erk_respects_the_minimum():
    kept = erdos_renyi_kernel({"a": torch.Size((2, 2)), "b": torch.Size((1000, 1000))}, 50, minimum=3)
    assert kept == {"a": 3, "b": 47}


def test_snip_and_taylor_equal_single_gradients():
    network = build()
    weights = prunable(network, METHODS["snip"]())
    examples = Examples(IMAGES, LABELS)
    snip = METHODS["snip"]().scores(network, weights, examples)
    taylor = METHODS["taylor"]().scores(network, weights, examples)
    grads = []
    for image, label in zip(IMAGES, LABELS, strict=True):
        network.zero_grad()
        cross_entropy(network(image[None]), label[None]).backward()
        grads.append({name: weight.grad.clone() for name, weight in weights.items()})
    for name, weight in weights.items():
        each = torch.stack([weight.detach() * grad[name] for grad in grads])
        torch.testing.assert_close(snip[name], each.mean(0).abs(), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(taylor[name], each.square().mean(0), rtol=1e-4, atol=1e-9)


def test_grasp_equals_the_whole_hessian():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    images, labels = torch.randn(5, 1, 2, 3).double(), torch.tensor([0, 1, 2, 0, 1])
    method = METHODS["grasp"](temperature=2.0)
    weights = {"1.weight": network[1].weight}
    scores = method.scores(network, weights, Examples(images, labels))["1.weight"]

    def loss(flat):
        hidden = torch.tanh(nn.functional.linear(images.flatten(1), flat.view(4, 6), network[1].bias))
        return cross_entropy(network[3](hidden) / 2.0, labels)

    flat = network[1].weight.detach().flatten()
    gradient = torch.autograd.functional.jacobian(loss, flat)
    hessian = torch.autograd.functional.hessian(loss, flat)
    torch.testing.assert_close(scores.flatten(), flat * (hessian @ gradient))


def test_movement_keeps_what_grows_and_drops_what_shrinks():
    # one layer, loss pulls weights[0] up and weights[1] down: magnitudes alone would decide the other way round
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[0.1, 1.0], [-0.1, -1.0]]))
    images = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).view(2, 1, 1, 2)  # class 0 wants weight 0 up and weight 1 down
    method = METHODS["movement"](prune_classifier=True, batch_size=2)
    masks = prune(network, method, 0.5, images=images, labels=torch.tensor([0, 1])).masks
    assert masks["1.weight"].tolist() == [[True, False], [True, False]]


@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (4, 8)])
def test_n_m_keeps_the_largest_of_every_run(pattern):
    n, m = pattern
    network = build()
    masks = prune(network, METHODS["n_m"](n=n, m=m), 1 - n / m).masks
    for name, mask in masks.items():
        weight = network.get_parameter(name).detach().abs()
        for start in range(0, weight.shape[1], m):
            kept, run = mask[:, start : start + m], weight[:, start : start + m]
            assert (kept.sum(1) == n).all()
            assert torch.where(kept, run, torch.inf).amin(1).ge(torch.where(kept, -torch.inf, run).amax(1)).all()


@given(values=st.lists(st.integers(-3, 3), min_size=1, max_size=40), data=st.data())
@settings(max_examples=60, deadline=None)
def test_smallest_takes_exactly_the_first_of_the_smallest(values, data):
    count = data.draw(st.integers(0, len(values)))
    chosen = smallest(torch.tensor(values, dtype=torch.float32), count)
    expected = sorted(range(len(values)), key=lambda index: (values[index], index))[:count]
    assert chosen.nonzero().flatten().tolist() == sorted(expected)


# ------------------------------------------------------------------------------------------- physical removal


def zeroed(network, removed):
    """The dense network with the removed channels silenced by hand: written for ``Net``, knows nothing of groups."""
    result = copy.deepcopy(network)
    tied = {
        "stem": ["stem", "stem_norm", "second", "second_norm"],  # the residual addition ties them
        "second": ["stem", "stem_norm", "second", "second_norm"],
        "first": ["first", "first_norm"],
        "grouped": ["grouped", "grouped_norm"],
        "hidden": ["hidden"],
    }
    with torch.no_grad():
        for entry in removed:
            for layer in tied[entry["layer"]]:
                for parameter in result.get_submodule(layer).parameters():
                    parameter[entry["channels"]] = 0
    return result


@pytest.mark.parametrize("scope", ["uniform", "global", "isomorphic"])
@pytest.mark.parametrize("name", REMOVING)
def test_removal_computes_what_the_dense_network_computes_with_those_channels_silent(name, scope):
    network = build()
    pruned = prune(network, METHODS[name](scope=scope), 0.6, **EXAMPLES)
    assert len(pruned.removed) >= 2
    torch.testing.assert_close(logits(pruned.network), logits(zeroed(network, pruned.removed)), rtol=1e-4, atol=1e-5)


def test_global_scope_takes_the_channels_that_torch_pruning_takes():
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=5)
    reference = copy.deepcopy(network)
    pruned = prune(network, METHODS["channels"](scope="global", target="channels"), 0.5, images=IMAGES)
    pruner = torch_pruning.pruner.BasePruner(
        reference,
        IMAGES[:1],
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=0.5,
        ignored_layers=[reference.fc],
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
        forward_fn=lambda module, images: module(images),
    )
    pruner.step()
    for key, value in reference.state_dict().items():
        assert torch.equal(value, pruned.network.state_dict()[key]), key


@pytest.mark.parametrize("target", ["macs", "channels"])
def test_other_targets_are_met_too(target):
    network = build(width=32)
    method = METHODS["channels"](target=target)
    pruned = prune(network, method, 0.5, images=IMAGES)
    size = measure(pruned.network, dense=network, method=method, example=IMAGES)
    if target == "macs":
        assert abs(1 - size.macs / size.dense_macs - 0.5) <= 0.02
    else:
        lost = {entry["layer"]: len(entry["channels"]) for entry in pruned.removed}
        assert lost == {"second": 16, "first": 16, "grouped": 32, "hidden": 12}
        assert size.sparsity > 0.7  # half of the channels is far more than half of the weights


def test_round_to_keeps_multiples_and_the_target():
    network = build(width=64)
    method = METHODS["channels"](round_to=8)
    pruned = prune(network, method, 0.6, images=IMAGES)
    size = measure(pruned.network, dense=network, method=method, example=IMAGES)
    assert abs(size.sparsity - 0.6) <= 0.02
    assert all(m.out_channels % 8 == 0 for m in pruned.network.modules() if isinstance(m, nn.Conv2d))


def test_round_to_that_prunes_too_little_is_an_error_not_a_surprise():
    with pytest.raises(UserError, match="cannot be removed: whole channels allow .* round_to=16"):
        prune(build(), METHODS["channels"](round_to=16), 0.8, images=IMAGES)


def test_minimum_channels_stay():
    pruned = prune(build(width=32), METHODS["channels"](scope="global", minimum_channels=5), 0.9, images=IMAGES).network
    assert min(pruned.stem.out_channels, pruned.first.out_channels, pruned.hidden.out_features) >= 5


@pytest.mark.parametrize("name", GROWING)
def test_later_rounds_take_more_and_give_nothing_back(name):
    method = METHODS[name]()
    rounds = SCHEDULES["iterative"](steps=3).rounds(0.8)
    pruned = prune(build(), method, rounds[0], **EXAMPLES)
    for sparsity in rounds[1:]:
        later = prune(pruned.network, method, sparsity, **EXAMPLES, seed=1, previous=pruned.masks)
        assert share_of_zeros(later.network, method) == removed_by_hand(method, pruned.network, sparsity)
        assert not any((later.masks[key] & ~mask).any() for key, mask in pruned.masks.items())
        pruned = later


@pytest.mark.parametrize("target", ["weights", "macs", "channels"])
def test_later_removals_count_against_the_dense_network(target):
    dense, method = build(width=32), METHODS["channels"](target=target)
    at_once = prune(dense, method, 0.6, images=IMAGES)
    first = prune(dense, method, 0.4, images=IMAGES)
    second = prune(first.network, method, 0.6, images=IMAGES, dense=dense)
    sizes = [measure(each.network, dense=dense, method=method, example=IMAGES) for each in (at_once, second)]
    assert sizes[0].sparsity == pytest.approx(sizes[1].sparsity, abs=0.03)
    assert sizes[0].macs == pytest.approx(sizes[1].macs, rel=0.2)


def test_removing_twice_replays_in_order():
    method = METHODS["channels"]()
    first = prune(build(), method, 0.4, images=IMAGES)
    second = prune(first.network, method, 0.4, images=IMAGES)
    fresh = Net()
    replay(fresh, first.removed + second.removed, IMAGES)
    fresh.load_state_dict(second.network.state_dict())
    assert torch.equal(logits(fresh), logits(second.network))


def test_removal_keeps_channels_last():
    network = build().to(memory_format=torch.channels_last)
    pruned = prune(network, METHODS["channels"](), 0.5, images=IMAGES).network
    assert pruned.first.weight.is_contiguous(memory_format=torch.channels_last)


def test_hessian_averages_over_all_examples():
    # the second half of the examples must matter: torch-pruning's own accumulation keeps the last one only
    network, method = build(), METHODS["channels_hessian"]()
    removed = {
        last: prune(network, method, 0.5, images=torch.cat([IMAGES[:last], IMAGES[-1:]]),
                    labels=torch.cat([LABELS[:last], LABELS[-1:]])).removed
        for last in (1, 11)
    }  # fmt: skip
    assert removed[1] != removed[11]


# ------------------------------------------------------------------------------------------- measuring


def test_measure_counts_by_hand():
    network, method = build(), METHODS["filters"]()
    pruned = prune(network, method, 0.25, images=IMAGES)
    size = measure(pruned.network, dense=network, method=method, example=IMAGES)
    assert size.layers == {"first.weight": 0.25, "second.weight": 0.25, "grouped.weight": 0.25}
    assert (size.filters, size.dense_filters) == (48, 64)
    # 8 x 8 images; stem, two 3x3 convolutions, a grouped one with stride 2, two linear layers
    macs = 64 * 16 * 27 + 2 * 64 * 16 * 16 * 9 + 16 * 32 * 8 * 9 + 512 * 24 + 24 * 5
    assert size.macs == size.dense_macs == macs
    assert size.bytes == size.dense_bytes == sum(t.numel() * t.element_size() for t in network.state_dict().values())
    gone = sum(int((~mask).sum()) for mask in pruned.masks.values())
    assert size.nonzero_parameters == size.parameters - gone


def test_latency_alternates_and_reports_each_batch_size():
    network = build().train()
    pruned = prune(network, METHODS["channels"](), 0.5, images=IMAGES).network
    results = latency(pruned, dense=network, example=IMAGES, batch_sizes=(1, 20), runs=4)
    assert [result.batch_size for result in results] == [1, 20]
    assert all(result.seconds > 0 and result.low <= result.ratio <= result.high for result in results)
    assert network.training and pruned.training


# ------------------------------------------------------------------------------------------- rewinding


def test_rewind_restores_the_early_weights_under_the_mask():
    method, early = METHODS["magnitude"](), build(seed=5)
    pruned = prune(build(seed=6), method, 0.8)
    back = rewind(early, masks=pruned.masks)
    for name, mask in pruned.masks.items():
        assert torch.equal(back.get_parameter(name), early.get_parameter(name) * mask)
    assert torch.equal(back.stem.weight, early.stem.weight)
    Masker(back, pruned.masks, method=method, sparsity=0.8).verify()


# ------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "options", "sparsity", "message"),
    [
        ("magnitude", {"scope": "layer"}, 0.9999, "would leave 0 of the 2304 weights of first.weight"),
        ("magnitude", {}, 0.9999, "less than minimum_per_layer=1 in each"),
        ("magnitude", {"scope": "erk", "minimum_per_layer": 500}, 0.95, "less than minimum_per_layer=500"),
        ("magnitude", {}, 1.0, "outside"),
        ("magnitude", {}, float("nan"), "outside"),
        ("filters", {}, 0.99, "would leave 0 of the 16 filters of first.weight"),
        ("n_m", {}, 0.6, "2:4 has sparsity 0.5, not 0.6"),
        ("n_m", {"n": 1, "m": 3}, 2 / 3, "first.weight has 16 inputs .* exclude=first"),
        ("channels", {"exclude": "*"}, 0.5, "nothing to prune"),
        ("channels", {"minimum_channels": 8}, 0.9, "whole channels allow .* at most 0.872 .*minimum_channels=8"),
        ("magnitude", {"layers": "layer1.*"}, 0.5, "layers: 'layer1.\\*' matches no layer; known: first, grouped"),
        ("magnitude", {"exclude": "frist"}, 0.5, "did you mean 'first'"),
    ],
)
def test_bad_requests_are_refused_by_check_and_by_prune(name, options, sparsity, message):
    network, method = build(), METHODS[name](**options)
    with pytest.raises(UserError, match=message) as refused:
        check(network, method, sparsity, IMAGES)
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match=message):
        prune(network, method, sparsity, **EXAMPLES)


@pytest.mark.parametrize("name", list(METHODS))
def test_check_passes_what_prune_can_do(name):
    check(build(), METHODS[name](), 0.5, IMAGES)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("magnitude", {"scope": "local"}),
        ("magnitude", {"minimum_per_layer": -1}),
        ("filters", {"norm": 3}),
        ("filters", {"minimum_per_layer": 0}),
        ("n_m", {"n": 4, "m": 4}),
        ("channels", {"scope": "layer"}),
        ("channels", {"target": "flops"}),
        ("channels", {"norm": 0}),
        ("channels", {"round_to": 0}),
    ],
)
def test_bad_options_are_refused(name, options):
    with pytest.raises(UserError, match="somewhere"):
        METHODS.build({"name": name, **options}, "somewhere")


@pytest.mark.parametrize("name", ["snip", "taylor", "grasp", "movement", "channels_taylor", "channels_hessian"])
def test_missing_examples_are_named(name):
    with pytest.raises(UserError, match=f"{name} reads example images"):
        prune(build(), METHODS[name](), 0.5)
    with pytest.raises(UserError, match=f"{name} reads example labels"):
        prune(build(), METHODS[name](), 0.5, images=IMAGES)


@pytest.mark.parametrize("name", [name for name in METHODS if not METHODS[name].grows])
def test_only_masks_can_grow(name):
    with pytest.raises(UserError, match=f"{name} cannot follow the schedule gradual"):
        check(build(), METHODS[name](), 0.5, IMAGES, schedule=SCHEDULES["gradual"]())


def test_a_diverged_network_is_refused():
    network = build()
    with torch.no_grad():
        network.first.weight[0, 0, 0, 0] = math.nan
    for name in ("magnitude", "filters", "channels"):
        with pytest.raises(UserError, match="not finite; did the network diverge"):
            prune(network, METHODS[name](), 0.5, images=IMAGES)


def test_a_hooked_network_is_refused():
    network = build()
    network.first.register_forward_hook(lambda *_: None)
    with pytest.raises(UserError, match="first has hooks"):
        prune(network, METHODS["magnitude"](), 0.5)


def test_a_network_with_nothing_to_prune_is_refused():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(UserError, match="nothing to prune .* prune_first=true"):
        check(network, METHODS["magnitude"](), 0.5, IMAGES)


def test_verify_names_the_layer_that_came_back():
    method = METHODS["magnitude"]()
    pruned = prune(build(), method, 0.5)
    masker = Masker(pruned.network, pruned.masks, method=method, sparsity=0.5)
    with torch.no_grad():
        pruned.network.second.weight.add_(1e-3)
    with pytest.raises(UserError, match="second.weight: [0-9]{3,4} masked weights are not zero"):
        masker.verify()


def test_verify_notices_another_sparsity_and_lost_masks():
    method = METHODS["magnitude"]()
    pruned = prune(build(), method, 0.5)
    for masks, sparsity in ((pruned.masks, 0.6), ({}, 0.5)):
        with pytest.raises(UserError, match="prunable weights are masked, but sparsity"):
            Masker(pruned.network, masks, method=method, sparsity=sparsity).verify()


def test_masks_and_removals_of_another_network_are_refused():
    pruned = prune(build(), METHODS["magnitude"](), 0.5)
    with pytest.raises(UserError, match="does not fit this network"):
        Masker(build(width=8), pruned.masks, method=METHODS["magnitude"](), sparsity=0.5)
    removed = prune(build(), METHODS["channels"](), 0.5, images=IMAGES).removed
    with pytest.raises(UserError, match="stored removal takes channel"):
        replay(build(width=4), removed, IMAGES)
