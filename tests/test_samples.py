"""What is given to penalties and steps and is no batch of samples: told as that, in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gancore import CriticStep, GeneratorStep, input_gradient, interpolate
from gancore.errors import ContractError
from gancore_cr import consistency_penalty, flip_and_shift
from gancore_dragan import dragan_penalty
from gancore_gp import gradient_penalty
from gancore_lecam import Anchors, lecam_penalty
from gancore_r1 import r1_penalty
from gancore_r2 import r2_penalty

GOOD = torch.linspace(-1, 1, 2 * 1 * 6 * 6).reshape(2, 1, 6, 6)

NONE: dict[str, tuple[Any, str]] = {
    "NumPy": (GOOD.numpy(), r"is a ndarray, .*torch\.as_tensor"),
    "a list": (GOOD.tolist(), r"is a list, .*torch\.as_tensor"),
    "None": (None, "is a NoneType"),
    "uint8": (GOOD.byte(), r"is torch\.uint8, .*x\.float\(\) / 127\.5 - 1"),
    "int64": (GOOD.long(), r"is torch\.int64, "),
    "bool": (GOOD > 0, r"is torch\.bool, "),
    "complex": (GOOD.to(torch.complex64), r"is torch\.complex64, .*view_as_real"),
    "empty": (GOOD[:0], r"is of shape \(0, 1, 6, 6\), .*one sample or more"),
    "no pixels": (GOOD[:, :0], r"is of shape \(2, 0, 6, 6\), "),
    "uint8 on meta": (torch.empty(2, 1, 6, 6, dtype=torch.uint8, device="meta"), "is torch.uint8"),
}

Call = Callable[[Any, nn.Module], object]

CALLS: dict[str, Call] = {
    "r1_penalty": lambda x, critic: r1_penalty(critic, x),
    "r2_penalty": lambda x, critic: r2_penalty(critic, x),
    "gradient_penalty, real": lambda x, critic: gradient_penalty(critic, x, GOOD),
    "gradient_penalty, fake": lambda x, critic: gradient_penalty(critic, GOOD, x),
    "dragan_penalty": lambda x, critic: dragan_penalty(critic, x),
    "dragan_penalty, gaussian": lambda x, critic: dragan_penalty(critic, x, noise="gaussian"),
    "consistency_penalty": lambda x, critic: consistency_penalty(critic, x),
    "flip_and_shift": lambda x, critic: flip_and_shift(x),
    "lecam_penalty, real": lambda x, critic: lecam_penalty(x, GOOD, 0.0, 0.0),
    "lecam_penalty, fake": lambda x, critic: lecam_penalty(GOOD, x, 0.0, 0.0),
    "Anchors": lambda x, critic: Anchors().update(GOOD, x),
    "interpolate": lambda x, critic: interpolate(x, GOOD),
    "input_gradient": lambda x, critic: input_gradient(critic, x),
    "CriticStep, real": lambda x, critic: CriticStep(critic, x, GOOD),
    "CriticStep, fake": lambda x, critic: CriticStep(critic, GOOD, x),
    "GeneratorStep, real": lambda x, critic: GeneratorStep(critic, critic, x, GOOD),
    "GeneratorStep, fake": lambda x, critic: GeneratorStep(critic, critic, GOOD, x),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_is_no_batch_of_samples_is_told(call: Call) -> None:
    critic = nn.Sequential(nn.Flatten(), nn.Linear(36, 1))
    call(GOOD, critic)
    for x, said in NONE.values():
        with pytest.raises(ContractError, match=rf"^\w+ {said}") as caught:
            call(x, critic)
        assert "expected a floating-point tensor" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_samples_without_values_pass(dtype: torch.dtype) -> None:
    x = torch.empty(2, 1, 6, 6, dtype=dtype, device="meta")
    critic = nn.Sequential(nn.Flatten(), nn.Linear(36, 1, dtype=dtype, device="meta"))
    for value in (
        r1_penalty(critic, x),
        r2_penalty(critic, x),
        gradient_penalty(critic, x, x),
        dragan_penalty(critic, x),
        consistency_penalty(critic, x),
        lecam_penalty(x, x, 0.0, 0.0),
        CriticStep(critic, x, x).input_gradient(x.requires_grad_()),
    ):
        assert value.is_meta


def test_samples_of_two_devices_are_not_mixed() -> None:
    with pytest.raises(ContractError, match=r"^real is on cpu, fake on meta: move one"):
        gradient_penalty(nn.Linear(3, 1), torch.ones(2, 3), torch.ones(2, 3, device="meta"))


def test_scalars_are_no_samples_but_may_be_scores() -> None:
    with pytest.raises(ContractError, match=r"^x is of shape \(\)"):
        r1_penalty(nn.Linear(3, 1), torch.tensor(1.0))
    anchors = Anchors()
    anchors.update(torch.tensor(3.0), torch.tensor(-1.0))
    assert (anchors.real.item(), anchors.fake.item()) == (3.0, -1.0)
    with pytest.raises(ContractError, match="fake_scores is of shape"):
        anchors.update(torch.tensor(3.0), torch.zeros(0))
    assert (anchors.real.item(), anchors.fake.item()) == (3.0, -1.0)


def test_values_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked at is the type, dtype and shape alone."""
    from gancore.checks.samples import refuse_unusable

    for name in ("item", "tolist", "__bool__", "__float__", "cpu", "numpy", "isfinite"):
        monkeypatch.setattr(Tensor, name, lambda *args, name=name: pytest.fail(name))
    refuse_unusable(real=GOOD, fake=torch.full((2, 3), np.nan))
