"""What algorithms of somebody else's get from the bases of ours."""

from typing import ClassVar

import pytest
from composer.core import Event

from accelerando.algorithms import MixUp
from accelerando.algorithms.composer.bases import RandomAlgorithm
from tiny import Kill, fit, trainer


class Drawn(RandomAlgorithm):
    """Notes what it draws for each batch."""

    steps: ClassVar = {Event.BATCH_START: "_draw"}

    def __init__(self, share: float = 0.5, names: tuple[str, ...] = ("a", "b")):
        self.share, self.names, self.drawn = share, names, []

    def _draw(self, state, logger):
        self.drawn.append([self.generator(state, *place).random() for place in ((), *((name,) for name in self.names))])


class Shifted(Drawn):
    def _draw(self, state, logger):
        super()._draw(state, logger)
        self.drawn[-1].append(2.0)


def test_draws_differ_by_batch_and_purpose_and_repeat_after_a_kill(tmp_path):
    whole, killed, resumed = Drawn(), Drawn(), Drawn()
    fit(whole)
    assert len({value for draws in whole.drawn for value in draws}) == 8 * 3
    with pytest.raises(KeyboardInterrupt):
        fit(killed, callbacks=Kill(3), save_folder=str(tmp_path), save_interval="1ba")
    fit(resumed, load_path=str(tmp_path / "ep0-ba3-rank0.pt"))
    assert killed.drawn + resumed.drawn == whole.drawn
    another = Drawn()
    fit(another, seed=8, max_duration="1ba")
    assert another.drawn[0] != whole.drawn[0]


def test_a_subclass_acts_in_the_place_of_its_base():
    shifted = Shifted()
    fit(shifted, max_duration="2ba")
    assert [draws[-1] for draws in shifted.drawn] == [2.0, 2.0]
    assert repr(Drawn(share=0.1)) == "Drawn(share=0.1, names=('a', 'b'))"


def test_a_base_makes_nobody_a_twin():
    class Other(RandomAlgorithm):
        steps: ClassVar = {}

    trainer([Drawn(), MixUp(), Other()])
    for twins in ([Drawn(), Drawn()], [Drawn(), MixUp(), Drawn()]):
        with pytest.raises(ValueError, match="more than one Drawn"):
            trainer(twins)
