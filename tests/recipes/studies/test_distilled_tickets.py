"""A whole study of `distilled_tickets` on the real digits: sets and who trains on them, what it leaves; verdicts."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from studies import Watch, cells, lines, of_pruning, outcome, refused, table, without_seconds

from accelerando.algorithms import load_distilled, save_distilled
from accelerando.algorithms.checkpoints import read_metadata
from accelerando.algorithms.pruning import load_masks
from accelerando.recipes.config.errors import ConfigError
from accelerando.recipes.studies.density import DENSE
from accelerando.recipes.studies.distilled_tickets import ON_FEW, ON_SET
from accelerando.recipes.studies.distilled_tickets_claims import claims_of_the_set
from accelerando.recipes.studies.driver import dry_run
from accelerando.recipes.studies.plan import plan
from accelerando.recipes.studies.stability_cells import TICKETS
from runs import same

OWN = """
levels: [2, 0]
ladder: {fraction: 0.4}
distilling:
  model: {dataset_distiller: {per_class: 1, in_channels: 1, image_size: 8, factor: 2, augment: crop_scale}}
  optimizer: {sgd: {lr: 1.0, momentum: 0.5}}
  scheduler: null
  max_duration: 6ba
finding: {max_duration: 2ep, train_subset_num_batches: -1, algorithms: {mix_up: {}}}
few_real: true
controls: [random]
points: 3
path_examples: 40
seeds: [1]
"""
SET = "distilling-seed1/distilled/images.safetensors"
FEW = "distilling-seed1/distilled/begin.safetensors"

pytestmark = pytest.mark.usefixtures("watch")


def study(folder, own=OWN, **changes):
    given = of_pruning(folder, "distilled_tickets", own, "3ba")
    given.study.distilled_tickets.update(changes)
    return given


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study's folder, and what its runs started from and pruned, by their names."""
    Watch.reset()
    folder = tmp_path_factory.mktemp("whole")
    given = study(folder)
    listed = dry_run(plan(given))
    # 40 small images are one batch of 32: two epochs are two batches.
    assert "distilling-seed1" in listed and "14 runs, 19 times 3ba; 14 left, 19 times" in listed, listed
    assert not outcome(given).failures
    assert Watch.batches == 6 + 2 * 3 + 3 * 3 + 2 * 3 * 2 + 4 * 2 * 3
    return folder / "study", Watch.starts, Watch.masks


def test_a_study_and_what_it_leaves(whole):
    folder, *_ = whole
    rows = table(folder)
    assert [row["arm"] for row in rows if row["role"] == "pair"] == [DENSE, TICKETS, "random", ON_SET, ON_FEW]
    (distilled,) = (row for row in rows if row["role"] == "distilling")
    assert (distilled["samples"], distilled["batches"]) == (6 * 32, 6)
    found = {name: distilled[name] for name in ("images", "small_images", "examples")}
    assert found == {"images": 10, "small_images": 40, "examples": 1437}
    copies = [row for row in rows if row["role"] == "copy"]
    assert len(copies) == 10 and all(row["samples"] == 3 * 32 for row in copies)  # of the real data
    costs = {line["arm"]: line for line in lines(folder / "costs.csv")}
    # Two trainings come before the second level is known.
    names = ("images", "samples", "distilling, samples")
    spent = {arm: tuple(float(line[name]) for name in names) for arm, line in costs.items()}
    assert spent == {TICKETS: (1437, 2 * 3 * 32, 0), ON_SET: (40, 2 * 2 * 32, 6 * 32), ON_FEW: (40, 2 * 2 * 32, 0)}
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    claims = (folder / "claims.md").read_text()
    assert "the real data are 35.9 times as many as the distilled: 1437 and 40 images" in claims
    assert claims.count("as few real images") == 1  # of which the paper says nothing
    assert "what it took to find the tickets" in (folder / "report.md").read_text()


def test_tickets_are_found_on_the_set_alone_from_all_initial_weights(whole):
    folder, starts, masks = whole
    for name, file in {"distilled": SET, "few": FEW}.items():
        config = OmegaConf.load(folder / f"ladder-on-{name}-seed1" / "config.yaml")
        assert config.train_data.distilled.file == f"study/{file}" and "mix_up" in config.algorithms
    first = starts["ladder-seed1"]
    names = ("ladder", "ladder-on-distilled", "ladder-on-few")
    ends = [folder / f"{name}-seed1" / "tickets" / "level-2.safetensors" for name in names]
    for arm, file in zip((TICKETS, ON_SET, ON_FEW), ends, strict=True):
        copies = sorted(folder.glob(f"{arm.replace(' ', '-')}-level2-*-copy?-seed1"))
        assert len(copies) == 2
        for copy in copies:
            config = OmegaConf.load(copy / "config.yaml")
            assert config.train_data == {"digits": {}} and config.max_duration == "3ba"
            assert torch.equal(starts[copy.name], first)
            assert same(masks[copy.name], load_masks(file, masks[copy.name]))
    assert len({file.read_bytes() for file in ends}) == 3


def test_killed_while_it_distils_and_while_it_searches_it_ends_the_same(whole, tmp_path):
    given = study(tmp_path)
    for killed_at in (5, 2 + 2 * 3 + 9 + 6 * 2 + 3):
        Watch.reset(kill_at=killed_at)
        with pytest.raises(KeyboardInterrupt):
            outcome(given)
    Watch.reset()
    assert not outcome(given).failures
    assert without_seconds(table(tmp_path / "study")) == without_seconds(table(whole[0]))
    # The texts in the head of a file have no order.
    sets = [(load_file(file), read_metadata(file)) for file in (whole[0] / SET, tmp_path / "study" / SET)]
    assert same(sets[0][0], sets[1][0]) and sets[0][1] == sets[1][1]


def test_runs_that_have_followed_another_set_are_no_results(whole, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "study")
    shutil.rmtree(folder / "distilling-seed1")
    Watch.reset()
    assert not outcome(study(tmp_path)).failures and Watch.batches == 6  # the same set again
    shutil.rmtree(folder / "distilling-seed1")
    given = study(tmp_path)
    given.study.distilled_tickets.distilling.max_duration = "5ba"
    for name in ("distilled", "few"):
        with pytest.raises(ConfigError) as error:
            outcome(given)
        ladder = folder / f"ladder-on-{name}-seed1"
        assert f"the run in {ladder} has followed another distilling-seed1 than that of now; delete" in str(error.value)
        with pytest.raises(ConfigError, match="has followed another distilling-seed1"):
            dry_run(plan(given))
        shutil.rmtree(ladder)
    # A copy follows the set by way of the ladder, and keeps its name where the masks are the same.
    told = json.loads((folder / "dense-copy1-seed1" / "follows.json").read_text())
    assert [*told] == ["dense-copy0-seed1"]
    (copy,) = folder.glob("tickets-on-distilled-data-level2-*-copy1-seed1")
    told = [*json.loads((copy / "follows.json").read_text())]
    assert told == ["distilling-seed1", "ladder-on-distilled-seed1", copy.name.replace("copy1", "copy0")]
    for hostile in ("[1, 2]", "7", "{", '"text"'):
        (folder / "dense-copy1-seed1" / "follows.json").write_text(hostile)
        with pytest.raises(ConfigError, match="is not as it was written; delete"):
            dry_run(plan(given))


def test_a_set_of_others_is_trained_on_and_nothing_is_distilled(whole, tmp_path):
    found = load_distilled(whole[0] / SET)
    save_distilled(tmp_path / "theirs.safetensors", found.images, found.labels)
    data = {"file": str(tmp_path / "theirs.safetensors"), "factor": 2, "augment": "crop_scale"}
    given = study(tmp_path, distilling=None, data=data, controls=[], few_real=False)
    listed = dry_run(plan(given))
    assert "distilling" not in listed and "8 runs, 11 times 3ba; 8 left, 11 times" in listed


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("levels=[0]", "ladder: given without a level above 0"),
        ("distilling=null", "distilling: missing; expected either distilling or data.file"),
        ("data.file=some.safetensors", "distilling: given beside data.file, which is a set already"),
        ("distilling.eval_data={}", "distilling.eval_data: the study sets it for every run; leave it out"),
        ("finding.train_data={}", "finding.train_data: the study sets it for every run; leave it out"),
        (
            "distilling.model={dataset_distiller: false, convnet: {}}",
            "distilling.model: makes a ImageClassifier; expected dataset_distiller",
        ),
        ("distilling.model.dataset_distiller.factr=2", "distilling.model.dataset_distiller.factr: unknown argument"),
        (
            "distilling.model.dataset_distiller.per_class=0",
            "distilling.model.dataset_distiller: DatasetDistiller: per_",
        ),
        ("distilling.optimzer={}", "distilling.optimzer: unknown key; did you mean optimizer?"),
        ("finding.max_duratoin=2ep", "finding.max_duratoin: unknown key; did you mean max_duration?"),
        ("finding.global_batch_size=64", "finding.global_batch_size: 64 given, which 40 examples do not fill"),
        ("begin=noise", "few_real: true given; expected distilling, which begins with real images"),
        ("begin=somehow", "begin: 'somehow' given; expected"),
    ],
)
def test_mistakes_in_its_keys_are_one_line(override, message, tmp_path):
    said = refused(tmp_path, study(tmp_path), f"study.distilled_tickets.{override}")
    assert f": study.distilled_tickets.{message}" in said


# Cells that are made up, with known answers.

UNTOLD = "cannot be told here"
RANDOM_CLAIM = "Tickets on distilled data are better than random weights."
FEW_CLAIM = "Tickets on distilled data are better than tickets on as few real images."
FEWER_CLAIM = "Tickets on distilled data match those of all real data with 150 times fewer training points."
PAPERS = {DENSE: (8.0, 0.0), TICKETS: (4.0, -0.001), ON_SET: (0.5, -0.002), "random": (4.0, -0.05)}  # barriers, gaps


def verdicts(real=60_000, small=400, **arms):
    given = {name: value for name, value in {**PAPERS, **arms}.items() if value}
    found = [cell for arm, (barrier, gap) in given.items() for cell in cells(arm, barrier, gap)]
    return {claim.claim: claim for claim in claims_of_the_set(found, ON_SET, ON_FEW, real, small)}


@pytest.mark.parametrize(
    ("claim", "verdict", "changes"),
    [
        (RANDOM_CLAIM, "holds", {}),
        (RANDOM_CLAIM, "fails", {"random": (4.0, 0.01)}),
        (RANDOM_CLAIM, UNTOLD, {"random": None}),
        (FEW_CLAIM, "holds", {ON_FEW: (0.5, -0.05)}),
        (FEW_CLAIM, "fails", {ON_FEW: (0.5, 0.01)}),
        (FEW_CLAIM, UNTOLD, {}),
        (FEWER_CLAIM, "holds", {}),
        (FEWER_CLAIM, "fails", {ON_SET: (0.5, -0.02)}),
        (FEWER_CLAIM, UNTOLD, {"small": 401}),
        (FEWER_CLAIM, UNTOLD, {DENSE: None}),
        # Where as many random weights are as good as the tickets of the real data, any weights would do.
        (FEWER_CLAIM, UNTOLD, {"random": (4.0, -0.001)}),
        (FEWER_CLAIM, UNTOLD, {"random": None}),
    ],
)
def test_each_verdict_can_be_each(claim, verdict, changes):
    found = verdicts(**changes)[claim]
    assert found.verdict == verdict and found.why, found


def test_a_density_at_which_a_run_has_diverged_does_not_count():
    given = [cell for arm, (barrier, gap) in PAPERS.items() for cell in cells(arm, barrier, gap)]
    lost = [replace(c, value=math.nan, gap=math.nan) if (c.arm, c.seed) == (ON_SET, 0) else c for c in given]
    found = {claim.claim: claim for claim in claims_of_the_set(lost, ON_SET, ON_FEW, 60_000, 400)}
    for claim in (RANDOM_CLAIM, FEWER_CLAIM):
        assert found[claim].verdict == UNTOLD and "10 % (not counted: a run diverged)" in found[claim].measured
