"""Runs a script as the two ranks of torchrun; it may import what the tests share."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest


def run_two_ranks(script: str | Path, *arguments: object, timeout: float | None = None, **environment: str) -> None:
    """Fails with what each rank wrote last, its stack where a signal ended it: torchrun tells the exit codes alone."""
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONFAULTHANDLER": "1", **environment}
    with TemporaryDirectory() as logs:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        done = subprocess.run(
            [*launch, f"--log-dir={logs}", "--redirects=3", str(script), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=os.environ | variables,
        )
        if done.returncode:
            written = {f"rank {path.parent.name}": path.read_text() for path in sorted(Path(logs).rglob("stderr.log"))}
            told = [f"{who} wrote last:\n{text[-3000:]}" for who, text in {"torchrun": done.stderr, **written}.items()]
            pytest.fail("\n\n".join(told), pytrace=False)
