"""Runs command lines of the recipes in one process group: `composer -n 2 run_yamls.py COMMANDS.json`."""

import json
import sys
from pathlib import Path

from accelerando.recipes import distillation, study, tradeoff, train

if __name__ == "__main__":
    for command in json.loads(Path(sys.argv[1]).read_text()):
        studies = {"distillation.yaml": distillation, "tradeoff.yaml": tradeoff}
        studies |= {"tickets.yaml": study, "prune_at_init.yaml": study}
        try:
            studies.get(Path(command[0]).name, train).main(command)
        except SystemExit as end:
            if end.code:
                raise
