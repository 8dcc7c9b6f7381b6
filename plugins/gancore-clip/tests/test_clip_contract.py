"""The contract that every plugin keeps."""

from gancore.testing import PluginContract
from gancore_clip import WeightClipping


class TestContract(PluginContract):
    plugin = WeightClipping


class TestContractWithOptions(PluginContract):
    plugin = WeightClipping
    options = {"limit": 0.1}
