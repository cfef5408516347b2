"""Put the force fields of data/forcefields into wheels as offjax/data/forcefields.

An editable install leaves them where they are: a copy would go stale with the first edit.
"""

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ForceFieldFiles(BuildHookInterface):
    def initialize(self, version: str, build_data: dict) -> None:
        if self.target_name == "wheel" and version == "standard":
            build_data["force_include"]["data/forcefields"] = "offjax/data/forcefields"
