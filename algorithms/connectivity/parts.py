"""The layers and blocks of a network, by the names of their tensors, along which a path may move one part alone.

The layer-wise paths of Vlaar and Frankle, "What Can Linear Interpolation of Neural Network Loss Landscapes Tell Us?"
(arXiv 2106.16004), move one layer, or one block, while all others keep their final values:

    for name, tensors in layers_of(model).items():
        path = linear_path(start, end, include=tensors)
"""

from itertools import chain

from torch import nn


def layers_of(model: nn.Module) -> dict[str, list[str]]:
    """Returns for each layer, by its module's name, the names of its tensors in the model's `state_dict`.

    A layer is a module with a weight of two dimensions or more. What has none, such as batch norm or a scale, belongs
    to the layer before it, or to the first. A weight that several modules share belongs to the first of them, under
    all of its names.
    """
    own = model.state_dict()
    found: dict[str, list[str]] = {}
    waiting: list[str] = []  # for the first layer
    owner: dict[int, str] = {}  # the layer of each tensor
    for prefix, module in model.named_modules(remove_duplicate=False):
        held = chain(module.named_parameters("", False, False), module.named_buffers("", False, False))
        tensors = {name: tensor for short, tensor in held if (name := f"{prefix}.{short}".lstrip(".")) in own}
        for name, tensor in tensors.items():
            if (layer := owner.get(id(tensor))) is not None:
                found[layer].append(name)
        new = {name: tensor for name, tensor in tensors.items() if id(tensor) not in owner}
        if not new:
            continue
        if any(tensor.dim() > 1 for tensor in new.values()):
            found[prefix], waiting = [*waiting, *new], []
        elif found:
            found[[*found][-1]] += new
        else:
            waiting += new
            continue
        owner |= {id(tensor): [*found][-1] for tensor in new.values()}
    return found


def blocks_of(model: nn.Module) -> dict[str, list[str]]:
    """Returns for each block the names of its tensors: the layers whose modules' names begin alike.

    What all names begin with, such as that of a wrapper, does not count. So the blocks of torchvision's ResNets are
    conv1, layer1 to layer4 and fc.
    """
    layers = layers_of(model)
    places = [name.split(".") for name in layers]
    shared = 0
    while all(len(place) > shared + 1 for place in places) and len({place[shared] for place in places}) == 1:
        shared += 1
    found: dict[str, list[str]] = {}
    for place, tensors in zip(places, layers.values(), strict=True):
        found.setdefault(".".join(place[: shared + 1]), []).extend(tensors)
    return found
