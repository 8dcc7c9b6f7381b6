"""The contract that every plugin keeps."""

from gancore.testing import PluginContract
from gancore_gp import GradientPenalty


class TestContract(PluginContract):
    plugin = GradientPenalty


class TestContractWithOptions(PluginContract):
    plugin = GradientPenalty
    options = {"one_sided": True}
