"""Maps become images by the encoding of the data set's own PNGs, each with the mask of its wafer."""

import numpy as np
import pyarrow as pa
import pytest
from evaluation_fakes import GRID, make_split
from fid_fakes import made_maps

from ikddit.errors import InputError
from ikddit.evaluation.fid.maps import measured_maps
from ikddit.evaluation.fid.rendering import render, render_scale_nm
from ikddit.evaluation.fid.score import generated_maps
from ikddit.mpom.encoding import nm_from_rgb

USABLE = GRID.usable.astype(np.uint8)


@pytest.mark.parametrize("scale_nm", [4.0, 16.0, 60.0])
def test_a_png_decoded_kept_as_float16_and_rendered_again_is_the_same_png(scale_nm):
    codes = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    codes[0].flat[: 3 * 256] = np.repeat(np.arange(256, dtype=np.uint8), 3)
    codes[..., 2] = USABLE * 255
    codes[..., :2] *= USABLE[..., None]
    decoded = [nm_from_rgb(image, scale_nm, "a.png") for image in codes]
    kept = np.nan_to_num(np.stack([nm for nm, _ in decoded])).astype(np.float16).astype(np.float32)
    assert (render(kept, np.stack([valid for _, valid in decoded]), scale_nm) == codes).all()


def test_rendering_is_invertible_to_half_a_grey_level():
    maps = made_maps(3, 0).astype(np.float32)
    valid = np.stack([USABLE] * 3)
    back = [nm_from_rgb(image, 16.0, "a.png")[0] for image in render(maps, valid, 16.0)]
    assert np.nanmax(np.abs(np.stack(back) - maps)) <= 16.0 / 255 + 1e-6


def test_what_lies_under_invalid_marks_is_not_seen():
    maps = made_maps(1, 0).astype(np.float32)
    other = np.where(USABLE, maps, np.nan)
    valid = USABLE[None]
    assert (render(maps, valid, 16.0) == render(other, valid, 16.0)).all()
    assert (render(maps, valid, 16.0)[0][USABLE == 0] == 0).all()


def test_scale_is_the_settings_else_the_data_sets_else_six_sigma():
    assert render_scale_nm(8.0, 16.0, 2.0) == 8.0
    assert render_scale_nm(None, 16.0, 2.0) == 16.0
    assert render_scale_nm(None, None, 2.0) == 12.0


def test_generated_maps_take_the_mask_of_their_own_wafer():
    masks = np.stack([USABLE] * 3)
    masks[1, 30:34, 30:34] = 0
    split = make_split(3, barcodes=["A", "B", "C"], valid=masks)
    samples = made_maps(4, 1).reshape(2, 2, 2, 64, 64)
    found = generated_maps(samples, pa.table({"barcode": ["C", "B"]}), split)
    assert found.wafer.tolist() == [0, 0, 1, 1]
    seen = [(rows, maps, valid) for rows, maps, valid in found.blocks(3)]
    assert [rows for rows, _, _ in seen] == [slice(0, 3), slice(3, 4)]
    valid = np.concatenate([valid for _, _, valid in seen])
    assert (valid == masks[[2, 2, 1, 1]]).all()
    maps = np.concatenate([maps for _, maps, _ in seen])
    assert (maps == samples.reshape(4, 2, 64, 64) * valid[:, None]).all()


def test_generated_maps_of_other_wafers_are_refused():
    with pytest.raises(InputError, match="'Z' is not in this split"):
        generated_maps(
            np.zeros((1, 2, 2, 64, 64)), pa.table({"barcode": ["Z"]}), make_split(2, barcodes=["A", "B"])
        )


def test_wafers_without_a_measurement_are_no_part_of_the_measured_maps():
    masks = np.stack([USABLE] * 3)
    masks[1] = 0
    maps = made_maps(3, 0)
    found = measured_maps(make_split(3, map=maps, valid=masks), "test")
    assert (np.asarray(found.maps) == maps[[0, 2]]).all()
    assert len(found) == 2


def test_a_split_without_wafers_has_no_maps():
    assert len(measured_maps(make_split(0), "test_unseen")) == 0
