"""Overlay maps as 8-bit RGB PNGs and back: strict, linear, and with its error known.

R holds dx and G holds dy as `round(127.5 + v * 127.5 / scale_nm)`, B is 255 where the mark is valid and 0
elsewhere. Half a step (`scale_nm / 255`) is the largest error inside the range; values beyond it are clipped.
"""

import io
import struct
import zlib

import numpy as np
from isal import isal_zlib
from jaxtyping import Float32, Shaped, UInt8
from PIL import Image

from ikddit.errors import InputError
from ikddit.mpom.inflate import INFLATE_ERROR

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {0: "greyscale", 2: "RGB", 3: "palette", 4: "greyscale with alpha", 6: "RGB with alpha"}
_REEXPORT = "export it again as an 8-bit RGB PNG"


def step_nm(scale_nm: float) -> float:
    """Width in nm of one grey level.

    >>> step_nm(16.0)
    0.12549019607843137
    """
    return scale_nm / 127.5


def encode_png(rgb: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Compress an image to PNG bytes (8-bit RGB, no metadata: same image, same bytes)."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(buffer, "PNG")
    return buffer.getvalue()


def decode_png(data: bytes, size: int, file: str) -> UInt8[np.ndarray, "size size 3"]:
    """Read an 8-bit RGB PNG of exactly `size` x `size` pixels.

    The chunks are walked first: Pillow alone turns 16-bit colours into 8-bit ones without a word and does not
    look at the checksum of the pixel data.

    Args:
        data: the file's bytes.
        size: pixels per side.
        file: name for messages.

    Raises:
        InputError: not a PNG, truncated, damaged, of another size, or not 8-bit RGB.

    >>> image = np.zeros((64, 64, 3), np.uint8)
    >>> bool((decode_png(encode_png(image), 64, "a.png") == image).all())
    True
    >>> decode_png(encode_png(image)[:60], 64, "a.png")
    Traceback (most recent call last):
        ...
    ikddit.errors.InputError: a.png: content: PNG ends early, after 60 bytes; copy or export it again
    """
    packed, interlaced = _pixel_data(data, size, file)
    try:
        if not interlaced:
            packed = _stored_again(packed, size * (1 + 3 * size), file)
        # Pillow's own PNG decoder, without its file reader, which costs a third of the time of a small image
        # (benchmarks/bench_ingest.py) and would walk the chunks again.
        image = Image.frombytes("RGB", (size, size), packed, "zip", ("RGB", interlaced))
        # Line by line R, G and B: put together channel by channel faster than from pixels.
        pixels = image.tobytes("raw", "RGB;L")
    # What Pillow raises on damaged pixel data is not one type.
    except (OSError, SyntaxError, ValueError, EOFError, INFLATE_ERROR, struct.error) as error:
        raise InputError(file, "content", f"damaged PNG: {error}", _REEXPORT) from None
    if len(pixels) != size * size * 3:
        raise InputError(
            file, "content", f"{len(pixels)} bytes of pixels, expected {size * size * 3}", _REEXPORT
        )
    # One channel after the other in memory, which all that follows is faster on.
    planes = np.ascontiguousarray(np.frombuffer(pixels, np.uint8).reshape(size, 3, size).transpose(1, 0, 2))
    return planes.transpose(1, 2, 0)


def _stored_again(packed: bytes, length: int, file: str) -> bytes:
    """Inflate the filtered lines with ISA-L, in half of zlib's time, and wrap them uncompressed for Pillow."""
    inflater = isal_zlib.decompressobj()
    lines = inflater.decompress(packed, length + 1)
    if len(lines) != length or not inflater.eof:
        reason = f"damaged PNG: {len(lines)} bytes of lines, expected {length}"
        raise InputError(file, "content", reason, _REEXPORT)
    if length > 0xFFFF:
        return zlib.compress(lines, 0)
    block = struct.pack("<BHH", 1, length, length ^ 0xFFFF)  # the last one, stored
    return b"".join((b"\x78\x01", block, lines, isal_zlib.adler32(lines).to_bytes(4, "big")))


def _pixel_data(data: bytes, size: int, file: str) -> tuple[bytes, int]:
    """Walk and check the chunks; returns the compressed pixels and the interlace method."""
    if not data.startswith(SIGNATURE):
        if SIGNATURE.startswith(data[:8]) and len(data) < 8:
            raise InputError(
                file, "content", f"PNG ends early, after {len(data)} bytes", "copy or export it again"
            )
        raise InputError(file, "content", "not a PNG file", _REEXPORT)
    at = len(SIGNATURE)
    interlaced = -1
    packed = []
    while True:
        end = at + 8
        if end > len(data) or (end := at + 12 + int.from_bytes(data[at : at + 4])) > len(data):
            raise InputError(
                file, "content", f"PNG ends early, after {len(data)} bytes", "copy or export it again"
            )
        kind = data[at + 4 : at + 8]
        if isal_zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            raise InputError(
                file, "content", f"wrong checksum in PNG chunk {kind!r}", "copy or export it again"
            )
        if interlaced < 0:
            interlaced = _check_header(kind, data[at + 8 : end - 4], size, file)
        if kind == b"IDAT":
            packed.append(data[at + 8 : end - 4])
        elif kind == b"tRNS":
            raise InputError(file, "mode", "RGB with a transparent colour, expected 8-bit RGB", _REEXPORT)
        elif kind == b"IEND":
            return b"".join(packed), interlaced
        at = end


def _check_header(kind: bytes, header: bytes, size: int, file: str) -> int:
    """Check IHDR; returns the interlace method."""
    if kind != b"IHDR" or len(header) != 13:
        raise InputError(file, "content", "PNG without a header chunk", _REEXPORT)
    width, height, depth, colour = struct.unpack(">IIBB", header[:10])
    if (depth, colour) != (8, 2):
        name = _COLOUR_TYPES.get(colour, f"colour type {colour}")
        raise InputError(file, "mode", f"{depth}-bit {name}, expected 8-bit RGB", _REEXPORT)
    if (width, height) != (size, size):
        reason = f"{width}x{height} pixels, expected {size}x{size}"
        raise InputError(file, "size", reason, "re-export or set ingest.image_size (--image-size)")
    if header[10:12] != b"\0\0" or header[12] > 1:
        raise InputError(file, "content", "unknown compression, filter or interlace method", _REEXPORT)
    return header[12]


def rgb_from_nm(
    map_nm: Shaped[np.ndarray, "*batch 2 h w"], valid: Shaped[np.ndarray, "*batch h w"], scale_nm: float
) -> UInt8[np.ndarray, "*batch h w 3"]:
    """Encode maps in nm; values beyond +-`scale_nm` are clipped, pixels with `valid` 0 are black.

    >>> rgb_from_nm(np.array([[[16.0]], [[-16.0]]]), np.ones((1, 1)), 16.0).tolist()
    [[[255, 0, 255]]]
    """
    mask = np.asarray(valid) != 0
    planes = np.where(mask[..., None, :, :], np.nan_to_num(map_nm), -scale_nm)
    codes = np.clip(np.round(127.5 + planes * (127.5 / scale_nm)), 0, 255).astype(np.uint8)
    blue = np.where(mask, 255, 0).astype(np.uint8)
    return np.stack([codes[..., 0, :, :], codes[..., 1, :, :], blue], axis=-1)


def nm_from_rgb(
    rgb: UInt8[np.ndarray, "h w 3"], scale_nm: float, file: str
) -> tuple[Float32[np.ndarray, "2 h w"], UInt8[np.ndarray, "h w"]]:
    """Decode a map in nm and its mask (1 valid, 0 not); invalid pixels are NaN.

    Raises:
        InputError: B is neither 0 nor 255 somewhere, so this is not a map in this encoding.

    >>> nm, valid = nm_from_rgb(np.array([[[255, 0, 255], [9, 9, 0]]], np.uint8), 16.0, "a.png")
    >>> nm.tolist(), valid.tolist()
    ([[[16.0, nan]], [[-16.0, nan]]], [[1, 0]])
    """
    blue = rgb[..., 2]
    valid = blue & 1
    # 0 and 255 are the only bytes equal to minus their lowest bit.
    if (blue != np.negative(valid)).any():
        odd = blue[(blue != 0) & (blue != 255)]
        reason = f"B channel holds {int(odd[0])} ({odd.size} pixels of this kind), expected 0 or 255"
        remedy = "this is not the nm encoding; leave ingest.scale_nm (--scale-nm) unset for such images"
        raise InputError(file, "mask", reason, remedy)
    nm = np.subtract(rgb[..., :2].transpose(2, 0, 1), np.float32(127.5))
    nm *= np.where(valid, np.float32(scale_nm / 127.5), np.float32(np.nan))
    return nm, valid


def unit_from_rgb(rgb: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "3 h w"]:
    """Foreign image without a known scale: R, G, B in [0, 1]."""
    return np.ascontiguousarray(rgb.transpose(2, 0, 1)).astype(np.float32) / np.float32(255.0)


def clipped_values(rgb: UInt8[np.ndarray, "h w 3"]) -> int:
    """Count values on valid marks that sit at the end of the range (0 or 255), so may have been clipped."""
    # Less one, in bytes that wrap around, the ends 0 and 255 are the two largest values.
    codes, blue = rgb[..., :2].transpose(2, 0, 1), rgb[..., 2]
    ends = (codes - np.uint8(1)) >= 254
    ends &= blue == 255
    return int(np.count_nonzero(ends))


def area_weights(size: int, target: int) -> Float32[np.ndarray, "target size"]:
    """Share of each target pixel that each source pixel covers along one axis; rows sum to 1.

    >>> area_weights(4, 2).tolist()
    [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    """
    source = np.arange(size) * (target / size)
    low = np.maximum(np.arange(target)[:, None], source)
    high = np.minimum(np.arange(1, target + 1)[:, None], source + target / size)
    weights: Float32[np.ndarray, "target size"] = np.maximum(high - low, 0.0).astype(np.float32)
    return weights


def resample(
    maps: Float32[np.ndarray, "c h w"], valid: UInt8[np.ndarray, "h w"], target: int
) -> tuple[Float32[np.ndarray, "c target target"], UInt8[np.ndarray, "target target"]]:
    """Average over the area of each target pixel, valid pixels only.

    A target pixel is valid when valid source pixels cover at least half of it, and NaN elsewhere.

    >>> maps, valid = resample(np.arange(16, dtype=np.float32).reshape(1, 4, 4), np.ones((4, 4), np.uint8), 2)
    >>> maps.tolist(), valid.tolist()
    ([[[2.5, 4.5], [10.5, 12.5]]], [[1, 1], [1, 1]])
    """
    weights = area_weights(valid.shape[-1], target)
    cover = weights @ valid.astype(np.float32) @ weights.T
    total = weights @ np.where(valid == 0, np.float32(0.0), maps) @ weights.T
    enough = cover >= 0.5 - 1e-6
    mean = np.divide(total, cover, out=np.full_like(total, np.nan), where=enough)
    return mean, enough.astype(np.uint8)
