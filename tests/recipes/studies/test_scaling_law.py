"""A whole study of `scaling_law` on the real digits: what it leaves, kills, more of anything; its law, and verdicts."""

import math

import numpy as np
import pytest
from composer.metrics import CrossEntropy
from omegaconf import OmegaConf
from studies import Watch, lines, of_pruning, outcome, refused, table, trained_whole, without_seconds
from torchmetrics import MetricCollection

from accelerando.algorithms.pruning import ScalingLaw, prunable_weights
from accelerando.recipes.models.builders import lenet_300_100
from accelerando.recipes.studies.driver import dry_run
from accelerando.recipes.studies.plan import plan
from accelerando.recipes.studies.scaling_law_cells import families_of, noise_of, table_of
from accelerando.recipes.studies.scaling_law_claims import claims_of
from accelerando.recipes.studies.scaling_law_figure import draw
from accelerando.recipes.studies.table import Row
from accelerando.recipes.train import train

OWN = """
ladder: {levels: 2, fraction: 0.6, rewind_to: 1ba}
configurations:
  base: {}
  narrow: {model: {lenet_300_100: {width: 12}}}
  deep: {model: {lenet_300_100: {depth: 4}}}
  few: {train_data: {digits: {split: 'train[:128]'}}, width: 20}
fit_on: [base, narrow, deep]
errors: [0.9]
seeds: [1, 2]
"""
ACCURACY = "metrics/eval/MulticlassAccuracy"
OF_ONE = 4 + 2 * 3  # batches
UNTOLD = "cannot be told here"

pytestmark = pytest.mark.usefixtures("watch")


def study(folder, **changes):
    given = of_pruning(folder, "scaling_law", OWN, "4ba")
    given.model = {"lenet_300_100": {"image_size": 8, "width": 24}}
    given.optimizer = {"sgd": {"lr": 0.3, "momentum": 0.5}}
    given.study.scaling_law.update(changes)
    return given


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study's folder."""
    folder = tmp_path_factory.mktemp("whole")
    done = trained_whole(folder, study(folder), 2 * 4 * OF_ONE)
    return (done,)


def test_a_study_and_what_it_leaves(whole):
    (folder,) = whole
    rows = table(folder)
    names = ("base", "narrow", "deep", "few")
    assert [(row["seed"], row["arm"], row["level"]) for row in rows] == [
        (seed, name, level) for seed in (1, 2) for name in names for level in (0, 1, 2)
    ]
    sizes = {"base": (3, 24, 1437), "narrow": (3, 12, 1437), "deep": (4, 24, 1437), "few": (3, 20, 128)}
    models = {"base": {"width": 24}, "narrow": {"width": 12}, "deep": {"width": 24, "depth": 4}, "few": {"width": 24}}
    for row in rows:
        assert tuple(row[name] for name in ("depth", "width", "examples")) == sizes[row["arm"]]
        model = lenet_300_100(image_size=8, **models[row["arm"]])
        assert row["weights"] == sum(weight.numel() for weight in prunable_weights(model).values())
        assert row["density"] == pytest.approx(0.4 ** row["level"], rel=0.01) and row["family"] == "lenet_300_100"
    points = lines(folder / "points.csv")
    assert [(line["configuration"], line["fitted"]) for line in points[::2]] == [
        (name, str(name != "few")) for name in names
    ]
    for line in points:
        own = {
            level: [1 - row[ACCURACY] for row in rows if (row["arm"], row["level"]) == (line["configuration"], level)]
            for level in (0, 1, 2)
        }
        level = 1 if float(line["density"]) > 0.3 else 2
        assert float(line["error"]) == pytest.approx(np.mean(own[level]))
        assert float(line["dense_error"]) == pytest.approx(np.mean(own[0]))
        assert float(line["noise"]) == pytest.approx(np.std(own[level], ddof=1) / math.sqrt(2) / np.mean(own[level]))
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "claims.md").read_text().count("arXiv:2006.10621") == 7


def test_a_ladder_is_that_of_a_run_alone(whole, tmp_path):
    plain = {name: v for name, v in OmegaConf.to_container(study(tmp_path)).items() if name != "study"} | {"seed": 1}
    plain["algorithms"] = {"lottery_ticket": {"levels": 2, "fraction": 0.6, "rewind_to": "1ba"}}
    plain["train_data"] = {"digits": {"split": "train[:128]"}}
    alone = [level["eval/MulticlassAccuracy"] for level in train(plain).found["levels"]]
    assert [row[ACCURACY] for row in table(whole[0]) if (row["arm"], row["seed"]) == ("few", 1)] == alone


def test_what_is_done_is_not_done_again_and_what_is_new_is(copied, tmp_path):
    assert dry_run(plan(study(tmp_path))).endswith("8 runs, 20 times 4ba; 0 left, 0 times")
    longer = study(tmp_path)
    longer.study.scaling_law.configurations.long = {"max_duration": "8ba"}  # of 8 batches, and twice 7
    assert "10 runs, 31 times 4ba; 2 left, 11 times" in dry_run(plan(longer))
    given = study(tmp_path, fit_on=["base", "wide"])
    given.study.scaling_law.configurations.wide = {"model": {"lenet_300_100": {"width": 30}}}
    rows = outcome(given).rows
    assert Watch.batches == 2 * OF_ONE
    assert without_seconds([row for row in rows if row["arm"] != "wide"]) == without_seconds(copied)


# Composer and torchmetrics warn when a run goes on between the last batch of an epoch and its end.
@pytest.mark.filterwarnings("ignore:No batches were trained")
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_killed_it_goes_on(whole, tmp_path):
    given = study(tmp_path, seeds=[1])
    given.save_interval = "1ba"
    Watch.reset(kill_at=OF_ONE + 6)
    with pytest.raises(KeyboardInterrupt):
        outcome(given)
    outcome(given)
    kept = [row for row in table(whole[0]) if row["seed"] == 1]
    assert without_seconds(table(tmp_path / "study")) == without_seconds(kept)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("configurations=null", "configurations: null given; expected "),
        ("configurations.few=3", "configurations.few: 3 given; expected a mapping"),
        ("configurations.few.seed=3", "configurations.few.seed: the study sets it for every run"),
        ("configurations.few.width=wide", "configurations.few.width: 'wide' given; expected a number above 0"),
        ("configurations.few.examples=0", "configurations.few.examples: 0 given; expected a number above 0"),
        ("configurations.few.model.lenet_300_100.widht=3", "lenet_300_100.widht: unknown argument; did you mean width"),
        ("configurations.few.max_duration=1ba", "ladder.rewind_to: 1ba given; expected less than max_duration"),
        ("ladder.levels=0", "ladder.levels: LotteryTicket: levels must be "),
        ("ladder.include=[nothing.*]", "ladder: no prunable weight is called 'nothing.*'"),
        ("fit_on=[]", "fit_on: [] given; expected different ones, of base, narrow, deep, few"),
        ("fit_on=[base,bsae]", "fit_on: ['base', 'bsae'] given; expected different ones, of base"),
        ("configurations.few.model.lenet_300_100.width=0", "configurations.few.model.lenet_300_100: "),
        ("configurations.few.eval_data=null", "configurations.few.eval_data: missing; the law is of the errors there"),
        ("configurations.few.algorithms.lottery_ticket={levels: 3}", "few.algorithms.lottery_ticket: the study adds"),
        (
            f"configurations.few.model={{'{__name__}:without_accuracy': {{}}}}",
            "metric: no metric is ",
        ),
        ("errors=[0.1,1.5]", "errors: [0.1, 1.5] given; expected different ones, above 0 and below 1"),
        ("tolerance=0.1", "tolerance: unknown argument"),
        ("metric=CrossEntropy", "CrossEntropy given; expected an accuracy, as the law is of 1 - accuracy"),
    ],
)
def test_errors(override, message, tmp_path):
    assert message in refused(tmp_path, study(tmp_path), f"study.scaling_law.{override}")


def test_a_model_without_width_needs_it_told(tmp_path):
    given = study(tmp_path)
    given.model = {"convnet": {"in_channels": 1, "image_size": 8, "width": 4}}
    given.study.scaling_law.configurations = {"base": {}}
    given.study.scaling_law.fit_on = None
    (node, _) = plan(given).nodes({})
    assert (node.tags["family"], node.tags["depth"], node.tags["width"]) == ("convnet", 3, 4)
    given.model = {f"{__name__}:sizeless": {}}
    said = refused(tmp_path, given)
    assert "configurations.base.depth: the model has no argument depth above 0; tell the law's" in said
    given.study.scaling_law.configurations.base = {"depth": 3, "width": 0.5}
    assert plan(given).nodes({})[0].tags["width"] == 0.5


def without_accuracy():
    model = lenet_300_100(image_size=8, width=6)
    model.val_metrics = MetricCollection([CrossEntropy()])
    return model


def sizeless():
    return lenet_300_100(image_size=8, width=6)


LAW = ScalingLaw(eps_up=0.9, gamma=1.4, p=2.0, phi=0.9, psi=1.3)
FITTED = ["8x4", "8x8", "8x16", "14x4", "14x8"]


def rows_of(
    law=LAW, noise=0.01, stray=0.0, seeds=3, depths=(8, 14, 20), widths=(4, 8, 16), family="resnet", small=False
):
    """Nine networks of a law, with noise over seeds; those that are not fitted on `stray`, all points of one alike."""
    generator, rows = np.random.default_rng(0), []
    for depth in depths:
        for width in widths:
            name, eps_np = f"{depth}x{width}", 1e-3 if small else dense(width)
            off = stray if name not in FITTED else 0.0
            for seed in range(seeds):
                for level in range(15):
                    d = 0.5**level
                    error = (law.error(eps_np, d, depth, width) * (1 + off)) if level else eps_np
                    error = min(error * (1 + noise * generator.normal()), 1.0)
                    tags = {"arm": name, "family": family, "depth": depth, "width": width, "examples": 100}
                    tags |= {"weights": depth * width**2 * 100, "seed": seed, "level": level, "density": d}
                    metrics = {ACCURACY: 1 - error}
                    rows.append(Row(node=name, tags=tags, batches=1, samples=1, seconds=1.0, metrics=metrics))
    return rows


def told(rows, fit_on=tuple(FITTED), errors=(0.2, 0.4)):
    (family,) = families_of(rows, ACCURACY, fit_on, errors)
    return family, {" ".join(claim.claim.split()[:3]): claim for claim in claims_of(family)}


@pytest.fixture(scope="module")
def of_the_law():
    return told(rows_of())


def test_verdicts_where_the_law_holds(of_the_law):
    family, claims = of_the_law
    # Dense networks of small errors alone have a region of the power law; four do not tell the law from another.
    few = claims["In the region"], claims["The law is"]
    assert [claim.verdict for claim in claims.values() if claim not in few] == ["holds"] * 5, claims
    assert "fails" not in {claim.verdict for claim in few}
    assert family.predicted == ["14x16", "20x4", "20x8", "20x16"] and family.law.law.psi == pytest.approx(1.3, rel=0.1)
    assert noise_of(family) == pytest.approx(0.01 / math.sqrt(3), rel=0.3)
    assert (
        "4 configurations" in claims["It predicts networks"].measured
        and "at equal density" in claims["In the region"].measured
    )
    text = table_of(family)
    assert "20x8" in text and "predicted, the law: mean" in text and "smallest network" in text
    figure = draw([family], "title")
    assert len(figure.axes) == 3 and len(figure.axes[0].lines) == 1 + 9


def test_what_one_network_keeps_to_the_others_may_not():
    """Those that were not fitted on are off, all points of one together."""
    _, claims = told(rows_of(stray=0.3))
    assert [claims[name].verdict for name in ("One law of", "It predicts networks")] == ["holds", "fails"]


def test_networks_that_are_hardly_pruned_tell_nothing():
    """Their errors are those of the dense ones, to which any law comes as near."""
    rows = [row for row in rows_of(LAW, noise=0.001) if row["level"] < 5]
    easy = [Row(**{**vars(row), "metrics": {ACCURACY: 1 - dense(row["width"])}}) for row in rows]
    _, claims = told(easy, errors=())
    assert claims["One law of"].verdict == UNTOLD and "prune further" in claims["One law of"].why


def dense(width):
    return 0.8 / width**0.8


def test_a_law_of_as_many_constants_as_points_holds_nothing():
    """Four levels of one network: the law has three constants for them, and comes near whatever they are."""
    _, claims = told([row for row in rows_of(noise=0.0) if row["level"] < 5], errors=())
    assert claims["One law of"].verdict == "holds" and claims["The law of"].verdict == UNTOLD
    assert "2 for each" in claims["The law of"].why
    two = [row for row in rows_of(noise=0.0, depths=(8, 14), widths=(4, 8)) if row["level"] < 3]
    family, claims = told(two, fit_on=None, errors=())
    assert family.law and {claim.verdict for claim in claims.values()} == {UNTOLD}


def test_two_networks_of_equal_error_have_no_interval():
    """Their one difference, drawn again and again, is one number."""
    law = ScalingLaw(eps_up=0.9, gamma=1.4, p=0.02, phi=0.9, psi=1.3)
    for widths, verdict in (((4, 8), UNTOLD), ((4, 8, 16, 32), "holds")):
        _, claims = told(rows_of(law, depths=(8,), widths=widths, small=True), fit_on=None, errors=())
        assert claims["In the region"].verdict == verdict, widths


def test_the_smallest_that_was_measured_is_a_bound_where_a_ladder_ends_before():
    rows = rows_of(noise=0.0)
    for error, short in ((0.3, False), (0.3, True)):
        own = [row for row in rows if not (short and row["arm"] == "20x16" and row["level"] > 4)]
        family, claims = told(own, errors=(error,))
        _, measured = family.smallest[error]
        left = {}
        for network in family.networks.values():  # by the law, as there is no noise
            d = np.geomspace(2**-14, 1, 20_000)
            has = LAW.error(network.dense_error, d, network.depth, network.width) <= error
            left[network.name] = network.weights * d[has].min()
        assert measured.at_most is short and measured.weights == pytest.approx(min(left.values()), rel=0.1)
        assert claims["The number of"].verdict == (UNTOLD if short else "holds")
        assert ("not counted: a ladder ends before" in claims["The number of"].measured) is short
    assert "at most" in table_of(family)


def test_the_smallest_that_was_measured_is_the_sparsest_that_has_the_error():
    """Better than the dense network on the way, and at one level worse than at the next."""
    rows = []
    for level, error in enumerate((0.20, 0.19, 0.21, 0.19, 0.4, 0.8, 0.9)):
        tags = {"arm": "one", "family": "f", "depth": 8, "width": 4, "examples": 9, "weights": 1000, "seed": 0}
        tags |= {"level": level, "density": 0.5**level}
        rows.append(Row(node="one", tags=tags, batches=1, samples=1, seconds=1.0, metrics={ACCURACY: 1 - error}))
    (family,) = families_of(rows, ACCURACY, None, (0.195, 0.18))
    share = math.log(0.195 / 0.19) / math.log(0.4 / 0.19)
    assert family.smallest[0.195][1].weights == pytest.approx(1000 * 0.5 ** (3 + share))
    assert str(family.smallest[0.18][1]) == "none"


def test_a_power_law_is_told_from_the_law():
    """Errors that follow one: the law errs by more, or as much, and its own claims fail."""
    rows = []
    for row in rows_of(noise=0.0):
        error = 1 - row[ACCURACY]
        if row["level"]:
            error = min(0.5, 0.004 * row["density"] ** -0.3 * row["depth"] ** -0.2 * row["width"] ** -0.3)
        rows.append(Row(**{**vars(row), "metrics": {ACCURACY: 1 - error}}))
    _, claims = told(rows, errors=())
    assert claims["One law of"].verdict in ("fails", UNTOLD) and "About 15 configurations" in claims


def test_what_seeds_cannot_tell():
    _, claims = told(rows_of(noise=0.3))
    assert {claims[name].verdict for name in ("The law of", "One law of", "It predicts networks")} == {UNTOLD}
    assert "by themselves" in claims["One law of"].why
    _, claims = told(rows_of(noise=0.3, seeds=1))
    assert "not known, of one seed" in claims["One law of"].why


def test_few_configurations_tell_little():
    family, claims = told(rows_of(depths=(8,), widths=(4,)), fit_on=None, errors=())
    assert family.predicted == [] and "It predicts networks" not in claims
    assert {claim.verdict for claim in claims.values()} == {UNTOLD}
    (short,) = families_of([row for row in rows_of(depths=(8,), widths=(4,)) if row["level"] < 3], ACCURACY, None, ())
    assert short.law is None and not short.singles and "too few points" in table_of(short)
    assert {claim.verdict for claim in claims_of(short)} == {UNTOLD}
    assert len(draw([short], "title").axes) == 3


def test_points_without_an_error_are_left_out_and_told():
    rows = rows_of(seeds=1)
    perfect = [
        Row(**{**vars(row), "metrics": {ACCURACY: 1.0 if row["level"] == 1 else math.nan}})
        if row["arm"] == "8x4" and row["level"] in (1, 2)
        else row
        for row in rows
    ]
    family, _ = told(perfect)
    several = [row for row in rows_of() if (row["arm"], row["seed"], row["level"]) != ("8x4", 2, 14)]
    (of_fewer,) = families_of(several, ACCURACY, FITTED, ())
    assert of_fewer.left_out == ["8x4 at 0.0061 %"]  # which one of three seeds has not come to
    assert family.left_out == ["8x4 at 50 %", "8x4 at 25 %"] and "left out: 8x4 at 50 %" in table_of(family)
    assert (family.measured.configuration == "8x4").sum() == 12


def test_families_are_fitted_alone():
    other = ScalingLaw(eps_up=0.9, gamma=2.0, p=0.5, phi=0.4, psi=0.7)
    both = families_of([*rows_of(), *rows_of(other, family="mlp")], ACCURACY, None, ())
    assert [family.name for family in both] == ["resnet", "mlp"]
    assert both[0].law.law.gamma == pytest.approx(1.4, rel=0.1) and both[1].law.law.gamma == pytest.approx(2, rel=0.1)
    assert {" ".join(claim.claim.split()[2:4]): claim.verdict for claim in claims_of(both[0])}["is of"] == "holds"
    assert len(draw(both, "title").axes) == 6
