"""Whole studies of `stability` on the real digits: what they leave, twins, kill and resume; tables, verdicts."""

import math
import shutil

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from studies import Watch, lines, of_pruning, outcome, refused, results, table, trained_whole, without_seconds

from accelerando.algorithms.connectivity import barrier, distance, evaluate_path
from accelerando.algorithms.pruning import load_masks
from accelerando.algorithms.snapshots import find_snapshot
from accelerando.recipes.data.images import Digits
from accelerando.recipes.models.builders import resnet_cifar
from accelerando.recipes.studies.density import DENSE
from accelerando.recipes.studies.driver import dry_run
from accelerando.recipes.studies.plan import plan
from accelerando.recipes.studies.stability_cells import TICKETS, Cell, cells_of, counts_of, means_of
from accelerando.recipes.studies.stability_cells import table as told_table
from accelerando.recipes.studies.stability_claims import Judged, claims_of, separation, youden
from accelerando.recipes.studies.table import Row
from accelerando.recipes.train import train
from runs import same

OWN = """
steps: [0ba, 2ba]
copies: 2
densities: [0.36]
ladder: {fraction: 0.4}
controls: [random, reinitialize]
points: 5
path_examples: 40
seeds: [1]
"""
ACCURACY = "metrics/eval/MulticlassAccuracy"
FIRST = "module.0.weight"
NETWORKS = (DENSE, TICKETS, "random", "reinitialize")
LENGTH = 4
OF_A_SEED = 2 * LENGTH + (LENGTH + (LENGTH - 2)) * (3 + 2 * len(NETWORKS))  # batches; a ladder has three trainings

pytestmark = pytest.mark.usefixtures("watch")


def study(folder, **changes):
    """The settings, which a test may change before it trains; the level of 36 % is a ladder's second."""
    given = of_pruning(folder, "stability", OWN, f"{LENGTH}ba")
    given.study.stability.update(changes)
    return given


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study's folder, and what its runs started from, pruned and saw, by their names."""
    folder = tmp_path_factory.mktemp("whole")
    done = trained_whole(folder, study(folder), OF_A_SEED)
    return done, Watch.starts, Watch.masks, Watch.orders


def copies_of(folder, arm, step):
    """The names of the first and the second copy."""
    return [next(folder.glob(f"{arm}-{step}*copy{copy}-seed1")).name for copy in (0, 1)]


def end_of(folder, name):
    return find_snapshot(folder / name / "snapshots", "1dur").weights()


def test_a_study_and_what_it_leaves(whole):
    folder, *_ = whole
    rows = table(folder)
    pairs = [(row["arm"], row["step"]) for row in rows if row["role"] == "pair"]
    assert pairs == [(arm, step) for step in ("0ba", "2ba") for arm in NETWORKS]
    for row in rows:
        if row["role"] == "copy":
            assert (row["k"], row["share"]) == {"0ba": (0, 0.0), "2ba": (2, 0.5)}[row["step"]]
            assert row["batches"] == LENGTH - row["k"] and row["samples"] == 32 * row["batches"]
        if row["role"] in ("copy", "pair"):
            assert math.isclose(row["density"], 1.0 if row["arm"] == DENSE else 0.36, abs_tol=1e-3)
    assert {row["copies"] for row in rows if row["role"] == "pair"} == {"0 and 1"}
    means = lines(folder / "stability.csv")
    assert [(mean["arm"], mean["step"], mean["seeds"]) for mean in means] == [(*pair, "1") for pair in pairs]
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "claims.md").read_text().count("arXiv:1912.05671") == 2 * 2 + 1 + 2 * 3


def first_of(source, sizes):
    """The first examples in batches of these sizes, in their order."""
    images, labels = next(iter(source.build(sum(sizes), False, 0, "cpu").dataloader))
    return [*zip(images.split(sizes), labels.split(sizes), strict=True)]


def test_paths_are_those_of_the_networks(whole):
    """Measured again from the ends, by the functions for anybody's networks."""
    folder, *_ = whole
    model = resnet_cifar(depth=8, width=4, in_channels=1)
    data = {name: first_of(Digits(split=name), (32, 8)) for name in ("test", "train")}
    for arm in (DENSE, TICKETS):
        names = copies_of(folder, arm, "2ba")
        ends = tuple(end_of(folder, name) for name in names)
        (row,) = (row for row in table(folder) if row["role"] == "pair" and row.node == names[1])
        assert row["distance"] == pytest.approx(distance(*ends))
        for how in ("interpolate", "recompute"):
            for kind, batches in data.items():
                own = {} if how == "interpolate" else {"batch_norm": how, "statistics": data["train"]}
                found = evaluate_path(model, ends, 5, batches, forward=lambda model, batch: model(batch), **own)
                wanted = {"error": 100 * barrier(found.means["error"]), "loss": barrier(found.means["loss"])}
                for metric, value in wanted.items():
                    assert row[f"barrier/{kind}/{metric}/{how}"] == pytest.approx(value, abs=1e-4)
                if kind == "test":
                    curve = [row[f"path/{how}/{i:02}"] for i in range(5)]
                    assert curve == pytest.approx([100 * error for error in found.means["error"]])


def test_copies_differ_in_their_noise_alone(whole):
    folder, starts, masks, orders = whole
    kept = {step: find_snapshot(folder / "dense-seed1" / "snapshots", step).weights() for step in ("0ba", "2ba")}
    others = {step: find_snapshot(folder / "other-weights-seed1" / "snapshots", step).weights() for step in kept}
    for step, weights in kept.items():
        ticket = load_masks(folder / f"ladder-{step}-seed1" / "tickets" / "level-2.safetensors", masks_of(masks, step))
        for arm in NETWORKS:
            one, other = copies_of(folder, arm, step)
            first = (others[step] if arm == "reinitialize" else weights)[FIRST]
            assert torch.equal(starts[one], first) and torch.equal(starts[other], first)
            assert same(masks[one], masks[other]) and bool(masks[one]) == (arm != DENSE)
            assert orders[one] != orders[other]
            assert not same(end_of(folder, one), end_of(folder, other))
            if arm in (TICKETS, "reinitialize"):
                assert same(masks[one], ticket)
    assert starts["ladder-2ba-seed1"].equal(kept["2ba"][FIRST])


def masks_of(masks, step):
    return next(own for name, own in masks.items() if name.startswith(f"random-{step}"))


@pytest.mark.parametrize("optimizer", ["fresh", "keep"])
def test_twins_with_equal_noise_are_equal_bit_for_bit(optimizer, tmp_path):
    given = study(tmp_path, optimizer=optimizer, steps=["2ba"], controls=["random"])
    given.optimizer = {"sgd": {"lr": 0.1, "momentum": 0.9}}
    outcome(given)
    folder = tmp_path / "study"
    for arm in (DENSE, TICKETS, "random"):
        one, other = copies_of(folder, arm, "2ba")
        config = OmegaConf.to_container(OmegaConf.load(folder / other / "config.yaml"))
        seed = OmegaConf.load(folder / one / "config.yaml").data_seed
        train(config | {"run_name": "study/twin", "data_seed": seed})
        assert same(end_of(folder, "twin"), end_of(folder, one))
        (path,) = results(folder / "twin")["found"]["twins"]
        assert path["distance"] == 0.0 == path["disagreement"]
        assert all(len({*curve["error"]}) == 1 for curve in path["curves"]["test"].values())
        shutil.rmtree(folder / "twin")
    momentum = [results(folder / copies_of(folder, arm, "2ba")[0])["begun"] for arm in (DENSE, TICKETS)]
    assert momentum == [{"batch": 2, "samples": 64}] * 2


def test_what_is_done_is_not_done_again_and_what_is_new_is(copied, tmp_path):
    assert dry_run(plan(study(tmp_path))).endswith("20 runs, 18.5 times 4ba; 0 left, 0 times")
    known = {row.node for row in copied}
    more = outcome(study(tmp_path, copies=3, controls=["random"])).rows
    assert Watch.batches == (LENGTH + LENGTH - 2) * 3
    pairs = [(row["copies"]) for row in more if row["role"] == "pair" and row["arm"] == "random"]
    assert pairs == ["0 and 1", "0 and 2", "1 and 2"] * 2
    assert [row for row in more if row.node in known] == [row for row in copied if row["arm"] not in LEFT_OUT]
    # Its origin has not kept another step.
    message = "study.stability.steps: ['0ba', '1ba', '2ba'] given, but the run in"
    assert message in refused(tmp_path, study(tmp_path, steps=["0ba", "1ba", "2ba"]))


LEFT_OUT = ("reinitialize", "other weights")


@pytest.mark.parametrize("kill_at", [6, 21])
def test_killed_at_any_time_it_goes_on(whole, kill_at, tmp_path):
    given = study(tmp_path, steps=["2ba"], controls=["random"])
    given.save_interval = "1ba"
    Watch.reset(kill_at)
    with pytest.raises(KeyboardInterrupt):
        outcome(given)
    found = outcome(given).rows
    same_runs = [row for row in table(whole[0]) if row.node in {row.node for row in found}]
    assert without_seconds(table(tmp_path / "study")) == without_seconds(same_runs)
    assert 0 <= Watch.batches - (LENGTH + (LENGTH - 2) * (3 + 2 * 3)) <= 1


def test_a_snapshot_that_is_gone_fails_what_needs_it_in_one_line(copied, tmp_path):
    folder = tmp_path / "study"
    for name in copies_of(folder, DENSE, "2ba"):
        shutil.rmtree(folder / name)
    (folder / "dense-seed1" / "snapshots" / "ba2.safetensors").unlink()
    failures = outcome(study(tmp_path)).failures
    first, second = (failures[f"dense-2ba-copy{copy}-seed1"] for copy in (0, 1))
    assert "start.at: " in first and "has no snapshot of 2ba, but of 0ba" in first and "\n" not in first
    assert second == "not begun, as it follows dense-2ba-copy0-seed1, which has failed"
    # A twin's end.
    first, second = copies_of(folder, "random", "0ba")
    (folder / first / "snapshots" / "ba4.safetensors").unlink()
    shutil.rmtree(folder / second)
    (failure,) = (why for name, why in outcome(study(tmp_path)).failures.items() if name.startswith("random"))
    assert "training failed after batch" in failure and "holds no snapshots" in failure and "\n" not in failure
    assert Watch.batches == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=[0ba,4ba]", "steps: 4ba given, but the schedule, which goes on from there, ends at max_duration, 4ba"),
        ("steps=[0ba,1ep]", "steps: ['0ba', '1ep'] given; expected different ones, all in ba or all in ep"),
        ("steps=[soon]", "steps: ['soon'] given; expected"),
        ("steps=[]", "steps: [] given; expected"),
        ("steps=[1ba,1ba]", "steps: ['1ba', '1ba'] given; expected different ones"),
        (
            "densities=[0.3]",
            "densities: 0.3 given; a ladder that prunes 0.4 at each level does not reach it; it reaches",
        ),
        ("densities=[1.5]", "densities: [1.5] given; expected different ones, above 0 and below 1"),
        ("densities=[]", "controls: given without densities"),
        ("ladder.levels=3", "ladder.levels: follows from densities and steps"),
        ("ladder.fractoin=0.3", "ladder.fractoin: unknown argument; did you mean fraction"),
        ("ladder.fraction=2", "ladder.fraction: LotteryTicket: fraction must be in (0, 1)"),
        ("ladder.include=[nothing.*]", "no prunable weight is called 'nothing.*'"),
        ("controls=[lucky]", "controls: ['lucky'] given; expected"),
        ("copies=1", "copies: 1 given; expected 2 or more"),
        ("points=1", "points: 1 given; expected 2 or more"),
        ("path_examples=0", "path_examples: 0 given; expected 1 or more"),
        ("stable_below=0", "stable_below: 0.0 given; expected points of error, above 0"),
        ("optimizer=old", "optimizer: 'old' given; expected"),
        ("setting=large", "setting: 'large' given; expected"),
        ("tolerance=null", "tolerance: null is one standard deviation over seeds"),
        ("seeds=[4294967290]", "seeds: 4295967290 given; expected a whole number from 0"),
    ],
)
def test_mistakes_in_its_keys_are_one_line(override, message, tmp_path):
    said = refused(tmp_path, study(tmp_path), f"study.stability.{override}")
    assert message in said and ": study.stability." in said


def test_a_step_after_the_end_in_another_unit_is_told_by_the_origin(tmp_path):
    given = study(tmp_path, steps=["3ep"], densities=[], ladder={}, controls=[])
    failures = outcome(given).failures
    why = failures.pop("dense-seed1")
    assert "within the training, which lasts 4ba" in why and "\n" not in why
    assert all(other.startswith("not begun, as it follows") for other in failures.values())


# Tables that are made up, with known answers.

SPREAD = (0.02, -0.03, 0.01)  # over seeds


def cells(arm, barriers, gaps, density=0.1, distances=None, steps=("0ba", "20ba", "100ba"), how="interpolate"):
    """Of three seeds, by step; what differs over seeds is in points hardly anything."""
    for i, (step, mean, gap) in enumerate(zip(steps, barriers, gaps, strict=True)):
        for seed, more in enumerate(SPREAD):
            yield Cell(
                arm=arm,
                density=density if arm != DENSE else 1.0,
                step=step,
                k=int(step.removesuffix("ba")),
                share=int(step.removesuffix("ba")) / 1000,
                seed=seed,
                value=0.9 + gap,
                gap=gap + more / 1000,
                tolerance=0.002,
                measured={
                    f"barrier/test/error/{how}": mean + more,
                    "distance": (distances[i] if distances else mean) + more,
                    "disagreement": mean,
                },
            )


STEPS = ("0ba", "20ba", "100ba")
UNSTABLE, STABLE, WORSE, AS_GOOD = 8.0, 0.3, -0.02, 0.001
PAPERS = {
    DENSE: ((UNSTABLE, UNSTABLE, STABLE), (0, 0, 0)),
    TICKETS: ((UNSTABLE, STABLE, STABLE), (WORSE, AS_GOOD, AS_GOOD)),
    "random": ((UNSTABLE, UNSTABLE, UNSTABLE), (WORSE, WORSE, WORSE)),
}
INITIAL = "At initialization the dense network is unstable: 2 points or more."
EARLY = "Early in training, in the first 20 %, it becomes stable."
NOT_FROM_0 = "In harder settings, tickets that are rewound to initialization do not match the dense network."
FROM_0 = "In the small setting, tickets that are rewound to initialization match the dense network."
SMALL = "In the small setting, the dense network is stable from initialization: below 2 points."
IFF = "Pruned networks match the dense one if and only if they are stable."
WHEN = "Tickets become matching when they become stable, to one step of those tried."
WEAKER = "The L2 distance of the copies tells less than the barrier which pruned networks match."
UNTOLD = "cannot be told here"


def verdicts(setting="harder", distances=None, steps=STEPS, **arms):
    """Of the paper's picture, in which some arms are as given."""
    given = PAPERS | arms
    found = [
        cell
        for arm, (barriers, gaps) in given.items()
        for cell in cells(arm, barriers, gaps, distances=distances, steps=steps)
    ]
    judged = Judged(stable_below=2.0, steps=steps, setting=setting)
    return {claim.claim: claim for claim in claims_of(found, judged)}


def told(found):
    return {claim: one.verdict for claim, one in found.items()}


def test_verdicts_of_the_papers_picture():
    found = verdicts(distances=(5.0, 5.0, 5.0))
    assert told(found) == dict.fromkeys((INITIAL, EARLY, NOT_FROM_0, IFF, WHEN, WEAKER), "holds")
    assert "cells: 6 match and are stable, 12 neither, 0 match alone, 0 are stable alone" in found[IFF].measured
    assert "barrier 1.00, L2 distance" in found[WEAKER].measured


@pytest.mark.parametrize(
    ("claim", "verdict", "changes"),
    [
        (INITIAL, "fails", {DENSE: ((0.5, 0.4, 0.3), (0, 0, 0))}),
        (INITIAL, UNTOLD, {DENSE: ((2.01, 0.4, 0.3), (0, 0, 0))}),
        (EARLY, "fails", {DENSE: ((9, 8, 7), (0, 0, 0))}),
        (EARLY, UNTOLD, {DENSE: ((9, 8, 2.01), (0, 0, 0))}),
        (EARLY, UNTOLD, {"steps": ("0ba", "300ba", "500ba")}),  # no early one
        (NOT_FROM_0, "fails", {TICKETS: ((STABLE,) * 3, (AS_GOOD,) * 3)}),
        (NOT_FROM_0, UNTOLD, {TICKETS: ((UNSTABLE, STABLE, STABLE), (-0.00201, 0, 0))}),
        (NOT_FROM_0, UNTOLD, {"random": ((UNSTABLE,) * 3, (AS_GOOD,) * 3)}),  # so does anything
        (NOT_FROM_0, UNTOLD, {"steps": ("10ba", "20ba", "100ba")}),
        (INITIAL, UNTOLD, {"steps": ("10ba", "20ba", "100ba")}),
        (SMALL, "holds", {"setting": "small", DENSE: ((0.5, 0.4, 0.3), (0, 0, 0))}),
        (SMALL, "fails", {"setting": "small"}),
        (FROM_0, "holds", {"setting": "small", TICKETS: ((STABLE,) * 3, (AS_GOOD,) * 3)}),
        (FROM_0, "fails", {"setting": "small"}),
        (IFF, "fails", {TICKETS: ((UNSTABLE, UNSTABLE, UNSTABLE), (WORSE, AS_GOOD, AS_GOOD))}),
        (IFF, "fails", {"random": ((STABLE,) * 3, (WORSE,) * 3)}),
        (IFF, UNTOLD, {"random": ((STABLE,) * 3, (AS_GOOD,) * 3), TICKETS: ((UNSTABLE,) * 3, (AS_GOOD,) * 3)}),
        # With the threshold of stability doubled, those that do not match are stable.
        (IFF, UNTOLD, {"random": ((3.0,) * 3, (WORSE,) * 3)}),
        (WHEN, "fails", {TICKETS: ((STABLE, STABLE, STABLE), (WORSE, WORSE, AS_GOOD))}),
        (WHEN, "fails", {TICKETS: ((UNSTABLE, STABLE, STABLE), (WORSE, WORSE, WORSE))}),
        (WHEN, UNTOLD, {TICKETS: ((UNSTABLE, UNSTABLE, STABLE), (WORSE, WORSE, WORSE))}),  # never, or some steps later
        (WHEN, UNTOLD, {TICKETS: ((STABLE,) * 3, (AS_GOOD,) * 3)}),  # from before on
        (WHEN, UNTOLD, {TICKETS: ((STABLE,) * 3, (AS_GOOD, AS_GOOD, WORSE))}),  # but for too little training at last
        (WEAKER, UNTOLD, {}),  # the distances tell as well
        (WEAKER, UNTOLD, {TICKETS: ((STABLE,) * 3, (AS_GOOD,) * 3), "random": ((STABLE,) * 3, (AS_GOOD,) * 3)}),
        (WEAKER, "fails", {"random": ((STABLE, 5, 0.1), (WORSE,) * 3), "distances": (9.0, 1.0, 1.0)}),
    ],
)
def test_each_verdict_can_be_each(claim, verdict, changes):
    found = verdicts(**changes)
    assert found[claim].verdict == verdict, found[claim]
    assert found[claim].why


def test_one_seed_tells_nothing():
    judged = Judged(stable_below=2.0, steps=STEPS, setting="harder")
    alone = [c for arm, (b, g) in PAPERS.items() for c in cells(arm, b, g) if c.seed == 0]
    assert {claim.verdict for claim in claims_of(alone, judged)} == {UNTOLD}
    assert list(claims_of([], judged)) == []


def test_what_has_diverged_does_not_count_and_is_told():
    judged = Judged(stable_below=2.0, steps=STEPS, setting="harder")
    every = [c for arm, (b, g) in PAPERS.items() for c in cells(arm, b, g)]
    every += cells("shuffle", (math.nan,) * 3, (WORSE,) * 3)
    found = {claim.claim: claim for claim in claims_of(every, judged)}
    assert "9 cells with a run that diverged do not count" in found[IFF].measured
    assert found[IFF].verdict == "holds"


def test_both_treatments_of_batch_norm_are_judged():
    several = [
        Cell(**{**vars(c), "measured": {**c.measured, "barrier/test/error/recompute": 0.5}})
        for arm, (b, g) in PAPERS.items()
        for c in cells(arm, b, g)
    ]
    found = told({c.claim: c for c in claims_of(several, Judged(stable_below=2.0, steps=STEPS, setting="harder"))})
    assert found[f"{INITIAL} (statistics interpolated)"] == "holds"
    assert found[f"{INITIAL} (statistics recomputed)"] == "fails"
    text = told_table(several, ACCURACY, 2.0)
    assert "statistics interpolated" in text and "statistics recomputed" in text and "* 0.9010" in text


def test_statistics_by_their_formulas():
    own = [c for c in cells(TICKETS, (1.0, 3.0, 1.5), (0.0, 0.0, -0.01)) if c.seed == 0]
    assert counts_of(own, "interpolate", 2.0) == [[1, 1], [1, 0]]
    assert youden(own, "interpolate", 2.0) == {0: 0.5 - 1.0}
    # Of the two pairs of one that matches and one that does not, the barrier is lower in one.
    assert separation(own, "barrier/test/error/interpolate") == 0.5
    assert math.isnan(separation(own[:2], "distance"))


def measured(role, arm, seed, value, step=None, **others):
    tags = {"role": role, "arm": arm, "seed": seed, "level": 0 if arm == DENSE else 2}
    tags |= {} if step is None else {"step": step, "k": 0, "share": 0.0}
    tags["density"] = 1.0 if arm == DENSE else 0.36
    return Row(node="", tags=tags, batches=1, samples=1, seconds=1.0, metrics={ACCURACY: value, **others})


def test_cells_are_means_over_copies_and_pairs():
    rows = [measured("origin", DENSE, 1, 0.9), measured("ladder", DENSE, 1, 0.94, "0ba")]
    rows += [measured("origin", DENSE, 2, 0.8), measured("origin", "other weights", 1, 0.1)]
    for seed in (1, 2):
        rows += [measured("copy", TICKETS, seed, value, "0ba") for value in (0.9, 0.92)]
        paths = ({"barrier/test/error/interpolate": v, "distance": 4.0} for v in (1.0, 3.0))
        rows += [measured("pair", TICKETS, seed, math.nan, "0ba", **path) for path in paths]
    found = cells_of(rows, ACCURACY, None)
    assert [(cell.seed, cell.place) for cell in found] == [(seed, (TICKETS, "36 %", "0ba")) for seed in (1, 2)]
    assert [cell.gap for cell in found] == pytest.approx([0.91 - 0.92, 0.91 - 0.8])
    assert found[0].tolerance == pytest.approx(np.std([0.92, 0.8], ddof=1))
    assert found[0].barrier("interpolate") == 2.0 and found[0].matches() and not found[0].matches(0.01)
    (line,) = means_of(found, 2.5)
    assert (line["seeds"], line["matching"], line["stable/interpolate"]) == (2, 2, 2)
    assert line["gap"] == pytest.approx(0.05) and line["gap, deviation"] == pytest.approx(0.12 / math.sqrt(2))
