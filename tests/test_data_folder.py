"""Folders and zips of images: pixels, labels, order, faults, untrusted archives, cache."""

from __future__ import annotations

import gc
import io
import itertools
import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import records_of
from PIL import Image
from safetensors.torch import load_file

from gancore import Trainer, run
from gancore.cli import gan
from gancore.data import Dataset, cache, listing
from gancore.data import folder as module
from gancore.data.cache import cache_folder
from gancore.data.folder import decoder, folder
from gancore.errors import DataError, PluginError
from gancore.networks import MLPCritic, MLPGenerator
from gancore.options import complete, validate

ROOT = Path(__file__).parents[1]
VARIABLE = "GANCORE_CIFAR_ZIP"
BESIDE = ROOT.parent / "shared" / "data" / "cifar10-train-jpeg.zip"
BIG = Path(os.environ.get(VARIABLE, BESIDE))
Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def cached() -> list[Path]:
    return sorted(cache_folder().glob("*"))


def noise(seed: int, height: int = 8, width: int = 8, bands: int = 3) -> Array:
    shape = (height, width) if bands == 1 else (height, width, bands)
    return np.random.RandomState(seed).randint(0, 256, shape, dtype=np.uint8)


def encoded(picture: Array | Image.Image, format: str = "PNG", **options: Any) -> bytes:
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    stream = io.BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


def png(seed: int) -> bytes:
    return encoded(noise(seed))


Make = Callable[[dict[str, bytes]], Path]


@pytest.fixture(params=["folder", "zip"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Return what makes a folder or zip with those files."""
    counter = itertools.count()

    def make(files: dict[str, bytes]) -> Path:
        path = tmp_path / f"{request.param}{next(counter)}"
        if request.param == "zip":
            return zipped(path, files)
        path.mkdir()
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        return path

    return make


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def pixels(data: Dataset) -> Array:
    return data.samples.permute(0, 2, 3, 1).numpy()


def labels(data: Dataset) -> list[int] | None:
    return None if data.labels is None else data.labels.tolist()


# What is read


def test_class_folders(place: Make) -> None:
    path = place(
        {"dog/b.png": png(0), "cat/10.png": png(1), "cat/9.PNG": png(2), "ant/a.png": png(3)}
    )
    data = folder(path=str(path), size=8)
    assert (data.name, data.split, data.shape, len(data)) == ("folder", "train", (3, 8, 8), 4)
    assert np.array_equal(pixels(data), np.stack([noise(seed) for seed in (3, 1, 2, 0)]))
    assert labels(data) == [0, 1, 1, 2]


def test_no_class_folders(place: Make) -> None:
    path = place({f"{seed}.png": png(seed) for seed in (3, 1, 2)})
    data = folder(path=str(path), size=8)
    assert np.array_equal(pixels(data), np.stack([noise(seed) for seed in (1, 2, 3)]))
    assert data.labels is None


def test_folders_around_all_images_are_skipped(place: Make) -> None:
    data = folder(path=str(place({f"a/b/{c}/x.png": png(0) for c in "cd"})), size=8)
    assert labels(data) == [0, 1]
    assert folder(path=str(place({"a/x.png": png(0), "a/y.png": png(1)})), size=8).labels is None


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train/cat/1.png", "test/cat/1.png"], "'(train|test)/cat/1.png' is 2 folders deep.*path"),
        (["cat/1.png", "dog/x/1.png"], "'dog/x/1.png' is 2 folders deep"),
        (["cat/1.png", "cover.png"], "'cat/1.png' is in a class folder, 'cover.png' is not. Put"),
        (
            ["a/cat/1.png", "a/cover.png"],
            "'a/cat/1.png' is in a class folder, 'a/cover.png' is not",
        ),
    ],
)
def test_unclear_nesting_is_refused(place: Make, names: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        folder(path=str(place({name: png(0) for name in names})))


def test_other_and_hidden_files_are_ignored(place: Make) -> None:
    names = ".hidden.png cat/._1.png __MACOSX/cat/1.png .git/x/y/1.png readme.txt cat/a.csv a.gif"
    junk = dict.fromkeys(names.split(), b"junk")
    data = folder(path=str(place({"cat/1.png": png(0), "dog/1.png": png(1), **junk})), size=8)
    assert labels(data) == [0, 1]


def test_order_does_not_depend_on_the_file_system(tmp_path: Path) -> None:
    names = [f"{c}/{k}.png" for c in "ba" for k in (2, 11, 1)]
    files = {name: png(seed) for seed, name in enumerate(names)}
    one = folder(path=str(zipped(tmp_path / "1.zip", files)), size=8)
    two = folder(path=str(zipped(tmp_path / "2.zip", dict(reversed(files.items())))), size=8)
    assert one.sha256 == two.sha256
    assert labels(one) == [0, 0, 0, 1, 1, 1]
    assert np.array_equal(pixels(one)[1], noise(4))  # a/1, then a/11, then a/2


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "WEBP"])
@pytest.mark.parametrize("channels", [1, 3])
def test_formats_crop_and_resize(place: Make, format: str, channels: int) -> None:
    suffix = {"JPEG": "jpeg"}.get(format, format.lower())
    content = encoded(noise(0, 50, 71), format)
    data = folder(path=str(place({f"x.{suffix}": content})), size=16, channels=channels)  # type: ignore[arg-type]
    image = Image.open(io.BytesIO(content)).convert("L" if channels == 1 else "RGB")
    image = image.crop((10, 0, 60, 50)).resize((16, 16), Image.Resampling.BICUBIC)
    expected = np.asarray(image).reshape(16, 16, channels)
    assert np.array_equal(pixels(data)[0], expected)


def test_the_crop_is_central_and_exact() -> None:
    for height, width in ((12, 8), (8, 12), (13, 8), (8, 8)):
        tall = noise(1, height, width)
        top, left = (height - 8) // 2, (width - 8) // 2
        assert np.array_equal(
            decoder(8, 3)(encoded(tall)).transpose(1, 2, 0), tall[top : top + 8, left : left + 8]
        )


def test_shrinking_is_antialiased() -> None:
    board = np.indices((64, 64)).sum(0) % 2 * 255
    small = decoder(8, 1)(encoded(board.astype(np.uint8)))
    assert small.min() >= 126
    assert small.max() <= 129


@pytest.mark.parametrize("channels", [1, 3])
def test_modes(channels: int) -> None:
    """Each mode gives what a viewer shows; transparency over white, 16 bits by their high ones."""
    read = decoder(8, channels)
    grey, colour = noise(0, bands=1), noise(1)
    want = "L" if channels == 1 else "RGB"

    def expect(content: bytes, picture: Image.Image) -> None:
        assert np.array_equal(
            read(content).transpose(1, 2, 0),
            np.asarray(picture.convert(want)).reshape(8, 8, channels),
        )

    expect(encoded(grey), Image.fromarray(grey))
    expect(encoded(colour), Image.fromarray(colour))
    bilevel = Image.fromarray(grey).convert("1")
    expect(encoded(bilevel), bilevel)
    palette = Image.fromarray(colour).convert("P", palette=Image.Palette.ADAPTIVE)
    expect(encoded(palette), palette)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    expect(encoded(deep), Image.fromarray(grey))
    cmyk = Image.open(io.BytesIO(encoded(Image.fromarray(colour).convert("CMYK"), "JPEG")))
    expect(encoded(Image.fromarray(colour).convert("CMYK"), "JPEG"), cmyk)
    alpha = noise(2, bands=4)
    alpha[:4, :, 3], alpha[4:, :, 3] = 0, 255
    over = alpha[:, :, :3].copy()
    over[:4] = 255
    expect(encoded(alpha), Image.fromarray(over))
    expect(encoded(Image.fromarray(alpha), "WEBP", lossless=True), Image.fromarray(over))
    keyed = np.full((8, 8), 7, np.uint8)
    keyed[0] = 3
    shown = np.where(keyed == 3, 255, keyed).astype(np.uint8)
    expect(encoded(keyed, transparency=3), Image.fromarray(shown))
    indexed = Image.fromarray(keyed).convert("P")
    expect(encoded(indexed, transparency=bytes([255, 255, 255, 0])), Image.fromarray(shown))


def test_exif_rotation_is_applied_and_a_broken_one_is_not_an_error() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    turned = decoder(8, 3)(encoded(noise(0), exif=exif))
    assert np.array_equal(turned.transpose(1, 2, 0), np.rot90(noise(0), -1))
    broken = decoder(8, 3)(encoded(noise(0), exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
    assert np.array_equal(broken.transpose(1, 2, 0), noise(0))


def test_animations_give_their_first_frame() -> None:
    frames = [Image.fromarray(noise(seed)) for seed in range(3)]
    content = encoded(frames[0], save_all=True, append_images=frames[1:])
    assert np.array_equal(decoder(8, 3)(content).transpose(1, 2, 0), noise(0))


def test_two_threads_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"{seed:03}.png": png(seed) for seed in range(50)}
    first = folder(path=str(zipped(tmp_path / "1.zip", files)), size=8)
    monkeypatch.setattr(module, "SMALL", 0)
    monkeypatch.setattr(module, "CHUNK", 3)
    assert folder(path=str(zipped(tmp_path / "2.zip", files)), size=8).sha256 == first.sha256
    assert np.array_equal(pixels(first), np.stack([noise(seed) for seed in range(50)]))


def test_a_home_folder_and_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zipped(tmp_path / "x.zip", {"1.png": png(0)})
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert folder(path="~/x.zip").sha256 == folder(path="x.zip").sha256


# What can't be


@pytest.mark.parametrize(
    "content",
    [
        b"", b"not an image", png(0)[:60], png(0)[:-40], encoded(noise(0, 64, 64), "JPEG")[:900],
        png(0)[:50] + b"\xff\xff" + png(0)[52:], encoded(noise(0), "GIF"),
        encoded(noise(0), "BMP")[:99],
    ],
)  # fmt: skip
def test_a_corrupt_image_stops_with_its_path(place: Make, content: bytes) -> None:
    path = place({"cat/1.png": png(0), "dog/2.png": content, "dog/3.png": png(0)})
    with pytest.raises(
        DataError, match=r"dog/2\.png: not an image that can be read \(.+Remove or"
    ) as caught:
        folder(path=str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not cached()


def test_no_images(place: Make, tmp_path: Path) -> None:
    for files in ({"a.txt": b"x"}, {".a.png": b"x"}):
        with pytest.raises(DataError, match=r"no images in it; expected \.png, \.jpg, .*a class"):
            folder(path=str(place(files)))
    with pytest.raises(DataError, match=r"nowhere: no such folder or zip file\. Set data\.path"):
        folder(path=str(tmp_path / "nowhere"))
    (tmp_path / "x.rar").write_bytes(b"Rar!")
    with pytest.raises(DataError, match=r"x\.rar: not a folder, and not a zip file that can be"):
        folder(path=str(tmp_path / "x.rar"))


def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize("side", [9_000, 30_000])
def test_a_bomb_of_pixels_is_refused_before_it_is_decoded(place: Make, side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side // 8 + 1) * 1000), 9)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
    with pytest.raises(DataError, match=r"b\.png: .*(over the limit of 67,108,864 pixels|bomb)"):
        folder(path=str(place({"b.png": bomb})))


@pytest.mark.parametrize(
    ("limit", "value", "said"),
    [
        ("MOST_FILES", 2, "over the limit of 2 files"),
        ("LARGEST_FILE", 10, r"\.png: over the limit of 0 MiB for an image"),
        ("LARGEST_TOTAL", 500, "over the limit of 0 GiB of images"),
    ],
)
def test_limits(
    place: Make, limit: str, value: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place({f"{k}.png": png(k) for k in range(1, 5)})
    monkeypatch.setattr(listing, limit, value)
    with pytest.raises(DataError, match=said):
        folder(path=str(path))


def test_the_tensor_has_a_limit(place: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST", 3 * 32 * 32)
    path = place({"1.png": png(1), "2.png": png(2)})
    with pytest.raises(DataError, match=r"2 images of \(3, 32, 32\) take over .*Set data\.size"):
        folder(path=str(path))
    assert len(folder(path=str(path), size=16)) == 2


def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png(0))
    source = listing.Folder(tmp_path)
    (tmp_path / "1.png").unlink()
    with pytest.raises(DataError, match=r"1\.png: can't be read: No such file"):
        source.read(*source.files())


# Archives


@pytest.mark.parametrize(
    "name",
    ["../x.png", "/etc/x.png", "a/../../x.png", "..\\x.png", "C:\\x.png", "c:x.png", "\\x.png",
     "../x.txt"],
)  # fmt: skip
def test_names_that_leave_the_archive(tmp_path: Path, name: str) -> None:
    path = zipped(tmp_path / "x.zip", {"ok.png": png(0), name: png(1)})
    with pytest.raises(DataError, match=r"x\.zip: .* points outside the archive"):
        folder(path=str(path))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["x.zip"]


def test_nothing_is_extracted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder(path=str(zipped(tmp_path / "x.zip", {"cat/1.png": png(0)})))
    assert {each.name for each in tmp_path.iterdir()} == {"x.zip", "cache"}


def patched(path: Path, *, local: int, central: int, value: bytes, name: str = "1.png") -> Path:
    """Overwrite bytes at an offset in an entry's local and central headers."""
    content = bytearray(path.read_bytes())
    for signature, offset, size in ((b"PK\x03\x04", local, 30), (b"PK\x01\x02", central, 46)):
        at = 0
        while (at := content.find(signature, at)) >= 0:
            if offset >= 0 and content[at + size :].startswith(name.encode()):
                content[at + offset : at + offset + len(value)] = value
            at += 4
    path.write_bytes(bytes(content))
    return path


def test_encrypted_entries(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"0.png": png(0), "1.png": png(1)})
    patched(path, local=6, central=8, value=b"\1\0")
    with pytest.raises(DataError, match=r"x\.zip: 1\.png is encrypted\. Make the archive anew"):
        folder(path=str(path))


def test_a_declared_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(tmp_path / "x.zip", {"1.png": bytes(65 << 20)})
    assert path.stat().st_size < 1 << 20
    opened: list[Any] = []
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *a, **k: opened.append(a))
    with pytest.raises(DataError, match=r"1\.png: over the limit of 64 MiB"):
        folder(path=str(path))
    assert not opened


def test_a_bomb_that_lies_about_its_size_is_read_no_further(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"1.png": bytes(100 << 20)})
    patched(path, local=22, central=24, value=struct.pack("<I", 1000))
    script = (
        "import resource, sys\nfrom gancore.data.listing import Zip\nfrom pathlib import Path\n"
        "zipped = Zip(Path(sys.argv[1])); (file,) = zipped.files()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: zipped.read(file)\nexcept Exception as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=True
    )
    said, kib = done.stdout.splitlines()
    assert "1.png: can't be read from the archive (Bad CRC-32" in said
    assert int(kib) < 10_000


def test_an_entry_shorter_than_it_says(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"1.png": png(0)})
    patched(path, local=22, central=24, value=struct.pack("<I", 5000))
    with pytest.raises(DataError, match=r"1\.png: (shorter than it says|can't be read)"):
        folder(path=str(path))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_can_not_be_read_in_pieces(tmp_path: Path, method: int) -> None:
    path = zipped(tmp_path / "x.zip", {"1.png": png(0)}, method)
    with pytest.raises(DataError, match=rf"compressed by method {method}\. Make the archive anew"):
        folder(path=str(path))


def test_two_entries_of_one_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("1.png", png(0))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("1.png", png(1))
    with pytest.raises(DataError, match=r"1\.png is there twice"):
        folder(path=str(tmp_path / "x.zip"))


def test_links_in_archives(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("1.png")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match=r"1\.png is a link"):
        folder(path=str(tmp_path / "x.zip"))


def test_damaged_archives(tmp_path: Path) -> None:
    files = {f"{k}.png": png(k) for k in range(20)}
    path = zipped(tmp_path / "x.zip", files, zipfile.ZIP_STORED)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(png(3)) + 60] ^= 1
    for content, said in (
        (bytes(flipped), r"3\.png: can't be read from the archive \(Bad CRC-32"),
        (whole[: len(whole) // 2], r"x\.zip: not a folder, and not a zip file"),
        (b"", "not a zip file"),
        (whole[100:], r"x\.zip"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=said):
            folder(path=str(path))


def test_names_can_not_control_the_terminal(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"a\x1b[2Jb\n.png": b"bad"})
    with pytest.raises(DataError) as caught:
        folder(path=str(path))
    assert str(caught.value).isprintable()


def test_stored_deflated_and_windows_separators(tmp_path: Path) -> None:
    one = folder(
        path=str(zipped(tmp_path / "1.zip", {"a\\1.png": png(0), "b\\1.png": png(1)})), size=8
    )
    stored = zipped(tmp_path / "2.zip", {"a/1.png": png(0), "b/1.png": png(1)}, zipfile.ZIP_STORED)
    two = folder(path=str(stored), size=8)
    assert (labels(one), one.sha256) == (labels(two), two.sha256)
    assert labels(one) == [0, 1]


# The cache


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect how many images each read decodes."""
    counts: list[int] = []
    original = module._decoded

    def counting(source: Any, files: Any, *rest: Any) -> torch.Tensor:
        counts.append(len(files))
        return original(source, files, *rest)

    monkeypatch.setattr(module, "_decoded", counting)
    return counts


def same(one: Dataset, two: Dataset) -> bool:
    return (one.name, one.sha256, labels(one)) == (two.name, two.sha256, labels(two))


@pytest.mark.parametrize("names", [["1.png", "2.png"], ["a/1.png", "b/2.png"]])
def test_the_second_start_decodes_nothing(
    place: Make, decoded: list[int], names: list[str]
) -> None:
    path = str(place({name: png(seed) for seed, name in enumerate(names)}))
    first, second = folder(path=path), folder(path=path)
    assert decoded == [2]
    assert same(first, second)
    assert len(cached()) == 1
    assert cached()[0].suffix == ".safetensors"
    first.samples.zero_()  # nobody's changes reach the file
    second.samples.zero_()
    assert folder(path=path).samples.any()


def test_each_option_has_its_own(place: Make, decoded: list[int]) -> None:
    path = str(place({"1.png": png(0)}))
    for _ in range(2):
        shapes = [folder(path=path, size=s, channels=c).shape for s in (8, 16) for c in (1, 3)]
        assert shapes == [(1, 8, 8), (3, 8, 8), (1, 16, 16), (3, 16, 16)]
    assert decoded == [1] * 4


def test_a_changed_folder_is_read_again(tmp_path: Path, decoded: list[int]) -> None:
    path = tmp_path / "set"
    path.mkdir()
    for k in range(2):
        (path / f"{k}.png").write_bytes(png(k))
    folder(path=str(path), size=8)
    (path / "2.png").write_bytes(png(2))  # one more
    assert len(folder(path=str(path), size=8)) == 3
    about = (path / "2.png").stat()
    os.utime(path / "2.png", ns=(about.st_atime_ns, about.st_mtime_ns + 10**9))
    folder(path=str(path), size=8)  # another time of change
    (path / "2.png").rename(path / "z.png")
    folder(path=str(path), size=8)  # another name
    (path / "z.png").unlink()
    assert len(folder(path=str(path), size=8)) == 2
    folder(path=str(path), size=8)
    assert decoded == [2, 3, 3, 3, 2]
    assert len(cached()) == 1  # the old states are not kept


def test_a_changed_zip_is_read_again(tmp_path: Path, decoded: list[int]) -> None:
    path = zipped(tmp_path / "x.zip", {"1.png": png(0)}, zipfile.ZIP_STORED)
    about = path.stat()
    folder(path=str(path), size=8)
    changed = bytearray(encoded(noise(0) ^ 1))
    assert len(changed) == len(png(0))  # noise does not compress: the same size
    zipped(path, {"1.png": bytes(changed)}, zipfile.ZIP_STORED)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert path.stat().st_size == about.st_size
    assert np.array_equal(pixels(folder(path=str(path), size=8))[0], noise(0) ^ 1)
    assert decoded == [1, 1]


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    match how:
        case "truncated":
            content = content[: len(content) - 100]
        case "empty":
            content.clear()
        case "flipped":
            content[-50] ^= 1
        case "labels":
            content[8 + struct.unpack("<Q", content[:8])[0]] ^= 1
        case "header":
            content[20] = 0
        case "other":
            content[:] = b"something else"
        case "shape":
            size = struct.unpack("<Q", content[:8])[0]
            head = json.loads(content[8 : 8 + size])
            head["samples"]["shape"] = head["samples"]["shape"][::-1]
            text = json.dumps(head, separators=(",", ":")).encode().ljust(size)
            content[8 : 8 + size] = text
    file.write_bytes(content)


@pytest.mark.parametrize(
    "how", ["truncated", "empty", "flipped", "labels", "header", "other", "shape"]
)
def test_a_damaged_cache_is_made_anew(tmp_path: Path, decoded: list[int], how: str) -> None:
    path = str(zipped(tmp_path / "x.zip", {"a/1.png": png(0), "b/1.png": png(1)}))
    first = folder(path=path)
    kept = load_file(cached()[0])
    assert set(kept) == {"samples", "labels"}
    del kept
    damage(cached()[0], how)
    assert same(folder(path=path), first)
    assert same(folder(path=path), first)
    assert decoded == [2, 2]


def test_a_cache_that_can_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(zipped(tmp_path / "x.zip", {"1.png": png(0)}))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(folder(path=path)) == 1
    assert "images are not cached: " in caplog.text


def test_a_full_disk_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(tensors: Any, path: str, **_: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    assert len(folder(path=str(zipped(tmp_path / "x.zip", {"1.png": png(0)})))) == 1
    assert not cached()
    assert "No space left on device" in caplog.text


def test_leftovers_of_killed_processes_are_swept(tmp_path: Path) -> None:
    cache_folder().mkdir(parents=True)
    old, new = (cache_folder() / f".writing-{each * 16}" for each in "ab")
    for part in (old, new):
        part.write_bytes(b"x")
    os.utime(old, (0, 0))
    folder(path=str(zipped(tmp_path / "x.zip", {"1.png": png(0)})))
    assert not old.exists()
    assert new.exists()


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == tmp_path / "cache" / "gancore"
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative"):  # the specification: relative ones are ignored
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == tmp_path / ".cache" / "gancore"
    monkeypatch.setattr(cache, "cache_folder", lambda: exec("raise RuntimeError('no home')"))
    assert len(folder(path=str(zipped(tmp_path / "x.zip", {"1.png": png(0)})))) == 1


def test_options() -> None:
    assert complete(folder, {"path": "x"}) == {"path": "x", "size": 32, "channels": 3}
    for options in (
        {"path": "x", "size": 3}, {"path": "x", "size": 10**6}, {"path": "x", "channels": 2},
        {"size": 32}, {"path": "x", "shuffle": True},
    ):  # fmt: skip
        with pytest.raises(PluginError, match="data: "):
            validate(folder, options, "data")


# Memory


def storages() -> set[int]:
    """Return where uint8 tensors are that anything refers to."""
    gc.collect()
    return {
        each.untyped_storage().data_ptr()
        for each in gc.get_objects()
        if type(each) is torch.Tensor and each.dtype == torch.uint8
    }


def test_one_copy_is_held(place: Make) -> None:
    """After decoding, after a start from the cache, and while training."""
    path = str(place({f"{k}.png": png(k) for k in range(20)}))
    for _ in ("decoded", "cached"):
        before = storages()
        data = folder(path=path, size=8)
        trainer = Trainer(
            MLPGenerator((3, 8, 8)),
            MLPCritic((3, 8, 8)),
            data,
            train={"steps": 1, "batch_size": 4},
            flip=True,
            device="cpu",
        )
        trainer.critic_update(0)
        (held,) = storages() - before
        storage = data.samples.untyped_storage()
        assert (storage.data_ptr(), storage.nbytes()) == (held, 20 * 3 * 8 * 8)


# The real thing


@pytest.mark.slow
@pytest.mark.skipif(
    not BIG.is_file(), reason=f"no {BIG}: name a zip of CIFAR-10's training images by {VARIABLE}"
)
def test_cifar_from_a_zip(tmp_path: Path) -> None:
    """Fifty thousand images, ten updates of the recipe, and samples of that run."""
    data = folder(path=str(BIG))
    assert (len(data), data.shape) == (50_000, (3, 32, 32))
    assert data.labels is not None
    assert torch.bincount(data.labels).tolist() == [5000] * 10
    with zipfile.ZipFile(BIG) as archive:
        name = sorted(archive.namelist())[31_234]
        picture = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
    assert np.array_equal(pixels(data)[31_234], np.asarray(picture))
    small = {
        "data.name": "folder",
        "data.path": str(BIG),
        "score.metrics": [],
        "sample.count": 9,
        "generator.width": 16,  # 4,096 latents go through it before it is sampled from
        "critic.width": 16,
        "train.steps": 10,
        "train.batch_size": 2,
        "train.generator_batch_size": 4,
    }
    done = run(ROOT / "recipes" / "wgan_gp_cifar.toml", tmp_path / "run", small)
    assert records_of(done)[-1]["step"] == 10
    assert done.sample_path(10).is_file()
    gan.main(
        ["sample", str(tmp_path / "run"), "-n", "9", "--out", str(tmp_path / "samples.npz")],
        standalone_mode=False,
    )
    with np.load(tmp_path / "samples.npz") as found:
        assert (found["arr_0"].shape, found["arr_0"].dtype) == ((9, 32, 32, 3), np.uint8)
