"""Composer asks every callback twice at each of a step's thirteen events, and makes a text of each call."""

import functools
import os
from collections.abc import Collection

from composer.core import Callback, Engine, Event
from composer.loggers import LoggerDestination


def call_those_who_act(engine: Engine) -> None:
    """Has the engine leave out callbacks at events for which they have no method but the base's, which does nothing."""
    if os.environ.get("ENGINE_DEBUG"):  # who asks for the texts sees all calls
        return
    engine._debug_log = lambda event, msg: None  # type: ignore[method-assign]
    engine._run_loggers = functools.partial(_run, engine, True)  # type: ignore[method-assign]
    engine._run_nonlogger_callbacks = functools.partial(_run, engine, False)  # type: ignore[method-assign]


def _run(engine: Engine, loggers: bool, event: Event | str) -> None:
    name = Event(event).value
    of_kind = [callback for callback in engine.state.callbacks if _is_logger(type(callback)) is loggers]
    acting = [each for each in of_kind if name in _events(type(each)) or _has_own(vars(each), name)]
    if acting:
        engine._run_callbacks(event, acting)


@functools.cache
def _is_logger(kind: type[Callback]) -> bool:
    return issubclass(kind, LoggerDestination)


@functools.cache
def _events(kind: type[Callback]) -> frozenset[str]:
    """Those at which a callback of that class does something."""
    everywhere = kind.run_event is not Callback.run_event
    names = (event.value for event in Event)
    return frozenset(name for name in names if everywhere or getattr(kind, name) is not getattr(Callback, name))


def _has_own(attributes: Collection[str], event: str) -> bool:
    """Whether somebody has given that very object a method."""
    return event in attributes or "run_event" in attributes
