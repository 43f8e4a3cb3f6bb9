"""Teachers: trained networks that are only asked, in evaluation mode and without gradients, for their logits."""

import inspect
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from composer.core import State, get_precision_context
from composer.models import ComposerModel, HuggingFaceModel
from composer.utils.batch_helpers import batch_get
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .batches import labels_key
from .checkpoints import load_weights
from .generators import untouched_generators
from .labelled_positions import HeadPositions, has_masked_lm_head


def load_teacher(path: str | PathLike[str], module: nn.Module | None = None) -> nn.Module:
    """A teacher with the weights of a file or folder, from which nothing is executed.

    Args:
        path: a Composer checkpoint, a state dict or safetensors, whose weights `module` gets; or, without `module`, a
            Hugging Face folder (or name on the hub), which tells its own model.
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
    return teacher


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


class Teacher:
    """A frozen module that is asked for logits. It is taken over: set to evaluation, and moved where it is needed.

    Args:
        module: a `ComposerModel`, which takes the batch; a Hugging Face model, which takes the entries that it knows
            but for the labels; or another module, which takes what stands at `input_key`.
        input_key: as in `batch_get`; for a batch that is a mapping, the default 0 means all of it.
        target_key: where labels stand; for a batch that is a mapping, the default 1 means "labels".
        dtype: of its weights and its arithmetic, by torch's name; None: weights as they are, the student's precision.
        compile: with `torch.compile`.
        offload: keep it on the CPU while it is not asked.

    Raises ValueError for weights that are not finite, as those of a training that diverged.
    """

    def __init__(
        self,
        module: nn.Module,
        input_key: Any = 0,
        target_key: Any = 1,
        dtype: str | None = None,
        compile: bool = False,
        offload: bool = False,
    ):
        if not all(bool(parameter.isfinite().all()) for parameter in module.parameters() if parameter.numel()):
            raise ValueError(f"Distillation: teachers: a {type(module).__name__} has weights that are not finite.")
        self.module = module.eval().requires_grad_(False)
        plain = isinstance(module, HuggingFaceModel) and type(module).forward is HuggingFaceModel.forward
        self.network: nn.Module = module.model if plain else module  # type: ignore[assignment]
        transformers: Any = sys.modules.get("transformers")  # without which there is no such model
        self._by_name = plain or (transformers is not None and isinstance(module, transformers.PreTrainedModel))
        self.input_key, self.target_key, self.offload = input_key, target_key, offload
        self.dtype: torch.dtype | None = getattr(torch, dtype) if dtype else None
        self._known: set[str] = (
            module.model_forward_args  # type: ignore[assignment]
            if isinstance(module, HuggingFaceModel)
            else set(inspect.signature(self.network.forward).parameters)
        )
        self._head = HeadPositions(self.network) if has_masked_lm_head(self.network) else None
        if self.dtype:
            module.to(self.dtype)
        if compile:
            self.network.compile()
        # Where its tensors were before it was moved to the device.
        self._home: list[tuple[Tensor, Tensor]] = []

    def enter(self, state: State) -> None:
        """Move to the student's device and memory format, if it is elsewhere."""
        if self._home:
            return
        device: Any = state.device._device
        if any(_is_channels_last(parameter) for parameter in state.model.parameters()):
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
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

    def __call__(self, state: State, index: Tensor | None, labels: Tensor | None) -> Tensor:
        """Logits `(R, C)` on `state.batch`, which stays as it is: of every sample, or of the positions in `index`."""
        if self.module.training:
            self.module.eval()
        batch, precision = state.batch, get_precision_context(state.precision, state.precision_config)
        if dtype := self.dtype:
            batch = tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, batch)
            precision = torch.autocast(state.device._device.type, enabled=False)  # type: ignore[union-attr]
        if self._head:
            self._head.index = index
        try:
            with torch.no_grad(), precision if precision is not None else nullcontext():
                outputs = self._forward(batch)
        finally:
            if self._head:
                self._head.index = None
        return rows(logits_of(outputs), index, labels, not isinstance(outputs, Tensor))

    def _forward(self, batch: Any) -> Any:
        if isinstance(batch, Mapping) and self._by_name:
            key = labels_key(batch, self.target_key)
            return self.network(**{name: batch[name] for name in batch if name in self._known and name != key})
        whole = isinstance(batch, Tensor) or (isinstance(batch, Mapping) and self.input_key == 0)
        return self.module(
            batch if whole or isinstance(self.module, ComposerModel) else batch_get(batch, self.input_key)
        )


def _is_channels_last(weight: Tensor) -> bool:
    return weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
