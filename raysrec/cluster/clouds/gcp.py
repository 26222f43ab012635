"""Google Cloud: spot machines, or standard ones where a start of spot machines fails."""

import logging
from typing import Any

from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider

log = logging.getLogger(__name__)


class SpotOrOnDemand(GCPNodeProvider):
    """Ray's provider; `scheduling.provisioningModel: SPOT` of a node's configuration is a wish."""

    def create_node(self, base_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, dict[str, Any]]:
        """Start so many machines.

        Those spot machines that did start when others failed are found idle by the autoscaler, and end.

        Raises:
            Exception: Standard machines cannot be started either; Google's operations fail with nothing more precise.
        """
        scheduling = base_config.get("scheduling", {})
        try:
            return dict(super().create_node(base_config, tags, count))
        except Exception as error:
            if scheduling.get("provisioningModel") != "SPOT":
                raise
            log.warning("no spot machine (%s); starting a standard one", error)
        only_spot = ("provisioningModel", "instanceTerminationAction")
        standard = {name: value for name, value in scheduling.items() if name not in only_spot}
        return dict(super().create_node({**base_config, "scheduling": standard}, tags, count))
