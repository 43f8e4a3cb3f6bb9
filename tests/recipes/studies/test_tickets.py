"""Whole studies of `tickets` on the real digits: what they leave, kill and resume, more of anything; and claims."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from studies import Watch, lines, of_pruning, outcome, refused, table, without_seconds

from accelerando.algorithms.pruning import load_masks, prunable_weights
from accelerando.algorithms.pruning.masks import density
from accelerando.recipes.config.errors import ConfigError
from accelerando.recipes.models.builders import resnet_cifar
from accelerando.recipes.studies import Tickets
from accelerando.recipes.studies.density import UNKNOWN
from accelerando.recipes.studies.driver import dry_run, report_only
from accelerando.recipes.studies.plan import plan
from accelerando.recipes.studies.table import Row
from accelerando.recipes.train import train

OWN = """
ladders:
  iterative: {levels: 2}
  one_shot: {levels: 1, fraction: 0.36}
ticket: {fraction: 0.2, rewind_to: 1ba}
controls: [random, reinitialize, shuffle]
control_levels: [2]
seeds: [1, 2]
"""
ITERATIVE, ONE_SHOT, CONTROL = 4 + 2 * 3, 4 + 3, 4  # batches
OF_A_SEED = ITERATIVE + ONE_SHOT + 3 * CONTROL
ACCURACY = "metrics/eval/MulticlassAccuracy"
VALIDATION = "metrics/eval/validation/MulticlassAccuracy"

pytestmark = pytest.mark.usefixtures("watch")


def study(folder, **changes):
    """The settings, which a test may change before it trains."""
    given = of_pruning(folder, "tickets", OWN, "4ba")
    given.study.tickets.update(changes)
    return given


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study's folder, and what its runs started from and pruned, by their names."""
    Watch.reset()
    folder = tmp_path_factory.mktemp("whole")
    outcome(study(folder))
    assert Watch.batches == 2 * OF_A_SEED
    return folder / "study", Watch.starts, Watch.masks, Watch.orders


def named(things, *parts):
    """The one whose name has all these parts."""
    (found,) = (thing for name, thing in things.items() if all(part in name for part in parts))
    return found


def values(rows, seed=1):
    return {(row["arm"], row["level"]): row.metrics[ACCURACY] for row in rows if row["seed"] == seed}


def test_a_study_and_what_it_leaves(whole):
    folder, *_ = whole
    rows = table(folder)
    arms = [("dense", 0), ("iterative", 1), ("iterative", 2), ("one_shot", 1)]
    arms += [(control, 2) for control in ("random", "reinitialize", "shuffle")]
    assert [(row["seed"], row["arm"], row["level"]) for row in rows] == [
        (seed, *arm) for seed in (1, 2) for arm in arms
    ]
    lengths = {"dense": 4, "iterative": 3, "one_shot": 3}
    assert all((row["batches"], row["samples"]) == (b := lengths.get(row["arm"], 4), 32 * b) for row in rows)
    pruned = {name: [row[name] > 1 for row in rows] for name in ("compression_ratio", "speedup")}
    assert all(row["seconds"] > 0 for row in rows)
    assert pruned["compression_ratio"] == pruned["speedup"] == [row["arm"] != "dense" for row in rows]
    means = lines(folder / "density.csv")
    assert [(mean["arm"], int(mean["level"]), mean["seeds"]) for mean in means] == [(*arm, "2") for arm in arms]
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "arXiv:1912.05671" in (folder / "claims.md").read_text()


def test_rows_are_those_of_separate_runs(whole, tmp_path):
    folder, *_ = whole
    value = values(table(folder))
    plain = {name: v for name, v in OmegaConf.to_container(study(tmp_path)).items() if name != "study"} | {"seed": 1}

    def accuracy(name, **algorithms):
        return train(plain | {"run_name": name, "algorithms": algorithms}).metrics[ACCURACY]

    assert accuracy("dense") == value["dense", 0]
    ladder = train(plain | {"algorithms": {"lottery_ticket": {"levels": 2, "fraction": 0.2, "rewind_to": "1ba"}}})
    own = [value["dense", 0], value["iterative", 1], value["iterative", 2]]
    assert [level["eval/MulticlassAccuracy"] for level in ladder.found["levels"]] == own
    random = {"criterion": "random", "density": 0.8**2, "at": "1ba"}
    assert accuracy("random", prune_at_init=random) == value["random", 2]
    ticket = {"ticket": str(folder / "iterative-seed1" / "tickets" / "level-2.safetensors"), "at": "1ba"}
    assert accuracy("shuffle", prune_at_init=ticket | {"shuffle": True}) == value["shuffle", 2]
    plain["weights_seed"] = 1_000_001
    assert accuracy("reinitialize", prune_at_init=ticket) == value["reinitialize", 2]


def test_controls_are_what_they_say(whole):
    folder, starts, masks, orders = whole
    by_level = {}
    for row in table(folder):
        by_level.setdefault(row["level"] if row["arm"] != "one_shot" else 2, set()).add(row["density"])
    assert all(len(densities) == 1 for densities in by_level.values())
    for seed in (1, 2):
        controls = ("random", "shuffle", "reinitialize")
        kept = {control: named(masks, control, "level2", f"seed{seed}") for control in controls}
        ticket = load_masks(folder / f"iterative-seed{seed}" / "tickets" / "level-2.safetensors", kept["random"])
        assert {density(m) for m in (ticket, *kept.values())} == by_level[2] and density(ticket) < 1
        assert all(torch.equal(ticket[name], mask) for name, mask in kept["reinitialize"].items())
        assert all(ticket[name].sum() == mask.sum() for name, mask in kept["shuffle"].items())
        assert any(not torch.equal(ticket[name], mask) for name, mask in kept["shuffle"].items())
        assert any(ticket[name].sum() != mask.sum() for name, mask in kept["random"].items())
        start = starts[f"iterative-seed{seed}"]
        for control in ("random", "shuffle"):
            assert torch.equal(named(starts, control, f"seed{seed}"), start)
        assert not torch.equal(named(starts, "reinitialize", f"seed{seed}"), start)
        order = orders[f"iterative-seed{seed}"][:CONTROL]
        assert all(named(orders, control, f"seed{seed}") == order for control in controls)


# Composer and torchmetrics warn when a run goes on between the last batch of an epoch and its end.
@pytest.mark.filterwarnings("ignore:No batches were trained")
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_what_is_done_is_not_done_again_and_what_is_new_is(copied, tmp_path):
    assert dry_run(plan(study(tmp_path))).endswith("10 runs, 14.5 times 4ba; 0 left, 0 times")
    assert table(tmp_path / "study") == copied
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(tmp_path / "study", tmp_path / "elsewhere" / "study", symlinks=True)
    assert "0 left" in dry_run(plan(study(tmp_path / "elsewhere")))

    more = outcome(study(tmp_path, seeds=[1, 5])).rows
    assert Watch.batches == OF_A_SEED
    first = [row for row in copied if row["seed"] == 1]
    assert [row for row in more if row["seed"] == 1] == first

    # A third level, and the controls of that one alone.
    Watch.reset()
    given = study(tmp_path, seeds=[1], control_levels=[2, 3])
    given.study.tickets.ladders.iterative.levels = 3
    prolonged = outcome(given).rows
    assert Watch.batches == 3 + 3 * CONTROL
    assert [row for row in prolonged if row["level"] < 3] == first
    given.study.tickets.update(controls=["shuffle"], control_levels=[3])
    given.study.tickets.ladders.one_shot = False
    assert "0 left" in dry_run(plan(given))
    # Fewer levels are another run.
    given.study.tickets.ladders.iterative.levels, given.study.tickets.control_levels = 2, [1]
    with pytest.raises(ConfigError, match=r"ladders\.iterative\.levels: 2 given, but the run in .* has 3"):
        plan(given)


@pytest.mark.parametrize("kill_at", [6, ITERATIVE, ITERATIVE + 2 * CONTROL - 2])
def test_killed_at_any_time_it_goes_on(whole, kill_at, tmp_path):
    given = study(tmp_path, seeds=[1], controls=["random", "shuffle"])
    given.save_interval, given.study.tickets.ladders.one_shot = "1ba", False
    Watch.reset(kill_at)
    with pytest.raises(KeyboardInterrupt):
        outcome(given)
    assert not (tmp_path / "study" / "table.csv").exists()
    outcome(given)
    arms = ("dense", "iterative", "random", "shuffle")
    kept = [row for row in table(whole[0]) if row["seed"] == 1 and row["arm"] in arms]
    assert without_seconds(table(tmp_path / "study")) == without_seconds(kept)
    assert 0 <= Watch.batches - (ITERATIVE + 2 * CONTROL) <= 1


def test_another_ticket_does_not_pass_for_this_one(copied, tmp_path):
    given = study(tmp_path, seeds=[1], controls=["shuffle"])
    folder = tmp_path / "study"
    for old in folder.glob("shuffle-*-seed1"):
        shutil.rmtree(old)
    file = folder / "iterative-seed1" / "tickets" / "level-2.safetensors"
    own = file.read_bytes()
    for other in ((folder / "iterative-seed2" / "tickets" / "level-2.safetensors").read_bytes(), own[:100], None):
        file.write_bytes(other) if other is not None else file.unlink()
        found = outcome(given)  # the others stand
        (why,) = found.failures.values()
        assert why.startswith(f"{file}: ") and why.endswith("iterative-seed1 to train it again")
        assert [row["arm"] for row in found.rows] == ["dense", "iterative", "iterative", "one_shot"]
    assert Watch.batches == 0
    file.write_bytes(own)
    assert "shuffle" in [row["arm"] for row in outcome(given).rows] and Watch.batches == CONTROL

    # Another training finds other masks, of which the controls are other runs.
    shutil.rmtree(folder / "iterative-seed1")
    given.optimizer.decoupled_sgdw.lr, given.study.tickets.ladders.one_shot = 0.3, False
    Watch.reset()
    outcome(given)
    assert Watch.batches == ITERATIVE + CONTROL
    assert len([*folder.glob("shuffle-iterative-level2-*-seed1")]) == 2


def test_the_dense_network_is_told_by_the_first_ladder_that_is_finished(copied, tmp_path):
    shutil.rmtree(tmp_path / "study" / "iterative-seed1")
    left = report_only(plan(study(tmp_path))).rows
    assert [(row["seed"], row.node) for row in left if row["arm"] == "dense"] == [
        (1, "one_shot-seed1"),
        (2, "iterative-seed2"),
    ]
    dense = {row["seed"]: row.metrics[ACCURACY] for row in copied if row["arm"] == "dense"}
    assert {row["seed"]: row.metrics[ACCURACY] for row in left if row["arm"] == "dense"} == dense


def test_a_ladder_that_was_stopped_lacks_controls_and_the_rest_stands(tmp_path, capsys):
    given = study(tmp_path, seeds=[1], controls=["random", "shuffle"], control_levels=[1, 2])
    given.study.tickets.ladders.one_shot = False
    Watch.reset(stop_at=4 + 3 + 2)
    with pytest.warns(UserWarning, match="stopped"):
        found = outcome(given)
    assert not found.failures
    arms = [("dense", 0), ("iterative", 1), ("random", 1), ("shuffle", 1), ("random", 2)]
    assert [(row["arm"], row["level"]) for row in found.rows] == arms
    said = "iterative-seed1 ended after level 1: it has no masks for controls at level 2"
    assert capsys.readouterr().out.count(said) == 1


def test_it_is_told_and_logged_to_wandb(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    given = study(tmp_path, seeds=[1], controls=["random"], control_levels=[1])
    given.loggers, given.study.tickets.ladders.one_shot = {"wandb": {"project": "p"}}, False
    rows = outcome(given).rows
    (run,) = (tmp_path / "study").glob("wandb/offline-run-*")
    contents = {}
    for name in ("table", "density"):
        (file,) = (file for file in run.glob("files/media/table/*.table.json") if file.name.startswith(f"{name}_"))
        contents[name] = json.loads(file.read_text())["data"]
    assert [line[0] for line in contents["table"]] == [row.node for row in rows]
    assert [line[0] for line in contents["density"]] == ["dense", "iterative", "iterative", "random"]
    (figure,) = run.glob("files/media/images/*.png")
    assert figure.read_bytes().startswith(b"\x89PNG")
    out, err = capsys.readouterr()
    told = [line for line in err.splitlines() if line.startswith("run ")]
    assert len(told) == 4 and told[-1].endswith("(100%, 00:00 left)")
    place, value = "run 1 of 2: iterative-seed1, level", f"accuracy {rows[2].metrics[ACCURACY]:.4f} ("
    assert told[0].startswith(f"{place} 0 of 2, 100 %: ") and told[2].startswith(f"{place} 2 of 2, 64 %: {value}")
    assert told[3].startswith("run 2 of 2: random-iterative-level1-seed1: accuracy ")
    assert "sparsest match" in out and "density.csv" in out


def test_of_a_loss_less_is_better(tmp_path):
    given = study(tmp_path, metric="CrossEntropy", seeds=[1], controls=["random"], control_levels=[])  # of no level
    given.study.tickets.ladders = {"bad": {"levels": 1, "fraction": 0.9}}
    dense, bad = (row.metrics["metrics/eval/CrossEntropy"] for row in outcome(given).rows)
    assert dense < bad
    assert [mean["matches"] for mean in lines(tmp_path / "study" / "density.csv")] == ["", "False"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ladders=null", "ladders: "),
        ("ladders={iterative: false, one_shot: false}", "ladders: each of them is false"),
        ("ladders.iterative=3", "ladders.iterative: 3 given; expected a mapping"),
        ("ladders.a/b={levels: 1}", "ladders.a/b: expected a name of up to 100 letters"),
        ("ladders.random={levels: 1}", "ladders.random: is what the study calls something else"),
        ("ladders.dense={levels: 1}", "ladders.dense: is what the study calls something else"),
        ("ladders.more={}", "ladders.more.levels: missing"),
        ("ladders.iterative.lvels=2", "ladders.iterative.lvels: unknown argument; did you mean levels"),
        ("ladders.iterative.levels=two", "ladders.iterative.levels: 'two' given"),
        ("ladders.iterative.levels=0", "ladders.iterative.levels: LotteryTicket: levels must be "),
        ("ladders.iterative.fraction=1.5", "ladders.iterative.fraction: LotteryTicket: fraction must be in (0, 1)"),
        ("ladders.iterative.save_folder=x", "ladders.iterative.save_folder: the study sets it for every run"),
        ("ticket.fractoin=0.2", "ticket.fractoin: unknown argument; did you mean fraction"),
        ("ticket.rewind_to=soon", "ticket.rewind_to: LotteryTicket: rewind_to must be in ep or ba, got 'soon'"),
        ("ticket.rewind_to=4ba", "ladders.iterative.rewind_to: 4ba given; expected less than max_duration"),
        ("ticket.include=[nothing.*]", "no prunable weight is called 'nothing.*'"),
        ("controls=[lucky]", "controls: ['lucky'] given; expected "),
        ("controls=[random,random]", "controls: ['random', 'random'] given; expected different ones, of random"),
        ("controls=random", "controls: 'random' given"),
        ("ladders.iterative.rewind=finetune", "controls: what they are compared with begins at step k, but iterative"),
        ("control_levels=[3]", "control_levels: [3] given; expected different ones, from 1 to 2"),
        ("control_levels=[1,1]", "control_levels: [1, 1] given; expected different ones"),
        ("seeds=[1,1]", "seeds: [1, 1] given; expected different whole numbers"),
        ("seeds=[-1]", "seeds: -1 given; expected a whole number from 0"),
        ("seeds=[4294967295]", "seeds: 4295967295 given; expected a whole number from 0"),
        ("tolerance=-1", "tolerance: -1"),
        ("metric=Precision", "metric: no metric is 'Precision'"),
    ],
)
def test_mistakes_in_its_keys_are_one_line(override, message, tmp_path):
    said = refused(tmp_path, study(tmp_path), f"study.tickets.{override}")
    assert message in said and ": study.tickets." in said


@pytest.mark.parametrize(
    ("ladders", "message"), [({}, "ladders: missing; expected names"), (["a"], "ladders: ['a'] given")]
)
def test_a_study_has_a_ladder(ladders, message, tmp_path):
    assert f"study.tickets.{message}" in refused(tmp_path, study(tmp_path, ladders=ladders))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["study.tickets.tolerance=null", "study.tickets.seeds=[1]"], "study.tickets.tolerance: null is one standard"),
        (["eval_data=null"], "command line: eval_data: missing; what a subnetwork is worth is evaluated there"),
        (["max_duration=400sp"], "command line: max_duration: 400sp given; expected it in ep or ba"),
        (
            ["algorithms={magnitude_pruning: {density: 0.5}}"],
            "algorithms.magnitude_pruning: the study adds what prunes",
        ),
        (["algorithms={progressive_resizing: {}}"], "algorithms.progressive_resizing: follows the length of the whole"),
    ],
)
def test_mistakes_in_the_base_run_are_one_line(overrides, message, tmp_path):
    assert message in refused(tmp_path, study(tmp_path), *overrides)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "study.tickets.ticket.rewind_to=2ba",
            "command line: study.tickets.ticket.rewind_to: 2ba given, but the run in",
        ),
        (
            "study.tickets.ladders.one_shot.fraction=0.5",
            "study.tickets.ladders.one_shot.fraction: 0.5 given, but the run",
        ),
        ("max_duration=6ba", "command line: max_duration: 6ba given, but the run in"),
        ("optimizer.decoupled_sgdw.lr=0.2", "command line: optimizer.decoupled_sgdw.lr: 0.2 given, but the run in"),
    ],
)
def test_what_is_in_the_folder_is_not_falsified(copied, override, message, tmp_path):
    assert message in refused(tmp_path, study(tmp_path), override)


def test_the_lengths_of_a_plan(tmp_path):
    given = study(tmp_path, seeds=[1], control_levels=None)
    nodes = plan(given).nodes({})
    assert [node.cost for node in nodes] == [1 + 2 * 0.75, 1.75] + 6 * [1.0]
    assert [node.changes is None for node in nodes] == [False, False] + 2 * [False, True, True]


def pretrained():
    """A model whose weights are given, but for the last layer's."""
    model = resnet_cifar(depth=8, width=4, in_channels=1)
    for weight in list(prunable_weights(model).values())[:-1]:
        torch.nn.init.constant_(weight, 0.5)
    return model


def test_weights_that_are_not_drawn_cannot_be_drawn_anew(tmp_path):
    given = study(tmp_path)
    given.model = {f"{__name__}:pretrained": {}}
    assert "study.tickets.controls: reinitialize draws other weights, but those of" in refused(tmp_path, given)
    given.study.tickets.controls = ["random", "shuffle"]
    assert len(plan(given).nodes({})) == 8


SPREAD = (0.001, -0.001, 0.0, 0.0005, -0.0005, 0.0008, -0.0002)  # over seeds, which no two networks share


def measured(arm, density, value, turn=0, **others):
    spread = [SPREAD[(seed + turn) % 7] for seed in range(4)]
    for seed in range(4):
        tags = {"arm": arm, "seed": seed, "level": 1, "density": density}
        metrics = {ACCURACY: value + spread[seed] - sum(spread) / 4, "compression_ratio": 1.0, "speedup": 1.0, **others}
        yield Row(node=arm, tags=tags, batches=1, samples=1, seconds=1.0, metrics=metrics)


def rows_of(dense=0.9, ticket=0.9, one_shot=0.85, random=0.7, reinitialize=0.8, shuffle=0.8, moderate=0.92):
    low = {"ticket": ticket, "random": random, "reinitialize": reinitialize, "shuffle": shuffle, "once": one_shot}
    rows = [*measured("dense", 1.0, dense), *measured("ticket", 0.4, moderate, 1)]
    for turn, (arm, value) in enumerate(low.items()):
        rows += measured(arm, 0.1, value, turn)
    return rows


def verdicts(rows, chosen_by=None):
    study = Tickets(ladders={"ticket": {}, "once": {}}, metric=ACCURACY, tolerance=0.01)
    study.chosen_by = chosen_by
    return {claim.claim: claim for claim in study.claims(None, rows)}  # type: ignore[arg-type]


RANDOM = "Tickets match the dense network where as many weights at random do not."
REINITIALIZED = "Tickets match the dense network where other initial weights do not."
BETTER = "With 20 to 50 % of the weights, tickets are better than the dense network."
ITERATIVELY = "Iterative pruning is better than pruning to as many weights at once."
SHUFFLED = "Tickets suffer where their masks are shuffled in each layer."
REDRAWN = "Tickets suffer where their initial weights are drawn anew."
UNTOLD = "cannot be told here"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"moderate": 0.9}, {BETTER: UNTOLD}),
        ({"moderate": 0.89}, {BETTER: "fails"}),
        ({"ticket": 0.8895}, {RANDOM: UNTOLD, REINITIALIZED: UNTOLD}),  # does not match
        ({"reinitialize": 0.895}, {REINITIALIZED: UNTOLD}),  # matches as well
        ({"reinitialize": 0.9}, {REINITIALIZED: UNTOLD, REDRAWN: UNTOLD}),
        ({"reinitialize": 0.92}, {REINITIALIZED: UNTOLD, REDRAWN: "fails"}),
        ({"one_shot": 0.9}, {ITERATIVELY: UNTOLD}),
        ({"one_shot": 0.91}, {ITERATIVELY: "fails"}),
        ({"shuffle": 0.95}, {SHUFFLED: "fails"}),
        # Random weights do as well: whatever else is seen does not come of which are kept.
        ({"random": 0.9}, dict.fromkeys((RANDOM, REINITIALIZED, ITERATIVELY, SHUFFLED, REDRAWN), UNTOLD)),
    ],
)
def test_verdicts(changes, expected):
    found = verdicts(rows_of(**changes))
    assert list(found) == [RANDOM, REINITIALIZED, BETTER, ITERATIVELY, SHUFFLED, REDRAWN]
    assert {claim: one.verdict for claim, one in found.items()} == dict.fromkeys(found, "holds") | expected


def test_what_claims_say_of_how_it_was_judged():
    found = verdicts(rows_of())
    place = "at 10 %, the sparsest compared match (chosen on the data that it is reported on)"
    assert f"{place} +0.2000" in found[RANDOM].measured
    assert "4 seeds, paired t test" in found[RANDOM].measured
    assert "could show a difference of" in verdicts(rows_of(moderate=0.9))[BETTER].why
    random = verdicts(rows_of(random=0.9))[SHUFFLED]
    assert "10 % +0.1" in random.measured and "not counted: not told from random weights" in random.measured
    unknown = verdicts([row for row in rows_of() if row["arm"] != "dense"])
    assert UNKNOWN in unknown[RANDOM].why
    untried = verdicts([row for row in rows_of() if row["arm"] != "random"])[SHUFFLED].measured
    assert "not counted: as many random weights were not tried" in untried
    alone = verdicts([row for row in rows_of() if row["seed"] == 0])
    assert {one.verdict for one in alone.values()} == {UNTOLD}
    assert verdicts([]) == {}


def test_the_match_is_chosen_by_the_metric_for_choosing():
    """At 10 % the ticket matches on the data that it is reported on, but not on those by which it is chosen."""
    worse = ("ticket",)
    rows = [
        replace(row, metrics={**row.metrics, VALIDATION: 0.5 if row["arm"] in worse and row["density"] < 0.2 else 0.9})
        for row in [*rows_of(), *measured("random", 0.4, 0.5, 2)]
    ]
    assert "at 10 %" in verdicts(rows)[RANDOM].measured
    chosen = verdicts(rows, chosen_by=VALIDATION)[RANDOM].measured
    assert "at 40 %, the sparsest compared match (chosen on validation data) +0.42" in chosen


def test_a_diverged_run_is_told_and_not_counted():
    rows = [*rows_of(), *measured("shuffle", 0.4, float("nan"), 2), *measured("random", 0.4, 0.5, 3)]
    found = verdicts(rows)[SHUFFLED]
    assert "40 % (not counted: a run diverged)" in found.measured and "10 % +0.1" in found.measured
