"""The commands `export` and `verify`. They start without torch."""

from pathlib import Path
from typing import Any

import click

from prunesearch.cli.help import Command, Words
from prunesearch.cli.options.data import CALIBRATION, TOKENS, WINDOW
from prunesearch.cli.options.execution import MODEL_OF_STUDY, REVISION, TRUST
from prunesearch.cli.options.groups import MODEL_OPTIONS, SELECTION_OPTIONS, WITHOUT_SCORING
from prunesearch.cli.options.places import EXPORT_FORMAT, JSON, MAX_SHARD, OUT, STORAGE
from prunesearch.cli.options.search import CRITERION, LAYERS, ORDER_TOKENS
from prunesearch.cli.output import progress, quiet
from prunesearch.cli.parameters import with_options
from prunesearch.cli.recipes import model_of, options_of, source_of
from prunesearch.report.emit import emit

REQUEST = ("out", "export_format", "gguf", "max_shard", "push_to_hub", "public", "program")
"""Options that say what is written."""


@click.command(cls=Command)
@click.argument("target", metavar="STUDY|MODEL")
@LAYERS
@with_options(CRITERION, ORDER_TOKENS, CALIBRATION, TOKENS, WINDOW)
@MODEL_OF_STUDY
@with_options(*SELECTION_OPTIONS)
@OUT
@EXPORT_FORMAT
@click.option("--gguf", is_flag=True, help="Write a GGUF for llama.cpp instead.")
@MAX_SHARD
@click.option(
    "--push-to-hub",
    metavar="OWNER/NAME",
    help="Upload the verified checkpoint, to a private repository.",
)
@click.option(
    "--public", is_flag=True, help="Let --push-to-hub upload to a repository that is public."
)
@click.option(
    "--print",
    "program",
    type=Words(("mergekit", "llama-quantize")),
    help="Write nothing; print a recipe for another program.",
)
@STORAGE
@with_options(*MODEL_OPTIONS, *WITHOUT_SCORING)
@JSON
def export(
    target: str,
    layers: str | None,
    max_loss: str | None,
    max_size: str | None,
    as_json: bool,
    **settings: Any,  # noqa: ANN401
) -> None:
    """Write a pruned checkpoint that plain transformers loads, reload it, and compare it with what
    was scored.

    Without --layers, STUDY's best trial is exported.
    """
    made = {name: settings.pop(name) for name in REQUEST}
    quiet()
    from prunesearch.pipeline.export_request import ExportRequest
    from prunesearch.pipeline.run import report_of
    from prunesearch.pipeline.state import Request
    from prunesearch.report.render import render

    written = ExportRequest.parse(**made)
    source = source_of(target, layers, max_loss, max_size, settings)
    request = Request(options_of(settings), source=source, export=written)
    with progress():
        report = report_of("export", request)
    emit(as_json, report, render)


@click.command(cls=Command)
@click.argument("folder")
@click.option("--base", help="The dense model, for a full comparison with it.")
@with_options(REVISION, TRUST)
@with_options(*WITHOUT_SCORING)
@JSON
def verify(folder: str, base: str | None, as_json: bool, **settings: Any) -> None:  # noqa: ANN401
    """Verify the export in FOLDER, or a GGUF export, again: files, weights, and what it
    computes.
    """
    options = options_of(settings)
    dense = None if base is None else model_of({**settings, "model": base})
    quiet()
    from prunesearch.pipeline.stages.verify import verify_again
    from prunesearch.report import export as rendered

    with progress():
        document = verify_again(Path(folder), dense, options, settings["trust_remote_code"])
    emit(as_json, document, rendered.verified)
