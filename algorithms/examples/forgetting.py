"""Forgetting events: how often a training unlearns each example, which it had classified correctly before.

Source: Toneva et al., "An Empirical Study of Example Forgetting during Deep Neural Network Learning" (arXiv
1812.05159). They take the accuracy of the augmented minibatch that an example happens to be in; here all examples are
looked at together, in evaluation mode and not augmented, one interval after another from the beginning of training: so
neither the order of the batches, nor the ranks, nor what was interrupted makes a difference.

    forgetting = Forgetting(DataLoader(train_set, 1000), interval="1ep", batches_per_epoch=12)
    for step in range(steps):
        ...
        optimizer.step()
        forgetting(model, step + 1)
    unforgettable = forgetting.learned & (forgetting.events == 0)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..connectivity.walk import Forward
from ..progress import SURELY, Progress, moment
from ..ranks import rank
from ..shown import Shown
from ..validation import check
from .files import data_digest, save_scores
from .scores import check_order, score_examples


class Forgetting(Shown):
    """Counts the forgetting events of each example: correct at one look, and wrong at the next.

    To be called with the model and the number of updates so far, or a `Progress`, after each update, by every rank. It
    looks where an interval ends, first one interval after the beginning: what an untrained network guesses right is not
    learned. A training that goes on from a saved state counts on.

    `events` and `learned`, `(N,)`, are how often each example was forgotten, and whether it was correct at any look:
    one that never was has no events, and is none that is never forgotten. `looks` is how often there was a look.

    Args:
        data: a DataLoader over the examples, not shuffled and not augmented; see `score_examples`.
        interval: of ep, ba, sp, tok or dur; an end that lies within a batch is that batch's.
        steps: updates in all, for an interval in dur.
        batches_per_epoch: for an interval in ep.
        forward, target_key: those of `score_examples`.
        file: where the scores of each look are written over those of the look before; see `save_scores`.

    Raises ValueError for other arguments, and where the progress does not tell when an interval ends.
    """

    missing: Sequence[str] = ()  # moments, for which hosts' classes ask a SnapshotWriter, whose place this takes

    def __init__(
        self,
        data: Iterable[Any] | None,
        interval: str = "1ep",
        steps: int | None = None,
        batches_per_epoch: int | None = None,
        forward: Forward | None = None,
        target_key: Any = 1,
        file: str | PathLike[str] | None = None,
        owner: str = "Forgetting",
    ):
        time = moment(interval) if isinstance(interval, str) else None
        check(owner, "interval", time and time.value > 0, "above 0, in ep, ba, sp, tok or dur", interval)
        assert time is not None
        check_order(owner, data)
        lasts = not isinstance(data, Iterator)
        check(owner, "data", lasts, "batches that are there at every look", type(data).__name__)
        self.data, self.interval, self.steps, self.batches_per_epoch = data, time, steps, batches_per_epoch
        self.forward, self.target_key, self.file, self.owner = forward, target_key, Path(file) if file else None, owner
        self.events = torch.zeros(0, dtype=torch.long)
        self.learned = self.correct = torch.zeros(0, dtype=torch.bool)
        self.looks = 0
        self._ended = 0  # how many intervals have
        self._resumed, self._digest = False, ""

    def __call__(self, model: nn.Module, progress: int | Progress) -> None:
        progress = self._progress(progress) if isinstance(progress, int) else progress
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        self.keep(lambda: self.is_correct(model), progress)

    def begin(self, weights: Mapping[str, Any], progress: Progress, gone: bool = False) -> None:
        """Counts from here on, unless a training goes on whose state is loaded; that may have left its file behind."""
        if not self._resumed:
            self._ended = self._intervals(progress)
        elif self.looks:
            self._save()

    def note(self, place: dict[str, int]) -> None:
        """Does nothing: where an interval ends, the progress tells."""

    def keep(self, is_correct: Callable[[], Tensor], progress: Progress, *, seed: int = 0, shift: int = 0) -> None:
        """Counts if a look is due, for which it asks which examples are classified correctly, `(N,)`."""
        before, self._ended = self._ended, self._intervals(progress)
        if self._ended <= before:
            return
        correct = is_correct()
        if not self.looks:
            self.events, self.learned = torch.zeros(len(correct), dtype=torch.long), torch.zeros_like(correct)
            self.correct = self.learned
        same = len(correct) == len(self.events)
        check(self.owner, "data", same, f"the {len(self.events)} examples of the looks before", len(correct))
        self.events = self.events + (self.correct & ~correct)
        self.learned, self.correct, self.looks = self.learned | correct, correct, self.looks + 1
        self._save()

    def _save(self) -> None:
        if self.file and rank() == 0:
            self._digest = self._digest or data_digest(self.data)
            save_scores(self.file, {"forgetting": self.scores()}, self._digest, looks=str(self.looks))

    def is_correct(self, model: nn.Module, forward: Forward | None = None) -> Tensor:
        """Returns which examples the model classifies correctly, `(N,)`, in evaluation mode."""
        assert self.data is not None
        forward = forward or self.forward
        found = score_examples(
            model, self.data, ["error"], forward=forward, target_key=self.target_key, owner=self.owner
        )
        return found["error"][0] == 0

    def scores(self) -> Tensor:
        """Returns the events as scores, of which the lowest are the easiest examples': `(N,)`.

        What was never learned counts as if it were forgotten at every look, as in the authors' code: that is more often
        than anything else is.
        """
        return torch.where(self.learned, self.events, self.looks).float()

    def state_dict(self) -> dict[str, Any]:
        tensors = {name: getattr(self, name) for name in ("events", "learned", "correct")}
        return {**tensors, "looks": self.looks, "ended": self._ended, "interval": str(self.interval)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.events, self.learned, self.correct = (state[name].cpu() for name in ("events", "learned", "correct"))
        self.looks, self._ended, self._resumed = state["looks"], state["ended"], True
        was, now = state["interval"], str(self.interval)
        check(self.owner, "interval", was == now, f"{was}, as in the training that goes on", now)

    def _intervals(self, progress: Progress) -> int:
        return int(progress.elapsed(self.interval.unit) / (self.interval.value * SURELY))

    def _progress(self, step: int) -> Progress:
        told = {"ba": True, "dur": self.steps is not None, "ep": self.batches_per_epoch is not None}
        hint = "in ba; give steps for dur, batches_per_epoch for ep, and call it with a Progress for sp and tok"
        check(self.owner, "interval", told.get(self.interval.unit), hint, str(self.interval))
        return Progress.after(step, self.steps, self.batches_per_epoch)
