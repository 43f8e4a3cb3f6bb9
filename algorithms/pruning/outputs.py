"""Which layers produce a network's outputs: those that `classifier=False` leaves out.

They are the last ones with weights on the way to the outputs, found in the graph of the forward, or, for a network of
Hugging Face's, outside of its base model. Where that does not tell, there is an error, and no guess.
"""

import operator
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..checkpoints import some
from ..generators import seeded
from ..untouched import kept

_PRODUCTS = {F.linear, F.bilinear, F.conv1d, F.conv2d, F.conv3d, torch.matmul, operator.matmul, torch.mm, torch.bmm}
_PRODUCTS |= {torch.addmm, torch.baddbmm, torch.einsum, torch.mv, F.conv_transpose1d, F.conv_transpose2d}
_PRODUCTS |= {"matmul", "mm", "bmm", "mv"}
_SHAPES = {"size", "dim", "numel", "shape", "device", "dtype"}


def output_weights(model: nn.Module, weights: Mapping[str, Tensor], is_layer: Callable[[nn.Module], bool]) -> set[int]:
    """The ids of the parameters of the layers that produce the outputs, auxiliary ones of training included.

    `weights` are those that may be pruned, by name; `is_layer` tells linear layers and convolutions. Raises ValueError
    where the forward cannot be traced, or where what produces the outputs is no such layer, or feeds another one.
    """
    pretrained = getattr(sys.modules.get("transformers.modeling_utils"), "PreTrainedModel", ())
    try:
        inner = [module for module in model.modules() if isinstance(module, pretrained)][:1]
        if inner and {id(p) for p in inner[0].parameters()} >= {id(weight) for weight in weights.values()}:
            return _of_hugging_face(inner[0], weights)
        return _of_graph(model, lambda module: is_layer(module) or isinstance(module, pretrained), is_layer)
    except ValueError as error:
        name = type(model).__name__
        hint = "leave classifier=True and name the layer in exclude=[...]"
        raise ValueError(f"classifier=False: which layer produces the outputs of {name}? {error}; {hint}") from error


def _of_hugging_face(model: Any, weights: Mapping[str, Tensor]) -> set[int]:
    kind = type(model)
    if kind.__module__.partition(".")[0] != "transformers":
        raise ValueError(f"{kind.__name__} is no class of transformers, whose outputs would be known")
    base = set() if model.base_model is model else {id(parameter) for parameter in model.base_model.parameters()}
    outside = {name: weight for name, weight in weights.items() if base and id(weight) not in base}
    if (head := model.get_output_embeddings()) is not None:
        own = {id(parameter): parameter for parameter in head.parameters()}
        width = max(own.values(), key=Tensor.dim).shape[-1]
        # A layer that feeds the head has as many outputs as the head has inputs.
        if others := [name for name, weight in outside.items() if id(weight) not in own and len(weight) != width]:
            raise ValueError(f"Beside its head for words it has {some(others)}")
        return {*own}
    labels = {n: weight for n, weight in outside.items() if len(weight) == model.config.num_labels}
    found = outside if len(outside) == 1 else labels
    if len(found) != 1:
        raise ValueError(f"outside of its base model it has {some([*outside]) if outside else 'no layer'}")
    return {id(weight) for weight in found.values()}


def _of_graph(
    model: nn.Module, is_leaf: Callable[[nn.Module], bool], is_layer: Callable[[nn.Module], bool]
) -> set[int]:
    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return is_leaf(m) or super().is_leaf_module(m, module_qualified_name)

    try:
        with kept(model), seeded(0), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for module in model.modules():
                module.training = True  # auxiliary classifiers are there in training only
            graph = Tracer().trace(model)
    except Exception as error:
        raise ValueError(f"Its forward cannot be traced ({str(error).partition(chr(10))[0]})") from error
    parameters = dict(model.named_parameters(remove_duplicate=False))
    producers: dict[fx.Node, list[Tensor]] = {}
    output = next(node for node in graph.nodes if node.op == "output")
    for node in _before(output, lambda node: node in producers):
        if weights := _weights_at(node, model, parameters):
            producers[node] = weights
            if node.op == "call_module" and not is_layer(model.get_submodule(str(node.target))):
                raise ValueError(f"They come from {node.target}, which is no linear layer or convolution")
    if not producers:
        raise ValueError("None on the way to them has weights")
    for node in producers:
        if feeds := [other for other in _before(node, lambda node: False) if other in producers and other is not node]:
            raise ValueError(f"They come from {node.target} as well as from {feeds[0].target}, which feeds it")
    return {id(weight) for weights in producers.values() for weight in weights}


def _before(last: fx.Node, stop: Callable[[fx.Node], bool]) -> Iterator[fx.Node]:
    """The nodes whose values come to `last`, itself first; what only gives its shape does not count."""
    todo, seen = [last], {last}
    while todo:
        node = todo.pop()
        yield node
        if not stop(node):
            new = [x for x in node.all_input_nodes if x not in seen and not _is_shape(x)]
            seen.update(new)
            todo += new


def _is_shape(node: fx.Node) -> bool:
    attribute = node.args[1] if node.op == "call_function" and node.target is getattr else node.target
    return attribute in _SHAPES and (node.op == "call_method" or node.target is getattr)


def _weights_at(node: fx.Node, model: nn.Module, parameters: Mapping[str, Tensor]) -> list[Tensor]:
    """The parameters of two or more dimensions that it multiplies with."""
    if node.op == "call_module":
        found = list(model.get_submodule(str(node.target)).parameters())
    elif node.op in ("call_function", "call_method") and node.target in _PRODUCTS:
        sources = ([*_before(factor, lambda node: False)] for factor in node.all_input_nodes)
        alone = (nodes for nodes in sources if not any(x.op in ("placeholder", "call_module") for x in nodes))
        names = (str(x.target) for nodes in alone for x in nodes if x.op == "get_attr")
        found = [parameters[name] for name in names if name in parameters]
    else:
        found = []
    return [weight for weight in found if weight.dim() > 1]
