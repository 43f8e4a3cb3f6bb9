"""Teachers by what a YAML calls them: they answer as when they were evaluated, or one line says what is wrong."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from composer import Callback
from omegaconf import OmegaConf
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM

from accelerando.recipes.config.errors import ConfigError
from accelerando.recipes.config.recipe import check
from accelerando.recipes.data.images import Digits
from accelerando.recipes.run.algorithms import build_algorithms
from accelerando.recipes.run.teachers import build_teachers
from accelerando.recipes.train import train

ENTROPY = "metrics/eval/CrossEntropy"
YAML = """
run_name: teacher
max_duration: 6ba
train_subset_num_batches: 6
global_batch_size: 64
eval_batch_size: 360
model: {resnet_cifar: {depth: 8, width: 4, in_channels: 1}}
train_data: {digits: {}}
eval_data: {digits: {split: test}}
optimizer: {decoupled_sgdw: {lr: 0.1, momentum: 0.9}}
device: cpu
"""
BLUR = {"blur_pool": {"min_channels": 1, "blur_first": False}}


class Start(Callback):
    """Keeps the weights that a run starts with."""

    weights: dict[str, torch.Tensor]

    def fit_start(self, state, logger):
        Start.weights = {name: value.clone() for name, value in state.model.state_dict().items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of finished runs, and what each was evaluated to, by name."""
    folder = tmp_path_factory.mktemp("runs")
    variants = {
        "plain": {},
        "blur": BLUR,
        "average": {"ema": {"half_life": "2ba"}, **BLUR},
        "excited": {"squeeze_excite": {"latent_channels": 4, "min_channels": 4}},
    }
    return folder, {
        name: train(config(folder, run_name=name, algorithms=algorithms)).metrics[ENTROPY]
        for name, algorithms in variants.items()
    }


def config(folder, teachers=None, **changes):
    distilled = {"algorithms": {"distillation": {"teachers": teachers}}} if teachers is not None else {}
    base = OmegaConf.create({**OmegaConf.create(YAML), "folder": str(folder), **distilled})
    return OmegaConf.merge(base, changes)


def build(folder, *teachers, **changes):
    recipe = check(config(folder, list(teachers), **changes))
    (part,) = recipe.algorithms
    return build_teachers(recipe, part.arguments["teachers"])


def entropy(teacher):
    (batch,) = Digits("test").build(360, False, 0, "cpu").dataloader
    with torch.no_grad():
        return F.cross_entropy(teacher.eval()(batch), batch[1]).item()


@pytest.mark.parametrize("name", ["plain", "blur", "average", "excited"])
def test_the_teacher_of_a_run_answers_as_the_run_was_evaluated(runs, name):
    folder, evaluated = runs
    assert len(set(evaluated.values())) == 4
    (teacher,) = build(folder, name)
    assert entropy(teacher) == pytest.approx(evaluated[name], rel=1e-5)
    (teacher,) = build("elsewhere", str(folder / name))
    assert entropy(teacher) == pytest.approx(evaluated[name], rel=1e-5)


def test_files_with_their_models(runs, tmp_path):
    folder, evaluated = runs
    checkpoint = {"checkpoint": str(folder / "plain" / "checkpoints" / "latest-rank0.pt")}
    blurred = {"checkpoint": str(folder / "blur" / "checkpoints" / "latest-rank0.pt"), "algorithms": BLUR}
    save_file(dict(build(folder, "plain")[0].state_dict()), tmp_path / "plain.safetensors")
    model = {"resnet_cifar": {"depth": 8, "width": 4, "in_channels": 1}}
    tensors = {"checkpoint": str(tmp_path / "plain.safetensors"), "model": model}
    found = [entropy(teacher) for teacher in build(folder, checkpoint, blurred)]
    found += [entropy(teacher) for teacher in build(folder, tensors, model={"resnet_cifar": {"width": 8}})]
    assert found == pytest.approx([evaluated[name] for name in ("plain", "blur", "plain")], rel=1e-5)


def test_a_hugging_face_folder_and_a_single_teacher(tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    saved = BertForMaskedLM(BertConfig(vocab_size=11, **sizes))
    saved.save_pretrained(tmp_path / "bert")
    recipe = check(config(tmp_path, str(tmp_path / "bert")))
    (teacher,) = build_teachers(recipe, recipe.algorithms[0].arguments["teachers"])
    torch.testing.assert_close(teacher.state_dict(), saved.state_dict())
    (distillation,) = build_algorithms(recipe, None)
    assert type(distillation).__name__ == "Distillation" and len(distillation.teachers) == 1


def test_no_global_generator_moves(runs):
    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = state()
    build(runs[0], "plain", "average")
    assert state() == before


def test_a_student_begins_as_without_teachers_and_learns_from_them(runs):
    watched = {"callbacks": {f"{__name__}:Start": {}}}
    alone = train(config(runs[0], run_name="alone", **watched))
    weights = Start.weights
    taught = train(config(runs[0], ["plain", "average"], run_name="taught", **watched))
    assert taught.metrics != alone.metrics and taught.algorithms == ["Distillation"]
    torch.testing.assert_close(Start.weights, weights, rtol=0, atol=0)
    # A student may teach in its turn, though its own teachers are gone by then.
    (teacher,) = build(runs[0], "taught")
    assert entropy(teacher) == pytest.approx(taught.metrics[ENTROPY], rel=1e-5)
    with pytest.raises(ConfigError, match=r"algorithms.distillation.teachers: \['plain'\] given, but the run in"):
        train(config(runs[0], ["plain"], run_name="taught", **watched))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "teachers: 3 given; expected a run's folder, a Hugging Face folder, or {checkpoint: FILE"),
        ([], "teachers: missing; expected a run's folder"),
        (["plain", True], "teachers.1: true given; expected a run's folder"),
        ([{"model": {}}], "teachers.0: {'model': {}} given; expected a run's folder"),
        ([{"checkpoint": "a.pt", "modle": {}}], "teachers.0.modle: unknown key; did you mean model?"),
        (
            [{"checkpoint": "a.pt", "model": {"resnt": {}}}],
            "teachers.0.model.resnt: unknown name; did you mean resnet?",
        ),
        (
            {"checkpoint": "a.pt", "model": {"resnet": {"depth": "deep"}}},
            "teachers.model.resnet.depth: 'deep' given; expected",
        ),
        ({"checkpoint": "a.pt", "algorithms": {"blurpol": {}}}, "teachers.algorithms.blurpol: unknown name"),
    ],
)
def test_mistakes_are_found_before_anything_is_built(given, message, tmp_path):
    with pytest.raises(ConfigError) as error:
        check(config(tmp_path, given))
    assert str(error.value).startswith(f"config: algorithms.distillation.{message}")


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("started", "the run in {folder}/started is not finished: it has no results.json"),
        ("broken", "{folder}/broken/config.yaml: model.resnt: unknown name; did you mean resnet?"),
        (
            "hostile",
            "{folder}/hostile/config.yaml: model.subprocess:getoutput: refused in the folder of a teacher; give",
        ),
        ("moved", "{folder}/moved has no latest checkpoint: expected checkpoints/latest-rank0.pt"),
        ("{folder}/nothing", "{folder}/nothing is neither the folder of a run (with config.yaml), nor a Hugging Face"),
        ("{folder}/plain/checkpoints", "{folder}/plain/checkpoints is neither the folder of a run"),
        ("{folder}/plain/results.json", "{folder}/plain/results.json is a file, which does not tell its model;"),
        (
            {"checkpoint": "{folder}/nothing.pt"},
            "{folder}/nothing.pt is no file; expected a checkpoint or .safetensors",
        ),
        (
            {"checkpoint": "{folder}/plain/results.json", "model": {"resnet_cifar": {"depth": 8}}},
            "{folder}/plain/results.json is no readable checkpoint",
        ),
        (
            {
                "checkpoint": "{folder}/plain/checkpoints/latest-rank0.pt",
                "model": {"resnet_cifar": {"depth": 14, "width": 4, "in_channels": 1}},
            },
            "{folder}/plain/checkpoints/latest-rank0.pt does not fit ImageClassifier",
        ),
    ],
)
def test_what_is_wrong_with_a_teacher_is_one_line_before_the_student_is_built(runs, teacher, message):
    folder, _ = runs
    for name in ("started", "broken", "hostile", "moved"):
        (folder / name).mkdir(exist_ok=True)
        text = OmegaConf.to_yaml(config(folder))
        if name == "hostile":
            text = f"model: {{'subprocess:getoutput': {{cmd: 'touch {folder}/it_ran'}}}}"
        (folder / name / "config.yaml").write_text(text.replace("resnet_cifar", "resnt") if name == "broken" else text)
        if name != "started":
            (folder / name / "results.json").write_text("{}")

    def fill(value):
        if isinstance(value, dict):
            return {key: fill(inner) for key, inner in value.items()}
        return value.format(folder=folder) if isinstance(value, str) else value

    with pytest.raises(ConfigError) as error:
        train(config(folder, [fill(teacher)], run_name="student", model={"resnet_cifar": {"depth": 9}}))
    line = str(error.value)
    assert line.startswith(f"config: algorithms.distillation.teachers.0: {message.format(folder=folder)}"), line
    assert "\n" not in line
    assert not (folder / "it_ran").exists()
