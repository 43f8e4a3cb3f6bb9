"""What the callbacks have in common as guests of Hugging Face's Trainer (transformers 4.46 and later)."""

import math
import uuid
from collections.abc import Iterable, Mapping, Sized
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from accelerate.state import AcceleratorState
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..checkpoints import some
from ..progress import Moment, Progress
from ..shown import Shown
from ..validation import misplaced
from ..whole_files import written_whole

_STATE = "accelerando"  # under this name TrainerState tells of our files
_hooks: WeakKeyDictionary[nn.Module, dict[str, list[RemovableHandle]]] = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class Run:
    """One call of `Trainer.train`: what the Trainer gives its callbacks when it begins.

    `model` and `optimizer` are what Accelerate's wrappers, such as DDP, hold.
    """

    args: TrainingArguments
    state: TrainerState
    model: Any
    optimizer: Optimizer
    scheduler: Any
    loader: Any

    def progress(self, updates: int | None = None) -> Progress:
        """Returns how far the training has come, or had after so many updates.

        Samples and tokens are nobody's to count here, and stay 0.
        """
        done = self.state.global_step if updates is None else updates
        return Progress.after(done, self.state.max_steps, self.per_epoch)

    @property
    def per_epoch(self) -> int | None:
        """The updates of an epoch; None of a stream, whose length nobody knows."""
        batches = len(self.loader) if isinstance(self.loader, Sized) and _has_length(self.loader) else 0
        return math.ceil(batches / self.args.gradient_accumulation_steps) or None

    def autocast(self) -> AbstractContextManager[Any]:
        """Makes the context in which the Trainer has the model compute: hooks run outside of it."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(AcceleratorState().mixed_precision)
        return torch.autocast(self.model.device.type, dtype, enabled=dtype is not None)


class Technique(Shown, TrainerCallback):
    """The base of a technique's callback, of which a Trainer holds one.

    What `state_dict` gives goes with each checkpoint, as a file in its folder, and comes back by
    `Trainer.train(resume_from_checkpoint=...)`. The checkpoint is looked for where it was written and in `output_dir`;
    of one in another place `TrainingArguments(resume_from_checkpoint=...)` tells too.

    Subclasses say what they do before the training's state is there (`begin`) and after (`start`).
    """

    run: Run | None = None
    moments: tuple[Moment, ...] = ()

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def state_key(self) -> str:
        """What Lightning asks of a callback at first. Raises TypeError."""
        raise misplaced(self, "Hugging Face", "Lightning")

    @property
    def match(self) -> Any:
        """What Composer asks an algorithm at first. Raises TypeError."""
        raise misplaced(self, "Hugging Face", "Composer")

    run_event = match  # what it asks a callback

    def counted(self, moments: Iterable[Moment]) -> None:
        """Keeps the technique's moments, to refuse those that a training cannot tell, when it begins.

        Raises ValueError for moments in samples or tokens, which no Trainer tells.
        """
        self.moments = (*moments,)
        if odd := [str(moment) for moment in self.moments if moment.unit in ("sp", "tok")]:
            raise ValueError(f"{self.name}: {some(odd)} cannot be told here; give ba, ep or dur.")

    def begin(self, run: Run) -> None:
        """When a training begins; it may not be the first one."""

    def start(self, run: Run) -> None:
        """Then, when the state of the training that is gone on with is loaded, if there is one."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes what `state_dict` has given; it is not asked for where that was nothing."""

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        self._refuse_split(args)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        self._refuse_split(args)
        optimizer, model = parts["optimizer"], parts["model"]
        self.run = run = Run(
            args=args,
            state=state,
            model=getattr(model, "_orig_mod", model),
            optimizer=getattr(optimizer, "optimizer", optimizer),
            scheduler=parts["lr_scheduler"],
            loader=parts["train_dataloader"],
        )
        self._refuse_epochs(run)
        at_work: list[Technique] = vars(state).setdefault("_accelerando", [])
        if twin := next((other for other in at_work if self.excludes(other)), None):
            raise ValueError(f"{self.name}: the Trainer was given {twin.name} too; keep one of the two.")
        at_work.append(self)
        self.begin(run)
        kept: Any = state.stateful_callbacks
        known = kept.setdefault(_STATE, _told())
        if state.global_step and self.name in known["techniques"]:
            self.load_state_dict(self._found(known))
        if type(self).state_dict is not Technique.state_dict:
            for names, value in (("techniques", self.name), ("folders", str(output_folder(args).absolute()))):
                if value not in known[names]:
                    known[names].append(value)
        self.start(run)

    def excludes(self, other: "Technique") -> bool:
        """Whether the two cannot be in one training."""
        return type(other) is type(self)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        if not args.should_save or not (content := self.state_dict()):
            return
        folder = output_folder(args) / f"checkpoint-{state.global_step}"
        if not folder.is_dir():
            raise ValueError(
                f"{self.name}: there is no checkpoint in {folder}; a search of hyperparameters has others."
            )
        with written_whole(folder / self._file) as path:
            kept: Any = state.stateful_callbacks
            torch.save({"run": kept[_STATE]["run"], "state": content}, path)

    @property
    def _file(self) -> str:
        return f"{_STATE}-{self.name}.pt"

    def _found(self, known: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the checkpoint's run has left. The Trainer does not tell where the checkpoint is."""
        assert self.run
        args, step = self.run.args, self.run.state.global_step
        folders = [Path(folder, f"checkpoint-{step}") for folder in (*reversed(known["folders"]), output_folder(args))]
        if isinstance(args.resume_from_checkpoint, str):
            folders.insert(0, Path(args.resume_from_checkpoint))
        for folder in folders:
            if (folder / self._file).is_file():
                content = torch.load(folder / self._file, map_location="cpu", weights_only=True)
                if content["run"] == known["run"]:
                    return content["state"]
        hint = "tell where it is by TrainingArguments(resume_from_checkpoint=...), or take an earlier one"
        there = some([*map(str, folders)])
        raise ValueError(f"{self.name}: the checkpoint of step {step} has no {self._file} in {there}; {hint}.")

    def _refuse_epochs(self, run: Run) -> None:
        """Raises ValueError for a moment after the first in ep, where epochs have no length and it would never come."""
        never = [str(moment) for moment in self.moments if moment.unit == "ep" and moment.value]
        if never and run.per_epoch is None:
            hint = "the training data have no length, as an IterableDataset; give updates (ba)"
            raise ValueError(f"{self.name}: when {some(never)} comes cannot be told, as {hint}.")

    def _refuse_split(self, args: TrainingArguments) -> None:
        kind = AcceleratorState().distributed_type.value if AcceleratorState._shared_state else ""
        for name, given in (("FSDP", args.fsdp), ("DEEPSPEED", args.deepspeed), ("MEGATRON_LM", False)):
            if given or kind == name:
                raise ValueError(
                    f"{self.name} does not work on weights that {name} splits or holds; use DDP (torchrun)."
                )


def output_folder(args: TrainingArguments) -> Path:
    """Where the Trainer writes, as its arguments always tell once it is made."""
    return Path(str(args.output_dir))


def _told() -> dict[str, Any]:
    """What `TrainerState` keeps, in the form that it wants of callbacks."""
    return {"args": {}, "attributes": {}, "run": uuid.uuid4().hex, "techniques": [], "folders": []}


def _has_length(loader: Sized) -> bool:
    try:
        return len(loader) >= 0
    except TypeError:  # of a dataset that is a stream
        return False


def install(model: nn.Module, owner: str, handles: Iterable[RemovableHandle] = ()) -> None:
    """Keeps the hooks of `owner` on a model in place of those that a training which was broken off has left."""
    of_model = _hooks.setdefault(model, {})
    for handle in of_model.pop(owner, []):
        handle.remove()
    of_model[owner] = [*handles]


def trains(model: nn.Module) -> bool:
    """Whether a forward pass is one of the training's own."""
    return model.training and torch.is_grad_enabled()
