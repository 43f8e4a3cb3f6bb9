"""A study of `variants` on the real digits: what is compared to what, kill and resume, mistakes."""

import math

import pytest
from scipy import stats
from studies import Watch, config, lines, outcome, refused, results, table, weights

from accelerando.recipes.studies.claims import to_markdown
from accelerando.recipes.studies.plan import plan

VARIANTS = {
    "plain": {},
    "long": {"max_duration": "3ep"},
    "pruned": {"algorithms": {"magnitude_pruning": {"density": 0.2}}},
}
ACCURACY = "metrics/eval/MulticlassAccuracy"
EPOCH = 4  # batches
pytestmark = pytest.mark.usefixtures("watch")


def study(folder, **changes):
    return config(folder, {"variants": {"variants": VARIANTS, "seeds": [1, 2, 3], **changes}}, callbacks=WATCHED)


WATCHED = {"studies:Watch": {}}
BATCHES = 3 * EPOCH * (2 + 3 + 2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    Watch.reset()
    found = outcome(study(folder))
    assert not found.failures and Watch.batches == BATCHES
    return folder / "study", found


def test_means_and_differences_are_those_of_the_runs(whole):
    folder, found = whole
    values = {
        name: [results(folder / f"{name}-seed{seed}")["metrics"][ACCURACY] for seed in (1, 2, 3)] for name in VARIANTS
    }
    told = {line["variant"]: line for line in lines(folder / "means.csv")}
    assert [*told] == [*VARIANTS]
    for name, own in values.items():
        assert float(told[name]["mean"]) == pytest.approx(sum(own) / 3)
        assert float(told[name]["deviation"]) == pytest.approx(stats.tstd(own))
        if name != "plain":
            assert float(told[name]["p"]) == pytest.approx(stats.ttest_rel(own, values["plain"]).pvalue)
    assert told["plain"]["difference"] == ""
    assert [claim.claim for claim in found.claims] == ["long is better than plain.", "pruned is better than plain."]


def test_each_variant_is_what_it_says(whole):
    folder, _ = whole
    for name, kept in (("plain", 1.0), ("pruned", 0.2)):
        conv = next(value for key, value in weights(folder / f"{name}-seed1").items() if value.ndim == 4)
        assert (conv.count_nonzero() < conv.numel()) == (kept < 1)
    assert {row["variant"]: row.batches for row in table(folder)} == {"plain": 8, "long": 12, "pruned": 8}
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_killed_study_goes_on_and_ends_the_same(whole, tmp_path):
    Watch.reset(kill_at=BATCHES // 2)
    with pytest.raises(KeyboardInterrupt):
        outcome(study(tmp_path))
    Watch.reset()
    assert not outcome(study(tmp_path)).failures
    assert [row.metrics for row in table(tmp_path / "study")] == [row.metrics for row in table(whole[0])]


def test_less_is_better_of_an_error(whole, tmp_path):
    folder, _ = whole
    made = plan(study(tmp_path, metric="CrossEntropy"))
    rows = table(folder)
    means = {line["variant"]: line["mean"] for line in made.study.summaries(made.base, rows)["means"]}
    for claim in made.study.claims(made.base, rows):
        name = claim.claim.split()[0]
        if claim.verdict != "cannot be told here":
            assert (claim.verdict == "holds") == (means[name] < means["plain"])
        assert math.copysign(1, float(claim.measured.split()[0])) == math.copysign(1, means["plain"] - means[name])


def test_one_seed_tells_nothing(tmp_path):
    made = plan(study(tmp_path))
    rows = [row for row in outcome(study(tmp_path, seeds=[1])).rows]
    assert {claim.verdict for claim in made.study.claims(made.base, rows)} == {"cannot be told here"}
    assert "nothing to compare, or one seed" in made.study.text(made.base, rows)
    assert made.study.figure(made.base, rows[:1]) is not None
    assert to_markdown([*made.study.claims(made.base, rows[:1])]) == to_markdown([])


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("variants.long=false variants.pruned=false", "variants: ['plain'] given; expected two or more"),
        ("variants.long.seed=3", "variants.long.seed: the study sets it for every run; leave it out"),
        ("variants.long.optimiser={}", "variants.long.optimiser: unknown key; did you mean optimizer?"),
        ("variants.pruned.algorithms.magnitude_pruning.density=2", "variants.pruned.algorithms.magnitude_pruning"),
        ("metric=perplexity", "metric: no metric is 'perplexity'"),
    ],
)
def test_mistakes(override, told, tmp_path):
    line = refused(tmp_path, study(tmp_path), *(f"study.variants.{one}" for one in override.split()))
    assert f"study.variants.{told}" in line, line


def test_the_seed_of_a_file_that_is_extended_is_left_out_by_null(tmp_path):
    assert "seed: null where a file that is extended has one" in refused(tmp_path, study(tmp_path) | {"seed": 3})
    plan(study(tmp_path) | {"seed": None})
