"""What `prunesearch serve` prints when it has started."""

from prunesearch.report.tables import Parts
from prunesearch.service.server import RunningServer


def started(server: RunningServer) -> Parts:
    """Show where the service is, where the token is, and where models and data belong."""
    lines: Parts = [f"prunesearch serves on {server.url}"]
    if server.dashboard is not None:
        lines.append(f"dashboard: {server.dashboard} (the same sign-in)")
    if server.token_file is not None:
        new = "new, only you can read it" if server.new_token else "of an earlier start"
        lines.append(f"token: in {server.token_file} ({new}): sign in with it")
    else:
        lines.append("token: prunesearch token create NAME --role submitter makes one")
    lines.append(f"models: folders in {', '.join(server.models)} can be named in recipes")
    lines.append(f"data: files in {', '.join(server.data)} can be named in recipes")
    lines.append(f"storage: {server.storage}; logs: {server.logs}")
    lines.append("stop: Ctrl-C. Jobs that run are kept, and go on at the next start")
    return lines
