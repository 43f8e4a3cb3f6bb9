"""Callbacks that have something to do at an event are called there, however they say so."""

from composer import Callback
from composer.loggers import InMemoryLogger

import tiny
from accelerando.recipes.run.events import call_those_who_act

CALLED = []


class Overrides(Callback):
    def batch_end(self, state, logger):
        CALLED.append(("overrides", "batch_end"))


class Inherits(Overrides):
    def after_forward(self, state, logger):
        CALLED.append(("inherits", "after_forward"))


class Everywhere(Callback):
    def run_event(self, event, state, logger):
        CALLED.append(("everywhere", event.value))


class Calls:
    def __call__(self, state, logger):
        CALLED.append(("of the instance", "epoch_end"))


def called(change):
    CALLED.clear()
    own, run = Callback(), Callback()
    own.epoch_end = Calls()
    run.run_event = lambda event, state, logger: CALLED.append(("its own run_event", event.value))
    logger = InMemoryLogger()
    callbacks = [Overrides(), Inherits(), Everywhere(), own, run]
    trainer = tiny.trainer(callbacks=callbacks, loggers=logger)
    change(trainer.engine)
    late = Callback()  # what is given when the engine is there already
    late.fit_end = lambda state, logger: CALLED.append(("late", "fit_end"))
    trainer.state.callbacks.append(late)
    trainer.fit()
    trainer.close()
    return [*CALLED], {
        name: [value for _, value in values] for name, values in logger.data.items() if "time" not in name
    }


def test_the_same_are_called_in_the_same_order():
    plain, fewer = called(lambda engine: None), called(call_those_who_act)
    assert {name for name, _ in plain[0]} >= {"overrides", "inherits", "everywhere", "of the instance", "late"}
    assert fewer == plain
