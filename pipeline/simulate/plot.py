"""The bench's spend curves as an SVG; needs the extra `[sim]` (matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.simulate.measures import BINS

Floats = npt.NDArray[np.float64]


class PlotError(Exception):
    """There is nothing to plot with; the text says what to install."""


def write_spend_curves(path: Path, curves: Mapping[str, Floats], target: Floats) -> None:
    """Draw cumulative spend over budget by time of day, a line a policy, and the target.

    Each curve has one value a bin of the local day. Raises `PlotError` without matplotlib.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise PlotError(
            "plots need matplotlib: install the extra, pip install 'promoted-pins-pipeline[sim]'"
        ) from error
    # The same figures give the same file: no random ids, no date.
    matplotlib.rcParams["svg.hashsalt"] = "promoted-pins"
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    hours = (np.arange(BINS) + 1) / BINS * 24
    axes.plot(hours, 100 * target, color="0.6", linestyle="--", label="traffic (target)")
    for name, curve in curves.items():
        axes.plot(hours, 100 * curve, label=name)
    axes.set_xlabel("hour of the account's day")
    axes.set_ylabel("mean spend, % of daily budget")
    axes.set_xlim(0, 24)
    axes.set_ylim(0, 105)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, format="svg", metadata={"Date": None})
