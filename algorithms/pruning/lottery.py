"""Lottery tickets: iterative magnitude pruning with rewinding, in a training loop of one's own.

    lottery = Lottery(model, optimizer, scheduler, levels=5, fraction=0.2, steps=10_000, rewind_to=500)
    for step in lottery:  # 0 to 9999, then 500 to 9999 in each of five levels
        ...               # one update, with batch number `step`, and one step of the scheduler
        if lottery.level_ended:
            lottery.record(accuracy=evaluate(model))

Sources: Frankle and Carbin, "The Lottery Ticket Hypothesis" (arXiv 1803.03635); rewinding to step k: Frankle et al.,
"Linear Mode Connectivity and the Lottery Ticket Hypothesis" (arXiv 1912.05671); rewinding the learning rate and
fine-tuning: Renda et al. (arXiv 2003.02389); the arithmetic schedule: Chen et al., for BERT (arXiv 2007.12223).
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from .. import ranks
from ..checkpoints import write_safetensors
from ..generators import seed_all
from .criteria import magnitude
from .enforcement import forget_momenta
from .files import save_masks
from .masks import Masks, Scope, density, digest, keep_highest, kept_counts, packed, size, unpacked
from .pruner import Pruner
from .rewound import Rates, options_of, put_back, put_options_back, snapshot_of

Rewind = Literal["weights", "learning_rate", "finetune"]
LevelSchedule = Literal["geometric", "arithmetic"]


def level_densities(levels: int, fraction: float, schedule: LevelSchedule) -> list[float]:
    """The share of weights kept in levels 0, 1, ..., `levels`.

    Each prunes `fraction` of what remains, hence `(1 - fraction)^i`; or, `arithmetic`, of all: `1 - i fraction`.
    """
    if schedule == "arithmetic":
        return [round(1 - level * fraction, 12) for level in range(levels + 1)]
    return [(1 - fraction) ** level for level in range(levels + 1)]


class Lottery(Pruner):
    """Trains to the end, prunes the weights of least magnitude, rewinds to step k, trains to the end, and so on.

    It is iterated over, once for each update, and gives where in one training, of length T, this is: level 0 trains the
    dense network from 0 to T, each further level from k to T. `updates` counts all that have been made, of `total` (so
    that data may also go on in their own order), and `level_ended` tells in the loop whether a level's last has been.

    Each level begins with the masks that the last one's weights give, with new optimizers' state, what they count in
    their groups included, with schedulers as they were at k, and with global generators seeded by seed, rank and level.
    `results` has a dict per level: `level`, `density`, the `batch` (update) at which it ended, the masks' `digest`, and
    what `record` was told; `masks_of` has the level's masks. `state_dict` can be taken after any update.

    Args:
        model, optimizers, include, exclude, classifier, name: see `Pruner`.
        schedulers: torch's, one or several, which are stepped after each update or epoch; None where there is none, or
            where the learning rate is set as a function of the step that the iteration gives.
        levels: how many times to prune.
        fraction: what to prune each time, in (0, 1), of what remains; or of all, if `schedule` is `arithmetic`.
        schedule: `geometric` or `arithmetic`. One-shot pruning is `levels=1` with a large fraction.
        steps: T, the number of updates of one training.
        rewind_to: k, below T.
        rewind: `weights` puts weights and buffers, saved ones or not, back to those of k; `learning_rate` keeps the
            trained ones; `finetune` keeps them, and trains them with a constant learning rate.
        finetune_multiplier: of the optimizers' learning rate, for `finetune`; Renda et al. have 0.001 of 0.1.
        scope: compare the weights of all layers (`global`), or of each (`layerwise`).
        save_folder: where to write each level's masks, as `level-1.safetensors` and so on (see `load_masks`), and step
            k, as `rewind.safetensors`.
        seed: by which each level but the first reseeds.
    """

    def __init__(
        self,
        model: nn.Module | None,
        optimizers: Optimizer | Iterable[Optimizer],
        schedulers: Any,
        levels: int,
        fraction: float = 0.2,
        schedule: LevelSchedule = "geometric",
        steps: int = 0,
        rewind_to: int = 0,
        rewind: Rewind = "weights",
        finetune_multiplier: float = 0.01,
        scope: Scope = "global",
        save_folder: str | None = None,
        seed: int = 0,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        classifier: bool = True,
        *,
        name: str | None = None,
    ):
        super().__init__(None, (), include, exclude, classifier, name=name)
        self.check("levels", type(levels) is int and levels >= 1, "a whole number, at least 1", levels)
        self.check("fraction", 0 < fraction < 1, "in (0, 1)", fraction)
        self.check("schedule", schedule in ("geometric", "arithmetic"), "'geometric' or 'arithmetic'", schedule)
        self.densities = level_densities(levels, fraction, schedule)
        self.check("fraction", self.densities[-1] > 0, f"below 1/{levels}, so that something remains", fraction)
        modes = ("weights", "learning_rate", "finetune")
        self.check("rewind", rewind in modes, f"one of {modes}", rewind)
        fits = 0 < finetune_multiplier < float("inf")
        self.check("finetune_multiplier", fits, "above 0, finite", finetune_multiplier)
        self.check("scope", scope in ("global", "layerwise"), "'global' or 'layerwise'", scope)
        self.check("save_folder", "://" not in (save_folder or ""), "a local folder", save_folder)
        self.levels, self.rewind, self.finetune_multiplier = levels, rewind, finetune_multiplier
        self.scope: Scope = scope
        self.save_folder, self.seed = save_folder, seed
        if model is not None:
            self.check("steps", steps >= 1, "the number of updates of one training", steps)
            self.check("rewind_to", 0 <= rewind_to < steps, f"from 0 to below steps={steps}", rewind_to)
            self.steps, self.rewind_to = steps, rewind_to
            self._start(model, optimizers)
            self.follow(schedulers)

    def clear(self) -> None:
        super().clear()
        self.level = self.updates = 0
        self.results: list[dict[str, Any]] = []
        self.snapshot: dict[str, Any] = {}
        self.steps = self.rewind_to = 0  # which a host finds out later
        self._history = [packed({})]  # the masks of each level
        self._options: list[dict[str, Any]] = []  # of the optimizers, before the first update
        self._begun = 0  # the updates before the one at hand
        self._rates: Rates | None = None
        self._saved_rates: dict[str, Any] = {}

    def follow(self, schedulers: Any) -> None:
        """Has torch's schedulers, one or several or None, set back with each level; for hosts, after `bind`."""
        several = isinstance(schedulers, Iterable)
        self._rates = Rates(self.optimizers, schedulers if several else [] if schedulers is None else [schedulers])
        self._rates.saved = self._saved_rates

    @property
    def total(self) -> int:
        """The number of updates of all levels."""
        return self.steps + self.levels * (self.steps - self.rewind_to)

    def position(self, updates: int) -> int:
        """Returns where in one training, from 0 to T, one is after so many updates in all."""
        if updates < self.steps or not self.steps:
            return updates
        return self.rewind_to + (updates - self.steps) % (self.steps - self.rewind_to)

    def ended(self, updates: int) -> int | None:
        """Returns the level that ends with so many updates, if one does."""
        level, rest = divmod(updates - self.steps, self.steps - self.rewind_to)
        return level if level >= 0 and rest == 0 else None

    @property
    def level_ended(self) -> bool:
        """Whether the last update of the level has been made."""
        return self.ended(self.updates) == self.level

    @property
    def recorded(self) -> bool:
        """Whether `results` has what has ended with the last update."""
        return bool(self.results) and self.results[-1]["batch"] == self.updates

    def masks_of(self, level: int) -> Masks:
        """The masks with which that level, which has begun, was trained; on the CPU. Level 0 has none."""
        return unpacked(self._history[level])

    def __iter__(self) -> Iterator[int]:
        return self.until(self.total)

    def until(self, updates: int) -> Iterator[int]:
        """Like the iteration, but ends when so many updates have been made in all."""
        while not self._over(updates):
            self.start_update(self.updates)
            yield self.position(self.updates)
            self.updates = self._begun + 1  # also where a GradScaler has left the optimizer's step out

    def start_update(self, updates: int) -> bool:
        """Does what `before_update` does, and sets the rates and schedulers back that it was given to `follow`."""
        assert self._rates is not None, "a host, which gives no model at first, calls follow, or before_update itself"
        if updates == self.rewind_to:
            self._rates.remember()
        if begins := self.before_update(updates):
            self._rates.put_back()
        if self.rewind == "finetune" and self.level:
            self._rates.hold_constant(self.finetune_multiplier)
        self._begun = updates
        return begins

    def _over(self, updates: int) -> bool:
        if self.level_ended and not self.recorded:
            self.record()
        return self.updates >= min(updates, self.total)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        super()._after_step(optimizer, args, kwargs)
        self.updates = self._begun + 1

    def record(self, **metrics: Any) -> dict[str, Any]:
        """At the end of a level: adds it, with these metrics, to `results`, and returns what it has added."""
        about = {"level": self.level, "density": self.share_left() if self.masks else 1.0, "batch": self.updates}
        self.results.append({**about, "digest": digest(self.masks), **metrics})
        return self.results[-1]

    def before_update(self, updates: int) -> bool:
        """Does what is due before the next update, when there have been so many; returns whether a level has begun."""
        self.updates = updates
        if not self._options:  # at the first update, wherever the training has started
            self._options = options_of(self.optimizers)
            self._tell_of_zeros()
        if updates == self.rewind_to and self.rewind == "weights" and not self.snapshot:
            self.snapshot = snapshot_of(self.model)
            if self.save_folder and ranks.rank() == 0:
                saved = self.model.state_dict().items()
                tensors = {name: self.snapshot[name] for name, value in saved if isinstance(value, Tensor)}
                write_safetensors(Path(self.save_folder, "rewind.safetensors"), tensors, {"format": "pt"})
        begins = self.level_ended and updates < self.total
        if begins:
            self._next_level()
        return begins

    def _tell_of_zeros(self) -> None:
        """A network that was pruned before does not stay so in level 0. A layer that is all zero is initialized so."""
        counts = [(weight.numel(), size(weight)) for weight in self.weights.values()]
        total, zero = sum(n for n, _ in counts), sum(n - kept for n, kept in counts if kept)
        if zero > total / 100 and ranks.rank() == 0:
            text = f"{zero} of {total} weights are zero at the start; level 0 is dense, and trains them like the others"
            warnings.warn(f"{self.name}: {text}.", stacklevel=3)

    def _next_level(self) -> None:
        share = self.densities[self.level + 1]
        kept = kept_counts({name: weight.numel() for name, weight in self.weights.items()}, share, self.scope)
        masks = keep_highest(magnitude(self.weights), kept, self.masks)
        self.level += 1
        if self.rewind == "weights":
            put_back(self.model, self.snapshot)
        forget_momenta(self.optimizers)
        put_options_back(self.optimizers, self._options)
        self.prune(masks)
        seed_all((self.seed + ranks.rank() + 1_000_003 * self.level) % 2**32)
        self._history.append(packed(self.masks))
        if self.save_folder and ranks.rank() == 0:
            about = {"level": str(self.level), "density": repr(density(self.masks))}
            save_masks(Path(self.save_folder, f"level-{self.level}.safetensors"), self.masks, **about)

    def plan(self) -> dict[str, Any]:
        densities = {f"density {level}": share for level, share in enumerate(self.densities)}
        how = {"rewind": self.rewind, "finetune_multiplier": self.finetune_multiplier, "scope": self.scope}
        return {**super().plan(), "k": self.rewind_to, "T": self.steps, **how, **densities}

    def state_dict(self) -> dict[str, Any]:
        """Returns what Pruner's has, and all by which the search goes on: levels so far, and step k."""
        own = {"level": self.level, "results": [*self.results], "snapshot": self.snapshot}
        rates = {"rates": self._rates.saved} if self._rates else {}
        own |= {"history": [*self._history], "options": self._options, "updates": self.updates}
        return {**super().state_dict(), **own, **rates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        try:
            self.level, self.results, self.snapshot = state["level"], [*state["results"]], state["snapshot"]
            self._history, self._options = [*state["history"]], state["options"]
        except KeyError as error:
            raise ValueError(f"{self.name}: the checkpoint is of another algorithm; it lacks {error}") from error
        self.updates = self._begun = state.get("updates", 0)
        self._saved_rates = state.get("rates", {})
        if self._rates:
            self._rates.saved = self._saved_rates
        super().load_state_dict(state)
        if self.weights:
            self.check_place(self.updates, "steps")

    def check_place(self, updates: int, length: str) -> None:
        """Raises ValueError unless what was loaded is of this model, and of a search that has come there.

        `length` is what the length of one training is called.
        """
        levels = max(0, 1 + (updates - self.steps - 1) // (self.steps - self.rewind_to))
        if self.level != levels or self.level > self.levels:
            raise ValueError(
                f"{self.name}: the run is in level {self.level}, after {updates} batches; with these levels, rewind_to "
                f"and {length}, that is not where it would be."
            )
        shapes = {name: weight.shape for name, weight in self.model.named_parameters()}
        # Buffers may get another shape in training, and those that are not saved may come and go.
        there = {name: self.snapshot[name].shape for name in shapes.keys() & self.snapshot.keys()}
        if self.snapshot and (shapes != there or self.model.state_dict().keys() - self.snapshot.keys()):
            raise ValueError(f"{self.name}: what the checkpoint holds of step k is of another model.")
