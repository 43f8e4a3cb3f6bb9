"""The scaling law of pruning: its two forms, fits of what is known, intervals, what cannot be told; CSV files."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import least_squares

from accelerando.algorithms.pruning import (
    Measurements,
    PrunableNetwork,
    ScalingLaw,
    fit_power_law,
    fit_scaling_law,
    read_measurements,
    smallest_network,
)
from accelerando.algorithms.pruning.scaling_fit import Problem, best_fit, refits
from accelerando.algorithms.pruning.scaling_law import deviations

KNOWN = ScalingLaw(eps_up=0.9, gamma=1.4, p=2.0, phi=0.9, psi=1.3)
DEPTHS, WIDTHS, DENSE = (8, 14, 20), (4, 8, 16, 32), (0.2, 0.12, 0.08, 0.06)


def complex_form(eps_np, m, eps_up, gamma, p):
    """As arXiv 2006.10621 writes it."""
    return eps_np * abs((m - 1j * p * (eps_up / eps_np) ** (1 / gamma)) / (m - 1j * p)) ** gamma


def measured(law=KNOWN, levels=18, noise=0.0, generator=None, fraction=0.4):
    """Twelve networks, at densities that reach both plateaus."""
    points = []
    for l in DEPTHS:  # noqa: E741
        for w, eps_np in zip(WIDTHS, DENSE, strict=True):
            for level in range(1, levels + 1):
                d = (1 - fraction) ** level
                error = complex_form(eps_np, l**law.phi * w**law.psi * d, law.eps_up, law.gamma, law.p)
                points.append((f"{l}x{w}", d, error, eps_np, l, w))
    found = Measurements.of_points(points)
    spread = generator.normal(0, noise, len(found)) if generator else np.zeros(len(found))
    return replace(found, error=np.minimum(found.error * (1 + spread), 1))


def test_the_real_form_is_the_complex_one():
    density = np.geomspace(1e-4, 1, 30)
    for gamma in (0.3, 1.0, 2.5, 12.0):
        for p in (0.003, 0.05, 0.6):
            law = ScalingLaw(eps_up=0.8, gamma=gamma, p=p)
            np.testing.assert_allclose(law.error(0.07, density), complex_form(0.07, density, 0.8, gamma, p), rtol=1e-12)
    m = 20**0.9 * 16**1.3 * 0.1
    assert KNOWN.error(0.06, 0.1, 20, 16) == pytest.approx(complex_form(0.06, m, 0.9, 1.4, 2.0), rel=1e-12)


def test_limits():
    law = ScalingLaw(eps_up=0.8, gamma=1.5, p=0.01)
    assert law.error(0.05, 1e12) == pytest.approx(0.05, rel=1e-12)
    assert law.error(0.05, 1e-12) == pytest.approx(0.8, rel=1e-9) and law.error(0.05, 0) == pytest.approx(0.8)
    steep = ScalingLaw(eps_up=0.9, gamma=0.7, p=1e-6)  # between the two: eps_up (p / d)^gamma, whatever the dense error
    for eps_np in (1e-7, 1e-8):
        assert steep.error(eps_np, 1e-3) == pytest.approx(0.9 * (1e-6 / 1e-3) ** 0.7, rel=1e-3)


def test_the_density_of_an_error_is_the_inverse():
    density = KNOWN.density([0.1, 0.3, 0.6], 0.08, 14, 8)
    np.testing.assert_allclose(KNOWN.error(0.08, density, 14, 8), [0.1, 0.3, 0.6], rtol=1e-9)
    assert KNOWN.density([0.07, 0.08, 0.95], 0.08, 14, 8).tolist() == [math.inf, 1.0, 0.0]
    cliff = ScalingLaw(eps_up=0.9, gamma=0.02, p=1e-3)  # of which (eps_up / eps_np)^(2 / gamma) is no number
    assert cliff.error(1e-4, cliff.density([0.8, 0.85], 1e-4)) == pytest.approx([0.8, 0.85])
    assert cliff.density([0.9, 1.0], 1e-4).tolist() == [0.0, 0.0]


def test_known_constants_are_recovered():
    found = fit_scaling_law(measured(), resamples=20)
    assert not found.untold and found.configurations == 12 and found.within.deviation < 1e-6
    for name, constant in found.constants.items():
        assert constant.value == pytest.approx(getattr(KNOWN, name), rel=0.01), name
    one = measured().of(["14x8"])
    alone = fit_scaling_law(one, resamples=20)
    assert [*alone.constants] == ["eps_up", "gamma", "p"]
    p = KNOWN.p / (14**KNOWN.phi * 8**KNOWN.psi)
    assert [alone.law.eps_up, alone.law.gamma, alone.law.p] == pytest.approx([0.9, 1.4, p], rel=0.01)


def test_intervals_cover_as_often_as_they_say():
    """Of 100 draws with noise of 3.4 %; fewer than 88 of 100 would come by chance once in 200 times."""
    hits = dict.fromkeys(("eps_up", "gamma", "p", "phi", "psi"), 0)
    for draw in range(100):
        found = fit_scaling_law(measured(noise=0.034, generator=np.random.default_rng(draw), levels=9), 100)
        for name, constant in found.constants.items():
            hits[name] += constant.low <= getattr(KNOWN, name) <= constant.high
    assert all(88 <= hit <= 100 for hit in hits.values()), hits


def test_points_that_stray_together_are_not_taken_for_many():
    """Each configuration is off by its own factor: intervals over points would be far too narrow."""
    found, generator = measured(), np.random.default_rng(3)
    off = dict(zip(found.configurations, np.exp(generator.normal(0, 0.1, 12)), strict=True))
    found = replace(found, error=np.minimum(found.error * [off[name] for name in found.configuration], 1))
    apart = replace(found, configuration=np.array([f"point {i}" for i in range(len(found))]))
    together, alone = (fit_scaling_law(each, 200).constants["psi"] for each in (found, apart))
    assert together.value == pytest.approx(alone.value) and together.high - together.low > 2 * (alone.high - alone.low)


def test_refits_are_those_of_scipy():
    found = measured(noise=0.034, generator=np.random.default_rng(0))
    data, free = Problem(found.error, *map(np.log, found.arguments)), np.ones(5, dtype=bool)
    theta = best_fit(data, free)
    counts = np.random.default_rng(1).integers(0, 3, (4, len(found)))
    for own, count in zip(refits(data, theta, counts, free), counts, strict=True):
        root = np.sqrt(count)
        other = least_squares(lambda x, root=root: root * data.deviations(x[None])[0], theta, xtol=1e-12, ftol=1e-12)
        np.testing.assert_allclose(own, other.x, atol=1e-4)
    step = 1e-6 * np.eye(5)
    slopes = (data.deviations(theta + step) - data.deviations(theta - step)) / 2e-6
    np.testing.assert_allclose(data.linearized(theta[None])[1][0].T, slopes, rtol=1e-5, atol=1e-7)


# Test errors of ResNet-56, means of three trials, rewound to epoch 32 of 182, and the dense network's: Renda et al.
# (ICLR 2020), vision/plot/*.pkl of lottery-ticket/rewinding-iclr20-public @ 273e67d.
RESNET_56 = (
    0.065083, 0.063208, 0.062792, 0.064083, 0.062458, 0.061875, 0.062958, 0.062542, 0.06425,
    0.065833, 0.066792, 0.068917, 0.072042, 0.076792, 0.080542, 0.086417, 0.091583,
)  # fmt: skip
RESNET_56_DENSE = 0.065368


def test_what_the_data_cannot_tell_is_named_and_the_rest_is_fitted():
    points = [("resnet56", 0.8**i, error, RESNET_56_DENSE, 56, 16) for i, error in enumerate(RESNET_56, 1)]
    found = fit_scaling_law(Measurements.of_points(points), 200)
    assert abs(found.within.mean) < 0.022 and 0.018 < found.within.deviation < 0.03
    assert {"gamma", "eps_up", "p"} == found.untold.keys()
    gamma = found.constants["gamma"]
    assert gamma.high == math.inf and gamma.low > 1 and "at least" in str(gamma)


def test_without_a_plateau_the_slope_is_told_and_the_plateau_is_not():
    law = ScalingLaw(eps_up=0.9, gamma=1.4, p=2e-3, phi=0.9, psi=1.3)
    found = measured(law, levels=12, fraction=0.3, noise=0.02, generator=np.random.default_rng(5))
    assert found.error.max() < 0.6
    fitted = fit_scaling_law(found.of([n for n in found.configurations if n != "8x4"]), 200)
    assert {"eps_up", "p"} <= fitted.untold.keys() and "phi" not in fitted.untold
    assert fitted.constants["eps_up"].high == 1 and fitted.constants["p"].low == 0
    assert fitted.within.deviation < 0.03


def test_sizes_that_do_not_vary_alone_have_no_exponents():
    narrow = fit_scaling_law(measured().of(["8x4", "14x4", "20x4"]), 50)
    assert narrow.untold == {"psi": "all widths are one"} and narrow.law.psi == 0
    assert narrow.law.phi == pytest.approx(KNOWN.phi, rel=0.01)
    found = measured()
    both = fit_scaling_law(replace(found, depth=found.width**2), 50)
    assert both.untold.keys() == {"phi", "psi"} and "vary together" in both.untold["phi"]


def test_a_power_law_has_its_exponents():
    found = measured()
    power = 0.3 * found.dense_error**0.5 * found.density**-0.2 * found.depth**-0.1 * found.width**-0.3
    logarithms = fit_power_law(replace(found, error=power)).logarithms
    assert logarithms == pytest.approx([math.log(0.3), 0.5, -0.2, -0.1, -0.3])
    spread = 1 + 0.3 * np.random.default_rng(0).normal(size=len(power))
    noisy = replace(found, error=np.clip(power * spread, 1e-3, 1))  # by the relative deviations, as the law's own
    terms = np.stack([np.ones(len(power)), *map(np.log, noisy.arguments)], axis=1)
    left = np.exp(terms @ fit_power_law(noisy).logarithms) / noisy.error - 1
    assert np.abs(terms.T @ (left * (left + 1))).max() < 1e-4 * len(power)  # the gradient of the sum of their squares
    assert fit_power_law(replace(found, error=power, depth=np.ones(len(power)))).logarithms[3] == pytest.approx(0)
    law, plain = fit_scaling_law(found, 1).law, fit_power_law(found)
    assert deviations(plain, found).deviation > 0.1 > deviations(law, found).deviation


def test_the_smallest_network_is_that_of_a_search():
    found = fit_scaling_law(measured(noise=0.02, generator=np.random.default_rng(2)), 100)
    networks = [
        PrunableNetwork(name=f"{l}x{w}", dense_error=eps_np, weights=100 * l * w * w, depth=l, width=w)
        for l in DEPTHS  # noqa: E741
        for w, eps_np in zip(WIDTHS, DENSE, strict=True)
    ]
    density = np.geomspace(1e-5, 1, 20_000)
    for error in (0.1, 0.15, 0.3):
        fits = {n.name: density[found.law.error(n.dense_error, density, n.depth, n.width) <= error] for n in networks}
        least = {n.name: n.weights * fits[n.name].min() for n in networks if len(fits[n.name])}
        best = smallest_network(found, networks, error)
        assert best.network.name == min(least, key=least.get)
        assert best.weights == pytest.approx(min(least.values()), rel=1e-3)
        assert best.weights == pytest.approx(best.density * best.network.weights)
        assert best.low <= best.weights <= best.high and 0 < best.agree <= 1
    assert smallest_network(found, networks, 0.05) is None


LINES = """depth,width,examples,seed,density,error,more
8,4,100,1,1,0.1,x
8.0,4, 100,2,1,0.2,x
8,4,100,1,0.5,0.2,x
8,4,100,2,0.5,0.3,x
8,4,50,1,1,0.3,x
8,4,50,1,0.5,0.4,x
"""


def test_measurements_from_a_file(tmp_path):
    file = tmp_path / "errors.csv"
    file.write_text(LINES)
    found = read_measurements(file)
    assert found.configurations == ["depth 8, width 4, examples 100", "depth 8, width 4, examples 50"]
    assert found.dense_error.tolist() == pytest.approx([0.15, 0.3])
    assert found.error.tolist() == pytest.approx([0.25, 0.4])
    assert found.density.tolist() == [0.5, 0.5] and found.width.tolist() == [4, 4]
    file.write_text("\ufeffconfiguration, density,error,dense_error\na,0.5,0.2,0.1\na,0.25,0.4,0.1\n", encoding="utf-8")
    found = read_measurements(file)
    assert found.configurations == ["a"] and found.depth.tolist() == [1, 1] and found.density.tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column density; expected "),
        ("density,eror\n0.5,0.1\n", "no column error; expected "),
        ("density,error\n", "no line below the names"),
        ("density,error\n1,0.1\n", "every density is 1; expected pruned networks too"),
        ("density,error\n0.5,0.1\n", "the network has no line of density 1, and no dense_error"),
        ("density,error,dense_error\n0.5,much,0.1\n", "line 2: error is 'much'; expected a number"),
        ("density,error,dense_error\n0.5,0.2,0.1\n0.4,0,0.1\n", "line 3: error is 0; expected a number"),
        ("density,error,dense_error\n0.5,nan,0.1\n", "line 2: error is nan; expected"),
        ("density,error,dense_error\n50,0.2,0.1\n", "line 2: density is 50; expected a number above 0 and up to 1"),
        ("density,error,dense_error\n0.5\n", "line 2: has another number of columns than the first line"),
        ("density,error,dense_error\n.5,.2,.1,\n", "line 2: has another number of columns than the first line"),
        ("configuration,depth,density,error\na,1,1,.1\na,2,.5,.2\n", "a has several depths or widths; expected one"),
        ("examples,density,error,dense_error\nall,.5,.2,.1\n", "line 2: examples is 'all'; expected a number"),
        ("configuration,density,error,dense_error\na,.5,.2,.1\nb,.5,.2,.1\n", "2 configurations; expected columns"),
        ("depth,density,error,dense_error\n0,.5,.2,.1\n", "line 2: depth is 0; expected a number above 0"),
        ("density,error\n0.5,\xff\n", "no CSV file; "),
    ],
)  # fmt: skip
def test_files_that_are_none(text, message, tmp_path):
    file = tmp_path / "errors.csv"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError) as error:
        read_measurements(file)
    assert str(error.value).startswith(str(file)) and message in str(error.value) and "\n" not in str(error.value)


def test_what_cannot_be_fitted_is_refused(monkeypatch):
    few = measured(levels=1).of(["8x4", "8x8", "14x8"])
    with pytest.raises(ValueError, match=r"measured must be more than 5 points, got 3"):
        fit_scaling_law(few)
    with pytest.raises(ValueError, match=r"error must be above 0 and up to 1, got \[1\.5\]"):
        replace(few, error=few.error * 0 + 1.5)
    with pytest.raises(ValueError, match=r"configuration must be 3 names, as of error, got \(2,\)"):
        replace(few, configuration=["a", "b"])
    assert replace(few, configuration=["a", "b", "a"]).configurations == ["a", "b"]
    with pytest.raises(ValueError, match="ScalingLaw: gamma must be above 0, got -1"):
        ScalingLaw(eps_up=0.9, gamma=-1, p=1)
    with pytest.raises(ValueError, match="ScalingLaw: dense_error must be above 0, got 0"):
        KNOWN.error(0, 0.5)
    with pytest.raises(ValueError, match="error must be above 0 and below 1, got 1"):
        smallest_network(fit_scaling_law(measured(), 1), [], 1)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"needs SciPy, which is missing: pip install 'accelerando\[fit\]'"):
        fit_scaling_law(measured())
