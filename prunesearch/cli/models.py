"""The commands `evaluate`, `analyze` and `plan` on one model. They start without torch."""

from typing import Any

import click

from prunesearch.cli.help import Command
from prunesearch.cli.options.data import KL_TOP, PROTOCOL, PROTOCOL_DATA, TOKENS
from prunesearch.cli.options.execution import DEVICE, REVISION, TRUST
from prunesearch.cli.options.groups import DATA_OPTIONS, MODEL_OPTIONS, ONE_CANDIDATE
from prunesearch.cli.options.places import JSON, STORAGE
from prunesearch.cli.options.search import DROP, LAYERS
from prunesearch.cli.output import progress, quiet
from prunesearch.cli.parameters import typed_names, with_options
from prunesearch.cli.recipes import (
    check_protocol,
    data_of,
    model_of,
    objective_of,
    options_of,
)
from prunesearch.report.emit import emit
from prunesearch.units import parse_size


@click.command(cls=Command)
@click.argument("model")
@LAYERS.variant(default="none")
@PROTOCOL
@PROTOCOL_DATA
@with_options(*DATA_OPTIONS, *MODEL_OPTIONS, *ONE_CANDIDATE)
@STORAGE
@JSON
def evaluate(
    model: str,
    layers: str,
    protocol: str | None,
    protocol_data: str | None,
    as_json: bool,
    **settings: Any,  # noqa: ANN401
) -> None:
    """Evaluate MODEL, or an export, on --task, on --calibration text, or by a published --protocol,
    with standard errors.

    The study that an export was made of keeps the result, for its report.
    """
    section = model_of({**settings, "model": model})
    objective, data = objective_of(settings), data_of(settings)
    objective.check_data(data)
    check_protocol(protocol, protocol_data, typed_names())
    options = options_of(settings)
    with progress(loads_torch=True):
        from prunesearch.pipeline.run import report_of
        from prunesearch.pipeline.state import EvaluationRequest, ProtocolRequest, Request
        from prunesearch.report.render import render

        wanted = None if protocol is None else ProtocolRequest(protocol, protocol_data)
        asked = EvaluationRequest(section, objective, data, layers, wanted)
        report = report_of("evaluate", Request(options, evaluation=asked))
    emit(as_json, report, render)


@click.command(cls=Command)
@click.argument("model")
@with_options(REVISION, TRUST)
@JSON
def analyze(model: str, revision: str | None, trust_remote_code: bool, as_json: bool) -> None:
    """Count parameters and bytes per layer of MODEL; a config.json is enough."""
    quiet()
    from prunesearch.models.analyze import NamedInventory, take_inventory
    from prunesearch.report import models as rendered

    with progress():
        inventory = take_inventory(model, revision=revision, trust_remote_code=trust_remote_code)
    emit(as_json, NamedInventory(model, inventory), rendered.inventory)


@click.command(cls=Command)
@click.argument("model")
@click.option(
    "--memory",
    help="Memory that scoring may use: 24GiB; default: all of the GPU, or of the machine.",
)
@click.option(
    "--candidates", type=int, default=20, show_default=True, help="Candidates in a generation."
)
@DROP.variant(default="25%", show_default=True)
@TOKENS
@KL_TOP
@click.option(
    "--requests", type=int, help="Plan for this number of requests of a task instead of --tokens."
)
@click.option("--length", type=int, default=64, show_default=True, help="Tokens in a request.")
@DEVICE
@with_options(*MODEL_OPTIONS)
@JSON
def plan(
    model: str,
    memory: str | None,
    revision: str | None,
    trust_remote_code: bool,
    as_json: bool,
    **asked: Any,  # noqa: ANN401
) -> None:
    """Predict memory, bytes read and time of a search of MODEL, and print the command to run.

    A config.json is enough.
    """
    size = None if memory is None else parse_size(memory, "--memory")
    quiet()
    from prunesearch.execution.memory_plan import plan_memory
    from prunesearch.execution.plan_types import Asked
    from prunesearch.report import models as rendered

    emit(
        as_json,
        plan_memory(
            model, Asked.of(size, **asked), revision=revision, trust_remote_code=trust_remote_code
        ),
        rendered.plan,
    )
