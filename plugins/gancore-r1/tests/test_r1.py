"""R1 against hand-made mathematics, never against its own output."""

from penalties import SquaredGradient

from gancore_r1 import R1, r1_penalty


class TestR1(SquaredGradient):
    name = "r1"
    plugin = R1
    function = r1_penalty
    samples = (0,)
