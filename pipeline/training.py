"""fit(): the one training loop. The learning rate is a pure function of progress; a checkpoint is enough to go on.

Dense training, fine-tuning and distillation differ only in the objective that is handed in.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.data import Augmentation
from pipeline.data.batches import Batch, Batches
from pipeline.files import DamagedFile, sha256_of
from pipeline.models import NetworkInfo, Observer, Outputs, read_tensors, save_tensors, training_format
from pipeline.registry import Refused, UserError, options


@options
class Fit:
    """How a network is trained."""

    epochs: Annotated[int, Field(description="passes over the training split", ge=1, le=100_000)] = 12
    batch_size: Annotated[int, Field(description="images per step", ge=1, le=1_000_000)] = 128
    optimizer: Annotated[Literal["sgd", "adamw"], Field(description="what turns gradients into steps")] = "sgd"
    learning_rate: Annotated[float, Field(description="the rate at its peak", ge=0, le=1e12)] = 0.1
    schedule: Annotated[
        Literal["cosine", "steps", "constant"],
        Field(description="the rate over time: cosine to zero, steps at the milestones, or constant"),
    ] = "cosine"
    milestones: Annotated[
        tuple[Annotated[float, Field(gt=0, lt=1)], ...],
        Field(description="rising shares of training at which steps multiplies the rate by decay"),
    ] = (0.625, 0.75, 0.875)
    decay: Annotated[float, Field(description="what the rate is multiplied by at a milestone", ge=0, le=1e12)] = 0.1
    warmup: Annotated[
        float, Field(description="share of training over which the rate rises linearly from zero", ge=0, lt=1)
    ] = 0.1
    momentum: Annotated[float, Field(description="of SGD; the first beta of AdamW", ge=0, lt=1)] = 0.9
    nesterov: Annotated[bool, Field(description="Nesterov's momentum, with sgd")] = False
    weight_decay: Annotated[float, Field(description="L2 on every parameter that is trained", ge=0, le=1e12)] = 5e-4
    augmentation: Annotated[Augmentation, Field(description="random crops and flips")] = field(
        default_factory=Augmentation
    )
    precision: Annotated[
        Literal["float32", "bfloat16"], Field(description="bfloat16 runs the forward pass under autocast")
    ] = "float32"
    compile: Annotated[bool, Field(description="torch.compile the network; pays off in runs of many minutes")] = False
    evaluation_batch_size: Annotated[
        int,
        Field(
            description="examples per forward pass where nothing is trained; the last bits of a logit depend on it",
            ge=1,
            le=1_000_000,
        ),
    ] = 250

    def __post_init__(self) -> None:
        if list(self.milestones) != sorted(self.milestones):
            raise Refused("milestones", f"{list(self.milestones)} do not rise; give rising shares of training")
        if self.nesterov and not self.momentum:
            raise Refused("nesterov", "true needs a momentum above 0")


def learning_rate(options: Fit, progress: float) -> float:
    """The learning rate when ``progress`` (0 to 1) of all steps is done."""
    if progress < options.warmup:
        return options.learning_rate * progress / options.warmup
    if options.schedule == "cosine":
        position = (progress - options.warmup) / (1 - options.warmup)
        return options.learning_rate * 0.5 * (1 + math.cos(math.pi * position))
    if options.schedule == "steps":
        return options.learning_rate * options.decay ** sum(progress >= milestone for milestone in options.milestones)
    return options.learning_rate


CHECKPOINT = "checkpoint.safetensors"


class Objective(Protocol):
    """What fit() minimises; see `pipeline.distillation.Objective`."""

    teachers: Sequence[object]

    def __call__(
        self, student: Outputs, batch: Batch, *, step: int, steps: int
    ) -> tuple[Tensor, dict[str, Tensor]]: ...

    def parameters(self) -> Iterable[nn.Parameter]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> object: ...

    def teaching_steps(self, steps: int, first: int = 0) -> range: ...

    def check_progress(self, *, steps: int = ...) -> None: ...


class Masker(Protocol):
    """Keeps a masked network sparse; see `pipeline.pruning.Masker`."""

    masks: dict[str, Tensor]

    def step(self, progress: float) -> None: ...

    def use(self, masks: dict[str, Tensor]) -> None: ...

    def verify(self) -> None: ...


def fit(
    network: nn.Module,
    *,
    info: NetworkInfo,
    prepare: Callable[[Outputs, Batch], Objective],
    options: Fit,
    train: Batches,
    validation: Batches,
    seed: tuple[int, ...],
    folder: Path,
    moving: Collection[str] | None = None,
    masker: Masker | None = None,
    start_epoch: int = 0,
    keep_epochs: tuple[int, ...] = (),
    report: Callable[[int, int, dict[str, float]], None] = lambda step, steps, values: None,
) -> tuple[list[dict[str, float]], float]:
    """Trains the network in place.

    prepare: makes the objective, given one batch and what the untrained network shows for it (shapes matter only).
    seed: with the epoch it fixes order and augmentation; runs with equal seeds see the same images.
    folder: where the checkpoint lies; it stays when the training is done, for the caller to keep or remove. A run that
    finds one goes on from it, and ends with the same weights, byte for byte, as a run that was never interrupted (same
    machine, device and number of threads).
    moving: names of the parameters that are trained (None: all). A layer with parameters of which none moves keeps its
    BatchNorm statistics too.
    start_epoch: epochs to leave out at the beginning, as if they were done; batches and learning rate are those of the
    rest. keep_epochs: also writes the weights after that many epochs (0: the initial ones) to ``epoch<N>.safetensors``.

    Returns:
        One record per epoch (loss terms, validation accuracy, learning rate), and the seconds that the steps took in
        this run, without validation and checkpoints.

    Raises:
        UserError: the loss is no longer finite, a window without a step, or a term that teaches nothing.
        DamagedFile: the checkpoint, or weights that were kept before it, are not as this training wrote them.
    """
    device = train.device
    memory_format = training_format(network)
    network.to(device, memory_format=memory_format)
    moving = {name for name, _ in network.named_parameters()} if moving is None else set(moving)
    still = _hold(network, moving)
    if masker is not None:
        masker.use(masker.masks)  # the weights have a new place and order

    def arrange(images: Tensor) -> Tensor:
        # contiguous() would leave a one-channel image as it is, and with its strides the format of all that follows.
        return images if memory_format == torch.channels_last else images.clone(memory_format=memory_format)

    observer = Observer(network, info.blocks, info.classifier)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bfloat16")
    with autocast:  # what a teacher answers here may be kept, so it has to be what it answers in training
        objective = _prepared(prepare, network, observer, next(train.epoch(seed, 0)))
    forward = torch.compile(observer) if options.compile else observer
    trained = [parameter for name, parameter in network.named_parameters() if name in moving]
    parameters = [*trained, *objective.parameters()]
    optimizer = _optimizer(options, parameters)
    checkpoint = folder / CHECKPOINT
    done, history, kept = start_epoch, [], {}
    if checkpoint.exists():
        epochs = range(start_epoch + 1, options.epochs + 1)
        done, history, kept = _restore(checkpoint, epochs, keep_epochs, network, objective, optimizer, masker)
    elif 0 in keep_epochs:
        kept |= _keep(folder, 0, network)
    steps_per_epoch = train.steps()
    steps = options.epochs * steps_per_epoch
    if objective.teachers:
        objective.teaching_steps(steps, start_epoch * steps_per_epoch)
    shown = started = time.monotonic()
    started_at = done * steps_per_epoch
    seconds = 0.0
    for epoch in range(done, options.epochs):
        network.train()
        for module in still:
            module.eval()
        begun = time.monotonic()
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        for number, batch in enumerate(train.epoch(seed, epoch)):
            step = epoch * steps_per_epoch + number
            rate = learning_rate(options, (step + 0.5) / steps)  # mid-step: neither end wastes a step at rate 0
            for group in optimizer.param_groups:
                group["lr"] = rate
            with autocast:
                total, terms = objective(forward(arrange(batch.inputs)), batch, step=step, steps=steps)
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            optimizer.step()
            if masker is not None:
                masker.step((step + 1) / steps)
            for name, value in {"loss": total.detach(), **terms}.items():
                # Sums stay on the device: reading a number out at every step would make the device wait.
                sums[name] = sums[name] + value if name in sums else value
                counts[name] = counts.get(name, 0) + 1
            if time.monotonic() - shown > 0.25:
                shown = time.monotonic()
                loss = float(sums["loss"]) / counts["loss"]
                _check_finite(loss, epoch, rate)
                speed = (step + 1 - started_at) * options.batch_size / (shown - started)
                report(step + 1, steps, {"loss": loss, "images/s": speed})
        means = {name: float(value) / counts[name] for name, value in sums.items()}
        seconds += time.monotonic() - begun  # the means were read from the device, so it has finished
        _check_finite(means["loss"], epoch, rate)
        if epoch + 1 < options.epochs:
            objective.check_progress()
        else:  # the last time to judge what was evaluated a few times only
            objective.check_progress(steps=1)
        if masker is not None:
            masker.verify()
        accuracy = evaluate(network, validation)
        history.append({"epoch": epoch + 1, "learning_rate": rate, **means, "validation_accuracy": accuracy})
        speed = (epoch + 1 - done) * steps_per_epoch * options.batch_size / (time.monotonic() - started)
        values = {"loss": means["loss"], "validation accuracy": accuracy, "images/s": speed}
        report((epoch + 1) * steps_per_epoch, steps, values)
        if epoch + 1 in keep_epochs:
            kept |= _keep(folder, epoch + 1, network)
        _save(checkpoint, epoch + 1, history, kept, network, objective, optimizer, masker)
    observer.close()
    network.requires_grad_(True)
    return history, seconds


def _hold(network: nn.Module, moving: set[str]) -> list[nn.Module]:
    """Takes gradients from the parameters that do not move; returns the modules that have own ones and move none."""
    still = []
    for path, module in network.named_modules():
        own = [f"{path}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)]
        for name in own:
            network.get_parameter(name).requires_grad_(name in moving)
        if own and not moving & set(own):
            still.append(module)
    return still


def _prepared(
    prepare: Callable[[Outputs, Batch], Objective], network: nn.Module, observer: Observer, batch: Batch
) -> Objective:
    with torch.no_grad():
        network.eval()  # a look at the shapes must not move BatchNorm's statistics
        outputs = observer(batch.inputs)
    network.train()
    return prepare(outputs, batch)


def _check_finite(loss: float, epoch: int, rate: float) -> None:
    if not math.isfinite(loss):
        raise UserError(
            f"training diverged: the loss became {loss} in epoch {epoch + 1} at learning rate {rate:.4g}; "
            "lower learning_rate or lengthen warmup"
        )


@torch.no_grad()
def evaluate(network: nn.Module, batches: Batches) -> float:
    """Share of examples that the network classifies correctly; leaves it in eval mode."""
    network.eval()
    correct = sum((network(batch.inputs).argmax(1) == batch.labels).sum() for batch in batches.in_order())
    return float(correct) / len(batches.split)


def _optimizer(options: Fit, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer, with the state of every parameter already there.

    From zero rather than from the first gradient, which comes to the same: torch's fused SGD cannot begin with some
    parameters later than with others, as it has to where an adapter waits for its teacher or its window. It also makes
    what a checkpoint has to hold the same after every epoch.
    """
    if options.optimizer == "adamw":
        optimizer = torch.optim.AdamW(
            parameters, lr=0.0, betas=(options.momentum, 0.999), weight_decay=options.weight_decay, fused=True
        )
        for parameter in parameters:
            optimizer.state[parameter] |= {
                "step": torch.zeros((), device=parameter.device, dtype=torch.float32),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return optimizer
    optimizer = torch.optim.SGD(
        parameters,
        lr=0.0,
        momentum=options.momentum,
        nesterov=options.nesterov,
        weight_decay=options.weight_decay,
        fused=True,
    )
    if options.momentum:
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _state(
    network: nn.Module, objective: Objective, optimizer: torch.optim.Optimizer, masker: Masker | None
) -> dict[str, Tensor]:
    """Every tensor that a training goes on from, by the name that it has in the checkpoint."""
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"objective.{name}": value for name, value in objective.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items() if value is not None}
    if masker is not None:
        tensors |= {f"masks.{name}": value for name, value in masker.masks.items()}
    return tensors


def _checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """sha256 over the metadata and over name, type, shape and bytes of every tensor (on the CPU), ordered by name."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _keep(folder: Path, epoch: int, network: nn.Module) -> dict[str, str]:
    """Writes the weights after an epoch. Returns the file's sha256, by its name."""
    path = folder / f"epoch{epoch}.safetensors"
    save_tensors(path, network.state_dict())
    return {path.name: sha256_of(path)}


def _save(
    path: Path,
    epoch: int,
    history: list[dict[str, float]],
    kept: dict[str, str],
    network: nn.Module,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    masker: Masker | None,
) -> None:
    state = _state(network, objective, optimizer, masker)
    tensors = {name: value.detach().cpu() for name, value in state.items()}
    metadata = {"epoch": str(epoch), "history": json.dumps(history), "kept": json.dumps(kept)}
    save_tensors(path, tensors, {**metadata, "sha256": _checksum(tensors, metadata)})


def _restore(
    path: Path,
    epochs: range,
    keep_epochs: tuple[int, ...],
    network: nn.Module,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    masker: Masker | None,
) -> tuple[int, list[dict[str, float]], dict[str, str]]:
    """Puts back what `_save` wrote after one of ``epochs`` (numbered from 1).

    Returns:
        That epoch, the history, and the checksums of the weights that were kept until then.

    Raises:
        DamagedFile: anything in it, or in those weights, is not as this training wrote it; then nothing was changed.
    """
    tensors, metadata = read_tensors(path)
    if metadata.pop("sha256", "") != _checksum(tensors, metadata):
        raise DamagedFile(path, "its content does not match its checksum")
    done, history = _progress(path, epochs, metadata)
    early = [epoch for epoch in keep_epochs if epoch == 0 or epochs.start <= epoch <= done]
    kept = _kept(path, early, metadata)
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "objective": {}, "optimizer": {}, "masks": {}}
    expected = _state(network, objective, optimizer, masker)
    for name in sorted(expected.keys() ^ tensors.keys()):
        raise DamagedFile(path, f"{name} is missing" if name in expected else f"{name} is not of this training")
    for name, ours in expected.items():
        found = tensors[name]
        if (found.dtype, found.shape) != (ours.dtype, ours.shape):
            kinds = [f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}" for value in (found, ours)]
            raise DamagedFile(path, f"{name} is {kinds[0]}, this training has {kinds[1]}")
        part, _, rest = name.partition(".")
        parts[part][rest] = found
    network.load_state_dict(parts["network"])
    objective.load_state_dict(parts["objective"])
    parameters = optimizer.param_groups[0]["params"]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in parts["optimizer"].items():
        number, _, rest = name.partition(".")
        parameter = parameters[int(number)]
        if value.shape == parameter.shape:  # fused optimizers read raw memory: the order must be the parameter's
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        state.setdefault(int(number), {})[rest] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    if masker is not None:
        masker.use(parts["masks"])
    return done, history, kept


def _progress(path: Path, epochs: range, metadata: dict[str, str]) -> tuple[int, list[dict[str, float]]]:
    """The epoch after which a checkpoint was written, one of ``epochs``, and a record for each of them up to it."""
    written = metadata.get("epoch", "")
    done = next((epoch for epoch in epochs if str(epoch) == written), None)
    if done is None:
        raise DamagedFile(path, f"epoch {written!r} is none of {epochs.start} to {epochs.stop - 1}")
    try:
        history = json.loads(metadata.get("history", ""))
    except ValueError as error:
        raise DamagedFile(path, f"its history cannot be read: {error}") from None
    whole = (
        isinstance(history, list)
        and all(isinstance(record, dict) for record in history)
        and [record.get("epoch") for record in history] == list(range(epochs.start, done + 1))
        and all(isinstance(value, int | float) for record in history for value in record.values())
    )
    if not whole:
        raise DamagedFile(path, f"its history is not one record for each of the epochs {epochs.start} to {done}")
    return done, history


def _kept(path: Path, epochs: list[int], metadata: dict[str, str]) -> dict[str, str]:
    """The checksums of the weights that were kept after ``epochs``; those files are beside the checkpoint and whole."""
    try:
        kept = json.loads(metadata.get("kept", ""))
    except ValueError as error:
        raise DamagedFile(path, f"its list of kept weights cannot be read: {error}") from None
    names = [f"epoch{epoch}.safetensors" for epoch in epochs]  # never a name out of the file
    if not isinstance(kept, dict) or kept.keys() != set(names):
        raise DamagedFile(path, f"its list of kept weights is not that of the epochs {epochs}")
    for name in names:
        file = path.with_name(name)
        if not file.is_file() or sha256_of(file) != kept[name]:
            raise DamagedFile(file, f"missing, or not what was there when {path.name} was written")
    return kept
