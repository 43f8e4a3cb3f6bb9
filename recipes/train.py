"""Trains what one YAML file describes: load, check, build, train, report.

    composer [-n N] recipes/train.py FILE.yaml key=value ...
    python -m accelerando.recipes.train --help NAME    of a key, of a section such as algorithms, or of a name in one

`key=value` changes a value, and merges a mapping into the one that the file has there: `optimizer.adam.lr=0.1`,
`algorithms={mix_up: {}}`. `key:=value` puts it in its place: `algorithms:={mix_up: {}}` leaves out all others, and
`algorithms.ema=false` that one. A name with dots stands in brackets: `train_data[my.code:Images].root=data`.

The run's folder, ``{folder}/{run_name}``, then holds the resolved `config.yaml`, `results.json`, `curves.png` and the
checkpoints; of a LotteryTicket the masks too, in `tickets`, unless it says where. The same command after a kill goes on
from the last checkpoint. An error in the config is one line and exit code 2, before anything is built.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from accelerando.recipes.config.recipe import check
from accelerando.recipes.run.command_line import command_line
from accelerando.recipes.run.training import train

__all__ = ["main", "train"]


def main(arguments: Sequence[str]) -> None:
    """The command line; exits with code 2 after an error in the config."""
    command_line(arguments, __doc__, lambda config, source: train(check(config, source)))


if __name__ == "__main__":
    main(sys.argv[1:])
