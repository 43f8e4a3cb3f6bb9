"""The digits with the four speed-up algorithms and without, side by side: `python -m accelerando.recipes.demo`.

Both runs go through the `composer` launcher, as yours would. A run that is already in the folder is not run again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from accelerando.recipes.report import Result, draw, table

YAMLS = ("digits/baseline.yaml", "digits/all.yaml")


def launch(yaml: str, *overrides: str) -> None:
    """Trains in a process of its own; raises CalledProcessError when that fails."""
    composer = [sys.executable, "-m", "composer.cli.launcher", "-n", "1"]
    subprocess.run([*composer, "-m", "accelerando.recipes.train", yaml, *overrides], check=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0] if __doc__ else None)
    parser.add_argument("yamls", nargs="*", default=YAMLS, help="the configs to compare")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where the runs and demo.png go")
    options = parser.parse_args(arguments)
    names = [f"demo-{Path(yaml).stem}" for yaml in options.yamls]
    try:
        for yaml, name in zip(options.yamls, names, strict=True):
            launch(yaml, f"run_name={name}", f"folder={options.folder}")
    except subprocess.CalledProcessError as error:  # the run itself has said what was wrong
        sys.exit(error.returncode)
    results = [
        replace(Result.load(options.folder / name), run_name=Path(yaml).stem)
        for yaml, name in zip(options.yamls, names, strict=True)
    ]
    figure = options.folder / "demo.png"
    draw(results, figure, "Handwritten digits, with and without the algorithms")
    print(f"\n{table(results)}\n\n{figure}: accuracy and loss over training time")


if __name__ == "__main__":
    main()
