"""The straight line between the weights of two networks, along which all of their layers move or some; and its length.

    W_alpha = (1 - alpha) * W_a + alpha * W_b

as in Frankle et al., "Linear Mode Connectivity and the Lottery Ticket Hypothesis" (arXiv 1912.05671), and layer by
layer in Vlaar and Frankle, "What Can Linear Interpolation of Neural Network Loss Landscapes Tell Us?" (arXiv
2106.16004). A state is a mapping of tensors by name, as `state_dict()` gives it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from ..checkpoints import some
from ..validation import check

State = Mapping[str, Tensor]
Path = Callable[[float], dict[str, Tensor]]

_STATISTICS = ("*running_mean", "*running_var")  # of batch norm, by the names that torch gives them


def interpolate(
    a: State,
    b: State,
    alpha: float,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    fixed: State | None = None,
    masks: State | None = None,
) -> dict[str, Tensor]:
    """Returns the state at `alpha` of the line from `a` to `b`; see `linear_path`, which checks the ends only once."""
    return linear_path(a, b, include, exclude, fixed, masks)(alpha)


def linear_path(
    a: State,
    b: State,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    fixed: State | None = None,
    masks: State | None = None,
    device: torch.device | str | None = None,
) -> Path:
    """Returns the function that gives the state at each alpha of the line from `a` (alpha 0) to `b` (alpha 1).

    Both ends come out bit for bit. Floating-point tensors are interpolated, buffers such as the statistics of batch
    norm too. Integers, such as counters, are never averaged: they are those of the nearer end, in the middle those of
    `b`. An alpha below 0 or above 1 extrapolates. The states are copied here, so an end may be the `state_dict()` of
    a model that changes later; what the function returns is nobody's to write.

    Args:
        include, exclude: patterns of the names of what moves (`*` any text, `?` any letter), such as ``layer1.*``.
        fixed: the state whose tensors all others keep: a layer-wise path with the others at their final values (`b`,
            which it is by default), or at their initial ones.
        masks: bool tensors by name, of pruned networks. Ends with a weight that is not zero where its mask prunes are
            refused; so whole the path has the support of the masks.
        device: where the states are held; by default where each tensor of `a` is.

    Raises ValueError for states that differ in names, shapes or types of numbers, or that hold what is no tensor, for a
    pattern that fits no name, and for masks that do not fit.
    """
    others = b if fixed is None else fixed
    check_alike(a, b, "the ends of the path")
    moving = chosen(a, include, exclude)
    everything = len(moving) == len(a)
    check("linear_path", "fixed", fixed is None or not everything, "given beside include or exclude alone", "a state")
    check_alike(a, others, "an end and fixed")
    for name, state in {"a": a, "b": b, "fixed": others}.items() if masks else ():
        _check_masked(name, state, masks or {})

    def copied(state: State, names: Sequence[str]) -> dict[str, Tensor]:
        return {name: state[name].detach().to(device or a[name].device, copy=True) for name in names}

    start, end = copied(a, moving), copied(b, moving)
    rest = copied(others, [name for name in a if name not in start])

    def at(alpha: float) -> dict[str, Tensor]:
        check("linear_path", "alpha", math.isfinite(alpha), "a finite number", alpha)
        nearer = start if alpha < 0.5 else end
        if alpha in (0, 1):
            moved = nearer
        else:
            moved = {
                name: torch.lerp(value, end[name], alpha) if is_averaged(value) else nearer[name]
                for name, value in start.items()
            }
        return {name: moved[name] if name in moved else rest[name] for name in a}

    return at


def support_mismatch(a: State, b: State, masks: State | None = None) -> list[str]:
    """Returns the names of the weights that are zero in other places in one end than in the other.

    They are looked for among the tensors of two dimensions or more, as biases may begin at zero. With `masks` it
    returns the names of those that in an end are not zero where the mask prunes.
    """
    check_alike(a, b, "the ends of the path")
    if masks is not None:
        return [name for name in masks if _held_outside(a, name, masks) or _held_outside(b, name, masks)]
    weights = [name for name, value in a.items() if is_averaged(value) and value.dim() > 1]
    return [name for name in weights if bool(((a[name] == 0) != (b[name] == 0).to(a[name].device)).any())]


def distances(
    a: State, b: State, include: Sequence[str] = ("*",), exclude: Sequence[str] | None = None
) -> dict[str, float]:
    """Returns the L2 distance of each floating-point tensor between two states, by name.

    Patterns choose among them; by default `exclude` leaves out the running statistics of batch norm.
    """
    check_alike(a, b, "the states")
    excluded = tuple(p for p in _STATISTICS if any(fnmatchcase(n, p) for n in a)) if exclude is None else exclude
    names = [name for name in chosen(a, include, excluded) if is_averaged(a[name])]

    def length(name: str) -> float:
        here, there = a[name].detach(), b[name].detach().to(a[name].device)
        return torch.linalg.vector_norm(here.to(torch.promote_types(here.dtype, torch.float64)) - there).item()

    return {name: length(name) for name in names}


def distance(a: State, b: State, include: Sequence[str] = ("*",), exclude: Sequence[str] | None = None) -> float:
    """Returns the L2 distance between two states, over all that `distances` tells apart.

    A weight that stands under two names, as a tied embedding does, counts twice; `exclude` can name one of them.
    """
    return math.hypot(*distances(a, b, include, exclude).values())


def is_averaged(tensor: Tensor) -> bool:
    """Whether its numbers are floating-point, real or complex."""
    return tensor.is_floating_point() or tensor.is_complex()


def chosen(state: State, include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """Returns the names that patterns choose; ValueError for a pattern that fits none, and where nothing is left."""
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(name, pattern) for name in state):
            raise ValueError(f"no tensor is called {pattern!r}; there are {some([*state])}")
    names = [
        name
        for name in state
        if any(fnmatchcase(name, pattern) for pattern in include)
        and not any(fnmatchcase(name, pattern) for pattern in exclude)
    ]
    if not names:
        raise ValueError(f"include and exclude leave nothing of {some([*state])}")
    return names


def check_alike(a: State, b: State, what: str) -> None:
    """Raises ValueError, in one line, unless the states have the same names, shapes and types of numbers."""
    if odd := [name for state in (a, b) for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{what} must hold tensors alone: {some(odd)} is none")
    for here, there in ((a, b), (b, a)):
        if lacking := [name for name in here if name not in there]:
            raise ValueError(f"{what} must be of one network: only one of them has {some(lacking)}")
    for aspect, of in {
        "shape": lambda value: tuple(value.shape),
        "type": lambda value: str(value.dtype).removeprefix("torch."),
    }.items():
        pairs = ((name, of(value), of(b[name])) for name, value in a.items())
        if unlike := [f"{name} has {one} and {other}" for name, one, other in pairs if one != other]:
            raise ValueError(f"{what} must be of one network: they differ in {aspect}, {some(unlike)}")


def _check_masked(name: str, state: State, masks: State) -> None:
    if misfits := [n for n, mask in masks.items() if n not in state or mask.shape != state[n].shape]:
        raise ValueError(f"linear_path: no weight has the name and the shape of the masks of {some(misfits)}")
    if held := [n for n in masks if _held_outside(state, n, masks)]:
        raise ValueError(
            f"linear_path: {name} is not zero where the masks prune, in {some(held)}: expected the masks of both ends; "
            "if they are, apply_masks(state, masks) sets those weights to zero"
        )


def _held_outside(state: State, name: str, masks: State) -> bool:
    return bool((state[name][~masks[name].to(state[name].device)] != 0).any())
