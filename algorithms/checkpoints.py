"""Weights out of Composer checkpoints, state dicts and safetensors that need not be trusted: nothing in them is run."""

import datetime
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from .whole_files import written_whole

# Composer's checkpoints hold the states of random generators, and what version and machine they come from.
try:
    from numpy._core.multiarray import _reconstruct  # type: ignore[attr-defined]
except ImportError:  # numpy 1
    from numpy.core.multiarray import _reconstruct  # type: ignore[attr-defined]
_HARMLESS: list[Any] = [
    _reconstruct,
    (_reconstruct, "numpy.core.multiarray._reconstruct"),
    np.ndarray,
    np.dtype,
    type(np.dtype(np.uint32)),
    datetime.timedelta,
    TorchVersion,
]

_WEIGHTS = ("model", "state_dict")  # where checkpoints hold them; Composer's within "state"


def read_weights(path: str | PathLike[str]) -> dict[str, Tensor]:
    """The model's weights by name, on the CPU, out of one file.

    It may be a checkpoint of Composer, of Lightning or of a loop of one's own ({"model": state dict, ...}), a state
    dict that `torch.save` wrote, or `.safetensors`. Raises FileNotFoundError, and ValueError for a file that is
    damaged, holds no weights, or holds what would have to be executed; or tensors that are sparse, quantized, nested,
    on the meta device or of a subclass. A tensor may be larger than the file.
    """
    return weights_in(read_content(path), path)


def read_content(path: str | PathLike[str]) -> Mapping[str, Any]:
    """All that such a file holds; the errors are those of `read_weights`."""
    path = Path(path)
    if not path.is_file():
        hint = "; a checkpoint in shards has to be saved as one file first" if path.is_dir() else ""
        raise FileNotFoundError(f"{path} is no file: expected a Composer checkpoint, a state dict or safetensors{hint}")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def weights_in(content: Mapping[str, Any], path: str | PathLike[str]) -> dict[str, Tensor]:
    """The model's weights by name, out of the content of the file at `path`."""
    held = content["state"] if isinstance(content.get("state"), Mapping) else content
    weights = next((held[name] for name in _WEIGHTS if isinstance(held.get(name), Mapping)), held)
    if not (isinstance(weights, Mapping) and weights and all(isinstance(value, Tensor) for value in weights.values())):
        raise ValueError(f"{path} holds no weights: expected tensors by name, alone or as 'model' or 'state_dict'")
    if odd := [f"{name} ({why})" for name, value in weights.items() if (why := oddity(value))]:
        raise ValueError(f"{path} holds {some(odd)}: expected plain tensors only, with their numbers in memory")
    return {str(name).replace("_orig_mod.", ""): value for name, value in weights.items()}  # of a compiled model


def oddity(tensor: Tensor) -> str:
    """What makes it other than a plain tensor, whose numbers lie in memory; empty if nothing does."""
    if type(tensor) not in (Tensor, nn.Parameter):
        return f"a {type(tensor).__name__}"
    odd = {"nested": tensor.is_nested, "meta": tensor.is_meta, "quantized": tensor.is_quantized}
    layout = str(tensor.layout).removeprefix("torch.")
    return next((name for name, is_so in odd.items() if is_so), "" if layout == "strided" else layout)


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (
        Exception
    ) as error:  # of many kinds: of safetensors, and of torch for a type of numbers that it does not know
        raise ValueError(f"{path} is no readable safetensors file: {' '.join(str(error).split())[:200]}") from error


def read_metadata(path: str | PathLike[str]) -> dict[str, str]:
    """The texts in the head of a safetensors file, which `read_weights` has read; of other files there are none."""
    from safetensors import safe_open

    if Path(path).suffix != ".safetensors":
        return {}
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def _read_pickle(path: Path) -> Mapping[str, Any]:
    try:
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats, which it reads all the same
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, from damaged files
        if isinstance(error, pickle.UnpicklingError) and (unsafe := _unsafe(path)):
            raise ValueError(
                f"{path} is refused: to load it would run {', '.join(unsafe)}. Expected tensors and plain values only; "
                "whoever trusts it can save its weights alone, as safetensors."
            ) from error
        raise ValueError(f"{path} is no readable checkpoint: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}: expected weights by name")
    return content


def _unsafe(path: Path) -> list[str]:
    """What stands in the way of `weights_only`, as far as the file can be read at all."""
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []
    except Exception:
        return []


def _kind(tensor: Tensor) -> str:
    """Of the numbers; those of one kind become each other without a change of meaning."""
    return "complex numbers" if tensor.is_complex() else "floats" if tensor.is_floating_point() else "integers"


def load_weights(module: nn.Module, path: str | PathLike[str]) -> None:
    """Load a file's weights into `module`, all of them or none.

    The file's names may have the prefix of a `ComposerModel` around the network (`module.` or `model.`) that `module`
    lacks, or lack what it has. Raises ValueError where a name is missing on either side, or has another shape or kind
    of numbers (floats of any precision are of one kind).
    """
    own = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    weights = renamed_for(own, read_weights(path))
    if empty := [name for name, value in own.items() if value.is_meta]:
        raise ValueError(f"{path} cannot be loaded into {type(module).__name__}: {some(empty)} is on the meta device")
    # Of tensors under several names, files may hold one.
    held = {own[name].data_ptr() for name in weights.keys() & own.keys() if own[name].numel()}
    missing = [name for name in own if name not in weights and own[name].data_ptr() not in held]
    problems = [f"lacks {some(missing)}"] if missing else []
    if extra := [name for name in weights if name not in own]:
        problems.append(f"has {some(extra)}, unknown to the model")
    shapes = [
        f"{name} of {tuple(value.shape)} for {tuple(own[name].shape)}"
        for name, value in weights.items()
        if name in own and own[name].shape != value.shape
    ]
    if shapes:
        problems.append(f"has {some(shapes)}")
    both = [(name, _kind(value), _kind(own[name])) for name, value in weights.items() if name in own]
    if kinds := [f"{theirs} in {name} for {ours}" for name, theirs, ours in both if theirs != ours]:
        problems.append(f"has {some(kinds)}")
    if problems:
        raise ValueError(f"{path} does not fit {type(module).__name__}: it {'; it '.join(problems)}")
    module.load_state_dict(weights, strict=False)


def renamed_for(own: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with that prefix of a `ComposerModel` added or taken off by which most names are among `own`."""
    renamed = [
        dict(tensors),
        *({f"{prefix}{name}": value for name, value in tensors.items()} for prefix in _PREFIXES),
        *({name.removeprefix(prefix): value for name, value in tensors.items()} for prefix in _PREFIXES),
    ]
    return max(renamed, key=lambda candidate: len(candidate.keys() & own.keys()))


_PREFIXES = ("module.", "model.")


def write_safetensors(path: str | PathLike[str], tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a file whole or not at all."""
    from safetensors.torch import save_file

    with written_whole(Path(path)) as file:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file, metadata)


def some(names: Sequence[str], most: int = 3) -> str:
    """The first of the names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"
