"""The reference of all keys: by its JSON schema the shipped YAMLs are right, and wrong ones are not."""

import inspect
import json
import re
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft7Validator

import accelerando.yamls
from accelerando.recipes.config.catalogue import OwnKeys, recipe_keys, things
from accelerando.recipes.config.keys import in_words, keys_of
from accelerando.recipes.config.recipe import NOT_COMPOSERS
from accelerando.recipes.config.sections import SECTIONS
from accelerando.recipes.reference import FILES, written
from accelerando.recipes.studies.plan import EXECUTORS, STUDIES
from accelerando.recipes.study import main as study
from accelerando.recipes.train import main as train

ROOT = Path(__file__).parents[2]
SHIPPED = Path(inspect.getfile(accelerando.yamls)).parent
YAMLS = sorted(SHIPPED.rglob("*.yaml"))
MODELINE = "# yaml-language-server: $schema=../schema.json\n"

RECIPE = """
run_name: a
max_duration: 2ep
global_batch_size: 4
model: {resnet_cifar: {depth: 8}}
train_data: {digits: {}}
optimizer: {sgd: {lr: 0.1}}
algorithms: {label_smoothing: {smoothing: 0.1}}
study: {tradeoff: {arms: {plain: {}, mixed: {algorithms: {mix_up: {alpha: 0.2}}}}, seeds: [17]}}
"""


@pytest.fixture(scope="module")
def validator():
    schema = json.loads((SHIPPED / "schema.json").read_text())
    Draft7Validator.check_schema(schema)
    return Draft7Validator(schema)


@pytest.mark.parametrize("file", YAMLS, ids=lambda file: file.relative_to(SHIPPED).as_posix())
def test_shipped_yamls_are_right_and_name_the_schema(file, validator):
    assert file.read_text().startswith(MODELINE) and (file.parent / "../schema.json").resolve().is_file()
    assert [
        f"{error.json_path}: {error.message}" for error in validator.iter_errors(yaml.safe_load(file.read_text()))
    ] == []


@pytest.mark.parametrize(
    ("was", "becomes", "place"),
    [
        ("max_duration:", "max_durations:", "$"),
        ("max_duration: 2ep", "max_duration: 2 epochs", "$.max_duration"),
        ("global_batch_size: 4", "global_batch_size: four", "$.global_batch_size"),
        ("global_batch_size: 4", "global_batch_size: true", "$.global_batch_size"),
        ("depth: 8", "dept: 8", "$.model"),
        ("resnet_cifar", "resnet_ciphar", "$.model"),
        ("lr: 0.1", "lr: fast", "$.optimizer"),
        ("{digits: {}}", "[digits]", "$.train_data"),
        ("smoothing: 0.1", "smoothness: 0.1", "$.algorithms"),
        ("tradeoff:", "trade_offs:", "$.study"),
        ("arms:", "arm:", "$.study"),
        ("alpha: 0.2", "alfa: 0.2", "$.study"),
        ("[17]", "17", "$.study"),
    ],
)
def test_wrong_yamls_are_wrong_there(was, becomes, place, validator):
    assert was in RECIPE and not [*validator.iter_errors(yaml.safe_load(RECIPE))]
    errors = [*validator.iter_errors(yaml.safe_load(RECIPE.replace(was, becomes)))]
    assert errors and all(error.json_path.startswith(place) for error in errors)
    assert place == "$" or any(error.json_path != "$" for error in errors)


@pytest.mark.parametrize(
    "right",
    [
        "{extends: digits/mild.yaml, optimizer: {sgd: {lr: '${variables.lr}'}}, variables: {lr: '???'}}",
        "{max_duration: '???', global_batch_size: '${variables.batch}', seed: '???'}",
        "{algorithms: {'mycode:Mine': {anything: 1}, mix_up: false, blurpool: {}}, train_data: {'mycode:data': {}}}",
        "{model: resnet, scheduler: null, loggers: {wandb: {init_kwargs: {id: a}}}, eval_data: '${train_data}'}",
        "{study: {'mycode:Study': {a: 1}}, executor: {processes: {}}, start: {run: a, at: 1ep}}",
        "{optimizer: {sgd: {lr: 0.1, groups: {'*bias': {lr: 0.2}, 'conv1.*': false}}}}",
    ],
)
def test_what_else_is_right(right, validator):
    assert not [*validator.iter_errors(yaml.safe_load(right))]


def test_the_files_are_those_of_these_signatures():
    """Of other versions of Composer and torch the arguments, or what is said of them, are others."""
    page = (ROOT / FILES[0]).read_text()
    told = re.search(r"with Composer (\S+) and torch ([\d.]+)\.\s", page)
    if told.groups() != (version("mosaicml"), version("torch").partition("+")[0]):
        pytest.skip("the reference tells of other versions of Composer and torch")
    for name, text in written().items():
        assert (ROOT / name).read_text() == text, f"{name}: make reference"


def test_everything_of_ours_has_a_meaning():
    silent = []
    namespaces = {**SECTIONS, "study": STUDIES, "executor": EXECUTORS}
    for section, names in namespaces.items():
        found = {thing.name.replace("_", ""): thing.keys for thing in things(section, names)}
        for name, target in names.things().items():
            if target.__module__.startswith("accelerando."):
                silent += [f"{section}.{name}.{key.name}" for key in found[name.replace("_", "")] if not key.meaning]
    assert silent == []
    assert NOT_COMPOSERS - SECTIONS.keys() <= {key.name for key in keys_of(OwnKeys)}
    assert all(key.meaning for key in recipe_keys())


def test_a_key_of_each_kind():
    keys = {key.name: key for key in keys_of(STUDIES.find("tickets"))}
    ladders, levels = keys["ladders"], keys["control_levels"]
    assert in_words(ladders.schema) == "arguments of `lottery_ticket`, by name" and ladders.default == {}
    assert in_words(levels.schema) == "list of whole numbers or null" and levels.default is None
    assert keys["seeds"].default == [17] and "one standard deviation" in keys["tolerance"].meaning  # of the bases
    mixing = {key.name: key for key in keys_of(SECTIONS["algorithms"].find("mix_up"))}
    assert mixing["alpha"].meaning.startswith("parameter of the Beta distribution")  # said of Mixer
    warm = {key.name: key for key in keys_of(SECTIONS["scheduler"].find("linear_with_warmup"))}
    assert in_words(warm["t_warmup"].schema) == "time string" and warm["t_warmup"].required
    assert warm["alpha_f"].default == 0.0 and warm["alpha_f"].meaning == "Final learning rate multiplier"


@pytest.mark.parametrize(
    ("program", "name", "told"),
    [
        (train, "mix_up", ["algorithms: {mix_up: {...}}", "alpha: number, by default 0.2", "Beta distribution"]),
        (train, "scheduler", ["cosine_annealing ", "multiplicative_cyclic "]),
        (train, "precision", ["precision: `fp32`".replace("`", ""), "amp_bf16"]),
        (train, "start", ["run: text, required", "a moment of which"]),
        (study, "tickets", ["study: {tickets: {...}}", "ladders: arguments of lottery_ticket, by name"]),
        (study, "processes", ["gpus: whole number, by default 1"]),
        (study, "study", ["shrinkbench "]),
    ],
)
def test_help_tells_of_keys(program, name, told, capsys):
    with pytest.raises(SystemExit) as ended:
        program(["--help", name])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and all(words in text for words in told), text


def test_help_of_what_there_is_not(capsys):
    with pytest.raises(SystemExit) as ended:
        train(["--help", "mix_upp"])
    assert ended.value.code == 2 and "did you mean mix_up?" in capsys.readouterr().err
    for program in (train, study):
        with pytest.raises(SystemExit) as ended:
            program(["--help"])
        assert ended.value.code == 0 and "--help NAME" in capsys.readouterr().out
