"""The contract that every plugin keeps."""

from gancore.testing import PluginContract
from gancore_dragan import DRAGAN


class TestContract(PluginContract):
    plugin = DRAGAN


class TestContractWithOptions(PluginContract):
    plugin = DRAGAN
    options = {"noise": "gaussian", "scale": 0.1, "target": 0.5}
