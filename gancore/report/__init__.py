"""What people look at: sample grids, curves, and the display of a run."""

from gancore.report.curves import plot_curves
from gancore.report.display import Display, LinesDisplay, LiveDisplay, clock, display_for
from gancore.report.grids import save_grid, save_images
from gancore.report.style import spared

__all__ = [
    "Display",
    "LinesDisplay",
    "LiveDisplay",
    "clock",
    "display_for",
    "plot_curves",
    "save_grid",
    "save_images",
    "spared",
]
