"""The contract that every plugin keeps."""

from gancore.testing import PluginContract
from gancore_r1 import R1


class TestContract(PluginContract):
    plugin = R1


class TestContractWithOptions(PluginContract):
    plugin = R1
    options = {"gamma": 2.0}
