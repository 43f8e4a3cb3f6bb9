"""Scores of examples as files, which tell of which data they are: scores of other data are refused.

A file of safetensors holds scores by name, `(N,)` or `(replicates, N)`; its metadata have the `size` N and the `digest`
of the data set.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..checkpoints import read_metadata, read_weights, write_safetensors
from ..validation import check


def data_digest(data: Any) -> str:
    """Returns a text that only data sets with the same examples in the same order share.

    Of examples in memory (a `TensorDataset`, or whatever has its `tensors`) it is that of inputs and labels as they are
    held, so after what is done once, such as normalization, and before what a loader does to a batch, such as
    augmentation. Of a folder of files (`torchvision.datasets.ImageFolder`, or whatever has its `samples`) it is that of
    the last two parts of their names, their sizes and labels: no file is read. Of MDS shards (a `StreamingDataset`, or
    whatever has its `shards`) it is that of the files' names, their sizes and numbers of samples. A data set may have
    a method `digest` of its own. Of others each example is read, as `dataset[index]` gives it, which must not augment.

    Args:
        data: a data set with indices and a length, or a DataLoader over it.
    """
    dataset = getattr(data, "dataset", data)
    if callable(own := getattr(dataset, "digest", None)):
        return str(own())
    sha = hashlib.sha256()
    if tensors := getattr(dataset, "tensors", None):
        parts: Any = tensors
    elif isinstance(samples := getattr(dataset, "samples", None), Sequence) and samples:
        parts = ((*Path(file).parts[-2:], os.stat(file).st_size, label) for file, label in samples)
    elif shards := getattr(dataset, "shards", None):
        parts = ((shard.raw_data.basename, shard.raw_data.bytes, shard.samples) for shard in shards)
    else:
        readable = all(hasattr(dataset, name) for name in ("__getitem__", "__len__"))
        check("data_digest", "data", readable, "a data set with indices and a length", type(dataset).__name__)
        parts = (dataset[index] for index in range(len(dataset)))
    for part in parts:
        for leaf in tree_leaves(part):
            _add(sha, leaf)
    return sha.hexdigest()


def _add(sha: Any, leaf: Any) -> None:
    if isinstance(leaf, Tensor):
        sha.update(f"{leaf.dtype}{[*leaf.shape]}".encode())
        sha.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    else:
        content = leaf.tobytes() if hasattr(leaf, "tobytes") else repr(leaf).encode()  # of NumPy, of PIL
        sha.update(f"{type(leaf).__name__}{len(content)}".encode())
        sha.update(content)


def save_scores(path: str | PathLike[str], scores: Mapping[str, Tensor], digest: str, **metadata: str) -> None:
    """Writes scores by name, `(N,)` or `(replicates, N)`, whole or not at all, with further texts as metadata.

    `digest` is that of their data set by `data_digest`. Raises ValueError where they are not of as many examples each.
    """
    sizes = {each.shape[-1:] for each in scores.values()}
    fits = len(sizes) == 1 and all(each.ndim in (1, 2) for each in scores.values())
    shapes = {name: tuple(each.shape) for name, each in scores.items()}
    check("save_scores", "scores", fits, "(N,) or (replicates, N) of the same N", shapes)
    (size,) = sizes.pop()
    # Clones, as safetensors refuses those that share memory.
    tensors = {name: each.clone() for name, each in scores.items()}
    write_safetensors(path, tensors, {**metadata, "format": "pt", "size": str(size), "digest": digest})


def load_scores(
    paths: str | PathLike[str] | Sequence[str | PathLike[str]], digest: str, size: int, name: str | None = None
) -> Tensor:
    """Returns the scores of a file, or of several, the replicates: `(replicates, N)`, on the CPU.

    Args:
        digest, size: those of the data set for which they are wanted.
        name: of the scores; by default those that the file holds alone.

    Raises FileNotFoundError, and ValueError naming the file, for one that is damaged, has no scores or several where no
    name is given, has scores of other data or of another number of examples, or that are not numbers.
    """
    files = [paths] if isinstance(paths, str | PathLike) else [*paths]
    check("load_scores", "paths", len(files) > 0, "a file or several", files)
    return torch.cat([_read(file, digest, size, name) for file in files])


def _read(path: str | PathLike[str], digest: str, size: int, name: str | None) -> Tensor:
    held, about = read_weights(path), read_metadata(path)
    if "digest" not in about:
        raise ValueError(f"{path} does not tell of which data its scores are: expected a file of save_scores")
    key = next(iter(held)) if name is None and len(held) == 1 else name
    if key is None or key not in held:
        raise ValueError(f"{path} holds the scores {', '.join(held)}: expected the name of one, not {name}")
    shape = tuple(held[key].shape)
    if len(shape) not in (1, 2) or not held[key].numel():
        raise ValueError(f"{path} has scores of the shape {shape}: expected (N,) or (replicates, N)")
    rows = held[key].reshape(-1, shape[-1]).double()
    if rows.shape[1] != size:
        raise ValueError(f"{path} has scores of {rows.shape[1]} examples: expected those of the data's {size}")
    if about["digest"] != digest:
        raise ValueError(f"{path} has scores of other data than these {size} examples; their digests differ")
    if rows.isnan().any():
        raise ValueError(f"{path} has scores that are NaN, as of a training that diverged")
    return rows
