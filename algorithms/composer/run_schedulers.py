"""The schedulers of a run, for an algorithm that was not given them, such as one that is built from a YAML.

Composer compiles a scheduler, which is a function of the state, into torch's `LambdaLR` before its event BEFORE_LOAD,
and keeps it nowhere but in the function that this one calls.
"""

from collections.abc import Callable
from types import CellType, FunctionType

from composer.optim import ComposerScheduler, compile_composer_scheduler
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

ScheduleFunction = ComposerScheduler | Callable[..., float]


def composer_scheduler(compiled: LRScheduler) -> ScheduleFunction | None:
    """The scheduler that Composer has compiled into one of `state.schedulers`; None if that is torch's own."""
    cell = _cell(compiled)
    return None if cell is None else cell.cell_contents


def replace_scheduler(compiled: LRScheduler, by: ScheduleFunction) -> None:
    """From the next update on, another one is asked for the learning rates of one of `state.schedulers`."""
    cell = _cell(compiled)
    if cell is None:
        raise TypeError(f"a {type(compiled).__name__} is torch's, and not compiled from a scheduler of Composer's.")
    cell.cell_contents = by


def _cell(compiled: LRScheduler) -> CellType | None:
    function = compiled.lr_lambdas[0] if isinstance(compiled, LambdaLR) else None
    maker = f"{compile_composer_scheduler.__qualname__}."
    # A user's own may come from anywhere, and hold what it likes under that name.
    if isinstance(function, FunctionType) and function.__module__ == compile_composer_scheduler.__module__:
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        return cells.get("scheduler") if function.__qualname__.startswith(maker) else None
    return None
