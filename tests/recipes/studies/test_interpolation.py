"""Whole studies of `interpolation` on the real digits: paths, parts, beginnings, kill and resume; tables, verdicts."""

import math
import shutil
from fnmatch import fnmatchcase

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from studies import Watch, config, lines, outcome, refused, results, table, trained_whole, without_seconds

from accelerando.algorithms.connectivity import distance, evaluate_path, interpolate, layers_of, linear_path
from accelerando.algorithms.snapshots import find_snapshot
from accelerando.recipes.data.images import Digits
from accelerando.recipes.models.builders import resnet_cifar
from accelerando.recipes.studies.driver import dry_run
from accelerando.recipes.studies.interpolation_arms import parameters_of
from accelerando.recipes.studies.interpolation_cells import metrics_of_path, sensitivity, shapes_of
from accelerando.recipes.studies.interpolation_claims import claims_of
from accelerando.recipes.studies.plan import plan
from accelerando.recipes.studies.table import Row

OWN = """
arms:
  plain: {}
  decay: {optimizer: {sgd: {weight_decay: 0.1}}}
  adversarial: {from: {end_of: random_labels}}
  top: {from: {top_of: plain}}
  reset: {from: {end_of: plain, reset: ['module.3.*']}}
  linear: {model: {lenet_300_100: {image_size: 8, width: 6}}}
  slow: {by_sensitivity: {of: plain, sensitive: {weight_decay: 0.1}, insensitive: {lr: 0.01}}}
origins:
  random_labels: {train_data: {noisy_labels: {of: {digits: {}}, fraction: 0.9}}}
steps: [2ba]
parts: [layers, blocks]
part_others: [end, begin]
named_parts: {convolutions: ['*conv?.*']}
points: 5
part_points: 3
path_examples: 40
seeds: [1]
"""
ARMS = ["plain", "decay", "adversarial", "top", "reset", "linear", "slow"]
ACCURACY = "metrics/eval/MulticlassAccuracy"
FIRST, BLOCK = "module.0.weight", "module.3.conv1.weight"
LENGTH = 4
PARTS = 10 + 3 + 1  # layers, those blocks that are no layer, and the named one

pytestmark = pytest.mark.usefixtures("watch")


def study(folder, **changes):
    """The settings, which a test may change before it trains."""
    base = {"max_duration": f"{LENGTH}ba", "eval_interval": "1dur", "save_interval": "1ba"}
    base |= {"scheduler": {"cosine_annealing": {}}, "optimizer": {"sgd": {"lr": 0.1, "momentum": 0.9}}}
    base["callbacks"] = {"studies:Watch": {}}
    given = OmegaConf.create(config(folder, {"interpolation": OmegaConf.create(OWN)}, **base))
    given.study.interpolation.update(changes)
    return given


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study's folder, and what its runs started from, by their names."""
    folder = tmp_path_factory.mktemp("whole")
    done = trained_whole(folder, study(folder), LENGTH * (len(ARMS) + 1))
    return done, Watch.starts


def kept(folder, name, at):
    return find_snapshot(folder / name / "snapshots", at).weights()


def first_of(source, sizes):
    """The first examples in batches of these sizes, in their order."""
    images, labels = next(iter(source.build(sum(sizes), False, 0, "cpu").dataloader))
    return [*zip(images.split(sizes), labels.split(sizes), strict=True)]


def test_a_study_and_what_it_leaves(whole):
    folder, _ = whole
    rows = table(folder)
    paths = [row for row in rows if row["role"] == "path"]
    assert [row["arm"] for row in rows if row["role"] == "run"] == ARMS
    assert [row["arm"] for row in paths if row["start"] == "0ba" and row["kind"] == "training"] == ARMS
    assert [(row["arm"], row["k"]) for row in paths if row["start"] == "2ba"] == [("plain", 2)]
    parts = {row["part"]: row["kind"] for row in paths if row["kind"] != "training" and "alone" not in row["kind"]}
    moved = {row["part"]: row["kind"].replace(" alone", "") for row in paths if "alone" in row["kind"]}
    assert moved == parts
    assert len(parts) == PARTS and parts["module.3"] == "block" and parts["module.8"] == "layer, block"
    assert parts["module.3.conv1"] == "layer" and parts["convolutions"] == "named"
    assert [row["arm"] for row in paths if "fall/test/loss/recompute" not in row.metrics] == ["linear"]
    assert all(row.batches == 0 for row in paths)
    assert len(lines(folder / "paths.csv")) == len(paths) and len(lines(folder / "sensitivity.csv")) == 2 * PARTS
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    told = (folder / "claims.md").read_text()
    assert told.count("arXiv:2012.06898") == 4 and told.count("arXiv:2106.16004") == 5


@pytest.mark.parametrize(
    ("part", "step", "names", "others"),
    [
        ("all", "0ba", None, "end"),
        ("all", "2ba", None, "end"),
        ("module.3.conv1", "0ba", ["module.3.conv1.*", "module.3.bn1.*"], "end"),
        ("module.3.conv1", "0ba", ["module.3.conv1.*", "module.3.bn1.*"], "begin"),
    ],
)
def test_paths_are_those_of_the_networks(part, step, names, others, whole):
    """Measured again by a plain loop: load the weights of a point, evaluate."""
    folder, _ = whole
    ends = kept(folder, "plain-seed1", step), kept(folder, "plain-seed1", "1dur")
    (row,) = (
        row
        for row in table(folder)
        if row["role"] == "path"
        and (row["arm"], row["part"], row["start"]) == ("plain", part, step)
        and row["kind"].endswith(" alone") == (others == "begin")
    )
    model, points = resnet_cifar(depth=8, width=4, in_channels=1).eval(), 5 if part == "all" else 3
    for data in ("test", "train"):
        images, labels = first_of(Digits(split=data), (40,))[0]
        for i, alpha in enumerate(np.linspace(0, 1, points)):
            whole_line = interpolate(*ends, alpha)
            fixed = ends[others == "end"]
            moves = [name for name in fixed if not names or any(fnmatchcase(name, pattern) for pattern in names)]
            model.load_state_dict({**fixed, **{name: whole_line[name] for name in moves}})
            with torch.no_grad():
                logits = model((images, labels))
            loss = torch.nn.functional.cross_entropy(logits, labels).item()
            error = 100 * (logits.argmax(1) != labels).float().mean().item()
            assert row[f"path/{data}/loss/interpolate/{i:03}"] == pytest.approx(loss, rel=1e-4)
            assert row[f"path/{data}/error/interpolate/{i:03}"] == pytest.approx(error)
    fixed = {"fixed": ends[0]} if others == "begin" else {}
    path, train = linear_path(*ends, include=names or ["*"], **fixed), first_of(Digits(split="train"), (32, 8))
    own = {"batch_norm": "recompute", "statistics": train, "forward": lambda model, batch: model(batch)}
    found = evaluate_path(model, path, points, first_of(Digits(split="test"), (32, 8)), **own).means["loss"]
    assert [row[f"path/test/loss/recompute/{i:03}"] for i in range(points)] == pytest.approx(found, rel=1e-4)
    assert row["distance"] == pytest.approx(distance(*ends, *([names] if names else [])))


def test_each_arm_begins_where_it_says(whole):
    folder, starts = whole
    plain, end = kept(folder, "plain-seed1", "0ba"), kept(folder, "plain-seed1", "1dur")
    assert torch.equal(starts["decay-seed1"], plain[FIRST]) and torch.equal(starts["plain-seed1"], plain[FIRST])
    last = torch.load(next((folder / "origin-random_labels-seed1" / "checkpoints").glob("ep*.pt")), weights_only=False)
    assert torch.equal(kept(folder, "adversarial-seed1", "0ba")[FIRST], last["state"]["model"][FIRST])
    # The highest training loss of the points on the path.
    (row,) = (row for row in table(folder) if row["role"] == "run" and row["arm"] == "plain")
    curve = results(folder / "plain-seed1")["found"]["paths"][0]["curves"]["train"]["interpolate"]["loss"]
    assert row["top"] == int(np.argmax(curve)) / 4
    top = interpolate(plain, end, row["top"])
    begun = kept(folder, "top-seed1", "0ba")
    assert all(torch.equal(begun[name], value) for name, value in top.items())
    # One block has other initial weights, and all else is the end's.
    begun = kept(folder, "reset-seed1", "0ba")
    for name, value in begun.items():
        is_reset = name.startswith("module.3.") and value.is_floating_point()
        if not is_reset:
            assert torch.equal(value, torch.zeros_like(value) if name.startswith("module.3.") else end[name]), name
    assert not torch.equal(begun[BLOCK], end[BLOCK]) and not torch.equal(begun[BLOCK], plain[BLOCK])
    assert torch.equal(begun["module.3.bn1.running_mean"], torch.zeros(4))


def test_options_by_sensitivity_are_those_of_the_halves(whole):
    """By how far the training loss rises, on the plain run's own paths; the first step is taken again by hand."""
    folder, _ = whole
    rises = {
        row["part"]: row["path/train/loss/interpolate/000"] - row["path/train/loss/interpolate/002"]
        for row in table(folder)
        if row["role"] == "path" and row["arm"] == "plain" and "layer" in row["kind"].split(", ")
    }
    order = sorted(rises, key=rises.get)
    insensitive, sensitive = order[: len(order) // 2], order[len(order) // 2 :]
    assert len(order) == 10
    made = OmegaConf.load(folder / "slow-seed1" / "config.yaml").optimizer.sgd
    (slow,), (decayed,) = (
        [key for key, own in made.groups.items() if option in own] for option in ("lr", "weight_decay")
    )
    assert made.groups[slow] == {"lr": 0.01} and made.groups[decayed] == {"weight_decay": 0.1}
    model = resnet_cifar(depth=8, width=4, in_channels=1)
    layers, trained = layers_of(model), [name for name, _ in model.named_parameters()]
    for key, half in ((slow, insensitive), (decayed, sensitive)):
        assert {*key.split("|")} == {name for part in half for name in layers[part] if name in trained}
    assert {*slow.split("|"), *decayed.split("|")} == {*trained}
    first = {arm: kept(folder, f"{arm}-seed1", "0ba") for arm in ("plain", "slow")}
    assert all(torch.equal(first["slow"][name], value) for name, value in first["plain"].items())


def test_what_is_done_is_not_done_again(copied, tmp_path):
    assert dry_run(plan(study(tmp_path))).endswith("8 runs, 8 times 4ba; 0 left, 0 times")
    more = study(tmp_path)
    more.study.interpolation.arms.rate = {"optimizer": {"sgd": {"lr": 0.01}}}
    assert [row["arm"] for row in outcome(more).rows if row["role"] == "run"] == [*ARMS, "rate"]
    assert Watch.batches == LENGTH
    # It has not kept another step.
    assert "study.interpolation.steps: ['1ba'] given, but the run in" in refused(
        tmp_path, study(tmp_path, steps=["1ba"])
    )


def without_top(rows):
    """Which is told where an arm begins there."""
    told = without_seconds(rows)
    return [(*others, {name: value for name, value in metrics.items() if name != "top"}) for *others, metrics in told]


@pytest.mark.parametrize("kill_at", [6, 11])
def test_killed_at_any_time_it_goes_on(whole, kill_at, tmp_path):
    arms = ("plain", "slow") if kill_at == 6 else ("plain", "adversarial")
    given = study(tmp_path)
    for arm in ARMS:
        if arm not in arms:
            given.study.interpolation.arms[arm] = False
    Watch.reset(kill_at)
    with pytest.raises(KeyboardInterrupt):
        outcome(given)
    found = outcome(given).rows
    names = {row.node for row in found}
    assert without_top(found) == without_top(row for row in table(whole[0]) if row.node in names)
    assert 0 <= Watch.batches - 3 * LENGTH <= 1


def test_a_snapshot_that_is_gone_fails_what_needs_it_in_one_line(copied, tmp_path):
    folder = tmp_path / "study"
    shutil.rmtree(folder / "plain-seed1" / "top")
    shutil.rmtree(folder / "top-seed1")
    failures = outcome(study(tmp_path)).failures
    assert [*failures] == ["top-seed1"] and "top is no folder" in failures["top-seed1"] and "\n" not in str(failures)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=[2ba,4ba]", "steps: 4ba given, but plain ends at 4ba; expected moments before the end"),
        ("steps=[soon]", "steps: ['soon'] given; expected"),
        ("steps=[0ba,1ba]", "steps: 0ba given; the path from the beginning is measured anyway"),
        ("arms={}", None),
        ("arms.top.from={top_of: reset}", "arms.top.from.top_of: 'reset' given, but it is not an arm before it"),
        ("arms.top.from={end_of: nobody}", "arms.top.from.end_of: 'nobody' given, but it is not an origin, or an arm"),
        ("arms.top.from={}", "arms.top.from: {'top_of': 'plain', 'end_of': 'decay'} given; expected end_of or top_of"),
        ("arms.reset.from.reset=[nothing.*]", "arms.reset.from.reset: no tensor is called 'nothing.*'"),
        ("arms.decay.from={end_off: plain}", "arms.decay.from.end_off: unknown argument; did you mean end_of"),
        ("arms.decay.from=plain", "arms.decay.from: 'plain' given; expected a mapping"),
        ("arms.linear.from={end_of: plain}", "arms.linear.from: plain and linear must be of one network"),
        ("arms.decay.optimizer.sgd.lrr=1", "arms.decay.optimizer.sgd.lrr: unknown argument; did you mean lr"),
        ("arms.decay.seed=3", "arms.decay.seed: the study sets it for every run"),
        ("arms.top.start={run: other}", "arms.top.start: given beside from, where it begins too"),
        ("origins.plain={}", "arms.plain: an origin has that name too"),
        ("detailed=[nobody]", "detailed: ['nobody'] given; expected different ones, of plain, decay"),
        ("parts=[neurons]", "parts"),
        ("arms.slow.by_sensitivity.of=reset", "arms.slow.by_sensitivity.of: 'reset' given, but it is not"),
        ("arms.slow.by_sensitivity={of: plain}", "arms.slow.by_sensitivity: no options given; expected sensitive or"),
        ("arms.slow.by_sensitivity.sensitive={lrr: 1}", "arms.slow.by_sensitivity.sensitive.lrr: unknown argument"),
        ("arms.slow.max_duration=1ba", "arms.slow.max_duration: given beside by_sensitivity, by which all else is as"),
        ("arms.slow.from={end_of: plain}", "arms.slow.from: given beside by_sensitivity"),
        ("arms.plain.optimizer.sgd.groups={'*bias': {lr: 1}}", "slow.by_sensitivity.of: the optimizer of plain has"),
        ("parts=[]", "arms.slow.by_sensitivity.of: its parts with weights are convolutions; expected two or more"),
        ("part_others=[begin]", "arms.slow.by_sensitivity.of: 'plain' given, but it is not an arm before it that"),
        ("part_others=[]", "part_others: [] given; expected different ones, of end, begin"),
        ("named_parts={x: [nothing.*]}", "named_parts.x: no tensor is called 'nothing.*'"),
        ("named_parts={module.3: ['*']}", "named_parts.module.3: module.3 is the name of another part already"),
        ("points=2", "points: 2 given; expected 3 or more"),
        ("part_points=1", "part_points: 1 given; expected 2 or more"),
        ("path_examples=0", "path_examples: 0 given; expected 1 or more"),
        ("setting=hard", "setting: 'hard' given; expected"),
    ],
)
def test_mistakes_in_its_keys_are_one_line(override, message, tmp_path):
    given = study(tmp_path)
    if override == "arms={}":
        given.study.interpolation.arms, override, message = {}, "points=5", "arms: missing; expected names"
    if override.endswith("from={}"):
        given.study.interpolation.arms.top["from"] = {"top_of": "plain", "end_of": "decay"}
        override = "points=5"
    if override == "arms.slow.by_sensitivity={of: plain}":
        given.study.interpolation.arms.slow, override = {"by_sensitivity": {"of": "plain"}}, "points=5"
    if override.startswith("arms.top.from={end_of"):
        given.study.interpolation.arms.top = {}
    said = refused(tmp_path, given, f"study.interpolation.{override}")
    assert message in said and ": study.interpolation." in said


def test_parts_that_share_a_weight_are_not_halved():
    model, one = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)), ["0.weight", "0.bias"]
    assert parameters_of(model, {"a": ("named", one), "b": ("named", ["1.weight"])}) == {"a": one, "b": ["1.weight"]}
    with pytest.raises(ValueError, match=r"several of its parts have 0\.bias; expected parts that share none"):
        parameters_of(model, {"a": ("named", one), "b": ("named", ["0.bias", "1.weight"])})


# Tables that are made up, with known answers.


def test_shapes_by_their_formulas():
    falls = shapes_of(np.array([4.0, 3.0, 2.0, 1.0, 0.0]))
    assert falls == {"fall": 4, "rise": 0, "above": 0, "high": 0.5, "area": 0.5}
    late = shapes_of(np.array([2.0, 2.5, 1.5, 1.8, 0.0]))
    assert late == pytest.approx({"fall": 2, "rise": 0.5, "above": 0.5, "high": 0.75, "area": 7.8 / 5 / 2})
    rising = shapes_of(np.array([1.0, 3.0, 2.0]))
    assert rising["fall"] == -1 and rising["rise"] == 2 and math.isnan(rising["high"])
    assert all(map(math.isnan, shapes_of(np.array([1.0, math.inf, 0.0])).values()))


def test_errors_are_in_points_and_what_is_null_is_not_finite():
    path = {"distance": 2.0, "curves": {"test": {"interpolate": {"error": [0.9, 0.5, 0.1], "loss": [2.0, None, 0.1]}}}}
    found = metrics_of_path(path)
    assert found["fall/test/error/interpolate"] == pytest.approx(80) and found["distance"] == 2
    assert found["path/test/error/interpolate/001"] == 50
    assert math.isnan(found["fall/test/loss/interpolate"]) and math.isnan(found["path/test/loss/interpolate/001"])


def run_and_paths(arm, seed, value, loss, later=None, parts=(), how="interpolate"):
    """The rows of one training: its path from the beginning, the one from 2ba, and what its parts cost."""
    more = 0.001 * seed
    tags = {"role": "run", "arm": arm, "seed": seed}
    none = {"node": f"{arm}-seed{seed}", "batches": 1, "samples": 1, "seconds": 1.0}
    yield Row(**none, tags=tags, metrics={ACCURACY: value + more})
    curves = {("training", "all", "0ba"): loss, ("training", "all", "2ba"): later}
    for (kind, part, start), curve in curves.items():
        if curve is not None:
            both = {how: {"loss": [v + more for v in curve], "error": [v / 3 for v in curve]}}
            path = {"distance": 1.0, "curves": {"test": both, "train": both}}
            about = {**tags, "role": "path", "kind": kind, "part": part, "start": start, "k": 2 * (start != "0ba")}
            yield Row(**none, tags=about, metrics=metrics_of_path(path))
    for i, cost in enumerate(parts):
        about = {**tags, "role": "path", "kind": "layer", "part": f"module.{i}", "start": "0ba", "k": 0}
        metrics = {f"fall/{data}/{how}": cost + seed / 10 for data in ("test/error", "test/loss", "train/loss")}
        yield Row(**none, tags=about, metrics=metrics)


STEADY, PLATEAU, BUMPY = (2.0, 1.5, 1.0, 0.5, 0.0), (2.0, 2.1, 2.0, 1.9, 0.0), (2.0, 1.0, 1.5, 0.5, 0.0)
HUMP, LATER = (1.0, 1.6, 1.5, 0.4, 0.0), (1.0, 0.8, 0.6, 0.3, 0.0)
SIMPLE = "In the simple setting the training loss falls steadily"
MODERN = "In modern settings test loss and error stay high"
MIDDLE = "From a state in the middle of training the test loss rises"
SHAPE = "The shape of the path from the beginning to the end does not tell how good the end is."
LAYERS = "Some layers are more sensitive"
OPTIONS = "Options by how sensitive a part is help"
UNTOLD = "cannot be told here"


def verdict(claim, setting="modern", loss=PLATEAU, later=HUMP, parts=(0.0, 5.0), values=None, seeds=3, custom=0.95):
    """Of made-up arms: one, or, of these accuracies, several whose paths stay high the longer, the later they come."""
    rows = []
    for seed in range(seeds):
        rows += run_and_paths("plain", seed, 0.9, loss, later, parts)
        for i, value in enumerate(values or ()):
            shape = tuple(np.interp(np.linspace(0, 1, 21), [0, (i + 1) / 40, 0.999, 1], [2, 2.0, 2 - i / 30, 0]))
            rows += run_and_paths(f"arm{i}", seed, value, shape)
        custom_rows = run_and_paths("slow", seed, custom + 0.002 * seed * (custom == 0.9), loss)
        rows += custom_rows if claim == OPTIONS else []
    told = claims_of(rows, ACCURACY, setting, ["plain"], {"slow": "plain"})
    (found,) = (one for one in told if one.claim.startswith(claim))
    assert found.why
    return found.verdict


@pytest.mark.parametrize(
    ("claim", "expected", "changes"),
    [
        (SIMPLE, "holds", {"setting": "simple", "loss": STEADY}),
        (SIMPLE, "fails", {"setting": "simple", "loss": BUMPY}),
        (MODERN, UNTOLD, {"loss": (2.0, 3.0, 2.0, 2.0)}),
        (MODERN, "fails", {"loss": STEADY}),
        (MODERN, "holds", {"loss": (2.0,) * 9 + (0.0,)}),
        (MIDDLE, "holds", {}),
        (MIDDLE, "fails", {"later": LATER}),
        (MIDDLE, UNTOLD, {"later": None}),
        (LAYERS, "holds", {}),
        (LAYERS, "fails", {"parts": (3.0, 3.1)}),
        (OPTIONS, "holds", {}),
        (OPTIONS, "fails", {"custom": 0.8}),
        (OPTIONS, UNTOLD, {"custom": 0.9}),
        (SHAPE, UNTOLD, {}),
        (SHAPE, "fails", {"values": [0.5 + i / 50 for i in range(20)]}),
        *((claim, UNTOLD, {"seeds": 1}) for claim in (MODERN, MIDDLE, LAYERS)),
    ],
)
def test_each_verdict_can_be_each(claim, expected, changes):
    assert verdict(claim, **changes) == expected


def test_sensitivity_is_told_over_seeds_and_settings():
    rows = [row for seed in (0, 1) for row in run_and_paths("plain", seed, 0.9, STEADY, parts=(1.0, 4.0))]
    rows += [row for seed in (0, 1) for row in run_and_paths("other", seed, 0.9, STEADY, parts=(3.0, 4.0))]
    first, second = sensitivity(rows, "interpolate")
    assert (first["part"], first["plain"], first["other"]) == ("module.0", pytest.approx(1.05), pytest.approx(3.05))
    assert first["over settings"] == pytest.approx(math.sqrt(2)) and second["over settings"] == pytest.approx(0)
    assert first["over seeds"] == pytest.approx(0.1 / math.sqrt(2))
