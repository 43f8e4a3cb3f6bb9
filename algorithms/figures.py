"""What figures share. They need matplotlib, which is imported where one is drawn."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .whole_files import written_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which the colour-blind can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def house_look(axes: Axes) -> None:
    """A faint grid, and a frame at the left and below alone."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, path: Path) -> np.ndarray:
    """Writes a PNG, unless it is there already, as its folder may be closed; returns its pixels, (height, width, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.print_png(buffer := io.BytesIO())  # which draws once, where savefig draws twice
    content = buffer.getvalue()
    if not (path.is_file() and path.read_bytes() == content):
        with written_whole(path) as file:
            file.write_bytes(content)
    return np.asarray(canvas.buffer_rgba())[..., :3]
