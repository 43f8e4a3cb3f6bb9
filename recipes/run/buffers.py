"""Which buffers the ranks evaluate with."""

from composer import Callback, Logger, State
from composer.utils import dist


class OneSetOfBuffers(Callback):
    """Every rank evaluates with rank 0's buffers, which are those that are saved.

    Each rank's BatchNorm follows its own share of the data; DDP evens that out at the next training forward only.
    """

    def eval_start(self, state: State, logger: Logger) -> None:
        if dist.get_world_size() > 1:
            for buffer in state.model.buffers():
                dist.broadcast(buffer, src=0)

    eval_standalone_start = eval_start
