"""Runs command lines of the recipes in one process group: `composer -n 2 run_yamls.py COMMANDS.json`."""

import json
import sys
from pathlib import Path

from accelerando.recipes import prune_at_init, study, tickets, train

if __name__ == "__main__":
    for command in json.loads(Path(sys.argv[1]).read_text()):
        studies = {"distillation.yaml": study, "tradeoff.yaml": study}
        studies |= {"tickets.yaml": tickets, "prune_at_init.yaml": prune_at_init}
        studies.get(Path(command[0]).name, train).main(command)
