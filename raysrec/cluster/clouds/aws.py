"""AWS: spot machines, or on-demand ones where a start of spot machines fails."""

import logging
from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

log = logging.getLogger(__name__)


class SpotOrOnDemand(AWSNodeProvider):
    """Ray's provider; `InstanceMarketOptions` of a node's configuration are a wish."""

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Start so many machines, all of one kind.

        Raises:
            NodeLaunchException: On-demand machines cannot be started either.
        """
        try:
            return dict(super().create_node(node_config, tags, count))
        except NodeLaunchException as error:
            if "InstanceMarketOptions" not in node_config:
                raise
            log.warning("no spot machine (%s: %s); starting on demand", error.category, error.description)
        on_demand = {name: value for name, value in node_config.items() if name != "InstanceMarketOptions"}
        return dict(super().create_node(on_demand, tags, count))
