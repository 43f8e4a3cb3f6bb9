"""A whole study of `landscape` on the real digits: what it leaves, by plain scripts; curvature; verdicts, mistakes."""

import math

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from studies import Watch, cells, lines, of_pruning, outcome, refused, results, table
from torch.func import functional_call
from torch.nn import functional as F

from accelerando.algorithms.pruning import load_masks
from accelerando.algorithms.snapshots import find_snapshot
from accelerando.recipes.data.images import Digits
from accelerando.recipes.models.builders import lenet_300_100, resnet_cifar
from accelerando.recipes.studies.density import DENSE
from accelerando.recipes.studies.driver import dry_run
from accelerando.recipes.studies.landscape import HESSIAN, PLANE
from accelerando.recipes.studies.landscape_claims import claims_of
from accelerando.recipes.studies.plan import plan
from accelerando.recipes.studies.stability_cells import TICKETS, Cell
from accelerando.recipes.train import train
from runs import same, settings

OWN = """
levels: [2, 0]
copies: 3
ladder: {fraction: 0.4}
tickets_on: {few: {train_data: {digits: {split: 'train[:40]'}}, train_subset_num_batches: -1, max_duration: 2ba}}
controls: [random]
points: 5
path_examples: 40
plane: {points: 3}
hessian: {examples: 16, probes: 2}
seeds: [1]
"""
FEW = "tickets on few"
NETWORKS = (DENSE, TICKETS, "random", FEW)
FIRST = "module.0.weight"
TINY = {
    "model": {"lenet_300_100": {"image_size": 8, "width": 3, "depth": 2}},
    "scheduler": {"cosine_annealing": {}},
    "max_duration": "2ba",
}
SIZES = (32, 8)  # of the batches of 40 examples

pytestmark = pytest.mark.usefixtures("watch")


def study(folder, **changes):
    given = of_pruning(folder, "landscape", OWN, "3ba")
    given.study.landscape.update(changes)
    return given


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study's folder, and what its runs started from and pruned, by their names."""
    Watch.reset()
    folder = tmp_path_factory.mktemp("whole")
    given = study(folder)
    assert not outcome(given).failures
    assert Watch.batches == 3 * 3 + 3 * 3 * 3 + 3 * 3 + 3 * 2
    assert dry_run(plan(given)).endswith("14 runs, 17 times 3ba; 0 left, 0 times")
    return folder / "study", Watch.starts, Watch.masks


def copies_of(folder, arm):
    return sorted(folder.glob(f"{arm.replace(' ', '-')}{'' if arm == DENSE else '-level2*'}-copy?-seed1"))


def ends_of(folder, arm):
    return [find_snapshot(copy / "snapshots", "1dur").weights() for copy in copies_of(folder, arm)]


def first_of(split):
    images, labels = next(iter(Digits(split=split).build(sum(SIZES), False, 0, "cpu").dataloader))
    return [*zip(images.split(SIZES), labels.split(SIZES), strict=True)]


def evaluated(state, statistics=None):
    """Loss and error of a network on the test data, by a plain script; its statistics may be recomputed."""
    model = resnet_cifar(depth=8, width=4, in_channels=1)
    model.load_state_dict(state)
    with torch.no_grad():
        if statistics:
            for norm in (one for one in model.modules() if isinstance(one, torch.nn.BatchNorm2d)):
                norm.reset_running_stats()
                norm.momentum = None
            for batch in statistics:
                model.train()(batch)
        images, labels = (torch.cat(part) for part in zip(*first_of("test"), strict=True))
        outputs = model.eval()((images, labels))
        return F.cross_entropy(outputs, labels).item(), (outputs.argmax(1) != labels).float().mean().item()


def test_a_study_and_what_it_leaves(whole):
    folder, *_ = whole
    rows = table(folder)
    assert [row["arm"] for row in rows if row["role"] == "pair"] == [arm for arm in NETWORKS for _ in range(3)]
    # What others are compared with is trained on the real data.
    assert [row["arm"] for row in rows if row["role"] == "ladder"] == [TICKETS] * 3 + [FEW] * 3
    for row in rows:
        if row["role"] == "copy":
            assert row["batches"] == 3 and row["k"] == 0
            assert math.isclose(row["density"], 1.0 if row["arm"] == DENSE else 0.36, abs_tol=1e-3)
            found = results(folder / row.node)["found"]["hessian"]
            assert (row["hessian/trace"], row["hessian/largest eigenvalue"]) == (found["trace"], *found["eigenvalues"])
            assert row["hessian/trace by weight"] == pytest.approx(found["trace"] / found["weights"])
    assert [line["arm"] for line in lines(folder / "landscape.csv")] == [*NETWORKS]
    assert len(lines(folder / "planes.csv")) == len(NETWORKS) * (3 * 3 + 3)
    shares = np.array([float(line["share"]) for line in lines(folder / "diagonals.csv")]).reshape(len(NETWORKS), -1)
    assert shares.sum(1) == pytest.approx(1)
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "claims.md").read_text().count("arXiv:2310.18769") == 2 * 3 + 1


def test_copies_differ_in_noise_alone_and_begin_at_the_initial_weights(whole):
    folder, starts, masks = whole
    first = starts["ladder-seed1"]
    assert torch.equal(starts["ladder-on-few-seed1"], first)
    initial = find_snapshot_of_rewinding(folder)
    assert torch.equal(initial[FIRST], first) and not initial["module.1.running_mean"].any()
    for arm in NETWORKS:
        names = [copy.name for copy in copies_of(folder, arm)]
        assert all(torch.equal(starts[name], first) for name in names)
        assert all(same(masks[name], masks[names[0]]) for name in names) and bool(masks[names[0]]) == (arm != DENSE)
        assert not same(*ends_of(folder, arm)[:2])
    of = {arm: masks[copies_of(folder, arm)[0].name] for arm in NETWORKS}
    for arm, ladder in {TICKETS: "ladder", FEW: "ladder-on-few"}.items():
        assert same(of[arm], load_masks(folder / f"{ladder}-seed1" / "tickets" / "level-2.safetensors", of["random"]))
    assert not same(of[TICKETS], of[FEW])


def find_snapshot_of_rewinding(folder):
    from safetensors.torch import load_file

    return load_file(folder / "ladder-on-few-seed1" / "tickets" / "rewind.safetensors")


def test_tickets_on_other_data_are_found_there_and_trained_on_the_real(whole):
    folder, *_ = whole
    config = OmegaConf.load(folder / "ladder-on-few-seed1" / "config.yaml")
    assert config.train_data.digits.split == "train[:40]" and config.max_duration == "2ba"
    for copy in copies_of(folder, FEW):
        config = OmegaConf.load(copy / "config.yaml")
        assert config.train_data == {"digits": {}} and config.max_duration == "3ba"
        assert config.algorithms.prune_at_init.ticket == "study/ladder-on-few-seed1/tickets/level-2.safetensors"


def test_paths_and_planes_are_those_of_a_plain_script(whole):
    folder, *_ = whole
    for arm in (DENSE, FEW):
        ends = ends_of(folder, arm)
        row = next(row for row in table(folder) if row["role"] == "pair" and row["arm"] == arm)
        for place in range(5):
            state = {
                name: value.lerp(ends[1][name], place / 4) if value.is_floating_point() else value
                for name, value in ends[0].items()
            }
            assert row[f"path/interpolate/{place:02}"] == pytest.approx(100 * evaluated(state)[1])
        plane = results(copies_of(folder, arm)[-1])["found"]["plane"]
        assert plane["examples"] == 40 and plane["batch_norm"] == "recompute"
        found = [evaluated(end, first_of("train")) for end in ends]
        for name, values in zip(("loss", "error"), zip(*found, strict=True), strict=True):
            assert plane["networks"][name] == pytest.approx(values, abs=1e-4)
            assert np.shape(plane["grid"][name]) == (3, 3)
        names = [name for name in ends[0] if not name.endswith(("running_mean", "running_var", "batches_tracked"))]
        apart = math.dist(*(torch.cat([end[name].flatten() for name in names]).tolist() for end in ends[:2]))
        assert plane["coordinates"][:2] == [pytest.approx([0, 0]), pytest.approx([apart, 0], rel=1e-5, abs=1e-6)]


@pytest.mark.parametrize("probes", [None, 2000])
def test_the_hessian_is_the_explicit_one_of_the_kept_weights(probes, tmp_path):
    """Of a network whose matrix can be written down."""
    algorithms = {
        "prune_at_init": {"criterion": "magnitude", "density": 0.3},
        "snapshots": {"at": ["1dur"], "full": False},
        HESSIAN: {"examples": 20, "probes": probes, "eigenvalues": 2},
    }
    train(settings(tmp_path) | TINY | {"algorithms": algorithms})
    found = results(tmp_path / "run")["found"]["hessian"]
    state = find_snapshot(tmp_path / "run" / "snapshots", "1dur").weights()
    images, labels = next(iter(Digits().build(20, False, 0, "cpu").dataloader))
    model = lenet_300_100(**TINY["model"]["lenet_300_100"])
    kept = {name: value != 0 if value.dim() > 1 else value == value for name, value in state.items()}

    def loss(vector):
        parts = vector.split([int(mask.sum()) for mask in kept.values()])
        weights = {
            name: torch.zeros_like(state[name]).masked_scatter(mask, part)
            for (name, mask), part in zip(kept.items(), parts, strict=True)
        }
        return F.cross_entropy(functional_call(model, weights, ((images, labels),)), labels)

    vector = torch.cat([state[name][mask] for name, mask in kept.items()])
    matrix = torch.autograd.functional.hessian(loss, vector).double()
    diagonal, largest = matrix.diag(), torch.linalg.eigvalsh(matrix).flip(0)[:2]
    assert (found["weights"], found["examples"]) == (len(vector), 20)
    assert found["eigenvalues"] == pytest.approx(largest.tolist(), rel=1e-3)
    if probes:
        assert 0 < abs(found["trace"] - diagonal.sum().item()) < 5 * found["trace_error"]
        return
    assert found["trace"] == pytest.approx(diagonal.sum().item(), rel=1e-4) and found["trace_error"] == 0
    assert found["negative"] == pytest.approx((diagonal < -1e-7).double().mean().item(), abs=0.02)
    counts, _ = np.histogram(diagonal.clamp(-999, 999).numpy(), found["histogram"]["edges"])
    assert sum(found["histogram"]["counts"]) == len(vector)
    assert np.abs(np.subtract(counts, found["histogram"]["counts"])).sum() <= 4  # at the edges of the bins


def test_what_has_diverged_has_no_plane_and_no_hessian(tmp_path):
    given = settings(tmp_path) | TINY | {"max_duration": "6ba", "optimizer": {"sgd": {"lr": 1e38}}}
    snapshots = {"at": ["1dur"], "full": False}
    train(given | {"run_name": "twin", "algorithms": {"snapshots": snapshots}})
    measures = {HESSIAN: {"probes": 2}, PLANE: {"twins": ["twin/snapshots"] * 2, "points": 2}}
    train(given | {"algorithms": {"snapshots": snapshots, **measures}})
    found = results(tmp_path / "run")["found"]
    assert found["plane"] is None and found["hessian"] is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("levels=[]", "levels: [] given; expected different ones, from 0, the dense network"),
        ("levels=[-1]", "levels: [-1] given; expected"),
        ("levels=[2,2]", "levels: [2, 2] given; expected different ones"),
        ("levels=[0]", "ladder: given without a level above 0"),
        ("ladder.levels=3", "ladder.levels: every ladder goes to the last of `levels`"),
        ("ladder.rewind_to=1ba", "ladder.rewind_to: every ladder goes to the last of `levels`, and rewinds to init"),
        ("ladder.fractoin=0.3", "ladder.fractoin: unknown argument; did you mean fraction"),
        ("tickets_on.few=3", "tickets_on.few: 3 given; expected a mapping"),
        ("tickets_on.few.train_data.digits.split=some", "tickets_on.few.train_data.digits.split: 'some' given"),
        ("tickets_on.few.train_data.digits.split=train[:9]", "train_data.digits: 9 samples do not fill a batch of 32"),
        ("tickets_on.few.model={}", "tickets_on.few.model: the study sets it for every run; leave it out"),
        ("controls=[lucky]", "controls: ['lucky'] given; expected"),
        ("copies=1", "copies: 1 given; expected 2 or more"),
        ("copies=2", "plane: given with 2 copies; a plane is that of 3 or 4"),
        ("plane.points=1", "plane.points: PlaneOfTwins: points must be 2 or more"),
        ("plane.margin=-1", "plane.margin: PlaneOfTwins: margin must be 0 or more"),
        ("plane.twins=[]", "plane.twins: the study sets it for every run; leave it out"),
        ("plane.batch_norm=none", "plane.batch_norm: 'none' given; expected"),
        ("hessian.probes=1", "hessian.probes: HessianAtEnd: probes must be 2 or more, or null"),
        ("hessian.examples=0", "hessian.examples: HessianAtEnd: examples must be 1 or more"),
        ("hessian.eigenvalues=0", "hessian.eigenvalues: HessianAtEnd: eigenvalues must be 1 or more"),
        ("stable_below=0", "stable_below: 0.0 given; expected points of error, above 0"),
    ],
)
def test_mistakes_in_its_keys_are_one_line(override, message, tmp_path):
    said = refused(tmp_path, study(tmp_path), f"study.landscape.{override}")
    assert message in said and ": study.landscape." in said


def test_the_exact_diagonal_of_a_large_network_is_refused_before_it_is_trained(tmp_path):
    said = refused(tmp_path, study(tmp_path), "model.resnet_cifar.width=32", "study.landscape.hessian.probes=null")
    assert "study.landscape.hessian.probes: null given, for the exact diagonal, but beyond 100,000 weights" in said


# Cells that are made up, with known answers.

UNTOLD = "cannot be told here"
THAN_DENSE = "Tickets, rewound to initialization, are more stable to the noise of SGD than the dense network."
FEW_THAN_DENSE = "Tickets on few are more stable than the dense network."
FEW_THAN_TICKETS = "Tickets on few are more stable than tickets of all real data."
AS_GOOD = "Tickets on few are as good as those of all real data, but for the tolerance."
PAPERS = {DENSE: (8.0, 0.0), TICKETS: (4.0, -0.001), FEW: (0.5, -0.002)}  # barriers, gaps


def verdicts(others=(FEW,), more=(), **arms):
    given = {name: value for name, value in {**PAPERS, **arms}.items() if value}
    found = [cell for arm, (barrier, gap) in given.items() for cell in cells(arm, barrier, gap)]
    return {claim.claim: claim for claim in claims_of([*found, *more], others)}


def test_verdicts_of_the_papers_picture():
    found = verdicts()
    assert {claim: one.verdict for claim, one in found.items()} == dict.fromkeys(
        (THAN_DENSE, FEW_THAN_DENSE, FEW_THAN_TICKETS, AS_GOOD), "holds"
    )
    assert "barrier lower by, in points, at 10 % +4.0000" in found[THAN_DENSE].measured


@pytest.mark.parametrize(
    ("claim", "verdict", "changes"),
    [
        (THAN_DENSE, "fails", {TICKETS: (9.0, 0.0)}),
        (THAN_DENSE, UNTOLD, {TICKETS: (4.0, 0.0), "spread": True}),
        (THAN_DENSE, UNTOLD, {DENSE: None}),
        (FEW_THAN_DENSE, "fails", {FEW: (8.5, 0.0)}),
        (FEW_THAN_TICKETS, "fails", {FEW: (5.0, 0.0)}),
        (AS_GOOD, "fails", {FEW: (0.5, -0.02)}),
        (AS_GOOD, UNTOLD, {DENSE: None}),
    ],
)
def test_each_verdict_can_be_each(claim, verdict, changes):
    # One density more, at which seeds differ.
    more = [*cells(TICKETS, 8.0, 0.0, density=0.5, spread=(3.0, -3.0, 0.5))] if changes.pop("spread", False) else []
    found = verdicts(**changes, more=more)[claim]
    assert found.verdict == verdict, found
    assert found.why


def test_one_density_that_is_less_stable_denies_it():
    assert verdicts(more=[*cells(TICKETS, 9.0, 0.0, density=0.5)])[THAN_DENSE].verdict == "fails"


def test_what_has_learnt_nothing_is_not_called_stable():
    collapsed = [*cells(TICKETS, 0.0, -0.8, density=0.01, error=90.0)]
    found = verdicts(more=collapsed)[THAN_DENSE]
    assert found.verdict == "holds" and "1 % (not counted: a network has learnt too little" in found.measured
    alone = {claim.claim: claim for claim in claims_of([*cells(DENSE, 8.0, 0.0), *collapsed], [])}
    assert alone[THAN_DENSE].verdict == UNTOLD and alone[THAN_DENSE].why == "none of the densities counts"


def test_without_other_data_what_is_said_of_them_cannot_be_told():
    found = verdicts(others=(), **{FEW: None})
    others = [claim for claim in found.values() if claim.claim != THAN_DENSE]
    assert len(others) == 3
    assert {(one.verdict, one.why) for one in others} == {
        (UNTOLD, "no tickets were found on other data: tickets_on is not given")
    }


def test_both_treatments_of_batch_norm_are_judged():
    both = []
    for arm, (barrier, gap) in PAPERS.items():
        pairs = zip(cells(arm, barrier, gap), cells(arm, 0.0, gap, how="recompute"), strict=True)
        both += [Cell(**{**vars(a), "measured": {**a.measured, **b.measured}}) for a, b in pairs]
    found = {claim.claim: claim.verdict for claim in claims_of(both, [FEW])}
    assert found[f"{THAN_DENSE} (statistics interpolated)"] == "holds"
    assert found[f"{THAN_DENSE} (statistics recomputed)"] == "fails"
