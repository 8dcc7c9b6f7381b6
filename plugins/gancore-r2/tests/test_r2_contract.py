"""The contract that every plugin keeps."""

from gancore.testing import PluginContract
from gancore_r2 import R2


class TestContract(PluginContract):
    plugin = R2


class TestContractWithOptions(PluginContract):
    plugin = R2
    options = {"gamma": 2.0}
