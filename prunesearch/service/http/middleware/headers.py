"""Checks the headers of requests, and sets those of responses."""

import re
from collections.abc import Collection
from urllib.parse import parse_qsl

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prunesearch.service.http.problems import ProblemError, response_of

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
"""What pages may load: files of this service, and no inline scripts or styles."""
_SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # With no-referrer, browsers would send `Origin: null` with the pages' own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_PROBES = ("/healthz", "/readyz")  # a probe may know only the address of the machine
_TOKEN_NAMES = frozenset("token access_token api_key apikey authorization bearer auth key".split())
_TOKEN_PREFIX = "ps_"
# A name, or an address of IPv6 in brackets; and a port.
_HOST = re.compile(r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[\w.*-]+))(?::\d*)?", re.ASCII)


class SecurityHeaders:
    """Sets the headers that tell a browser what it may do with a response.

    Args:
        app: the app.
        https: whether browsers reach the service by https.
    """

    def __init__(self, app: ASGIApp, https: bool) -> None:
        self._app, self._https = app, https

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and add the headers to its response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Files of the pages never change within a version, and hold no data.
        static = scope["path"].startswith("/static/")

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY.items():
                    headers[name] = value
                headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
                if not static:
                    headers["Cache-Control"] = "no-store"
                if self._https:
                    headers["Strict-Transport-Security"] = "max-age=31536000"
            await send(message)

        await self._app(scope, receive, with_headers)


class RequestChecks:
    """Refuses requests with a foreign Host or with a token in the URL.

    A foreign Host means that the name of another site was pointed at this machine (DNS rebinding).

    Args:
        app: the app.
        hosts: names that the header Host may have. A ``*`` accepts every name.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http":
            try:
                self._check(scope)
            except ProblemError as problem:
                await response_of(problem, scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        """Check one request.

        Raises:
            ProblemError: the request is refused.
        """
        if scope["path"] not in _PROBES and not self._is_trusted(Headers(scope=scope)):
            raise ProblemError(
                400,
                "this name of the service is not known: its operator adds it to the trusted hosts",
            )
        if "\0" in scope["path"]:
            raise ProblemError(400, "the path holds a NUL character")
        query = scope.get("query_string", b"").decode("latin-1")
        for name, value in parse_qsl(query, keep_blank_values=True):
            if name.lower() in _TOKEN_NAMES or value.startswith(_TOKEN_PREFIX):
                raise ProblemError(
                    400,
                    "a token does not belong into a URL, which logs and browsers keep: send it in "
                    "the header Authorization, and revoke the token that was sent",
                )

    def _is_trusted(self, headers: Headers) -> bool:
        values = headers.getlist("host")
        if "*" in self._hosts:
            return True
        return len(values) == 1 and host_name(values[0]) in self._hosts


def host_name(header: str) -> str:
    """Return the name of a header Host, without its port. It is empty if the header is damaged."""
    match = _HOST.fullmatch(header.strip().lower())
    return "" if match is None else match["address"] or match["name"]
