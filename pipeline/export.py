"""A stored network as one file for elsewhere: masks and BatchNorm folded in, checked against the original."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pipeline import models, pruning
from pipeline.files import written_aside
from pipeline.folding import fold_batchnorm
from pipeline.models import NetworkInfo
from pipeline.registry import UserError
from pipeline.stages import load_network
from pipeline.store import check_folder

FORMATS = {"onnx": ".onnx", "torchscript": ".pt", "safetensors": ".safetensors"}
# Of the largest logit. Folding reorders float32 sums, and another runtime has other kernels.
TOLERANCE = 1e-4
CHECKED_BATCHES = (1, 8)


def export(folder: Path, output: Path, kind: str) -> float:
    """Writes the network of a folder of the store to one file, which appears only after it has been checked.

    It takes images as the network does: float32 [batch, channels, height, width], any batch size, pixels in [0, 1]
    normalised with the ``mean`` and ``std`` that it carries, with all else of ``model.json``, as metadata ``model``.

    Args:
        folder: of a stage Train, Prune or Recover.
        kind: ``onnx``, ``torchscript`` or ``safetensors`` (weights only; `load` builds the network around them).

    Returns:
        The largest difference between its logits and the original's.

    Raises:
        UserError: no network there, a file that does not match its checksum, packages are missing, or the written file
            does not repeat the original's logits.
    """
    models.load_info(folder)  # says what folder is meant where this is none
    check_folder(folder)
    stored = load_network(folder)
    shape = stored.info.input_shape
    batches = [torch.randn(size, *shape, generator=torch.Generator().manual_seed(size)) for size in CHECKED_BATCHES]
    folded = fold_batchnorm(stored.network, batches[-1])
    description = json.dumps(stored.info.content() | {"folded": _folded(stored.network, folded)})
    write = {"onnx": _write_onnx, "torchscript": _write_torchscript, "safetensors": _write_safetensors}[kind]
    error = scale = 0.0
    with written_aside(output) as aside:
        read = write(folded, batches[-1], description, aside)
        with torch.no_grad():
            for images in batches:
                expected = stored.network(images)
                found = read(images)
                error = max(error, float((found - expected).abs().max())) if found.isfinite().all() else float("inf")
                scale = max(scale, float(expected.abs().max()))
        if not error <= TOLERANCE * max(1.0, scale):
            raise UserError(
                f"{folder}: as {kind} the logits differ by {error:.2g} (they go up to {scale:.3g}), so nothing was "
                "written; try another --format"
            )
    return error


def _folded(network: nn.Module, folded: nn.Module) -> dict[str, list[str]]:
    """What folding changed: the BatchNorms that became identities, and the convolutions that got a bias."""
    pairs = [(name, before, folded.get_submodule(name)) for name, before in network.named_modules()]
    convolutions = [(name, before, after) for name, before, after in pairs if isinstance(before, nn.Conv2d)]
    return {
        "identities": [name for name, before, after in pairs if type(before) is not type(after)],
        "biases": [name for name, before, after in convolutions if before.bias is None and after.bias is not None],
    }


def load(path: Path) -> tuple[nn.Module, NetworkInfo]:
    """The network of a safetensors export, in eval mode.

    Raises:
        UserError: the file is none.
    """
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads((file.metadata() or {})["model"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not iterable)
        folded = content.pop("folded")
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no export of this pipeline ({error}); make one with the verb export") from None
    info = models.parse_info(content, path)
    network = models.fresh(info)
    pruning.replay(network, list(info.removed), torch.zeros(1, *info.input_shape))
    for name in folded["biases"]:
        convolution = network.get_submodule(name)
        convolution.bias = nn.Parameter(torch.zeros(convolution.out_channels))
    for name in folded["identities"]:
        network.set_submodule(name, nn.Identity())
    network.load_state_dict(weights)
    return network.eval(), info


def _write_safetensors(network: nn.Module, example: Tensor, description: str, path: Path) -> Callable[[Tensor], Tensor]:
    models.save_tensors(path, network.state_dict(), {"model": description})
    return load(path)[0]


def _write_torchscript(network: nn.Module, example: Tensor, description: str, path: Path) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is no longer developed; whoever asks for it needs it
        traced = torch.jit.freeze(torch.jit.trace(network, example))
        traced.save(str(path), _extra_files={"model": description})
        return torch.jit.load(str(path))


def _write_onnx(network: nn.Module, example: Tensor, description: str, path: Path) -> Callable[[Tensor], Tensor]:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--format onnx: the package {error.name} is missing; install the extra: pip install -e '.[export]'"
        ) from None
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    program.model.metadata_props["model"] = description
    program.save(str(path), external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
