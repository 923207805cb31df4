"""Wafer maps as overlay engineers draw them (matplotlib; imported only here).

Heat maps of dx and dy in a diverging scale with fixed, symmetric limits in nm, vectors with a 10 nm key (errors: 3 nm),
exposure fields, wafer edge, flagged marks in red. Figures are made without pyplot, so nothing global
changes, and are written without dates or random ids: same input, same bytes.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Shaped
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from ikddit.overlay.grid import FIELD_HEIGHT_MM, FIELD_WIDTH_MM, WAFER_RADIUS_MM, wafer_grid

DIVERGING = "PuOr_r"
"""For dx, dy and errors: symmetric about 0, safe for colour-blind eyes, and without the red of flyers."""
SEQUENTIAL = "viridis"
"""For sigma."""
KEY_NM = 10.0
ERROR_KEY_NM = 3.0
"""Of the vectors of errors, which are too short to be seen on the scale of the maps."""
KEY_MM = 45.0
"""Length of the key on the wafer."""
FLAGGED = "#e00000"
Kind = Literal["map", "error", "sigma"]
_NICE = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0)


@dataclass(frozen=True)
class Limits:
    """Fixed colour limits, nm: -map_nm..map_nm, -error_nm..error_nm, 0..sigma_nm."""

    map_nm: float = 6.0
    error_nm: float = 3.0
    sigma_nm: float = 1.5

    def of(self, kind: Kind) -> tuple[float, float]:
        """Lower and upper limit of a kind of panel."""
        top = {"map": self.map_nm, "error": self.error_nm, "sigma": self.sigma_nm}[kind]
        return (0.0 if kind == "sigma" else -top), top


def nice_limit(values: Shaped[np.ndarray, "..."], share: float = 0.995) -> float:
    """Smallest round limit in nm that holds `share` of the finite |values|; one limit for many wafers.

    >>> nice_limit(np.array([-1.2, 0.3, 2.7]))
    3.0
    """
    finite = np.abs(values[np.isfinite(values)])
    wanted = float(np.quantile(finite, share)) if finite.size else 0.0
    return next((limit for limit in _NICE if limit >= wanted), _NICE[-1])


@dataclass(frozen=True)
class Panel:
    """One column of a figure."""

    title: str
    values: Float[np.ndarray, "2 64 64"]
    """nm."""
    shown: Shaped[np.ndarray, "64 64"] | None = None
    """Where values are drawn; None: the usable wafer."""
    kind: Kind = "map"
    vectors: bool = False
    """Draw its vectors below the heat maps."""
    flagged: Bool[np.ndarray, "64 64"] | None = None
    """Marks drawn as a red cross; None: none."""


def flagged_marks(valid: Shaped[np.ndarray, "64 64"]) -> Bool[np.ndarray, "64 64"]:
    """Flyers, as far as a mask tells: invalid marks most of whose neighbours (5 of 8) are valid.

    A larger area without valid marks was not exposed or not measured, which is no flyer.
    """
    good = np.asarray(valid) != 0
    padded = np.pad(good, 1).astype(np.int64)
    around = sum(
        padded[1 + i : 65 + i, 1 + j : 65 + j] for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)
    )
    return np.asarray(~good & (around >= 5))


def panel_figure(
    panels: Sequence[Panel], limits: Limits | None = None, ink: str = "black", title: str = ""
) -> Figure:
    """Columns of maps (say predicted, measured, error, sigma): rows dx, dy and, where asked, vectors.

    Panels of one kind should stand side by side: they share one scale, drawn below them.

    Args:
        panels: the columns.
        limits: colour limits, the same for all wafers that are to be compared.
        ink: colour of text and lines.
        title: above all; may have several lines.
    """
    limits = limits or Limits()
    rows = 3 if any(panel.vectors for panel in panels) else 2
    # Placed by hand, in inches: equal circles whatever the labels, and the same on every machine.
    head = 0.3 + 0.2 * title.count("\n") if title else 0.0
    cell, left, top, strip = 2.1, 0.25, 0.3 + head, 0.5
    width, height = left + cell * len(panels), top + cell * rows + strip + 0.15
    figure = Figure(figsize=(width, height))

    def place(x: float, y: float, w: float, h: float) -> Axes:
        """Axes by their upper left corner."""
        return figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))

    for column, panel in enumerate(panels):
        x = left + column * cell
        axes = [place(x, top + row * cell, cell, cell) for row in (0, 1)]
        for axis in (0, 1):
            _heat(axes[axis], panel, axis, limits, ink)
        axes[0].set_title(panel.title, color=ink, fontsize=10, pad=3)
        if panel.vectors:
            _vectors(place(x, top + 2 * cell + strip, cell, cell), panel, ink)
    for row, label in enumerate(("dx", "dy", "vectors")[:rows]):
        y = top + (row + 0.5) * cell + (strip if row == 2 else 0.0)
        figure.text(0.12 / width, 1 - y / height, label, color=ink, rotation=90, ha="center", va="center")
    for kind in dict.fromkeys(panel.kind for panel in panels):
        columns = [i for i, panel in enumerate(panels) if panel.kind == kind]
        centre = left + (sum(columns) / len(columns) + 0.5) * cell
        bar = 0.8 * cell if len(columns) == 1 else 1.5 * cell
        _scale(figure, place(centre - bar / 2, top + 2 * cell + 0.04, bar, 0.1), kind, limits, ink)
    if title:
        middle = 0.05 + head / 2
        figure.text(0.5, 1 - middle / height, title, color=ink, fontsize=11, ha="center", va="center")
    return figure


def _heat(ax: Axes, panel: Panel, axis: int, limits: Limits, ink: str) -> None:
    grid = wafer_grid()
    low, high = limits.of(panel.kind)
    shown = grid.usable if panel.shown is None else (np.asarray(panel.shown) != 0)
    values = np.ma.masked_array(panel.values[axis], ~(shown & np.isfinite(panel.values[axis])))
    radius = WAFER_RADIUS_MM
    ax.imshow(
        values,
        extent=(-radius, radius, -radius, radius),
        origin="upper",
        cmap=SEQUENTIAL if panel.kind == "sigma" else DIVERGING,
        vmin=low,
        vmax=high,
        interpolation="none",
    )
    _wafer(ax, ink)
    if panel.flagged is not None and panel.flagged.any():
        x, y = grid.x_mm[panel.flagged], grid.y_mm[panel.flagged]
        ax.plot(x, y, linestyle="none", marker="x", markersize=2.5, markeredgewidth=0.8, color=FLAGGED)


def _vectors(ax: Axes, panel: Panel, ink: str, every: int = 3) -> None:
    """Arrows at every third mark (each way), all of a kind at one scale; flagged marks as red crosses."""
    key_nm = ERROR_KEY_NM if panel.kind == "error" else KEY_NM
    grid = wafer_grid()
    thin = np.zeros_like(grid.usable)
    thin[every // 2 :: every, every // 2 :: every] = True
    shown = grid.usable if panel.shown is None else (np.asarray(panel.shown) != 0)
    at = thin & shown & np.isfinite(panel.values).all(axis=0)
    ax.set_aspect("equal")
    _wafer(ax, ink)
    arrows = ax.quiver(
        grid.x_mm[at],
        grid.y_mm[at],
        panel.values[0][at],
        panel.values[1][at],
        angles="xy",
        scale_units="xy",
        scale=key_nm / KEY_MM,
        width=0.006,
        color=ink,
        clip_on=False,
    )
    ax.quiverkey(
        arrows, 0.9, -0.02, key_nm, f"{key_nm:g} nm", labelcolor=ink, color=ink, fontproperties={"size": 8}
    )
    if panel.flagged is not None and panel.flagged.any():
        x, y = grid.x_mm[panel.flagged], grid.y_mm[panel.flagged]
        ax.plot(x, y, linestyle="none", marker="x", markersize=2.5, markeredgewidth=0.8, color=FLAGGED)


def _wafer(ax: Axes, ink: str) -> None:
    """Edge, notch and exposure fields; no axes."""
    radius = WAFER_RADIUS_MM
    edge = Circle((0, 0), radius, fill=False, edgecolor=ink, linewidth=1.0)
    ax.add_patch(edge)
    lines = []
    for pitch, across in ((FIELD_WIDTH_MM, False), (FIELD_HEIGHT_MM, True)):
        for i in range(int(radius // pitch) + 1):
            for position in ((i + 0.5) * pitch, -(i + 0.5) * pitch):
                half = np.sqrt(max(radius**2 - position**2, 0.0))
                ends = [(position, -half), (position, half)]
                lines.append([(y, x) for x, y in ends] if across else ends)
    ax.add_collection(LineCollection(lines, colors=ink, linewidths=0.4, alpha=0.35))
    ax.plot([0], [-radius], marker="^", markersize=4, color=ink, linestyle="none")
    ax.set_xlim(-1.06 * radius, 1.06 * radius)
    ax.set_ylim(-1.06 * radius, 1.06 * radius)
    ax.set_axis_off()


def _scale(figure: Figure, ax: Axes, kind: Kind, limits: Limits, ink: str) -> None:
    """Colour bar in `ax`, lying."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    low, high = limits.of(kind)
    colours = ScalarMappable(Normalize(low, high), SEQUENTIAL if kind == "sigma" else DIVERGING)
    bar = figure.colorbar(
        colours,
        cax=ax,
        orientation="horizontal",
        extend="max" if kind == "sigma" else "both",
        ticks=[low, high] if kind == "sigma" else [low, 0.0, high],
    )
    if bar.solids is not None:
        bar.solids.set_rasterized(True)  # else 256 paths in an SVG
    bar.outline.set_edgecolor(ink)
    bar.ax.tick_params(colors=ink, labelsize=8)
    bar.set_label("nm" if kind == "map" else f"{kind}, nm", color=ink, fontsize=8, labelpad=1)


def figure_png(figure: Figure, dpi: int = 120, background: str = "none") -> bytes:
    """PNG, the same bytes for the same figure.

    Args:
        background: a colour; `none` is transparent, which takes the page's.
    """
    buffer = io.BytesIO()
    clear = background == "none"
    figure.savefig(
        buffer, format="png", dpi=dpi, transparent=clear, facecolor=background, metadata={"Software": None}
    )
    return buffer.getvalue()


def figure_svg(figure: Figure) -> str:
    """SVG with a transparent background and text as text, the same characters for the same figure."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ikddit"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()
