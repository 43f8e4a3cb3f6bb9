"""Barriers and their like, against what is known by hand."""

import math

import numpy as np
import pytest
import torch

from accelerando.algorithms import barrier, disagreement, example_barriers, is_monotone, largest_rise


def test_a_barrier_is_the_highest_value_less_the_mean_of_the_ends():
    for values in ([0.1, 0.5, 0.2, 0.3], np.array([0.1, 0.5, 0.2, 0.3]), torch.tensor([0.1, 0.5, 0.2, 0.3]).double()):
        assert barrier(values) == pytest.approx(0.3)
    assert barrier([0.4, 0.1, 0.2]) == pytest.approx(0.1)  # where the highest is an end
    assert barrier([0.3, 0.3, 0.3]) == 0
    assert math.isnan(barrier([0.1, math.nan, 0.1])) and math.isnan(barrier([math.nan, 0.1]))
    assert barrier([0.1, math.inf, 0.1]) == math.inf


def test_a_path_is_monotone_if_its_values_only_fall_but_for_the_tolerance():
    assert is_monotone([3, 2, 2, 1]) and not is_monotone([3, 2, 2.5, 1])
    assert largest_rise([3, 2, 2.5, 1]) == 0.5 and largest_rise([3, 2, 1]) == 0
    assert is_monotone([3, 2, 2.5, 1], 0.5) and not is_monotone([3, 2, 2.5, 1], 0.4)
    creeping = [1 + 0.01 * step for step in range(20)]  # each step within the tolerance, all of them not
    assert not is_monotone(creeping, 0.05) and largest_rise(creeping) == pytest.approx(0.19)
    assert not is_monotone([3, math.nan, 1], 9) and not is_monotone([3, math.inf, 1], 9)


def test_disagreement_is_the_share_of_other_predictions():
    a, b = torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 0, 0])
    assert disagreement(a, b) == 0.5 == disagreement(a.tolist(), b.numpy())
    assert disagreement(a, a) == 0


def test_a_barrier_of_each_example():
    start, middle, end = torch.tensor([[1.0, 0, 2], [3, 0, 1], [2, 0, 2]])
    assert example_barriers(start, middle, end).tolist() == [1.5, 0, -1]


BAD = {
    "one point": (barrier, [[0.1]], r"barrier: values must be those of two points or more, got \(1,\)"),
    "a table": (barrier, [[[0.1, 0.2]]], r"got \(1, 2\)"),
    "tolerance": (is_monotone, [[2, 1], -1], "is_monotone: tolerance must be at least 0, got -1"),
    "lengths": (disagreement, [[1, 2], [1]], r"classes of the same examples, of shape \(N,\), got '\(2,\) and \(1,\)'"),
    "logits": (disagreement, [[[1, 2]], [[1, 2]]], r"got '\(1, 2\) and \(1, 2\)'"),
    "none": (disagreement, [[], []], r"got '\(0,\) and \(0,\)'"),
    "examples": (
        example_barriers,
        [torch.ones(2), torch.ones(3), torch.ones(2)],
        "losses must be of the same examples",
    ),
}


@pytest.mark.parametrize("function,arguments,message", BAD.values(), ids=BAD)
def test_what_is_no_path_is_refused_in_one_line(function, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        function(*arguments)
    assert len(str(caught.value).splitlines()) == 1
