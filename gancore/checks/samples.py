"""Samples that a penalty is given: those that no gradient can be taken of are refused."""

from __future__ import annotations

from torch import Tensor

from gancore.errors import ContractError


def refuse_unusable(least: int = 1, **tensors: object) -> None:
    """Raise ContractError for samples that no gradient can be taken of. Keywords name them.

    They have to be floating-point tensors (B, *) of `least` dimensions or more, and not empty.
    Values are not looked at.
    """
    for what, x in tensors.items():
        if not isinstance(x, Tensor):
            given, remedy = f"a {type(x).__name__}", "torch.as_tensor makes one of arrays and lists"
        elif x.is_complex():
            given, remedy = f"{x.dtype}", "torch.view_as_real makes two numbers of each"
        elif not x.is_floating_point():
            given, remedy = f"{x.dtype}", "images of 0 … 255, say, by x.float() / 127.5 - 1"
        elif x.dim() < least or not x.numel():
            given, remedy = f"of shape {tuple(x.shape)}", "give one sample or more"
        else:
            continue
        expected = "a floating-point tensor (B, *)" if least else "a floating-point tensor"
        raise ContractError(f"{what} is {given}, expected {expected}, not empty: {remedy}")
