"""The seed of initial weights, where algorithms add weights to a model when a Trainer is built."""

from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import reproducibility


class SeedOfWeights(Algorithm):
    """Seeds what the algorithms after it draw at INIT, such as new layers, and takes itself out of the run.

    It is an algorithm, and the first, because callbacks come after the algorithms. Composer seeds anew before training.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def match(self, event: Event, state: State) -> bool:
        return event is Event.INIT

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        reproducibility.seed_all(self.seed)
        state.algorithms.remove(self)
