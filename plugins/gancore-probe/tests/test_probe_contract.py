"""The contract that every plugin keeps."""

from gancore.testing import PluginContract
from gancore_probe import Probe


class TestContract(PluginContract):
    plugin = Probe


class TestContractWithOptions(PluginContract):
    plugin = Probe
    options = {"every": 3, "layers": False}
