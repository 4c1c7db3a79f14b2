"""The connection of this process to Ray: it starts Ray on this machine, or joins a cluster.

Ray is imported inside the functions, because it is an extra.
"""

import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from prunesearch.compat import ray as compat_ray
from prunesearch.errors import InputError, one_line
from prunesearch.units import noun_for

_OBJECT_MEMORY = 2**27  # bytes of Ray's object memory on this machine: results are small
_REACH_SECONDS = 10.0  # time in which the head of a cluster must answer


def check(address: str | None) -> None:
    """Refuse `engine` ray if it cannot be used. Nothing is started or joined.

    Args:
        address: address of a cluster; see `connected`.

    Raises:
        InputError: Ray is not installed, or nobody answers at the address.
    """
    _check_installed()
    import ray

    # A program that has connected already keeps its connection.
    if address is not None and not ray.is_initialized():
        try:
            _reachable(address)
        except OSError as error:
            raise _cannot_join(address, error) from error


def _cannot_join(address: str, error: Exception) -> InputError:
    """Return the error of a cluster that cannot be joined."""
    return InputError(f"cannot join Ray at `ray_address` {address}: {one_line(error)}")


def _check_installed() -> None:
    """Refuse `engine` ray if Ray is not installed.

    Raises:
        InputError: it is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError(
            "`engine` ray needs Ray: pip install 'prunesearch[ray]', on every node of the cluster"
        )


@contextmanager
def connected(address: str | None, cpus: int) -> Iterator[None]:
    """Connect this process to Ray inside the ``with`` block.

    A Ray that is started here listens on 127.0.0.1 only, and is shut down at the end. One that was
    joined is left alone. If the program that uses this package has connected already, this
    connection is used, and left open.

    Args:
        address: address of the cluster, or ``auto`` for the one that runs on this machine. None:
            Ray is started on this machine.
        cpus: number of CPU cores that a Ray which is started here hands out.

    Raises:
        InputError: there is no cluster at this address, or it has another version of Ray or Python.
    """
    _check_installed()
    import ray

    with ExitStack() as stack:
        stack.enter_context(compat_ray.quiet())
        # Shut down what is started here, and leave alone what was there before.
        if not ray.is_initialized():
            stack.callback(ray.shutdown)
            _connect(address, cpus)
        yield


def _connect(address: str | None, cpus: int) -> None:
    """Start Ray, or join it.

    Raises:
        InputError: see `connected`.
    """
    import ray

    # No message of Ray reaches the terminal, and nothing is sent to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        settings |= {
            "num_cpus": cpus,
            "include_dashboard": False,
            "object_store_memory": _OBJECT_MEMORY,
            "_node_ip_address": "127.0.0.1",
        }
    failures = (RuntimeError, OSError, ValueError, ray.exceptions.RayError)
    with _signals_kept():
        try:
            # Find out where the cluster is, and whether it asks for a token.
            found = _reachable(address)
            if found is not None:
                compat_ray.use_token_of(found)
            # Start Ray, or join it.
            with compat_ray.on_loopback() if _is_loopback(found) else nullcontext():
                ray.init(address=found or "local", **settings)
        except failures as error:
            if address is not None:
                raise _cannot_join(address, error) from error
            raise InputError(f"cannot start Ray on this machine: {one_line(error)}") from error


def _reachable(address: str | None) -> str | None:
    """Return the address of a cluster. None: Ray is started on this machine.

    Ray itself tries for minutes to reach an address at which nobody answers.

    Raises:
        OSError: nobody answers.
    """
    if address is None:
        return None
    found = compat_ray.address_here() if address == "auto" else address
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_SECONDS).close()
    except OSError as error:
        raise ConnectionError(f"nobody answers at {found} ({error.strerror or error})") from error
    return found


def _is_loopback(address: str | None) -> bool:
    """Return whether Ray has to be used on this machine's own interface."""
    host = "localhost" if address is None else address.rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.")


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Put back this process's handler of SIGTERM, which Ray replaces when it starts."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def check_fits(workers: int, cpus: int, gpus: float) -> None:
    """Refuse more workers than a Ray that was started here can ever hold.

    Args:
        workers: number of workers.
        cpus, gpus: CPU cores and GPUs of one worker.

    Raises:
        InputError: they do not fit.
    """
    import ray

    # A cluster of one machine does not grow.
    total = ray.cluster_resources()  # type: ignore[no-untyped-call]
    if workers * cpus > total.get("CPU", 0) or workers * gpus > total.get("GPU", 0):
        raise InputError(
            f"`workers` {workers} of {_amounts({'CPU': cpus, 'GPU': gpus})} each have no room on "
            f"this machine: Ray has {_amounts(total)}; give fewer `workers` or less "
            f"`gpus_per_worker`"
        )


def is_alive(node: str) -> bool:
    """Return whether a node of the cluster is alive.

    Args:
        node: Ray's id of the node.
    """
    import ray

    known = ray.nodes()  # type: ignore[no-untyped-call]
    return any(each["NodeID"] == node and each["Alive"] for each in known)


def described() -> str:
    """Return what the cluster has, such as ``2 nodes with 8 CPUs and 1 GPU (free: ...)``."""
    import ray

    nodes = sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]
    total = ray.cluster_resources()  # type: ignore[no-untyped-call]
    free = ray.available_resources()  # type: ignore[no-untyped-call]
    return f"{nodes} {noun_for(nodes, 'node')} with {_amounts(total)} (free: {_amounts(free)})"


def _amounts(resources: dict[str, float]) -> str:
    """Return amounts of CPU cores and GPUs, such as ``8 CPUs and 1 GPU``."""
    amounts = []
    for kind in ("CPU", "GPU"):
        amount = resources.get(kind, 0)
        amounts.append(f"{amount:g} {noun_for(amount, kind)}")
    return " and ".join(amounts)
