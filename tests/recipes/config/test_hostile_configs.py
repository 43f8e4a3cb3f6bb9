"""What a YAML may hold that nobody means: each is one line that names its place, and nothing in it is called."""

import copy
import inspect
import os
import random
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from composer.algorithms import EMA
from composer.callbacks import Generate
from composer.core import Algorithm
from composer.models import ComposerModel
from formats import found_in, write_images, write_texts
from omegaconf import OmegaConf
from yaml import safe_dump

import accelerando.yamls
from accelerando.algorithms import BlurPool, ChannelsLast, Distillation
from accelerando.recipes.config.arguments import check_arguments
from accelerando.recipes.config.errors import ArgumentError, ConfigError
from accelerando.recipes.config.loading import load
from accelerando.recipes.config.lookup import Namespace, import_path
from accelerando.recipes.config.recipe import check
from accelerando.recipes.run.algorithms import build_algorithms
from accelerando.recipes.studies.plan import plan

BASE = "digits/all.yaml"
ARMS, BLOCK = "study.tradeoff.arms", "study.distillation"
W, S = "'${variables.w}'", "'${variables.s}'"
# Nine aliases in each of nine lists: 9 ** 9 of the innermost.
BOMB = "a: &a [1]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghij"))


def judged(config, source):
    """The plan of a study, or the recipe of a run."""
    return (plan if "study" in config else check)(config, source)


def refusal(*overrides, file=BASE) -> str:
    with pytest.raises(ConfigError) as error:
        judged(*load(file, overrides))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("064", "064 given, which YAML 1.1 reads as 52"),
        ("1:30", "1:30 given, which YAML 1.1 reads as 90"),
        ("1_000", "1_000 given, which YAML 1.1 reads as 1000"),
        ("0b11", "0b11 given, which YAML 1.1 reads as 3"),
        ("09", "09 given, which some read as a number"),
        ("on", "on given, which YAML 1.1 reads as true"),
        ("No", "No given, which YAML 1.1 reads as false"),
        (".nan", ".nan given; expected a finite number"),
        ("-.INF", "-.INF given; expected a finite number"),
        ("1e999", "1e999 given; expected a finite number"),
        ("!!float nan", "nan given, which YAML 1.1 reads as nan"),
        ("9223372036854775808", "9223372036854775808 given; expected a number of 64 bits"),
    ],
)
@pytest.mark.parametrize("nest", ["{}", "[1, {}]", "[{{deep: {}}}]"])
def test_a_value_that_surprises(tmp_path, text, problem, nest):
    value = nest.format(text)
    for key in ("optimizer.decoupled_sgdw.lr", "variables.any", "seed"):
        assert problem in (error := refusal(f"{key}={value}")) and error.startswith(f"command line: {key}")
    file = tmp_path / "file.yaml"
    file.write_text(f"run_name: a\nvariables:\n  any: {value}\n")
    assert problem.partition(" given")[2] in (error := refusal(file=file)) and error.startswith(
        f"{file}: variables.any"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {b: 1, c: 2, b: 3}", "a.b: b given, and in line 1 already; expected once"),
        ("on: 1", "on: on given as a key, which YAML does not take for text"),
        ("a: {null: 1}", "a.null: null given as a key"),
        ("? [a]\n: 1", "a list or mapping given in line 1 as a key"),
        ("[" * 1000, "not readable as YAML"),
        ("a: &a [*a]", "not readable as YAML"),
        ("\ta: 1", "not readable as YAML"),
        ("a: 1\n---\nb: 2", "not readable as YAML"),
        ("a: !!python/object/apply:os.system [exit]", "not readable as YAML"),
        (BOMB, "not readable as YAML"),
    ],
)  # fmt: skip
def test_a_file_that_surprises(tmp_path, text, message):
    file = tmp_path / "file.yaml"
    file.write_text(text)
    assert message in refusal(file=file)


def test_what_all_readers_read_alike_is_taken(tmp_path):
    file = tmp_path / "file.yaml"
    file.write_text("a: [1e-3, .5, 1., 0x1F, -0, '064', 2020-01-01, ~, TRUE]\nb: &b {c: 1}\nd: {<<: *b, c: 2}\n3: 1\n")
    config = OmegaConf.to_container(load(file)[0])
    assert config == {
        "a": [1e-3, 0.5, 1.0, 31, 0, "064", "2020-01-01", None, True],
        "b": {"c": 1},
        "d": {"c": 2},
        3: 1,
    }


def test_numbers_that_are_not_finite_in_a_mapping_made_in_python():
    config, _ = load(BASE)
    config.optimizer.decoupled_sgdw.lr = float("nan")
    with pytest.raises(ConfigError, match=r"optimizer\.decoupled_sgdw\.lr: nan given; expected a finite number"):
        check(config)


class Mine(BlurPool):
    def __init__(self, mine: int = 0, **kwargs):
        super().__init__(**kwargs)


class Hiding(Algorithm):
    def __init__(self, mine: int = 0, **kwargs):
        self.kept = kwargs


class Told(Hiding):
    """Args:
    other: goes into ``kwargs``.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)


class Adam(torch.optim.Adam):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


@pytest.mark.parametrize(
    ("target", "right", "wrong"),
    [
        (ChannelsLast, {}, {"junk": 1}),
        (Mine, {"mine": 1, "blur_first": True}, {"blur_frst": True}),
        (Hiding, {"mine": 1}, {"mien": 1}),
        (Told, {"other": 1, "mine": 2}, {"others": 1}),
        (Adam, {"lr": 0.1, "betas": [0.9, 0.98]}, {"beta": [0.9, 0.98]}),
        (Adam, {"lr": 0.1}, {"betas": [True, 0.98]}),
        (EMA, {"half_life": "1ba"}, {"half_live": "1ba"}),
        (Generate, {"prompts": ["a"], "interval": 1, "top_k": 3}, {"interval": 1}),
    ],
)
def test_arguments_that_nobody_takes(target, right, wrong):
    supplied = 1 if target is Adam else 0
    check_arguments(target, right, supplied)
    with pytest.raises(ArgumentError, match=r"unknown argument|missing|given; expected"):
        check_arguments(target, wrong, supplied)


CALLED = []


def called(**_):
    CALLED.append(1)


class Source:
    """A class that is no source."""

    def __init__(self, **_):
        CALLED.append(1)


@pytest.mark.parametrize("section", ["train_data", "eval_data", "algorithms", "callbacks", "loggers", "scheduler"])
@pytest.mark.parametrize("name", ["called", "Source", "CALLED", "__name__", "Algorithm"])
def test_nothing_is_called_while_checking(section, name):
    place, override = f"{section}.{__name__}:{name}", f"{section}={{'{__name__}:{name}': {{}}}}"
    if name == "called" and section.endswith("_data"):  # a function may give data, but it is asked only afterwards
        check(*load(BASE, [override]))
    else:
        assert place in refusal(override)
    assert not CALLED


@pytest.mark.parametrize(
    "body", ["import sys; sys.exit(0)", "1 / 0", "def", "import no_such_thing", "raise SystemExit"]
)
def test_a_module_that_fails_on_import(tmp_path, monkeypatch, body):
    (tmp_path / "failing_module.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    for section in ("model", "train_data", "algorithms", "optimizer"):
        assert f"{section}.failing_module:X: " in refusal(f"{section}={{'failing_module:X': {{}}}}")
    sys.modules.pop("failing_module", None)


@pytest.mark.parametrize(("name", "arguments"), [("sys:exit", "{}"), ("os:getcwd", "{}"), ("builtins:divmod", "{}")])
def test_a_model_that_is_none(name, arguments):
    recipe = check(*load(BASE, [f"model={{'{name}': {arguments}}}"]))
    with pytest.raises(ConfigError, match=f"model.{name}: "):
        recipe.model.build()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("run_name", value) for value in ("{rank}", "a{b", '"a\\nb"', "'a '", "~a", "s3://a", "a/../b", "b" * 201)),
        *(("folder", value) for value in ("s3://a", "gs://a/b", "{run_name}", "~nobody/runs", '"a\\0"', "''")),
        *(("save_filename", value) for value in ("../x.pt", "/x.pt", "{nope}.pt", "{", "a/b.pt", "''")),
        *(("save_latest_filename", value) for value in ("../x.pt", "{epoch", '"a\\nb"')),
    ],
)
def test_names_that_lead_elsewhere(key, value):
    assert refusal(f"{key}={value}").startswith(f"command line: {key}: ")


def test_what_every_training_replaces_is_known_all_the_same(bases, tmp_path):
    (tmp_path / "glue.yaml").write_text(safe_dump(bases["bert/glue"] | {"optimizer": {"decoupled_adamv": {}}}))
    assert ": optimizer.decoupled_adamv: unknown name; did you mean" in refusal(file=tmp_path / "glue.yaml")


def test_an_optimizer_without_its_rate():
    assert "decoupled_sgdw.lr: missing; it has no default" in refusal(
        "optimizer={sgd: {}}", "optimizer={decoupled_sgdw: {}}"
    )


def test_what_is_text_of_several_lines_or_none_at_all():
    assert refusal("scheduler='a\nb'").startswith("command line: scheduler.a b: unknown name")
    for file in (BASE, "digits/tradeoff.yaml"):
        for folder in ("{a: {}}", "[1]", "3", "''"):
            assert refusal(f"folder={folder}", file=file).startswith("command line: folder: ")


@pytest.mark.parametrize(
    ("file", "overrides", "message"),
    [
        (
            "digits/all",
            ["max_durationzz=1ep", "max_duration=null"],
            "max_durationzz: unknown key; did you mean max_dur",
        ),
        ("digits/tradeoff", ["study.tradeoff.compare_standart=true"], "compare_standart: unknown argument; did you"),
        ("digits/tradeoff", ["study.tradeoff.armz={}"], "armz: unknown argument; did you mean arms?"),
        ("digits/tradeoff", ["study.tradeoff.arms.all.optimzer={}"], "all.optimzer: unknown key; did you mean opt"),
        ("digits/distillation", [f"{BLOCK}.lenghts=[1ep]"], "lenghts: unknown argument; did you mean lengths?"),
        (
            "digits/distillation",
            [f"{BLOCK}.teachers.wide.modle={{}}"],
            f"{BLOCK}.teachers.wide.modle: unknown key; did you mean model?",
        ),
        ("digits/tickets", ["study.tickets.ladder={}"], "ladder: unknown argument; did you mean ladders?"),
        (
            "digits/tickets",
            ["study.tickets.ladders.iterative={level: 3}"],
            "ladders.iterative.level: unknown argument; did you mean lev",
        ),
        (
            "digits/prune_at_init",
            ["study.prune_at_init.criterium={}"],
            "criterium: unknown argument; did you mean criteria?",
        ),
        (
            "digits/all",
            ["algorithms.label_smoothing={smothing: 0.1}"],
            "smothing: unknown argument; did you mean smooth",
        ),
        (
            "digits/all",
            ["optimizer.decoupled_sgdw.groups={'*bias': {weight_dcay: 0}}"],
            "decoupled_sgdw.groups.*bias.weight_dcay: unknown argument; did you mean weight_decay?",
        ),
        (
            "digits/tradeoff",
            ["study.tradeoff.arms.all.optimizer={decoupled_sgdw: {groups: {'0.weigth': false}}}"],
            "arms.all.optimizer.decoupled_sgdw.groups.0.weigth: no parameter is called '0.weigth'; did you mean 0.w",
        ),
    ],
)
def test_the_nearest_name_is_proposed(file, overrides, message):
    assert message in refusal(*overrides, file=f"{file}.yaml")


def last_config(plan):
    """That of the last run."""
    return plan.base.recipe_of(plan.nodes({})[-1]).config


@pytest.mark.parametrize(
    ("file", "overrides", "found"),
    [
        (
            "digits/tradeoff",
            ["variables={x: {label_smoothing: {smoothing: 0.2}}, n: 1}", ARMS + "={a: {algorithms: '${variables.x}'}}"],
            lambda study: last_config(study)["algorithms"]["label_smoothing"]["smoothing"] == 0.2,
        ),
        (
            "digits/tradeoff",
            ["variables={x: {a: '${variables.y}'}, y: {model: {resnet_cifar: {width: 4}}}}", ARMS + "=${variables.x}"],
            lambda study: last_config(study)["model"]["resnet_cifar"]["width"] == 4,
        ),
        (
            "digits/tradeoff",
            [ARMS + "={a: {loggers: {file: {filename: '${run_name}.txt'}}}}"],
            lambda study: last_config(study)["loggers"]["file"]["filename"] == "digits-tradeoff/a-seed17.txt",
        ),
        (
            "digits/distillation",
            ["variables={w: 12, s: 3}", f"{BLOCK}.teachers.a={{seed: {S}, model: {{resnet_cifar: {{width: {W}}}}}}}"],
            lambda plan: any(
                (recipe.config["seed"], recipe.model.arguments.get("width")) == (3, 12)
                for recipe in (plan.base.recipe_of(node) for node in plan.nodes({}) if node.name == "teacher-a")
            ),
        ),
        (
            "digits/tickets",
            [
                "variables={n: 2}",
                "study.tickets.ladders={a: {levels: '${variables.n}'}}",
                "study.tickets.control_levels=['${variables.n}']",
            ],
            lambda plan: plan.study.ladders["a"]["levels"] == 2 and plan.study.control_levels == [2],
        ),
        (
            "digits/prune_at_init",
            [
                "variables={w: 3, s: 0.2}",
                f"study.prune_at_init.criteria={{snip: {{samples_per_class: {W}}}}}",
                f"study.prune_at_init.densities=[{S}]",
            ],
            lambda plan: any(
                (pruned.get("samples_per_class"), pruned.get("density")) == (3, 0.2)
                for recipe in (plan.base.recipe_of(node) for node in plan.nodes({}))
                if (pruned := recipe.config.get("algorithms", {}).get("prune_at_init"))
            ),
        ),
    ],
)  # fmt: skip
def test_interpolations_in_a_study(file, overrides, found, tmp_path):
    block = f"study.{file.rpartition('/')[2]}"
    few = [f"{block}.seeds=[17]", *([f"{block}.tolerance=0.1"] if file.endswith(("tickets", "init")) else [])]
    assert found(plan(*load(f"{file}.yaml", [*few, *overrides, f"folder={tmp_path}"])))


@pytest.mark.parametrize(
    "value",
    ["${variables.nope}", "${oc.env:NO_SUCH_VARIABLE}", "${nope:1}", "${seed", f"${{{ARMS}}}", "${..nope}", "???"],
)
@pytest.mark.parametrize(
    "key", [f"{ARMS}.a.algorithms", f"{ARMS}.a", ARMS, "study.tradeoff.seeds", "run_name", "optimizer"]
)
def test_interpolations_that_lead_nowhere(value, key):
    arms = load("digits/tradeoff.yaml")[0].study.tradeoff.arms
    few = ["study.tradeoff.seeds=[17]", *(f"{ARMS}.{arm}=false" for arm in arms if arm != "baseline")]
    refusal(*few, f"{key}={value}", file="digits/tradeoff.yaml")


class Scheduled(Algorithm):
    """Takes a name for a scheduler, and a number for a ticket."""

    def __init__(self, scheduler: str, ticket: int):
        self.given = scheduler, ticket

    def match(self, event, state):
        return False

    def apply(self, event, state, logger):
        pass


class Taught(Distillation):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


def test_algorithms_with_arguments_called_like_ours(tmp_path):
    given = f"algorithms={{'{__name__}:Scheduled': {{scheduler: linear, ticket: 3}}}}"
    assert build_algorithms(check(*load("digits/baseline.yaml", [given])), None)[0].given == ("linear", 3)
    error = refusal(f"algorithms={{'{__name__}:Taught': {{temperature: 1.0}}}}")
    assert f"algorithms.{__name__}:Taught.teachers: missing" in error


NUMBER = int(os.environ.get("MUTATIONS", 40))  # of all files together
HOSTILE = [
    *(None, True, 0, -1, 10**30, float("nan"), "", "x" * 300, "a\nb", "{rank}", "../x", "${", "${variables.no}", "???"),
    *([], {}, [[]], [None], {"a": None}, {"a": {"b": {}}}, {1: 2}, ["a", "a"], "1ep", "0ba", "os:system", b"x", 1.5),
    {f"{__name__}:called": {}},
]


def places(node, place=()):
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield (*place, key)
        yield from places(node[key], (*place, key))


SHIPPED = Path(inspect.getfile(accelerando.yamls)).parent
FILES = sorted(path.relative_to(SHIPPED).with_suffix("").as_posix() for path in SHIPPED.rglob("*.yaml"))
SMALL_MODEL = {"resnet_cifar": {"depth": 8, "width": 4, "num_classes": 2}}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Every shipped YAML, with small data in place of large and few runs in place of many."""
    data, bases = tmp_path_factory.mktemp("data"), {}
    write_images(data)
    write_texts(data)
    for name in FILES:
        teachers = ["variables.teachers=teacher"] if "distill_" in name else []
        config, _ = load(f"{name}.yaml", [*found_in(name, data), *teachers, f"folder={data / 'runs'}"])
        bases[name] = base = OmegaConf.to_container(config)
        if name == "digits/baseline":
            base["optimizer"]["decoupled_sgdw"]["groups"] = {"*bias|1.*": {"weight_decay": 0}, "0.weight": False}
        if "study" not in base:
            continue
        (own,) = base["study"].values()
        own |= {"seeds": [17]} | ({"tolerance": 0.1} if "tolerance" in own else {})
        own |= {"lengths": own["lengths"][-1:], "baseline_lengths": [], "windows": [0.5]} if "lengths" in own else {}
        own |= {key: own[key][:2] for key in own.keys() & {"control_levels", "densities"}}
        own |= {"fit_on": None} if "fit_on" in own else {}
        for named in own.keys() & {"arms", "teachers", "criteria", "tasks", "configurations"}:
            own[named] = dict([*own[named].items()][:: max(1, len(own[named]) - 1)])
        base |= {"model": SMALL_MODEL} if name.startswith("resnet50/") else {}
    return bases


def changed_at_random(base, draw):
    """One place in it is left out, renamed, nested, or gets a hostile value."""
    config = copy.deepcopy(base)
    *path, last = draw.choice(list(places(config)))
    parent = config
    for key in path:
        parent = parent[key]
    match draw.choice(["drop", "rename", "nest", "hostile", "hostile"]):
        case "drop":
            del parent[last]
        case "rename" if isinstance(parent, dict):
            parent[f"{last}zz"] = parent.pop(last)
        case "nest":
            parent[last] = {str(last): parent[last]}
        case _:
            parent[last] = copy.deepcopy(draw.choice(HOSTILE))
    return config


@pytest.mark.filterwarnings("ignore")  # what a changed config makes without effect is warned of, as it should
def test_configs_changed_at_random(bases, tmp_path):
    """Each is accepted, or refused in one line."""
    draw, refused = random.Random(17), 0
    sizes = [len(list(places(base))) for base in bases.values()]
    for _ in range(NUMBER):
        (base,) = draw.choices(list(bases.values()), sizes)
        (tmp_path / "config.yaml").write_text(safe_dump(changed_at_random(base, draw)))
        try:
            judged(*load(tmp_path / "config.yaml"))
        except ConfigError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > NUMBER / 4


def test_a_model_of_a_subclass_is_found_without_a_call():
    with pytest.raises(LookupError, match=r"expected a subclass of ComposerModel, or a function that makes one"):
        Namespace(modules=(), makes="composer:ComposerModel").find(f"{__name__}:Source")
    assert Namespace(modules=(), makes="composer:ComposerModel").find("composer.models:HuggingFaceModel")
    assert issubclass(import_path("composer.models:ComposerClassifier"), ComposerModel) and Path(__file__).exists()
