"""LotteryTicket in Hugging Face's Trainer."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerControl, TrainerState, TrainingArguments

from ..progress import moment
from ..pruning.lottery import Lottery, Rewind
from ..pruning.masks import Masks, Scope
from .host import Run
from .pruning import Pruning


class LotteryTicket(Pruning):
    """Trains to the end, prunes the weights of least magnitude, rewinds to step k, trains to the end again, and so on.

        ticket = LotteryTicket(levels=5, fraction=0.2, steps=10_000, rewind_to="500ba")
        Trainer(model, TrainingArguments(max_steps=ticket.total, ...), callbacks=[ticket], ...)

    All levels are one training of the Trainer's, whose `max_steps` must be `total`. The learning rate goes from 0 to T,
    and in each further level from k to T: a schedule by `lr_scheduler_type` is made one of T updates, with the warmup
    that the arguments give for T; one of your own must be. The data go on in their own order.

    With an `eval_strategy` the model is evaluated at the end of each level, before the next pruning. `results` then has
    a dict per level, as `Lottery` has it, with the metrics; all of this, and step k, is in the checkpoint.

    Args:
        levels, fraction, schedule: how often and how much to prune; see `Lottery`.
        steps: T, the number of updates of one training.
        rewind_to: k, in ba.
        rewind, finetune_multiplier, scope, save_folder: see `Lottery`.
        include, exclude, classifier: which weights; see `prunable_weights`.

    Whoever stops the training, such as EarlyStoppingCallback, stops all levels, and `load_best_model_at_end` is
    refused, as it would choose among levels.
    """

    def __init__(
        self,
        levels: int,
        fraction: float = 0.2,
        schedule: Literal["geometric", "arithmetic"] = "geometric",
        steps: int = 0,
        rewind_to: str = "0ba",
        rewind: Rewind = "weights",
        finetune_multiplier: float = 0.01,
        scope: Scope = "global",
        save_folder: str | None = None,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        classifier: bool = True,
    ):
        self._make = partial(
            Lottery,
            levels=levels,
            fraction=fraction,
            schedule=schedule,
            rewind=rewind,
            finetune_multiplier=finetune_multiplier,
            scope=scope,
            save_folder=save_folder,
            include=include,
            exclude=exclude,
            classifier=classifier,
            name=self.name,
        )
        self.pruner = self.lottery = self._make(None, (), None)
        time = moment(rewind_to)
        self.lottery.check("steps", type(steps) is int and steps >= 1, "the number of updates of one training", steps)
        self.lottery.check("rewind_to", time and time.unit == "ba", "in ba", rewind_to)
        assert time is not None
        self.lottery.check("rewind_to", time.value < steps, f"below steps={steps}", rewind_to)
        self.lottery.steps, self.lottery.rewind_to = steps, int(time.value)
        self._updates: Iterator[int] = iter(())
        self._loaded: Mapping[str, Any] | None = None

    @property
    def total(self) -> int:
        """The number of updates of all levels, which the Trainer's `max_steps` must be."""
        return self.lottery.total

    @property
    def level(self) -> int:
        return self.lottery.level

    @property
    def results(self) -> list[dict[str, Any]]:
        return self.lottery.results

    def masks_of(self, level: int) -> Masks:
        """The masks with which that level, which has begun, was trained; on the CPU. Level 0 has none."""
        return self.lottery.masks_of(level)

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        super().on_init_end(args, state, control, **parts)
        if args.load_best_model_at_end:
            raise ValueError(f"{self.name}: load_best_model_at_end chooses among the levels; leave it out.")

    def begin(self, run: Run) -> None:
        steps, rewind_to = self.lottery.steps, self.lottery.rewind_to
        if run.state.max_steps != self.total:
            what = f"{steps} + {len(self.lottery.densities) - 1} * ({steps} - {rewind_to})"
            raise ValueError(
                f"{self.name}: max_steps must be {self.total}, which is {what}, as ticket.total tells; it is "
                f"{run.state.max_steps}."
            )
        self._loaded = None
        _as_long_as(run, steps)
        self.pruner = self.lottery = self._make(
            run.model, run.optimizer, run.scheduler, steps=steps, rewind_to=rewind_to, seed=run.args.seed
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._loaded = state
        self.lottery.load_state_dict(dict(state))

    def is_due_before(self, run: Run) -> bool:
        return self._loaded is None

    def attach(self, run: Run) -> None:
        self.hold_gradients(run)
        self._updates = iter(self.lottery)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        next(self._updates)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        if self.lottery.level_ended and args.eval_strategy != "no":
            control.should_evaluate = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        metrics = {name: value for name, value in parts["metrics"].items() if isinstance(value, int | float)}
        if self.lottery.recorded:  # of several datasets
            self.results[-1] = {**metrics, **self.results[-1]}
        elif self.lottery.level_ended:
            self.lottery.record(**metrics)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        if state.global_step == self.total:
            next(self._updates, None)  # which records the last level, if nobody has
        super().on_train_end(args, state, control, **parts)


def _as_long_as(run: Run, steps: int) -> None:
    """Makes the schedule that the Trainer has made for all levels one of a single training."""
    scheduler = run.scheduler
    made = [each for each in getattr(scheduler, "lr_lambdas", []) if isinstance(each, partial)]
    if not (isinstance(scheduler, LambdaLR) and made):
        return
    kwargs: Any = run.args.lr_scheduler_kwargs or {}
    given = {name for name, value in kwargs.items() if value is not None}
    of_all, of_one = (_lengths(run, made[0].keywords, length) for length in (run.state.max_steps, steps))
    told = of_all.keys() & made[0].keywords.keys() - given
    if any(each.keywords.get(name) != of_all[name] for each in made for name in told):
        return  # one of the user's own
    for each in made:
        each.keywords.update({name: of_one[name] for name in told})
    if run.state.global_step == 0:
        rates = zip(scheduler.base_lrs, scheduler.lr_lambdas, run.optimizer.param_groups, strict=True)
        for rate, factor, group in rates:
            group["lr"] = rate * factor(0)
        scheduler._last_lr = [group["lr"] for group in run.optimizer.param_groups]


def _lengths(run: Run, keywords: Mapping[str, Any], steps: int) -> dict[str, int]:
    """What a schedule of so many updates is told, where the user tells nothing else."""
    warmup = run.args.get_warmup_steps(steps)
    return {
        "num_training_steps": steps,
        "num_warmup_steps": warmup,
        "num_stable_steps": steps - warmup - keywords.get("num_decay_steps", 0),
        "timescale": warmup or 10_000,
    }
