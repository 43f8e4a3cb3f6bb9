"""Every mistake in a config is one line that names the file, the key and what was expected, and nothing is built."""

import gc
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from composer.algorithms import EMA
from composer.core import Precision
from composer.optim import CosineAnnealingWithWarmupScheduler, DecoupledAdamW
from omegaconf import OmegaConf

from accelerando.recipes.config.errors import ConfigError
from accelerando.recipes.config.loading import load, merge
from accelerando.recipes.config.lookup import Namespace
from accelerando.recipes.config.recipe import check
from accelerando.recipes.train import main
from tiny import launch

YAML = """
run_name: mistaken
folder: {folder}
max_duration: 2ep
global_batch_size: 128
model: {{"{here}:bomb": {{size: 3}}}}
train_data: {{digits: {{split: train}}}}
optimizer: {{decoupled_sgdw: {{lr: 1e-1}}}}
scheduler: {{cosine_annealing_with_warmup: {{t_warmup: 1ep}}}}
algorithms: {{ema: {{half_life: 100ba}}, label_smoothing: {{smoothing: 0.1}}}}
precision: fp32
device: cpu
"""
TIME = "expected a time string such as 10ep, 500ba or 0.5dur"

DURATION = "expected a time string such as 10ep, above zero and in ep, ba, sp"
NEVER = ("1h", "0ep", "2iter", "0.5dur", "100tok")
SMALL = "model={resnet_cifar: {depth: 8, width: 4, in_channels: 1}}"


def bomb(size: int = 1):
    raise AssertionError("built")


@pytest.fixture
def yaml(tmp_path):
    file = tmp_path / "mistaken.yaml"
    file.write_text(YAML.format(folder=tmp_path, here=__name__))
    return file


def refusal(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error.strip()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("foo", "foo: expected key=value, such as max_duration=10ep, or key:=value, such as algorithms:={mix_up: {}}"),
        (":=3", ":=3: expected key=value"),
        ("algorithms.emma=false", "algorithms.emma: unknown name; did you mean ema?"),
        ("algorithms:={emma: {}}", "algorithms.emma: unknown name; did you mean ema?"),
        ("model=false", "model: expected one name, found none"),
        ("run_name={a", "run_name: not readable as a YAML value"),
        ("run_name=3", "run_name: 3 given; expected text"),
        ("run_name=null", "run_name: missing"),
        ("optimizr=adam", "optimizr: unknown key; did you mean optimizer?"),
        ("save_folder=here", "save_folder: the recipe fills it in; use folder instead"),
        ("model=null", "model: missing"),
        ("model=3", "model: 3 given; expected names with their arguments"),
        ("model.resnet=1", "model.resnet: 1 given; expected its arguments as a mapping"),
        ("model={resnet: {}, bert: {}}", "model: expected one name, found resnet, bert"),
        ("model=rezznet", "model.rezznet: unknown name; did you mean resnet?"),
        (f"model={{'{__name__}:bom': {{}}}}", f"model.{__name__}:bom: the module {__name__} has no bom"),
        ("model={'no_such.module:Model': {}}", "no_such.module:Model: No module named 'no_such'; looked in the cur"),
        ("algorithms.blurpol={}", "algorithms.blurpol: unknown name; did you mean blur_pool?"),
        ("algorithms.labelsmoothing={}", "algorithms.labelsmoothing: LabelSmoothing is given twice"),
        ("algorithms.ema=null", "algorithms.ema: null given; expected its arguments as a mapping, {} for none"),
        ("algorithms.ema.halflife=9ba", "algorithms.ema.halflife: unknown argument; did you mean half_life?"),
        ("algorithms.ema.half_life=9batches", f"algorithms.ema.half_life: '9batches' given; {TIME}"),
        ("algorithms.label_smoothing.smoothing=2", "algorithms.label_smoothing: "),
        ("optimizer.decoupled_sgdw.lr=high", "optimizer.decoupled_sgdw.lr: 'high' given; expected a number"),
        ("optimizer.decoupled_sgdw.lr=true", "optimizer.decoupled_sgdw.lr: true given; expected a number"),
        ("optimizer={adam: {betas: [0.9]}}", "optimizer.adam.betas: [0.9] given; expected tuple"),
        ("scheduler={linear_with_warmup: {}}", "scheduler.linear_with_warmup.t_warmup: missing; it has no default"),
        ("scheduler.cosine_annealing_with_warmup.t_warmup=4", f"t_warmup: 4 given; {TIME}"),
        ("max_duration=40epochs", f"max_duration: '40epochs' given; {TIME}"),
        # In these units the run would never end.
        *((f"max_duration={time}", f"max_duration: {time} given; {DURATION}") for time in NEVER),
        ("eval_interval=1e", f"eval_interval: '1e' given; {TIME}"),
        ("precision=fp33", "precision: 'fp33' given; expected one of fp32, amp_fp16, amp_bf16, amp_fp8"),
        ("autoresume=1", "autoresume: 1 given; expected true or false"),
        ("global_batch_size=0", "global_batch_size: 0 given; expected a positive multiple of the 1 rank(s)"),
        ("device=toaster", "device: device (toaster) must be one of"),
        ("train_data={cifar10: {path: /nowhere}}", "train_data.cifar10: /nowhere"),
    ],
)
def test_a_mistake_on_the_command_line(yaml, capsys, override, message):
    error = refusal(capsys, yaml, override)
    place, _, rest = error.partition(": ")
    assert place == "command line" and message in rest


@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train_subset_num_batches=0", "train_subset_num_batches: 0 given; expected a whole number from 1"),
        ("seed=-1", "seed: -1 given; expected a whole number from 0 to 4294967295"),
        ("seed=4294967296", "seed: 4294967296 given"),
        ("seed=null", "seed: null given"),
        ("global_batch_size=5000", "train_data.digits: 1437 samples do not fill a batch of 5000 on 1 rank"),
        ("train_data={image_folder: {path: '{folder}', crop_size: 0}}", "train_data.image_folder: crop_size must be"),
        ("train_data={image_folder: {path: '{folder}', num_workers: -1}}", "num_workers must be at least 0, not -1"),
        ("train_data={image_folder: {path: '{folder}'}}", "train_data.image_folder: Found no valid file for the class"),
        ("train_data={cifar10: {path: '{folder}'}}", "train_data.cifar10: Dataset not found or corrupted"),
        (
            "train_data={fashion_mnist: {path: '{folder}'}}",
            "fashion_mnist: found no train-images-idx3-ubyte",
        ),
        ("train_data={streaming_images: {local: '{folder}'}}", "index.json is not the index of MDS shards"),
        ("folder=/proc/nope", "folder: "),
        ("folder={folder}/file", "folder: "),
        ("load_path=/nope.pt", "load_path: /nope.pt cannot be loaded; FileNotFoundError"),
        ("load_path={folder}/file", "cannot be loaded; "),
        ("precision=amp_bf16", "precision: "),
        ("device=mps", "device: "),
        ("device_train_microbatch_size=0", "device_train_microbatch_size: 0 given; expected a whole number from 1"),
        ("device_train_microbatch_size=1.5", "device_train_microbatch_size: 1.5 given"),
        ("device_train_microbatch_size=few", "device_train_microbatch_size: 'few' given"),
        ("model={'os:getcwd': {}}", "model.os:getcwd: makes a str; expected a ComposerModel"),
        ("model={'os:path': {}}", "model.os:path: not of the kind that belongs here; expected a class or function"),
        ("model={':x': {}}", "model.:x: not an import path; expected package.module:Name"),
        ("model={'.os:path': {}}", "model..os:path: not an import path"),
        (
            "algorithms={'os:getcwd': {}}",
            "algorithms.os:getcwd: not of the kind that belongs here; expected a subclass",
        ),
        ("train_data={'os:getcwd': {}}", "train_data.os:getcwd: makes a str; expected a Dataset, a DataLoader, or"),
        ("train_data={'os:path': {}}", "class or function that gives a Dataset, a DataLoader or Composer's DataSpec"),
        ("model={resnet_cifar: {width: 0}}", "model.resnet_cifar: width must be at least 1, not 0"),
        ("model={resnet: {num_classes: 0}}", "model.resnet: num_classes must be at least 1, not 0"),
        ("scheduler={multi_step: {milestones: [xx]}}", f"scheduler.multi_step.milestones: 'xx' given; {TIME}"),
        ("optimizer.decoupled_sgdw.lr=-1", "optimizer.decoupled_sgdw: Invalid learning rate: -1"),
        *((f"run_name={name}", "expected the name of a folder") for name in ("/a", "''", "..", "a/../b", "./a", "a/")),
    ],
)
def test_a_mistake_that_only_building_finds(yaml, tmp_path, capsys, override, message):
    for folder in ("cat", "cifar-10-batches-py", "FashionMNIST/raw"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "index.json").write_text('{"shards": [{"column_names": ["x", "y"]}]}')
    error = refusal(capsys, yaml, SMALL, override.replace("{folder}", str(tmp_path)))
    gc.collect()  # the Trainer that was not to be
    place, _, rest = error.partition(": ")
    assert message in rest
    # What the file asks for does not fit the batch size of the command line.
    assert place == "command line" or override.startswith("global_batch_size")


def test_tokens_are_counted_in_text_alone(yaml):
    recipe = check(*load(yaml, ["max_duration=100tok", "train_data=python_docs"]))
    assert recipe.trainer["max_duration"] == "100tok"


def test_a_mistake_in_the_file_names_the_file(yaml, capsys):
    yaml.write_text(yaml.read_text().replace("half_life: 100ba", "half_life: soon"))
    assert refusal(capsys, yaml) == f"{yaml}: algorithms.ema.half_life: 'soon' given; {TIME}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not readable as YAML"),
        ("a: 1\na: 2", "a: a given in line 2, and in line 1 already; expected once"),
        ("- a", "expected a mapping of keys to values"),
        ("run_name: ${name}", "run_name: Interpolation key 'name' not found"),
        ("variables: {data: '???'}\nrun_name: ${variables.data}", "variables.data: missing; the file leaves it to you"),
        ("run_name: ???", "run_name: missing; the file leaves it to you"),
        ("run_name: a", "max_duration: missing; every run needs it"),
    ],
)
def test_a_broken_file(yaml, capsys, text, message):
    yaml.write_text(text)
    assert refusal(capsys, yaml).startswith(f"{yaml}: {message}")


@pytest.mark.parametrize("text", ["run_name: é".encode("latin-1"), "run_name: a".encode("utf-16"), bytes(range(256))])
def test_a_file_that_is_no_text(yaml, capsys, text):
    yaml.write_bytes(text)
    assert refusal(capsys, yaml).startswith(f"{yaml}: not readable as YAML; ")


def test_a_missing_file(capsys):
    error = refusal(capsys, "no/such.yaml")
    assert (
        error.startswith("no/such.yaml: no such file; those of the package are in bert/, ") and "tradeoff" not in error
    )
    assert "no such file; did you mean digits/all.yaml?" in refusal(capsys, "digits/al.yaml")


def test_a_missing_file_proposes_what_lies_beside_it(yaml, capsys):
    folder = yaml.parent / "here"
    folder.mkdir()
    for name in "abcdefgh":
        (folder / f"{name * 5}.yaml").write_text("")
    assert refusal(capsys, folder / "aaba.yaml").endswith(f"no such file; did you mean {folder / 'aaaaa.yaml'}?")
    told = refusal(capsys, folder / "mine.yaml")
    assert f"beside it are {folder / 'aaaaa.yaml'}, " in told and ", ...; those of the package" in told
    assert "ggggg" not in told


def test_a_dot_in_the_place_of_the_colon_is_told(yaml, capsys):
    told = refusal(capsys, yaml, "train_data={mycode.Fashion: {}}")
    assert told.endswith("unknown name; what is in a file of your own is written with a colon, mycode:Fashion")
    told = refusal(capsys, yaml, "model={classifier: {module: mycode.Net, num_classes: 10}}")
    assert told.endswith("not an import path; expected package.module:Name, such as mycode:Net")


def test_a_name_beside_that_of_the_file_tells_how_to_replace_it(yaml, capsys):
    module = "model={classifier: {module: {NAME: {}}, num_classes: 10}}"
    both = [module.replace("NAME", name) for name in ("mycode:Net", "mycode:Other")]
    told = refusal(capsys, yaml, *both)
    assert "model.classifier.module: expected one name, found mycode:Net, mycode:Other; on the command line, :=" in told
    told = refusal(capsys, yaml, both[0], both[1].replace("model=", "model:="))
    assert "model.classifier.module.mycode:Other: No module named 'mycode'" in told


def test_a_batch_that_the_ranks_do_not_divide(yaml, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "global_batch_size: 128 given; expected a positive multiple of the 3 rank(s)" in refusal(capsys, yaml)


def test_a_missing_package_names_the_extra(yaml, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    error = refusal(capsys, yaml, "loggers.wandb={}")
    assert error.endswith("loggers.wandb: needs the package wandb; install it with: pip install 'accelerando[wandb]'")


@pytest.mark.programs
def test_two_ranks_tell_it_once(yaml):
    script = Path(__file__).parents[3] / "recipes" / "train.py"
    done = launch(2, script, yaml, "model=resnet", "algorithms.emma={}")
    assert done.returncode == 2
    assert (done.stdout + done.stderr).count("algorithms.emma: unknown name; did you mean ema?") == 1
    assert "Traceback" not in done.stdout + done.stderr


def test_what_is_right_is_found_and_converted(yaml):
    recipe = check(
        *load(
            yaml,
            [
                "run_name=right",
                "optimizer={DecoupledAdamW: {betas: [0.9, 0.98], lr: 1}}",
                "algorithms.label_smoothing=false",
                "eval_batch_size=64",
                "variables={size: 5, unused: '???'}",
                f"model={{'{__name__}:bomb': {{size: '${{variables.size}}'}}}}",
            ],
        )
    )
    assert recipe.model.arguments == {"size": 5} and "variables" not in recipe.config
    assert recipe.optimizer.target is DecoupledAdamW
    assert recipe.optimizer.arguments == {"betas": (0.9, 0.98), "lr": 1.0}
    assert [part.target for part in recipe.algorithms] == [EMA]
    assert recipe.scheduler and recipe.scheduler.target is CosineAnnealingWithWarmupScheduler
    assert (recipe.batch_size, recipe.eval_batch_size, recipe.folder.name) == (128, 64, "right")
    assert Precision(recipe.trainer["precision"]) is Precision.FP32


@pytest.mark.parametrize(
    ("overrides", "algorithms"),
    [
        (["algorithms:={mix_up: {}}"], {"mix_up": {}}),
        (["algorithms={mix_up: {}}"], {"ema": {"half_life": "100ba"}, "label_smoothing": {}, "mix_up": {}}),
        (["algorithms.ema:={smoothing: 0.9}"], {"ema": {"smoothing": 0.9}, "label_smoothing": {}}),
        (["algorithms.ema=false"], {"label_smoothing": {}}),
        (["algorithms.EMA=false", "algorithms.LabelSmoothing=false"], {}),
        (["algorithms=false"], {}),
    ],
)
def test_what_is_named_is_merged_replaced_or_left_out(overrides, algorithms, yaml):
    smoothing = ["algorithms.label_smoothing:={}"] if "label_smoothing" in algorithms else []
    recipe = check(*load(yaml, [*smoothing, *overrides]))
    assert {part.key.partition(".")[2]: part.arguments for part in recipe.algorithms} == algorithms


def test_several_updates_are_merged_one_after_the_other_and_none_is_changed():
    config, *updates = map(
        OmegaConf.create,
        (
            {"model": "lenet_300_100", "algorithms": {"ema": {"half_life": "${variables.half}"}}, "variables": "???"},
            {"model": {"resnet_cifar": {"depth": 8}}, "algorithms": {"ema": {"smoothing": 0.9}, "mix_up": {}}},
            {"model": {"resnet_cifar": {"width": 4}}, "algorithms": {"mix_up": False}, "variables": {"half": "2ba"}},
        ),
    )
    before = [OmegaConf.to_yaml(each) for each in (config, *updates)]
    merged = merge(config, *updates)
    assert merged == merge(merge(config, updates[0]), updates[1]) and merged != merge(config, *updates[::-1])
    assert OmegaConf.to_container(merged, resolve=True) == {
        "model": {"resnet_cifar": {"depth": 8, "width": 4}},
        "algorithms": {"ema": {"half_life": "2ba", "smoothing": 0.9}, "mix_up": False},
        "variables": {"half": "2ba"},
    }
    merged.algorithms.ema.smoothing = merged.variables = 0
    assert [OmegaConf.to_yaml(each) for each in (config, *updates)] == before


@dataclass
class Bomb:
    """One that is no key of a dictionary."""

    size: int

    def __call__(self, width: int = 1):
        bomb()


unhashable = Bomb(3)


def test_what_is_no_key_is_asked_for_its_arguments_all_the_same(yaml, capsys):
    recipe = check(*load(yaml, [f"model:={{'{__name__}:unhashable': {{width: 3}}}}"]))
    assert recipe.model.target is unhashable and recipe.model.arguments == {"width": 3}
    error = refusal(capsys, yaml, f"model:={{'{__name__}:unhashable': {{with: 3}}}}")
    assert error.endswith("unhashable.with: unknown argument; did you mean width?")


def test_callbacks_loggers_and_the_scheduler_are_left_out_too(yaml):
    sections = ("callbacks={lr_monitor: {}}", "loggers={in_memory: {}}")
    left_out = ("callbacks.LRMonitor=false", "loggers.in_memory_logger=false", "scheduler=false", "eval_data=false")
    recipe = check(*load(yaml, [*sections, *left_out]))
    assert not (recipe.callbacks or recipe.loggers or recipe.scheduler or recipe.eval_data)


def test_a_path_may_begin_at_home(yaml, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base.yaml").write_text(yaml.read_text())
    (tmp_path / "over.yaml").write_text("extends: ~/base.yaml\n")
    recipe = check(*load(tmp_path / "over.yaml", ["folder=~/runs", "load_path=~/a.pt", "callbacks=null"]))
    assert recipe.folder == tmp_path / "runs/mistaken" and recipe.trainer["load_path"] == str(tmp_path / "a.pt")
    data = {"train_data": {"image_folder": {"path": "~/nowhere"}}}
    with pytest.raises(ConfigError, match=f"{tmp_path}/nowhere is not a folder"):
        check({**load(yaml)[0], **data})


def test_a_module_in_the_current_folder_is_found_before_those_of_the_scripts(yaml, capsys, tmp_path, monkeypatch):
    """As if `composer recipes/train.py` had put the script's own folder, which has a `data`, first."""
    (tmp_path / "data.py").write_text("class Model:\n    missing\n")
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[3] / "recipes"), *sys.path])
    monkeypatch.delitem(sys.modules, "data", raising=False)
    monkeypatch.chdir(tmp_path)
    error = refusal(capsys, yaml, "model={'data:Model': {}}")
    told = "model.data:Model: the module data fails on import; NameError: name 'missing' is not defined"
    assert error.endswith(f"{told}; at data.py:2: missing")


def test_a_mapping_is_as_good_as_a_file(yaml):
    config, _ = load(yaml)
    with pytest.raises(ConfigError, match=r"^config: max_duration: '1' given"):
        check(config | {"max_duration": "1"})


def test_a_name_is_found_however_it_is_spelt():
    callbacks = Namespace(modules=("composer.callbacks",), base="composer.core:Callback")
    spellings = ("lr_monitor", "lrmonitor", "LRMonitor", "composer.callbacks:LRMonitor")
    assert len({callbacks.find(spelling) for spelling in spellings}) == 1
