"""PNG maps: linear and invertible inside the range, and nothing but 8-bit RGB of the right size is read."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from rawmpom import SCALE_NM, USABLE, make_map, png, png_bytes

from ikddit.errors import InputError
from ikddit.mpom.encoding import (
    SIGNATURE,
    clipped_values,
    decode_png,
    encode_png,
    nm_from_rgb,
    resample,
    rgb_from_nm,
)

VALUES = hnp.arrays(np.float64, (2, 8, 8), elements=st.floats(-16, 16))
MASKS = hnp.arrays(np.uint8, (8, 8), elements=st.integers(0, 1))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def handmade_png(width: int, height: int, depth: int, colour: int, row_bytes: int) -> bytes:
    """A PNG that Pillow would not write, all zeros."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(bytes(height * (row_bytes + 1)))
    return SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@given(VALUES, MASKS)
def test_values_in_range_come_back_within_half_a_grey_level(values, valid):
    data = encode_png(rgb_from_nm(values, valid, SCALE_NM))
    nm, mask = nm_from_rgb(decode_png(data, 8, "a.png"), SCALE_NM, "a.png")
    assert np.array_equal(mask, valid)
    assert np.isnan(nm[:, valid == 0]).all()
    assert (np.abs(nm - values)[:, valid == 1] <= SCALE_NM / 255 + 1e-5).all()


@given(hnp.arrays(np.uint8, (8, 8, 3)), st.sampled_from([1.0, 16.0, 0.3]))
def test_codes_come_back_exactly(codes, scale_nm):
    codes[..., 2] = np.where(codes[..., 2] > 127, 255, 0)
    nm, valid = nm_from_rgb(decode_png(encode_png(codes), 8, "a.png"), scale_nm, "a.png")
    back = rgb_from_nm(nm, valid, scale_nm)
    assert np.array_equal(back[valid == 1], codes[valid == 1])


def test_reader_agrees_with_the_format_written_pixel_by_pixel():
    truth = make_map(3)
    nm, valid = nm_from_rgb(decode_png(png(truth), 64, "a.png"), SCALE_NM, "a.png")
    assert np.array_equal(valid == 1, USABLE)
    assert np.abs(nm - truth)[:, USABLE].max() <= SCALE_NM / 255 + 1e-5


def test_values_beyond_the_range_are_clipped_and_counted():
    values = np.zeros((2, 64, 64))
    values[0, 10, 10], values[1, 20, 20], values[0, 0, 0] = 99.0, -99.0, 99.0
    rgb = rgb_from_nm(values, USABLE, SCALE_NM)
    assert clipped_values(rgb) == 2  # the third lies outside the mask
    nm, _ = nm_from_rgb(rgb, SCALE_NM, "a.png")
    assert (nm[0, 10, 10], nm[1, 20, 20]) == (SCALE_NM, -SCALE_NM)


@pytest.mark.parametrize(
    ("data", "field", "reason"),
    [
        (png_bytes(Image.new("L", (64, 64))), "mode", "8-bit greyscale"),
        (png_bytes(Image.new("P", (64, 64))), "mode", "palette"),
        (png_bytes(Image.new("RGBA", (64, 64))), "mode", "RGB with alpha"),
        (png_bytes(Image.new("LA", (64, 64))), "mode", "greyscale with alpha"),
        (png_bytes(Image.new("I;16", (64, 64))), "mode", "16-bit greyscale"),
        (handmade_png(64, 64, 16, 2, 384), "mode", "16-bit RGB"),
        (png_bytes(Image.new("RGB", (64, 64)), transparency=(0, 0, 0)), "mode", "transparent"),
        (png_bytes(Image.new("RGB", (63, 64))), "size", "63x64 pixels, expected 64x64"),
        (handmade_png(2**31 - 1, 2**31 - 1, 8, 2, 0), "size", "2147483647x2147483647"),
        (b"", "content", "ends early"),
        (b"GIF89a" + bytes(20), "content", "not a PNG"),
        (SIGNATURE + chunk(b"IEND", b""), "content", "without a header"),
    ],
)
def test_other_images_are_refused_with_a_reason(data, field, reason):
    with pytest.raises(InputError) as caught:
        decode_png(data, 64, "overlay_1.png")
    assert caught.value.field == field
    assert reason in caught.value.reason


def test_pixel_data_shorter_than_the_image_are_refused():
    with pytest.raises(InputError, match=r"a\.png: content"):
        decode_png(handmade_png(64, 64, 8, 2, 100), 64, "a.png")


SOUND = png(make_map(0))


@given(st.integers(0, len(SOUND) - 1))
def test_every_truncation_is_refused(length):
    with pytest.raises(InputError, match="content"):
        decode_png(SOUND[:length], 64, "a.png")


@given(st.integers(0, len(SOUND) - 1), st.integers(1, 255))
def test_every_flipped_byte_is_refused(at, flip):
    data = bytearray(SOUND)
    data[at] ^= flip
    with pytest.raises(InputError):
        decode_png(bytes(data), 64, "a.png")


def test_blue_other_than_0_or_255_is_refused():
    rgb = np.zeros((64, 64, 3), np.uint8)
    rgb[3, 4, 2] = 254
    with pytest.raises(InputError, match="B channel holds 254"):
        nm_from_rgb(rgb, SCALE_NM, "a.png")


def test_interlaced_png_is_read_like_a_plain_one():
    # Adam7 of an all-black image: seven passes of zeros, one filter byte for each line.
    passes = [(8, 8), (8, 8), (16, 8), (16, 16), (32, 16), (32, 32), (64, 32)]
    pixels = b"".join(bytes(height * (1 + 3 * width)) for width, height in passes)
    header = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 1)
    data = SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    assert not decode_png(data, 64, "a.png").any()


def brute_force_mean(values: np.ndarray, valid: np.ndarray, target: int, fine: int) -> np.ndarray:
    """Area average by cutting every source pixel into equal parts (`target` divides size * fine)."""
    cut = np.kron(np.where(valid == 1, values, np.nan), np.ones((fine, fine)))
    block = cut.shape[0] // target
    parts = cut.reshape(target, block, target, block).transpose(0, 2, 1, 3).reshape(target, target, -1)
    share = np.isfinite(parts).mean(axis=-1)
    total = np.nansum(parts, axis=-1) / np.maximum(np.isfinite(parts).sum(axis=-1), 1)
    return np.where(share >= 0.5 - 1e-9, total, np.nan)


@given(
    hnp.arrays(np.float32, (12, 12), elements=st.floats(-10, 10, width=32)),
    hnp.arrays(np.uint8, (12, 12), elements=st.integers(0, 1)),
    st.sampled_from([4, 8, 12, 16]),
)
def test_resampling_averages_the_valid_area(values, valid, target):
    masked = np.where(valid == 1, values, np.nan)[None]
    maps, mask = resample(masked, valid, target)
    expected = brute_force_mean(values, valid, target, fine=target)
    assert np.array_equal(mask == 1, np.isfinite(expected))
    np.testing.assert_allclose(maps[0], expected, atol=1e-4)
