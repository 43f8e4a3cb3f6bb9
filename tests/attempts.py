"""A callback for the jobs of test executors; a module of its own, as only the jobs are to import Composer."""

import time
from pathlib import Path

from composer import Callback
from composer.utils import dist


class Attempts(Callback):
    """Notes at which batch each attempt begins; the first one waits before batch 5, where told, until it is killed."""

    def __init__(self, folder: str, wait: bool):
        self.folder, self.wait = Path(folder), wait

    def fit_start(self, state, logger):
        if dist.get_global_rank() == 0:
            with (self.folder / "attempts").open("a") as file:
                file.write(f"{int(state.timestamp.batch)}\n")

    def before_train_batch(self, state, logger):
        first = (self.folder / "attempts").read_text() == "0\n"
        if self.wait and first and state.timestamp.batch == 5 and dist.get_global_rank() == 0:
            (self.folder / "waits").touch()
            time.sleep(600)
