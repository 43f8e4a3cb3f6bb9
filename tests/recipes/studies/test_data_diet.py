"""A whole study of `data_diet` on the real digits: starts, places in the schedule, examples; verdicts, mistakes."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from studies import Watch, lines, of_pruning, outcome, refused, table, trained_whole, without_seconds
from torch.nn import functional as F

from accelerando.algorithms.snapshots import find_snapshot
from accelerando.recipes.data.images import Digits
from accelerando.recipes.models.builders import resnet_cifar
from accelerando.recipes.studies.data_diet import DataDiet
from accelerando.recipes.studies.data_diet_cells import INITIAL, Needed, Ticket, fewer, needed_of
from accelerando.recipes.studies.data_diet_claims import Judged, claims_of
from accelerando.recipes.studies.data_diet_tables import lines_of_predictors
from accelerando.recipes.studies.driver import dry_run, report_only
from accelerando.recipes.studies.plan import plan
from accelerando.recipes.studies.table import Row
from runs import same

OWN = """
steps: [2ba, 0ba]
starts:
  all: {}
  random: {count: 32}
  easy: {count: 32, keep: easiest}
  wrong: {count: 64, wrong_labels: 0.5}
score_at: 1ba
replicates: 2
ladder: {levels: 2, fraction: 0.4}
density: 0.36
points: 3
path_examples: 40
connected_below: 0.1
seeds: [1]
"""
STARTS, LENGTH, K, SIZE = ("all", "random", "easy", "wrong"), 4, 2, 96
OF_A_SEED = 2 * 1 + 5 * LENGTH + len(STARTS) * (K + 5 * (LENGTH - K))  # batches; a ladder has three trainings

pytestmark = pytest.mark.usefixtures("watch")


def study(folder, **changes):
    """The settings, which a test may change before it trains: three batches an epoch of all data."""
    given = of_pruning(folder, "data_diet", OWN, f"{LENGTH}ba")
    given.update({"train_data": {"digits": {"split": f"train[:{SIZE}]"}}, "train_subset_num_batches": -1})
    given.study.data_diet.update(changes)
    return given


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study's folder, and the labels that its runs saw and the rates of their updates, by their names."""
    folder = tmp_path_factory.mktemp("whole")
    done = trained_whole(folder, study(folder), OF_A_SEED)
    assert dry_run(plan(study(folder))).endswith(f"21 runs, {OF_A_SEED / LENGTH:g} times 4ba; 0 left, 0 times")
    return done, Watch.orders, Watch.rates


def kept(folder, name, at="1dur"):
    return find_snapshot(folder / f"{name}-seed1" / "snapshots", at).weights()


def halfway(a, b):
    return {name: (value + b[name]) / 2 if value.is_floating_point() else b[name] for name, value in a.items()}


def outputs(state, data):
    model = resnet_cifar(depth=8, width=4, in_channels=1).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        return model((data, None))


def digits(split, count):
    return next(iter(Digits(split=split).build(count, False, 0, "cpu").dataloader))


def row_of(folder, role, arm, level=0):
    (row,) = (row for row in table(folder) if (row["role"], row["arm"], row["level"]) == (role, arm, level))
    return row


def test_a_study_and_what_it_leaves(whole):
    folder, *_ = whole
    rows = table(folder)
    arms = [INITIAL, *(f"{start}, 2ba" for start in STARTS)]
    assert [row["arm"] for row in rows if row["role"] == "pair"] == arms
    assert [row["arm"] for row in rows if row["role"] == "ladder"] == [
        arm for each in arms for arm in ("dense" if each == INITIAL else each, each, each)
    ]
    for row in rows:
        if row["role"] in ("ladder", "copy"):
            assert row["batches"] == LENGTH - row["k"] and row["k"] == (0 if row["start"] == INITIAL else K)
            assert math.isclose(row["density"], 0.6 ** row["level"], abs_tol=1e-3)
    assert [(line["start"], line["k"]) for line in lines(folder / "starts.csv")] == [
        (start, "0" if start == INITIAL else "2") for start in (INITIAL, *STARTS)
    ]
    assert len(lines(folder / "midpoints.csv")) == 2 * len(arms) and len(lines(folder / "needed.csv")) == len(STARTS)
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "claims.md").read_text().count("arXiv:2206.01278") == 4


def test_everything_begins_at_its_weights_and_at_their_place_in_the_schedule(whole):
    folder, _, rates = whole
    initial = load_file(folder / "ladder-initialization-seed1" / "tickets" / "rewind.safetensors")
    whole_schedule = rates["ladder-initialization-seed1"][:LENGTH]
    assert len({*whole_schedule}) == LENGTH - 1 and rates["scores-0-seed1"] == whole_schedule[:1]
    begun = []
    for start in STARTS:
        assert rates[f"pretraining-{start}-seed1"] == whole_schedule[:K]
        begun.append(kept(folder, f"pretraining-{start}", "2ba"))
        assert same(load_file(folder / f"ladder-{start}-2ba-seed1" / "tickets" / "rewind.safetensors"), begun[-1])
        assert rates[f"ladder-{start}-2ba-seed1"] == pytest.approx(whole_schedule[K:] * 3)
        for copy in (0, 1):
            assert rates[f"{start}-2ba-copy{copy}-seed1"] == pytest.approx(whole_schedule[K:])
    assert all(not same(one, other) for i, one in enumerate([initial, *begun]) for other in begun[i:])


def test_what_networks_are_pretrained_on(whole):
    folder, orders, _ = whole
    labels = digits("train", SIZE)[1]
    files = [folder / f"scores-{number}-seed1" / "scores" / "ba1.safetensors" for number in (0, 1)]
    scores = [load_file(file)["el2n"] for file in files]
    assert not torch.equal(*scores)
    easiest = torch.stack(scores).mean(0).argsort(stable=True)[:32]
    seen = orders["pretraining-easy-seed1"]
    assert len(seen) == K and all(sorted(batch) == sorted(labels[easiest].tolist()) for batch in seen)
    assert sorted(orders["pretraining-random-seed1"][0]) == sorted(orders["pretraining-random-seed1"][1])
    assert sorted(orders["pretraining-random-seed1"][0]) != sorted(seen[0])
    assert orders["pretraining-all-seed1"] == orders["ladder-initialization-seed1"][:K]


def test_from_then_on_all_see_the_same_batches_of_all_data_and_copies_others(whole):
    _, orders, _ = whole
    first = orders["ladder-initialization-seed1"]
    assert sorted(label for batch in first[:3] for label in batch) == sorted(digits("train", SIZE)[1].tolist())
    copies = [orders[f"initialization-copy{copy}-seed1"][: LENGTH - K] for copy in (0, 1)]
    assert copies[0] != copies[1] and first[: LENGTH - K] not in copies
    for start in STARTS:
        assert orders[f"ladder-{start}-2ba-seed1"] == orders["ladder-all-2ba-seed1"]
        assert orders[f"ladder-{start}-2ba-seed1"][: LENGTH - K] == first[: LENGTH - K]
        assert [orders[f"{start}-2ba-copy{copy}-seed1"] for copy in (0, 1)] == copies


@pytest.mark.parametrize("name", ["initialization", "easy-2ba"])
def test_barriers_of_examples_are_those_of_a_plain_loop(name, whole):
    folder, *_ = whole
    ends = [kept(folder, f"{name}-copy{copy}") for copy in (0, 1)]
    images, labels = digits("train", SIZE)
    losses = []
    for state in (ends[0], halfway(*ends), ends[1]):
        pairs = zip(images.split(1), labels.split(1), strict=True)
        of_each = [F.cross_entropy(outputs(state, image), label) for image, label in pairs]
        losses.append(torch.stack(of_each))
    barriers = losses[1] - (losses[0] + losses[2]) / 2
    found = load_file(folder / f"{name}-copy1-seed1" / "barriers" / f"{name}-copy0-seed1.safetensors")
    assert torch.allclose(found["interpolate"], barriers, atol=1e-5)
    row = row_of(folder, "pair", INITIAL if name == INITIAL else "easy, 2ba")
    assert row["connected/interpolate"] == pytest.approx(100 * (barriers < 0.1).double().mean().item())
    assert row["example barrier/interpolate"] == pytest.approx(barriers.mean().item(), abs=1e-5)
    # Recomputed statistics are those of the first 40 examples, at the ends, too.
    model = resnet_cifar(depth=8, width=4, in_channels=1)
    model.load_state_dict(halfway(*ends))
    for norm in (one for one in model.modules() if isinstance(one, torch.nn.BatchNorm2d)):
        norm.reset_running_stats()
        norm.momentum = None
    for part in (images[:32], images[32:40]):
        model((part, None))
    middle = F.cross_entropy(outputs(model.state_dict(), images), labels, reduction="none")
    assert row["example barrier/recompute"] < middle.mean().item()
    assert not torch.allclose(found["recompute"], found["interpolate"])


def test_midpoints_between_levels_are_those_of_a_plain_script(whole):
    folder, *_ = whole
    images, labels = digits("test", 40)
    for level, batches in ((1, ("4ba", "6ba")), (2, ("6ba", "8ba"))):
        ends = [kept(folder, "ladder-easy-2ba", at) for at in batches]
        ticket = load_file(folder / "ladder-easy-2ba-seed1" / "tickets" / f"level-{level}.safetensors")
        assert all((ends[1][name.removesuffix("_mask")][~mask] == 0).all() for name, mask in ticket.items())
        made = [outputs(state, images) for state in (ends[0], halfway(*ends), ends[1])]
        errors = [100 * (one.argmax(1) != labels).double().mean().item() for one in made]
        losses = [F.cross_entropy(one, labels).item() for one in made]
        row = row_of(folder, "ladder", "easy, 2ba", level)
        for metric, (a, middle, b) in {"error": errors, "loss": losses}.items():
            assert row[f"midpoint/test/{metric}/interpolate"] == pytest.approx(middle - (a + b) / 2, abs=1e-4)


@pytest.mark.parametrize("kill_at", [1, 2 + 5 * LENGTH + 2, 2 + 5 * LENGTH + 9])
def test_killed_at_any_time_it_goes_on(whole, kill_at, tmp_path):
    """While scoring, as the pre-training on easy data ends, in a ladder."""
    given = study(tmp_path)
    given.study.data_diet.starts = {"easy": {"count": 32, "keep": "easiest"}, "all": {}}
    Watch.reset(kill_at)
    with pytest.raises(KeyboardInterrupt):
        outcome(given)
    found = outcome(given).rows
    names = {row.node for row in found}
    assert sorted(without_seconds(found), key=str) == sorted(
        without_seconds(row for row in table(whole[0]) if row.node in names), key=str
    )


def test_the_folder_of_all_runs_may_move(copied, tmp_path):
    assert without_seconds(report_only(plan(study(tmp_path))).rows) == without_seconds(copied)


def test_tickets_are_those_of_a_level_whatever_share_small_layers_can_keep(whole):
    folder, *_ = whole
    found = plan(study(folder.parent)).study
    assert isinstance(found, DataDiet)
    rows = [replace(row, tags={**row.tags, "density": 0.99 ** row["level"] * row["density"]}) for row in table(folder)]
    assert len(found.tickets(rows)) == 1 + len(STARTS)


def test_what_matches_by_one_deviation_is_told_on_the_data_that_it_is_chosen_on(tmp_path):
    given = study(tmp_path, tolerance=None, seeds=[1, 2])
    given.validation_data = {"digits": {"split": "train[90%:]"}}
    found = plan(given).study
    assert isinstance(found, DataDiet)
    place = {"role": "ladder", "start": INITIAL, "step": "0ba", "k": 0}
    sizes = {"compression_ratio": 1.0, "speedup": 1.0}
    rows = []
    for seed, value, validated in ((1, 0.8, 0.5), (2, 0.9, 0.7)):
        metrics = {"metrics/eval/MulticlassAccuracy": value, "metrics/eval/validation/MulticlassAccuracy": validated}
        for level, arm in enumerate(("dense", INITIAL, INITIAL)):
            tags = {**place, "arm": arm, "seed": seed, "level": level, "density": 0.6**level}
            rows.append(Row(node="x", tags=tags, batches=0, samples=0, seconds=0.0, metrics={**metrics, **sizes}))
    assert [ticket.tolerance for ticket in found.tickets(rows)] == pytest.approx([0.2 / 2**0.5] * 2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=[2ba]", "steps: ['2ba'] given; expected 0ba"),
        ("steps=[0ep,1ep]", "steps: ['0ep', '1ep'] given; expected 0ba"),
        ("steps=[0ba,4ba]", "steps: 4ba given, but the schedule"),
        ("starts=null", "starts"),
        ("starts.all=false", "starts: expected one that changes nothing, such as all: {}"),
        ("starts.more={}", "starts: expected one that changes nothing, such as all: {}"),
        ("starts.initialization={count: 32}", "starts.initialization: is what the study calls something else"),
        ("starts.random.coutn=32", "starts.random.coutn: unknown argument; did you mean count"),
        ("starts.random.count=97", "starts.random.count: 97 given, but digits has 96 examples"),
        ("starts.random.count=31", "starts.random.count: 31 given, but"),
        ("starts.easy.count=null", "starts.easy.count: missing; expected it beside keep"),
        ("starts.easy.keep=easy", "starts.easy.keep: 'easy' given; expected"),
        ("starts.wrong.wrong_labels=0.001", "starts.wrong.wrong_labels: 0.001 given, which changes none of 64 labels"),
        ("starts.wrong.wrong_labels=1", "starts.wrong.wrong_labels: 1.0 given; expected a share"),
        ("score_at=null", "score_at: missing; expected a moment from 1ba to 4ba"),
        ("score_at=5ba", "score_at: '5ba' given; expected a moment from 1ba to 4ba"),
        ("score_at=1ep", "score_at: '1ep' given; expected a moment from 1ba to 4ba"),
        ("replicates=0", "replicates: 0 given; expected 1 or more"),
        ("density=0.5", "density: 0.5 given; expected that of one of the ladder's levels, 0.6, 0.36"),
        ("ladder.rewind_to=1ba", "ladder.rewind_to: every ladder is rewound"),
        ("ladder={levels: 0}", "ladder.levels"),
        ("copies=1", "copies: 1 given; expected 2 or more"),
        ("connected_below=0", "connected_below: 0.0 given; expected a loss above 0"),
        ("hessian={probs: 3}", "hessian.probs: unknown argument; did you mean probes"),
    ],
)
def test_mistakes_in_its_keys_are_one_line(override, message, tmp_path):
    said = refused(tmp_path, study(tmp_path), f"study.data_diet.{override}")
    assert message in said and ": study.data_diet." in said


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_duration=2ep", "max_duration: '2ep' given; expected it in ba"),
        ("scheduler={cosine_annealing_with_warmup: {t_warmup: 1ep}}", "t_warmup: '1ep' given; expected it in ba"),
    ],
)
def test_epochs_of_other_data_are_no_measure(override, message, tmp_path):
    assert message in refused(tmp_path, study(tmp_path), override)


def test_scores_need_a_start_that_keeps_by_them(tmp_path):
    given = study(tmp_path)
    given.study.data_diet.starts = {"all": {}}
    assert "score_at: given, but no start keeps" in refused(tmp_path, given)


# Tables that are made up, with known answers. A dense network is as good as 0; the tolerance is .01.

JUDGED = Judged(
    all_data="all", random=["random"], easy={"easy": "random"}, tolerance=0.01, density=0.1, choice="chosen anywhere"
)
NOISE = {1: -1e-3, 2: 0.0, 3: 1e-3}


def tickets(shares=None, **gaps):
    """Of three seeds: gaps of each start at the steps 0, 10 and 20; at 0, they are those of `initial`."""
    found = []
    for start, values in gaps.items():
        steps = (("0ba", 0),) if start == "initial" else (("10ba", 10), ("20ba", 20))
        for (step, k), gap in zip(steps, values, strict=True):
            for seed, noise in NOISE.items():
                share = gap if shares is None else shares[start][k]
                own = INITIAL if start == "initial" else start
                quality = gap + noise * (2 if start == "easy" else 1)
                measured = {"connected/interpolate": 100 + share, "barrier/test/error/interpolate": -share}
                found.append(
                    Ticket(
                        start=own,
                        step=step,
                        k=k,
                        seed=seed,
                        quality=quality,
                        gap=gap,
                        tolerance=0.01,
                        measured=measured,
                    )
                )
    return found


PAPER = {"initial": [-0.05], "all": [-0.03, 0.0], "random": [-0.03, 0.0], "easy": [0.0, 0.002]}


def verdicts(found, judged=JUDGED):
    return [claim.verdict for claim in claims_of(found, judged)]


def test_what_the_paper_says_holds_where_it_is_so():
    claims = [*claims_of(tickets(**PAPER), JUDGED)]
    assert [claim.verdict for claim in claims] == ["holds"] * 3
    assert "easy 0 to 10, 0 to 10, 0 to 10; all 10 to 20, 10 to 20, 10 to 20; random 10 to 20" in claims[1].measured
    assert "correlation +" in claims[2].measured
    signs = {line["property"].partition("/")[0]: line["value"] > 0 for line in lines_of_predictors(tickets(**PAPER))}
    assert signs == {"connected": True, "barrier": False}


def test_where_pruning_does_not_fail_from_step_0_nothing_can_be_told():
    for initial, told in (([0.0], False), ([0.005], False), ([-0.012], True)):
        found = verdicts(tickets(**{**PAPER, "initial": initial, "all": [0.0, 0.0]}))
        assert ({*found} == {"cannot be told here"}) != told
    # Worse than what begins later, though it matches.
    claims = [*claims_of(tickets(**{**PAPER, "initial": [0.0], "all": [0.0, 0.02]}), JUDGED)]
    assert claims[2].verdict != "cannot be told here" and "does not fail" not in claims[0].why
    assert (
        "from step 0 iterative pruning does not fail here"
        in next(claims_of(tickets(**{**PAPER, "initial": [0.0]}), JUDGED)).why
    )
    assert {*verdicts([t for t in tickets(**PAPER) if t.k])} == {"cannot be told here"}


def test_a_random_subset_fails_where_it_is_worse_and_is_not_told_where_nothing_is_gained():
    assert verdicts(tickets(**{**PAPER, "random": [-0.045, 0.0]}))[0] == "fails"
    (first, *_) = claims_of(tickets(**{**PAPER, "all": [-0.05, -0.05], "random": [-0.05, -0.05]}), JUDGED)
    assert first.verdict == "cannot be told here" and "none of them counts" in first.why
    assert first.measured.count("not counted: all data gain") == 2
    wide = [replace(t, quality=t.quality + 15 * NOISE[t.seed]) if t.start == "random" else t for t in tickets(**PAPER)]
    assert verdicts(wide)[0] == "cannot be told here"
    diverged = [replace(t, quality=math.nan) if t.start == "random" and t.k == 10 else t for t in tickets(**PAPER)]
    (first, *_) = claims_of(diverged, JUDGED)
    assert first.verdict == "holds" and "random at 10ba (not counted: a run diverged)" in first.measured
    assert "1 starts and steps not counted: a run diverged" in [*claims_of(diverged, JUDGED)][2].measured


def test_where_something_is_gained_is_not_chosen_on_the_data_that_are_reported():
    nowhere = tickets(**{**PAPER, "all": [-0.05, -0.05], "random": [-0.05, -0.05]})
    lucky = [replace(t, quality=t.quality + 0.05) if t.start == "all" else t for t in nowhere]
    (first, *_) = claims_of(lucky, JUDGED)
    assert first.verdict == "cannot be told here" and "none of them counts" in first.why


def test_steps_needed_are_bounds_and_compared_as_such():
    needed = needed_of(tickets(**PAPER), "all")
    assert needed == dict.fromkeys((1, 2, 3), Needed(above=10, at_most=20))
    never = needed_of(tickets(**{**PAPER, "all": [-0.03, -0.02]}), "all")[1]
    assert str(never) == "> 20" and str(needed_of(tickets(**{**PAPER, "initial": [0.0]}), "all")[1]) == "0"
    early, late = Needed(above=0, at_most=10), needed[1]
    assert [fewer(early, late), fewer(late, early), fewer(late, late), fewer(late, never), fewer(never, late)] == [
        1, -1, 0, 1, -1,
    ]  # fmt: skip
    assert fewer(never, never) is None
    at_once = Needed(above=None, at_most=0)
    assert fewer(at_once, at_once) is None and fewer(at_once, late) == 1
    # Those of a seed of which a ladder is not finished are not known.
    unfinished = [t for t in tickets(**PAPER) if (t.start, t.k, t.seed) != ("all", 20, 2)]
    assert [*needed_of(unfinished, "all")] == [1, 3]


def test_easy_data_need_as_many_or_it_is_not_known():
    same_steps = verdicts(tickets(**{**PAPER, "easy": [-0.03, 0.0]}))
    assert same_steps[1] == "fails"
    never = {**PAPER, "all": [-0.03, -0.02], "random": [-0.03, -0.02]}
    assert verdicts(tickets(**never))[1] == "holds"  # beyond the last step is more
    (_, easy, *_) = claims_of(tickets(**{**never, "easy": [-0.03, -0.02]}), JUDGED)
    assert easy.verdict == "cannot be told here" and "none of them matches at any step" in easy.why
    assert "6 pairs in which neither matches, or both do from step 0, do not count" in easy.measured
    mixed = [replace(t, gap=-0.03) if t.start == "easy" and t.seed == 1 and t.k == 10 else t for t in tickets(**PAPER)]
    assert verdicts(mixed)[1] == "cannot be told here"
    (_, lone, *_) = claims_of(tickets(**PAPER), replace(JUDGED, easy={"easy": ""}))
    assert lone.verdict == "cannot be told here" and "no random subset of as many examples as easy" in lone.why
    assert "there is no easy subset" in [*claims_of(tickets(**PAPER), replace(JUDGED, easy={}))][1].why


def test_connected_examples_predict_or_not():
    order = {"initial": {0: 0}, "all": {10: 1, 20: 4}, "random": {10: 2, 20: 5}, "easy": {10: 6, 20: 7}}
    gaps = {"initial": [-0.07], "all": [-0.06, -0.03], "random": [-0.05, -0.02], "easy": [0.0, 0.01]}
    assert verdicts(tickets(order, **gaps))[2] == "holds"
    against = {start: {k: -share for k, share in of.items()} for start, of in order.items()}
    assert verdicts(tickets(against, **gaps))[2] == "fails"
    flat = {start: {k: (share * 3) % 4 for k, share in of.items()} for start, of in order.items()}
    assert verdicts(tickets(flat, **gaps))[2] == "cannot be told here"
    few = [t for t in tickets(order, **gaps) if t.start in (INITIAL, "all")]
    (claim,) = [*claims_of(few, JUDGED)][2:]
    assert claim.verdict == "cannot be told here" and "fewer than 4 starts and steps" in claim.why
