"""From an image file's bytes to its pixels, and what a file is that is no such image."""

from __future__ import annotations

import contextlib
import io
import re
import struct
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from gancore.text import shown

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageFile import ImageFile

    Pixels = np.ndarray[Any, np.dtype[np.uint8]]

FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
MOST_PIXELS = 1 << 26
"""In one image, before it is decoded."""

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")
"""PNG's chunks of profile and text; none of them decides a pixel."""
LARGEST = {"L;2": 3, "L;4": 15, "L": 255}
"""The sample that is white in each of Pillow's layouts of grey PNG."""


def decoder(size: int, channels: int) -> Callable[[bytes], Pixels]:
    """Return a function from an image file's bytes to uint8 (channels, size, size).

    It raises ValueError for what is no image of these formats, and whatever Pillow does for a
    damaged one.
    """
    from PIL import Image, ImageOps, WebPImagePlugin

    Image.preinit()  # here, as it is not meant for threads
    _ = WebPImagePlugin  # registers itself
    mode = "L" if channels == 1 else "RGB"

    def upright(content: bytes) -> Picture:
        image = _in_eight_bits(_opened(content), content)
        with contextlib.suppress(Exception):  # a picture may be fine where its EXIF is not
            image = ImageOps.exif_transpose(image)
        return image

    def decode(content: bytes) -> Pixels:
        try:
            image = upright(content)
        except (ValueError, SyntaxError):  # as of a text that inflates to over a MiB, or is damaged
            if (bare := _without_texts(content)) is None:
                raise
            image = upright(bare)
        image = _plain(image, mode)
        width, height = image.size
        if width != height:
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        pixels = np.asarray(image)
        return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)

    return decode


def _opened(content: bytes) -> ImageFile:
    """Return an image whose pixels are not decoded yet, within the limit."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(kind(content)) from None
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width}×{height} is over the limit of {MOST_PIXELS:,} pixels")
    return image


def _plain(image: Picture, mode: str) -> Picture:
    """Return an image in grey or colour, transparency laid over white."""
    from PIL import Image

    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _in_eight_bits(image: ImageFile, content: bytes) -> Picture:
    """Return an image decoded, in at most 8 bits a sample, with the transparency that is meant.

    A BMP's alpha that is 0 everywhere was left unset by whoever wrote it. Of grey PNGs of 2 and 4
    bits, Pillow scales samples, but not the key. 16 bits are rounded to v / 257, where transparency
    is laid over white as well: Pillow clips them, or drops the lower 8, and loses the key.
    """
    from PIL import Image

    layout = str(image.tile[0][3]) if image.format == "PNG" and image.tile else ""
    image.load()
    if image.format == "BMP" and image.mode == "RGBA":
        return image.convert("RGB") if image.getchannel("A").getextrema() == (0, 0) else image
    key = image.info.get("transparency")
    if not layout.endswith(";16B"):
        if key is not None and layout in LARGEST:
            image.info["transparency"] = (key & LARGEST[layout]) * (255 // LARGEST[layout])
        return image
    wide = _sixteen_bits(image, layout, content)
    opacity: np.ndarray[Any, Any] | None = None
    if layout in ("LA;16B", "RGBA;16B"):
        wide, opacity = wide[..., :-1], wide[..., -1] / 65535
    elif key is not None:
        opacity = (wide != key).any(-1)
    pixels = np.empty(wide.shape, np.uint8)
    for band in range(wide.shape[-1]):
        values = wide[..., band] / 257
        pixels[..., band] = np.round(values if opacity is None else 255 + opacity * (values - 255))
    narrow = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    narrow.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return narrow


def _sixteen_bits(
    image: Picture, layout: str, content: bytes
) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Return the samples (H, W, bands) of a PNG of 16 bits, whose upper bytes are in `image`."""
    if layout == "I;16B":
        return np.asarray(image)[..., None].astype(np.uint16)
    if layout == "LA;16B":  # lies in the file as colour with alpha of 8 bits does
        at = content.index(b"IHDR")
        header = content[at : at + 12] + b"\x08\x06" + content[at + 14 : at + 17]
        checked = header + struct.pack(">I", zlib.crc32(header))
        pairs = np.asarray(_opened(content[:at] + checked + content[at + len(checked) :]))
        high, low = pairs[..., ::2], pairs[..., 1::2]
    else:
        lower = _opened(content)
        lower.tile = [
            (codec, extents, offset, layout.replace("16B", "16L"))  # type: ignore[misc]
            for codec, extents, offset, _ in lower.tile
        ]
        high, low = np.asarray(image), np.asarray(lower)
    wide: np.ndarray[Any, np.dtype[np.uint16]] = high.astype(np.uint16) << 8 | low
    return wide


def _without_texts(content: bytes) -> bytes | None:
    """Return a PNG without its profile and texts; None for one without these."""
    kept, at = [SIGNATURE], len(SIGNATURE)
    if not content.startswith(SIGNATURE):
        return None
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        if content[at + 4 : at + 8] not in TEXTS:
            kept.append(content[at:end])
        at = end
    bare = b"".join(kept)
    return bare if len(bare) < len(content) else None


CONVERT, AGAIN = "convert it to PNG or JPEG", "get it again"

KINDS = {
    "an AVIF image": (rb".{4}ftyp(?:.{4}){0,15}avi[fs]", CONVERT),
    "a HEIC image": (rb".{4}ftyp(?:.{4}){0,15}(?:hei[cmsx]|hev[cmsx]|mif1|msf1)", CONVERT),
    "a video": (rb".{4}ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI ", "save its frames as PNG"),
    "a GIF image": (rb"GIF8", CONVERT),
    "a TIFF image": (rb"II[*+]\0|MM\0[*+]", CONVERT),
    "a JPEG XL image": (rb"\xff\x0a|\0\0\0\x0cJXL ", CONVERT),
    "a JPEG 2000 image": (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", CONVERT),
    "a Photoshop image": (rb"8BPS", CONVERT),
    "a Netpbm image": (rb"P[1-7]\s", CONVERT),
    "an icon": (rb"\0\0[\x01\x02]\0", CONVERT),
    "a PDF": (rb"%PDF", CONVERT),
    "a NumPy array": (rb"\x93NUMPY", CONVERT),
    "an archive": (rb"PK\x03\x04|\x1f\x8b|Rar!|7z\xbc\xaf|\xfd7zXZ|BZh", "unpack it"),
    "a Git LFS pointer, not the file itself": (
        rb"version https://(?:git-lfs|hawser)\.github\.com",
        "run git lfs pull where it was cloned",
    ),
    "a git-annex pointer, not the file itself": (
        rb"(?:\.\./)*(?:\.git)?/?annex/objects/",
        "run git annex get where it was cloned",
    ),
    "an HTML page": (
        rb"(?i)\W*(?:<!--.{0,400}?-->\s*)?<(?:!doctype\s+html|html|head|body|script|title)\b",
        AGAIN,
    ),
    "an SVG drawing": (rb"(?i)\W*<(?:svg\b|[?!].*<svg\b)", CONVERT),
    "an XML text": (rb"\W*<\?xml", AGAIN),
    "a JSON text": (rb'\s*[{[]\s*["{[\d]', AGAIN),
    "a damaged PNG": (rb"\x89PNG", AGAIN),
    "a damaged JPEG": (rb"\xff\xd8", AGAIN),
    "a damaged BMP": (rb"BM", AGAIN),
    "a damaged WebP": (rb"RIFF.{4}WEBP", AGAIN),
    "nothing but zeros": (rb"\0+\Z", AGAIN),
}
"""Of files that are no PNG, JPEG, BMP or WebP: how each kind begins, and what to do with one."""


def kind(content: bytes) -> str:
    """Return what a file is that can't be read as an image, with the remedy where one is known."""
    if not content:
        return f"an empty file: {AGAIN}"
    start = content[:1024]
    for name, (pattern, remedy) in KINDS.items():
        if re.match(pattern, start, re.DOTALL):
            return f"{name}: {remedy}"
    with contextlib.suppress(UnicodeDecodeError):
        if (text := start[:100].decode()).replace("\n", " ").isprintable():
            return f"a text, {shown(text.strip(), 40)!r}"
    return "not PNG, JPEG, BMP or WebP, or damaged"
