"""ChannelsLast: the format of parameters and inputs, in training and in evaluation."""

import composer.functional
import pytest
import torch
from composer.utils.parallelism import FSDP2Config

from accelerando.algorithms import ChannelsLast, apply_channels_last
from accelerando.algorithms.channels_last import batch_channels_last
from tiny import assert_same, classifier, fit, loader, network, trainer, weights


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
