"""A whole study of `generalization` on the real digits: rounds, masks, losses of examples, kills; tables, verdicts."""

import shutil
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from studies import Watch, lines, of_pruning, outcome, refused, results, table, trained_whole, weights, without_seconds
from torch.nn import functional as F

from accelerando.algorithms.checkpoints import read_weights
from accelerando.algorithms.pruning import load_masks
from accelerando.algorithms.snapshots import find_snapshot
from accelerando.recipes.config.errors import ConfigError
from accelerando.recipes.config.loading import load
from accelerando.recipes.config.recipe import check
from accelerando.recipes.data.images import Digits
from accelerando.recipes.data.noise import changed_by, noisy
from accelerando.recipes.models.builders import lenet_300_100
from accelerando.recipes.studies.claims import judge_some
from accelerando.recipes.studies.driver import dry_run, report_only
from accelerando.recipes.studies.generalization_cells import (
    LEFT_OUT,
    PARAMETERS,
    best_level,
    means_over,
    parts_of,
    placed,
)
from accelerando.recipes.studies.generalization_claims import claims_of
from accelerando.recipes.studies.plan import plan
from accelerando.recipes.studies.statistics import difference
from accelerando.recipes.studies.table import Row
from runs import same

OWN = """
noise: [0.3]
fraction: 0.4
rounds: 2
criteria: {magnitude: {}, synflow: {iterations: 1}}
widths: {two: {model: {lenet_300_100: {width: 12}}}}
score_at: 1ba
groups: 2
seeds: [1, 2]
"""
LENGTH, SIZE, NOISE = 3, 160, 0.3
ACCURACY = "metrics/eval/MulticlassAccuracy"
VALIDATED = "metrics/eval/validation/MulticlassAccuracy"
FIRST = "module.1.weight"
TAIL = "noise0.3-seed1"
ARMS = ["dense", *["magnitude"] * 2, *["synflow"] * 2, *["extended"] * 2, *["once"] * 2, *["narrower"] * 3]

pytestmark = pytest.mark.usefixtures("watch")


def study(folder, **changes):
    given = of_pruning(folder, "generalization", OWN, f"{LENGTH}ba")
    given.model = {"lenet_300_100": {"image_size": 8, "width": 24}}
    given.optimizer = {"sgd": {"lr": 0.3, "momentum": 0.5}}
    given.train_data = {"digits": {"split": f"train[:{SIZE}]"}}
    given.validation_data = {"digits": {"split": "train[90%:]"}}
    given.study.generalization.update(changes)
    return given


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study's folder, and what its runs started from, pruned and saw, by their names."""
    folder = tmp_path_factory.mktemp("whole")
    done = trained_whole(folder, study(folder), 2 * (len(ARMS) + 2) * LENGTH)
    assert dry_run(plan(study(folder))).endswith("28 runs, 28 times 3ba; 0 left, 0 times")
    return done, Watch.starts, Watch.masks, Watch.orders


def named(folder, begin, seed=1):
    (found,) = folder.glob(f"{begin}*-noise0.3-seed{seed}")
    return found


def images_and_labels():
    """The training examples with the labels that are trained on, by the sources' functions alone."""
    images, labels = Digits(split=f"train[:{SIZE}]").build(SIZE, False, 0, "cpu").dataloader.tensors
    return images, noisy(labels, 10, NOISE, 0)


def per_example(folder):
    """Losses and errors of the network at a run's end, one example after the other."""
    model = lenet_300_100(image_size=8, width=24)
    model.load_state_dict(weights(folder))
    found = []
    for image, label in zip(*images_and_labels(), strict=True):
        with torch.no_grad():
            logits = model.eval()((image[None], label[None]))
        found.append((F.cross_entropy(logits, label[None]).item(), float(logits.argmax() != label)))
    return np.array(found).T


def test_a_study_and_what_it_leaves(whole):
    folder, *_ = whole
    rows = table(folder)
    for seed in (1, 2):
        own = [row for row in rows if row["seed"] == seed]
        assert [row["arm"] for row in own] == [*ARMS, *LEFT_OUT.values()]
        assert [row["level"] for row in own if row["arm"] == "once"] == [1, 2]
    assert all(row["batches"] == LENGTH and row["noise"] == NOISE for row in rows)
    (magnitude,) = (row for row in rows if (row["arm"], row["level"], row["seed"]) == ("magnitude", 2, 1))
    size = results(folder / magnitude.node)["found"]["size"]
    assert magnitude["density"] == pytest.approx(0.36, abs=1e-3) and magnitude[PARAMETERS] == size["nonzero"]
    counts = {
        width: sum(p.numel() for p in lenet_300_100(image_size=8, width=width).parameters()) for width in (24, 12)
    }
    assert {row[PARAMETERS] for row in rows if row["arm"] in ("dense", "extended")} == {counts[24]}
    assert {row[PARAMETERS] for row in rows if row["arm"] == "narrower"} == {counts[12]}
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    own = lines(folder / "generalization.csv")
    assert [line["arm"] for line in own] == [*ARMS[:9], "narrower"]  # at the second level it is not as narrow
    assert [line["level"] for line in own if line["arm"] == "extended"] == ["1", "2"]
    assert (folder / "claims.md").read_text().count("(30 % of the labels wrong).") == 2 + 2 * 2 + 1


def test_each_chain_begins_where_it_says(whole):
    folder, starts, _, orders = whole
    first = starts[f"dense-{TAIL}"]
    for name in ("once-round1", "once-round2", "without-improved", "without-random"):
        assert torch.equal(starts[named(folder, name).name], first), name
    for arm in ("magnitude", "synflow", "extended", "two"):
        chain = [f"{arm}-round{level}-{TAIL}" for level in (0, 1, 2)]
        chain[0] = chain[0] if arm == "two" else f"dense-{TAIL}"
        for before, after in pairwise(chain):
            assert torch.equal(starts[after], weights(folder / before)[FIRST])
    # Its order of the data is that of its number, whatever the arm, and the schedule begins anew.
    for level in (1, 2):
        own = [orders[f"{arm}-round{level}-{TAIL}"] for arm in ("magnitude", "synflow", "extended", "two")]
        assert all(order == own[0] for order in own) and own[0] != orders[f"dense-{TAIL}"]
        assert orders[named(folder, f"once-round{level}").name] == orders[f"dense-{TAIL}"]
    assert orders[f"extended-round1-{TAIL}"] != orders[f"extended-round2-{TAIL}"]
    assert all(not results(folder / f"extended-round{level}-{TAIL}")["begun"] for level in (1, 2))


def test_masks_are_nested_and_of_the_trained_weights(whole):
    folder, _, masks, _ = whole
    for arm in ("magnitude", "synflow"):
        one, two = (masks[f"{arm}-round{level}-{TAIL}"] for level in (1, 2))
        total = sum(mask.numel() for mask in one.values())
        for share, own in ((0.6, one), (0.36, two)):
            assert sum(int(mask.sum()) for mask in own.values()) == int(share * total + 0.5)
        assert all((one[name] | ~two[name]).all() for name in one)
        end = weights(folder / f"{arm}-round2-{TAIL}")
        assert all(not end[name][~mask].any() for name, mask in two.items())
    # By a plain script, of the weights that the dense network ends with.
    end, own = weights(folder / f"dense-{TAIL}"), masks[f"magnitude-round1-{TAIL}"]
    every = torch.cat([end[name].abs().flatten() for name in own]).sort(descending=True).values
    assert all(
        torch.equal(mask, end[name].abs() >= every[int(0.6 * len(every) + 0.5) - 1]) for name, mask in own.items()
    )
    for level in (1, 2):
        kept = load_masks(folder / f"magnitude-round{level}-{TAIL}" / "round" / "masks.safetensors", own)
        assert same(kept, masks[f"magnitude-round{level}-{TAIL}"])
        assert same(kept, masks[named(folder, f"once-round{level}").name])


def test_losses_of_examples_are_those_of_a_plain_loop(whole):
    folder, *_ = whole
    changed = changed_by(SIZE, NOISE, 0).tolist()
    right = [i for i in range(SIZE) if i not in changed]
    assert len(changed) == 48
    el2n = np.mean(
        [find_snapshot(folder / f"dense-noise0.3-seed{seed}" / "scores", "1ba").weights()["el2n"] for seed in (1, 2)],
        axis=0,
    )
    order = sorted(range(SIZE), key=lambda i: (el2n[i], i))
    parts = {"all": range(SIZE), "clean": right, "wrong": changed}
    parts |= {"EL2N 0 to 50 %": order[: SIZE // 2], "EL2N 50 to 100 %": order[SIZE // 2 :]}
    for name in (f"dense-{TAIL}", f"magnitude-round2-{TAIL}", f"extended-round1-{TAIL}"):
        (row,) = (row for row in table(folder) if row.node == name)
        for metric, own in zip(("loss", "error"), per_example(folder / name), strict=True):
            for part, places in parts.items():
                assert row[f"train/{metric}/{part}"] == pytest.approx(own[[*places]].mean(), rel=1e-4), (name, part)


def test_what_improves_most_on_average_is_left_out(whole):
    folder, *_ = whole
    (level,) = {row["level"] for row in table(folder) if row["arm"] in LEFT_OUT.values()}
    chosen = {at: [] for at in range(3)}
    for row in table(folder):
        if row["arm"] in ("dense", "magnitude"):
            chosen[row["level"]].append(row[VALIDATED])
    assert level == max(chosen, key=lambda at: np.mean(chosen[at])) > 0
    gained = []
    for seed in (1, 2):
        run = folder / f"magnitude-round{level}-noise0.3-seed{seed}"
        before, after = per_example(folder / f"dense-noise0.3-seed{seed}")[0], per_example(run)[0]
        gained.append(before - after)
        kept = read_weights(run / "round" / "improvement.safetensors")["improvement"]
        assert kept.numpy() == pytest.approx(gained[-1], abs=1e-4)
        assert results(run)["found"]["round"]["improved"] == int((kept > 0).sum())
    left = sorted(np.argsort(np.mean(gained, axis=0))[: SIZE - 16])
    images, labels = images_and_labels()
    held = {}
    for begin in ("without-improved", "without-random"):
        for seed in (1, 2):
            recipe = check(*load(named(folder, begin, seed) / "config.yaml"))
            held[begin, seed] = recipe.train_data.build(32, False, 0, "cpu").dataloader.tensors
            assert len(held[begin, seed][1]) == SIZE - 16
    for seed in (1, 2):
        assert torch.equal(held["without-improved", seed][0], images[left])
        assert torch.equal(held["without-improved", seed][1], labels[left])
    assert not torch.equal(held["without-random", 1][0], held["without-random", 2][0])


def test_killed_at_any_time_it_goes_on(copied, tmp_path):
    """From a study that lacks a ladder's last round, and what follows from it."""
    folder = tmp_path / "study"
    for begin in ("magnitude-round2", "once-round2", "without-improved", "without-random"):
        shutil.rmtree(named(folder, begin))
    Watch.reset(kill_at=2)
    with pytest.raises(KeyboardInterrupt):
        outcome(study(tmp_path))
    assert without_seconds(outcome(study(tmp_path)).rows) == without_seconds(copied)
    assert 0 <= Watch.batches - 4 * LENGTH <= 2


def test_what_is_missing_fails_what_needs_it_in_one_line(copied, tmp_path):
    folder = tmp_path / "study"
    shutil.rmtree(named(folder, "once-round1"))
    shutil.rmtree(named(folder, "without-improved"))
    (level,) = {row["level"] for row in copied if row["arm"] in LEFT_OUT.values()}
    (folder / f"magnitude-round1-{TAIL}" / "round" / "masks.safetensors").unlink()
    (folder / f"magnitude-round{level}-{TAIL}" / "round" / "improvement.safetensors").unlink()
    failures = outcome(study(tmp_path)).failures
    assert ["once" in name for name in failures] == [True, False] and Watch.batches == 0
    assert all("train it again" in problem and "\n" not in problem for problem in failures.values())
    # What is finished before the dense network has no parts of examples yet.
    shutil.move(folder / f"dense-{TAIL}", tmp_path / "kept")
    shutil.move(folder / "dense-noise0.3-seed2", tmp_path / "too")
    assert not any("train/loss/all" in row.metrics for row in report_only(plan(study(tmp_path))).rows)
    shutil.move(tmp_path / "kept", folder / f"dense-{TAIL}")
    # Scores that are gone leave no table.
    shutil.rmtree(folder / f"extended-round1-{TAIL}" / "scores")
    assert "scores" in refused_report(study(tmp_path))


def refused_report(given):
    with pytest.raises(ConfigError) as error:
        report_only(plan(given))
    assert "\n" not in str(error.value)
    return str(error.value)


def fake(metric):
    found = {"round": {"digest": "0" * 40}}
    return SimpleNamespace(metrics={VALIDATED: metric}, found=found)


def test_the_optimum_is_chosen_on_validation_data(tmp_path):
    found = plan(study(tmp_path, noise=[0, 0.3], widths={}))
    nodes = found.study.nodes(found.base, {})
    assert [node.changes for node in nodes if node.tags["arm"] in LEFT_OUT.values()] == [None] * 2 * 4
    done = {node.name: fake(0.5) for node in found.study.nodes(found.base, {}) if node.changes is not None}
    at_once = {f"dense-noise0-seed{seed}" for seed in (1, 2)}
    assert all("train_data" not in node.sets for node in nodes if node.name in at_once)

    def kept(**best):
        own = done | {name: fake(value) for name, value in best.items()}
        left = [one for one in found.study.nodes(found.base, own) if one.tags["arm"] in LEFT_OUT.values()]
        return {(one.tags["noise"], one.tags["level"]) for one in left}

    assert kept() == set()  # of equal levels the densest
    assert kept(**{"magnitude-round2-noise0-seed1": 0.6}) == {(0, 2)}
    assert kept(**{"magnitude-round2-noise0-seed1": 0.6, "magnitude-round1-noise0.3-seed2": 0.9}) == {(0, 2), (0.3, 1)}
    assert kept(**{"magnitude-round2-noise0-seed1": 0.6, "dense-noise0-seed2": 0.7}) == set()
    assert kept(**{"synflow-round2-noise0-seed1": 0.9}) == set()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("noise=[]", "noise: [] given; expected different ones, from 0 and below 1"),
        ("noise=[1.0]", "noise: [1.0] given; expected different ones, from 0 and below 1"),
        ("noise=[0.1,0.1]", "noise: [0.1, 0.1] given; expected different ones"),
        ("fraction=1", "fraction: 1.0 given; expected above 0 and below 1"),
        ("rounds=0", "rounds: 0 given; expected 1 or more"),
        ("groups=0", "groups: 0 given; expected 1 or more"),
        ("improved=0", "improved: 0.0 given; expected above 0 and below 1, or null"),
        ("improved=0.9", "improved: 16 given, but 16 samples do not fill a batch of 32"),
        ("score_at=3ba", "score_at: '3ba' given; expected a moment before the end, 3ba"),
        ("score_at=1dur", "score_at: '1dur' given; expected a moment before the end, 3ba"),
        ("score_at=soon", "score_at: 'soon' given; expected a moment before the end, 3ba"),
        ("noise=[0.001,0.3]", "noise: 0.001 given, which changes none of 160 labels"),
        ("improved=0.001", "improved: 0.001 given, which leaves out none of 160 examples"),
        (
            "criteria.random={}",
            "criteria.random: random brings pruned weights back in the next round; expected one that",
        ),
        ("criteria.magnitude.at=1ba", "criteria.magnitude.at: each round prunes before its first update; leave it out"),
        ("criteria.lucky={}", "criteria.lucky: unknown criterion"),
        ("criteria.once={criterion: magnitude}", "criteria.once: is what the study calls something else"),
        ("criteria.synflow.iteration=1", "criteria.synflow.iteration: unknown argument; did you mean iterations"),
        ("criteria.synflow.density=0.1", "criteria.synflow.density: the study sets it for every run; leave it out"),
        ("widths.two.model.lenet_300_100.width=24", "widths.two: has 1,850 parameters; expected fewer than the 1,850"),
        ("widths.magnitude={model: {lenet_300_100: {width: 9}}}", "widths.magnitude: is what the study calls"),
        ("widths.two.max_duration=1ba", "widths.two.max_duration: the study sets it for every run; leave it out"),
        ("widths.two.model.lenet_300_100.widht=4", "widths.two.model.lenet_300_100.widht: unknown argument"),
    ],
)
def test_mistakes_in_its_keys_are_one_line(override, message, tmp_path):
    said = refused(tmp_path, study(tmp_path), f"study.generalization.{override}")
    assert message in said and ": study.generalization." in said


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("start={run: other}", "start: the study sets it for every run; leave it out"),
        ("data_seed=3", "data_seed: the study sets it for every run; leave it out"),
        ("algorithms.example_scores={at: [1ba]}", "algorithms.example_scores: the study adds it; leave it out"),
        (
            "train_data={noisy_labels: {of: {digits: {split: 'train[:160]'}}}}",
            "train_data: holds wrong labels already; expected the right ones, and noise",
        ),
    ],
)
def test_what_the_study_sets_is_refused_of_the_base_run(override, message, tmp_path):
    assert message in refused(tmp_path, study(tmp_path), override)


# Tables that are made up, with known answers.


def test_parts_and_means_by_hand():
    el2n = torch.tensor([[0.1, 0.9, 0.5, 0.3, 0.7], [0.3, 0.9, 0.1, 0.3, 0.5]])  # means .2, .9, .3, .3, .6
    parts = parts_of(torch.tensor([4, 1]), el2n, 2)
    assert {name: rows.tolist() for name, rows in parts.items()} == {
        "all": [0, 1, 2, 3, 4],
        "clean": [0, 2, 3],
        "wrong": [1, 4],
        "EL2N 0 to 50 %": [0, 2, 3],
        "EL2N 50 to 100 %": [4, 1],
    }
    none = torch.tensor([], dtype=torch.long)
    assert [*parts_of(none, el2n, 1)] == ["all", "EL2N 0 to 100 %"]
    assert [*parts_of(none, el2n[:0], 2)] == ["all"]  # all dense networks have diverged
    scores = {"loss": torch.tensor([1.0, 8, 2, 3, 4]), "error": torch.tensor([0.0, 1, 0, 1, 1])}
    found = means_over(parts, scores)
    assert (found["train/loss/all"], found["train/loss/clean"], found["train/error/wrong"]) == (3.6, 2, 1)


def test_the_best_level_by_its_mean():
    assert best_level({0: [0.5, 0.7], 1: [0.9, 0.5], 2: [0.6, 0.8]}, ACCURACY) == 1
    assert best_level({0: [0.5, 0.7], 1: [0.9, 0.5]}, "metrics/eval/CrossEntropy") == 0
    assert best_level({0: [float("nan")], 1: [0.1]}, ACCURACY) == 1 and best_level({}, ACCURACY) == 0


def row(arm, level, seed, value, parameters=1000.0, density=1.0, **more):
    metrics = {ACCURACY: value, PARAMETERS: parameters, "compression_ratio": 1.0, "speedup": 1.0, **more}
    tags = {"noise": 0.0, "arm": arm, "seed": seed, "level": level, "density": density}
    return Row(node=f"{arm}{level}-{seed}", tags=tags, batches=1, samples=1, seconds=1.0, metrics=metrics)


def test_narrower_networks_are_interpolated_over_the_logarithm_of_their_size():
    known = [row("narrower", 1, 0, 0.5, 10.0), row("narrower", 1, 0, 0.7, 100.0), row("extended", 1, 0, 0.9, 1000.0)]
    rows = [row("dense", 0, 0, 0.8), row("ladder", 1, 0, 0.85, 10**1.5, 0.03), row("narrower", 0, 0, 0.4, 10.0), *known]
    found = {(one["arm"], one["level"]): one for one in placed(rows, "ladder")}
    assert found.keys() == {("dense", 0), ("ladder", 1), ("extended", 1), ("narrower", 1)}
    narrower = found["narrower", 1]
    assert (narrower[ACCURACY], narrower["density"]) == (pytest.approx(0.6), 0.03)
    assert found["extended", 1]["density"] == 0.03 and narrower[PARAMETERS] == 10**1.5
    # There is none below the narrowest, nor where no other width was tried.
    small = row("ladder", 1, 0, 0.85, 9.0, 0.01)
    assert "narrower" not in {one["arm"] for one in placed([rows[0], small, *known], "ladder")}
    assert "narrower" not in {one["arm"] for one in placed([*rows[:2], known[-1]], "ladder")}


UNTOLD = "cannot be told here"
SIZE_ALONE, BOTH = "Size alone does not explain", "Longer training and smaller size are both needed"
TRAINS, REGULARIZES = "At some densities pruning leads to better training", "At some densities it regularizes"
COSTS = "Leaving out the examples whose loss pruning improves most"
PAPER = {  # accuracy, and the training loss of all and of wrong labels, at both levels
    "dense": [(0.80, 1.0, 2.0)],
    "magnitude": [(0.86, 0.8, 3.0), (0.84, 1.2, 4.0)],
    "extended": [(0.82, 0.5, 1.0), (0.82, 0.4, 0.9)],
    "once": [(0.81, 1.1, 2.5), (0.79, 1.3, 3.0)],
    "narrower": [(0.80, 1.0, 2.2), (0.78, 1.1, 2.3)],
    "without random": [None, (0.79, 1.0, 2.0)],
    "without improved": [None, (0.75, 1.0, 2.0)],
}


def verdicts(best=1, spread=(0.002, -0.003, 0.001), is_noisy=True, on_fewer=True, **arms):
    rows = []
    for arm, cells in {**PAPER, **{name.replace("_", " "): own for name, own in arms.items()}}.items():
        for place, cell in enumerate(cells or []):
            if cell is None:
                continue
            level = 0 if arm == "dense" else best if arm.startswith("without") else place + 1
            for seed, more in enumerate(spread):
                value, loss, wrong = cell
                noise = {"magnitude": more, "without improved": more}.get(arm, 0.0)
                told = {"train/loss/all": loss + noise} | ({"train/loss/wrong": wrong + noise} if is_noisy else {})
                rows.append(row(arm, level, seed, value + noise, density=0.6**level, **told))
    by_density = [one for one in rows if not one["arm"].startswith("without")]
    return [*claims_of(rows, by_density, {"magnitude": best}, ACCURACY, on_fewer)]


def verdict(claim, **changes):
    (found,) = (one for one in verdicts(**changes) if one.claim.startswith(claim))
    assert found.why
    return found.verdict, found


def test_verdicts_of_the_papers_picture():
    found = verdicts()
    assert {claim.verdict for claim in found} == {"holds"} and len(found) == 5
    assert "at 60 %" in found[0].claim and "over the masks trained once +0.05" in found[0].measured
    assert "costs more by +0.0" in found[-1].measured


@pytest.mark.parametrize(
    ("claim", "expected", "changes"),
    [
        (SIZE_ALONE, "fails", {"once": [(0.9, 1, 1), (0.9, 1, 1)]}),
        (SIZE_ALONE, "fails", {"narrower": [(0.9, 1, 1), (0.9, 1, 1)]}),
        (SIZE_ALONE, UNTOLD, {"narrower": None}),
        (SIZE_ALONE, UNTOLD, {"magnitude": [(0.79, 0.8, 3)]}),
        (BOTH, UNTOLD, {"magnitude": [(0.79, 0.8, 3)]}),
        (SIZE_ALONE, "fails", {"narrower": None, "once": [(0.9, 1, 1), (0.9, 1, 1)]}),
        (SIZE_ALONE, UNTOLD, {"narrower": [(float("nan"), 1, 1)]}),
        (BOTH, "fails", {"extended": [(0.88, 1, 1), (0.88, 1, 1)]}),
        (BOTH, UNTOLD, {"extended": [(0.86, 1, 1), (0.86, 1, 1)]}),
        (TRAINS, "fails", {"magnitude": [(0.86, 1.1, 3), (0.84, 1.2, 4)]}),
        (TRAINS, UNTOLD, {"magnitude": [(0.86, 1.0, 3), (0.84, 1.0, 4)]}),
        (TRAINS, UNTOLD, {"magnitude": [(0.86, float("inf"), 3)]}),
        (REGULARIZES, "fails", {"magnitude": [(0.79, 0.8, 3), (0.84, 1.2, 0.5)]}),
        (REGULARIZES, UNTOLD, {"magnitude": [(0.80, 0.8, 3), (0.80, 1.2, 4)]}),
        (
            REGULARIZES,
            "holds",
            {"extended": [(0.9, 0.5, 9), (0.9, 0.4, 9)]},
        ),  # the paper compares with the dense network
        (REGULARIZES, UNTOLD, {"is_noisy": False}),
        (COSTS, "fails", {"without_improved": [None, (0.8, 1, 1)]}),
        (COSTS, UNTOLD, {"without_improved": [None, (0.79, 1, 1)]}),
        (COSTS, UNTOLD, {"without_improved": None}),
        *((claim, UNTOLD, {"spread": (0.0,)}) for claim in (SIZE_ALONE, BOTH, TRAINS, REGULARIZES, COSTS)),
        *((claim, UNTOLD, {"best": 0}) for claim in (SIZE_ALONE, BOTH, COSTS)),
    ],
)
def test_each_verdict_can_be_each(claim, expected, changes):
    told, found = verdict(claim, **changes)
    assert told == expected, found
    if "best" in changes:
        assert found.why == "the optimum is the dense network"
    if claim in (SIZE_ALONE, BOTH) and "magnitude" in changes:
        assert found.why.startswith("there is nothing to explain: pruning is better than the dense network by -0.01")
    if "is_noisy" in changes:
        assert found.why == "no label is wrong"


def test_a_density_at_which_a_run_has_diverged_does_not_count():
    told, found = verdict(TRAINS, magnitude=[(0.86, 0.8, 3), (0.84, float("nan"), 4)])
    assert told == "holds" and "at 36 % (not counted: a run diverged)" in found.measured


def test_without_trainings_on_fewer_examples_nothing_is_said_of_them():
    assert len(verdicts(on_fewer=False)) == 4


def test_some_of_many_places_is_told_by_bonferronis_level():
    above, beside = difference([0.8, 1.0, 1.2]), difference([-1.0, 0.1, 1.0])
    p = above.p / 2
    assert 0.005 < p < 0.0085
    assert judge_some("c", "s", {"a": [above]}).verdict == "holds"
    assert judge_some("c", "s", {"a": [above], "b": [beside], "c": [beside]}).verdict == "holds"
    assert judge_some("c", "s", {"a": [above], **{str(i): [beside] for i in range(4)}}).verdict == UNTOLD
    assert judge_some("c", "s", {"a": [above, beside]}).verdict == UNTOLD
    assert judge_some("c", "s", {"a": [above, difference([-0.8, -1.0, -1.2])]}).verdict == "fails"
