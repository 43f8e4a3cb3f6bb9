"""The `Result` of a run: its `results.json`, and its row in a table for people."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from tabulate import tabulate

from accelerando.algorithms.composer.for_recipes import label

from .files import write
from .history import COUNTS, final_metrics


@dataclass(kw_only=True)
class Result:
    """What a run did. `metrics` are the last evaluation's; `seconds` are spent in training, without evaluation.

    `batches` and `samples` are its own. Where it started from another run's moment and counts on from there, as its
    `records` do, `begun` has the `batch` and `samples` of that moment. In `found` is what its algorithms leave there
    (`ForRecipes.found`), such as the `size` of a pruned model.
    """

    run_name: str
    folder: str
    algorithms: list[str]
    metrics: dict[str, Any]
    batches: int
    samples: int
    seconds: float
    samples_per_second: float
    records: list[dict[str, Any]]
    found: dict[str, Any]
    begun: dict[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Result:
        """The result of the run in `folder`; ValueError where the file holds something else."""
        text = Path(folder, "results.json").read_bytes()
        TypeAdapter(cls).validate_json(text, strict=True)
        result = cls(**json.loads(text))
        result._check()
        return result

    def _check(self) -> None:
        """What is told twice must agree, and what people and studies read must be there."""
        if not self.records or any(record.get(key) is None for record in self.records for key in COUNTS):
            raise ValueError(f"expected records, each with {', '.join(COUNTS)}")
        for name, value in ((name, value) for record in self.records for name, value in record.items()):
            if type(value) not in (int, float, type(None)):
                raise ValueError(f"{name} is {value!r}; expected a number")
        last = tuple(self.records[-1][key] - self.begun.get(key, 0) for key in COUNTS)
        if (self.batches, self.samples, self.seconds) != last:
            raise ValueError("batches, samples and seconds are not those of the last record")
        if self.metrics != final_metrics(self.records):
            raise ValueError("metrics are not those of the last evaluation")
        if not 0 < self.seconds < math.inf or self.samples_per_second != self.samples / self.seconds:
            raise ValueError(f"{self.samples_per_second} samples per second are not those of {self.seconds} s")

    def save(self) -> None:
        """Writes `results.json`; a number that is not finite becomes null, as JSON has none."""
        write(Path(self.folder, "results.json"), json.dumps(_finite(asdict(self)), allow_nan=False).encode())


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def percent(share: float) -> str:
    """As text, to three digits."""
    return f"{100 * share:.3g} %"


def table(results: Iterable[Result]) -> str:
    """One aligned row per run."""
    results = list(results)
    metrics = list(dict.fromkeys(name for result in results for name in result.metrics))
    rows = [("run", *map(label, metrics), "seconds", "samples/s", "algorithms")]
    for result in results:
        values = ("" if (value := result.metrics.get(m)) is None else f"{value:.4f}" for m in metrics)
        speed = (f"{result.seconds:.1f}", f"{result.samples_per_second:,.0f}")
        rows.append((result.run_name, *values, *speed, ", ".join(result.algorithms) or "none"))
    return aligned(rows, left=("run", "algorithms"), blank="not finite, or not evaluated")


def aligned(rows: Sequence[Sequence[str]], left: Collection[str], blank: str = "") -> str:
    """The first row's names over columns of text: to the left those named in `left`, to the right the others.

    Where `blank` says why cells are empty, they become dashes, and a line below tells it.
    """
    sides = ["left" if name in left else "right" for row in rows[:1] for name in row]
    told = [*rows[:1], *([cell or "-" for cell in row] if blank else row for row in rows[1:])]
    note = f"\n-: {blank}" if blank and any(not cell for row in rows[1:] for cell in row) else ""
    return tabulate(told, tablefmt="plain", colalign=sides, disable_numparse=True) + note
