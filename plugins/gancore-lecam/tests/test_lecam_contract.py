"""The contract that every plugin keeps."""

from gancore.testing import PluginContract
from gancore_lecam import LeCam


class TestContract(PluginContract):
    plugin = LeCam


class TestContractWithOptions(PluginContract):
    plugin = LeCam
    options = {"decay": 0.5, "relu": True}
