"""Pixels of pictures as they occur, against NumPy; what can't be read is named for what it is."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gancore.data import decoding
from gancore.data.decoding import decoder, kind

Array = np.ndarray[Any, Any]
BANDS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Of PNG's colour types."""
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
         (0, 1, 1, 2))  # fmt: skip
"""PNG's interlacing: where each pass begins, x and y, and its steps."""


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def rows(values: Array, depth: int) -> bytes:
    """Return the lines (H, W, bands) of a PNG, each with the filter "none" before it."""
    packed = bytearray()
    for row in values.reshape(len(values), -1):
        bits = (row[:, None] >> np.arange(depth - 1, -1, -1)) & 1
        packed += b"\0" + np.packbits(bits.astype(np.uint8)).tobytes()
    return bytes(packed)


def png(
    values: Array, depth: int, colour: int, *before: bytes, after: bytes = b"", lace: bool = False
) -> bytes:
    """Return a PNG of these samples (H, W, bands), with chunks before and after the pixels."""
    height, width = values.shape[:2]
    passes = [values[y::dy, x::dx] for x, y, dx, dy in ADAM7] if lace else [values]
    data = b"".join(rows(each, depth) for each in passes if each.size)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, lace)
    return b"".join([
        *(decoding.SIGNATURE, chunk(b"IHDR", header), *before),
        *(chunk(b"IDAT", zlib.compress(data)), after, chunk(b"IEND", b"")),
    ])  # fmt: skip


def samples(depth: int, bands: int, side: int = 9) -> Array:
    return np.random.RandomState(depth).randint(0, 2**depth, (side, side, bands))


def over_white(colour: Array, opacity: Array) -> Array:
    """Return 0 … 255 of colour and opacity in [0, 1]: laid over white, rounded to the nearest."""
    return np.round(255 * (colour * opacity + 1 - opacity))


def read(content: bytes, channels: int = 3, side: int = 9) -> Array:
    return decoder(side, channels)(content).transpose(1, 2, 0).astype(int)


KINDS = [
    (depth, colour, keyed, lace)
    for colour, depths in ((0, (1, 2, 4, 8, 16)), (2, (8, 16)), (4, (8, 16)), (6, (8, 16)))
    for depth in depths
    for keyed in ((False, True) if colour in (0, 2) else (False,))
    for lace in (False, True)
]


@pytest.mark.parametrize(("depth", "colour", "keyed", "lace"), KINDS)
def test_png(depth: int, colour: int, keyed: bool, lace: bool) -> None:
    """Grey and colour, of each depth, with alpha or a key that is transparent, interlaced or not.

    A key differs from another sample in its lowest bit alone.
    """
    most, has_alpha = 2**depth - 1, colour in (4, 6)
    values = samples(depth, BANDS[colour])
    values[2, 3] |= 1
    key = values[2, 3].copy()
    near = key.copy()
    near[-1] ^= 1
    values[4, 5], values[5, 5] = near, key
    marks = [chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))] if keyed else []
    unit = values / most
    opacity = unit[..., -1:] if has_alpha else np.ones((9, 9, 1))
    if keyed:
        opacity = (values != key).any(-1, keepdims=True).astype(float)
        assert 2 <= (opacity == 0).sum() < 81
    expected = over_white(unit[..., :-1] if has_alpha else unit, opacity)
    content = png(values, depth, colour, *marks, lace=lace)
    found = read(content)
    off = 1 if has_alpha and depth == 8 else 0  # Pillow's own, in integers
    assert np.abs(found - expected).max() <= off
    if expected.shape[-1] == 1:
        assert np.abs(read(content, channels=1) - expected).max() <= off
    else:
        luma = found @ (0.299, 0.587, 0.114)
        assert np.abs(read(content, channels=1)[..., 0] - luma).max() < 1


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palettes_with_transparency(depth: int) -> None:
    values = samples(depth, 1)
    colours = np.random.RandomState(1).randint(0, 256, (2**depth, 3))
    alphas = np.where(np.arange(2**depth) % 2, 255, 0)
    expected = over_white(colours[values[..., 0]] / 255, alphas[values] / 255)
    table = [
        chunk(b"PLTE", bytes(colours.ravel().tolist())),
        chunk(b"tRNS", bytes(alphas.tolist())),
    ]
    assert np.array_equal(read(png(values, depth, 3, *table)), expected)


TURNS: dict[int, Callable[[Array], Array]] = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize(("depth", "colour"), [(8, 2), (16, 0), (16, 2), (16, 4)])
def test_orientation_of_exif(turn: int, depth: int, colour: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    values = samples(depth, BANDS[colour])
    marked = png(values, depth, colour, chunk(b"eXIf", exif.tobytes()[6:]))
    assert np.array_equal(read(marked), TURNS[turn](read(png(values, depth, colour))))


def test_animated_png_gives_its_first_picture() -> None:
    """Of 16 bits too, whose lower ones are read from the file once more."""
    first, second = samples(16, 3), samples(16, 3)[::-1]
    control = chunk(b"acTL", struct.pack(">II", 2, 0))
    place = struct.pack(">IIIIHHBB", 9, 9, 0, 0, 1, 10, 0, 0)
    data = struct.pack(">I", 2) + zlib.compress(rows(second, 16))
    frames = [chunk(b"fcTL", struct.pack(">I", 1) + place), chunk(b"fdAT", data)]
    content = png(first, 16, 2, control, chunk(b"fcTL", bytes(4) + place), after=b"".join(frames))
    assert Image.open(io.BytesIO(content)).is_animated  # type: ignore[attr-defined]
    assert np.array_equal(read(content), np.round(first / 257))


def test_two_bytes_of_colour_cut_short_are_told() -> None:
    content = png(samples(16, 3), 16, 2)
    with pytest.raises(Exception, match=r"truncated|broken|Truncated"):
        read(content[: len(content) // 2])


# Alpha that was never set


def bmp(pixels: Array, masks: tuple[int, ...] | None) -> bytes:
    """Return a BMP of four bytes (H, W, 4) a pixel: of version 4 with masks, else of version 3."""
    height, width = pixels.shape[:2]
    size = 108 if masks else 40
    header = struct.pack(
        "<IiiHHIIiiII", size, width, height, 1, 32, 3 if masks else 0, 0, 0, 0, 0, 0
    )
    header += struct.pack("<4I", *masks) + bytes(52) if masks else b""
    body = pixels[::-1].astype(np.uint8).tobytes()
    total = 14 + size
    return b"BM" + struct.pack("<IHHI", total + len(body), 0, 0, total) + header + body


BGRA = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
RGBA = (0xFF, 0xFF00, 0xFF0000, 0xFF000000)
ABGR = (0xFF000000, 0xFF0000, 0xFF00, 0xFF)


@pytest.mark.parametrize(
    ("masks", "order"), [(BGRA, [2, 1, 0, 3]), (RGBA, [0, 1, 2, 3]), (ABGR, [3, 2, 1, 0])]
)
def test_bmp_with_alpha(masks: tuple[int, ...], order: list[int]) -> None:
    """Zero everywhere is no alpha, as in a screen grab; else it is one."""
    values = samples(8, 4)
    for opacity in (np.zeros((9, 9)), np.full((9, 9), 255), 255 * np.eye(9)):
        values[..., 3] = opacity
        shown = np.where(values[..., 3:] == 0, 255, values[..., :3])
        expected = shown if opacity.any() else values[..., :3]
        assert np.array_equal(read(bmp(values[..., order], masks)), expected)


def test_bmp_without_alpha() -> None:
    values = samples(8, 4)
    for last in (0, 77):
        values[..., 3] = last
        assert np.array_equal(read(bmp(values, None)), values[..., 2::-1])
        masks = (*BGRA[:3], 0)
        assert np.array_equal(read(bmp(values, masks)), values[..., 2::-1])


def test_png_that_is_transparent_all_over_is_white() -> None:
    values = samples(8, 4)
    values[..., 3] = 0
    assert read(png(values, 8, 6)).min() == 255


# Profiles and texts


def texts(size: int, count: int = 1) -> Iterator[bytes]:
    packed = zlib.compress(bytes(size))
    yield chunk(b"iCCP", b"x\0\0" + packed) * count
    yield chunk(b"zTXt", b"x\0\0" + packed) * count
    yield chunk(b"iTXt", b"x\0\1\0\0\0" + packed) * count


@pytest.mark.parametrize("depth", [8, 16])
def test_pictures_with_long_texts_are_read(depth: int) -> None:
    """Over Pillow's limit of a MiB for one, before or after the pixels."""
    values = samples(depth, 3)
    expected = np.round(values / (2**depth - 1) * 255)
    for text in texts((1 << 20) + 1):
        assert np.array_equal(read(png(values, depth, 2, text)), expected)
        assert np.array_equal(read(png(values, depth, 2, after=text)), expected)


def test_many_and_damaged_texts_are_no_fault_of_pixels() -> None:
    values = samples(8, 3)
    (_, many, _) = texts(1 << 20, 66)
    damaged = [
        chunk(b"iCCP", b"x\0\7" + b"?" * 20),  # an unknown compression
        chunk(b"zTXt", b"x\0\0abc")[:-1] + b"?",  # a wrong checksum
        chunk(b"tEXt", b"x\0abc")[:-1] + b"?",
    ]
    assert np.array_equal(read(png(values, 8, 2, many)), values)
    for text in damaged:
        assert np.array_equal(read(png(values, 8, 2, text)), values)
        assert np.array_equal(read(png(values, 8, 2, after=text)), values)


def test_a_bomb_in_a_text_takes_no_memory() -> None:
    content = [png(samples(8, 3), 8, 2, text) for text in texts(32 << 20)]
    decode = decoder(9, 3)
    decode(content[0])
    tracemalloc.start()
    try:
        for each in content:
            decode(each)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_long_text_excuses_no_damage() -> None:
    (_, text, _) = texts(2 << 20)
    content = png(samples(8, 3, 64), 8, 2, text)
    with pytest.raises(Exception, match="truncated"):
        read(content[:-2000])
    header = struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)
    huge = decoding.SIGNATURE + chunk(b"IHDR", header) + text + chunk(b"IDAT", b"")
    with pytest.raises(Exception, match=r"9000×9000 is over the limit"):
        read(huge)
    with pytest.raises(Exception, match="9000×9000|damaged PNG"):
        read(huge[:-7])  # cut anywhere, it ends


# What is no image


def packed(brands: bytes) -> bytes:
    return struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands + bytes(100)


def written(format: str) -> bytes:
    Image.fromarray(samples(8, 3).astype(np.uint8)).save(stream := io.BytesIO(), format)
    return stream.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
OTHERS = {
    "avif": (packed(b"avif\0\0\0\0mif1miaf"), "an AVIF image: convert it"),
    "avif in heif": (packed(b"mif1\0\0\0\0mif1avif"), "an AVIF image: convert it"),
    "heic": (packed(b"heic\0\0\0\0mif1heic"), "a HEIC image: convert it"),
    "heif": (packed(b"mif1\0\0\0\0mif1"), "a HEIC image: convert it"),
    "mp4": (packed(b"isom\0\0\2\0isomavc1"), "a video: save its frames"),
    "gif": (written("GIF"), "a GIF image: convert it"),
    "tiff": (written("TIFF"), "a TIFF image: convert it"),
    "tiff of 64 bits": (b"MM\0+\0\x08\0\0" + bytes(20), "a TIFF image: convert it"),
    "jpeg 2000": (written("JPEG2000"), "a JPEG 2000 image: convert it"),
    "jpeg xl": (b"\xff\x0a" + bytes(20), "a JPEG XL image: convert it"),
    "ppm": (written("PPM"), "a Netpbm image: convert it"),
    "ico": (written("ICO"), "an icon: convert it"),
    "pdf": (b"%PDF-1.7\n", "a PDF: convert it"),
    "npy": (b"\x93NUMPY\1\0", "a NumPy array: convert it"),
    "zip": (b"PK\3\4" + bytes(20), "an archive: unpack it"),
    "lfs": (LFS, "a Git LFS pointer, not the file itself: run git lfs pull"),
    "annex": (b"../../.git/annex/objects/a/b/SHA256", "a git-annex pointer, not the file itself"),
    "html": (b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html><head>", "an HTML page: get it again"),
    "bare html": (b"<HTML>\n<title>404 Not Found</title>", "an HTML page: get it again"),
    "html with a comment": (b"<!-- x -->\n<html lang='en'>", "an HTML page: get it again"),
    "svg": (b'<?xml version="1.0"?>\n<!-- a > b -->\n<svg width="9">', "an SVG drawing: convert"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied', "an XML text: get it again"),
    "json": (b'{"message": "Not Found"}', "a JSON text: get it again"),
    "text": (b"Access \x1b[2J denied", "not PNG, JPEG, BMP or WebP, or damaged"),
    "plain text": (b"Access denied\n", "a text, 'Access denied'"),
    "empty": (b"", "an empty file: get it again"),
    "zeros": (bytes(5000), "nothing but zeros: get it again"),
    "noise": (b"\xd3\x91\x00\xfe\xa7" * 9, "not PNG, JPEG, BMP or WebP, or damaged"),
    "png": (decoding.SIGNATURE + bytes(40), "a damaged PNG: get it again"),
    "jpeg": (b"\xff\xd8\xff\xe0" + bytes(40), "a damaged JPEG: get it again"),
    "webp": (b"RIFF\x20\0\0\0WEBPVP8 " + bytes(3), "a damaged WebP: get it again"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_image_is_named(name: str) -> None:
    content, said = OTHERS[name]
    assert kind(content).startswith(said)
    assert kind(content).isprintable()
    if not name.startswith(("jpeg", "webp")):
        with pytest.raises(ValueError, match="^" + said[:12]):
            read(content)


@pytest.mark.parametrize("start", [b"<", b"<!--", b"<?a>", b"<!", b"<!a", b" ", b"<svg", b"../"])
def test_no_start_of_a_file_takes_long_to_be_known(start: bytes) -> None:
    content = start * 50_000
    began = time.perf_counter()
    kind(content)
    assert time.perf_counter() - began < 0.5
