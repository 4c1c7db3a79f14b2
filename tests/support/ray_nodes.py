"""A Ray cluster of several nodes on this machine. Each node has a scheduler of its own."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunesearch.compat import ray as compat_ray
from prunesearch.evaluation.ray_cluster import connected, is_alive

_END_SECONDS = 10.0
_FORGET_SECONDS = 60.0
_NODE = {"include_dashboard": False, "object_store_memory": 2**27, "num_gpus": 0}


class Nodes:
    """Nodes of one cluster. This process is connected to its head."""

    def __init__(self, cpus: int) -> None:
        from ray.cluster_utils import Cluster

        cluster: Any = Cluster
        self._cluster = cluster(initialize_head=True, head_node_args={"num_cpus": cpus, **_NODE})
        self.address: str = self._cluster.address

    @property
    def head(self) -> str:
        """Ray's id of the head."""
        return str(self._cluster.head_node.node_id)

    def add(self, cpus: int) -> Any:  # noqa: ANN401 (of Ray)
        """Add a node, and return it."""
        return self._cluster.add_node(num_cpus=cpus, **_NODE)

    def remove(self, node: Any, workers: Sequence[int] = ()) -> None:  # noqa: ANN401
        """Kill a node with all its processes.

        Its workers end when they notice that it is dead. Until then they would go on.

        Args:
            node: the node.
            workers: ids of processes on it that have ended on return.
        """
        self._cluster.remove_node(node, allow_graceful=False)
        until = time.monotonic() + _END_SECONDS
        while any(_is_running(pid) for pid in workers) and time.monotonic() < until:
            time.sleep(0.02)
        for pid in workers:
            if _is_running(pid):
                os.kill(pid, signal.SIGKILL)

    def wait_until_gone(self, node: Any) -> None:  # noqa: ANN401
        """Wait until the cluster knows that a removed node is dead. An idle machine is ahead of it."""
        until = time.monotonic() + _FORGET_SECONDS
        while is_alive(str(node.node_id)):
            assert time.monotonic() < until, "the cluster still counts a removed node"
            time.sleep(0.05)

    def shutdown(self) -> None:
        """Kill all nodes."""
        self._cluster.shutdown()


def _is_running(pid: int) -> bool:
    """Whether a process runs. One that nobody has waited for yet has ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


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
