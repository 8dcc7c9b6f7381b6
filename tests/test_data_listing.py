"""What is listed of a folder of images: each folder once, files only, whatever leads to them."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
from helpers import is_clear

from gancore.data import listing
from gancore.data.folder import folder
from gancore.errors import DataError

PNG = b"\x89PNG"
"""Nothing looks into them here."""


def names(path: Path) -> list[str]:
    return [file.name for file in listing.Folder(path).files()]


def test_links(tmp_path: Path) -> None:
    """Links are followed, and each folder is read once: under its own name, or the first link's."""
    real, path = tmp_path / "real", tmp_path / "set"
    for each in (real, real / "inner", path / "dog"):
        each.mkdir(parents=True)
        (each / "1.png").write_bytes(PNG)
    (path / "cow").symlink_to(real)
    assert names(path) == ["cow/1.png", "cow/inner/1.png", "dog/1.png"]
    once = [*names(path)]
    for name, target in (("ant", path / "dog"), ("eel", real), ("fox", real / "inner")):
        (path / name).symlink_to(target)
        with pytest.warns(UserWarning, match=rf"left out: \d, the first is {path}/ant$"):
            assert names(path) == once
        (real / "loop").symlink_to(path)
        with pytest.warns(UserWarning, match="folders that are read under another name"):
            assert names(path) == once
        (real / "loop").unlink()
    (real / "2.png").symlink_to(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"2\.png: a link to nothing"):
        names(path)


def test_sisters_that_link_to_each_other_are_listed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve of them have 12! paths, and more."""
    for name in "abcdefghijkl":
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(PNG)
        for other in "abcdefghijkl".replace(name, ""):
            (tmp_path / name / f"to-{other}").symlink_to(tmp_path / other)
    with pytest.warns(UserWarning, match=rf"left out: 132, the first is {tmp_path}/a/to-b$"):
        assert names(tmp_path) == [f"{name}/1.png" for name in "abcdefghijkl"]
    monkeypatch.setattr(listing, "MOST_FOLDERS", 144)  # links are counted
    with pytest.raises(DataError, match="over the limit of 144 folders and links to folders. Set"):
        names(tmp_path)
    monkeypatch.setattr(listing, "MOST_FOLDERS", 145)
    with pytest.warns(UserWarning, match="left out: 132"):
        names(tmp_path)


def test_folders_that_are_too_deep_are_told(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * listing.DEEPEST)
    (deep / "e").mkdir(parents=True)
    (deep / "1.png").write_bytes(PNG)
    (deep / "e" / "2.png").write_bytes(PNG)
    with pytest.warns(UserWarning, match=rf"left out: 1, the first is {deep}/e$"):
        assert [Path(name).name for name in names(tmp_path)] == ["1.png"]


@pytest.mark.parametrize("place", ["/proc", "/dev"])
def test_what_the_kernel_lists_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(listing, "MOST_FOLDERS", 1000)
    with warnings.catch_warnings(action="ignore"), pytest.raises(DataError) as caught:
        folder(path=place)
    assert is_clear(str(caught.value), Path(place))


@pytest.mark.parametrize("name", ["1.png", "class", "notes.txt"])
def test_a_link_to_itself_is_named_with_the_remedy(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(name)
    with pytest.raises(DataError, match=rf"{name}: can't be read: .*\. Remove the link that leads"):
        names(tmp_path)


def test_an_image_that_is_a_fifo_is_named(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(PNG)
    os.mkfifo(tmp_path / "2.png")
    with pytest.raises(DataError, match=r"2\.png: can't be read: it is a FIFO, .* file. Remove it"):
        names(tmp_path)
    (tmp_path / "2.png").rename(tmp_path / "notes")
    assert names(tmp_path) == ["1.png"]
    with pytest.raises(DataError, match=r"notes: can't be read: it is a FIFO, and no regular file"):
        folder(path=str(tmp_path / "notes"))
    source = listing.Folder(tmp_path)
    (tmp_path / "notes").replace(tmp_path / "1.png")  # after it was listed
    with pytest.raises(DataError, match=r"1\.png: can't be read: it is a FIFO"):
        source.read(*source.files())
