"""What the tests of both studies of pruning are given; each has a `whole` study of its own."""

import shutil

import pytest
from studies import Watch, table


@pytest.fixture
def watch():
    Watch.reset()


@pytest.fixture
def copied(whole, tmp_path):
    """The rows of the whole study, whose folder lies in `tmp_path` now."""
    shutil.copytree(whole[0], tmp_path / "study", symlinks=True)
    return table(tmp_path / "study")
