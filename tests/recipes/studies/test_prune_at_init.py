"""Whole studies of `prune_at_init` on the real digits: what they leave, kill and resume, more of anything; claims."""

import pytest
import torch
from omegaconf import OmegaConf
from studies import Watch, lines, of_pruning, outcome, refused, table, without_seconds

from accelerando.recipes.run.results import Result
from accelerando.recipes.studies import PruneAtInit
from accelerando.recipes.studies.driver import dry_run
from accelerando.recipes.studies.plan import plan
from accelerando.recipes.studies.table import Row
from accelerando.recipes.train import train

OWN = """
criteria:
  snip: {samples_per_class: 2}
  small: {criterion: magnitude, scope: layerwise}
  random: {}
densities: [0.1, 0.5]
ablations: [shuffle, invert]
after_training: {rewind_to: 1ba}
seeds: [1]
"""
RUN, AFTER = 3, 3 + 2  # batches
ARMS = ["snip", "snip, shuffle", "snip, invert", "small", "small, shuffle", "small, invert", "random"]
LAST = "magnitude after training"
OF_A_SEED = RUN + 2 * (len(ARMS) * RUN + AFTER)
ACCURACY = "metrics/eval/MulticlassAccuracy"
pytestmark = [
    pytest.mark.usefixtures("watch"),
    pytest.mark.filterwarnings("ignore::accelerando.algorithms.pruning.LayerCollapseWarning"),
]


def study(folder, **changes):
    """The settings, which a test may change before it trains."""
    given = of_pruning(folder, "prune_at_init", OWN, "3ba")
    given.study.prune_at_init.update(changes)
    return given


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study's folder, and the masks of its runs."""
    Watch.reset()
    folder = tmp_path_factory.mktemp("whole")
    outcome(study(folder))
    assert Watch.batches == OF_A_SEED
    return folder / "study", Watch.masks


def arms(rows):
    return [(row["arm"], row["level"]) for row in rows]


def test_a_study_and_what_it_leaves(whole):
    folder, _ = whole
    rows = table(folder)
    # By falling density, whatever their order in the file.
    assert arms(rows) == [("dense", 0)] + [(arm, n) for n in (1, 2) for arm in (*ARMS, LAST)]
    densities = {row["density"] for row in rows if row["level"]}  # whatever the scope, the same number of weights
    assert sorted(densities) == pytest.approx([0.1, 0.5], abs=1e-4) and len(densities) == 2
    assert all((row["batches"], row["samples"]) == (b := 2 if row["arm"] == LAST else 3, 32 * b) for row in rows)
    assert all((row["compression_ratio"] > 1.5) == (row["speedup"] > 1.1) == (row["level"] > 0) for row in rows)
    means = [(mean["arm"], mean["level"]) for mean in lines(folder / "density.csv")]
    assert means == [("dense", "0"), *((arm, level) for arm in (*ARMS, LAST) for level in "12")]
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "claims.md").read_text().count("| arXiv:2009.08576") == 2 * 4


def test_each_arm_is_the_run_that_it_says(whole, tmp_path):
    folder, masks = whole
    value = {(row["arm"], row["level"]): row.metrics[ACCURACY] for row in table(folder)}
    plain = {name: v for name, v in OmegaConf.to_container(study(tmp_path)).items() if name != "study"} | {"seed": 1}

    def accuracy(name, **algorithms):
        return train(plain | {"run_name": name, "algorithms": algorithms}).metrics[ACCURACY]

    assert accuracy("dense") == value["dense", 0]
    snip = {"criterion": "snip", "density": 0.1, "samples_per_class": 2}
    assert accuracy("snip", prune_at_init=snip) == value["snip", 2]
    assert accuracy("shuffle", prune_at_init=snip | {"shuffle": True}) == value["snip, shuffle", 2]
    ticket = {"levels": 1, "fraction": 0.9, "schedule": "arithmetic", "rewind": "learning_rate", "rewind_to": "1ba"}
    assert accuracy("ticket", lottery_ticket=ticket) == value[LAST, 2]
    (dense, _) = Result.load(folder / "after_training-0.5-seed1").found["levels"]
    assert dense["eval/MulticlassAccuracy"] == value["dense", 0]

    kept = {name: masks[f"snip{name}-0.5-seed1"] for name in ("", "-shuffle", "-invert")}
    assert all(mask.sum() == kept["-shuffle"][name].sum() for name, mask in kept[""].items())
    assert any(mask.sum() != kept["-invert"][name].sum() for name, mask in kept[""].items())
    for other in ("-shuffle", "-invert"):
        assert not all(torch.equal(mask, kept[other][name]) for name, mask in kept[""].items())


def test_what_is_done_is_not_done_again_and_what_is_new_is(copied, tmp_path):
    assert dry_run(plan(study(tmp_path))).endswith("17 runs, 18.33 times 3ba; 0 left, 0 times")
    given = study(tmp_path, densities=[0.5], ablations=[], seeds=[2, 1])
    given.study.prune_at_init.criteria.update(small=False, random=False)
    known = [row for row in copied if row["arm"] == "dense" or (row["level"] == 1 and row["arm"] in ("snip", LAST))]
    assert [row for row in outcome(given).rows if row["seed"] == 1] == known and Watch.batches == 2 * RUN + AFTER

    Watch.reset()
    given.study.prune_at_init.update(seeds=[1], ablations=["reinitialize"])
    assert arms(outcome(given).rows) == [("dense", 0), ("snip", 1), ("snip, reinitialize", 1), (LAST, 1)]
    assert Watch.batches == RUN

    Watch.reset()
    given.study.prune_at_init.update(densities=[0.25, 0.5], ablations=[])
    more = outcome(given).rows
    assert arms(more[1:]) == [("snip", 1), (LAST, 1), ("snip", 2), (LAST, 2)]
    assert more[:3] == known and Watch.batches == RUN + AFTER
    given.study.prune_at_init.after_training = False
    assert "0 left" in dry_run(plan(given)) and LAST not in dry_run(plan(given))
    given.study.prune_at_init.criteria.snip.samples_per_class = 3
    message = "criteria.snip.samples_per_class: 3 given, but the run in"
    assert f"study.prune_at_init.{message}" in refused(tmp_path, given)


@pytest.mark.parametrize("kill_at", [2, RUN + 1, 2 * RUN + 4])
def test_killed_at_any_time_it_goes_on(whole, kill_at, tmp_path):
    given = study(tmp_path, ablations=[], densities=[0.5])
    given.study.prune_at_init.criteria, given.save_interval = {"snip": {"samples_per_class": 2}}, "1ba"
    Watch.reset(kill_at)
    with pytest.raises(KeyboardInterrupt):
        outcome(given)
    outcome(given)
    rows = table(whole[0])
    kept = [row for row in rows if row["arm"] == "dense" or (row["level"] == 1 and row["arm"] in ("snip", LAST))]
    assert without_seconds(table(tmp_path / "study")) == without_seconds(kept)
    assert 0 <= Watch.batches - (2 * RUN + AFTER) <= 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("criteria=null", "criteria: "),
        ("criteria.a b={criterion: snip}", "criteria.a b: expected a name of up to 100 letters"),
        ("criteria.snipp={}", "criteria.snipp: unknown criterion; did you mean snip?"),
        ("criteria.mine={criterion: snipp}", "criteria.mine.criterion: unknown criterion; did you mean"),
        ("criteria.mine={criterion: [snip]}", "criteria.mine.criterion: unknown criterion"),
        ("criteria.snip.samples=3", "criteria.snip.samples: unknown argument; did you mean samples_per"),
        ("criteria.snip.samples_per_class=0", "criteria.snip.samples_per_class: PruneAtInit: samples_per_class must"),
        ("criteria.snip.density=0.5", "criteria.snip.density: the study sets it for every run"),
        ("criteria.snip.shuffle=true", "criteria.snip.shuffle: the study sets it for every run"),
        ("criteria.snip.ticket=x", "criteria.snip.ticket: the study sets it for every run"),
        ("criteria.dense={criterion: snip}", "criteria.dense: is what the study calls something else"),
        ("criteria.snip-shuffle={criterion: snip}", "criteria: several of their runs would be called snip-shuffle"),
        ("densities=null", "densities: null given"),
        ("densities=[]", "densities: [] given; expected different ones, above 0 and below 1"),
        ("densities=[0.5,1.5]", "densities: [0.5, 1.5] given; expected different ones, above 0"),
        ("densities=[1]", "given; expected different ones, above 0 and below 1"),
        ("densities=[0.5,0.5]", "densities: [0.5, 0.5] given; expected different ones"),
        ("densities=[0.5,0.50001]", "that differ in their first three digits"),
        ("densities=[half]", "densities: ['half'] given"),
        ("ablations=[shufle]", "ablations: ['shufle'] given; expected "),
        ("ablations=[invert,invert]", "ablations: ['invert', 'invert'] given; expected different ones"),
        ("pruning.density=0.5", "pruning.density: unknown argument; expected one of classifier"),
        ("pruning.exclude=[nothing]", "no prunable weight is called 'nothing'"),
        ("pruning.scope=local", "pruning.scope: 'local' given"),
        ("after_training.fraction=0.5", "after_training.fraction: the study sets it for every run"),
        ("after_training.rewnd=weights", "after_training.rewnd: unknown argument; did you mean rewind"),
        ("after_training.rewind_to=3ba", "after_training.rewind_to: 3ba given; expected less than max"),
        ("after_training=3", "after_training: 3 given"),
        ("tolerance=some", "tolerance: 'some' given; expected a number or null"),
        ("seeds=[1,1]", "seeds: [1, 1] given; expected different whole numbers"),
    ],
)
def test_mistakes_in_its_keys_are_one_line(override, message, tmp_path):
    said = refused(tmp_path, study(tmp_path), f"study.prune_at_init.{override}")
    assert message in said and ": study.prune_at_init." in said


def test_a_study_has_a_criterion(tmp_path):
    said = refused(tmp_path, study(tmp_path, criteria={}))
    assert "study.prune_at_init.criteria: missing; expected names" in said


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["study.prune_at_init.criteria.snip.at=1ba", "study.prune_at_init.ablations=[reinitialize]"],
            "study.prune_at_init.criteria.snip: PruneAtInit: reinitialize must be False",
        ),
        (["algorithms={prune_at_init: {density: 0.5}}"], "algorithms.prune_at_init: the study adds what prunes"),
        (["algorithms={ema: {half_life: 10ba, ema_start: 0.5dur}}"], "algorithms.ema: follows the length of the whole"),
        (["eval_data=null"], "command line: eval_data: missing"),
        (["max_duration=4tok"], "command line: max_duration: 4tok given"),
    ],
)
def test_other_mistakes_are_one_line(overrides, message, tmp_path):
    assert message in refused(tmp_path, study(tmp_path), *overrides)


@pytest.mark.parametrize(
    ("criteria", "message"),
    [
        ({"synflow": {}}, "criteria.synflow: synflow feeds images of ones, which this model of text does not take"),
        ({"grasp": {"temperature": 200}}, "criteria.grasp.temperature: must be 1 for a model that computes its loss"),
    ],
)
def test_what_text_cannot_do_is_known_beforehand(criteria, message, tmp_path):
    given = study(tmp_path)
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    given.model = {"bert": {"objective": "classification", "config": sizes | {"intermediate_size": 8}}}
    given.study.prune_at_init.criteria = criteria
    assert message in refused(tmp_path, given)
    given.study.prune_at_init.criteria = {"grasp": {}}
    assert len(plan(given).nodes({})) == 1 + 2 * 4


def test_the_lengths_of_a_plan(tmp_path):
    nodes = plan(study(tmp_path)).nodes({})
    assert [node.cost for node in nodes] == [1.0] + 2 * (len(ARMS) * [1.0] + [2 - 1 / 3])
    (*_, last) = plan(study(tmp_path, after_training=True)).nodes({})
    assert last.sets["algorithms"]["lottery_ticket"]["rewind"] == "learning_rate"


SPREAD = (0.001, -0.001, 0.0, 0.0005, -0.0005, 0.0008, -0.0002)  # over seeds, which no two networks share


def rows_of(**values):
    """Rows of four seeds at 10 %; an ablation's name follows that of its criterion after two underscores."""
    means = {"dense": 0.95, "snip": 0.9, "grasp": 0.89, "random": 0.6, LAST: 0.93}
    means |= {
        f"{name}, {ablation}": means[name] for name in ("snip", "grasp") for ablation in ("shuffle", "reinitialize")
    }
    means |= {"snip, invert": 0.5, "grasp, invert": 0.55}
    means |= {name.replace("__", ", ").replace("after", LAST): value for name, value in values.items()}
    for turn, (arm, mean) in enumerate(means.items()):
        for seed in range(4):
            density, level = (1.0, 0) if arm == "dense" else (0.1, 1)
            metrics = {ACCURACY: mean + SPREAD[(seed + turn) % 7], "compression_ratio": 1.0, "speedup": 1.0}
            tags = {"arm": arm, "seed": seed, "level": level, "density": density}
            yield Row(node=arm, tags=tags, batches=1, samples=1, seconds=1.0, metrics=metrics)


def verdicts(**values):
    criteria = {"snip": {}, "grasp": {}, "chance": False, "random": None}
    own = PruneAtInit(criteria=criteria, metric=ACCURACY, tolerance=0.01)
    found = [*own.claims(None, [*rows_of(**values)])]  # type: ignore[arg-type]
    assert all(claim.claim.startswith("At 10 %, ") for claim in found)
    return dict(zip(("beat", "trail", "shuffle", "reinitialize", "invert"), found, strict=True))


UNTOLD = "cannot be told here"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {}),
        ({"random": 0.89}, {"beat": UNTOLD}),
        ({"random": 0.895}, {"beat": "fails"}),  # one of the two is worse
        ({"after": 0.9}, {"trail": UNTOLD}),
        ({"after": 0.895}, {"trail": "fails"}),
        ({"snip__shuffle": 0.85}, {"shuffle": "fails"}),
        ({"snip__shuffle": 0.89}, {"shuffle": UNTOLD}),
        ({"grasp__reinitialize": 0.8}, {"reinitialize": "fails"}),
        ({"snip__invert": 0.9}, {"invert": UNTOLD}),
        ({"snip__invert": 0.95}, {"invert": "fails"}),
        # Where nothing depends on which weights are kept, it is no merit that an ablation costs nothing.
        (
            dict.fromkeys(("random", "snip", "grasp", "after"), 0.9),
            dict.fromkeys(("beat", "trail", "shuffle", "reinitialize"), UNTOLD),
        ),
    ],
)
def test_verdicts(values, expected):
    found = verdicts(**values)
    assert {name: claim.verdict for name, claim in found.items()} == dict.fromkeys(found, "holds") | expected


def test_equality_is_told_as_a_bound():
    claim = verdicts()["shuffle"]
    assert claim.claim == "At 10 %, shuffling their masks in each layer costs nothing, or less than 0.0100."
    told = claim.measured.rpartition("; differs by at most ")[2].split()
    assert 0.001 < float(told[0].rstrip(",")) < 0.01 and told[1:6] == ["where", "4", "seeds", "could", "show"]
