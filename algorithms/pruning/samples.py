"""The samples that pruning at initialization looks at: which, how many a batch holds, under which random numbers."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from numbers import Integral
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from .. import ranks
from ..generators import numpy_generator, seeded


def class_balanced(
    dataset: Any,
    per_class: int,
    seed: int,
    label_of: Callable[[int], Any] | None = None,
    classes: int | None = None,
) -> list[int]:
    """Indices of `per_class` samples of every class, in random order: SNIP and GraSP look at 10 of each.

    Args:
        dataset: map-style: `len(dataset)` and `dataset[index]`.
        per_class: how many of each, at least 1.
        seed: of the choice; with the data set, all that it depends on. No global random generator moves.
        label_of: the label of the sample at an index, such as `dataset.targets.__getitem__`, which reads no sample. By
            default `sample[1]` of a tuple or list, `sample["labels"]` or `sample["label"]` of a mapping.
        classes: how many there are. Known, here or by `dataset.targets`, `dataset.labels` or `dataset.classes`, samples
            are read only until every class is full; otherwise all of them are, once.

    A label is a class if it is one integer. Where the first one read is none (masked language modelling, regression,
    segmentation), there are no classes: the result is `10 * per_class` samples, or all there are.

    Raises ValueError where a class has fewer than `per_class` samples, or there are not as many classes as told.
    """
    if per_class < 1 or len(dataset) == 0:
        raise ValueError(f"class_balanced: cannot choose {per_class} samples per class of {len(dataset)} samples.")
    generator = numpy_generator(seed)
    order: list[int] = generator.permutation(len(dataset)).tolist()
    label_of = label_of or (lambda index: _label(dataset[index]))
    chosen: list[int] = []
    held: Counter[int] = Counter()
    # Reading a sample may augment it at random.
    with seeded(seed):
        enough = classes or _number_of_classes(dataset)
        for index in order:
            label = _class(label_of(index))
            if label is None:
                if not held:
                    return order[: 10 * per_class]
                raise ValueError(f"class_balanced: sample {index} has no integer for a label, sample {order[0]} has.")
            if held[label] < per_class:
                held[label] += 1
                chosen.append(index)
                if enough and len(held) == enough and len(chosen) == enough * per_class:
                    break
    if classes and len(held) != classes:
        raise ValueError(f"class_balanced: {classes} classes were told, the data set holds {len(held)}.")
    label, count = min(held.items(), key=lambda item: (item[1], item[0]))
    if count < per_class:
        raise ValueError(f"class_balanced: class {label} has {count} samples, {per_class} are wanted of each class.")
    # As found, the rare classes would come late: the last batches would hold nothing else.
    return [chosen[i] for i in generator.permutation(len(chosen))]


def balanced_batches(loader: Any, per_class: int, seed: int, size: int, owner: str) -> Iterator[Any]:
    """This rank's share of the `class_balanced` samples, in batches of `size` that the loader collates.

    A batch of one sample that would be left over joins the one before. Raises ValueError, which names the `owner`,
    unless it is a DataLoader over a dataset with indices and a length.
    """
    dataset = getattr(loader, "dataset", None)
    if not (isinstance(loader, DataLoader) and hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise ValueError(f"{owner} needs a DataLoader over a dataset with indices and a length")
    own = class_balanced(dataset, per_class, seed)[ranks.rank() :: ranks.world_size()]
    starts = [*range(0, len(own), size)]
    if size > 1 and len(starts) > 1 and len(own) - starts[-1] == 1:
        starts.pop()  # of a single sample batch norm has no statistics
    for start, end in zip(starts, [*starts[1:], len(own)], strict=True):
        yield loader.collate_fn([dataset[index] for index in own[start:end]])  # type: ignore[index]


def samples_in(batch: Any) -> int:
    """The length of the first tensor in a batch of tensors, tuples, lists and mappings.

    Raises TypeError where there is none.
    """
    first = _first_tensor(batch)
    if first is None:
        raise TypeError(
            f"No tensor in a batch of type {type(batch).__name__} tells its number of samples: pass `samples`."
        )
    return len(first)


def _first_tensor(batch: Any) -> Tensor | None:
    if isinstance(batch, Tensor):
        return batch if batch.dim() else None
    if isinstance(batch, Mapping):
        batch = batch.values()
    elif not isinstance(batch, tuple | list):
        return None
    return next((tensor for tensor in map(_first_tensor, batch) if tensor is not None), None)


def _label(sample: Any) -> Any:
    if isinstance(sample, Mapping):
        return sample.get("labels", sample.get("label"))
    return sample[1] if isinstance(sample, tuple | list) and len(sample) > 1 else None


def _class(label: Any) -> int | None:
    if isinstance(label, Integral | np.bool_):
        return int(label)
    if isinstance(label, Tensor):
        integer = not (label.is_floating_point() or label.is_complex())
        return int(label.item()) if integer and label.numel() == 1 else None
    if isinstance(label, np.ndarray):
        return int(label.item()) if label.dtype.kind in "biu" and label.size == 1 else None
    return None


def _number_of_classes(dataset: Any) -> int | None:
    for name in ("targets", "labels"):
        values: Any = getattr(dataset, name, None)
        listed = isinstance(values, Sequence | Tensor | np.ndarray) and len(values) == len(dataset)
        if listed and _class(values[0]) is not None:
            return len(np.unique(values.cpu() if isinstance(values, Tensor) else values))
    names = getattr(dataset, "classes", None)
    return len(names) if isinstance(names, Sized) else None
