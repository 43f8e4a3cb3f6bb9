"""Our algorithms in a Composer script of somebody's own: one process and two, killed and resumed."""

from pathlib import Path

import pytest
import torch

from tiny import assert_same, launch

SCRIPT = Path(__file__).with_name("plain_script.py")


@pytest.mark.programs
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_and_resumed_is_as_if_nothing_had_happened(processes, tmp_path):
    killed = launch(processes, SCRIPT, tmp_path, 7)
    assert killed.returncode != 0 and (tmp_path / "whole.pt").exists(), killed.stdout + killed.stderr
    assert not (tmp_path / "broken.pt").exists()
    resumed = launch(processes, SCRIPT, tmp_path)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    whole, broken = (torch.load(tmp_path / f"{run}.pt", weights_only=True) for run in ("whole", "broken"))
    assert_same(broken, whole)
    assert any(".conv.weight" in name for name in broken) and not any("filter" in name for name in broken)
