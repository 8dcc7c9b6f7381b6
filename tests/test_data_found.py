"""What a run says of its images: how many, from where, what is passed over, doubted or damaged.

And that a changed file is read again, whatever its times say.
"""

from __future__ import annotations

import io
import os
import re
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import TOY, Gan
from PIL import Image

from gancore.data import Dataset, listing
from gancore.data import folder as module
from gancore.data.folder import folder
from gancore.errors import DataError
from gancore.training.idle import IdleWarning

Make = Callable[[dict[str, bytes]], Path]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def png(value: int) -> bytes:
    """Return a PNG of 8×8 pixels of one value; as long for each value."""
    Image.new("RGB", (8, 8), (value,) * 3).save(stream := io.BytesIO(), "PNG", compress_level=0)
    return stream.getvalue()


@pytest.fixture(params=["folder", "zip"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Return what makes a folder or a zip named "set" with those files."""

    def make(files: dict[str, bytes]) -> Path:
        path = tmp_path / "set"
        if request.param == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in files.items():
                    archive.writestr(name, content)
            return path
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        return path

    return make


def values(data: Dataset) -> list[int]:
    return [int(value) for value in data.samples[:, 0, 0, 0]]


READ = "(only .png, .jpg, .jpeg, .bmp, .webp are read: convert what belongs to the data)"


def test_files_passed_over_are_counted_by_their_endings(place: Make) -> None:
    """From the cache as well."""
    names = "a.tif b.TIF c.tif d.gif e.jfif f.jpe g.avif README sub.d/h.heic .i.tif __MACOSX/j.gif"
    path = place({"1.png": png(1), "2.png": png(2)} | dict.fromkeys(names.split(), b"x"))
    said = f"from {path}; passed over: 3 .tif, 1 without an ending, 1 .avif, 1 .gif"
    for _ in range(2):
        data = folder(path=str(path), size=8)
        assert data.about == f"{said}, 1 .heic, 1 .jfif, 1 .jpe {READ}"
    assert str(data) == f"2 images of 3×8×8, {data.about}"
    assert values(data) == [1, 2]


def test_few_endings_are_named_and_none_moves_a_cursor(place: Make) -> None:
    many = {f"{k}.e{k % 12}": b"" for k in range(12)} | {"x.\x1b[2J": b"", "y." + "z" * 200: b""}
    about = folder(path=str(place({"1.png": png(1), **many})), size=8).about
    assert about.isprintable()
    listed = r"1 .\x1b[2j, 1 .e0, 1 .e1, 1 .e10, 1 .e11, 1 .e2, 1 .e3, 1 .e4, 6 of other endings"
    assert about.endswith(f": {listed} {READ}")


def test_nothing_passed_over_is_not_told(place: Make) -> None:
    path = place({"cat/1.png": png(1), "dog/1.png": png(1)})
    assert folder(path=str(path), size=8).about == f"in 2 class folders, from {path}"


def test_no_images_but_others(place: Make) -> None:
    path = place({"a.tif": b"x", "b/c.tif": b"x", "d.gif": b"x"})
    with pytest.raises(DataError, match=r"no images in it; .*a class; found 2 \.tif, 1 \.gif$"):
        folder(path=str(path))


def test_what_is_passed_over_is_counted_anew_though_images_are_cached(tmp_path: Path) -> None:
    (path := tmp_path / "set").mkdir()
    (path / "1.png").write_bytes(png(1))
    (path / "2.gif").write_bytes(b"x")
    assert folder(path=str(path), size=8).about.endswith(f": 1 .gif {READ}")
    (path / "2.gif").unlink()
    assert folder(path=str(path), size=8).about == f"from {path}"
    (path / "3.tif").write_bytes(b"x")
    assert folder(path=str(path), size=8).about.endswith(f": 1 .tif {READ}")


DOUBTED = [
    ("train val", "train, val", "train"),
    ("Test Training", "Test, Training", "Training"),
    ("images masks", "images, masks", "images"),
    ("cat masks", "masks", "cat"),
    ("trainA trainB testA testB", "testA, testB, trainA, trainB", "trainA"),
    ("train2017 val2017", "train2017, val2017", "train2017"),
    ("imagesTr labelsTr imagesTs", "imagesTr, imagesTs, labelsTr", "imagesTr"),
    ("img_1 gt", "gt, img_1", "img_1"),
    ("train_masks train_images", "train_images, train_masks", "train_images"),
    ("dog validation-set", "validation-set", "dog"),
]


@pytest.mark.parametrize(("names", "doubted", "meant"), DOUBTED)
def test_class_folders_that_are_none_by_their_names(
    place: Make, names: str, doubted: str, meant: str
) -> None:
    """From the cache as well; folders around them stand in the path that is to be set."""
    path = place({f"around/{name}/1.png": png(1) for name in names.split()})
    remedy = "unpack it, and set data.path to that folder"
    if path.is_dir():
        remedy = f"set data.path = {str(path / 'around' / meant)!r}"
    for _ in range(2):
        (line,) = folder(path=str(path), size=8).doubts
        assert line == (
            f"data: the folders {doubted} in {path / 'around'} are taken for classes, and images "
            f"of all {len(names.split())} class folders are in the data; if one alone is meant, "
            f"{remedy}"
        )


def test_class_folders_that_are_classes(place: Make) -> None:
    names = "trainer latest cat1 with_mask-on unmasked imagery validated goldfish depths_of_sea 7"
    assert folder(path=str(place({f"{n}/1.png": png(1) for n in names.split()}))).doubts == ()


NO_SPLIT = [
    "with_mask without_mask",
    "mask_weared_incorrect with_mask without_mask",
    "Mask NoMask",
    "face-mask no-mask",
    "airplane bus car train",
    "ford_gt audi_tt mustang",
    "gasmask mask oxygen_mask ski_mask tench trout tulip drum",
    "Val Ada Tom",
]


@pytest.mark.parametrize("names", NO_SPLIT)
def test_classes_of_data_sets_as_they_are_known(place: Make, names: str) -> None:
    """Names of things that a split or a mask has as well."""
    path = place({f"{name}/1.png": png(1) for name in names.split()})
    assert folder(path=str(path), size=8).doubts == ()


@pytest.mark.parametrize(
    ("names", "doubted"),
    [
        ("cat dog bird masks", "masks"),
        ("cat dog bird car_masks_2", "car_masks_2"),
        ("a b c d e train val", "train, val"),
        ("extra test train", "test, train"),
        ("with_mask without_mask train val labels", "labels, train, val"),
        ("rgb depth", "depth"),
    ],
)
def test_what_is_no_class_beside_many_is_told(place: Make, names: str, doubted: str) -> None:
    path = place({f"{name}/1.png": png(1) for name in names.split()})
    (line,) = folder(path=str(path), size=8).doubts
    assert line.startswith(f"data: the folders {doubted} in ")


def test_one_folder_is_no_class(place: Make) -> None:
    data = folder(path=str(place({"train/1.png": png(1), "train/2.png": png(2)})), size=8)
    assert (data.labels, data.doubts) == (None, ())


def test_many_doubted_folders_are_named_in_part(place: Make) -> None:
    (line,) = folder(path=str(place({f"part/image{k:02}/1.png": png(1) for k in range(13)}))).doubts
    assert "image08, image09 and 3 more in " in line
    assert "image10" not in line


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "images.toml"
    path.write_text(TOY.replace('"gaussians8"\nsamples = 400', '"folder"\npath = "set"\nsize = 8'))
    return path


def test_a_run_says_what_its_data_are(
    recipe: Path, gan: Gan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a line of its output; of what is doubted it warns. A dry run does too."""
    monkeypatch.chdir(tmp_path)
    for k, name in enumerate(("train", "val")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(10):
            (tmp_path / "set" / name / f"{number}.png").write_bytes(png(25 * number + k))
    (tmp_path / "set" / "x.tif").write_bytes(b"x")
    where = f"in 2 class folders, from {tmp_path / 'set'}; passed over: 1 .tif {READ}"
    doubt = f"data: the folders train, val in {tmp_path / 'set'} are taken for classes"
    with pytest.warns(IdleWarning, match=f"^{re.escape(doubt)}") as told:
        code, out, err = gan("run", recipe, "--out", "run")
    assert (code, err, len(told)) == (0, "", 1)
    assert out.splitlines().count(f"data: 20 images of 3×8×8, {where}") == 1
    with pytest.warns(IdleWarning, match=f"^{re.escape(doubt)}"):
        code, out, err = gan("run", recipe, "--dry-run")
    assert (code, err) == (0, "")
    assert f"data: folder, 20 of (3, 8, 8), 0.0 MiB, {where}" in out.splitlines()


def test_data_of_other_kinds_say_what_they_are() -> None:
    points = Dataset("points", torch.zeros(1234, 2))
    assert str(points) == "1,234 points of 2 coordinates"
    assert str(Dataset("grey", torch.zeros(3, 1, 4, 5, dtype=torch.uint8))) == "3 images of 1×4×5"
    moved = Dataset("points", torch.zeros(3, 2), about="from x", doubts=("y",)).to("cpu")
    assert (moved.about, moved.doubts) == ("from x", ("y",))


# Damaged files


def test_all_damaged_files_are_named_with_what_they_are(place: Make) -> None:
    files = {f"{k:02}.png": png(k) for k in range(40)}
    lfs = b"version https://git-lfs.github.com/spec/v1\n"
    files |= {"03.png": b"<html>", "20.png": lfs, "21.png": lfs, "39.png": png(0)[:60]}
    path = place(files)
    with pytest.raises(DataError) as caught:
        folder(path=str(path))
    said = str(caught.value)
    assert said.startswith(
        f"{path}: 4 of 40 files are not images that can be read: 03.png (an HTML page: get it "
        "again); 20.png, 21.png (a Git LFS pointer, not the file itself: run git lfs pull where "
        "it was cloned); 39.png ("
    )
    assert said.endswith("). Remove or replace them")


@pytest.mark.parametrize("threads", [1, 2])
def test_a_few_of_many_damaged_files_are_named_and_all_counted(
    place: Make, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SMALL", 0 if threads == 2 else module.SMALL)
    monkeypatch.setattr(module, "CHUNK", 3)
    files = {f"{k:03}.png": b"" if k % 2 else png(k) for k in range(50)}
    with pytest.raises(DataError) as caught:
        folder(path=str(place(files)))
    named = ", ".join(f"{k:03}.png" for k in range(1, 21, 2))
    assert f": 25 of 50 files are not images that can be read: {named} (an empty" in str(
        caught.value
    )
    assert str(caught.value).endswith("get it again); and 15 more. Remove or replace them")


def test_damage_of_an_archive_is_told_with_that_of_images(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for k in range(4):
            archive.writestr(f"{k}.png", png(k) if k != 2 else b"GIF89a")
    content = bytearray(path.read_bytes())
    content[content.index(b"\x89PNG") + 40] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DataError) as caught:
        folder(path=str(path))
    assert str(caught.value).startswith(
        f"{path}: 2 of 4 files are not images that can be read: 0.png (can't be read from the "
        "archive (Bad CRC-32"
    )
    assert "Make it anew); 2.png (a GIF image: convert it to PNG or JPEG). Remove" in str(
        caught.value
    )


# What tells that a file has changed


def rewritten(path: Path, content: bytes, how: str) -> None:
    """Give a file other content of the same length and the same times."""
    about = path.stat()
    assert len(content) == about.st_size
    time.sleep(0.02)  # a tick of the file system's clock
    if how == "replaced":
        (other := path.with_name("other.tmp")).write_bytes(content)
        os.utime(other, ns=(about.st_atime_ns, about.st_mtime_ns))
        other.rename(path)
    else:
        path.write_bytes(content)
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    now = path.stat()
    assert (now.st_size, now.st_mtime_ns) == (about.st_size, about.st_mtime_ns)


@pytest.mark.parametrize("how", ["written in place", "replaced"])
def test_a_file_of_equal_name_size_and_time_is_read_again(
    place: Make, how: str, tmp_path: Path
) -> None:
    path = place({"1.png": png(1), "2.png": png(2)})
    first = folder(path=str(path), size=8)
    if path.is_dir():
        rewritten(path / "2.png", png(9), how)
    else:
        rewritten(path, path.read_bytes().replace(png(2), png(9)), how)  # with a wrong checksum
        with pytest.raises(DataError, match=f"^{re.escape(str(path))}: 2.png: can't be read"):
            folder(path=str(path), size=8)
        content = path.read_bytes().replace(
            zlib.crc32(png(2)).to_bytes(4, "little"), zlib.crc32(png(9)).to_bytes(4, "little")
        )
        rewritten(path, content, how)
    second = folder(path=str(path), size=8)
    assert (values(first), values(second)) == ([1, 2], [1, 9])
    assert first.fingerprint != second.fingerprint


def test_a_link_to_another_file_of_equal_size_and_time_is_read_again(tmp_path: Path) -> None:
    (path := tmp_path / "set").mkdir()
    for k in (1, 2):
        (tmp_path / f"{k}.png").write_bytes(png(k))
        os.utime(tmp_path / f"{k}.png", ns=(10**18, 10**18))
    for k in (1, 2):
        (path / "x.png").unlink(missing_ok=True)
        (path / "x.png").symlink_to(tmp_path / f"{k}.png")
        assert values(folder(path=str(path), size=8)) == [k]


def test_a_large_archive_is_told_apart_by_more_than_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose end has the names, but not all of the content."""
    monkeypatch.setattr(listing, "TAIL", 100)
    (path := tmp_path / "x.zip").write_bytes(bytes(200))
    before, about = listing.Zip(path).stamp(), path.stat()
    assert listing.Zip(path).stamp() == before
    time.sleep(0.02)
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert listing.Zip(path).stamp() != before


def test_each_time_and_the_inode_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path := tmp_path / "x.zip").write_bytes(bytes(200))
    names = ("st_mode", "st_size", "st_mtime_ns", "st_ctime_ns", "st_ino", "st_atime_ns")
    real = path.stat()

    def stamp(**changes: int) -> str:
        about = SimpleNamespace(**{name: getattr(real, name) for name in names} | changes)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fstat", lambda handle: about)
            return listing.Zip(path).stamp()

    assert stamp() == stamp(st_atime_ns=7)
    telling = ("st_mtime_ns", "st_ctime_ns", "st_ino", "st_size")
    assert len({stamp(), *(stamp(**{name: 7}) for name in telling)}) == 5


def test_what_an_earlier_version_made_of_images_is_made_anew(
    place: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place({"1.png": png(7)})
    with monkeypatch.context() as patch:
        patch.setattr(module, "VERSION", 1)
        patch.setattr(
            module, "_decoded", lambda *_: torch.from_numpy(np.zeros((1, 3, 8, 8), np.uint8))
        )
        assert values(folder(path=str(path), size=8)) == [0]
    assert values(folder(path=str(path), size=8)) == [7]


def test_what_the_cache_tells_of_images_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For an archive it is told from the cache, which is made anew where it is damaged."""
    with zipfile.ZipFile(path := tmp_path / "x.zip", "w") as archive:
        for name in ("train/1.png", "val/1.png", "x.tif"):
            archive.writestr(name, png(1))
    first = folder(path=str(path), size=8)
    (kept,) = (tmp_path / "cache" / "gancore").iterdir()
    content = kept.read_bytes()
    assert content.count(b".tif") == 1
    for changed in (content.replace(b".tif", b".gif"), content):
        kept.write_bytes(changed)
        again = folder(path=str(path), size=8)
        assert (again.about, again.doubts) == (first.about, first.doubts)
