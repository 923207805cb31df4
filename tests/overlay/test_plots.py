"""Wafer figures: what is drawn, and that drawing is deterministic and leaves pyplot alone."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ikddit.overlay.grid import wafer_grid
from ikddit.overlay.plots import (
    DIVERGING,
    KEY_NM,
    Limits,
    Panel,
    figure_png,
    figure_svg,
    flagged_marks,
    nice_limit,
    panel_figure,
)

GRID = wafer_grid()


@pytest.fixture
def wafer() -> tuple[np.ndarray, np.ndarray]:
    maps = np.random.default_rng(0).normal(0, 2, (2, 64, 64))
    valid = GRID.usable.copy()
    valid[20, 30] = False
    return maps, valid


def panels(wafer: tuple[np.ndarray, np.ndarray]) -> list[Panel]:
    maps, valid = wafer
    return [
        Panel("predicted", maps, vectors=True),
        Panel("measured", maps + 0.1, shown=valid, vectors=True, flagged=flagged_marks(valid)),
        Panel("error", np.full_like(maps, -0.1), shown=valid, kind="error"),
        Panel("sigma", np.ones_like(maps), kind="sigma"),
    ]


def test_a_lonely_invalid_mark_is_flagged_and_an_unmeasured_area_is_not() -> None:
    valid = GRID.usable.copy()
    valid[20, 30] = False
    valid[40:48, 20:28] = False
    flagged = flagged_marks(valid)
    assert flagged[20, 30]
    assert not flagged[41:47, 21:27].any()
    assert not flagged[~GRID.usable].any()


def test_heat_maps_have_symmetric_fixed_limits_and_hide_invalid_marks(
    wafer: tuple[np.ndarray, np.ndarray],
) -> None:
    figure = panel_figure(panels(wafer), Limits(map_nm=5.0, error_nm=2.0, sigma_nm=1.0))
    images = [ax.images[0] for ax in figure.axes if ax.images]
    assert sorted({image.get_clim() for image in images}) == [(-5.0, 5.0), (-2.0, 2.0), (0.0, 1.0)]
    assert {image.get_cmap().name for image in images} == {DIVERGING, "viridis"}
    measured_dx = images[2].get_array()
    assert measured_dx.mask[20, 30]
    assert not measured_dx.mask[21, 30]
    assert measured_dx[21, 30] == pytest.approx(wafer[0][0, 21, 30] + 0.1)
    assert images[0].get_array().mask[0, 0]  # off the wafer


def test_vectors_have_a_10_nm_key_and_point_as_measured(wafer: tuple[np.ndarray, np.ndarray]) -> None:
    from matplotlib.quiver import Quiver, QuiverKey

    figure = panel_figure([Panel("measured", wafer[0], shown=wafer[1], vectors=True)])
    children = [artist for ax in figure.axes for artist in ax.get_children()]
    key = next(artist for artist in children if isinstance(artist, QuiverKey))
    arrows = next(artist for artist in children if isinstance(artist, Quiver))
    assert (key.U, key.label) == (KEY_NM, "10 nm")
    row = int(np.argmin(np.abs(GRID.y_mm[:, 0] - arrows.Y[0])))
    col = int(np.argmin(np.abs(GRID.x_mm[0] - arrows.X[0])))
    assert (arrows.U[0], arrows.V[0]) == (wafer[0][0, row, col], wafer[0][1, row, col])


def test_vectors_of_errors_have_a_key_of_their_own(wafer: tuple[np.ndarray, np.ndarray]) -> None:
    from matplotlib.quiver import Quiver, QuiverKey

    panels = [Panel("error", wafer[0], kind=kind, vectors=True) for kind in ("map", "error")]
    children = [artist for ax in panel_figure(panels).axes for artist in ax.get_children()]
    assert [a.label for a in children if isinstance(a, QuiverKey)] == ["10 nm", "3 nm"]
    on_map, of_error = (a.scale for a in children if isinstance(a, Quiver))
    assert of_error == pytest.approx(0.3 * on_map)


def test_flyers_are_red_crosses_at_their_place(wafer: tuple[np.ndarray, np.ndarray]) -> None:
    figure = panel_figure([Panel("measured", wafer[0], flagged=flagged_marks(wafer[1]))])
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert [line.get_color() for line in crosses] == ["#e00000"]
    assert crosses[0].get_xydata().tolist() == [[GRID.x_mm[20, 30], GRID.y_mm[20, 30]]]


def test_the_top_of_the_wafer_is_drawn_on_top() -> None:
    maps = np.zeros((2, 64, 64))
    maps[0, :20] = 5.0  # row 0 is the largest y
    figure = panel_figure([Panel("measured", maps)])
    box = figure.axes[0].get_position()  # of dx
    pixels = np.asarray(Image.open(_png(figure)).convert("RGB")).astype(int)
    height, width = pixels.shape[:2]
    centre = round((box.x0 + 0.54 * box.width) * width)  # beside the notch
    top, bottom = (pixels[round((1 - box.y0 - share * box.height) * height), centre] for share in (0.8, 0.2))
    assert top[0] - top[2] > 50  # orange: positive
    assert abs(int(bottom[0]) - int(bottom[2])) < 15  # neutral


def _png(figure: object) -> object:
    import io

    return io.BytesIO(figure_png(figure))


def test_the_same_wafer_gives_the_same_bytes(wafer: tuple[np.ndarray, np.ndarray]) -> None:
    assert figure_png(panel_figure(panels(wafer)), dpi=60) == figure_png(panel_figure(panels(wafer)), dpi=60)
    svg = figure_svg(panel_figure(panels(wafer)))
    assert svg == figure_svg(panel_figure(panels(wafer)))
    assert "predicted" in svg  # text stays text


def test_one_limit_for_many_wafers_is_round_and_holds_nearly_all() -> None:
    assert nice_limit(np.array([np.nan, 5.9, -5.5])) == 6.0
    assert nice_limit(np.array([np.nan])) == 0.5
    noise = np.random.default_rng(0).normal(0, 2, 100_000)
    assert (np.abs(noise) <= nice_limit(noise)).mean() >= 0.995


def test_drawing_does_not_touch_pyplot() -> None:
    code = (
        "import numpy as np, sys\n"
        "from ikddit.overlay.plots import Panel, figure_png, panel_figure\n"
        "figure_png(panel_figure([Panel('measured', np.zeros((2, 64, 64)))]), dpi=40)\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr
