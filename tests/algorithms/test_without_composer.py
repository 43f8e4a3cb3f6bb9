"""What needs torch alone works where no host can be imported, and a host's class says what to install."""

from pathlib import Path

import pytest

from accelerando import algorithms
from tiny import launch

SCRIPT = Path(__file__).parents[1] / "without_composer.py"


def test_every_name_is_used_without_a_host():
    done = launch(1, "-W", "error", "-W", "ignore:`torch.jit.script` is deprecated:FutureWarning", SCRIPT)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    (mixup,) = (line for line in lines if "algorithms.MixUp " in line)
    assert mixup == (
        "accelerando.algorithms.MixUp is a class for Composer's Trainer, which is not installed: pip install "
        "'accelerando[composer]', or use what a loop of your own needs, which is in __all__ too"
    )
    classes = {name for name in algorithms.__all__ if f"algorithms.{name} is a class for Composer" in done.stdout}
    assert len(lines) == len(classes) and {"MixUp", "Snapshots", "LotteryTicket"} <= classes


@pytest.mark.parametrize("name", ["algorithms.composer", "algorithms.composer.mixup", "recipes.train"])
def test_what_is_of_composer_says_so(name):
    code = f"import sys; sys.modules['composer'] = None; import accelerando.{name}"
    last = launch(1, "-c", code).stderr.strip().splitlines()[-1]
    package = ".".join(name.split(".")[:2]) if "." in name and name[0] == "a" else "recipes"
    assert last.startswith(f"ImportError: accelerando.{package} needs ")
    assert last.endswith("pip install 'accelerando[composer]'")
