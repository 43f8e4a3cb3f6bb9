"""BlurPool against Composer's, against the formula, and in the hands of compilers and checkpoints."""

import copy
import functools
import io
import itertools
import pickle
import warnings

import composer.algorithms
import composer.functional
import pytest
import torch
import torchvision
from composer.algorithms.blurpool import blurpool_layers as theirs
from composer.algorithms.warnings import NoEffectWarning as ComposersNoEffectWarning
from composer.loggers import InMemoryLogger
from torch import nn
from torch.nn import functional as F

from accelerando import algorithms as ours
from accelerando.algorithms.validation import NoEffectWarning
from tiny import assert_same, classifier, differ, fit, loader, network, plain_loop, trainer, weights

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


def low_pass(input, stride):
    """Along each axis that will be subsampled a value becomes a half of itself and a quarter of each of its neighbours,
    which are zero beyond the border."""
    for axis, step in ((2, stride[0]), (3, stride[1])):
        if step > 1:
            zero, inside = torch.zeros_like(input.narrow(axis, 0, 1)), input.shape[axis] - 1
            before = torch.cat([zero, input.narrow(axis, 0, inside)], axis)
            after = torch.cat([input.narrow(axis, 1, inside), zero], axis)
            input = before / 4 + input / 2 + after / 4
    return input


def plain_blur(input, stride):
    """Zhang's definition: low-pass along what is subsampled, then subsample."""
    return low_pass(input, stride)[:, :, :: stride[0], :: stride[1]]


def plain_blurmax(pool, input):
    """Of `pool`: its maxima at stride 1, as far as its windows reach, blurred and subsampled."""
    both = nn.modules.utils._pair
    stride, room = both(pool.stride), [0, 0]
    if pool.ceil_mode:  # by the sizes that torch finds
        sizes, reach = (
            pool(input).shape[2:],
            [d * (k - 1) for k, d in zip(both(pool.kernel_size), both(pool.dilation), strict=True)],
        )
        room = [
            max((n - 1) * s + 1 - (size + 2 * p - r), 0)
            for n, s, size, p, r in zip(sizes, stride, input.shape[2:], both(pool.padding), reach, strict=True)
        ]
    padded = F.pad(input, (0, room[1], 0, room[0]), value=-torch.inf)
    return plain_blur(F.max_pool2d(padded, pool.kernel_size, 1, pool.padding, pool.dilation), stride)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [(9, 12), (2, 1)])
@pytest.mark.parametrize("stride", [1, 2, (1, 3)])
def test_blur_2d(stride, size, format):
    input = torch.randn(2, 5, *size).to(memory_format=format)
    result = gradients(lambda x: ours.blur_2d(x, stride=stride), input)
    assert_equal(result, gradients(lambda x: theirs.blur_2d(x, stride=stride), input))
    if min(nn.modules.utils._pair(stride)) > 1:  # the function blurs along both axes, whatever the stride
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
        {"kernel_size": (3, 2), "stride": (2, 3), "padding": (1, 0), "dilation": 2},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": 2},
        {"kernel_size": (1, 2), "stride": (1, 2)},
        {"kernel_size": 2, "stride": (4, 3)},
        {"kernel_size": 3, "stride": 2, "ceil_mode": True},
        {"kernel_size": (2, 3), "stride": (3, 1), "padding": 1, "dilation": (2, 1), "ceil_mode": True},
    ],
    ids=str,
)
def test_max_pool(options, format):
    # Rounded, so that windows have several maxima and the gradient must choose the same one.
    input = torch.randn(2, 4, 11, 8).mul(2).round().to(memory_format=format)
    pool, mine, other = nn.MaxPool2d(**options), ours.BlurMaxPool2d(**options), theirs.BlurMaxPool2d(**options)
    result = gradients(mine, input)
    assert_equal(result, gradients(lambda x: plain_blurmax(pool, x), input))
    assert mine(input).shape == pool(input).shape and mine(input).is_contiguous(memory_format=format)
    if not pool.ceil_mode and min(nn.modules.utils._pair(pool.stride)) > 1:
        assert_equal(result, gradients(other, input))
    assert mine.extra_repr() == other.extra_repr()


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("dilation", [1, 2])
def test_pooled_maps_have_the_sizes_of_the_pool(ceil_mode, dilation):
    sizes = torch.arange(1, 41).tolist()
    for kernel, stride in itertools.product((1, 2, 3, 5), (None, 2, 3, 7)):
        for padding in range(kernel // 2 + 1):
            pool = nn.MaxPool2d(
                (kernel, 1), (stride, 1) if stride else None, (padding, 0), (dilation, 1), False, ceil_mode
            )
            for size in sizes[(kernel - 1) * dilation :: 1 if ceil_mode else 5]:
                input = torch.randn(1, 1, size, 1)
                expected, found = pool(input), ours.BlurMaxPool2d.from_maxpool2d(pool)(input)
                assert found.shape == expected.shape, (pool, size)
                assert found.isfinite().all() or not expected.isfinite().all(), (pool, size)


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
    mine = ours.BlurConv2d.from_conv2d(copy.deepcopy(conv), blur_first=blur_first)
    built = ours.BlurConv2d(8, 12, **options, blur_first=blur_first)
    built.load_state_dict(mine.state_dict())
    expected = [*map(torch.clone, gradients(PlainBlurConv(copy.deepcopy(conv), blur_first), input))]
    assert_equal(gradients(mine, input), expected)
    assert_equal(gradients(built, input), expected)
    assert mine(input).shape == conv(input).shape
    if min(conv.stride) > 1:
        other = theirs.BlurConv2d.from_conv2d(conv, blur_first=blur_first)
        assert_equal(gradients(other, input), expected)


class PlainBlurConv:
    """The convolution of blurred inputs, or, as the paper has it, at stride 1 before the blur that subsamples."""

    def __init__(self, conv, blur_first=True):
        self.conv, self.stride, self.blur_first = conv, nn.modules.utils._pair(conv.stride), blur_first
        self.parameters = self.conv.parameters
        if not blur_first:
            self.conv.stride = (1, 1)

    def __call__(self, input):
        if self.blur_first:
            return self.conv(low_pass(input, self.stride))
        return plain_blur(self.conv(input), self.stride)


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


def test_in_a_trainer_both_warnings_tell_that_nothing_changed():
    for kind in (NoEffectWarning, ComposersNoEffectWarning):
        with pytest.warns(kind, match="BlurPool changed nothing"):
            trainer([ours.BlurPool()], model=classifier(nn.Sequential(nn.Flatten(), nn.Linear(432, 4))))


def test_a_plain_loop_ends_in_the_weights_of_composers():
    module = network()
    ours.apply_blurpool(module)
    for _ in plain_loop(module, 8):
        pass
    assert_same({f"module.{name}": value for name, value in module.state_dict().items()}, weights(fit(ours.BlurPool())))


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


class Rectified(nn.Conv2d):
    def forward(self, input):
        return F.relu(super().forward(input))


class Standardized(nn.Conv2d):
    def forward(self, input):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(input, weight, self.bias)


class SameSize(nn.Conv2d):
    """Pads as TensorFlow does, by what its stride asks for."""

    def forward(self, input):
        needed = [
            max((-(-n // s) - 1) * s + k - n, 0)
            for n, s, k in zip(input.shape[2:], self.stride, self.kernel_size, strict=True)
        ]
        rows, columns = needed
        return super().forward(F.pad(input, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)))


class HardCoded(nn.Conv2d):
    def forward(self, input):
        return F.conv2d(input, self.weight, self.bias, 2, self.padding)


def doubled(conv):
    conv.register_forward_hook(lambda module, inputs, output: 2 * output.abs())
    conv.register_forward_pre_hook(lambda module, inputs: (inputs[0].abs(),))
    return conv


def renamed(wrap):
    def build(*arguments, **options):
        torch.manual_seed(0)
        return wrap(nn.Conv2d(*arguments, **options))

    return build


KINDS = {
    "a ReLU at its end": Rectified,
    "standardized weights": Standardized,
    "its own padding": SameSize,
    "hooks": renamed(doubled),
    "weight_norm": renamed(nn.utils.parametrizations.weight_norm),
    "old weight_norm": renamed(nn.utils.weight_norm),
    "spectral_norm": renamed(nn.utils.parametrizations.spectral_norm),
    "old spectral_norm": renamed(nn.utils.spectral_norm),
    "reflected borders": functools.partial(nn.Conv2d, padding_mode="reflect"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_convolutions_with_something_of_their_own(kind):
    input = torch.randn(2, 16, 9, 8)
    for blur_first, stride, kernel in itertools.product((True, False), (2, (2, 1)), (1, 3)):
        convs = []
        for _ in range(2):  # alike; the old weight_norm cannot be copied
            torch.manual_seed(1)
            convs.append(KINDS[kind](16, 8, kernel, stride, padding=kernel // 2, bias=False))
        model, plain = nn.Sequential(convs[0]), PlainBlurConv(convs[1], blur_first)
        saved = copy.deepcopy(model.state_dict())
        ours.apply_blurpool(model, blur_first=blur_first)
        assert isinstance(model[0], ours.BlurConv2d)
        assert_equal([model(input)], [plain(input)])
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        model.load_state_dict(saved)  # strict: of the network without blur, whatever its names
        for name, value in saved.items():
            assert torch.equal(model.state_dict()[name.replace("0.", "0.conv.", 1)], value)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weight_normed_convolutions_load_by_their_old_names_too():
    old, new = KINDS["old weight_norm"](16, 8, 3, 2), nn.Sequential(KINDS["weight_norm"](16, 8, 3, 2))
    ours.apply_blurpool(new)
    nn.init.normal_(old.weight_v)
    new.load_state_dict({f"0.{name}": value for name, value in old.state_dict().items()})
    input = torch.randn(2, 16, 9, 8)
    assert_equal([new(input)], [PlainBlurConv(nn.utils.remove_weight_norm(old))(input)])


def test_what_cannot_be_blurred_is_left_alone_and_said():
    class Own(nn.MaxPool2d):
        def forward(self, input):
            return super().forward(F.relu(input))

    model = nn.Sequential(
        nn.Conv2d(16, 16, 3, 2),
        nn.ModuleDict({"indices": nn.MaxPool2d(2, return_indices=True), "own": Own(2)}),
        nn.LazyConv2d(8, 3, 2),
        HardCoded(16, 8, 3, 2),
        nn.MaxPool2d(3, 1, return_indices=True),
    )
    before = list(model.modules())
    with pytest.warns(UserWarning) as caught:
        ours.apply_blurpool(model, blur_first=False)
    (warning,) = caught
    for part in (
        "1.indices (return_indices=True",
        "1.own (a forward of its own)",
        "2 (a lazy",
        "3 (a forward",
    ):
        assert part in str(warning.message)
    assert "4 (" not in str(warning.message)
    assert set(before) <= set(model.modules()) and isinstance(model[0], ours.BlurConv2d)
    ours.apply_blurpool(first := nn.Sequential(HardCoded(16, 8, 3, 2)))
    input = torch.randn(1, 16, 9, 9)
    assert_equal([first(input)], [first[0].conv(low_pass(input, (2, 2)))])


def test_nothing_is_blurred_that_is_not_subsampled():
    model = torchvision.models.googlenet(num_classes=2, init_weights=False, aux_logits=False)
    ours.apply_blurpool(model)
    assert sum(isinstance(module, ours.BlurMaxPool2d) for module in model.modules()) == 4
    assert sum(isinstance(module, nn.MaxPool2d) for module in model.modules()) == 9
    with pytest.warns(NoEffectWarning):
        ours.apply_blurpool(nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(16, 16, 3, padding=1)))


def test_hooks_of_a_pool_stay_and_can_be_removed():
    pool, seen = nn.MaxPool2d(2), []
    handle = pool.register_forward_hook(lambda module, inputs, output: seen.append(type(module)))
    model = nn.Sequential(pool).eval()
    ours.apply_blurpool(model)
    model(torch.randn(1, 1, 4, 4))
    handle.remove()
    model(torch.randn(1, 1, 4, 4))
    assert seen == [ours.BlurMaxPool2d] and not model[0].training


class Mixed(nn.Module):
    """What GoogLeNet, ResNet and networks for spectra subsample with."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, (1, 2), 1)
        self.pools = nn.Sequential(nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(3, 1, 1), nn.MaxPool2d((1, 2)))
        self.shortcut = nn.Conv2d(16, 16, 1, 2, bias=False)
        self.conv = nn.Conv2d(16, 8, 3, (2, 1), 1)

    def forward(self, input):
        return self.conv(self.shortcut(self.pools(F.relu(self.stem(input)))))


def saved_script(model, input):
    torch.jit.save(torch.jit.script(model), file := io.BytesIO())
    file.seek(0)
    return torch.jit.load(file)


TOOLS = {
    "script": saved_script,
    "trace": lambda model, input: torch.jit.trace(model, input),
    "fx": lambda model, input: torch.fx.symbolic_trace(model),
    "fx and script": lambda model, input: torch.jit.script(torch.fx.symbolic_trace(model)),
    "export": lambda model, input: torch.export.export(model, (input,)).module(),
    "compile": lambda model, input: torch.compile(model, fullgraph=True, backend="aot_eager"),
    "deepcopy": lambda model, input: copy.deepcopy(model),
    "pickle": lambda model, input: pickle.loads(pickle.dumps(model)),
    "vmap": lambda model, input: lambda x: torch.func.vmap(model)(x[:, None])[:, 0],
    "functional_call": lambda model, input: (
        lambda x: torch.func.functional_call(model, dict(model.named_parameters()), (x,))
    ),
}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("blur_first", [True, False])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:The TorchScript type system:UserWarning")
def test_tools_take_blurred_networks(tool, blur_first):
    input = torch.randn(2, 3, 32, 33)
    networks = [Mixed()] if tool in ("vmap", "compile") else [Mixed(), torchvision.models.resnet18(num_classes=3)]
    for model in networks:
        ours.apply_blurpool(model.eval(), min_channels=1, blur_first=blur_first)
        torch.testing.assert_close(TOOLS[tool](model, input)(input), model(input))


def test_hyperparameters_are_logged_in_one_call():
    class Calls(InMemoryLogger):
        def log_hyperparameters(self, hyperparameters):
            calls.append(hyperparameters)

    calls = []
    trainer([ours.BlurPool()], loggers=Calls())
    assert {"blurpool/num_blurpool_layers": 1, "blurpool/num_blurconv_layers": 2} in calls
