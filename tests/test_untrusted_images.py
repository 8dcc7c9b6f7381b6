"""Pictures and CIFAR-10 from strangers: they take no memory and time that they don't need."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gancore.data import cifar
from gancore.data.cifar import cifar10
from gancore.errors import DataError
from gancore.report.filmstrip import find_grids, read_frames, read_grid


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *others: bytes) -> bytes:
    """Return a PNG that says to have so many grey pixels, and has a few."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + b"".join([header, *others, pixels, chunk(b"IEND", b"")])


def bmp() -> bytes:
    Image.new("L", (4, 4)).save(file := io.BytesIO(), "BMP")
    return file.getvalue()


TEXT = chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(8 << 20)))

PICTURES = {
    "a bomb": (png(60_000, 60_000), "exceeds limit"),
    "one that Pillow warns of": (
        png(10_000, 10_000),
        "10000×10000 is over the limit of 80,000,000",
    ),
    "one that Pillow takes": (png(10_000, 8_001), "10000×8001 is over the limit of 80,000,000"),
    "a long text": (png(4, 4, TEXT), "[Tt]oo [Ll]arge"),
    "no PNG": (bmp(), "cannot identify"),
    "cut": (png(4, 4)[:44], "truncated"),
    "nothing": (b"", "cannot identify"),
}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize(
    "read", [lambda path: read_frames(path.parent), read_grid], ids=["run", "board"]
)
def test_a_strange_picture_is_refused(
    tmp_path: Path, read: Callable[[Path], Any], name: str
) -> None:
    content, said = PICTURES[name]
    (path := tmp_path / "step-000005.png").write_bytes(content)
    with pytest.raises(DataError, match=f"^step-000005.png can't be read, so delete it.*({said})"):
        read(path)


def test_what_is_not_named_as_a_grid_is_left_alone(tmp_path: Path) -> None:
    for name in ("best", "", "-000001", "٠٠٠٠٠١", "000001x", "1", "9" * 200, "000001.png"):
        (tmp_path / f"step-{name}.png").write_bytes(b"x")
    for step in (7, 1_000_000_000):
        (tmp_path / f"step-{step:06d}.png").write_bytes(b"x")
    assert [step for step, _ in find_grids(tmp_path)] == [7, 1_000_000_000]


def test_large_grids_are_not_all_held(tmp_path: Path) -> None:
    for step, mode in enumerate(("RGB", "L")):
        Image.new(mode, (2000, 1000), "white").save(tmp_path / f"step-{step:06d}.png")
    frames = read_frames(tmp_path)
    assert [(frame.image.mode, frame.image.size) for frame in frames] == [("RGB", (640, 320))] * 2
    assert frames[1].image.getpixel((0, 0)) == (255, 255, 255)


# CIFAR-10


def test_an_archive_that_asks_for_memory_is_refused_unopened(tmp_path: Path) -> None:
    """Python's reader of tar files takes a name as long as the file says into memory."""
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 64 << 20
    content = gzip.compress(name.tobuf(tarfile.GNU_FORMAT) + bytes(name.size + 1024), 1)
    (tmp_path / cifar.ARCHIVE).write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=hashlib.md5(content).hexdigest()):
            cifar10(path=str(tmp_path))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
