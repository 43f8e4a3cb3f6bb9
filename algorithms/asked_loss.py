"""What a loss makes of other targets than those that it is given, asked of the loss itself.

Class indices may be exchanged for rows of probabilities only if the loss is then still the same. For torch's cross
entropy it is not where classes have weights or labels are ignored: of indices it takes a weighted mean, of rows one
over all. So, at the first batch, the loss is tried on made-up outputs with both. Where only the mean differs, the rows
are scaled to it; where the loss does not take rows at all, whoever asks must know another way.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .generators import untouched_generators
from .targets import IGNORED, check_labels, computes_own_loss, dense_targets

Loss = Callable[[Any, Tensor], Tensor]  # of outputs and targets; one number
MOST_TRIES = 32


@dataclass(frozen=True)
class KeyedLoss:
    """A loss that says itself when it has become another one, and must be asked anew: with another `key`.

    `plain` is the loss that it does nothing but call, where it is known.
    """

    function: Loss
    key: Any
    plain: Any = None

    def __call__(self, outputs: Any, target: Tensor) -> Tensor:
        return self.function(outputs, target)


def key_of(loss: Loss) -> Any:
    """What is equal for the losses of all steps, though a function inside a loop is another object at each of them.

    Of what is bound to a function, tensors count by dtype and number of dimensions, and numbers by type.
    """
    if isinstance(loss, KeyedLoss):
        return loss.key
    if isinstance(loss, partial):
        names, values = zip(*loss.keywords.items(), strict=True) if loss.keywords else ((), ())
        return key_of(loss.func), names, [_form(value) for value in (*loss.args, *values)]
    if isinstance(loss, FunctionType):
        bound = *(cell.cell_contents for cell in loss.__closure__ or ()), *(loss.__defaults__ or ())
        return loss.__code__, [_form(value) for value in (*bound, *(loss.__kwdefaults__ or {}).values())]
    return loss


def _form(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.dtype, value.ndim
    if isinstance(value, Mapping):
        return type(value), *value
    if isinstance(value, FunctionType):
        return value.__code__
    return value if callable(value) or isinstance(value, bool | str) else type(value)


class AskedLoss:
    """Remembers what a loss said, until it is another one; see `key_of`.

    The loss is tried on made-up outputs, up to some dozen times, once for each form of outputs and targets.
    """

    def __init__(self, ignore_index: int):
        self.ignore_index = ignore_index  # the label of what is not to be predicted
        self._key: Any = None
        self._answers: dict[Any, Any] = {}

    def scales_of_rows(self, loss: Loss, outputs: Tensor, *targets: Tensor) -> tuple[float | Tensor, ...] | None:
        """By what rows of probabilities in the place of `targets`, each of class indices, must be multiplied.

        None where the loss does not take them.
        """
        first = targets[0]
        how = self._ask("rows", loss, outputs, first, lambda: takes_rows(loss, outputs, first, self.ignore_index))
        if how != "scaled":
            return (1.0,) * len(targets) if how else None
        if _averages_evenly(loss, self.ignore_index):
            return tuple(each.numel() / (each.long() != self.ignore_index).sum().clamp(min=1) for each in targets)
        return tuple(_scale(loss, outputs, each, self.ignore_index) for each in targets)

    def takes_floats(self, loss: Loss, outputs: Tensor, target: Tensor) -> bool:
        """Whether integer targets, one for each output, may be floating-point numbers."""
        return self._ask("floats", loss, outputs, target, lambda: _takes_floats(loss, _made_up(outputs), target))

    def nature(self, loss: Loss, outputs: Tensor, target: Tensor) -> Literal["rows", "binary"] | None:
        """What `target`, a number for each output, is to the loss; see `nature_of_targets`."""
        return self._ask("nature", loss, outputs, target, lambda: nature_of_targets(loss, outputs, target))

    def uses_own(self, loss: Loss, outputs: Any, target: Tensor) -> bool:
        """Whether the loss is made of the "loss" that the model's outputs bring."""
        return computes_own_loss(outputs) and self._ask(
            "own", loss, outputs["logits"], target, lambda: _uses_own(loss, outputs, target)
        )

    def _ask(self, what: str, loss: Loss, outputs: Tensor, target: Tensor, ask: Callable[[], Any]) -> Any:
        key = key_of(loss)
        if key != self._key:
            self._key, self._answers = key, {}
        question = (what, outputs.ndim, outputs.shape[1:2], target.dtype, target.ndim)
        if question not in self._answers:
            # Made-up targets are no reason to warn, and nobody's random numbers may move.
            devices = [outputs.device] if outputs.is_cuda else []
            with warnings.catch_warnings(), untouched_generators(devices):
                warnings.simplefilter("ignore")
                self._answers[question] = ask()
        return self._answers[question]


def takes_rows(
    loss: Loss, outputs: Tensor, target: Tensor, ignore_index: int
) -> Literal["as they are", "scaled"] | None:
    """Whether rows of zeros and ones are to the loss what class indices are, scaled or not; None if they are not.

    Raises ValueError where `target` holds labels that are no classes.
    """
    classes = outputs.shape[1]
    check_labels(target.cpu(), classes, ignore_index)

    def agree(outputs: Tensor, target: Tensor, scaled: bool) -> bool:
        rows = dense_targets(outputs, target, ignore_index=ignore_index)
        if scaled:
            try:
                rows = rows * _scale(loss, outputs, target, ignore_index)
            except Exception:  # of many kinds, from many losses
                return False
        return _same(loss, (outputs, target), (outputs, rows))

    # Every class has its turn, as one alone may have a weight; and so have the labels at hand.
    made_up = _made_up(outputs)
    order = torch.arange(target.numel(), device=target.device)
    tries = min(-(-classes // max(target.numel(), 1)), MOST_TRIES)
    labels = [((order + i * len(order)) % classes).view_as(target).to(target.dtype) for i in range(tries)]
    labels += [target] if (target.long() != ignore_index).any() else []
    if not _minds_shares(loss, outputs, labels[0]):
        return None
    # An index that a loss does not know is an error on the CPU, and the end of the process on a GPU.
    ignored = labels[0].cpu().clone()
    if int(torch.tensor(ignore_index).to(target.dtype)) == ignore_index:  # which uint8 cannot hold
        ignored.view(-1)[:1] = ignore_index
    if all(agree(made_up, each, False) for each in labels) and agree(made_up.cpu(), ignored, False):
        return "as they are"
    return "scaled" if all(agree(made_up, each, True) for each in labels) else None


def _minds_shares(loss: Loss, outputs: Tensor, target: Tensor) -> bool:
    """Whether rows of shares are to the loss other than rows of zeros and ones, of which it may make indices again."""
    rows = dense_targets(outputs, target)
    one, other = (rows.lerp(rows.roll(1, 1), share) for share in (0.1, 0.4))
    return not _same(loss, (0.1 + 0.8 * rows, one), (0.1 + 0.8 * rows, other), tolerance=0.0)


def nature_of_targets(loss: Loss, outputs: Tensor, target: Tensor) -> Literal["rows", "binary"] | None:
    """What targets, a number for each output, are to the loss.

    "rows" of probabilities where it depends on the differences of logits only, as after a softmax; "binary" where each
    target weighs, linearly, one pull of its output up and one down; None for another, such as a squared error.
    """
    made_up = _made_up(outputs)
    if target.shape == outputs.shape and outputs.ndim > 1 and outputs.shape[1] > 1:
        rows = made_up.flip(0, 1)
        if _same(loss, (made_up, rows), (made_up + 1, rows)):
            return "rows"
    values, pulls = [], []
    for each in (0.0, 0.5, 1.0):
        made_up = made_up.detach().requires_grad_()
        try:
            with torch.enable_grad():
                value = loss(made_up, torch.full_like(target, each, dtype=torch.float32))
                pulls.append(torch.autograd.grad(value, made_up)[0])
        except Exception:  # of many kinds, from many losses
            return None
        values.append(value.detach())
    linear = torch.isclose(values[1], (values[0] + values[2]) / 2, rtol=1e-4)
    apart = (pulls[0] >= 0).all() & pulls[0].any() & (pulls[2] <= 0).all() & pulls[2].any()
    return "binary" if linear & apart else None


def _made_up(outputs: Tensor) -> Tensor:
    """Of the shape of `outputs`, within (0, 1): fit for logits and for probabilities, and alike nowhere."""
    generator = torch.Generator(outputs.device).manual_seed(0)
    noise = 2 * torch.randn(outputs.shape, generator=generator, device=outputs.device)
    return noise.softmax(1) if noise.ndim > 1 and noise.shape[1] > 1 else noise.sigmoid()


def _averages_evenly(loss: Any, ignore_index: int) -> bool:
    """Whether the loss is torch's cross entropy, for certain without weights: it need not be asked at each step."""
    loss = loss.plain if isinstance(loss, KeyedLoss) else loss
    if type(loss) is nn.CrossEntropyLoss:
        return loss.weight is None and loss.reduction == "mean" and loss.ignore_index == ignore_index
    return loss is F.cross_entropy and ignore_index == IGNORED


@torch.no_grad()
def _scale(loss: Loss, outputs: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """The loss of class indices over that of rows, where all classes are as likely: it depends on the targets alone."""
    even = torch.full((), 1 / outputs.shape[1], device=outputs.device).expand(outputs.shape)
    rows = dense_targets(outputs, target, ignore_index=ignore_index)
    return (loss(even, target) / loss(even, rows)).nan_to_num(1.0)  # where all are ignored it is 0 / 0


def _takes_floats(loss: Loss, outputs: Tensor, target: Tensor) -> bool:
    return _same(loss, (outputs, target), (outputs, target.float()))


@torch.no_grad()
def _same(loss: Loss, *arguments: tuple[Tensor, Tensor], tolerance: float = 1e-4) -> bool:
    values = []
    try:
        for each in arguments:
            torch.manual_seed(0)  # what draws, draws the same
            values.append(loss(*each))
        return bool(torch.isclose(*values, rtol=tolerance).all())
    except Exception:  # of many kinds, from many losses
        return False


@torch.no_grad()
def _uses_own(loss: Loss, outputs: Any, target: Tensor) -> bool:
    own, values = outputs["loss"], []
    for value in (own, own + 1):
        outputs["loss"] = value
        values.append(loss(outputs, target))
    outputs["loss"] = own
    return not torch.isclose(*values).all()
