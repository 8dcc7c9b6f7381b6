"""The contract that every plugin keeps."""

from gancore.testing import PluginContract
from gancore_cr import ConsistencyRegularization


class TestContract(PluginContract):
    plugin = ConsistencyRegularization


class TestContractWithOptions(PluginContract):
    plugin = ConsistencyRegularization
    options = {"fake_weight": 3.0, "shift": 2, "flip": False}
