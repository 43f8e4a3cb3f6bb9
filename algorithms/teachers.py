"""Teachers: trained networks that are only asked, in evaluation mode and without gradients, for their logits."""

import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .checkpoints import load_weights
from .generators import untouched_generators
from .labelled_positions import HeadPositions, has_masked_lm_head
from .shown import Shown

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # in which inputs may be


def load_teacher(path: str | PathLike[str], module: nn.Module | None = None) -> nn.Module:
    """A teacher with the weights of a file or folder, from which nothing is executed.

    Args:
        path: a checkpoint (of Composer, of Lightning, or a dict with "model"), a state dict or safetensors, whose
            weights `module` gets; or, without `module`, a Hugging Face folder (or name on the hub), which tells its own
            model.
        module: the network, or a `ComposerModel` around it, as it was when it was saved: after the same surgery, too.

    Raises FileNotFoundError and ValueError with what is wrong with the file, or does not fit. No global random
    generator moves.
    """
    if module is not None:
        load_weights(module, path)
        return module
    folder = Path(path)
    if folder.is_file() or (folder.is_dir() and not (folder / "config.json").is_file()):
        raise ValueError(f"{path} does not tell its model: give the module too, load_teacher(path, module)")
    import transformers

    try:
        with untouched_generators([]):
            config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
            name = (config.architectures or ["no architecture"])[0]
            kind: Any = getattr(transformers, name, None)
            if kind is None:
                raise ValueError(f"its config.json names {name}, which transformers does not have")
            teacher, info = kind.from_pretrained(path, config=config, output_loading_info=True, trust_remote_code=False)
    except Exception as error:  # of many kinds, from many files
        raise ValueError(f"{path} cannot be loaded as a teacher: {' '.join(str(error).split())}") from error
    if wrong := [str(item) for item in (*info["missing_keys"], *info["mismatched_keys"])]:
        raise ValueError(f"{path} lacks weights of {name}, or has them in another shape: {', '.join(wrong[:3])}")
    return teacher.float()  # newer transformers leave it in the precision of the file; `teacher_dtype` chooses one


def logits_of(outputs: Any) -> Tensor:
    """The logits among a model's outputs: the outputs themselves, `logits` of a mapping, the first tensor with classes.

    Raises TypeError where there is none.
    """
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping) and isinstance(outputs.get("logits"), Tensor):
        return outputs["logits"]
    values = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, tuple | list) else ()
    found = [value for value in values if isinstance(value, Tensor) and value.ndim > 1]
    if not found or (isinstance(outputs, Mapping) and len(found) > 1):
        names = f" with {', '.join(map(str, outputs))}" if isinstance(outputs, Mapping) else ""
        raise TypeError(f"Distillation finds no logits in a {type(outputs).__name__}{names}; expected 'logits' there.")
    return found[0]


def rows(
    logits: Tensor, index: Tensor | None = None, labels: Tensor | None = None, classes_last: bool = True
) -> Tensor:
    """Logits of any shape as `(R, C)`, a row for each sample or position, or for those positions in `index` alone.

    Args:
        logits: `(N, C)`, `(N, ..., C)` as of language models, or `(N, C, ...)` as of torch's losses on images.
        index: `(R,)`, among the flattened positions `(N, ...)`.
        labels: `(N, ...)`, tells which of the dimensions holds the classes; where it cannot, `classes_last` does.
    """
    if logits.ndim > 2:
        shape = None if labels is None else labels.shape
        last, second = shape == logits.shape[:-1], shape == logits.shape[:1] + logits.shape[2:]
        if not (classes_last if last == second else last):
            logits = logits.movedim(1, -1)
        logits = logits.flatten(0, -2)
        return logits if index is None else logits[index]
    return logits


def is_hugging_face(module: nn.Module) -> bool:
    """Whether it is a model of transformers, which is not imported for that."""
    transformers: Any = sys.modules.get("transformers")  # without which there is no such model
    return transformers is not None and isinstance(module, transformers.PreTrainedModel)


def ask_by_name(
    module: nn.Module, batch: Mapping[str, Any], labels: Any = "labels", known: Collection[str] | None = None
) -> Any:
    """The outputs of a module on the entries of a batch that its `forward` knows, or `known`, but for the labels.

    An encoder-decoder of Hugging Face's makes of the labels what its decoder sees, where the batch does not hold that.
    """
    known = inspect.signature(module.forward).parameters if known is None else known
    given = {name: value for name, value in batch.items() if name in known and name != labels}
    shifted: Any = getattr(module, "prepare_decoder_input_ids_from_labels", None)
    if shifted and labels in batch and "decoder_inputs_embeds" not in given:
        given.setdefault("decoder_input_ids", shifted(labels=batch[labels]))
    return module(**given)


def ask(module: nn.Module, inputs: Any) -> Any:
    """The outputs of a module: a Hugging Face model takes a mapping by its names, all else is given as it is."""
    return ask_by_name(module, inputs) if isinstance(inputs, Mapping) and is_hugging_face(module) else module(inputs)


class Teacher(Shown):
    """A frozen module that is asked for logits. It is taken over: set to evaluation, and moved where it is needed.

    Args:
        module: the network.
        ask: a function of the module and of a loop's inputs that gives the module's outputs.
        dtype: of its weights and its arithmetic, by torch's name; None: weights as they are, and the autocast that is
            on. Without one, floating-point inputs are given in the precision of the weights.
        compile: with `torch.compile`.
        offload: keep it on the CPU while it is not asked.

    Raises ValueError for weights that are not finite, as those of a training that diverged.
    """

    def __init__(
        self,
        module: nn.Module,
        ask: Callable[[nn.Module, Any], Any] = ask,
        dtype: str | None = None,
        compile: bool = False,
        offload: bool = False,
    ):
        if not all(bool(parameter.isfinite().all()) for parameter in module.parameters() if parameter.numel()):
            raise ValueError(f"Distillation: teachers: a {type(module).__name__} has weights that are not finite.")
        self.module, self.ask, self.offload = module.eval().requires_grad_(False), ask, offload
        self.dtype: torch.dtype | None = getattr(torch, dtype) if dtype else None
        self._head = HeadPositions(module) if has_masked_lm_head(module) else None
        if self.dtype:
            module.to(self.dtype)
        self._takes = next((p.dtype for p in module.parameters() if p.dtype in FLOATS), None)
        if compile:
            module.compile()
        # Where its tensors were before it was moved to the device.
        self._home: list[tuple[Tensor, Tensor]] = []

    def enter(self, device: torch.device) -> None:
        """Move to the student's device, if it is elsewhere."""
        if self._home:
            return
        for tensor in chain(self.module.parameters(), self.module.buffers()):
            self._home.append((tensor, tensor.data))
            if self.offload and tensor.device.type == "cpu" and device.type == "cuda":
                self._home[-1] = (tensor, tensor.data.pin_memory())
            tensor.data = self._home[-1][1].to(device, non_blocking=True)

    def leave(self) -> None:
        """Back where it came from; the device's memory is free again."""
        for tensor, home in self._home:
            tensor.data = home
        self._home.clear()

    def __call__(
        self,
        inputs: Any,
        index: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        device: torch.device,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> Tensor:
        """Logits `(R, C)` on inputs, which stay as they are: of every sample, or of the positions in `index`.

        `precision` makes the context that the student's forward pass has; by default the autocast that is on, if any.
        """
        self.enter(device)
        if self.module.training:
            self.module.eval()
        if self._head:
            self._head.index = index
        try:
            with torch.no_grad(), torch.autocast(device.type, enabled=False) if self.dtype else precision():
                if (takes := self._takes) and not torch.is_autocast_enabled(device.type):
                    inputs = tree_map(lambda x: x.to(takes) if _is_floating(x) else x, inputs)
                outputs = self.ask(self.module, inputs)
        finally:
            if self._head:
                self._head.index = None
        return rows(logits_of(outputs), index, labels, not isinstance(outputs, Tensor))


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
