"""BlurPool against Composer's, against the formula, and in the hands of compilers and checkpoints."""

import copy
import warnings

import composer.algorithms
import composer.functional
import pytest
import torch
import torchvision
from composer.algorithms.blurpool import blurpool_layers as theirs
from composer.algorithms.warnings import NoEffectWarning
from composer.loggers import InMemoryLogger
from torch import nn
from torch.nn import functional as F

from accelerando import algorithms as ours
from tiny import assert_same, classifier, differ, fit, loader, network, trainer, weights

FORMATS = [torch.contiguous_format, torch.channels_last]


def gradients(layer, input):
    """Output, and gradients of the input and of the parameters, for a fixed gradient of the output."""
    input = input.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    output = layer(input)
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(2)))
    return [output, input.grad, *(parameter.grad for parameter in getattr(layer, "parameters", list)())]


def assert_equal(a, b, tolerance=1e-6):
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        scale = max(1.0, other.abs().max().item())
        torch.testing.assert_close(one, other, atol=tolerance * scale, rtol=0)


def plain_blur(input, stride=(1, 1)):
    """The formula: every output is the weighted sum of its 3 x 3 neighbours, zero beyond the border."""
    height, width = input.shape[2:]
    padded = F.pad(input, (1, 1, 1, 1))
    taps = [(1, 2, 1), (2, 4, 2), (1, 2, 1)]
    rows = [[taps[i][j] / 16 * padded[:, :, i : i + height, j : j + width] for j in range(3)] for i in range(3)]
    return sum(sum(row) for row in rows)[:, :, :: stride[0], :: stride[1]]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [(9, 12), (2, 1)])
@pytest.mark.parametrize("stride", [1, 2, (1, 3)])
def test_blur_2d(stride, size, format):
    input = torch.randn(2, 5, *size).to(memory_format=format)
    result = gradients(lambda x: ours.blur_2d(x, stride=stride), input)
    assert_equal(result, gradients(lambda x: theirs.blur_2d(x, stride=stride), input))
    assert_equal(result, gradients(lambda x: plain_blur(x, nn.modules.utils._pair(stride)), input))


def test_blur_2d_takes_filters():
    input = torch.randn(2, 3, 7, 7)
    own = torch.rand(3, 1, 5, 3)
    assert_equal([ours.blur_2d(input, 3, 2, own)], [theirs.blur_2d(input, 3, 2, own)])
    assert_equal([ours.blur_2d(input, filter=own[0, 0])], [theirs.blur_2d(input, filter=own[:1])])
    with pytest.raises(IndexError, match="odd height and width, got 2 x 3"):
        ours.blur_2d(input, filter=torch.ones(2, 3))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 2},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    ],
)
def test_max_pool(options, format):
    # Rounded, so that windows have several maxima and the gradient must choose the same one.
    input = torch.randn(2, 4, 11, 8).mul(2).round().to(memory_format=format)
    mine, other = ours.BlurMaxPool2d(**options), theirs.BlurMaxPool2d(**options)
    assert_equal(gradients(mine, input), gradients(other, input))
    assert mine(input).stride() == other(input).stride()
    assert mine.extra_repr() == other.extra_repr()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("blur_first", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": 1, "stride": 2, "bias": False},
        {"kernel_size": 1, "stride": 2, "padding": 1, "bias": False},
        {"kernel_size": 1, "stride": (3, 2), "groups": 4, "bias": False},
        {"kernel_size": (1, 3), "stride": 2, "padding": (0, 1)},
        {"kernel_size": (3, 1), "stride": (1, 2)},
        {"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2, "groups": 2},
        {"kernel_size": 3, "stride": 2, "padding": "valid"},
        {"kernel_size": 1, "stride": 2, "padding": "valid", "bias": False},
    ],
    ids=str,
)
def test_conv(options, blur_first, format):
    conv = nn.Conv2d(8, 12, **options).to(memory_format=format)
    input = torch.randn(2, 8, 11, 8).to(memory_format=format)
    other = theirs.BlurConv2d.from_conv2d(conv, blur_first=blur_first)
    mine = ours.BlurConv2d.from_conv2d(copy.deepcopy(conv), blur_first=blur_first)
    built = ours.BlurConv2d(8, 12, **options, blur_first=blur_first)
    built.load_state_dict(mine.state_dict())
    expected = gradients(other, input)
    assert_equal(gradients(mine, input), expected)
    assert_equal(gradients(built, input), expected)


def test_layer_blurs_by_its_stride():
    input = torch.randn(2, 3, 9, 9)
    assert_equal(gradients(ours.BlurPool2d(), input), gradients(theirs.BlurPool2d(channels=3), input))


def test_resnet_like_composers():
    torch.manual_seed(0)
    plain = torchvision.models.resnet18(num_classes=10)
    mine, other = copy.deepcopy(plain), copy.deepcopy(plain)
    ours.apply_blurpool(mine)
    composer.functional.apply_blurpool(other)
    input = torch.randn(2, 3, 65, 64, dtype=torch.float64)  # float64, as batch norm magnifies rounding
    for model in (mine, other):
        model.double()(input).square().mean().backward()
    for one, two in zip(mine.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, atol=1e-10, rtol=1e-8)
    assert sum(isinstance(layer, ours.BlurConv2d) for layer in mine.modules()) == 6
    assert sum(isinstance(layer, ours.BlurMaxPool2d) for layer in mine.modules()) == 1


def test_parameters_stay_the_same_objects():
    model = network().to(torch.float64)
    model[3].weight.requires_grad = False
    before = dict(model.named_parameters())
    ours.apply_blurpool(model)
    assert {id(p) for p in model.parameters()} == {id(p) for p in before.values()}
    assert not model[3].conv.weight.requires_grad
    assert model(torch.randn(1, 3, 12, 12, dtype=torch.float64)).dtype == torch.float64


def test_modules_used_twice_stay_shared_and_padding_modes_stay():
    conv = nn.Conv2d(16, 16, 3, stride=2, padding=1, padding_mode="circular")
    model = nn.Sequential(conv, conv)
    ours.apply_blurpool(model)
    assert model[0] is model[1]
    assert model[0].conv.padding_mode == "circular"


def test_no_effect_warns_and_twice_is_once():
    with pytest.warns(NoEffectWarning):
        ours.apply_blurpool(nn.Sequential(nn.Linear(2, 2)))
    model = network()
    ours.apply_blurpool(model)
    before = repr(model)
    ours.apply_blurpool(model)
    assert repr(model) == before


def test_filter_is_in_no_state_dict_and_checkpoints_of_others_load():
    plain, mine, other = network(), network(), network()
    ours.apply_blurpool(mine)
    composer.functional.apply_blurpool(other)
    assert not any("filter" in name or "filt2d" in name for name in mine.state_dict())
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    mine.load_state_dict(other.state_dict())  # strict
    assert_same(mine.state_dict(), {k: v for k, v in other.state_dict().items() if "filt" not in k})
    pretrained = copy.deepcopy(plain)
    mine.load_state_dict(plain.state_dict())  # strict
    assert torch.equal(mine[3].conv.weight, plain[3].weight)
    assert_same(plain.state_dict(), pretrained.state_dict())


def test_built_on_the_meta_device():
    with torch.device("meta"):
        model = network()
        ours.apply_blurpool(model)
    model.to_empty(device="cpu")
    for layer in model.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    assert torch.equal(model[3].blur_filter, ours.blur_layers.blur_filter())
    assert model(torch.randn(1, 3, 12, 12)).isfinite().all()


def test_resnet50_compiles_whole_and_exports():
    model = torchvision.models.resnet50(num_classes=10).eval()
    ours.apply_blurpool(model)
    input = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler's own
        expected = model(input)
        exported = torch.export.export(model, (input,)).module()(input)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(input)
    torch.testing.assert_close(exported, expected)
    torch.testing.assert_close(compiled, expected)


def test_logs_the_hyperparameters_that_composers_does():
    def logged(algorithm):
        logger = InMemoryLogger()
        trainer([algorithm], loggers=logger)
        return {name: value for name, value in logger.hyperparameters.items() if name.startswith("blurpool/")}

    mine = logged(ours.BlurPool())
    assert mine == logged(composer.algorithms.BlurPool())
    assert mine == {"blurpool/num_blurpool_layers": 1, "blurpool/num_blurconv_layers": 2}


class TestCheckpoints:
    """Composer looks saved class names up among its own: neither of us may be taken for the other in silence."""

    @pytest.fixture(autouse=True)
    def run(self, tmp_path):
        self.folder = tmp_path
        self.options = {"train_dataloader": loader(shuffle=True)}

    def save(self, algorithm):
        return fit([algorithm], save_folder=str(self.folder), save_interval="3ba", **self.options)

    def resume(self, algorithms, **options):
        return trainer(algorithms, load_path=str(self.folder / "ep0-ba3-rank0.pt"), **self.options | options)

    def test_ours_with_ours(self):
        whole = self.save(ours.BlurPool())
        resumed = self.resume([ours.BlurPool()])
        assert [type(algorithm) for algorithm in resumed.state.algorithms] == [ours.BlurPool]
        resumed.fit()
        assert_same(weights(resumed), weights(whole))
        assert repr(resumed.state.model) == repr(whole.state.model)

    @pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
    @pytest.mark.parametrize("replace_convs", [True, False])
    def test_ours_without_naming_it(self, replace_convs, optimizer):
        self.save(ours.BlurPool(replace_convs=replace_convs))
        model = classifier()
        with pytest.raises(ValueError, match=r"required to successfully load it.*accelerando.algorithms.BlurPool"):
            self.resume([], model=model, optimizers=optimizer(model.parameters()))

    def test_ours_with_other_arguments(self):
        self.save(ours.BlurPool())
        with (
            pytest.warns(UserWarning, match="Potential parameter discrepancies"),
            pytest.raises(ValueError, match=r"min_channels=16.*but this run has.*min_channels=64"),
        ):
            self.resume([ours.BlurPool(min_channels=64)])

    @pytest.mark.filterwarnings("ignore:.*required_on_load")
    def test_ours_with_composers(self):
        whole = self.save(ours.BlurPool())
        resumed = self.resume([composer.algorithms.BlurPool()])
        resumed.fit()
        theirs = {name: value for name, value in weights(resumed).items() if "filt" not in name}
        assert_same(theirs, weights(whole), atol=1e-5)

    def test_composers_with_ours(self):
        whole = self.save(composer.algorithms.BlurPool())
        resumed = self.resume([ours.BlurPool()])
        assert [type(algorithm) for algorithm in resumed.state.algorithms] == [ours.BlurPool]
        resumed.fit()
        theirs = {name: value for name, value in weights(whole).items() if "filt" not in name}
        assert_same(weights(resumed), theirs, atol=1e-5)

    def test_plain_checkpoint_as_a_start(self):
        plain = self.save_plain()
        started = self.resume([ours.BlurPool()], load_weights_only=True, load_strict_model_weights=True)
        assert torch.equal(started.state.model.module[3].conv.weight, plain)

    def save_plain(self):
        run = fit([], save_folder=str(self.folder), save_interval="3ba", max_duration="3ba", **self.options)
        return run.state.model.module[3].weight

    def test_training_is_that_of_composer(self):
        mine = weights(self.save(ours.BlurPool()))
        other = weights(fit([composer.algorithms.BlurPool()], **self.options))
        assert_same(mine, {name: value for name, value in other.items() if "filt" not in name}, atol=1e-5)
        assert differ(mine, weights(fit([], **self.options)))
