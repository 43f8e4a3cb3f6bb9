"""Composer asks every callback twice at each of a step's thirteen events, and makes a text of each call."""

import functools
import os

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
    # For every callback at each event, so without a function of Python's. `own` is what somebody gave that very object.
    acting = [
        each
        for each in engine.state.callbacks
        if _acts(type(each), loggers, name)
        or ((name in (own := vars(each)) or "run_event" in own) and isinstance(each, LoggerDestination) is loggers)
    ]
    if acting:
        engine._run_callbacks(event, acting)


@functools.cache
def _acts(kind: type[Callback], loggers: bool, event: str) -> bool:
    """Whether callbacks of that class, if they are loggers, or if they are not, do something at the event."""
    if issubclass(kind, LoggerDestination) is not loggers:
        return False
    return any(getattr(kind, name) is not getattr(Callback, name) for name in ("run_event", event))
