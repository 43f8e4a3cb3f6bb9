"""Which of a model's weights can be pruned."""

import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from ..checkpoints import some
from .outputs import output_weights

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class MostlyDenseWarning(UserWarning):
    """What can be pruned is less than half of the network."""


def prunable_weights(
    model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = (), classifier: bool = True
) -> dict[str, nn.Parameter]:
    """The weights of convolutions, linear layers and attention's projections by name, in the order of the modules.

    No norms, biases or embeddings, nor a layer that shares its weight with an embedding; a weight that several layers
    share counts once. `include` and `exclude` are patterns such as ``*.attention.*`` (`*` any text, `?` any letter) of
    the parameters' names. A pattern of `include` that fits none of these weights reaches every other parameter that it
    fits, if it has two dimensions or more and its name does not end in bias: ``*weight_hh*`` of an LSTM, raw weights of
    experts, an embedding. Without `classifier` the layers that produce the outputs are left out, wherever the model
    holds them (see `output_weights`).

    Raises ValueError for a pattern that fits nothing, for a weight that is no parameter but computed from others, as by
    weight normalization, where it cannot tell what produces the outputs, and where nothing is left.
    """
    found = {name: weight for name, weight in _by_kind(model).values()}
    default = [*found]
    for pattern in include if tuple(include) != ("*",) else ():
        if not any(fnmatchcase(name, pattern) for name in default):
            found |= {
                name: p for name, p in model.named_parameters() if fnmatchcase(name, pattern) and _is_matrix(name, p)
            }
    if not found:
        raise ValueError(
            f"{type(model).__name__} has nothing to prune; expected convolutions or linear layers, or others in include"
        )
    if not classifier:
        last = output_weights(model, found, _is_layer)
        found = {name: weight for name, weight in found.items() if id(weight) not in last}
        if not found:
            raise ValueError(f"classifier=False leaves nothing to prune of {type(model).__name__}")
    names = [*found]
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"no prunable weight is called {pattern!r}; there are {some(names)}")
    weights = {
        name: weight
        for name, weight in found.items()
        if any(fnmatchcase(name, pattern) for pattern in include)
        and not any(fnmatchcase(name, pattern) for pattern in exclude)
    }
    if not weights:
        raise ValueError(f"exclude leaves nothing to prune of {some(names)}")
    if computed := [name for name, weight in weights.items() if not isinstance(weight, nn.Parameter)]:
        raise ValueError(
            f"{some(computed)} cannot be pruned, being computed from other parameters; exclude such weights"
        )
    return weights


def _by_kind(model: nn.Module) -> dict[int, tuple[str, Any]]:
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    found: dict[int, tuple[str, Any]] = {}
    for prefix, module in model.named_modules():
        for name in _weight_names(module):
            weight, full = getattr(module, name), f"{prefix}.{name}".lstrip(".")
            if isinstance(weight, Tensor) and id(weight) not in embedded:
                found.setdefault(id(weight), (full, weight))
    return found


def _weight_names(module: nn.Module) -> Sequence[str]:
    if isinstance(module, nn.MultiheadAttention):
        return "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"
    return ("weight",) if _is_layer(module) else ()


def _is_layer(module: nn.Module) -> bool:
    # GPT-2's linear layer. A model that holds one has imported its module.
    linear = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", nn.Linear)
    return isinstance(module, (nn.Linear, linear, *_CONVOLUTIONS))


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.dim() > 1 and not name.endswith("bias")


def left_dense(model: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """The parameters that are not among these weights, largest first, where the weights are less than half of all."""
    held = {id(weight) for weight in weights.values()}
    others = {name: p.numel() for name, p in model.named_parameters() if id(p) not in held}
    few = sum(weight.numel() for weight in weights.values()) < sum(others.values())
    return sorted(others, key=lambda name: -others[name]) if few else []
