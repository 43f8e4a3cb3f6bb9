"""Runs command lines of the recipes in one process group: `composer -n 2 run_yamls.py COMMANDS.json`."""

import json
import sys
from pathlib import Path

from accelerando.recipes import study, train

NAMES = ("distillation", "tradeoff", "tickets", "prune_at_init", "stability", "interpolation", "landscape", "data_diet")
MORE = ("generalization", "distilled_tickets", "scaling_law", "shrinkbench", "bert_tickets")
STUDIES = {f"{name}.yaml" for name in (*NAMES, *MORE)}

if __name__ == "__main__":
    for command in json.loads(Path(sys.argv[1]).read_text()):
        (study if Path(command[0]).name in STUDIES else train).main(command)
