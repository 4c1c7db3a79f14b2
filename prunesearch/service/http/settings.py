"""How the HTTP process listens, and what it refuses."""

import dataclasses
import json
import re
import ssl
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Self

from prunesearch.errors import InputError

SETTINGS_VARIABLE = "PRUNESEARCH_HTTP"
"""Environment variable with the settings of the HTTP process, for the process of the dashboard."""
_ALL_ADDRESSES = ("0.0.0.0", "::")  # they stand for all addresses of this host
# A name, or an address of IPv6 without brackets, as a header Host is compared with it.
_NAME = re.compile(r"[\w.-]+|[0-9A-Fa-f:.]+", re.ASCII)
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class HttpSettings:
    """Settings of the HTTP process.

    Attributes:
        host, port: address that the process listens on.
        dashboard_port: port of the dashboard's listener. None: there is no dashboard.
        trusted_hosts: names that a request's header Host may have, in addition to the loopback
            names and to `host`.
        tls_cert, tls_key: files of the certificate and of its key. None: plain HTTP.
        proxy_addresses: addresses of the proxies whose headers X-Forwarded-* are believed. None:
            there is no proxy.
        open_metrics: whether /metrics answers without a token.
        body_bytes: largest body of a request.
        body_seconds: time in which a whole body must arrive.
        answer_seconds: time after which a request ends with status 503 if the database is away.
        requests_per_minute: largest number of requests of one token, or of one address without a
            token.
        sign_ins_per_minute: largest number of attempts to sign in from one address.
        poll_seconds: time between two looks at the database for new events.
        check_seconds: time between two checks whether the tokens of open streams are still valid.
        keep_alive_seconds: time after which a quiet stream sends a comment.
        idle_reader_seconds: time after which a stream ends whose reader takes nothing.
    """

    host: str = "127.0.0.1"
    port: int = 8712
    dashboard_port: int | None = None
    trusted_hosts: tuple[str, ...] = ()
    tls_cert: str | None = None
    tls_key: str | None = None
    proxy_addresses: str | None = None
    open_metrics: bool = False
    body_bytes: int = 1024 * 1024
    body_seconds: float = 10.0
    answer_seconds: float = 8.0
    requests_per_minute: int = 6000
    sign_ins_per_minute: int = 10
    poll_seconds: float = 0.25
    check_seconds: float = 2.0
    keep_alive_seconds: float = 15.0
    idle_reader_seconds: float = 60.0

    @classmethod
    def read(cls, text: str) -> Self:
        """Return the settings of a text that `written` gave."""
        values = json.loads(text)
        return cls(**{**values, "trusted_hosts": tuple(values["trusted_hosts"])})

    def written(self) -> str:
        """Return the settings as a JSON text, for another process."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @property
    def secure(self) -> bool:
        """Whether browsers reach the service by https."""
        return self.tls_cert is not None or self.proxy_addresses is not None

    @property
    def url(self) -> str:
        """URL of the service, as it is shown to the user."""
        return f"{self._scheme}://{self._shown_host}:{self.port}"

    @property
    def dashboard_url(self) -> str | None:
        """URL of the dashboard. None: there is none."""
        if self.dashboard_port is None:
            return None
        return f"{self._scheme}://{self._shown_host}:{self.dashboard_port}"

    @property
    def _scheme(self) -> str:
        return "https" if self.tls_cert is not None else "http"

    @property
    def _shown_host(self) -> str:
        host = self.host
        # Nobody can type the address that stands for all addresses.
        if host in _ALL_ADDRESSES and self.tls_cert is not None and self.trusted_hosts:
            host = self.trusted_hosts[0]
        return f"[{host}]" if ":" in host else host

    def check(self) -> None:
        """Refuse settings with which tokens would cross a network in the clear, and mistakes.

        Raises:
            InputError: the host is not a loopback address and there is neither TLS nor a proxy; or
                one of certificate and key is missing or cannot be used; or a name or an address
                is none; or both listeners have one port.
        """
        if self.port and self.port == self.dashboard_port:
            raise InputError(
                f"`dashboard_port` {self.port} is the port of the service: give another"
            )
        for name in self.trusted_hosts:
            if name != "*" and _NAME.fullmatch(name) is None:
                raise InputError(
                    f"`trusted_host` {name!r} is not the name of a host: give it without scheme, "
                    "port and path, as in prune.example.org"
                )
        if self.proxy_addresses is not None:
            _check_proxies(self.proxy_addresses)
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("`tls_cert` and `tls_key` go together: give both, or neither")
        if self.tls_cert is not None:
            _check_certificate(self.tls_cert, self.tls_key)
        if not is_loopback(self.host) and not self.secure:
            raise InputError(
                f"`host` {self.host!r} would send tokens over the network unencrypted: give "
                "`tls_cert` and `tls_key`, or `proxy_addresses` if a proxy in front of the service "
                "terminates TLS"
            )


def _check_certificate(cert: str, key: str | None) -> None:
    """Refuse a certificate that cannot be used with its key.

    Raises:
        InputError: the files cannot be read, or do not go together.
    """
    try:
        # Without a password the library would ask for one on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(
            f"the certificate `tls_cert` {cert!r} cannot be used with `tls_key` {key!r}: {reason}"
        ) from None


def _check_proxies(addresses: str) -> None:
    """Refuse addresses of proxies that are none, or that stand for everybody.

    Raises:
        InputError: headers of a proxy would never be believed, or those of everybody.
    """
    for address in addresses.split(","):
        try:
            everybody = ip_network(address.strip()).prefixlen == 0
        except ValueError:
            everybody = True
        if everybody:
            raise InputError(
                f"`proxy_addresses` {address.strip()!r}: give the address of the proxy, or its "
                "network, as in 10.0.0.5 or 10.0.0.0/24; the headers of others are not believed"
            )


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    if host in LOOPBACK_NAMES:
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
