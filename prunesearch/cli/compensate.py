"""The command `compensate`. It starts without torch."""

from pathlib import Path
from typing import Any

import click

from prunesearch.cli.help import Command, Words
from prunesearch.cli.options.data import CALIBRATION, HELD_OUT, HELD_OUT_TOKENS, TOKENS, WINDOW
from prunesearch.cli.options.execution import MODEL_OF_STUDY
from prunesearch.cli.options.groups import MODEL_OPTIONS, SELECTION_OPTIONS, WITHOUT_SCORING
from prunesearch.cli.options.places import JSON, MAX_SHARD, OUT, STORAGE
from prunesearch.cli.options.search import LAYERS
from prunesearch.cli.output import progress, quiet
from prunesearch.cli.parameters import with_options
from prunesearch.cli.recipes import options_of, source_of
from prunesearch.errors import InputError
from prunesearch.objectives.base import BUILTIN_TEXT
from prunesearch.report.emit import emit
from prunesearch.units import parse_size


@click.command(cls=Command)
@click.argument("target", metavar="STUDY|MODEL")
@LAYERS
@MODEL_OF_STUDY
@with_options(*SELECTION_OPTIONS)
@OUT.variant(required=True)
@click.option(
    "--method",
    type=Words(("auto", "scaling", "linear")),
    default="auto",
    show_default=True,
    help="Method of compensation; auto: both where they help.",
)
@CALIBRATION.variant(default=BUILTIN_TEXT)
@TOKENS.variant(default=16384)
@WINDOW
@HELD_OUT
@HELD_OUT_TOKENS.variant(default=2048, show_default=True)
@MAX_SHARD
@STORAGE
@with_options(*MODEL_OPTIONS, *WITHOUT_SCORING)
@JSON
def compensate(
    target: str,
    layers: str | None,
    max_loss: str | None,
    max_size: str | None,
    out: str,
    method: str,
    calibration: str,
    tokens: int,
    window: int,
    held_out: str | None,
    held_out_tokens: int,
    max_shard: str,
    as_json: bool,
    **settings: Any,  # noqa: ANN401
) -> None:
    """Compensate dropped layers without training, and write the verified checkpoint.

    Without --layers, STUDY's best trial is compensated. The change is fitted to the calibration
    text. The weights of the kept blocks are changed. Nothing is added to the model. Only changes
    that lower the loss on held-out text are kept, and nothing is written if there are none.
    """
    # Check the options before torch is imported.
    size = parse_size(max_shard, "--max-shard")
    if size < 1:
        raise InputError(f"--max-shard {max_shard} is not a size: write 5GB or 500MiB")
    quiet()
    from prunesearch.pipeline.export_request import ExportRequest
    from prunesearch.pipeline.run import report_of
    from prunesearch.pipeline.state import Request
    from prunesearch.recovery.compensation import CompensationSettings
    from prunesearch.report.render import render

    request = Request(
        options_of(settings),
        source=source_of(target, layers, max_loss, max_size, settings),
        export=ExportRequest(Path(out), max_shard=size),
        compensation=CompensationSettings(
            method, calibration, tokens, window, held_out, held_out_tokens
        ),
    )
    with progress():
        report = report_of("compensate", request)
    emit(as_json, report, render)
