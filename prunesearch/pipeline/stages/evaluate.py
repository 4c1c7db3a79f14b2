"""Stage `evaluate`: measure a model on a task, on text or by a published protocol, through the
cache.
"""

from dataclasses import replace
from pathlib import Path

from prunesearch import events
from prunesearch.cache import maintenance
from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.cache.location import CacheLocation, check_writable
from prunesearch.candidate import Evaluation, LayerSubset
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.execution.block_code import BlockCode
from prunesearch.models.loading import LoadedModel
from prunesearch.objectives.base import Objective
from prunesearch.objectives.calibration_data import mention_long_windows
from prunesearch.objectives.calibration_sources.builtin import HELD_OUT
from prunesearch.objectives.next_token_loss import loss_objective
from prunesearch.objectives.protocol_windows import FULL_TEXT, read_protocol
from prunesearch.objectives.protocols import protocol_of
from prunesearch.objectives.registry import zero_metrics
from prunesearch.objectives.text_files import check_beginning
from prunesearch.pipeline.data_checks import check_data
from prunesearch.pipeline.recorded_evaluation import record_evaluation
from prunesearch.pipeline.session import load_for, objective_for, require
from prunesearch.pipeline.stages.base import Stage
from prunesearch.pipeline.state import ProtocolRequest, Request, State
from prunesearch.report.results import EvaluationReport, ProtocolReport
from prunesearch.runtime import stopping

HELD_OUT_TOKENS = 4096


def evaluate(state: State) -> State:
    """Evaluate the model that the command names, or both models on held-out text."""
    if state.request.held_out:
        state = replace(state, held_out=_on_held_out_text(state))
    if state.request.evaluation is not None:
        # Only the model that is evaluated needs to be in memory.
        state.resources.release()
        state = replace(state, evaluation=_evaluated(state.request))
    return state


def _evaluated(request: Request) -> EvaluationReport:
    """Load a model and evaluate it without some layers.

    Raises:
        RunError: the model could not be scored.
    """
    asked, options = request.evaluation, request.options
    assert asked is not None
    if request.export is not None:
        events.tell(events.Message(f"evaluating {asked.model.path}"))
    loaded = load_for(asked.model, options, quantised=True)
    candidate = LayerSubset.parse(asked.layers, loaded.n_layers)
    # A protocol says itself what is measured.
    protocol: ProtocolReport | None = None
    if asked.protocol is not None:
        objective, protocol = _protocol_of(asked.protocol, loaded)
    else:
        objective = objective_for(asked.objective, asked.data, loaded, options, generate=True)
        if asked.objective.calibrated:
            mention_long_windows(loaded.model, min(asked.data.window, asked.data.tokens))
    with EvaluationCache(options.cache) as cache:
        engine = LocalEngine(
            loaded,
            objective,
            cache,
            state_memory=options.state_bytes,
            code=BlockCode(options.compile),
        )
        with stopping.deferred():
            evaluation = require(*engine.evaluate_now([candidate]))
            record_evaluation(request, loaded, engine, evaluation)
    maintenance.remember_name(request.cache_folder, loaded.fingerprint, asked.model.path)
    metrics, stderr = dict(evaluation.metrics), dict(evaluation.stderr)
    # The comparison of the dense model with itself carries no information.
    if candidate.text == "none":
        for name in zero_metrics():
            metrics.pop(name, None)
            stderr.pop(name, None)
    return EvaluationReport(
        model=asked.model.path,
        dropped=candidate.text,
        metrics=metrics,
        stderr=stderr,
        params=loaded.sizes.params(candidate),
        bytes=loaded.sizes.bytes(candidate),
        cached=evaluation.cached,
        protocol=protocol,
    )


def _protocol_of(asked: ProtocolRequest, loaded: LoadedModel) -> tuple[Objective, ProtocolReport]:
    """Read the text of a protocol, and return its objective and what was read.

    Raises:
        DataError: the text cannot be read, or the model cannot read it.
    """
    protocol = protocol_of(asked.name)
    events.tell(events.StageProgress(f"reading the text of protocol {protocol.name}"))
    with stopping.interruptible():
        read = read_protocol(protocol, loaded.tokenizer, asked.data)
        objective = loss_objective(loaded, read.windows_BL)
    report = ProtocolReport(
        protocol.name,
        protocol.papers,
        len(read.windows_BL),
        protocol.window,
        read.rows,
        read.tokens,
        read.text,
        comparable=read.text == FULL_TEXT,
    )
    return objective, report


def _on_held_out_text(state: State) -> tuple[Evaluation, ...]:
    """Evaluate the dense model and the selected candidate on text that no search used."""
    events.tell(events.Message("comparing dense and pruned on held-out text"))
    recipe, loaded, options = (
        state.request.recipes[0],
        state.resources.loaded,
        state.request.options,
    )
    unseen = recipe.data.model_copy(update={"calibration": HELD_OUT, "tokens": HELD_OUT_TOKENS})
    objective = objective_for(recipe.objective, unseen, loaded, options)
    candidates = [LayerSubset.of(loaded.n_layers), state.choice.candidate]
    with EvaluationCache(options.cache) as cache, stopping.deferred():
        engine = LocalEngine(loaded, objective, cache)
        return tuple(require(done) for done in engine.evaluate_now(candidates))


def check(request: Request) -> None:
    """Refuse an unknown protocol, data that cannot be read and a cache that cannot be written,
    before the model is loaded.
    """
    if request.evaluation is not None:
        if request.evaluation.protocol is not None:
            protocol_of(request.evaluation.protocol.name)
            if request.evaluation.protocol.data is not None:
                check_beginning(Path(request.evaluation.protocol.data))
        else:
            check_data(request.evaluation.objective, request.evaluation.data)
        check_writable(CacheLocation.parse(request.options.cache).folder)


def wanted(state: State) -> bool:
    """Return whether something is to be evaluated."""
    return state.request.held_out or state.request.evaluation is not None


EVALUATE = Stage("evaluate", evaluate, check, wanted, defers_signals=False)
