"""The losses against slow loops and torchdistill, and the objective's window, teachers, check and resume."""

from __future__ import annotations

import copy
import math
import multiprocessing
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.distillation import (
    LOSSES,
    LogitsCache,
    Objective,
    Teacher,
    TrainingSet,
    format_losses,
    parse_losses,
)
from pipeline.distillation.align import aligned, as_map, paired
from pipeline.models import Observer, Outputs
from pipeline.registry import UserError

CLASSES, EXAMPLES, BATCH = 5, 40, 8


@dataclass(frozen=True)
class Batch:
    inputs: Tensor
    labels: Tensor
    ids: Tensor
    draw: Tensor


def make_training(seed: int = 0) -> TrainingSet:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (EXAMPLES,), generator=generator)
    return TrainingSet(torch.cat([labels[:-CLASSES], torch.arange(CLASSES)]), CLASSES)


def make_batch(training: TrainingSet, size: int = BATCH, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randperm(EXAMPLES, generator=generator)[:size]
    return Batch(torch.randn(size, 3, 8, 8, generator=generator), training.labels[ids], ids, ids)


SHAPES = {
    "narrow": ([(4, 8, 8), (6, 4, 4), (10, 2, 2)], 10),
    "wide": ([(6, 8, 8), (8, 4, 4), (12, 2, 2)], 12),
    "large maps": ([(6, 12, 10), (8, 6, 5), (12, 3, 3)], 12),
    "deep": ([(4, 8, 8), (4, 8, 8), (6, 4, 4), (6, 4, 4), (10, 2, 2)], 10),
    "tokens": ([(17, 12), (17, 12), (17, 12)], 12),
}


def make_outputs(shape: str, seed: int, batch: int = BATCH, dtype: torch.dtype = torch.float64) -> Outputs:
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(batch, *sizes, generator=generator, dtype=torch.float64).to(dtype)

    blocks, width = SHAPES[shape]
    return Outputs(3 * draw(CLASSES), [F.relu(draw(*block) + 0.5) for block in blocks], F.relu(draw(width) + 0.5))


def leaves(outputs: Outputs) -> list[Tensor]:
    return [outputs.logits, *outputs.blocks, outputs.embedding]


def with_gradients(outputs: Outputs) -> Outputs:
    logits, *blocks, embedding = (tensor.detach().clone().requires_grad_() for tensor in leaves(outputs))
    return Outputs(logits, blocks, embedding)


def evaluate(name: str, student: Outputs, teacher: Outputs, options: dict | None = None):
    """The value with freshly built adapters; the adapters as they were before; the random state is fixed."""
    training = make_training()
    batch = make_batch(training, len(student.logits))
    loss = LOSSES.build({"name": name, **(options or {})}, "test")
    torch.manual_seed(3)
    adapters = loss.adapters(student, teacher, training)
    if adapters is not None:
        adapters.to(torch.promote_types(student.logits.dtype, torch.float32))
    before = copy.deepcopy(adapters)
    torch.manual_seed(4)
    return loss(student, teacher, batch, adapters), before, batch, loss, adapters


# Slow loops, written from the equations. -----------------------------------------------------------------------------


def softmax(logits, temperature: float = 1.0) -> list[float]:
    exponentials = [math.exp(float(value) / temperature) for value in logits]
    return [value / sum(exponentials) for value in exponentials]


def kl(p, q) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def slow_ce(s, t, batch, adapters, loss):
    return [-math.log(softmax(row)[label]) for row, label in zip(s.logits, batch.labels, strict=True)]


def slow_kd(s, t, batch, adapters, loss):
    T = loss.temperature
    return [T**2 * kl(softmax(b, T), softmax(a, T)) for a, b in zip(s.logits, t.logits, strict=True)]


def slow_dkd(s, t, batch, adapters, loss):
    T, values = loss.temperature, []
    for a, b, y in zip(s.logits, t.logits, batch.labels.tolist(), strict=True):
        p, q = softmax(a, T), softmax(b, T)
        rest_p, rest_q = ([v / (1 - r[y]) for c, v in enumerate(r) if c != y] for r in (p, q))
        target = kl([q[y], 1 - q[y]], [p[y], 1 - p[y]])
        values.append(T**2 * (loss.target * target + loss.others * kl(rest_q, rest_p)))
    return values


def slow_dist(s, t, batch, adapters, loss):
    T = loss.temperature
    p, q = (np.array([softmax(row, T) for row in outputs.logits]) for outputs in (s, t))
    rows = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    columns = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    return T**2 * (loss.inter * rows + loss.intra * columns)


def class_weights(beta: float) -> list[float]:
    counts = np.bincount(make_training().labels, minlength=CLASSES)
    raw = [(1 - beta) / (1 - beta**n) for n in counts]
    mean = sum(w * n for w, n in zip(raw, counts, strict=True)) / counts.sum()
    return [w / mean for w in raw]


def slow_balanced(inner):
    def slow(s, t, batch, adapters, loss):
        weights = class_weights(loss.beta)
        return [weights[y] * v for y, v in zip(batch.labels, inner(s, t, batch, adapters, loss), strict=True)]

    return slow


def slow_trusted_kd(s, t, batch, adapters, loss):
    margins: dict[int, list[float]] = {}
    for row, y in zip(t.logits, batch.labels.tolist(), strict=True):
        p = softmax(row)
        margins.setdefault(y, []).append(p[y] - max(v for c, v in enumerate(p) if c != y))
    trust = {y: loss.highest_trust * max(0.0, sum(values) / len(values)) for y, values in margins.items()}
    soft, hard = slow_kd(s, t, batch, adapters, loss), slow_ce(s, t, batch, adapters, loss)
    return [trust[y] * a + (1 - trust[y]) * b for y, a, b in zip(batch.labels.tolist(), soft, hard, strict=True)]


def slow_robust(inner):
    def slow(s, t, batch, adapters, loss):
        values, labels = inner(s, t, batch, adapters, loss), batch.labels.tolist()
        groups = [[v for v, y in zip(values, labels, strict=True) if y == c] for c in range(CLASSES)]
        means = [sum(group) / len(group) if group else 0.0 for group in groups]
        raised = [math.exp(loss.step_size * mean) / CLASSES for mean in means]
        return sum(q / sum(raised) * mean for q, mean in zip(raised, means, strict=True))

    return slow


def unit(vector) -> np.ndarray:
    vector = np.asarray(vector, dtype=float).ravel()
    return vector / (math.sqrt(sum(v * v for v in vector)) or 1.0)


def arrays(outputs: Outputs) -> list[np.ndarray]:
    return [block.detach().double().numpy() for block in outputs.blocks]


def convolved(weight, bias, block: np.ndarray) -> np.ndarray:
    """1x1 convolution by loops over output channels."""
    weight = weight.detach().double().numpy()[:, :, 0, 0]
    out = np.zeros((len(block), len(weight), *block.shape[2:]))
    for o in range(len(weight)):
        for i in range(block.shape[1]):
            out[:, o] += weight[o, i] * block[:, i]
        out[:, o] += 0 if bias is None else bias[o].item()
    return out


def slow_fitnet(s, t, batch, adapters, loss):
    return np.mean((convolved(adapters.weight, adapters.bias, arrays(s)[1]) - arrays(t)[1]) ** 2)


def slow_at(s, t, batch, adapters, loss):
    total = 0.0
    for a, b in zip(arrays(s), arrays(t), strict=True):
        differences = [unit((x**2).mean(0)) - unit((y**2).mean(0)) for x, y in zip(a, b, strict=True)]
        total += np.mean(np.square(differences))
    return total


def slow_nst(s, t, batch, adapters, loss):
    total = 0.0
    for a, b in zip(arrays(s), arrays(t), strict=True):
        for x, y in zip(a, b, strict=True):
            x, y = [unit(channel) for channel in x], [unit(channel) for channel in y]
            within_x = np.mean([(u @ v) ** 2 for u in x for v in x])
            within_y = np.mean([(u @ v) ** 2 for u in y for v in y])
            total += within_x + within_y - 2 * np.mean([(u @ v) ** 2 for u in x for v in y])
    return total / BATCH


def slow_flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """One example; ``first`` is an integer number of times larger."""
    ratio, (height, width) = first.shape[1] // second.shape[1], second.shape[1:]
    pooled = first.reshape(len(first), height, ratio, width, ratio).max((2, 4))
    return np.array([[np.mean(f * g) for g in second] for f in pooled])


def slow_fsp(s, t, batch, adapters, loss):
    ours = [convolved(p.weight, None, block) for p, block in zip(adapters, arrays(s), strict=True)]
    total = 0.0
    for level in range(len(ours) - 1):
        squares = []
        for i in range(BATCH):
            theirs = slow_flow(arrays(t)[level][i], arrays(t)[level + 1][i])
            squares.append((slow_flow(ours[level][i], ours[level + 1][i]) - theirs) ** 2)
        total += np.mean(squares)
    return total


def slow_vid(s, t, batch, adapters, loss):
    total = 0.0
    for regression, a, b in zip(adapters, arrays(s), arrays(t), strict=True):
        for layer in regression.mean[::2]:
            a = convolved(layer.weight, None, np.maximum(a, 0) if layer is not regression.mean[0] else a)
        assert np.allclose(regression.variance().detach().numpy(), loss.initial_variance, atol=1e-4)
        variance = np.log1p(np.exp(regression.raw_variance.detach().numpy())) + 1e-5
        total += np.mean(0.5 * ((a - b) ** 2 / variance + np.log(variance)))
    return total


def slow_ft(s, t, batch, adapters, loss):
    ours, theirs = s.blocks[-1].detach(), t.blocks[-1].detach()
    factors = adapters["encoder"](theirs)
    error = np.mean((adapters["decoder"](factors) - theirs).detach().numpy() ** 2)
    pairs = zip(adapters["translator"](ours).detach().numpy(), factors.detach().numpy(), strict=True)
    return np.mean([np.abs(unit(a) - unit(b)) for a, b in pairs]) + loss.reconstruction * error


def slow_ab(s, t, batch, adapters, loss):
    total = 0.0
    for level, (connector, a, b) in enumerate(zip(adapters, arrays(s), arrays(t), strict=True)):
        a = convolved(connector[0].weight, None, a)
        for channel in range(a.shape[1]):
            values = a[:, channel]
            a[:, channel] = (values - values.mean()) / math.sqrt(values.var() + 1e-5)
        squares = 0.0
        for value, target in zip(a.ravel(), b.ravel(), strict=True):
            if target > 0 and value <= loss.margin:
                squares += (value - loss.margin) ** 2
            if target <= 0 and value > -loss.margin:
                squares += (value + loss.margin) ** 2
        total += 2.0 ** (level + 1 - len(adapters)) * squares / BATCH
    return total


def slow_srd(s, t, batch, adapters, loss):
    ours = np.array([adapters.weight.detach().numpy() @ row for row in s.embedding.detach().numpy()])
    total = 0.0
    for pair in zip(ours.T, t.embedding.detach().numpy().T, strict=True):
        a, b = ((column - column.mean()) / math.sqrt(column.var() + 1e-5) for column in pair)
        total += sum(abs(x - y) ** loss.exponent for x, y in zip(a, b, strict=True))
    return math.log(total)


def slow_sp(s, t, batch, adapters, loss):
    def gram(block):
        return np.array([unit([np.sum(x * y) for y in block]) for x in block])

    return np.sum((gram(arrays(s)[-1]) - gram(arrays(t)[-1])) ** 2) / BATCH**2


def slow_pkt(s, t, batch, adapters, loss):
    def conditional(embedding):
        rows = [[(1 + unit(x) @ unit(y)) / 2 for y in embedding] for x in embedding]
        return [[v / sum(row) for v in row] for row in rows]

    p, q = conditional(s.embedding.detach()), conditional(t.embedding.detach())
    return sum(kl(b, a) for a, b in zip(p, q, strict=True)) / BATCH**2


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def slow_rkd(s, t, batch, adapters, loss):
    def relations(embedding):
        e = embedding.detach().numpy()
        n = range(len(e))
        d = [[float(np.linalg.norm(e[i] - e[j])) for j in n] for i in n]
        mean = sum(d[i][j] for i in n for j in n if i != j) / (len(e) * (len(e) - 1))
        angle = [unit(e[j] - e[i]) @ unit(e[k] - e[i]) if i not in (j, k) else 0.0 for i in n for j in n for k in n]
        return [d[i][j] / mean for i in n for j in n], angle

    (d_s, a_s), (d_t, a_t) = relations(s.embedding), relations(t.embedding)
    distance = np.mean([huber(x - y) for x, y in zip(d_s, d_t, strict=True)])
    return loss.distance * distance + loss.angle * np.mean([huber(x - y) for x, y in zip(a_s, a_t, strict=True)])


def slow_cc(s, t, batch, adapters, loss):
    def kernel(embedding):
        return np.array(
            [
                [
                    math.exp(-2 * loss.gamma)
                    * sum(
                        (2 * loss.gamma) ** p / math.factorial(p) * float(unit(x) @ unit(y)) ** p
                        for p in range(loss.order + 1)
                    )
                    for y in embedding
                ]
                for x in embedding
            ]
        )

    return np.sum((kernel(s.embedding.detach()) - kernel(t.embedding.detach())) ** 2) / BATCH**2


def redrawn(batch, adapters, loss) -> Tensor:
    """The draws that the loss made: it was the first to use the seed."""
    torch.manual_seed(4)
    return adapters.draw(
        batch,
        min(loss.negatives, EXAMPLES),
        same_class_positive=loss.positives == "relaxed",
        other_classes=loss.noise == "exact",
    )


def slow_crd(s, t, batch, adapters, loss):
    picks = redrawn(batch, adapters, loss).tolist()
    noise = (len(picks[0]) - 1) / EXAMPLES
    total = 0.0
    for outputs, name, memory in (
        (s, "student", adapters.teacher_memory),
        (t, "teacher", adapters.student_memory),
    ):
        projection = getattr(adapters, f"{name}_projection")
        weight, bias = projection.weight.detach().numpy(), projection.bias.detach().numpy()
        embedded = [unit(weight @ row + bias) for row in outputs.embedding.detach().numpy()]
        scores = [
            [math.exp(float(e @ memory[j].numpy()) / loss.temperature) for j in row]
            for e, row in zip(embedded, picks, strict=True)
        ]
        constant = np.mean(scores) * EXAMPLES
        for positive, *negative in (np.array(row) / constant for row in scores):
            total -= math.log(positive / (positive + noise)) + sum(math.log(noise / (v + noise)) for v in negative)
    return total / BATCH


SLOW = {
    "ab": slow_ab,
    "at": slow_at,
    "balanced_ce": slow_balanced(slow_ce),
    "balanced_kd": slow_balanced(slow_kd),
    "cc": slow_cc,
    "ce": slow_ce,
    "crd": slow_crd,
    "dist": slow_dist,
    "dkd": slow_dkd,
    "fitnet": slow_fitnet,
    "fsp": slow_fsp,
    "ft": slow_ft,
    "kd": slow_kd,
    "nst": slow_nst,
    "pkt": slow_pkt,
    "rkd": slow_rkd,
    "robust_ce": slow_robust(slow_ce),
    "robust_kd": slow_robust(slow_kd),
    "sp": slow_sp,
    "srd": slow_srd,
    "trusted_kd": slow_trusted_kd,
    "vid": slow_vid,
}
APPROXIMATE = {"pkt": 1e-4, "srd": 1e-9, "crd": 1e-5}  # a small number under a logarithm; a bank kept in float32


@pytest.mark.parametrize("name", list(LOSSES))
def test_value_is_that_of_the_equation(name):
    assert name in SLOW, f"write the slow loop of '{name}' from its paper into SLOW"
    student, teacher = make_outputs("narrow", 1), make_outputs("wide", 2)
    value, before, batch, loss, _ = evaluate(name, student, teacher)
    expected = np.mean(SLOW[name](student, teacher, batch, before, loss))
    assert value.shape == () and value.dtype == torch.float64
    assert value.item() == pytest.approx(expected, rel=APPROXIMATE.get(name, 1e-6))
    assert abs(expected) > 1e-4, "the comparison would be empty"


@pytest.mark.parametrize(
    "options",
    [
        {"name": "crd", "positives": "relaxed"},
        {"name": "crd", "noise": "relaxed", "negatives": 7},
        {"name": "ce", "label_smoothing": 0.2},
        {"name": "kd", "standardize": True, "temperature": 2},
    ],
    ids=str,
)
def test_options_change_the_value_as_the_equation_says(options):
    student, teacher = make_outputs("narrow", 1), make_outputs("wide", 2)
    value, before, batch, loss, _ = evaluate(options["name"], student, teacher, options)
    if loss.name == "crd":
        expected = slow_crd(student, teacher, batch, before, loss)
    elif loss.name == "ce":
        logs = [[math.log(p) for p in softmax(row)] for row in student.logits]
        expected = np.mean(
            [-0.8 * row[y] - 0.2 * np.mean(row) for row, y in zip(logs, batch.labels.tolist(), strict=True)]
        )
    else:
        for outputs in (student, teacher):
            rows = outputs.logits.numpy()
            outputs.logits = torch.tensor(np.array([(row - row.mean()) / row.std(ddof=1) for row in rows]))
        expected = np.mean(slow_kd(student, teacher, batch, None, loss))
    assert value.item() == pytest.approx(expected, rel=1e-5)


# torchdistill --------------------------------------------------------------------------------------------------------


def io(**modules) -> dict:
    return {path: {"output": output, "input": output} for path, output in modules.items()}


def peer_kd(peer, s, t, batch, adapters, loss):
    theirs = peer.KDLoss("z", "output", "z", "output", temperature=loss.temperature, alpha=0.1)
    hard = F.cross_entropy(s.logits, batch.labels)
    return (theirs(io(z=s.logits), io(z=t.logits), batch.labels) - 0.1 * hard) / 0.9


def peer_dist(peer, s, t, batch, adapters, loss):
    theirs = peer.DISTLoss("z", "output", "z", "output", beta=loss.inter, gamma=loss.intra, tau=loss.temperature)
    return theirs(io(z=s.logits), io(z=t.logits))


def per_pair(peer, s, t):
    names = [f"b{i}" for i in range(len(s))]
    ends = {name: {"io": "output", "path": name} for name in names}
    pairs = {name: {"student": end, "teacher": end} for name, end in ends.items()}
    return pairs, *(io(**dict(zip(names, blocks, strict=True))) for blocks in (s, t))


def peer_at(peer, s, t, batch, adapters, loss):
    pairs, ours, theirs = per_pair(peer, s.blocks, t.blocks)
    return peer.ATLoss(pairs, mode="code")(ours, theirs)


def peer_sp(peer, s, t, batch, adapters, loss):
    """Theirs calls normalize(z, 1), where 1 is the norm and not the dimension; the paper's rows have L2 norm 1."""
    theirs, normalize = peer.SPKDLoss("b", "b", "batchmean"), peer.normalize
    try:
        peer.normalize = lambda z, _: normalize(z, p=2, dim=1)
        return theirs(io(b=s.blocks[-1]), io(b=t.blocks[-1]))
    finally:
        peer.normalize = normalize


def peer_pkt(peer, s, t, batch, adapters, loss):
    return peer.PKTLoss("e", "output", "e", "output")(io(e=s.embedding), io(e=t.embedding))


def peer_rkd(peer, s, t, batch, adapters, loss):
    return peer.RKDLoss("e", "e", loss.distance, loss.angle, "mean")(io(e=s.embedding), io(e=t.embedding))


def peer_fsp(peer, s, t, batch, adapters, loss):
    """Theirs sums unsquared column norms; their matrices are compared here, in the paper's squared norm."""
    ours = [project(block) for project, block in zip(adapters, s.blocks, strict=True)]
    matrix = peer.FSPLoss.compute_fsp_matrix
    steps = range(len(ours) - 1)
    return sum(F.mse_loss(matrix(ours[i], ours[i + 1]), matrix(t.blocks[i], t.blocks[i + 1])) for i in steps)


def peer_vid(peer, s, t, batch, adapters, loss):
    ours = [(r.mean(block), r.variance()) for r, block in zip(adapters, s.blocks, strict=True)]
    pairs, ours, theirs = per_pair(peer, ours, t.blocks)
    return peer.VIDLoss(pairs)(ours, theirs)


def peer_ab(peer, s, t, batch, adapters, loss):
    pairs, ours, theirs = per_pair(peer, [c(b) for c, b in zip(adapters, s.blocks, strict=True)], t.blocks)
    for i, pair in enumerate(pairs.values()):
        pair["weight"] = 2.0 ** (i + 1 - len(pairs))
    return peer.AltActTransferLoss(pairs, loss.margin, "mean")(ours, theirs)


def peer_ft(peer, s, t, batch, adapters, loss):
    """Theirs has the transfer alone; the paraphraser is trained elsewhere."""
    factors = adapters["encoder"](t.blocks[-1])
    transfer = peer.FTLoss()(io(translator=adapters["translator"](s.blocks[-1])), io(paraphraser=factors))
    return transfer + loss.reconstruction * F.mse_loss(adapters["decoder"](factors), t.blocks[-1])


def peer_cc(peer, s, t, batch, adapters, loss):
    """Theirs takes the norm where the paper has its square, and leaves it to the caller to normalise embeddings."""
    kernel = {"type": "gaussian", "gamma": loss.gamma, "max_p": loss.order}
    unit_length = [io(e=F.normalize(outputs.embedding)) for outputs in (s, t)]
    return peer.CCKDLoss("e", "e", kernel, "sum")(*unit_length) ** 2 / BATCH**2


def peer_crd(peer, s, t, batch, adapters, loss):
    picks = redrawn(batch, adapters, loss)
    theirs = peer.CRDLoss("n", "empty", "n", loss.width, EXAMPLES, picks.shape[1] - 1, EXAMPLES).double()
    theirs.memory_v1.copy_(adapters.student_memory)
    theirs.memory_v2.copy_(adapters.teacher_memory)
    theirs.params[1] = loss.temperature  # it was rounded to float32
    drawn = {"pos_idx": batch.ids, "contrast_idx": picks}
    ours = io(n=F.normalize(adapters.student_projection(s.embedding))) | {"empty": {"input": drawn}}
    return theirs(ours, io(n=F.normalize(adapters.teacher_projection(t.embedding))))


def peer_srd(peer, s, t, batch, adapters, loss):
    def standardized(e):
        return F.batch_norm(e, None, None, training=True)

    theirs = peer.SRDLoss(*["f", "output"] * 2, *["z", "output"] * 2, exponent=loss.exponent)
    same = torch.zeros(BATCH, CLASSES, dtype=torch.float64)  # their KL term is 0 for equal logits
    ours = io(f=standardized(adapters(s.embedding)), z=same)
    return theirs(ours, io(f=standardized(t.embedding), z=same)) / 2


# Losses that torchdistill lacks: ce (torch's own), dkd, nst, fitnet (torch's MSE) and the class-aware ones.
PEERS = {name.removeprefix("peer_"): function for name, function in list(globals().items()) if name.startswith("peer_")}


@pytest.mark.parametrize("name", sorted(PEERS))
def test_value_is_that_of_torchdistill(name):
    peer = pytest.importorskip("torchdistill.losses.mid_level", reason="needs the extra 'test' (torchdistill)")
    student, teacher = make_outputs("narrow", 1), make_outputs("wide", 2)
    value, before, batch, loss, _ = evaluate(name, student, teacher)
    expected = PEERS[name](peer, copy.deepcopy(student), copy.deepcopy(teacher), batch, before, loss)
    assert value.item() == pytest.approx(expected.item(), rel=2e-5 if name == "crd" else 1e-6)


# What every registered loss promises. --------------------------------------------------------------------------------


def only_compares(name: str) -> bool:
    """Reads nothing but student and teacher: no labels, and no part that is trained first."""
    outputs = make_outputs("wide", 1)
    _, _, _, loss, adapters = evaluate(name, outputs, outputs)
    trained = adapters is not None and any(True for _ in adapters.parameters())
    return loss.needs_teacher and not loss.uses_labels and not trained


@pytest.mark.parametrize("name", [name for name in LOSSES if only_compares(name)])
def test_no_difference_costs_nothing(name):
    outputs = make_outputs("wide", 1)
    assert abs(evaluate(name, outputs, outputs)[0].item()) < 1e-9
    assert evaluate(name, make_outputs("wide", 2), outputs)[0].item() > 1e-6


ARCHITECTURES = [("wide", "wide"), ("narrow", "wide"), ("wide", "large maps"), ("narrow", "deep"), ("deep", "wide"),
                 ("narrow", "tokens"), ("tokens", "narrow"), ("tokens", "tokens")]  # fmt: skip


@pytest.mark.parametrize("pair", ARCHITECTURES, ids=" from ".join)
@pytest.mark.parametrize("name", list(LOSSES))
def test_gradients_are_finite_for_unlike_networks(name, pair):
    student = with_gradients(make_outputs(pair[0], 1, dtype=torch.float32))
    teacher = make_outputs(pair[1], 2, dtype=torch.float32)
    value, _, _, _, adapters = evaluate(name, student, teacher)
    value.backward()
    gradients = [tensor.grad for tensor in leaves(student) if tensor.grad is not None]
    assert gradients and any(gradient.abs().max() > 0 for gradient in gradients)
    parameters = [] if adapters is None else list(adapters.parameters())
    for gradient in gradients + [parameter.grad for parameter in parameters]:
        assert gradient is not None and gradient.isfinite().all()


@pytest.mark.parametrize("name", list(LOSSES))
def test_gradients_are_finite_in_degenerate_batches(name):
    """A student equal to its teacher, one example alone, dead features, and logits as large as they get."""
    same = make_outputs("wide", 1, dtype=torch.float32)
    dead = make_outputs("wide", 1, dtype=torch.float32)
    dead = Outputs(dead.logits, [torch.zeros_like(block) for block in dead.blocks], torch.zeros_like(dead.embedding))
    alone = make_outputs("wide", 1, batch=1, dtype=torch.float32)
    certain = replace(same, logits=1000 * same.logits)
    for ours, theirs in ((same, same), (dead, same), (same, dead), (alone, alone), (certain, certain), (same, certain)):
        student = with_gradients(ours)
        value, *_ = evaluate(name, student, theirs)
        value.backward()
        assert value.isfinite()
        for tensor in leaves(student):
            assert tensor.grad is None or tensor.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", list(LOSSES))
def test_half_precision_stays_close(name, dtype):
    wide = [make_outputs(shape, seed, dtype=torch.float32) for shape, seed in (("narrow", 1), ("wide", 2))]
    half = [make_outputs(shape, seed, dtype=dtype) for shape, seed in (("narrow", 1), ("wide", 2))]
    student = with_gradients(half[0])
    with torch.autocast("cpu", dtype=dtype):
        value, *_ = evaluate(name, student, half[1])
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(evaluate(name, *wide)[0].item(), rel=0.02 if dtype == torch.float16 else 0.1)
    for tensor in leaves(student):
        assert tensor.grad is None or tensor.grad.isfinite().all()


@pytest.mark.parametrize("name", list(LOSSES))
def test_nothing_is_remembered_without_gradients(name):
    """Looking at a loss (validation, a notebook) leaves banks, running means and class weights as they were."""
    student, teacher = make_outputs("narrow", 1), make_outputs("wide", 2)
    with torch.no_grad():
        value, before, batch, loss, adapters = evaluate(name, student, teacher)
        torch.manual_seed(4)
        assert loss(student, teacher, batch, adapters).item() == value.item()
    if adapters is not None:
        for key, tensor in before.state_dict().items():
            assert torch.equal(tensor, adapters.state_dict()[key]), f"{key} changed although nothing is trained"


# Memory banks, factors and alignment. --------------------------------------------------------------------------------


@pytest.mark.parametrize(("positives", "noise"), [("exact", "exact"), ("relaxed", "relaxed")])
def test_contrast_draws_what_is_allowed_and_all_of_it_alike(positives, noise):
    training = make_training()
    loss = LOSSES.build({"name": "crd", "positives": positives, "noise": noise}, "test")
    bank = loss.adapters(make_outputs("narrow", 1), make_outputs("wide", 2), training)
    batch = make_batch(training)
    picks = bank.draw(batch, 20_000, same_class_positive=positives == "relaxed", other_classes=noise == "exact")
    for row, label, example in zip(picks, batch.labels, batch.ids, strict=True):
        allowed = (training.labels != label) if noise == "exact" else torch.ones(EXAMPLES, dtype=torch.bool)
        counts = torch.bincount(row[1:], minlength=EXAMPLES)
        expected = allowed * 20_000 / allowed.sum()
        # Six standard deviations of a count, for each of 8 x 40 of them.
        assert ((counts - expected).abs() <= 6 * expected.sqrt()).all()
        assert training.labels[row[0]] == label if positives == "relaxed" else row[0] == example


def test_memory_bank_remembers_the_last_of_two_and_draws_nothing_that_never_occurs():
    every = make_training()
    occurring = torch.arange(0, EXAMPLES, 2)
    training = TrainingSet(every.labels, CLASSES, occurring)
    loss = LOSSES.build({"name": "crd", "noise": "relaxed", "positives": "relaxed"}, "test")
    bank = loss.adapters(make_outputs("narrow", 1), make_outputs("wide", 2), training)
    ids = torch.tensor([6, 2, 6, 8])
    batch = Batch(torch.zeros(4, 3, 8, 8), every.labels[ids], ids, torch.arange(4))
    for other_classes in (False, True):
        picks = bank.draw(batch, 5_000, same_class_positive=True, other_classes=other_classes)
        assert set(picks[:, 1:].unique().tolist()) <= set(occurring.tolist())
        assert set(picks[:, 0].tolist()) <= set(occurring.tolist())
    assert set(picks.unique().tolist()) == set(occurring.tolist()), "and everything that does"
    before, embedding = bank.student_memory.clone(), torch.randn(4, loss.width)
    bank.remember("student", ids, embedding, 0.5)
    for row, place in ((6, 2), (2, 1), (8, 3)):
        expected = F.normalize(0.5 * before[row] + 0.5 * embedding[place], dim=0)
        torch.testing.assert_close(bank.student_memory[row], expected)
    others = [row for row in range(EXAMPLES) if row not in ids.tolist()]
    assert torch.equal(bank.student_memory[others], before[others])


def test_crd_counts_the_examples_that_occur():
    """The loss over half of the examples is that over a training set of this half alone."""
    every, student, teacher = make_training(), make_outputs("narrow", 1), make_outputs("wide", 2)
    occurring = torch.arange(1, EXAMPLES, 2)
    loss = LOSSES.build({"name": "crd", "negatives": 9}, "test")
    values = []
    for training, ids in (
        (TrainingSet(every.labels, CLASSES, occurring), occurring[:BATCH]),
        (TrainingSet(every.labels[occurring], CLASSES), torch.arange(BATCH)),
    ):
        bank = loss.adapters(student, teacher, training)
        torch.manual_seed(1)
        for part in bank.parameters():
            part.data.normal_()
        noise = torch.randn(2, EXAMPLES, loss.width)[:, occurring]
        for name, rows in zip(("student", "teacher"), noise, strict=True):
            memory = getattr(bank, f"{name}_memory")
            memory[occurring if len(memory) == EXAMPLES else slice(None)] = rows
        batch = Batch(torch.zeros(BATCH, 3, 8, 8), training.labels[ids], ids, ids)
        torch.manual_seed(2)
        values.append(loss(student, teacher, batch, bank.double()).item())
    assert values[0] == pytest.approx(values[1], rel=1e-9)


def test_memory_bank_moves_as_torchdistills_does():
    """Two steps: the rows move by the momentum, the constants Z stay those of the first batch."""
    peer = pytest.importorskip("torchdistill.losses.mid_level", reason="needs the extra 'test' (torchdistill)")
    teacher, training = make_outputs("wide", 2), make_training()
    loss = LOSSES.build({"name": "crd", "momentum": 0.9, "negatives": 15}, "test")
    torch.manual_seed(3)
    bank = loss.adapters(make_outputs("narrow", 1), teacher, training).double()
    theirs = peer.CRDLoss("n", "empty", "n", loss.width, EXAMPLES, 15, EXAMPLES, momentum=0.9).double()
    theirs.memory_v1.copy_(bank.student_memory)
    theirs.memory_v2.copy_(bank.teacher_memory)
    theirs.params[1], theirs.params[4] = loss.temperature, loss.momentum
    for step in range(3):
        student, batch = make_outputs("narrow", 5 + step), make_batch(training, seed=step)
        torch.manual_seed(4)
        picks = bank.draw(batch, 15, same_class_positive=False, other_classes=True)
        drawn = {"empty": {"input": {"pos_idx": batch.ids, "contrast_idx": picks}}}
        ours = io(n=F.normalize(bank.student_projection(student.embedding))) | drawn
        expected = theirs(ours, io(n=F.normalize(bank.teacher_projection(teacher.embedding))))
        torch.manual_seed(4)
        assert loss(student, teacher, batch, bank).item() == pytest.approx(expected.item(), rel=1e-5)
        torch.testing.assert_close(bank.student_memory, theirs.memory_v1)
        torch.testing.assert_close(bank.teacher_memory, theirs.memory_v2)


def test_factors_of_the_teacher_learn_from_reconstruction_alone():
    gradients = []
    for scale in (1.0, 5.0):  # another student: another transfer term, the same reconstruction
        student, teacher = make_outputs("narrow", 1), make_outputs("wide", 2)
        student.blocks[-1] = student.blocks[-1] * scale + torch.roll(student.blocks[-1], 1, 0)
        value, _, _, _, adapters = evaluate("ft", student, teacher)
        value.backward()
        gradients.append([parameter.grad for parameter in adapters["encoder"].parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_blocks_meet_at_the_same_depth_and_tokens_become_maps():
    shallow, deep = make_outputs("narrow", 1), make_outputs("deep", 2)
    places = {block.data_ptr(): index for index, block in enumerate(deep.blocks)}
    chosen = [places[ours.data_ptr()] for ours, _ in paired(deep, shallow)]
    assert chosen == [0, 2, 4]
    tokens = torch.arange(2 * 17 * 3.0).reshape(2, 17, 3)
    grid = as_map(tokens)
    assert grid.shape == (2, 3, 4, 4)
    assert torch.equal(grid[1, 2, 3, 0], tokens[1, 1 + 12, 2]), "the class token leads and is left out"
    assert torch.equal(as_map(tokens[:, :16])[1, 2, 3, 0], tokens[1, 12, 2])
    assert as_map(tokens[:, :7]).shape == (2, 3, 7, 1) and as_map(tokens[:, 0]).shape == (2, 3, 1, 1)
    line, square = (Outputs(tokens[:, 0], [block], tokens[:, 0]) for block in (tokens[:, :7], tokens))
    with pytest.raises(UserError, match="7 x 1 and 4 x 4 positions cannot be aligned"):
        aligned(line, square)


# Expressions. --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "meaning"),
    [
        ("ce", "1 ce"),
        ("kd", "0.1 ce + 0.9 kd"),
        ("1 kd", "1 ce + 1 kd"),
        ("kd + at", "1 ce + 0.9 kd + 1000 at"),
        ("0.1 ce + 0.9 kd", "0.1 ce + 0.9 kd"),
        ("  2ce+ .5*kd ", "2 ce + 0.5 kd"),
        ("1e-1 ce + 1e+1 kd", "0.1 ce + 10 kd"),
        ("crd", "1 ce + 0.8 crd"),
        ("0 ce + 1 kd", "1 kd"),
        ("trusted_kd", "1 trusted_kd"),
        ("balanced_ce + kd", "1 balanced_ce + 0.9 kd"),
        ({"name": "kd", "temperature": 8}, "0.1 ce + 0.9 kd"),
        (["0.5 ce + kd", {"name": "sp", "weight": 10}], "0.5 ce + 0.9 kd + 10 sp"),
    ],
    ids=str,
)
def test_expressions_mean_what_the_rule_says(spec, meaning):
    assert format_losses(parse_losses(spec, "losses")) == meaning


def test_a_mapping_gives_options():
    assert parse_losses([{"name": "kd", "temperature": 8}], "losses")[1].temperature == 8


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("", "no loss at all"),
        ([], "no loss at all"),
        ("kdd", "did you mean 'kd'"),
        ("-1 kd", "negative"),
        ("kd - ce", "not understood"),
        ("kd at", "not understood"),
        ("kd +", "not understood"),
        ("+ kd", "not understood"),
        ("0.5", "not understood"),
        ("kd + kd", "named twice"),
        ("0 kd", "every weight is zero"),
        ([{"name": "kd", "weight": -1}], "losses.0.weight: -1 is refused; give a number from 0 "),
        ([{"name": "kd", "weight": math.nan}], "losses.0.weight: nan is refused"),
        (
            [{"name": "kd", "temperatur": 4}],
            "losses.0.temperatur: unknown option; known: standardize, temperature, weight; did you",
        ),
        ([{"name": "kd", "temperature": 0}], "losses.0.temperature: 0 is refused; give a number, above 0 "),
        ([{"weight": 1}], "losses.0.name: missing"),
        ([{"name": ["kd"]}], "is no loss"),
        ([["kd"]], "is no loss"),
        ([None], "is no loss"),
        (True, "is no loss"),
        (3, "is no loss"),
        (None, "no loss at all"),
        ([{"name": "dkd", "others": -8}], "losses.0.others: -8 is refused; give a number from 0 "),
        ([{"name": "dkd", "target": 0, "others": 0}], "losses.0.target: 0 is refused beside others 0"),
        ([{"name": "dist", "intra": -1}], "losses.0.intra: -1 is refused; give a number from 0 "),
        ([{"name": "rkd", "angle": math.nan}], "losses.0.angle: nan is refused"),
        ([{"name": "crd", "positives": "exactly"}], "known: exact, relaxed"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused_in_one_line(spec, part):
    with pytest.raises(UserError, match="^losses") as caught:
        parse_losses(spec, "losses")
    assert part in str(caught.value) and "\n" not in str(caught.value)


@given(st.dictionaries(st.sampled_from(list(LOSSES)), st.integers(1, 10**6).map(lambda n: n / 1000), min_size=1))
def test_what_is_written_reads_back(weights):
    expression = " + ".join(f"{weight!r} {name}" for name, weight in weights.items())
    losses = parse_losses(expression, "losses")
    assert {loss.name: loss.weight for loss in losses if loss.name in weights} == weights
    assert any(loss.uses_labels for loss in losses)
    assert {loss.name for loss in losses} - set(weights) <= {"ce"}


# Objective. ----------------------------------------------------------------------------------------------------------


class Network(nn.Module):
    """images [batch, 3, 8, 8] -> logits; two blocks."""

    def __init__(self, width: int, seed: int, classes: int = CLASSES) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU())
        self.head = nn.Linear(2 * width, classes)
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.second(self.first(images)).mean((2, 3)))


def observed(network: Network) -> Observer:
    return Observer(network, ("first", "second"), "head")


def make_objective(spec="kd", teachers: int = 1, **options):
    """An objective that is ready for ``Network(3, 0)``, with its teachers of unequal widths and that student."""
    networks = [Network(4 + index, 10 + index) for index in range(teachers)]
    objective = Objective(parse_losses(spec, "losses"), [Teacher(observed(network)) for network in networks], **options)
    student, training = observed(Network(3, 0)), make_training()
    batch = make_batch(training)
    with torch.no_grad():
        objective.prepare(student(batch.inputs), batch, training)
    for network in networks:
        network.calls = 0
    return objective, networks, student


def train(objective, student, steps: range, total: int, optimizer=None):
    """A few steps of SGD on fixed batches; gives what was logged."""
    optimizer = optimizer or torch.optim.SGD(
        [*student.network.parameters(), *objective.parameters()], 0.01, momentum=0.9
    )
    logs, training = [], make_training()
    for step in steps:
        batch = make_batch(training, seed=step)
        loss, terms = objective(student(batch.inputs), batch, step=step, steps=total)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        logs.append((loss.item(), {name: term.item() for name, term in terms.items()}))
    return logs, optimizer


EVERYTHING = [name for name in LOSSES if name != "ce"]


def test_every_loss_trains_in_one_objective_and_passes_the_check():
    objective, networks, student = make_objective(" + ".join(f"1e-3 {name}" for name in EVERYTHING))
    logs, _ = train(objective, student, range(25), 25)
    objective.check_progress()
    for loss, terms in logs:
        assert set(terms) == {*EVERYTHING, "teacher_accuracy"}
        assert loss == pytest.approx(sum(terms.values()) - terms["teacher_accuracy"], rel=1e-5)
        assert 0 <= terms["teacher_accuracy"] <= 1
    assert all(parameter.grad is None for network in networks for parameter in network.parameters())
    assert not any(network.training for network in networks)


def test_the_teacher_is_called_in_the_window_exactly():
    objective, (teacher,), student = make_objective("kd", window=(0.0, 0.3))
    logs, _ = train(objective, student, range(50), 50)
    assert teacher.calls == 15 and objective.teacher_calls.tolist() == [15]
    assert all(set(terms) == {"ce", "kd", "teacher_accuracy"} for _, terms in logs[:15])
    assert all(set(terms) == {"ce"} and terms["ce"] == pytest.approx(loss) for loss, terms in logs[15:])


@given(st.integers(1, 2000), st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted).filter(lambda w: w[0] < w[1]))
@settings(max_examples=50)
def test_windows_that_meet_cover_every_step_once(steps, window):
    start, end = window
    asked = [0] * steps
    for part in ((0.0, start), (start, end), (end, 1.0)):
        if part[0] < part[1]:
            objective = Objective(parse_losses("kd", "losses"), [lambda batch: None], window=part)
            for step in range(steps):
                asked[step] += len(objective.asked(step=step, steps=steps))
    assert asked == [1] * steps


def test_outside_the_window_labels_count_in_full():
    training = make_training()
    batch = make_batch(training)
    for spec in ("kd", "1 ce + 1000 at", "trusted_kd", "0 ce + 1 kd"):
        objective, _, student = make_objective(spec, window=(0.5, 1.0))
        outputs = student(batch.inputs)
        loss, _ = objective(outputs, batch, step=0, steps=10)
        assert loss.item() == pytest.approx(F.cross_entropy(outputs.logits, batch.labels).item(), rel=1e-6)


def test_random_draws_each_teacher_about_a_third_of_the_time_and_again_the_same():
    options = {"ensemble": "random", "seed": 5}
    objective = Objective(parse_losses("kd", "losses"), [lambda batch: None] * 3, **options)
    drawn = [objective.asked(step=step, steps=3000)[0] for step in range(3000)]
    assert all(abs(drawn.count(teacher) / 3000 - 1 / 3) < 0.04 for teacher in range(3))
    again = Objective(parse_losses("kd", "losses"), [lambda batch: None] * 3, **options)
    assert [again.asked(step=step, steps=3000)[0] for step in range(1500, 3000)] == drawn[1500:]
    other = Objective(parse_losses("kd", "losses"), [lambda batch: None] * 3, ensemble="random", seed=6)
    assert [other.asked(step=step, steps=3000)[0] for step in range(3000)] != drawn


def test_random_costs_one_teacher_per_step():
    objective, networks, student = make_objective("crd", teachers=3, ensemble="random")
    train(objective, student, range(30), 30)
    calls = [network.calls for network in networks]
    assert sum(calls) == 30 and min(calls) > 0 and objective.teacher_calls.tolist() == calls


def test_average_has_the_gradient_of_the_averaged_soft_targets():
    objective, networks, student = make_objective([{"name": "kd", "temperature": 3, "weight": 1}, "0 ce"], teachers=3)
    batch = make_batch(make_training())
    outputs = student(batch.inputs)
    outputs.logits.retain_grad()
    objective(outputs, batch, step=0, steps=1)[0].backward()
    logits = outputs.logits.detach().clone().requires_grad_()
    with torch.no_grad():
        targets = sum((network(batch.inputs) / 3).softmax(1) for network in networks) / 3
    (9 * F.kl_div((logits / 3).log_softmax(1), targets, reduction="batchmean")).backward()
    torch.testing.assert_close(outputs.logits.grad, logits.grad)


@pytest.mark.parametrize("ensemble", ["average", "random"])
def test_a_resumed_training_gives_the_same_bytes(ensemble):
    spec, options = " + ".join(f"1e-3 {name}" for name in EVERYTHING), {"teachers": 2, "ensemble": ensemble, "seed": 3}
    objective, _, student = make_objective(spec, **options)
    straight, _ = train(objective, student, range(12), 12)

    first, _, half = make_objective(spec, **options)
    logs, optimizer = train(first, half, range(5), 12)
    states = copy.deepcopy([first.state_dict(), half.network.state_dict(), optimizer.state_dict()])
    assert all(isinstance(value, Tensor) for value in states[0].values())
    torch.manual_seed(99)
    second, _, student_again = make_objective(spec, **options)
    second.load_state_dict(states[0])
    student_again.network.load_state_dict(states[1])
    optimizer = torch.optim.SGD([*student_again.network.parameters(), *second.parameters()], 0.01, momentum=0.9)
    optimizer.load_state_dict(states[2])
    rest, _ = train(second, student_again, range(5, 12), 12, optimizer)
    assert logs + rest == straight
    for ours, theirs in zip(objective.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_adapters_are_a_function_of_the_seed_and_leave_the_generator_alone():
    states = []
    for torch_seed, seed in ((1, 0), (2, 0), (1, 1)):
        torch.manual_seed(torch_seed)
        before = torch.get_rng_state()
        objective = Objective(
            parse_losses("fitnet", "losses"), [lambda batch: make_outputs("wide", 2, dtype=torch.float32)], seed=seed
        )
        training = make_training()
        objective.prepare(make_outputs("narrow", 1, dtype=torch.float32), make_batch(training), training)
        objective(make_outputs("narrow", 1, dtype=torch.float32), make_batch(training), step=0, steps=1)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(objective.state_dict()["adapters.fitnet.0.weight"])
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_the_check_names_a_term_that_is_always_zero():
    teacher = observed(Network(3, 0))
    objective = Objective(parse_losses("ce + kd", "losses"), [Teacher(teacher)])
    training = make_training()
    objective.prepare(teacher(make_batch(training).inputs), make_batch(training), training)
    for step in range(20):
        objective.check_progress()  # too early to judge
        batch = make_batch(training, seed=step)
        objective(teacher(batch.inputs), batch, step=step, steps=20)
    with pytest.raises(UserError, match="'kd' was exactly zero in 20 steps"):
        objective.check_progress()


def test_the_check_remembers_across_a_resume_and_judges_short_trainings_at_their_end():
    teacher, training = observed(Network(3, 0)), make_training()

    def made():
        objective = Objective(parse_losses("ce + kd", "losses"), [Teacher(teacher)])
        objective.prepare(teacher(make_batch(training).inputs), make_batch(training), training)
        return objective

    objective = made()
    for step in range(20):
        if step == 12:  # as after a kill: another process, what the checkpoint holds
            state, objective = objective.state_dict(), made()
            objective.load_state_dict(state)
        batch = make_batch(training, seed=step)
        objective(teacher(batch.inputs), batch, step=step, steps=20)
    with pytest.raises(UserError, match="'kd' was exactly zero in 20 steps"):
        objective.check_progress()
    short = made()
    short(teacher(batch.inputs), batch, step=0, steps=1)
    short.check_progress()
    with pytest.raises(UserError, match="'kd' was exactly zero in 1 steps"):
        short.check_progress(steps=1)


def test_a_window_without_a_step_is_refused():
    objective, *_ = make_objective("kd", window=(0.0, 0.3))
    assert objective.teaching_steps(50) == range(0, 15) and objective.teaching_steps(50, first=10) == range(10, 15)
    for steps, first in ((1, 0), (50, 15)):
        with pytest.raises(UserError, match=r"window: \[0.0, 0.3\] holds none of the steps"):
            objective.teaching_steps(steps, first)


@pytest.mark.parametrize("broken", ["detached", "zero"])
def test_the_check_names_an_adapter_without_a_gradient(broken):
    objective, _, student = make_objective("fitnet")
    training = make_training()
    for step in range(20):
        batch = make_batch(training, seed=step)
        loss, _ = objective(student(batch.inputs), batch, step=step, steps=20)
        if broken == "zero":
            (0 * loss).backward()
    with pytest.raises(UserError, match=r"'fitnet\.0\.(weight|bias)' received no gradient"):
        objective.check_progress()


def test_a_teacher_that_was_not_drawn_yet_is_not_blamed():
    objective, _, student = make_objective("fitnet", teachers=3, ensemble="random")
    train(objective, student, range(40), 40)
    objective.check_progress(steps=10)
    objective, _, student = make_objective("fitnet", teachers=3, window=(0.9, 1.0))
    train(objective, student, range(40), 100)
    objective.check_progress(steps=10)


def test_what_cannot_be_trained_is_refused():
    kd, at = parse_losses("kd", "losses"), parse_losses("at", "losses")
    training = make_training()
    batch = make_batch(training)
    outputs = observed(Network(3, 0))(batch.inputs)
    with pytest.raises(UserError, match="needs a teacher"):
        Objective(kd)
    with pytest.raises(UserError, match="none given"):
        Objective(())
    for window in ((-0.1, 0.5), (0.5, 0.5), (0.7, 0.3), (0.0, 1.1), (math.nan, 1.0)):
        with pytest.raises(UserError, match="window"):
            Objective(kd, [lambda batch: None], window=window)
    with pytest.raises(UserError, match="'mean' is unknown; known: average, random"):
        Objective(kd, [lambda batch: None], ensemble="mean")
    few = Objective(kd, [Teacher(observed(Network(4, 1, classes=3)))])
    with pytest.raises(UserError, match=r"teachers\[0\]: has 3 classes, the student 5"):
        few.prepare(outputs, batch, training)
    with pytest.raises(UserError, match=r"teachers\[0\]: cannot read images of shape \[1, 8, 8\]"):
        Objective(kd, [Teacher(observed(Network(4, 1)))]).prepare(
            outputs, replace(batch, inputs=batch.inputs[:, :1]), training
        )
    blind = Objective(at, [lambda batch: Outputs(torch.zeros(BATCH, CLASSES), [], torch.zeros(BATCH, 2))])
    with pytest.raises(UserError, match="shows none"):
        blind.prepare(outputs, batch, training)


# Teachers. -----------------------------------------------------------------------------------------------------------


def test_cached_logits_are_the_teachers_and_spare_its_run(tmp_path):
    training = make_training()
    cache = LogitsCache(tmp_path / "deep" / "logits.npy", positions=2 * EXAMPLES, classes=CLASSES)
    plain, cached = Teacher(observed(Network(4, 1))), Teacher(observed(Network(4, 1)), cache=cache)
    batches = [
        replace(made, draw=epoch * EXAMPLES + made.draw)
        for epoch in (0, 1)
        for made in (make_batch(training, seed=epoch),)
    ]
    for _ in range(2):
        for batch in batches:
            assert torch.equal(cached(batch).logits, plain(batch).logits)
    assert cached.runs == 2
    assert batches[0].ids.tolist() != batches[1].ids.tolist()
    unknown = replace(batches[0], draw=(batches[0].draw + 1) % EXAMPLES)
    cached(unknown)
    assert cached.runs == 3, "a batch of which a part is stored has to run"
    again = Teacher(observed(Network(4, 2)), cache=LogitsCache(cache.path, positions=2 * EXAMPLES, classes=CLASSES))
    assert torch.equal(again(batches[1]).logits, plain(batches[1]).logits) and again.runs == 0


def test_a_row_that_was_not_written_whole_counts_as_absent(tmp_path):
    cache = LogitsCache(tmp_path / "logits.npy", positions=EXAMPLES, classes=CLASSES)
    draw, logits = torch.arange(4), torch.randn(4, CLASSES)
    assert cache.get(draw) is None
    cache.put(draw, torch.zeros(4, CLASSES))
    assert torch.equal(cache.get(draw), torch.zeros(4, CLASSES))
    cache.put(draw, logits)
    assert torch.equal(cache.get(draw), logits)
    cache.rows[2, 1] = 0
    assert cache.get(draw) is None and torch.equal(cache.get(draw[:2]), logits[:2])
    assert cache.path.stat().st_blocks * 512 >= cache.rows.nbytes, "a full disk would end the process later"
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "logits.npy"}


def test_two_who_make_the_cache_at_once_share_one(tmp_path, monkeypatch):
    path, shape = tmp_path / "logits.npy", {"positions": 2 * EXAMPLES, "classes": CLASSES}
    first = LogitsCache(path, **shape)
    draw, logits = EXAMPLES + torch.arange(3), torch.randn(3, CLASSES)
    first.put(draw, logits)
    exists, looks = (
        Path.exists,
        iter([False]),
    )  # the second looked before the first had made it, and waited for the lock
    monkeypatch.setattr(Path, "exists", lambda self: next(looks, exists(self)) if self == path else exists(self))
    second = LogitsCache(path, **shape)
    assert torch.equal(second.get(draw), logits) and {path.name for path in tmp_path.iterdir()} == {
        ".lock",
        "logits.npy",
    }


FORK = multiprocessing.get_context("fork")  # what was put in the place of os.rename holds in the child


def make_cache(path, rename):
    os.rename = rename
    LogitsCache(path, positions=2 * EXAMPLES, classes=CLASSES)


def test_what_a_killed_process_left_half_made_is_removed(tmp_path):
    for name in ("logits.npy", "other.npy"):
        maker = FORK.Process(target=make_cache, args=(tmp_path / name, lambda *_: os.kill(os.getpid(), signal.SIGKILL)))
        maker.start()
        maker.join(20)
        assert maker.exitcode == -signal.SIGKILL
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {".lock", f".{name}.{maker.pid}.aside"}, "the second removed what the first left"
    (tmp_path / ".runs.csv.1.aside").touch()  # another's, who may be alive
    LogitsCache(tmp_path / "logits.npy", positions=2 * EXAMPLES, classes=CLASSES)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", ".runs.csv.1.aside", "logits.npy"}


def test_what_a_live_process_is_making_is_waited_for(tmp_path):
    path = tmp_path / "logits.npy"
    reached, go_on = FORK.Event(), FORK.Event()
    real = os.rename

    def slowly(unfinished, target):
        reached.set()
        go_on.wait(20)
        real(unfinished, target)

    first = FORK.Process(target=make_cache, args=(path, slowly))
    second = FORK.Process(target=make_cache, args=(path, real))
    first.start()
    assert reached.wait(20)
    second.start()
    second.join(0.5)
    assert second.is_alive() and (tmp_path / f".{path.name}.{first.pid}.aside").exists() and not path.exists()
    go_on.set()
    for process in (first, second):
        process.join(20)
        assert process.exitcode == 0
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "logits.npy"}


def test_a_cache_that_cannot_be_kept_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be kept .*set cache_logits to false"):
        LogitsCache(tmp_path / "file" / "logits.npy", positions=2 * EXAMPLES, classes=CLASSES)


def test_a_cache_that_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "logits.npy"
    LogitsCache(path, positions=2 * EXAMPLES, classes=CLASSES)
    with pytest.raises(UserError, match="remove the file"):
        LogitsCache(path, positions=3 * EXAMPLES, classes=CLASSES)
    path.write_bytes(b"nothing of use")
    with pytest.raises(UserError, match="remove the file"):
        LogitsCache(path, positions=2 * EXAMPLES, classes=CLASSES)
    fresh = LogitsCache(tmp_path / "other.npy", positions=2 * EXAMPLES, classes=CLASSES)
    with pytest.raises(UserError, match="'at' reads features"):
        Objective(parse_losses("at", "losses"), [Teacher(observed(Network(4, 1)), cache=fresh)])


def test_a_teacher_is_frozen_and_in_eval_mode():
    network = Network(4, 1).train()
    before = copy.deepcopy(network.state_dict())
    outputs = Teacher(observed(network))(make_batch(make_training()))
    assert not outputs.logits.requires_grad and not any(parameter.requires_grad for parameter in network.parameters())
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[key]), f"{key} changed by teaching"
