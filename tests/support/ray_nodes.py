"""A Ray cluster of several nodes on this machine. Each node has a scheduler of its own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prunesearch.compat import ray as compat_ray
from prunesearch.evaluation.ray_cluster import connected

_NODE = {"include_dashboard": False, "object_store_memory": 2**27, "num_gpus": 0}


class Nodes:
    """Nodes of one cluster. This process is connected to its head."""

    def __init__(self, cpus: int) -> None:
        from ray.cluster_utils import Cluster

        cluster: Any = Cluster
        self._cluster = cluster(initialize_head=True, head_node_args={"num_cpus": cpus, **_NODE})
        self.address: str = self._cluster.address

    def add(self, cpus: int) -> Any:  # noqa: ANN401 (of Ray)
        """Add a node, and return it."""
        return self._cluster.add_node(num_cpus=cpus, **_NODE)

    def remove(self, node: Any) -> None:  # noqa: ANN401
        """Kill a node with all its processes."""
        self._cluster.remove_node(node, allow_graceful=False)

    def shutdown(self) -> None:
        """Kill all nodes."""
        self._cluster.shutdown()


@contextmanager
def nodes(cpus: int) -> Iterator[Nodes]:
    """Start a cluster whose head has some CPUs, and join it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with compat_ray.on_loopback():
        cluster = Nodes(cpus)
    try:
        with connected(cluster.address, cpus):
            yield cluster
    finally:
        cluster.shutdown()
