"""CIFAR-10, MNIST and Fashion-MNIST, from tiny files in the published layouts."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import os
import pickle
import struct
import tarfile
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch

from gancore.data import Dataset, cifar, fetch, mnist, progress
from gancore.data.cifar import cifar10
from gancore.data.mnist import fashion_mnist
from gancore.errors import DataError, PluginError
from gancore.options import complete, validate

BATCHES = [f"data_batch_{number}" for number in range(1, 6)]
NOWHERE = Path("/nonexistent/gancore")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise URLError("Temporary failure in name resolution")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr(mnist, "DEBIAN", NOWHERE)


def batch(seed: int, count: int = 4) -> dict[str, Any]:
    random = np.random.RandomState(seed)
    return {
        "batch_label": f"batch {seed}",
        "labels": random.randint(0, 10, count).tolist(),
        "data": random.randint(0, 256, (count, 3072), dtype=np.uint8),
        "filenames": [f"image_{k}.png" for k in range(count)],
    }


def python2(table: dict[str, Any]) -> bytes:
    """Pickle as the published files are: Python 2 strings, the old name of NumPy's module."""
    data: np.ndarray[Any, Any] = table["data"]
    labels = b"".join(b"K" + bytes([each]) for each in table["labels"])
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01("
        + b"".join(b"J" + struct.pack("<i", each) for each in data.shape)
        + b"tcnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        + b"K\x00tb\x89T"
        + struct.pack("<i", data.nbytes)
        + data.tobytes()
        + b"tb"
    )
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels](" + labels + b"eu."


def layout(root: Path, **contents: bytes) -> Path:
    """Make the folder of the published files, tiny, but for some with other contents."""
    folder = root / cifar.FOLDER
    folder.mkdir(parents=True)
    for seed, name in enumerate([*BATCHES, "test_batch"]):
        (folder / name).write_bytes(contents.get(name, python2(batch(seed))))
    meta = {"label_names": list("abcdefghij"), "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))
    return folder


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Take files of a folder, or an archive, for the published ones from now on."""

    def publish(made: Path) -> None:
        if made.is_file():
            monkeypatch.setattr(cifar, "ARCHIVE_MD5", md5(made.read_bytes()))
            return
        for split, names in cifar.BATCHES.items():
            sums = {name: md5((made / name).read_bytes()) for name in names}
            monkeypatch.setitem(cifar.BATCHES, split, sums)

    return publish


Publish = Callable[[Path], None]


def archive(root: Path, *names: str) -> Path:
    """Make the published archive of the folder there, then remove the folder."""
    folder, file = root / cifar.FOLDER, root / cifar.ARCHIVE
    with tarfile.open(file, "w:gz") as tar:
        for name in names or [path.name for path in folder.iterdir()]:
            tar.add(folder / name, f"{cifar.FOLDER}/{name}")
    folder.rename(root / "away")
    return file


def check_cifar(data: Dataset, seeds: range, split: str) -> None:
    tables = [batch(seed) for seed in seeds]
    expected = np.concatenate([table["data"] for table in tables]).reshape(-1, 3, 32, 32)
    assert np.array_equal(data.samples.numpy(), expected)
    assert data.labels is not None
    assert data.labels.tolist() == [label for table in tables for label in table["labels"]]
    assert (data.name, data.split, data.shape) == ("cifar10", split, (3, 32, 32))


def test_cifar_in_the_official_layout(tmp_path: Path, published: Publish) -> None:
    folder = layout(tmp_path)
    published(folder)
    check_cifar(cifar10(path=str(tmp_path)), range(5), "train")
    check_cifar(cifar10(path=str(tmp_path), split="test"), range(5, 6), "test")
    check_cifar(cifar10(path=str(folder)), range(5), "train")  # the folder itself


def test_the_python2_pickle_is_a_pickle() -> None:
    table = pickle.loads(python2(batch(3)), encoding="latin1")
    assert np.array_equal(table["data"], batch(3)["data"])
    assert table["labels"] == batch(3)["labels"]


def test_cifar_as_torchvision_reads_it(
    tmp_path: Path, published: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import CIFAR10

    assert (CIFAR10.url, CIFAR10.tgz_md5) == (cifar.URL, cifar.ARCHIVE_MD5)
    assert dict(map(tuple, CIFAR10.train_list)) == cifar.BATCHES["train"]
    assert dict(map(tuple, CIFAR10.test_list)) == cifar.BATCHES["test"]
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    published(layout(tmp_path))
    ours = cifar10(path=str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy on its old pickles
        theirs = CIFAR10(tmp_path)
    assert np.array_equal(ours.samples.permute(0, 2, 3, 1).numpy(), theirs.data)
    assert ours.labels is not None
    assert ours.labels.tolist() == theirs.targets


def test_cifar_from_the_archive_without_unpacking(tmp_path: Path, published: Publish) -> None:
    published(layout(tmp_path))
    published(archive(tmp_path))
    check_cifar(cifar10(path=str(tmp_path)), range(5), "train")
    check_cifar(cifar10(path=str(tmp_path), split="test"), range(5, 6), "test")
    assert not (tmp_path / cifar.FOLDER).exists()


def test_cifar_archives_other_than_the_published_one(tmp_path: Path) -> None:
    layout(tmp_path)
    whole = (file := archive(tmp_path)).read_bytes()
    for content in (whole, whole[: len(whole) // 2], b"not gzip", b""):
        file.write_bytes(content)
        with pytest.raises(DataError, match=rf"MD5 is {md5(content)}, expected .*Delete it") as one:
            cifar10(path=str(tmp_path))
        assert str(one.value).startswith(f"{file}: damaged, incomplete, or not the published")
        assert "\n" not in str(one.value)
    file.unlink()
    file.mkdir()
    with pytest.raises(DataError, match="cifar-10-python.tar.gz: can't be read: Is a directory"):
        cifar10(path=str(tmp_path))


def test_cifar_offline_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        cifar10(path=str(tmp_path / "data"))
    said = str(caught.value)
    assert "\n" not in said
    for part in (
        "Temporary failure in name resolution",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        f"put it into {tmp_path / 'data'}/",
    ):
        assert part in said
    assert not list(tmp_path.iterdir())


def test_cifar_missing_batch(tmp_path: Path, published: Publish) -> None:
    published(folder := layout(tmp_path))
    (folder / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"data_batch_3: No such file.*all 5 files.*Unpack"):
        cifar10(path=str(tmp_path))


class Evil:
    """Makes a folder where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pwned",)


def test_cifar_files_of_other_sums_are_refused_and_not_unpickled(
    tmp_path: Path, published: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    published(folder := layout(tmp_path))
    whole = (folder / "data_batch_2").read_bytes()
    for content in (pickle.dumps(Evil()), whole[:-1], whole + b"x", b""):
        (folder / "data_batch_2").write_bytes(content)
        with pytest.raises(DataError, match=rf"its MD5 is {md5(content)}, expected ") as caught:
            cifar10(path=str(tmp_path))
        assert str(caught.value).startswith(f"{folder / 'data_batch_2'}: damaged, incomplete, or")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "pwned").exists()


def test_cifar_wants_the_sums_of_the_archives_files_too(tmp_path: Path, published: Publish) -> None:
    layout(tmp_path)
    file = archive(tmp_path)
    published(file)
    with pytest.raises(DataError, match=r"tar\.gz: data_batch_1: .* not the published file"):
        cifar10(path=str(tmp_path))


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (pickle.dumps(Evil()), r"(posix|nt)\.mkdir"),
        (b"cos\nsystem\n(S'mkdir pwned'\ntR.", r"os\.system"),
        (b"cbuiltins\neval\n(S'1'\ntR.", r"builtins\.eval"),
        (b"c__builtin__\neval\n(S'1'\ntR.", "__builtin__.eval"),  # Python 2's name
        (b"(ios\nmkdir\n.", r"os\.mkdir"),
        (b"cnumpy\nload\n.", r"numpy\.load"),
        (b"cnumpy.core.multiarray\nscalar\n.", r"numpy\.core\.multiarray\.scalar"),
        (b"cnumpy.core.multiarray\n_reconstruct.__globals__\n.", r".*_reconstruct\.__globals__"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.", r"numpy\.ndarray\.dumps"),
        (b"c_codecs\nencode\n.", r"_codecs\.encode"),
        (b"c\x1b]0;owned\x07\nx\n.", r"\\x1b\]0;owned\\x07\.x"),
    ],
)
def test_cifar_pickles_name_nothing_but_arrays(
    tmp_path: Path, published: Publish, monkeypatch: pytest.MonkeyPatch, content: bytes, name: str
) -> None:
    """Even files with the right sums."""
    monkeypatch.chdir(tmp_path)
    published(layout(tmp_path, data_batch_2=content))
    with pytest.raises(DataError, match=f"names {name}, which is refused") as caught:
        cifar10(path=str(tmp_path))
    assert str(caught.value).isprintable()
    assert not (tmp_path / "pwned").exists()


def test_cifar_pickles_have_no_arrays_of_objects(tmp_path: Path, published: Publish) -> None:
    content = python2(batch(1)).replace(b"U\x02u1", b"U\x02O8")
    published(layout(tmp_path, data_batch_2=content))
    with pytest.raises(DataError, match="a pickled array of O8"):
        cifar10(path=str(tmp_path))


def test_cifar_file_over_the_limit(
    tmp_path: Path, published: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(layout(tmp_path))
    monkeypatch.setattr(cifar, "LARGEST", 1 << 10)
    with pytest.raises(DataError, match="not a file of CIFAR-10"):
        cifar10(path=str(tmp_path))


# MNIST and Fashion-MNIST


def idx(array: np.ndarray[Any, Any]) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def digits(seed: int = 0, count: int = 6) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    random = np.random.RandomState(seed)
    images = random.randint(0, 256, (count, 28, 28), dtype=np.uint8)
    return images, random.randint(0, 10, count, dtype=np.uint8)


def write(
    folder: Path, prefix: str = "train", *, seed: int = 0, packed: bool = True, mark: str = "-"
) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for kind, array in zip(("images", "labels"), digits(seed), strict=True):
        name = f"{prefix}-{kind}{mark}idx{array.ndim}-ubyte"
        files.append(folder / (f"{name}.gz" if packed else name))
        files[-1].write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return files


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("place", ["", "raw", "MNIST/raw"])
def test_mnist_from_idx_files(tmp_path: Path, packed: bool, mark: str, place: str) -> None:
    write(tmp_path / place, packed=packed, mark=mark)
    write(tmp_path / place, "t10k", seed=1, packed=packed, mark=mark)
    for split, seed in (("train", 0), ("test", 1)):
        images, labels = digits(seed)
        data = mnist.mnist(path=str(tmp_path), split=split, size=28)  # type: ignore[arg-type]
        assert np.array_equal(data.samples[:, 0].numpy(), images)
        assert data.labels is not None
        assert data.labels.tolist() == labels.tolist()
        assert (data.name, data.split, data.shape) == ("mnist", split, (1, 28, 28))
    padded = mnist.mnist(path=str(tmp_path))
    assert padded.shape == (1, 32, 32)
    expected = np.pad(digits()[0], ((0, 0), (2, 2), (2, 2)))
    assert np.array_equal(padded.samples[:, 0].numpy(), expected)


def test_mnist_as_torchvision_reads_it(tmp_path: Path) -> None:
    from torchvision import datasets

    for ours, theirs in ((mnist.MNIST, datasets.MNIST), (mnist.FASHION, datasets.FashionMNIST)):
        assert list(ours.mirrors) == theirs.mirrors
        assert list(ours.md5.items()) == list(map(tuple, theirs.resources))
    for prefix in ("train", "t10k"):
        write(tmp_path / "FashionMNIST/raw", prefix, packed=False)
    data = fashion_mnist(path=str(tmp_path), size=28)
    reference = datasets.FashionMNIST(tmp_path)
    assert torch.equal(data.samples[:, 0], reference.data)
    assert data.labels is not None
    assert torch.equal(data.labels, reference.targets)


def test_fashion_mnist_falls_back_on_debians(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "debian", seed=1)
    monkeypatch.setattr(mnist, "DEBIAN", tmp_path / "debian")
    found = fashion_mnist(path=str(tmp_path / "data"), size=28)
    assert np.array_equal(found.samples[:, 0].numpy(), digits(1)[0])
    write(tmp_path / "data", seed=2)  # what is at path goes first
    found = fashion_mnist(path=str(tmp_path / "data"), size=28)
    assert np.array_equal(found.samples[:, 0].numpy(), digits(2)[0])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz is not in"):
        fashion_mnist(path=str(tmp_path / "data"), split="test")
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz is not in"):
        mnist.mnist(path=str(tmp_path / "none"))


@pytest.mark.skipif(
    not (mnist.DEBIAN / "train-images-idx3-ubyte.gz").is_file(),
    reason="Debian's package dataset-fashion-mnist is not installed",
)
def test_fashion_mnist_of_debian() -> None:
    for split, count in (("train", 60_000), ("test", 10_000)):
        data = fashion_mnist(path=str(DEBIAN), split=split)  # type: ignore[arg-type]
        assert (len(data), data.shape) == (count, (1, 32, 32))
        assert data.labels is not None
        assert torch.bincount(data.labels).tolist() == [count // 10] * 10
        assert not data.samples[:, :, :2].any()


DEBIAN = mnist.DEBIAN  # before any test replaces it


def test_mnist_offline_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        fashion_mnist(path=str(tmp_path))
    said = str(caught.value)
    assert "\n" not in said
    assert "train-images-idx3-ubyte.gz is not in" in said
    assert "get http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/train-images" in said
    assert f"put it into {tmp_path}/FashionMNIST/raw/" in said


def test_images_without_labels(tmp_path: Path) -> None:
    write(tmp_path)[1].unlink()
    with pytest.raises(DataError, match="has train-images-idx3-ubyte but not train-labels-idx1"):
        mnist.mnist(path=str(tmp_path))
    write(tmp_path)[0].unlink()
    with pytest.raises(DataError, match="has train-labels-idx1-ubyte but not train-images-idx3"):
        mnist.mnist(path=str(tmp_path))


GOOD = idx(digits()[0])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "expected an IDX file of 3-dimensional uint8"),
        (GOOD[:15], "expected an IDX file"),
        (idx(digits()[1]), "expected an IDX file"),
        (b"\0\0\x0d\3" + GOOD[4:], "expected an IDX file"),
        (GOOD[:-1], r"says \[6, 28, 28\], 4,704 bytes, but has 4,703"),
        (GOOD + b"x", "but has more"),
        (b"\0\0\x08\3" + b"\xff" * 12 + GOOD[16:], "over the limit of 1024 MiB"),
        (idx(np.zeros((6, 27, 28), np.uint8)), r"expected \(n, 28, 28\)"),
        (idx(np.zeros((5, 28, 28), np.uint8)), r"\(5, 28, 28\) and \(6,\)"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_damaged_idx_files(tmp_path: Path, content: bytes, said: str, packed: bool) -> None:
    file = write(tmp_path, packed=packed)[0]
    file.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match=said) as caught:
        mnist.mnist(path=str(tmp_path))
    assert str(file) in str(caught.value)


def test_damaged_gzip(tmp_path: Path) -> None:
    file = write(tmp_path)[0]
    whole = file.read_bytes()
    for content in (whole[:-20], b"xx" + whole, whole[:100] + b"\xff" * 50 + whole[150:]):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: can't be read .*again"):
            mnist.mnist(path=str(tmp_path))


def test_labels_over_nine(tmp_path: Path) -> None:
    write(tmp_path)[1].write_bytes(gzip.compress(idx(np.full(6, 10, np.uint8))))
    with pytest.raises(DataError, match="labels 0 … 9"):
        mnist.mnist(path=str(tmp_path))


# Downloads


class Server(http.server.ThreadingHTTPServer):
    files: dict[str, bytes]
    cut: int
    asked: list[str]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        content = self.server.files.get(self.path)
        if content is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) - self.server.cut])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, offline: None) -> Iterator[Server]:
    monkeypatch.undo()
    monkeypatch.setattr(mnist, "DEBIAN", NOWHERE)
    monkeypatch.setenv("no_proxy", "*")
    with Server(("127.0.0.1", 0), Handler) as running:
        running.files, running.cut, running.asked = {}, 0, []
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def address(server: Server, path: str = "/") -> str:
    return f"http://127.0.0.1:{server.server_address[1]}{path}"


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def test_cifar_is_downloaded_once(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, published: Publish
) -> None:
    published(layout(tmp_path / "made"))
    published(file := archive(tmp_path / "made"))
    server.files["/x.tar.gz"] = file.read_bytes()
    monkeypatch.setattr(cifar, "URL", address(server, "/x.tar.gz"))
    for _ in range(2):
        check_cifar(cifar10(path=str(tmp_path / "data")), range(5), "train")
    assert server.asked == ["/x.tar.gz"]
    assert [path.name for path in (tmp_path / "data").iterdir()] == [cifar.ARCHIVE]


def test_mnist_is_downloaded_from_a_mirror_that_works(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write(tmp_path / "made")
    server.files = {f"/b/{file.name}": file.read_bytes() for file in files}
    mirrors = (address(server, "/a/"), address(server, "/b/"))
    sums = {file.name: md5(file.read_bytes()) for file in files}
    monkeypatch.setattr(mnist, "MNIST", replace(mnist.MNIST, mirrors=mirrors, md5=sums))
    for _ in range(2):
        data = mnist.mnist(path=str(tmp_path / "data"), size=28)
        assert np.array_equal(data.samples[:, 0].numpy(), digits()[0])
    assert len(server.asked) == 4
    assert len(list((tmp_path / "data/MNIST/raw").iterdir())) == 2


@pytest.mark.parametrize("cut", [0, 5, 500])
def test_an_interrupted_or_damaged_download_leaves_nothing(
    tmp_path: Path, server: Server, cut: int
) -> None:
    server.files["/f.bin"], server.cut = b"x" * 1000, cut
    with pytest.raises(DataError, match=r"f\.bin: (damaged or incomplete|IncompleteRead)"):
        fetch.fetch(
            [address(server, "/f.bin")], tmp_path / "f.bin", md5(b"x" * 1000 + b"y" * cut + b"z")
        )
    assert not list(tmp_path.iterdir())


def test_a_download_is_checked_by_either_hash(tmp_path: Path, server: Server) -> None:
    server.files["/f.bin"] = b"abc"
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    for expected in (known, known[:8]):
        fetch.fetch([address(server, "/f.bin")], tmp_path / "f.bin", expected, "sha256")
        assert (tmp_path / "f.bin").read_bytes() == b"abc"
        (tmp_path / "f.bin").unlink()
    with pytest.raises(DataError, match=f"its SHA256 is {known}, expected {known[1:]}"):
        fetch.fetch([address(server, "/f.bin")], tmp_path / "f.bin", known[1:], "sha256")
    assert not list(tmp_path.iterdir())


def test_a_page_that_is_gone(tmp_path: Path, server: Server) -> None:
    with pytest.raises(DataError, match="f.bin: Not Found"):
        fetch.fetch([address(server, "/f.bin")], tmp_path / "f.bin", "")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path: Path, server: Server) -> None:
    server.files["/f.bin"] = b"x"
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"can't be downloaded to .*file/x.*set data.path"):
        fetch.fetch([address(server, "/f.bin")], tmp_path / "file/x/f.bin", md5(b"x"))


# Progress and options


class Terminal:
    def __init__(self, tty: bool) -> None:
        self.tty, self.text = tty, ""

    def isatty(self) -> bool:
        return self.tty

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(
    ("tty", "patience", "shown"), [(True, 0, True), (True, 9, False), (False, 0, False)]
)
def test_progress_is_for_waiting_people(
    tty: bool, patience: float, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(tty)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(progress, "PATIENCE", patience)
    with progress.Progress("reading [b]it", 10) as bar:
        bar.advance(4)
        bar.advance(6)
    assert ("reading [b]it" in terminal.text) == shown
    assert ("100%" in terminal.text) == shown
    assert shown or not terminal.text


def test_options() -> None:
    assert complete(cifar10, {}) == {"path": "data", "split": "train"}
    assert complete(mnist.mnist, {}) == {"path": "data", "split": "train", "size": 32}
    assert complete(fashion_mnist, {"size": 28}) == {"path": "data", "split": "train", "size": 28}
    for options in ({"size": 30}, {"split": "val"}, {"path": 1}, {"root": "x"}):
        with pytest.raises(PluginError, match=f"data: {next(iter(options))}"):
            validate(mnist.mnist, options, "data")
