"""Text data by name: each source is a dataclass whose fields are a YAML's arguments.

`check()` raises a one-line error before anything is built. `build()` returns a `DataSpec` whose batches are what a
Hugging Face model takes: `input_ids`, `attention_mask`, `labels`; its `batch_size` is per rank. For masked language
modelling the labels are -100 where nothing is to be predicted; the masks change from epoch to epoch in training and
never in evaluation, and come out the same after a kill and a resume.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from composer.core import DataSpec, Evaluator
from torch import Tensor

from accelerando.algorithms.generators import generator_of

from ..config.errors import ArgumentError, show
from .checks import check_hub_name, check_least, hub_or_cache
from .facts import Described
from .loaders import AnyDevice, TensorLoader, mapping_loader, to_device, worker_loader
from .shards import check_shards, open_shards, same_shards
from .tokens import Batch, MaskTokens, Tokenizer, blaming, check_text, facts_of, packed, tokenizer_of, truncated


@dataclass
class HuggingFaceText:
    """A Hugging Face data set, held in memory: with `label_column` for classification, without for masked LM.

    For masked LM the rows are joined and cut into samples of `seq_len` tokens; for classification each row is a sample.
    """

    counts_tokens: ClassVar[bool] = True

    name: str  # on the hub, or a local folder: one of save_to_disk, or one of csv, json or parquet files
    tokenizer: str  # on the hub, or a local folder
    config: str | None = None  # a part of the data set, such as mnli of glue; in a local folder one inside it
    split: str | tuple[str, ...] = "train"  # several in evaluation: one result for each
    text_columns: tuple[str, ...] = ("text",)  # two for pairs of sentences
    label_column: str | None = None  # class indices; or numbers, for regression; or text, with class_names
    class_names: tuple[str, ...] | None = None  # the texts in label_column, in the order of their numbers from 0
    seq_len: int = 128  # tokens per sample
    mask_probability: float = 0.15  # share of the tokens that are to be predicted, without label_column
    drop_last: bool = True  # in training: leave out what does not fill the last batch

    def check(self) -> None:
        check_text(self.seq_len, self.mask_probability)
        for key, name in (("name", self.name), ("tokenizer", self.tokenizer)):
            with blaming(key):
                check_hub_name(name)
        if not 1 <= len(self.text_columns) <= (2 if self.label_column else 1):
            expected = "expected one, or two with label_column"
            raise ArgumentError("text_columns", f"{show([*self.text_columns])} given; {expected}")
        if self.class_names is not None:
            if not self.label_column:
                raise ArgumentError("class_names", "given, but no label_column; expected the column that holds them")
            if len({*self.class_names}) < max(len(self.class_names), 2):
                raise ArgumentError(
                    "class_names", f"{show([*self.class_names])} given; expected two or more, each once"
                )

    def overlaps(self, other: Any) -> bool:
        def splits(source: HuggingFaceText) -> set[str]:
            return {source.split} if isinstance(source.split, str) else {*source.split}

        alike = isinstance(other, HuggingFaceText) and (other.name, other.config) == (self.name, self.config)
        return alike and bool(splits(self) & splits(other))

    def build(self, batch_size: int, train: bool, seed: int, device: AnyDevice) -> DataSpec | list[Evaluator]:
        if isinstance(self.split, str):
            return self._build(self.split, batch_size, train, seed, device)
        if train:
            raise ArgumentError("split", f"{show([*self.split])} given; expected a single one for training")
        specs = [self._build(split, batch_size, train, seed, device) for split in self.split]
        pairs = zip(self.split, specs, strict=True)
        return [Evaluator(label=f"eval/{split}", dataloader=spec) for split, spec in pairs]

    def _build(self, split: str, batch_size: int, train: bool, seed: int, device: AnyDevice) -> DataSpec:
        rows, tokenizer = self.rows(split), tokenizer_of(self.tokenizer, masks=self.label_column is None)
        columns = rows[:]
        texts = [columns[name] for name in self.text_columns]
        for name, column in zip(self.text_columns, texts, strict=True):
            for row, text in enumerate(column):
                if not isinstance(text, str):
                    given = f"row {row} of {split} has {show(text)} as {name}"
                    raise ArgumentError("text_columns", f"{given}; expected columns of text")
        if self.label_column is None:
            samples = to_device(packed(texts[0], tokenizer, self.seq_len), device)
            mask = MaskTokens(tokenizer, self.mask_probability, device)
            loader = TensorLoader([samples], batch_size, train, seed, mask, (self.seq_len, 2), self.drop_last)
            return Described(loader, facts_of(tokenizer, self.seq_len))
        labels = labels_of(rows, self.label_column, split)
        batch = truncated(texts, tokenizer, self.seq_len) | {"labels": torch.tensor(labels)}
        loader = mapping_loader(batch, batch_size, train, seed, device, self.drop_last)
        names = rows.features[self.label_column]
        return Described(loader, facts_of(tokenizer, self.seq_len, labels, getattr(names, "names", None)))

    def rows(self, split: str) -> Any:
        """One split as a `datasets.Dataset` of the columns that are used."""
        import datasets

        name, config = self.name, self.config
        if config and Path(name, config).is_dir():  # laid out as on the hub, a folder for each part
            name, config = str(Path(name, config)), None
        with blaming("name"), hub_or_cache(name):
            if any(Path(name, file).is_file() for file in ("dataset_dict.json", "state.json")):
                data = datasets.load_from_disk(name)
            elif files := sorted(map(str, Path(name).glob(f"{split}-*-of-*.parquet"))):
                # By the file names alone, `datasets` would take validation_matched for validation.
                data = datasets.load_dataset("parquet", data_files={split: files}, split=split)
            else:
                data = datasets.load_dataset(name, config, split=split)
        if isinstance(data, datasets.DatasetDict):
            if split not in data:
                raise ArgumentError("split", f"{name} has no split {split}: expected one of {sorted(data)}")
            data = data[split]
        labels, known = [self.label_column] if self.label_column else [], sorted(data.column_names)
        for key, wanted in (("text_columns", self.text_columns), ("label_column", labels)):
            if missing := [column for column in wanted if column not in known]:
                raise ArgumentError(key, f"{name} has no column {missing[0]}: expected one of {known}")
        return self._numbered(data.select_columns([*self.text_columns, *labels]), split)

    def _numbered(self, data: Any, split: str) -> Any:
        """The data, with numbers for the `class_names` if there are such."""
        if self.class_names is None or self.label_column is None:
            return data
        import datasets

        texts, number = data[:][self.label_column], {name: place for place, name in enumerate(self.class_names)}
        for row, label in enumerate(texts):
            if not isinstance(label, str):
                found = f"given, but row {row} of {split} has {show(label)} as {self.label_column}"
                hint = "they are for labels of text, as numbers are classes already"
                raise ArgumentError("class_names", f"{found}; {hint}")
            if label not in number:
                found = f"row {row} of {split} has as {self.label_column}"
                raise ArgumentError("class_names", f"lacks {show(label)}, which {found}")
        numbers = [number[label] for label in texts]  # a cast does not know pandas' kind of text
        numbered = data.remove_columns(self.label_column).add_column(self.label_column, numbers)
        return numbered.cast_column(self.label_column, datasets.ClassLabel(names=[*self.class_names]))


@dataclass
class StreamingText:
    """C4 (or alike) in MosaicML Streaming's MDS format, with a column `text`; for masked language modelling.

    Each document is one sample, cut or padded to `seq_len` tokens. In evaluation on several ranks, at most one sample
    per rank is seen twice where the ranks do not divide the number of samples.
    """

    counts_tokens: ClassVar[bool] = True

    local: str  # the folder that holds the shards, or that caches them
    tokenizer: str  # on the hub, or a local folder
    remote: str | None = None  # where they come from: s3://..., gs://..., a folder; None: they are all in `local`
    split: str | None = None  # sub-folder of both
    seq_len: int = 128  # tokens per sample
    mask_probability: float = 0.15  # share of the tokens that are to be predicted
    num_workers: int = 8  # processes per rank that tokenise

    def check(self) -> None:
        check_text(self.seq_len, self.mask_probability, self.tokenizer)
        check_least(0, num_workers=self.num_workers)
        check_shards(self.local, self.remote, self.split, {"text"})

    def overlaps(self, other: Any) -> bool:
        return isinstance(other, StreamingText) and same_shards(self, other)

    def build(self, batch_size: int, train: bool, seed: int, device: AnyDevice) -> DataSpec:
        from streaming import StreamingDataset

        dataset = open_shards(StreamingDataset, self.local, self.remote, self.split, batch_size, train, seed)
        tokenizer = tokenizer_of(self.tokenizer)
        mask = MaskTokens(tokenizer, self.mask_probability)
        collate = _TokeniseAndMask(tokenizer, mask, self.seq_len, seed, dataset if train else None)
        loader = worker_loader(dataset, collate, batch_size, train, seed, self.num_workers)
        return Described(loader, facts_of(tokenizer, self.seq_len))


@dataclass
class _TokeniseAndMask:
    """Collates documents; the noise hangs on (seed, epoch, text), so on no worker, rank or batch."""

    tokenizer: Tokenizer
    mask: MaskTokens
    seq_len: int
    seed: int
    dataset: Any  # the StreamingDataset, which knows the epoch; None: the same masks always

    def __call__(self, samples: Sequence[dict[str, str]]) -> Batch:
        texts = [sample["text"] for sample in samples]
        input_ids = truncated([texts], self.tokenizer, self.seq_len)["input_ids"]
        return self.mask([input_ids], torch.stack([self._noise(text) for text in texts]))

    def _noise(self, text: str) -> Tensor:
        key = f"{self.seed} {self.dataset.next_epoch} {text}" if self.dataset else text
        return torch.rand(self.seq_len, 2, generator=generator_of(key))


def labels_of(rows: Any, column: str, split: str = "the data") -> list[int] | list[float]:
    """The column's whole numbers from 0, or finite fractional ones; ArgumentError at `label_column` for others."""
    labels: list[Any] = rows[:][column]
    for row, label in enumerate(labels):
        if not (label >= 0 if type(label) is int else isinstance(label, float) and math.isfinite(label)):
            hint = "; GLUE's test labels are not public" if label == -1 else ""
            if isinstance(label, str):
                known = sorted({str(each) for each in labels})
                texts = f"{', '.join(known[:4])}{', ...' if len(known) > 4 else ''}"
                hint = f"; where they are text, say in which order they are numbered, as in class_names: [{texts}]"
            expected = "expected whole numbers from 0, for classes, or fractional ones, for regression"
            raise ArgumentError("label_column", f"row {row} of {split} has {show(label)} as {column}; {expected}{hint}")
    return labels
