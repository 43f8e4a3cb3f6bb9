"""What is installed without Composer, in an environment of Lightning and the newest torch: it trains, dies, goes on."""

import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(find_spec("composer") is not None, reason="Composer is installed; `make test-hosts`")
SCRIPT = Path(__file__).with_name("lightning_script.py")


def launch(*arguments: object) -> subprocess.CompletedProcess[str]:
    """In an interpreter that knows what is installed, and nothing of the checkout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=arguments[0], env=environment)  # type: ignore


def test_killed_and_resumed_is_as_if_nothing_had_happened(tmp_path):
    killed = launch(tmp_path, 2)
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    assert (tmp_path / "broken" / "last.ckpt").exists() and not (tmp_path / "broken.pt").exists()
    resumed = launch(tmp_path)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    whole, broken = (torch.load(tmp_path / f"{run}.pt", weights_only=True) for run in ("whole", "broken"))
    assert whole["step"] == broken["step"] == 24
    for name, weight in whole["weights"].items():
        assert torch.equal(weight, broken["weights"][name]), name
    pruned = [whole["weights"][f"network.{layer}.weight"] for layer in (0, 3)]
    assert sum(int(weight.count_nonzero()) for weight in pruned) == 160
