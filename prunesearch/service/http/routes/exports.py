"""Routes of exports: the list of files, each file, and all of them as a tar file."""

import re
from typing import Annotated

from fastapi import FastAPI, Path, Request, Response
from starlette.responses import StreamingResponse

from prunesearch.runtime.json_values import to_json
from prunesearch.service import export_files
from prunesearch.service.http.auth import Viewer
from prunesearch.service.http.documents import ExportDocument
from prunesearch.service.http.problems import ProblemError
from prunesearch.service.http.routes.jobs import JobId
from prunesearch.service.http.routing import problems
from prunesearch.service.http.services import Shared

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")
FilePath = Annotated[str, Path(max_length=1000, description="Path of the file in the export.")]


def add_to(app: FastAPI) -> None:
    """Add the routes of exports."""
    known = problems(404)
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    app.get(
        "/v1/jobs/{job_id}/export",
        operation_id="show_export",
        response_model=ExportDocument,
        responses=known,
        tags=["exports"],
    )(show_export)
    app.get(
        "/v1/jobs/{job_id}/export/files/{path:path}",
        operation_id="download_file",
        response_class=Response,
        responses={
            200: {"content": binary, "description": "The file."},
            206: {"content": binary, "description": "The range that was asked for."},
            **problems(404, 416),
        },
        tags=["exports"],
    )(download_file)
    app.get(
        "/v1/jobs/{job_id}/export.tar",
        operation_id="download_export",
        response_class=Response,
        responses={
            200: {
                "content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}}
            },
            **known,
        },
        tags=["exports"],
    )(download_export)


def show_export(job_id: JobId, user: Viewer, services: Shared) -> object:
    """List the files of the export, with their sizes and digests."""
    files = services.exports.files(services.jobs.export_folder(job_id))
    total = sum(file.bytes for file in files)
    return to_json({"job": job_id, "bytes": total, "files": files})


def download_file(
    request: Request, job_id: JobId, path: FilePath, user: Viewer, services: Shared
) -> Response:
    """Download a file of the export, or a range of it."""
    folder = services.jobs.export_folder(job_id)
    with export_files.opened(folder, path) as file:
        size = file.seek(0, 2)
    first, count = _range(request.headers.get("range"), size)
    headers = {"Accept-Ranges": "bytes", "Content-Length": str(count)}
    headers["Content-Disposition"] = "attachment"
    status = 200
    if "range" in request.headers:
        status = 206
        headers["Content-Range"] = f"bytes {first}-{first + count - 1}/{size}"
    body = export_files.pieces(folder, path, first, count)
    return StreamingResponse(body, status, headers, "application/octet-stream")


def _range(header: str | None, size: int) -> tuple[int, int]:
    """Return the first byte of a range and the number of its bytes.

    Raises:
        ProblemError: the range is malformed, or outside of the file.
    """
    if header is None:
        return 0, size
    match = _RANGE.fullmatch(header.strip())
    if match is None or not (match[1] or match[2]):
        raise _outside(size)
    if not match[1]:  # the last bytes
        count = min(int(match[2]), size)
        first = size - count
    else:
        first = int(match[1])
        last = min(int(match[2]), size - 1) if match[2] else size - 1
        count = last - first + 1
    if first >= size or count <= 0:
        raise _outside(size)
    return first, count


def _outside(size: int) -> ProblemError:
    return ProblemError(
        416, f"give one range inside of {size:,} bytes", {"Content-Range": f"bytes */{size}"}
    )


def download_export(job_id: JobId, user: Viewer, services: Shared) -> Response:
    """Download all files of the export as a tar file."""
    folder = services.jobs.export_folder(job_id)
    export_files.names(folder)
    headers = {"Content-Disposition": f'attachment; filename="{job_id}.tar"'}
    return StreamingResponse(export_files.tar(folder, job_id), 200, headers, "application/x-tar")
