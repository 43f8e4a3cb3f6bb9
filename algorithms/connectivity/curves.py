"""The metrics along the line from a moment of a training to its end, as curves: barriers, a table, a figure."""

from __future__ import annotations

import csv
import io
import warnings
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..figures import COLOURS, house_look, save_figure
from ..whole_files import written_whole
from .barriers import barrier, largest_rise

if TYPE_CHECKING:
    import numpy as np

LOWER_IS_BETTER = ("crossentropy", "perplexity", "error", "loss")


def lower_is_better(metric: str) -> bool:
    """Whether it is an error, by its name."""
    return metric.lower().endswith(LOWER_IS_BETTER)


@dataclass(frozen=True, kw_only=True)
class PathCurves:
    """What was found on the line from the weights after `start` updates (alpha 0) to those after `end` (alpha 1).

    `curves` holds by the name of the data and the metric, such as `eval/loss`, its values at the `alphas`. Of a network
    with batch norm the name begins with what was done about its statistics, `interpolate/` or `recompute/`. `distance`
    is the L2 distance of the ends. `outside` names the weights that are not zero at the start, or at the end, where the
    network is pruned at the end: with any of them, the networks on the way are less sparse than the end.
    """

    start: int
    end: int
    alphas: list[float]
    curves: dict[str, list[float]]
    distance: float
    outside: list[str]

    def numbers(self) -> dict[str, float]:
        """Returns `distance`, and for each curve, by its name, its `barrier/` and its `setback/`.

        The barrier is by how much the worst point is worse than the mean of the ends, the setback by how much a point
        is worse than an earlier one at most: 0 where the metric improves steadily. What is worse, the metric's name
        tells.
        """
        found = {"distance": self.distance}
        for name, values in self.curves.items():
            losses = values if lower_is_better(name) else [-value for value in values]
            found |= {f"barrier/{name}": barrier(losses), f"setback/{name}": largest_rise(losses)}
        return found

    def table(self) -> tuple[list[str], list[list[float]]]:
        """Returns the names of the columns, `alpha` and the curves, and a row for each point."""
        return ["alpha", *self.curves], [[*row] for row in zip(self.alphas, *self.curves.values(), strict=True)]

    def as_dict(self) -> dict[str, Any]:
        """Returns all that it holds, and its numbers, as builtins."""
        return {**asdict(self), "numbers": self.numbers()}

    def write(self, folder: Path, owner: str) -> np.ndarray | None:
        """Writes the table, `path.csv`, and the figure, `path.png`, whose pixels it returns, (height, width, 3).

        Without matplotlib there is no figure, and a warning says so.
        """
        columns, rows = self.table()
        csv.writer(text := io.StringIO(), lineterminator="\n").writerows([columns, *rows])
        with written_whole(folder / "path.csv") as file:
            file.write_text(text.getvalue())
        try:
            return self._draw(folder / "path.png")
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "matplotlib":
                raise
            hint = "matplotlib is missing: pip install 'accelerando[landscape]'"
            warnings.warn(f"{owner}: the path is not drawn, as {hint}.", stacklevel=3)
            return None

    def _draw(self, path: Path) -> np.ndarray:
        """One panel for each metric, in which the data sets and the kinds of statistics have a curve each."""
        from matplotlib.figure import Figure

        metrics = list(dict.fromkeys(name.rpartition("/")[2] for name in self.curves))
        figure = Figure(figsize=(4.5 * len(metrics), 3.8), dpi=150, layout="constrained")
        for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
            own = {n.rpartition("/")[0]: values for n, values in self.curves.items() if n.rpartition("/")[2] == metric}
            for (name, values), colour in zip(own.items(), cycle(COLOURS), strict=False):
                axes.plot(self.alphas, values, color=colour, label=name, linewidth=1.8)
            axes.set(xlabel=f"from {self.start} updates to {self.end}", ylabel=metric)
            house_look(axes)
            axes.legend(frameon=False)
        return save_figure(figure, path)
