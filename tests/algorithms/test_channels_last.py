"""ChannelsLast: the format of parameters and inputs, in training and in evaluation."""

from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import composer.functional
import pytest
import torch
from composer.algorithms.warnings import NoEffectWarning as ComposersNoEffectWarning
from composer.utils.parallelism import FSDP2Config
from torch import nn
from transformers import BatchFeature

from accelerando.algorithms import ChannelsLast, apply_channels_last, batch_channels_last
from accelerando.algorithms.validation import NoEffectWarning
from tiny import assert_same, classifier, fit, loader, network, plain_loop, trainer, weights


def is_channels_last(tensor):
    return tensor.is_contiguous(memory_format=torch.channels_last)


def test_parameters_like_composers():
    mine, other = network(), network()
    apply_channels_last(mine)
    composer.functional.apply_channels_last(other)
    assert [p.stride() for p in mine.parameters()] == [p.stride() for p in other.parameters()]
    assert is_channels_last(mine[0].weight) and not network()[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_inputs_arrive_so_in_training_and_evaluation():
    seen = {True: set(), False: set()}
    model = classifier()
    model.module.register_forward_pre_hook(
        lambda module, inputs: seen[module.training].add(is_channels_last(inputs[0]))
    )
    fit([ChannelsLast()], model=model, eval_dataloader=loader())
    assert seen == {True: {True}, False: {True}}


def test_same_training_as_without():
    assert_same(weights(fit([ChannelsLast()])), weights(fit()), atol=1e-5)


def test_a_plain_loop_ends_in_the_weights_of_composers():
    module = network()
    apply_channels_last(module)
    module.register_forward_pre_hook(lambda module, inputs: batch_channels_last(inputs))
    for _ in plain_loop(module, 8):
        pass
    assert_same({f"module.{name}": value for name, value in module.state_dict().items()}, weights(fit(ChannelsLast())))


def test_nothing_to_convert_is_said():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(432, 4))
    with pytest.warns(NoEffectWarning, match="ChannelsLast changed nothing"):
        apply_channels_last(flat)
    for kind in (NoEffectWarning, ComposersNoEffectWarning):
        with pytest.warns(kind, match="ChannelsLast changed nothing"):
            trainer([ChannelsLast()], model=classifier(flat))


def test_nested_batches_keep_their_types_and_values():
    image, label = torch.randn(2, 3, 4, 5), torch.arange(2)
    batch = {"a": [image, label], "b": (image, "text", None)}
    changed = batch_channels_last(batch)
    assert is_channels_last(changed["a"][0]) and is_channels_last(changed["b"][0])
    assert torch.equal(changed["a"][0], image) and changed["a"][1] is label and changed["b"][1:] == ("text", None)
    assert not is_channels_last(batch["a"][0])


@pytest.mark.filterwarnings("ignore:FSDP2 Config")
def test_fsdp2_is_refused_with_advice():
    with pytest.raises(ValueError, match=r"cannot run under FSDP2.*Take it out of the algorithms, or train with DDP"):
        trainer([ChannelsLast()], parallelism_config={"fsdp": FSDP2Config()})


@dataclass(frozen=True)
class Frozen:
    image: torch.Tensor
    label: torch.Tensor


@dataclass(slots=True)
class Slots:
    image: torch.Tensor
    nested: list[Frozen]


class Row(NamedTuple):
    image: torch.Tensor
    label: torch.Tensor


class Items(UserDict):
    pass


IMAGE, CLIP, LABEL = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5, 6), torch.arange(2)


@pytest.mark.parametrize(
    "build",
    [
        lambda image: BatchFeature({"image": image, "label": LABEL}),
        lambda image: Items(image=image, label=LABEL),
        lambda image: OrderedDict(image=image, label=LABEL),
        lambda image: defaultdict(list, {"image": image, "label": LABEL}),
        lambda image: Frozen(image, LABEL),
        lambda image: Row(image, LABEL),
        lambda image: SimpleNamespace(image=image, label=LABEL),
    ],
)
@pytest.mark.parametrize("image", [IMAGE, CLIP])
def test_batches_of_every_type_are_converted_and_keep_it(build, image):
    read = lambda batch, name: batch[name] if isinstance(batch, Mapping) else getattr(batch, name)  # noqa: E731
    kind = torch.channels_last if image.ndim == 4 else torch.channels_last_3d
    batch = build(image)
    for found, whole in ((batch_channels_last(batch), batch), (batch_channels_last((batch, LABEL))[0], batch)):
        assert type(found) is type(whole)
        assert read(found, "image").is_contiguous(memory_format=kind) and torch.equal(read(found, "image"), image)
        assert read(found, "label") is LABEL and read(whole, "image") is image


def test_what_holds_no_image_stays_the_object_that_it_is():
    model = network()
    for batch in ([LABEL, "text"], BatchFeature({"label": LABEL}), SimpleNamespace(label=LABEL, model=model), model, 3):
        assert batch_channels_last(batch) is batch
    nested = batch_channels_last({"a": Slots(IMAGE, [Frozen(IMAGE, LABEL)])})["a"]
    assert type(nested) is Slots and is_channels_last(nested.image) and is_channels_last(nested.nested[0].image)


def test_networks_with_convolutions_in_three_dimensions():
    class Clips(nn.Module):
        def __init__(self):
            super().__init__()
            self.time, self.space = nn.Conv3d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3)
            self.register_buffer("grid", torch.randn(1, 3, 4, 5, 6))

        def forward(self, clip):
            return self.space(self.time(clip + self.grid).mean(2))

    plain, model = Clips(), Clips()
    model.load_state_dict(plain.state_dict())
    before = dict(model.named_parameters())
    apply_channels_last(model)
    assert all(before[name] is parameter for name, parameter in model.named_parameters())
    for tensor in (model.time.weight, model.grid):
        assert tensor.is_contiguous(memory_format=torch.channels_last_3d)
    assert is_channels_last(model.space.weight)
    torch.testing.assert_close(model(batch_channels_last(CLIP)), plain(CLIP))
    run = fit(
        [ChannelsLast()],
        model=classifier(
            nn.Sequential(nn.Unflatten(2, (1, 12)), nn.Conv3d(3, 4, (1, 3, 3)), nn.AdaptiveAvgPool3d(1), nn.Flatten())
        ),
        max_duration="1ba",
    )
    assert run.state.model.module[1].weight.is_contiguous(memory_format=torch.channels_last_3d)
