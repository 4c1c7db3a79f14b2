"""Ray: where it listens, what it prints, and its token. Tested with Ray 2.60."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from prunesearch.runtime.patching import replaced


@contextmanager
def on_loopback() -> Iterator[None]:
    """Have a Ray that is started or joined inside the ``with`` block use 127.0.0.1 only.

    On Linux, Ray replaces 127.0.0.1 by an address that other machines reach, unless it was told
    that it may not form a cluster. The variable of the environment that says so is read when Ray is
    imported, so the value that was read is replaced.
    """
    from ray._private import ray_constants

    with replaced(ray_constants, "ENABLE_RAY_CLUSTER", False):
        yield


def address_here() -> str:
    """Return the address ``HOST:PORT`` of the cluster that this machine belongs to.

    Raises:
        ConnectionError: no Ray runs on this machine.
    """
    from ray._private.services import get_ray_address_from_environment

    return str(get_ray_address_from_environment("auto", None))


def use_token_of(address: str) -> None:
    """Use the token of this machine to join a cluster, if the cluster asks for one.

    ``ray start`` uses the token that it finds, and ``init`` of Ray does not: a cluster that was
    started where a token lies would refuse a process on the same machine. With a token, a cluster
    that does not ask for one ends its workers.

    Args:
        address: address ``HOST:PORT`` of the cluster.
    """
    import ray
    from ray._private.authentication import authentication_token_setup as setup

    # The extension has no annotations.
    connect = vars(sys.modules["ray._raylet"])["GcsClient"]
    try:
        connect(address=address)
    except ray.exceptions.AuthenticationError:
        with replaced(setup.logger, "disabled", True):
            setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Ray's own messages off the terminal inside the ``with`` block.

    Even without ``log_to_driver``, Ray prints to standard output when a worker dies.
    """
    from ray._private import worker

    with replaced(worker, "_worker_logs_enabled", False):
        yield
