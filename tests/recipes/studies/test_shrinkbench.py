"""Whole studies of `shrinkbench` on the real digits: ratios as counted, methods, kill and resume; lists and claims."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from composer.metrics import CrossEntropy
from omegaconf import OmegaConf
from studies import Watch, lines, of_pruning, outcome, refused, table, weights, without_seconds
from torch.nn.utils.prune import BasePruningMethod
from torchmetrics import MetricCollection

from accelerando.recipes.models.builders import lenet_300_100
from accelerando.recipes.studies.driver import dry_run
from accelerando.recipes.studies.plan import plan
from accelerando.recipes.studies.shrinkbench_checklist import checklist
from accelerando.recipes.studies.shrinkbench_claims import claims_of
from accelerando.recipes.studies.shrinkbench_table import Entry, means, read_results
from accelerando.recipes.train import train

TORCH = "torch.nn.utils.prune"
OWN = f"""
pairs:
  lenet: {{model: {{lenet_300_100: {{image_size: 8}}}}}}
  resnet: {{}}
methods:
  whole: {{criterion: magnitude}}
  each: {{criterion: magnitude, scope: layerwise}}
  whole_torch: {{method: "{TORCH}:L1Unstructured", scope: global}}
  channels: {{method: "{TORCH}:LnStructured", options: {{n: 2, dim: 0}}}}
  mine: {{method: "studies:first_weights"}}
compressions: [2]
fine_tuning: {{max_duration: 2ba}}
seeds: [1]
"""
METHODS = ("whole", "each", "whole_torch", "channels", "mine")
ACCURACY, TOP5 = "metrics/eval/MulticlassAccuracy", "metrics/eval/MulticlassTop5Accuracy"
DENSE, RUN = 3, 2  # batches
LENET = 64 * 300 + 300 * 100 + 100 * 10  # multiply-adds, and weights
pytestmark = [
    pytest.mark.usefixtures("watch"),
    pytest.mark.filterwarnings("ignore::accelerando.algorithms.pruning.LayerCollapseWarning"),
]


def study(folder, **changes):
    """The settings, which a test may change before it trains."""
    given = of_pruning(folder, "shrinkbench", OWN, "3ba")
    given.study.shrinkbench.update(changes)
    return given


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study's folder, the masks of its runs, and the first weights with which each begins."""
    Watch.reset()
    folder = tmp_path_factory.mktemp("whole")
    found = outcome(study(folder))
    assert not found.failures and Watch.batches == 2 * (DENSE + len(METHODS) * RUN)
    return folder / "study", Watch.masks, Watch.starts


def alone(given, pair="resnet", method="whole"):
    """One pair and one method."""
    own = given.study.shrinkbench
    own.update(pairs={pair: own.pairs[pair]}, methods={method: own.methods[method]})
    return given


def density_of(folder, pair):
    """By the definition of ShrinkBench, at ratio 2."""
    sizes = [tensor.numel() for name, tensor in parameters(folder / f"{pair}-initial").items()]
    prunable = sum(tensor.numel() for tensor in parameters(folder / f"{pair}-initial").values() if tensor.dim() > 1)
    return (sum(sizes) / 2 - (sum(sizes) - prunable)) / prunable


def parameters(folder):
    return {name: tensor for name, tensor in weights(folder).items() if "running" not in name and "num_" not in name}


def name_of(pair, method):
    return f"{pair}-initial-{method}-2x-seed1"


def test_a_study_and_what_it_leaves(whole):
    folder, *_ = whole
    rows = table(folder)
    assert [(row["pair"], row["method"]) for row in rows] == [
        (pair, method) for pair in ("lenet", "resnet") for method in ("dense", *METHODS)
    ]
    assert {(row["pair"], row["model"], row["data"]) for row in rows} == {
        ("lenet", "lenet_300_100", "digits"),
        ("resnet", "resnet_cifar", "digits"),
    }
    told = {(line["pair"], line["method"]): line for line in lines(folder / "shrinkbench.csv")}
    dense = {row["pair"]: row.metrics for row in rows if row["method"] == "dense"}
    for row in rows:
        if row["method"] == "dense":
            continue
        line, initial = told[row["pair"], row["method"]], dense[row["pair"]]
        assert float(line["change1"]) == pytest.approx(row.metrics[ACCURACY] - initial[ACCURACY])
        assert float(line["change5"]) == pytest.approx(row.metrics[TOP5] - initial[TOP5])
        assert row.metrics[TOP5] >= row.metrics[ACCURACY]
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    report = (folder / "report.md").read_text()
    assert "lenet, initial model initial (lenet_300_100 on digits; top-1" in report
    assert re.search(r"several seeds, means with deviations +does not hold +1 at least, where 3", report)
    assert (folder / "claims.md").read_text().count("| arXiv:2003.03033") == 4


@pytest.mark.parametrize("pair", ["lenet", "resnet"])
def test_ratios_are_those_of_all_parameters(pair, whole):
    folder, *_ = whole
    rows = {row["method"]: row.metrics for row in table(folder) if row["pair"] == pair}
    for method in METHODS:
        size = nonzero = effective = 0
        for name, tensor in parameters(folder / name_of(pair, method)).items():
            size, nonzero = size + tensor.numel(), nonzero + int((tensor != 0).sum())
            effective += int((tensor != 0).sum()) if name.endswith("weight") else 0
        assert rows[method]["parameters"] == size
        assert rows[method]["compression_ratio"] == pytest.approx(size / nonzero)
        assert rows[method]["compression_ratio"] == pytest.approx(2, abs=0.2 if method == "channels" else 1e-3)
        if pair == "lenet":  # whose weights take part in one multiply-add each
            assert rows[method]["multiply_adds"] == LENET
            assert rows[method]["speedup"] == pytest.approx(LENET / effective)


def test_each_method_prunes_the_same_initial_model(whole, tmp_path):
    folder, masks, starts = whole
    for pair in ("lenet", "resnet"):
        trained = {name: tensor for name, tensor in weights(folder / f"{pair}-initial").items()}
        first = next(iter(trained.values()))
        assert all(torch.equal(starts[name_of(pair, method)], first) for method in METHODS)
        own = {method: masks[name_of(pair, method)] for method in METHODS}
        left = 1 - density_of(folder, pair)
        assert all(torch.equal(mask, own["whole_torch"][name]) for name, mask in own["whole"].items())
        share = {name: float(mask.float().mean()) for name, mask in own["each"].items()}
        assert np.ptp([*share.values()]) < 0.02 < np.ptp([float(mask.float().mean()) for mask in own["whole"].values()])
        for name, mask in own["channels"].items():
            norms = trained[name].flatten(1).norm(dim=1)
            kept = len(norms) - round(left * len(norms))
            assert torch.equal(mask.flatten(1).all(1), mask.flatten(1).any(1)) and mask.flatten(1).any(1).sum() == kept
            assert norms[mask.flatten(1).any(1)].min() >= norms[~mask.flatten(1).any(1)].max()
            flat = own["mine"][name].flatten()
            assert flat[: int(flat.sum())].all()


def test_a_method_is_the_run_that_it_says(whole, tmp_path):
    folder, *_ = whole
    value = {(row["pair"], row["method"]): row.metrics[ACCURACY] for row in table(folder)}
    plain = {name: v for name, v in OmegaConf.to_container(study(tmp_path)).items() if name != "study"}
    assert train(plain | {"run_name": "dense", "seed": 17}).metrics[ACCURACY] == value["resnet", "dense"]
    pruned = {"criterion": "magnitude", "scope": "layerwise", "density": density_of(folder, "resnet")}
    changes = {"run_name": "each", "seed": 1, "max_duration": "2ba", "start": {"run": "dense"}}
    found = train(plain | changes | {"algorithms": {"prune_at_init": pruned}})
    assert found.metrics[ACCURACY] == value["resnet", "each"]


@pytest.mark.parametrize(("kill_at", "method"), [(2, "whole"), (DENSE + 2, "channels")])
def test_killed_at_any_time_it_goes_on(whole, kill_at, method, tmp_path):
    given = alone(study(tmp_path), method=method)
    given.save_interval = "1ba"
    Watch.reset(kill_at)
    with pytest.raises(KeyboardInterrupt):
        outcome(given)
    outcome(given)
    known = [row for row in table(whole[0]) if row["pair"] == "resnet" and row["method"] in ("dense", method)]
    assert without_seconds(table(tmp_path / "study")) == without_seconds(known)
    assert DENSE + RUN <= Watch.batches <= DENSE + RUN + 1


def test_what_is_done_is_not_done_again_and_what_is_new_is(copied, tmp_path):
    assert dry_run(plan(study(tmp_path))).endswith("0 left, 0 times")
    given = alone(study(tmp_path, initials={"initial": {}, "other": {"weights_seed": 5}}))
    found = outcome(given).rows
    assert Watch.batches == DENSE + RUN and found[:2] == [row for row in copied if row.node in NODES]
    assert [row["initial"] for row in found[2:]] == ["other", "other"] and found[2].metrics != found[0].metrics
    given.study.shrinkbench.update(initials={"initial": {}}, compressions=[3])
    assert "2 runs, 1.667 times 3ba; 1 left" in dry_run(plan(given))
    given.study.shrinkbench.update(compressions=[2], pruning={"classifier": False})
    assert "the run in" in refused(tmp_path, given)


NODES = ("resnet-initial", "resnet-initial-whole-2x-seed1")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pairs=null", "pairs: "),
        ("pairs.lenet.seed=3", "pairs.lenet.seed: the study sets it for every run"),
        ("pairs.lenet.model.lenet_300_100.wide=3", "pairs.lenet.model.lenet_300_100.wide: unknown argument"),
        ("initials.other={model: {resnet_cifar: {width: 8}}}", "initials.other.model: the study sets it"),
        ("initials.other={optimizer: {decoupled_sgdw: {rate: 1}}}", "initials.other.optimizer.decoupled_sgdw.rate: "),
        ("fine_tuning.start={run: x}", "fine_tuning.start: the study sets it for every run"),
        ("fine_tuning.max_duration=2xx", "fine_tuning.max_duration: "),
        ("fine_tuning.optimiser={sgd: {}}", "fine_tuning.optimiser: unknown key; did you mean optimizer?"),
        ("compressions=[]", "compressions: [] given; expected different ones, above 1"),
        ("compressions=[1]", "given; expected different ones, above 1"),
        ("compressions=[2,2.0000001]", "expected different ones, above 1, that differ in their first six digits"),
        ("fine_tuning.algorithms=null", "fine_tuning.algorithms: null given; expected names with their arguments"),
        ("fine_tuning.algorithms=mixup", "fine_tuning.algorithms: 'mixup' given; expected names"),
        ("fine_tuning.algorithms={prune_at_init: {density: 0.9}}", "fine_tuning.algorithms.prune_at_init: the study"),
        (
            "initials.other={algorithms: {magnitude_pruning: {density: 0.9}}}",
            "initials.other.algorithms.magnitude_pruning: the study adds what prunes",
        ),
        (f"pairs.other={{model: {{'{__name__}:without_accuracy': {{}}}}}}", "metric: no metric is "),
        ("methods.channels.options={n: 2, dim: 3}", "methods.channels: "),
        ("methods=null", "methods: "),
        ("methods.dense={criterion: magnitude}", "methods.dense: is what the study calls something else"),
        ("methods.largest={}", "methods.largest: unknown criterion"),
        ("methods.whole.density=0.5", "methods.whole.density: the study sets it for every run"),
        ("methods.mine.density=0.5", "methods.mine.density: the study sets it for every run"),
        ("methods.mine.method=nowhere:thing", "methods.mine.method: PrunedBy: method must be an import path"),
        ("methods.mine.method=torch", "methods.mine.method: PrunedBy: method must be an import path"),
        ("methods.mine.method=3", "methods.mine.method: 3 given"),
        (f"methods.mine.method={TORCH}:l1_unstructured", "methods.mine.method: PrunedBy: method must be a class such"),
        ("methods.mine.options={n: 2}", "methods.mine.options: PrunedBy: options must be left out for a function"),
        ("methods.channels.options={m: 2}", "methods.channels.options: PrunedBy: options must be those of"),
        ("methods.channels.scope=global", "methods.channels.scope: PrunedBy: scope must be layerwise for a structured"),
        ("pruning.exclude=[nothing]", "no prunable weight is called 'nothing'"),
        ("metric=CrossEntropy", "metric: lower is better"),
        ("published=nowhere.csv", "published: "),
        ("initial_seed=first", "initial_seed: 'first' given"),
    ],
)
def test_mistakes_in_its_keys_are_one_line(override, message, tmp_path):
    said = refused(tmp_path, study(tmp_path), f"study.shrinkbench.{override}")
    assert message in said and ": study.shrinkbench." in said


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithms={prune_at_init: {density: 0.5}}"], "algorithms.prune_at_init: the study adds what prunes"),
        (["eval_data=null"], "eval_data: missing; accuracies are measured on it"),
    ],
)
def test_other_mistakes_are_one_line(overrides, message, tmp_path):
    assert message in refused(tmp_path, study(tmp_path), *overrides)


def test_a_ratio_that_is_not_reached_is_refused_with_the_largest_that_is(tmp_path):
    biases = 300 + 100 + 10
    given = alone(study(tmp_path), "lenet")
    largest = (LENET + biases) / (biases + 1)
    assert len(plan(study_at(given, math.floor(largest))).nodes({})) == 2
    said = refused(tmp_path, study_at(given, math.ceil(largest)))
    expected = (
        f"{math.ceil(largest)} given, but at most {math.floor(100 * largest) / 100} is reached: 410 of the 50,610"
    )
    assert f"study.shrinkbench.compressions: {expected} parameters of lenet" in said


def study_at(given, ratio):
    given.study.shrinkbench.compressions = [ratio]
    return given


THEIRS = """dataset,model,strategy,compression,seed,pre_acc1,pre_acc5,post_acc1,post_acc5,real_compression,flops,speedup
CIFAR10,resnet20,None,1,42,.9,.99,.91,.99,1,40e6,1
CIFAR10,resnet20,GlobalMagWeight,2,42,.7,.9,.915,.99,2,40e6,1.5
CIFAR10,resnet20,GlobalMagWeight,2,43,.7,.9,.895,.99,2.02,40e6,1.5
CIFAR10,resnet20,RandomPruning,2,42,.1,.5,.8,.98,1.99,-1,-1
"""


def test_somebody_elses_table_is_told_beside(copied, tmp_path):
    file = tmp_path / "theirs.csv"
    file.write_text(THEIRS)
    (first, *_) = read_results(str(file))
    assert (first.pair, first.baseline, first.asked, first.dense1) == ("CIFAR10-resnet20", "global magnitude", 2, 0.9)
    line, other = means(read_results(str(file)), "theirs")
    assert line["top1"] == pytest.approx(0.905) and line["top1 deviation"] == pytest.approx(0.02 / math.sqrt(2))
    assert line["change1"] == pytest.approx(0.005) and line["compression"] == pytest.approx(2.01) and line["seeds"] == 2
    assert other["baseline"] == "random" and math.isnan(other["speedup"]) and math.isnan(other["top1 deviation"])

    outcome(study(tmp_path, published=str(file)))
    told = [row for row in lines(tmp_path / "study" / "shrinkbench.csv") if row["source"]]
    assert [row["method"] for row in told] == ["GlobalMagWeight", "RandomPruning"] and Watch.batches == 0
    report = (tmp_path / "study" / "report.md").read_text()
    assert f"the paper's checklist, of {file}" in report and "CIFAR10-resnet20 lacks layerwise magnitude" in report
    assert "0.9050 ± .0141 (+.005)" in report


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column dataset"),
        (THEIRS.partition("\n")[0], "has no lines below its columns"),
        ("\n".join(THEIRS.splitlines()[:2]), "has no line of a network that was pruned"),
        (THEIRS.replace("dataset", "data"), "has no column dataset; expected dataset, model"),
        (THEIRS.replace(".915", "many"), "line 3: post_acc1 is 'many'; expected a number"),
        (THEIRS.replace(".915", "90.5"), "line 3: post_acc1 is 90.5; expected a share, from 0 to 1"),
        (THEIRS.replace(".915", ""), "line 3: lacks compression or post_acc1"),
        (THEIRS.replace("GlobalMagWeight,2,42", ",2,42"), "line 3: lacks a strategy, at a compression that is not 1"),
        (THEIRS.replace("GlobalMagWeight,2,42", "GlobalMagWeight,-2,42"), "line 3: compression is -2; expected 1 of"),
        (THEIRS.replace("GlobalMagWeight,2,43", "GlobalMagWeight,2.0,42"), "line 4: is as "),
        (THEIRS + "CIFAR10,resnet20\n", "line 6: has another number of columns than the first line"),
        ("dataset,modèle", "theirs.csv: not readable as CSV; 'utf-8' codec can't decode"),
    ],
)
def test_a_table_that_cannot_be_read_is_told_in_one_line(text, message, tmp_path):
    (tmp_path / "theirs.csv").write_bytes(text.encode("latin-1"))
    said = refused(tmp_path, study(tmp_path, published=str(tmp_path / "theirs.csv")))
    assert "study.shrinkbench.published: " in said and message in said


BASELINES = {
    "random": "random",
    "whole": "global magnitude",
    "each": "layerwise magnitude",
}


def entries(top1, pairs=("a", "b", "c"), initials=("x", "y"), ratios=(2, 4, 8, 16, 32), seeds=3, **changes):
    """Made up: the accuracy is a function of pair, initial model, method, ratio and seed."""
    for pair in pairs:
        for initial in initials:
            for method, baseline in BASELINES.items():
                for ratio in ratios:
                    for seed in range(seeds):
                        entry = Entry(
                            pair=pair,
                            model="resnet",
                            data="imagenet",
                            initial=initial,
                            method=method,
                            baseline=baseline,
                            asked=ratio,
                            seed=seed,
                            compression=ratio,
                            speedup=ratio,
                            top1=top1(initial, method, seed),
                            top5=0.9,
                            dense1=0.8,
                            dense5=0.95,
                            multiply_adds=2e9,
                        )
                        yield replace(entry, **changes)


def plain(initial, method, seed):
    noise = 0.001 * ((3 * seed + len(method)) % 4)
    return {"random": 0.5, "whole": 0.75, "each": 0.7}[method] + noise


HELD = (
    "three pairs",
    "no toys",
    "large ones",
    "compression ratios",
    "random, and",
    "top-1",
    "compression and",
    "the change",
    "several seeds",
    "the same initial",
)


def kept(given):
    found = {point.point: point.holds for point in checklist(means(given))}
    return {short: next(holds for point, holds in found.items() if point.startswith(short)) for short in HELD}


@pytest.mark.parametrize(
    ("changes", "lacking"),
    [
        ({}, {}),
        ({"pairs": ("a", "b")}, {"three pairs": False}),
        ({"model": "MobileNet-v2"}, {}),
        ({"model": "GoogLeNet"}, {}),
        ({"ratios": (1.5, 3, 6, 12, 24, 48)}, {}),
        ({"data": "Fashion-MNIST"}, {"no toys": False}),
        ({"model": "lenet_300_100"}, {"no toys": False}),
        ({"multiply_adds": 3e8}, {"large ones": False}),
        ({"multiply_adds": math.nan}, {"large ones": None}),
        ({"ratios": (2, 4, 8, 16)}, {"compression ratios": False}),
        ({"baseline": "random"}, {"random, and": False}),
        ({"top5": math.nan}, {"top-1": False}),
        ({"speedup": math.nan}, {"compression and": False}),
        ({"dense1": math.nan}, {"the change": False, "the same initial": None}),
        ({"seeds": 2}, {"several seeds": False}),
    ],
)
def test_the_checklist(changes, lacking):
    assert kept([*entries(plain, **changes)]) == dict.fromkeys(HELD, True) | lacking


def test_a_method_from_another_initial_model_is_seen():
    given = [entry for entry in entries(plain) if (entry.initial, entry.method) != ("y", "random")]
    assert kept(given) == dict.fromkeys(HELD, True) | {"the same initial": False, "random, and": False}


def verdicts(top1, **changes):
    given = [*entries(top1, pairs=("a",), ratios=(16,), seeds=5, **changes)]
    return dict(
        zip(("initial", "seed", "random", "global"), (claim.verdict for claim in claims_of(given)), strict=True)
    )


def crossing(initial, method, seed):
    """The two methods change places, from one initial model to the other."""
    return plain(initial, {"whole": "each", "each": "whole"}.get(method, method) if initial == "y" else method, seed)


def one_seed_differs(initial, method, seed):
    return plain(initial, method, seed) + (0.1 if (method, seed) == ("each", 4) else 0.0)


def others_cross(initial, method, seed):
    """The same method is first, and the others change places."""
    return plain(initial, {"random": "each", "each": "random"}.get(method, method) if initial == "y" else method, seed)


def near(initial, method, seed):
    return plain(initial, method, seed) + (0.15 if method == "random" else 0.0)


UNTOLD = "cannot be told here"
EXPECTED = {"initial": "fails", "seed": "fails", "random": "holds", "global": "holds"}


@pytest.mark.parametrize(
    ("top1", "changes", "expected"),
    [
        (plain, {}, {}),
        (crossing, {}, {"initial": "holds", "global": "fails"}),
        (others_cross, {}, {"random": "fails"}),
        (one_seed_differs, {}, {"initial": UNTOLD, "seed": "holds", "global": UNTOLD}),
        (near, {}, {"random": UNTOLD}),
        (plain, {"initials": ("x",)}, {"initial": UNTOLD}),
        (plain, {"baseline": ""}, {"random": UNTOLD, "global": UNTOLD}),
    ],
)
def test_verdicts(top1, changes, expected):
    assert verdicts(top1, **changes) == EXPECTED | expected


def test_a_run_that_diverged_is_not_counted_and_told():
    """Neither what it is compared with nor who is first there is told of; elsewhere all goes on."""
    given = [*entries(plain, pairs=("a",), ratios=(8, 16), seeds=5)]
    whole = [claim.verdict for claim in claims_of(given)]
    for method, at_16 in (("random", {"random"}), ("each", {"global"}), ("whole", {"global"})):
        lost = [
            replace(one, top1=math.nan)
            if (one.initial, one.method, one.asked, one.seed) == ("x", method, 16, 2)
            else one
            for one in given
        ]
        claims = [*claims_of(lost)]
        told = [f"{method} of a, x at 16x" in claim.measured for claim in claims]
        assert told == [True, True, False, False, True, True]
        assert [claim.verdict for claim in claims] == whole
        pairs = dict(zip(("random", "global"), claims[-2:], strict=True))
        assert {name for name, claim in pairs.items() if "a, x" not in claim.measured.split("; not")[0]} == at_16
        assert "of 3 pairs, initial models" in claims[1].measured


def test_one_method_ranks_nowhere():
    given = [one for one in entries(plain, pairs=("a",), ratios=(16,), seeds=5) if one.method == "whole"]
    assert {claim.verdict for claim in claims_of(given)} == {UNTOLD}


def test_a_method_is_the_papers_by_what_it_is_and_not_by_its_name(tmp_path):
    given = study(tmp_path, pairs={"lenet": {"model": {"lenet_300_100": {"image_size": 8}}}})
    given.study.shrinkbench.methods |= {"random": {}, "of_torch": {"method": f"{TORCH}:RandomUnstructured"}}
    given.study.shrinkbench.methods |= {
        "own": {"method": f"{__name__}:snip"},
        "kindless": {"method": f"{__name__}:Half"},
    }
    found = {node.tags["method"]: node.tags.get("baseline", "") for node in plan(given).nodes({})}
    assert found == {
        "dense": "",
        "whole": "global magnitude",
        "each": "layerwise magnitude",
        "whole_torch": "global magnitude",
        "channels": "",
        "mine": "",
        "random": "random",
        "of_torch": "random",
        "own": "",
        "kindless": "",
    }


def snip(model, weights, masks):
    """Whose name is that of another criterion."""
    return {name: weight.abs() for name, weight in weights.items()}


class Half(BasePruningMethod):
    """It says not of which kind it is."""

    def __init__(self, amount):
        self.amount = amount

    def compute_mask(self, t, default_mask):
        return default_mask.flatten().index_fill(0, torch.arange(self.amount), 0).view_as(t)


def without_accuracy():
    model = lenet_300_100(image_size=8)
    model.val_metrics = MetricCollection([CrossEntropy()])
    return model


def test_one_seed_tells_nothing():
    given = [*entries(plain, pairs=("a",), ratios=(16,), seeds=1)]
    assert {claim.verdict for claim in claims_of(given)} == {UNTOLD}
