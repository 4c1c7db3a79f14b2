"""The attacks that a service on a network must expect, each against a running service. Is one
through?

A row of the table says what was tried, what the service answered, and whether it got through. The
rows are in the notes of the document.
"""

import contextlib
import gzip
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx2
import sqlalchemy
from optuna.study import StudyDirection

from benchmarks.service_load_parts.attack_tools import DENIED, Attempt, Target, raw_answer
from benchmarks.support.record import Record
from benchmarks.support.running_service import MODEL, RunningService
from prunesearch.runtime.json_values import JsonObject
from prunesearch.service.access.sessions import COOKIE
from prunesearch.service.database import open_database
from prunesearch.service.event_log import EventLog, NewEvent
from prunesearch.service.tables import JOB_RECORDS
from prunesearch.studies import persistence

SCRIPT = "<script>alert(1)</script>"
_SECRET = "content-of-a-file-outside"
_RECIPE: JsonObject = {"model": MODEL, "search": {"drop": 5}}


def measure(record: Record, scratch: Path) -> None:
    """Add the number of attacks, and of those that got through."""
    with RunningService(scratch, None, "--no-runner") as service:
        target = Target(service)
        _prepare(target)
        before = target.rows()
        attempts: list[Attempt] = []
        for attack in ATTACKS:
            for attempt in attack(target):
                attempts.append(attempt)
            service.wait_ready("/healthz")
        target.close()
        changed = target.changed(before)
    through = [attempt for attempt in attempts if attempt.through]
    failed = [attempt for attempt in attempts if attempt.answer.startswith("5")]

    record.add("attacks_tried", len(attempts))
    record.add("attacks_through", len(through), "== 0")
    record.add("attacks_server_errors", len(failed), "== 0")
    record.add("attacks_rows_changed", changed, "== 0")
    record.notes["attacks"] = [
        f"{attempt.attack}: {attempt.what[:120]!r} -> {attempt.answer}"
        + (" THROUGH" if attempt.through else "")
        for attempt in attempts
    ]
    for attempt in through:
        print(f"through: {attempt}")


def _prepare(target: Target) -> None:
    """Make what attacks are after: files outside, links that lead there, an export, and texts with
    scripts.
    """
    home = target.service.settings.models[0].parent
    (home / "outside.txt").write_text(_SECRET)
    (home / "models" / "link").symlink_to("/etc")
    (home / "data" / "link.txt").symlink_to(home / "outside.txt")
    export = target.service.settings.exports / target.job
    export.mkdir(parents=True)
    (export / "config.json").write_text("{}")
    with contextlib.suppress(OSError):
        (export / "link").symlink_to(home / "outside.txt")
    engine = open_database(target.service.settings.database)
    with engine.begin() as connection:
        connection.execute(
            sqlalchemy.update(JOB_RECORDS)
            .where(JOB_RECORDS.c.job == target.job)
            .values(exported=True)
        )
    log = EventLog(engine)
    texts = [
        NewEvent("message", {"text": f"{SCRIPT} \x1b[2J"}, time.time()),
        NewEvent("log", {"line": f"WARNING {SCRIPT}", "text": SCRIPT}, time.time()),
    ]
    log.append(target.job, texts, "attack", error=f"failed with {SCRIPT}")
    engine.dispose()
    # The command line may have made a study of any name in the same database.
    storage = persistence.open_storage(target.service.settings.storage, create=True)
    storage.create_new_study(directions=[StudyDirection.MINIMIZE], study_name=f"a{SCRIPT}")


def _paths(target: Target) -> Iterator[Attempt]:
    """Names that lead out of a folder."""
    home = target.service.settings.models[0].parent
    steps = ("../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%5c", "%252e%252e%252f", "....//")
    places = (f"/v1/jobs/{target.job}/export/files/", "/static/", "/v1/studies/", "/v1/jobs/")
    for place in places:
        for step in steps:
            for file in ("outside.txt", "admin.token", "study.db"):
                path = f"{place}{step * 3}{file}"
                yield target.raw("path traversal", "GET", path, secrets=(_SECRET, target.admin))
    for name in ("link", "/etc/passwd", f"/{home}/outside.txt", "%00", "config.json/../link"):
        path = f"/v1/jobs/{target.job}/export/files/{name}"
        yield target.raw("path traversal", "GET", path, secrets=(_SECRET, "root:"))


def _recipes(target: Target) -> Iterator[Attempt]:
    """Recipes that name what the operator did not allow, or that run code."""
    home = target.service.settings.models[0].parent
    bad: list[object] = []
    for model in ("../models/tiny", "/etc", str(home / "models" / MODEL), "link", "~/x", f"{MODEL}/..",
                  f"{MODEL}\x00", "", ".", "gpt2", "hf://x/y", "file:///etc/passwd"):  # fmt: skip
        bad.append({**_RECIPE, "model": model})
    for text in ("/etc/passwd", "../outside.txt", "link.txt", "wikitext", "file:///etc/passwd"):
        bad.append({**_RECIPE, "data": {"calibration": text}})
        bad.append({**_RECIPE, "data": {"task_data": text}, "objective": {"task": "hellaswag"}})
        bad.append({**_RECIPE, "recover": {"heal": {"data": text}}})
    bad += [
        {**_RECIPE, "data": {"include_path": "/tmp"}},
        {**_RECIPE, "objective": {"task": "/etc/passwd"}},
        {**_RECIPE, "model": {"path": MODEL, "trust_remote_code": True}},
        {**_RECIPE, "run": {"device_map": "auto"}},
        {**_RECIPE, "run": {"storage": "sqlite:////tmp/x.db"}},
        {**_RECIPE, "run": {"out": "/tmp/x"}},
        {**_RECIPE, "storage": "sqlite:////tmp/x.db"},
        "model: !!python/object/apply:os.system ['touch /tmp/owned']\nsearch: {drop: 5}",
        "model: !!python/name:os.system\nsearch: {drop: 5}",
        _laughing(),
        "[" * 50_000,
        "{" * 50_000,
        "model: tiny\nsearch: {drop: 5\n",
        "\x00",
    ]
    for recipe in bad:
        yield target.refused("recipe", "POST", "/v1/jobs", {"recipe": recipe})


def _laughing() -> str:
    """A YAML text that would be expanded to gigabytes."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    return "\n".join(lines)


def _names(target: Target) -> Iterator[Attempt]:
    """Names that are SQL, and names that are too much."""
    names = ("'; DROP TABLE studies; --", "x' OR '1'='1", "%", '"; DELETE FROM trials; --', "_" * 600,
             "\\'; SELECT 1", SCRIPT, "a\r\nSet-Cookie: x=1", "\u202e", "a/../b")  # fmt: skip
    for name in names:
        yield target.refused(
            "name of a study", "POST", "/v1/jobs", {"recipe": _RECIPE, "study": name}
        )
        for query in ("study", "submitted_by", "cursor", "state"):
            answer = target.get("/v1/jobs", {query: name})
            listed = answer.json().get("jobs") if answer.is_success else []
            yield Attempt(
                "SQL in a query", f"{query}={name}", str(answer.status_code), bool(listed)
            )
        answer = target.get(f"/v1/studies/{quote(name, safe='')}")
        yield Attempt("SQL in a path", name, str(answer.status_code), answer.is_success)
        yield target.refused(
            "name of a token", "POST", "/v1/tokens", {"name": f"x {name}", "role": "admin"}
        )


def _scripts(target: Target) -> Iterator[Attempt]:
    """Scripts in names, notes and log lines must not reach a page as they are."""
    pages = ("/", f"/jobs/{target.job}", f"/studies/a{SCRIPT}", "/studies/a%3Cscript%3Ealert(1)%3C%2Fscript%3E",
             "/submit", f"/sign-in?next={SCRIPT}", f"/{SCRIPT}", f"/jobs/{SCRIPT}")  # fmt: skip
    for page in pages:
        answer = target.browser.get(page, headers={"Accept": "text/html"})
        html = answer.headers.get("content-type", "").startswith("text/html")
        policy = answer.headers.get("content-security-policy", "")
        unsafe = html and (SCRIPT in answer.text or "unsafe-inline" in policy or not policy)
        yield Attempt("script in a page", page, str(answer.status_code), unsafe)
    for path in (f"/v1/jobs/{target.job}/log", f"/v1/jobs/{target.job}/events", "/v1/studies"):
        answer = target.get(path, headers={"Accept": "application/json"})
        kind = answer.headers.get("content-type", "")
        sniffed = answer.headers.get("x-content-type-options") != "nosniff"
        yield Attempt(
            "script in data", path, f"{answer.status_code} {kind}", "html" in kind or sniffed
        )


def _bodies(target: Target) -> Iterator[Attempt]:
    """Bodies that are too large, too slow, compressed, or deep."""
    large = b'{"recipe": "' + b"x" * (8 << 20) + b'"}'
    json = {"Content-Type": "application/json"}
    answer = target.post("/v1/jobs", content=large, headers=json)
    yield Attempt("oversized body", "8 MiB", str(answer.status_code), answer.is_success)

    def parts() -> Iterator[bytes]:
        for _ in range(128):
            yield b"x" * 65536

    with contextlib.suppress(httpx2.TransportError):
        answer = target.post("/v1/jobs", content=parts(), headers=json)
        yield Attempt("oversized body", "chunks", str(answer.status_code), answer.is_success)
    deep = b'{"recipe": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    answer = target.post("/v1/jobs", content=deep, headers=json)
    yield Attempt("deep body", "100,000 lists", str(answer.status_code), answer.is_success)
    before = target.service.memory()
    bomb = gzip.compress(b"\0" * (256 << 20), 9)
    for path in ("/v1/jobs", "/v1/recipes/check", "/sign-in"):
        answer = target.post(path, content=bomb, headers={**json, "Content-Encoding": "gzip"})
        grown = target.service.memory() - before > (64 << 20)
        yield Attempt("zip bomb", path, str(answer.status_code), answer.is_success or grown)
    start = time.monotonic()
    head = target.head("POST", "/v1/jobs", "Content-Type: application/json", "Content-Length: 100")
    answered = raw_answer(target.service.url, head, slow=b" " * 90, patience=40)
    held = time.monotonic() - start > 30
    yield Attempt(
        "slow body", "a byte a second", answered.partition("\r\n")[0][9:] or "closed", held
    )


def _sessions(target: Target) -> Iterator[Attempt]:
    """Forged cookies, tokens in URLs, and requests of other sites."""
    for cookie in (
        "x",
        "0" * 64,
        target.admin,
        target.session[:-1] + "A",
        f"{target.session}x",
        "",
    ):
        sent = {"Cookie": f"{COOKIE}={cookie}", "Accept": "application/json"}
        answer = target.anonymous.get("/v1/me", headers=sent)
        through = answer.status_code not in DENIED
        yield Attempt("forged cookie", cookie[:8], str(answer.status_code), through)
    for name in ("token", "access_token", "api_key", "key", "Authorization"):
        for path in ("/v1/me", f"/v1/jobs/{target.job}/events", "/metrics", "/"):
            answer = target.anonymous.get(path, params={name: target.admin})
            yield Attempt(
                "token in a URL", f"{path}?{name}=", str(answer.status_code), answer.is_success
            )
    basic = httpx2.BasicAuth("admin", target.admin)
    answer = target.anonymous.get("/v1/me", auth=basic)
    yield Attempt("token as a password", "Basic", str(answer.status_code), answer.is_success)
    path = f"/v1/jobs/{target.job}/cancel"
    foreign: list[dict[str, str]] = [
        {},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": target.service.url},
        {"Sec-Fetch-Site": "cross-site"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Origin": "https://evil.example", "X-CSRF-Token": target.csrf},
        {"X-CSRF-Token": "x"},
    ]
    for headers in foreign:
        for method in ("POST", "DELETE"):
            place = path if method == "POST" else path.removesuffix("/cancel")
            answer = target.browser.request(method, place, headers=headers, content=b"x=1")
            shown = f"{method} {sorted(headers)}"
            yield Attempt("cross-site request", shown, str(answer.status_code), answer.is_success)
    answer = target.anonymous.post(
        "/sign-in", data={"token": target.admin}, headers={"Origin": "https://evil.example"}
    )
    target.anonymous.cookies.clear()
    signed = "set-cookie" in answer.headers
    yield Attempt("cross-site sign-in", "other origin", str(answer.status_code), signed)
    for next_page in (
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "javascript:alert(1)",
    ):
        answer = target.sign_in(next_page)
        place = answer.headers.get("location", "")
        leads_out = bool(place) and (not place.startswith("/") or place.startswith(("//", "/\\")))
        yield Attempt(
            "redirect to another site", next_page, f"{answer.status_code} {place}", leads_out
        )


def _headers(target: Target) -> Iterator[Attempt]:
    """Line breaks and forged names in headers."""
    for header in ("Idempotency-Key: x\rX-Evil: 1", "Idempotency-Key: x\r\n X-Evil: 1",
                   "Idempotency-Key: \x00", f"Idempotency-Key: {'x' * 100_000}"):  # fmt: skip
        head = target.head("GET", "/v1/jobs?limit=1", header)
        yield _injected(target, "header injection", header, head)
    for path in ("/v1/jobs/%0d%0aX-Evil:%201", "/%0d%0aX-Evil:%201", "/sign-in?next=/%0d%0aX-Evil:%201",
                 "/v1/studies/%0d%0aX-Evil:%201"):  # fmt: skip
        yield _injected(target, "header injection", path, target.head("GET", path))
    for host in ("evil.example", "127.0.0.1.evil.example", "", "127.0.0.1:1@evil.example"):
        head = target.head("GET", "/v1/me", host=host)
        answer = raw_answer(target.service.url, head)
        status = answer.partition("\r\n")[0][9:]
        yield Attempt("foreign host", host, status, status.startswith("2"))
    smuggled = target.head(
        "POST", "/v1/recipes/check", "Content-Length: 5", "Transfer-Encoding: chunked"
    )
    answer = raw_answer(
        target.service.url, smuggled + b"0\r\n\r\nGET /v1/me HTTP/1.1\r\nHost: x\r\n\r\n"
    )
    second = answer.count("HTTP/1.1 200")
    yield Attempt(
        "request smuggling", "length and chunks", answer.partition("\r\n")[0][9:], second > 0
    )


def _injected(target: Target, attack: str, what: str, head: bytes) -> Attempt:
    """Return whether the headers of an answer have a line of the attacker."""
    answer = raw_answer(target.service.url, head)
    headers = answer.partition("\r\n\r\n")[0].lower()
    return Attempt(attack, what[:60], headers.partition("\r\n")[0][9:], "\r\nx-evil:" in headers)


def _others(target: Target) -> Iterator[Attempt]:
    """What a viewer, a stranger and a revoked token must not do."""
    changes: tuple[tuple[str, str, JsonObject | None], ...] = (
        ("POST", "/v1/jobs", {"recipe": _RECIPE}),
        ("POST", f"/v1/jobs/{target.job}/cancel", None),
        ("DELETE", f"/v1/jobs/{target.job}", None),
        ("POST", "/v1/tokens", {"name": "eve", "role": "admin"}),
        ("GET", "/v1/tokens", None),
        ("GET", "/v1/audit", None),
    )
    for method, path, body in changes:
        yield target.refused("role of a viewer", method, path, body, token=target.viewer)
    for method, path, body in changes[1:]:
        yield target.refused("another submitter", method, path, body, token=target.submitter)
    for token in (
        "",
        "x",
        "ps_" + "A" * 43,
        target.revoked,
        target.admin.lower(),
        target.admin[:-1],
    ):
        path = f"/v1/jobs/{target.job}/events"
        yield target.refused("another user's stream", "GET", path, None, token=token)
    yield _stream_of_a_revoked_token(target)


def _stream_of_a_revoked_token(target: Target) -> Attempt:
    """Revoke the token of an open stream: how soon does the stream end?"""
    token = target.make_token("leaving", "viewer")
    headers = {"Authorization": f"Bearer {token}", "Accept": "text/event-stream"}
    path = f"/v1/jobs/{target.job}/events"
    with target.anonymous.stream("GET", path, headers=headers, timeout=20) as response:
        opened = response.status_code == 200
        target.revoke("leaving")
        start = time.monotonic()
        ended = "still open"
        # A keep-alive comment comes every 15 seconds.
        parts = response.iter_raw()
        while time.monotonic() - start < 40:
            if next(parts, None) is None:
                ended = f"ended after {time.monotonic() - start:.1f} s"
                break
    through = not opened or ended == "still open"
    return Attempt("stream of a revoked token", f"opened: {opened}", ended, through)


ATTACKS = (_paths, _recipes, _names, _scripts, _bodies, _sessions, _headers, _others)
