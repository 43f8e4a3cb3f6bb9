"""Runs several command lines of recipes/train.py in one process group: `composer -n 2 run_yamls.py COMMANDS.json`."""

import json
import sys
from pathlib import Path

from accelerando.recipes.train import main

if __name__ == "__main__":
    for command in json.loads(Path(sys.argv[1]).read_text()):
        main(command)
