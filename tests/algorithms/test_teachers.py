import copy
import io
import json
import pickle

import numpy as np
import pytest
import torch
from composer.models import ComposerClassifier, HuggingFaceModel
from safetensors.torch import save_file
from torch import nn
from transformers import BertForMaskedLM

from accelerando.algorithms import BlurPool, Distillation, load_teacher
from accelerando.algorithms.checkpoints import read_weights
from tiny import CLASSES, assert_same, classifier, differ, fit, loader, masked_lm, network, token_loader, weights


def other_weights(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    return module


def save_pickled(model, folder, state):
    """As transformers did before 5, which writes safetensors alone, and reads this too."""
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One trained classifier in every format, and a masked LM as Hugging Face saves it."""
    folder = tmp_path_factory.mktemp("teachers")
    run = fit(save_folder=str(folder), save_filename="composer.pt", save_latest_filename=None)
    module = run.state.model.module
    torch.save(module.state_dict(), folder / "network.pt")
    torch.save({f"_orig_mod.{name}": value for name, value in module.state_dict().items()}, folder / "compiled.pt")
    torch.save({"model": module.state_dict(), "step": 8, "optimizer": {}}, folder / "loop.pt")
    torch.save({"state_dict": run.state.model.state_dict(), "epoch": 2, "callbacks": {}}, folder / "lightning.ckpt")
    save_file(module.state_dict(), folder / "network.safetensors")
    save_file(run.state.model.state_dict(), folder / "model.safetensors")
    lm = masked_lm().model
    lm.save_pretrained(folder / "bert")
    save_pickled(lm, folder / "pickled", lm.state_dict())
    return folder


FILES = [
    "composer.pt",
    "network.pt",
    "compiled.pt",
    "loop.pt",
    "lightning.ckpt",
    "network.safetensors",
    "model.safetensors",
]


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_weights_of_every_format(name, wrapped, folder):
    module = other_weights(classifier() if wrapped else network())
    expected = torch.load(folder / "network.pt", weights_only=True)
    assert load_teacher(folder / name, module) is module
    assert_same((module.module if wrapped else module).state_dict(), expected)
    assert len(read_weights(folder / name)) == len(expected)


@pytest.mark.parametrize("name", ["bert", "pickled"])
def test_hugging_face_folders(name, folder):
    state = torch.get_rng_state()
    found = load_teacher(folder / name)
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(found, BertForMaskedLM)
    assert_same(found.state_dict(), masked_lm().model.state_dict())
    of_a_name, of_a_module = (
        fit(Distillation(one), model=masked_lm(seed=3), train_dataloader=token_loader())
        for one in (str(folder / name), masked_lm())
    )
    assert_same(weights(of_a_name), weights(of_a_module), atol=1e-6)


def test_a_folder_in_half_precision_gives_a_float32_teacher(tmp_path):
    model = masked_lm().model.half()
    model.save_pretrained(tmp_path)
    expected = {name: value.float() for name, value in model.state_dict().items()}
    assert_same(load_teacher(tmp_path).state_dict(), expected)


def test_tied_weights_may_be_there_once(folder):
    saved = read_weights(folder / "bert" / "model.safetensors")
    model = masked_lm(seed=4).model
    assert saved.keys() < model.state_dict().keys()
    assert_same(load_teacher(folder / "bert" / "model.safetensors", model).state_dict(), masked_lm().model.state_dict())


class Attack:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


@pytest.mark.parametrize("form", ["zip", "pickle", "in a Composer checkpoint"])
def test_what_would_run_is_refused_and_does_not_run(form, folder, tmp_path):
    attack = {"weight": Attack(tmp_path / "it ran")}
    if form == "pickle":
        (tmp_path / "bad.pt").write_bytes(pickle.dumps(attack))
    else:
        content = torch.load(folder / "composer.pt", weights_only=False) | attack if form != "zip" else attack
        torch.save(content, tmp_path / "bad.pt")
    with pytest.raises(
        ValueError, match=r"bad.pt is (refused: to load it would run \w*\.?open|no readable checkpoint)"
    ):
        load_teacher(tmp_path / "bad.pt", network())
    assert not (tmp_path / "it ran").exists()


def test_hugging_face_folders_do_not_run_code(folder, tmp_path):
    save_pickled(masked_lm().model, tmp_path, {"weight": Attack(tmp_path / "it ran")})
    with pytest.raises(ValueError, match="cannot be loaded as a teacher"):
        load_teacher(tmp_path)
    assert not (tmp_path / "it ran").exists()


def test_hugging_face_folders_do_not_run_their_own_modules(tmp_path, monkeypatch):
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForMaskedLM": "evil.Model"}
    content = {"model_type": "evil", "architectures": ["BertForMaskedLM"], "auto_map": auto_map}
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'it ran')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(ValueError, match="cannot be loaded as a teacher"):
        load_teacher(tmp_path)
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("name", ["composer.pt", "network.pt", "network.safetensors"])
def test_damaged_files_are_one_kind_of_error(name, folder, tmp_path):
    whole, draw = (folder / name).read_bytes(), np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(whole)
        for place in draw.integers(len(whole), size=int(draw.integers(1, 40))):
            damaged[place] = int(draw.integers(256))
        (tmp_path / name).write_bytes(
            damaged[: int(draw.integers(len(whole) // 2, len(whole)))] if draw.random() < 0.3 else damaged
        )
        try:
            load_teacher(tmp_path / name, network())  # may be all right, but for a weight
        except ValueError as error:
            assert "\n" not in str(error)


def wrong_files(folder, tmp_path):
    torch.save(network()[:-1].state_dict(), tmp_path / "short.pt")
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "foreign.pt")
    torch.save(nn.Sequential(*network()[:-1], nn.Linear(32, 9)).state_dict(), tmp_path / "classes.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"state": {"model": {"a": 1}}}, tmp_path / "no_tensors.pt")
    torch.save({}, tmp_path / "empty.pt")
    whole = (folder / "composer.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "half.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:300])
    (tmp_path / "text.pt").write_text("no checkpoint")
    (tmp_path / "nothing.pt").touch()
    (tmp_path / "shards").mkdir()
    return {
        "short.pt": "does not fit Sequential: it lacks 9.weight, 9.bias",
        "foreign.pt": "it lacks 0.weight, 0.bias, 3.weight and 5 more; it has weight, bias, unknown to the model",
        "classes.pt": r"it has 9.weight of \(9, 32\) for \(4, 32\), 9.bias",
        "list.pt": "holds a list: expected weights by name",
        "no_tensors.pt": "holds no weights",
        "empty.pt": "holds no weights",
        "half.pt": "half.pt is no readable checkpoint",
        "half.safetensors": "half.safetensors is no readable safetensors file",
        "text.pt": "text.pt is no readable checkpoint",
        "nothing.pt": "nothing.pt is no readable checkpoint",
        "shards": "is no file: .* in shards",
        "absent.pt": "absent.pt is no file: expected a Composer checkpoint",
    }


def test_wrong_files_are_one_line_and_leave_the_module_alone(folder, tmp_path):
    for name, message in wrong_files(folder, tmp_path).items():
        module = network()
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            load_teacher(tmp_path / name, module)
        assert "\n" not in str(caught.value), name
        assert_same(module.state_dict(), network().state_dict())


def test_folders_that_do_not_tell_their_model(folder, tmp_path):
    with pytest.raises(ValueError, match=r"does not tell its model: give the module too, load_teacher\(path, module\)"):
        load_teacher(folder / "composer.pt")
    with pytest.raises(ValueError, match="does not tell its model"):
        load_teacher(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["NoSuchModel"]}')
    with pytest.raises(ValueError, match="names NoSuchModel, which transformers does not have"):
        load_teacher(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be loaded as a teacher"):
        load_teacher(tmp_path)
    masked_lm().model.save_pretrained(tmp_path)
    save_file({"bert.embeddings.word_embeddings.weight": torch.zeros(40, 16)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="lacks weights of BertForMaskedLM, or has them in another shape: "):
        load_teacher(tmp_path)


def test_a_blurred_teacher_is_loaded_into_a_blurred_network(tmp_path):
    run = fit(BlurPool(), save_folder=str(tmp_path), save_filename="blurred.pt")
    with pytest.raises(ValueError, match="does not fit Sequential"):
        load_teacher(tmp_path / "blurred.pt", network())
    from accelerando.algorithms import apply_blurpool

    module = other_weights(network())
    apply_blurpool(module)
    load_teacher(tmp_path / "blurred.pt", module)
    x = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(module.eval()(x), run.state.model.module.eval()(x))


def test_a_composer_checkpoint_teaches(folder):
    student = ComposerClassifier(other_weights(network()), num_classes=CLASSES)
    one = load_teacher(folder / "composer.pt", classifier())
    run = fit(Distillation(copy.deepcopy(one)), model=student)
    assert differ(weights(run), weights(fit(model=ComposerClassifier(other_weights(network()), num_classes=CLASSES))))


def test_what_resembles_a_hugging_face_model_is_none():
    class Resembles(nn.Module):
        """As a mixin of a hub gives it to any network."""

        def __init__(self):
            super().__init__()
            self.network = network(seed=5)

        @classmethod
        def from_pretrained(cls, path):
            raise NotImplementedError

        def forward(self, images):
            return self.network(images)

    class Mapped(ComposerClassifier):
        def forward(self, batch):
            return self.module(batch["x"])

        def loss(self, outputs, batch):
            return nn.functional.cross_entropy(outputs, batch["y"])

        def get_metrics(self, is_train):
            return {}

    batches = [dict(zip("xy", batch, strict=True)) for batch in loader()]
    keys = {"input_key": "x", "target_key": "y"}
    options = {"train_dataloader": batches, "device_train_microbatch_size": 8}
    run = fit(Distillation(Resembles(), **keys), model=Mapped(network(), num_classes=CLASSES), **options)
    assert_same(weights(run), weights(fit(Distillation(network(seed=5)))), atol=1e-6)


def test_a_composer_model_with_a_forward_of_its_own_is_asked_by_it():
    class Sharper(HuggingFaceModel):
        def forward(self, batch):
            outputs = super().forward(batch)
            outputs["logits"] = 3 * outputs["logits"]
            return outputs

    given = masked_lm(seed=5)
    given.__class__ = Sharper
    plain = masked_lm(seed=5)
    decoder = plain.model.get_output_embeddings()
    decoder.register_forward_hook(lambda module, inputs, output: 3 * output)
    runs = [fit(Distillation(one), model=masked_lm(), train_dataloader=token_loader()) for one in (given, plain)]
    assert_same(*map(weights, runs), atol=1e-5)
