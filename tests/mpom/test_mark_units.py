"""A unit that is not the declared one is told by the size of the overlay, whatever the marks are."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikddit.errors import InputError
from ikddit.mpom.marks import read_wafer_marks
from ikddit.mpom.wafer import Layout
from ikddit.params import MarksParams

ANGLE = np.linspace(0, 2 * np.pi, 24, endpoint=False)
SIGNS = np.resize([1.0, -1.0], 24)
LAYOUT = Layout([], 1.0)
TYPICAL_NM = st.floats(0.5, 30.0)
RADII_MM = st.floats(2.0, 149.0)


def read(dx: np.ndarray, dy: np.ndarray, unit: str, radius_mm: float = 100.0):
    """A wafer of 24 marks on a circle."""
    columns = {
        "barcode": ["W"] * len(dx),
        "wafer_x_mm": radius_mm * np.cos(ANGLE),
        "wafer_y_mm": radius_mm * np.sin(ANGLE),
        "ovl_x_nm": dx,
        "ovl_y_nm": dy,
    }
    return read_wafer_marks(pa.table(columns), "W", "m.csv#W", MarksParams(unit=unit), LAYOUT)


@given(TYPICAL_NM, TYPICAL_NM, RADII_MM)
def test_nm_declared_as_um_is_a_unit_problem(x_nm, y_nm, radius_mm):
    with pytest.raises(InputError, match=r"unit: .* more than any overlay; nm declared as um") as caught:
        read(x_nm * SIGNS, y_nm * SIGNS, "um", radius_mm)
    assert caught.value.field == "unit"


@given(TYPICAL_NM, TYPICAL_NM, RADII_MM)
def test_um_declared_as_nm_is_a_unit_problem(x_nm, y_nm, radius_mm):
    with pytest.raises(InputError, match=r"unit: .* less than metrology noise; um declared as nm") as caught:
        read(x_nm / 1000 * SIGNS, y_nm / 1000 * SIGNS, "nm", radius_mm)
    assert caught.value.field == "unit"


@given(st.floats(0.5, 25.0), st.floats(0.5, 25.0), RADII_MM)
def test_the_right_unit_is_believed(x_nm, y_nm, radius_mm):
    in_nm = read(x_nm * SIGNS, y_nm * SIGNS, "nm", radius_mm)
    in_um = read(x_nm / 1000 * SIGNS, y_nm / 1000 * SIGNS, "um", radius_mm)
    assert in_nm.valid.any()
    np.testing.assert_allclose(in_um.map, in_nm.map, rtol=1e-5)


def test_a_median_just_above_metrology_noise_is_believed():
    assert read(0.051 * SIGNS, 0.051 * SIGNS, "nm").valid.any()


@pytest.mark.parametrize(
    ("median_nm", "unit"), [(151.0, "nm"), (0.049, "nm"), (0.151, "um"), (0.000049, "um")]
)
def test_the_bounds_are_150_and_0_05_nm(median_nm, unit):
    with pytest.raises(InputError) as caught:
        read(median_nm * SIGNS, median_nm * SIGNS, unit)
    assert caught.value.field == "unit"


def test_one_bad_axis_is_enough():
    with pytest.raises(InputError, match=r"median \|ovl_y\| is 2000 nm"):
        read(SIGNS, 2000 * SIGNS, "nm")


def test_flyers_do_not_make_a_unit_problem():
    dx = SIGNS.copy()
    dx[:8] = 5e4
    assert read(dx, SIGNS, "nm").valid.any()


@pytest.mark.parametrize("sentinel", [1e30, -1e30, 3.2e154, 1.1e6])
def test_a_mark_that_nobody_can_have_measured_costs_its_wafer(sentinel):
    dx = SIGNS.copy()
    dx[5] = sentinel
    with pytest.raises(InputError, match=r"a valid mark of .* nm, above 1e\+06") as caught:
        read(dx, SIGNS, "nm")
    assert (caught.value.field, "empty" in str(caught.value)) == ("ovl_x_nm", True)


def test_an_axis_that_was_not_measured_is_named():
    with pytest.raises(InputError, match="ovl_y_nm: 0 on all 24 marks"):
        read(SIGNS, 0 * SIGNS, "nm")


def test_a_position_in_the_place_of_the_overlay_is_no_unit_problem():
    with pytest.raises(InputError, match="look swapped") as caught:
        read(100 * np.cos(ANGLE), SIGNS, "nm", radius_mm=30.0)
    assert caught.value.field == "ovl_x_nm"
