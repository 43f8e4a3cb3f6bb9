"""Differences over seeds beside SciPy's paired t test, and what there is no test for."""

import numpy as np
import pytest
from scipy import stats

from accelerando.recipes.studies.claims import judge, judge_equal
from accelerando.recipes.studies.statistics import difference


@pytest.mark.parametrize("values", [[0.1, 0.4, 0.2], [-3.0, 5.0], [1e-9, 2e-9, 4e-9, 3e-9]])
def test_a_difference_is_that_of_the_paired_t_test(values):
    found, theirs = difference(values), stats.ttest_1samp(values, 0)
    interval = theirs.confidence_interval(0.95)
    assert found.p == pytest.approx(theirs.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert not found.is_alike and "paired t test" in str(found)


# Forty more of 360 images, as metrics of 32 bits tell them.
FORTY_IMAGES = [float(np.float32(right / 360)) - float(np.float32((right - 40) / 360)) for right in (351, 349, 352)]


@pytest.mark.parametrize("values", [[4.0] * 3, [0.3, 0.1 + 0.2], [2 - 0.225, 2 - 22.5 / 100, 1.775], FORTY_IMAGES])
def test_what_all_seeds_found_alike_has_no_test(values):
    found = difference(values)
    assert found.low == found.mean == found.high == pytest.approx(values[0])
    assert str(found) == f"{values[0]:+.4f} (the same of all {len(values)} seeds)"
    above = judge("above", "", found)
    assert (above.verdict, above.why) == ("holds", f"all {len(values)} seeds found the same")
    assert judge("above", "", found, at_least=5.0).verdict == "fails"
    assert judge_equal("equal", "", found, within=0.05).verdict == "fails"


def test_no_difference_in_any_seed():
    found = difference([0.0, 0.0, 0.0])
    assert found.p == 1 and judge("above", "", found).verdict == "fails"
