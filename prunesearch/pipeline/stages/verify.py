"""Stage `verify`: reload each new checkpoint, compare it with its candidate, and publish it.

A checkpoint counts as exported only after this stage. It is in a scratch folder before, so a run
that is killed, or a checkpoint that differs, leaves nothing at the destination.
"""

from dataclasses import replace
from pathlib import Path

from prunesearch.config.model import ModelSection
from prunesearch.config.run_options import RunOptions
from prunesearch.export import gguf_record, hub, recheck
from prunesearch.export.results import Exported, GgufRecheck, Recheck
from prunesearch.models.source import is_gguf
from prunesearch.pipeline.manifest_facts import facts_for
from prunesearch.pipeline.recorded_results import record_export
from prunesearch.pipeline.session import load_for
from prunesearch.pipeline.stages.base import Stage
from prunesearch.pipeline.stages.export import wanted
from prunesearch.pipeline.state import State


def verify_and_publish(state: State) -> State:
    """Verify the new checkpoints, and move each to its destination once it is verified."""
    export, exported = state.request.export, list(state.exported)
    assert export is not None
    for choice, checkpoint in zip(state.selected, state.resources.unpublished, strict=False):
        checkpoint.verify()
        made = checkpoint.publish(facts_for(state, choice))
        record_export(state, choice, made)
        if export.push_to_hub is not None:
            made = _pushed(made, export.push_to_hub, export.public)
        exported.append(made)
    state.resources.unpublished.clear()
    return replace(state, exported=tuple(exported))


def _pushed(made: Exported, repository: str, public: bool) -> Exported:
    """Upload a published checkpoint."""
    url = hub.push(made.folder, repository, made.candidate.text, public=public)
    return replace(made, pushed=url)


def verify_again(
    path: Path, base: ModelSection | None, options: RunOptions, trust_remote_code: bool
) -> Recheck | GgufRecheck:
    """Verify an existing export (a folder or a GGUF file).

    Args:
        path: the export.
        base: base model to compare with. None compares with nothing.
        options: how to run.
        trust_remote_code: run the code of the export.
    """
    dense = None if base is None else load_for(base, options)
    if is_gguf(str(path)):
        return gguf_record.recheck(path, dense)
    return recheck(path, dense, trust_remote_code)


VERIFY = Stage("verify", verify_and_publish, wanted=wanted)
