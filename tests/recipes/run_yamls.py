"""Runs command lines of the recipes in one process group: `composer -n 2 run_yamls.py COMMANDS.json`."""

import json
import sys
from pathlib import Path

from accelerando.recipes import study, train

STUDIES = (
    "distillation.yaml",
    "tradeoff.yaml",
    "tickets.yaml",
    "prune_at_init.yaml",
    "stability.yaml",
    "landscape.yaml",
)

if __name__ == "__main__":
    for command in json.loads(Path(sys.argv[1]).read_text()):
        (study if Path(command[0]).name in STUDIES else train).main(command)
