"""The parts of networks: each tensor belongs to one, batch norm to the layer before, what is shared to the first."""

import torch
from torch import nn
from torchvision.models import resnet18

from accelerando.algorithms import blocks_of, layers_of, linear_path


def test_every_tensor_of_a_resnet_belongs_to_one_part():
    model = resnet18(num_classes=3)
    layers, blocks = layers_of(model), blocks_of(model)
    for parts in (layers, blocks):
        assert sorted(name for tensors in parts.values() for name in tensors) == sorted(model.state_dict())
    assert [*blocks] == ["conv1", "layer1", "layer2", "layer3", "layer4", "fc"]
    assert len(layers) == 1 + 16 + 3 + 1
    batch_norm = {f"layer2.0.bn1.{name}" for name in model.layer2[0].bn1.state_dict()}
    assert {*layers["layer2.0.conv1"]} == {"layer2.0.conv1.weight"} | batch_norm
    assert all(name.startswith("layer3.") for name in blocks["layer3"])


def test_a_wrapper_does_not_make_all_one_block():
    model = nn.Module()
    model.module = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    assert {name: len(tensors) for name, tensors in blocks_of(model).items()} == {"module.1": 4, "module.3": 2}
    assert blocks_of(nn.Linear(4, 3)) == {"": ["weight", "bias"]}


def test_what_layers_share_moves_once_under_all_its_names():
    model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "body": nn.Linear(4, 4), "head": nn.Linear(4, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    layers = layers_of(model)
    assert layers == {"embed": ["embed.weight", "head.weight"], "body": ["body.weight", "body.bias"]}
    start = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    moved = linear_path(start, model.state_dict(), include=layers["embed"])(0.0)
    assert not moved["head.weight"].any() and torch.equal(moved["body.weight"], model["body"].weight)
