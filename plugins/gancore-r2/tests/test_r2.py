"""R2 against hand-made mathematics, never against its own output."""

from penalties import SquaredGradient

from gancore_r2 import R2, r2_penalty


class TestR2(SquaredGradient):
    name = "r2"
    plugin = R2
    function = r2_penalty
    samples = (1,)
