"""Stage `export`: write the checkpoint of each selected candidate into a scratch folder.

The stage `verify` publishes it. GGUF files are written, run in llama.cpp and moved to their place
by `export.gguf_write` in one step.
"""

from dataclasses import replace
from pathlib import Path

from prunesearch.errors import InputError
from prunesearch.export import check_destination, other_tools
from prunesearch.export.checkpoint import UnpublishedCheckpoint
from prunesearch.export.formats.plain import PLAIN
from prunesearch.export.formats.registry import checkpoint_format
from prunesearch.export.results import PrintedRecipe
from prunesearch.pipeline.stages.base import Stage
from prunesearch.pipeline.state import Delivered, Request, State
from prunesearch.recovery.earlier_export import check_out


def export_candidates(state: State) -> State:
    """Write what the command asks for."""
    export = state.request.export
    assert export is not None
    if export.program is not None or export.format.suffix is not None:
        return replace(state, exported=(_for_other_program(state),))
    resources = state.resources
    for choice in state.selected:
        assert choice.out is not None
        checkpoint = UnpublishedCheckpoint(
            resources.loaded,
            choice.candidate,
            choice.out,
            export_format=export.export_format,
            changed=state.changed,
            replace=export.replace,
            max_shard=export.max_shard,
        )
        resources.opened.enter_context(checkpoint)
        checkpoint.write()
        resources.unpublished.append(checkpoint)
    return state


def _for_other_program(state: State) -> Delivered:
    """Print a recipe for another program, or write its file.

    Raises:
        InputError: the model runs code of its own.
    """
    export, loaded, choice = state.request.export, state.resources.loaded, state.choice
    assert export is not None
    # Other programs know only the architectures that are part of them.
    foreign = export.program is not None or export.format.other_program
    if foreign and hasattr(loaded.model.config, "auto_map"):
        raise InputError(
            f"model {loaded.name!r} runs code of its own, which other programs do not know: "
            "write a checkpoint to a folder instead, with `export_format`"
        )
    if export.program is not None:
        text = other_tools.recipe_text(export.program, loaded, choice.candidate)
        return PrintedRecipe(choice.candidate, text)
    assert choice.out is not None
    return export.format.write_file(loaded, choice.candidate, choice.out)


def check(request: Request) -> None:
    """Refuse a destination that holds something, and a format that cannot be written, before the
    model is loaded.
    """
    export = request.export
    if export is None or export.program is not None:
        return
    if request.recovery is not None:
        # Recovered weights are in memory, and only checkpoints are written from there.
        checkpoint_format(export.export_format or PLAIN.name)
    if export.replace:
        return
    if export.format.suffix is not None:
        return
    folders: list[Path | None] = [export.out]
    if request.recipes:
        folders = [request.folder_of(recipe) for recipe in request.recipes]
    for folder in folders:
        assert folder is not None
        if request.recovery is None:
            check_destination(folder)
        else:
            check_out(folder)


def wanted(state: State) -> bool:
    """Return whether something is to be written."""
    return state.request.export is not None and state.earlier is None


EXPORT = Stage("export", export_candidates, check, wanted)
