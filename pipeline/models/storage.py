"""Networks on disk: what builds one again (``model.json``), its weights, its masks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as deserialise
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn

from pipeline.files import DamagedFile, write_atomically
from pipeline.models import networks
from pipeline.models.networks import Network, build
from pipeline.models.observe import find_blocks
from pipeline.registry import UserError


@dataclass(frozen=True)
class NetworkInfo:
    """All that is needed to build a network again, and to feed it: the content of ``model.json``.

    network: by name and options. input_shape: of one example, (channels, height, width) for images.
    mean, std: normalisation per channel of pixels in [0, 1].
    blocks, classifier: paths of the modules that an Observer reads.
    removed: history of physically removed channels, as `pipeline.pruning.replay` takes it.
    """

    network: Network
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    blocks: tuple[str, ...]
    classifier: str
    removed: tuple = ()

    def content(self) -> dict[str, Any]:
        """What stands in ``model.json``: the network as ``name`` and, where it has any, ``options``; then the rest."""
        name, options = self.network.written()
        rest = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "network"}
        return {"name": name, **({"options": options} if options else {}), **rest}


def save(folder: Path, network: nn.Module, info: NetworkInfo, masks: dict[str, Tensor] | None = None) -> None:
    """Writes ``model.json``, ``weights.safetensors`` and, where there are masks, ``masks.safetensors``."""
    write_atomically(folder / "model.json", json.dumps(info.content(), indent=1) + "\n")
    save_tensors(folder / "weights.safetensors", network.state_dict())
    if masks:
        save_tensors(folder / "masks.safetensors", masks)


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file in one step. Trouble with the disk is an OSError, as for any other file."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    write_atomically(path, serialise(tensors, metadata))  # safetensors' own writer would hide a full disk in its error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `save_tensors` wrote: the tensors, on the CPU, and the metadata.

    Raises:
        DamagedFile: it is no safetensors file, or not a whole one.
        OSError: trouble with the disk.
    """
    content = path.read_bytes()
    try:
        tensors = deserialise(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:  # of safetensors, and of torch below it
        raise DamagedFile(path, f"no safetensors file: {str(error).splitlines()[0]}") from None
    return tensors, header.get("__metadata__") or {}


def load_info(folder: Path) -> NetworkInfo:
    """What `save` wrote of a network.

    Raises:
        UserError: there is none, it is damaged, or it names a network that this program does not know.
    """
    try:
        content = json.loads((folder / "model.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no readable model.json ({error}); give the folder of a stored network") from None
    return parse_info(content, folder)


def parse_info(content: object, source: Path) -> NetworkInfo:
    """The inverse of `NetworkInfo.content`; source is named where it is refused."""
    remedy = "give the folder of a stored network"
    expected = {each.name for each in fields(NetworkInfo)} - {"network"} | {"name"}
    if not isinstance(content, dict) or content.keys() - {"options", "removed"} != expected - {"removed"}:
        raise UserError(f"{source}: no readable model.json (it does not describe a network); {remedy}")
    rest = dict(content)
    name, options = rest.pop("name"), rest.pop("options", {})
    if not isinstance(name, str) or not isinstance(options, Mapping):
        raise UserError(f"{source}: no readable model.json (its name or options are not text and a mapping); {remedy}")
    built = networks.network({"name": name, **options}, f"{source}: name")
    try:
        lists = {key: tuple(value) for key, value in rest.items() if key != "classifier"}
    except TypeError as error:
        raise UserError(f"{source}: no readable model.json ({error}); {remedy}") from None
    return NetworkInfo(network=built, classifier=rest["classifier"], **lists)


def load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete its folder to compute it again") from None


def load_weights(folder: Path, network: nn.Module) -> nn.Module:
    """Fills a network of the right shape with the stored weights; in eval mode."""
    try:
        network.load_state_dict(load_tensors(folder / "weights.safetensors"))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{folder}: weights do not fit model.json ({reason})") from None
    return network.eval()


def fresh(info: NetworkInfo) -> nn.Module:
    """The dense network that the description starts from, freshly initialised."""
    return build(info.network, input_shape=info.input_shape, classes=len(info.classes))


def describe(module: nn.Module, network: Network, classes: tuple[str, ...], input_shape, mean, std) -> NetworkInfo:
    """The description of a network that was just built."""
    blocks, classifier = find_blocks(module, input_shape)
    return NetworkInfo(network, tuple(classes), tuple(input_shape), tuple(mean), tuple(std), blocks, classifier)


def with_removed(info: NetworkInfo, removed: list) -> NetworkInfo:
    return replace(info, removed=tuple(info.removed) + tuple(removed))
