"""Data sets: what they accept, how images are scaled, and the digits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor

from gancore import Dataset
from gancore.data import to_uint8, to_unit
from gancore.data.digits import digits
from gancore.errors import DataError

IMAGES = torch.arange(3 * 2 * 2 * 4, dtype=torch.uint8).reshape(3, 2, 2, 4)
POINTS = torch.arange(6, dtype=torch.float32).reshape(3, 2)
LABELS = torch.tensor([0, 1, 2])


def test_to_unit_is_affine() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    unit = to_unit(values)
    assert unit.dtype == torch.float32
    np.testing.assert_allclose(unit.numpy(), np.arange(256) / 127.5 - 1, atol=1e-6)
    assert (unit[0].item(), unit[255].item()) == (-1.0, 1.0)
    assert values.tolist() == list(range(256))


def test_every_value_survives_the_round_trip() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_unit(values)), values)


@settings(deadline=None)
@given(st.integers(0, 255), st.floats(-0.49, 0.49), st.sampled_from(["float32", "float64"]))
def test_to_uint8_rounds_to_the_nearest(value: int, off: float, dtype: str) -> None:
    image = torch.tensor([(value + off) / 127.5 - 1], dtype=getattr(torch, dtype))
    assert to_uint8(image).tolist() == [value]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_to_uint8_clamps(dtype: torch.dtype) -> None:
    image = torch.tensor([-1.5, -1.0, 1.0, 1.5, 1e6], dtype=dtype)
    assert to_uint8(image).tolist() == [0, 0, 255, 255, 255]
    assert to_uint8(image).dtype == torch.uint8
    assert image[0].item() == -1.5


def test_images_and_points() -> None:
    images, points = Dataset("i", IMAGES, LABELS, split="test"), Dataset("p", POINTS)
    assert (len(images), images.shape, images.is_images, images.split) == (
        3,
        (2, 2, 4),
        True,
        "test",
    )
    assert (len(points), points.shape, points.is_images, points.split) == (3, (2,), False, "train")


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (IMAGES.float(), r"'x' is float32 \(3, 2, 2, 4\): expected uint8 \(N, C, H, W\)"),
        (IMAGES[0], r"'x' is uint8 \(2, 2, 4\)"),
        (POINTS.double(), r"'x' is float64 \(3, 2\): .*float32 \(N, d\)"),
        (POINTS.long(), r"'x' is int64 \(3, 2\)"),
        (POINTS[0], r"'x' is float32 \(2,\)"),
        (IMAGES[:0], r"'x' is empty: uint8 \(0, 2, 2, 4\)"),
        (POINTS[:, :0], r"'x' is empty: float32 \(3, 0\)"),
    ],
)
def test_other_samples_are_refused(samples: Tensor, said: str) -> None:
    with pytest.raises(DataError, match=said):
        Dataset("x", samples)


@pytest.mark.parametrize(
    "labels", [LABELS[:2], LABELS.float(), LABELS.int(), LABELS[:, None], torch.tensor(3)]
)
def test_other_labels_are_refused(labels: Tensor) -> None:
    with pytest.raises(DataError, match=r"labels of data set 'x': expected int64 \(3,\)"):
        Dataset("x", POINTS, labels)


def test_a_batch_is_a_scaled_selection() -> None:
    index = torch.tensor([2, 0, 2, 1])
    batch = Dataset("i", IMAGES).batch(index)
    np.testing.assert_allclose(batch.numpy(), IMAGES.numpy()[index] / 127.5 - 1, atol=1e-6)
    assert batch.dtype == torch.float32
    points = Dataset("p", POINTS).batch(index)
    assert torch.equal(points, torch.tensor([[4.0, 5], [0, 1], [4, 5], [2, 3]]))
    points.zero_()  # a copy
    assert POINTS.sum() == 15


def test_mirror_flips_the_chosen_images_left_to_right() -> None:
    mirror = torch.tensor([True, False, True])
    batch = Dataset("i", IMAGES).batch(torch.arange(3), mirror=mirror)
    expected = IMAGES.numpy().copy()
    expected[[0, 2]] = expected[[0, 2]][:, :, :, ::-1]
    assert torch.equal(to_uint8(batch), torch.from_numpy(expected))


def test_to_a_device_is_the_same_data() -> None:
    moved = Dataset("i", IMAGES, LABELS, split="test").to("cpu")
    assert (moved.name, moved.split, moved.sha256) == ("i", "test", Dataset("", IMAGES).sha256)
    assert moved.labels is not None
    assert torch.equal(moved.labels, LABELS)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("rows", "said"), [([1], "1"), ([0, 2, 3, 5, 8], "0, 2, 3 and 2 more")])
def test_points_that_are_not_finite_are_named_by_their_rows(
    broken: float, rows: list[int], said: str
) -> None:
    points = torch.arange(20, dtype=torch.float32).reshape(10, 2)
    Dataset("p", points)
    points[rows, 1] = broken
    with pytest.raises(DataError, match=f"^data set 'p': of its 10 points those at {said}, .* nan"):
        Dataset("p", points)


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (IMAGES.numpy(), "is a ndarray, expected a tensor: torch.as_tensor"),
        (POINTS.tolist(), "is a list, expected a tensor"),
        (None, "is a NoneType, expected a tensor"),
        (IMAGES.float(), r"; gancore\.data\.to_uint8 makes the first of floats in \[−1, 1\]$"),
        (IMAGES.float() * np.nan, r"to_uint8 .*, and these hold nan or inf$"),
        (POINTS.double(), r"; x\.float\(\) makes the second$"),
    ],
)
def test_what_makes_samples_of_it_is_told(samples: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        Dataset("x", samples)


def test_samples_that_require_grad_are_taken_without() -> None:
    asking = Dataset("p", POINTS.clone().requires_grad_())
    assert asking.sha256 == Dataset("p", POINTS).sha256
    assert not asking.to("cpu").batch(torch.tensor([0])).requires_grad


@pytest.mark.parametrize("mirror", [None, torch.tensor([True, False])])
def test_batches_are_contiguous(mirror: Tensor | None) -> None:
    permuted = IMAGES.movedim(1, 3).contiguous().movedim(3, 1)
    assert not permuted.is_contiguous()
    index = torch.tensor([2, 0])
    batch = Dataset("i", permuted).batch(index, mirror=mirror)
    assert batch.is_contiguous()
    assert torch.equal(batch, Dataset("i", IMAGES).batch(index, mirror=mirror))
    assert Dataset("p", POINTS.T.contiguous().T).batch(index).is_contiguous()


def test_sha256_tells_content_dtype_and_shape_apart() -> None:
    changed = IMAGES.clone()
    changed[2, 1, 1, 3] += 1
    bits = torch.arange(8, dtype=torch.float32)
    variants = [
        IMAGES,
        changed,
        IMAGES.flip(0),
        IMAGES.reshape(3, 1, 4, 4),
        IMAGES.reshape(6, 1, 2, 4),
        bits.reshape(4, 2),
        bits.reshape(2, 4),
        bits.view(torch.uint8).reshape(4, 8, 1, 1),
    ]
    assert len({Dataset("x", each).sha256 for each in variants}) == len(variants)
    assert Dataset("y", IMAGES.clone()).sha256 == Dataset("x", IMAGES).sha256
    strided = IMAGES.transpose(2, 3).contiguous().transpose(2, 3)
    assert Dataset("x", strided).sha256 == Dataset("x", IMAGES).sha256


def test_digits_are_scikit_learns() -> None:
    bunch, ours = load_digits(), digits()
    exact = [[round(value * 255 / 16) for value in row] for row in bunch.data]
    assert (len(ours), ours.shape, ours.name) == (1797, (1, 8, 8), "digits")
    assert np.array_equal(ours.samples.reshape(1797, 64).numpy(), np.array(exact))
    assert ours.labels is not None
    assert ours.labels.tolist() == bunch.target.tolist()
    assert (int(ours.samples.min()), int(ours.samples.max())) == (0, 255)
