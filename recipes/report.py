"""What a run did: the `History` that it records, and the `Result`'s table, `results.json` and `curves.png`."""

from __future__ import annotations

import io
import json
import math
import os
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from composer.core import State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from pydantic import TypeAdapter
from tabulate import tabulate

Record = dict[str, float]  # in a file, what is not finite is null

TRAIN_LOSS = "loss/train/total"
TRAIN_PREFIX = "metrics/train/"
EVAL_PREFIX = "metrics/eval/"
LEVEL_PREFIX = "lottery/"
COUNTS = ("batch", "samples", "seconds")
OF_SIZE = ("density", "compression_ratio", "theoretical_speedup")
OF_LEVEL = ("level", "density", "batch", "batches", "samples", "seconds", "compression_ratio", "speedup")
OF_POINTS = (EVAL_PREFIX, "tradeoff/", LEVEL_PREFIX)
MOST_RECORDS = 10_000
# Okabe and Ito's palette, which the colour-blind can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


class History(LoggerDestination):
    """Every number that is logged, and what reaching those weights had cost; goes into the checkpoint.

    There is one record per batch: the state of the weights after `batch` updates, which saw `samples` samples and took
    `seconds` of training, and whatever was measured on these weights. Seconds count from asking for a batch to the end
    of its update, so neither evaluation nor checkpoints nor the replay of batches on resume.

    Of a long run only every second, fourth, ... record stays, `MOST_RECORDS` at most; besides these, all that hold an
    evaluation, and the last two: the newest loss stands in the last but one, with the weights that had it.
    """

    def __init__(self):
        self.records: list[Record] = []
        self.seconds = 0.0
        self._since = 0.0
        self._state: State | None = None

    def init(self, state: State, logger: Logger) -> None:
        self._state = state

    def before_dataloader(self, state: State, logger: Logger) -> None:
        self._since = time.perf_counter()

    def batch_end(self, state: State, logger: Logger) -> None:
        self.seconds += time.perf_counter() - self._since
        # A callback that logged at this event has begun the record with the time of the previous one.
        self._record(state)["seconds"] = self.seconds

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if self._state is None:
            return
        record = self._record(self._state)
        for name, value in metrics.items():
            if not name.startswith("time/") and getattr(value, "ndim", 0) == 0 and not isinstance(value, str):
                record[name] = float(value)

    def _record(self, state: State) -> Record:
        batch, samples = int(state.timestamp.batch), int(state.timestamp.sample)
        if not self.records or self.records[-1]["batch"] != batch:
            self.records.append({"batch": batch, "samples": samples, "seconds": self.seconds})
            # Between the batches at which the stride may double, all but one are as they should be.
            self._thin(0 if batch % MOST_RECORDS == 0 else -3)
        return self.records[-1]

    def _thin(self, start: int) -> None:
        # By the batch alone, so that a resumed run keeps the same records.
        stride = 1 << (int(self.records[-1]["batch"]) // MOST_RECORDS).bit_length()
        self.records[start:-2] = [
            record
            for record in self.records[start:-2]
            if record["batch"] % stride == 0 or any(name.startswith(OF_POINTS) for name in record)
        ]

    def state_dict(self) -> dict[str, Any]:
        return {"records": self.records, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.records, self.seconds = state["records"], state["seconds"]
        if self.records:
            self._thin(0)  # an older checkpoint holds them all


class Lines(LoggerDestination):
    """One plain line per evaluation (per epoch where there is none), for output that is not a terminal."""

    def __init__(self, history: History):
        self.history = history

    def eval_after_all(self, state: State, logger: Logger) -> None:
        self._print(state)

    def epoch_end(self, state: State, logger: Logger) -> None:
        if not state.evaluators:
            self._print(state)

    def _print(self, state: State) -> None:
        if dist.get_global_rank() != 0:
            return
        values = [f"train loss {loss:.4g}" for loss in self._last_losses()]
        values += [f"{label(name)} {value:.4g}" for name, value in final_metrics(self.history.records).items()]
        place = f"epoch {int(state.timestamp.epoch)}, batch {int(state.timestamp.batch)} of {state.max_duration}"
        print(f"{place}, {self.history.seconds:.1f} s: {', '.join(values)}", file=sys.stderr, flush=True)

    def _last_losses(self) -> list[float]:
        return [record[TRAIN_LOSS] for record in self.history.records[-2:] if TRAIN_LOSS in record][-1:]


@dataclass
class Result:
    """What a run did. `metrics` are the last evaluation's; `seconds` are spent in training, without evaluation.

    Of a run that prunes, `size` is the model's in the end, as `ModelSize` has it, with the `density` of what can be
    pruned. Of a LotteryTicket's, `levels` are its results, each with what this level alone had cost, and its size.
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
    size: dict[str, Any] | None = None
    levels: list[dict[str, Any]] | None = None

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
        last = self.records[-1]
        if (self.batches, self.samples, self.seconds) != tuple(last[key] for key in COUNTS):
            raise ValueError("batches, samples and seconds are not those of the last record")
        if self.metrics != final_metrics(self.records):
            raise ValueError("metrics are not those of the last evaluation")
        if not 0 < self.seconds < math.inf or self.samples_per_second != self.samples / self.seconds:
            raise ValueError(f"{self.samples_per_second} samples per second are not those of {self.seconds} s")
        tables = [(self.size, OF_SIZE)] if self.size is not None else []
        for part, keys in [*tables, *((level, OF_LEVEL) for level in self.levels or [])]:
            for key in keys:
                if key not in part or type(part[key]) not in (int, float, type(None)):
                    raise ValueError(f"{key} is {part.get(key, 'missing')!r}; expected a number")

    def save(self) -> None:
        """Writes `results.json`; a number that is not finite becomes null, as JSON has none."""
        records, metrics = [_finite(record) for record in self.records], _finite(self.metrics)
        levels = self.levels and [_finite(level) for level in self.levels]
        finite = {"records": records, "metrics": metrics, "levels": levels}
        text = json.dumps(asdict(self) | finite, allow_nan=False)
        write(Path(self.folder, "results.json"), text.encode())


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}


def final_metrics(records: Sequence[Record]) -> dict[str, float]:
    """The latest value of every evaluation metric."""
    return {name: value for record in records for name, value in record.items() if name.startswith(EVAL_PREFIX)}


def label(name: str) -> str:
    """A metric's name for people: ``metrics/eval/MulticlassAccuracy`` is ``accuracy``; and the data set, of several."""
    place, _, short = name.rpartition("/")
    short = short.removeprefix("Multiclass").removeprefix("Binary")
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in short)
    return f"{words} {place.partition(EVAL_PREFIX)[2]}".strip()


def percent(share: float) -> str:
    """As text, to three digits."""
    return f"{100 * share:.3g} %"


def write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all; one that is so already is left alone, as its folder may be closed by now."""
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # on a full disk, its part too takes room
        raise


def write_yaml(path: Path, config: Mapping[str, Any]) -> None:
    """Writes a config whole or not at all."""
    write(path, OmegaConf.to_yaml(OmegaConf.create(dict(config))).encode())


def table(results: Iterable[Result]) -> str:
    """One aligned row per run."""
    results = list(results)
    metrics = list(dict.fromkeys(name for result in results for name in result.metrics))
    rows = [("run", *map(label, metrics), "seconds", "samples/s", "algorithms")]
    for result in results:
        values = ("" if (value := result.metrics.get(m)) is None else f"{value:.4f}" for m in metrics)
        speed = (f"{result.seconds:.1f}", f"{result.samples_per_second:,.0f}")
        rows.append((result.run_name, *values, *speed, ", ".join(result.algorithms) or "none"))
    return aligned(rows, left=("run", "algorithms"))


def aligned(rows: Sequence[Sequence[str]], left: Collection[str]) -> str:
    """The first row's names over columns of text: to the left those named in `left`, to the right the others."""
    sides = ["left" if name in left else "right" for row in rows[:1] for name in row]
    return tabulate(rows, tablefmt="plain", colalign=sides, disable_numparse=True)


def draw(results: Sequence[Result], path: Path, title: str) -> np.ndarray:
    """Draws the first accuracy (or metric) and the training loss over training time; returns the picture's pixels."""
    names = list(dict.fromkeys(name for result in results for name in result.metrics))
    metric = next((name for name in names if "Accuracy" in name), names[0] if names else None)
    panels: list[tuple[str, str]] = [(metric, f"evaluation {label(metric)}")] if metric else []
    # Label smoothing, say, changes what is minimised: the losses of two runs need not be comparable.
    panels.append((TRAIN_LOSS, "training loss" if len(results) == 1 else "training loss, each run's own"))
    figure = Figure(figsize=(5 * len(panels), 3.8), dpi=150, layout="constrained")
    figure.suptitle(title, fontweight="bold")
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, title_of_axis) in zip(row, panels, strict=True):
        for result, colour in zip(results, COLOURS * (len(results) // len(COLOURS) + 1), strict=False):
            records = [record for record in result.records if _is_finite(record.get(name))]
            seconds, values = (np.array([record[key] for record in records]) for key in ("seconds", name))
            smooth = _running_mean(values) if name == TRAIN_LOSS else values
            axes.plot(seconds, values, color=colour, alpha=0.25 if smooth is not values else 0, linewidth=0.8)
            marker = "o" if smooth is values and len(values) <= 50 else ""
            axes.plot(seconds, smooth, color=colour, label=result.run_name, linewidth=1.8, marker=marker, markersize=3)
            if name == metric and len(values):
                end = (seconds[-1], values[-1])
                axes.annotate(f"{end[1]:.4f}", end, (4, 0), "data", "offset points", color=colour, va="center")
        axes.set(xlabel="training time (s)", ylabel=title_of_axis)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.15)  # room for the figure at the end
        axes.set_xlim(left=0)
        if name == metric and "Accuracy" in name:
            axes.set_ylim(*_where_it_settles(axes))
    if len(results) > 1:
        row[-1].legend(frameon=False)
    return save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> np.ndarray:
    """Writes a PNG; returns its pixels, (height, width, 3) of uint8."""
    canvas = FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write(path, buffer.getvalue())
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _where_it_settles(axes: Axes) -> tuple[float, float]:
    """Limits that leave out the first steep rise, beside which runs of different quality would look alike."""
    curves = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]
    bottom, top = min(np.quantile(curve, 0.2) for curve in curves), max(curve.max() for curve in curves)
    margin = 0.1 * (top - bottom) or 0.1
    return float(bottom - margin), float(top + margin)


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Over the last 5 % of the values, or all there are so far."""
    window = max(1, len(values) // 20)
    total = np.cumsum(np.concatenate(([0.0], values)))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (total[ends] - total[starts]) / (ends - starts)
