"""Export of a study's candidate or of named layers.

The result is a checkpoint, a GGUF file, an upload to the hub, or a recipe for another program.
"""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self, TypeAlias

from prunesearch.cache.location import check_writable
from prunesearch.candidate import LayerSubset
from prunesearch.config.model import ModelSection
from prunesearch.config.run_options import RunOptions
from prunesearch.errors import (
    InputError,
    ModelError,
    StudyError,
    UnknownNameError,
)
from prunesearch.export import (
    check_destination,
    export,
    gguf_record,
    hub,
    other_tools,
    recheck,
)
from prunesearch.export.formats.plain import PLAIN
from prunesearch.export.formats.registry import REGISTRY, checkpoint_format
from prunesearch.export.results import Exported, ExportedGguf, GgufRecheck, PrintedRecipe, Recheck
from prunesearch.models.loading import LoadedModel
from prunesearch.models.source import is_gguf
from prunesearch.pipeline.session import load_for, space_of
from prunesearch.runtime import stopping
from prunesearch.runtime.json_values import JsonObject
from prunesearch.studies import persistence, selection
from prunesearch.units import parse_size

Delivered: TypeAlias = Exported | ExportedGguf | PrintedRecipe
"""Result of an export command."""


@dataclass(frozen=True)
class SelectedCandidate:
    """A chosen candidate, its model and the known facts about it.

    Attributes:
        loaded: the dense model.
        candidate: the chosen candidate.
        facts: facts for the manifest of the export.
        ranked: candidates of the study, best first, if the choice is simply the best one. Else only
            the chosen candidate.
    """

    loaded: LoadedModel
    candidate: LayerSubset
    facts: JsonObject = field(default_factory=dict)
    ranked: tuple[LayerSubset, ...] = ()


@dataclass(frozen=True)
class ExportRequest:
    """Request for an export.

    Attributes:
        out: folder of the checkpoint, or the GGUF file.
        export_format: name of a format of `export.formats`.
        gguf: write a GGUF file instead of a checkpoint.
        max_shard: size of the largest weight file in bytes.
        push_to_hub: name of the repository to upload to.
        public: allow the upload to a public repository.
        program: print a recipe for this program and write nothing.
    """

    out: Path | None
    export_format: str = "plain"
    gguf: bool = False
    max_shard: int = 5 * 10**9
    push_to_hub: str | None = None
    public: bool = False
    program: str | None = None

    @classmethod
    def parse(
        cls,
        out: str | None,
        export_format: str,
        gguf: bool,
        max_shard: str,
        push_to_hub: str | None,
        public: bool,
        program: str | None,
    ) -> Self:
        """Check the options of the command line, before any work.

        Raises:
            InputError: options contradict each other, or the destination cannot be written.
        """
        chosen = REGISTRY.get("gguf") if gguf else checkpoint_format(export_format)
        # Check the destination: a recipe for another program, a GGUF file or a folder.
        if program is not None:
            if program not in other_tools.PROGRAMS:
                raise UnknownNameError("program", program, other_tools.PROGRAMS)
            if out is not None:
                raise InputError(
                    f"--print {program} prints a recipe and writes nothing: leave out --out"
                )
        elif out is None:
            raise InputError(
                "--out is needed: a new folder for the checkpoint, or with --gguf a new file"
            )
        elif chosen.suffix is not None:
            if Path(out).suffix.lower() != chosen.suffix:
                raise InputError(
                    f"{chosen.selected_by} writes a file, and --out {out!r} does not name a file: "
                    f"write --out NAME{chosen.suffix}"
                )
            if os.path.lexists(out):
                raise InputError(
                    f"--out {out!r} exists already: choose a new file, since none is replaced"
                )
            if export_format != PLAIN.name or (push_to_hub is not None and not chosen.hub):
                raise InputError(
                    f"{chosen.selected_by} goes neither with --as nor with --push-to-hub"
                )
            check_writable(Path(out))
        else:
            for other in REGISTRY.entries():
                if other.suffix is not None and Path(out).suffix.lower() == other.suffix:
                    raise InputError(
                        f"--out {out!r} names a {other.name.upper()} file: add "
                        f"{other.selected_by}, or choose another name for the folder"
                    )
            check_destination(Path(out))
        # Check the upload.
        if public and push_to_hub is None:
            raise InputError("--public goes with --push-to-hub OWNER/NAME")
        if push_to_hub is not None:
            hub.check_name(push_to_hub)
            if out is not None and program is None:
                hub.check_access(push_to_hub, Path(out), public)
        size = parse_size(max_shard, "--max-shard")
        if size < 1:
            raise InputError(f"--max-shard {max_shard} is not a size: write 5GB or 500MiB")
        return cls(
            Path(out) if out else None, export_format, gguf, size, push_to_hub, public, program
        )


def from_study(
    name: str,
    options: RunOptions,
    wanted: selection.SelectionCriteria,
    trust_remote_code: bool,
    model: str | None = None,
) -> SelectedCandidate:
    """Choose the best candidate of a study, and load its model.

    Args:
        name: name of the study.
        options: how to run, including the storage of the study.
        wanted: criteria of the selection. The default selects the best candidate.
        trust_remote_code: run the code of the checkpoint. The setting in the study is ignored.
        model: path of the model, if it is not where the study says. Its content must be the one
            that was searched.

    Raises:
        StudyError: the study has no finished trial, or the model is not the one that was searched.
        ModelError: the model cannot be loaded.
    """
    # Select the trial, and load the model of the study.
    study = persistence.load(persistence.open_storage(options.storage, create=False), name)
    trial = selection.choose(study, wanted)
    recipe = persistence.located(study, {"model": model}, needed=("model",))
    try:
        loaded = load_for(
            recipe.model.model_copy(update={"trust_remote_code": trust_remote_code}), options
        )
    except ModelError as error:
        hint = (
            ""
            if model
            else f"; if it lies elsewhere, give --model PATH: study {name!r} knows its content"
        )
        raise ModelError(f"{error}{hint}") from None
    # The weights must be those that were searched.
    searched = str(persistence.identity_of(study)["model content"])
    if loaded.fingerprint != searched:
        raise StudyError(
            f"model {recipe.model.path!r} is not the one that study {name!r} searched: its weights "
            f"differ (fingerprint "
            f"{loaded.fingerprint[:12]}, searched was {searched[:12]}): give --model PATH of that "
            f"one, or search this "
            "one with --study NAME"
        )
    space = space_of(recipe.search, loaded)
    # The runners-up have a meaning only if there are no criteria of the user.
    others = [trial]
    if wanted == selection.SelectionCriteria():
        others = list(selection.best_trials(study, None))
    ranked = tuple(space.from_params(other.params) for other in others)
    trials = len(study.get_trials(deepcopy=False))
    facts: JsonObject = {
        "study": name,
        "trials": trials,
        "recipe": recipe.portable().document(),
        **selection.figures(study, trial),
    }
    return SelectedCandidate(loaded, space.from_params(trial.params), facts, ranked)


def from_layers(model: ModelSection, options: RunOptions, dropped: str) -> SelectedCandidate:
    """Load a model and choose the candidate without the named layers (``3,7a,12``)."""
    loaded = load_for(model, options)
    candidate = LayerSubset.parse(dropped, loaded.n_layers)
    return SelectedCandidate(loaded, candidate, ranked=(candidate,))


def run_export(chosen: SelectedCandidate, request: ExportRequest) -> Delivered:
    """Export a candidate as requested.

    Raises:
        PruneSearchError: see `errors`. No partial export stays.
    """
    with stopping.deferred():
        return _deliver(chosen, request)


def _deliver(chosen: SelectedCandidate, request: ExportRequest) -> Delivered:
    """Do the work of `deliver`."""
    loaded, candidate = chosen.loaded, chosen.candidate
    # Other programs know only the architectures that are part of them.
    if (request.program is not None or request.gguf) and hasattr(loaded.model.config, "auto_map"):
        raise InputError(
            f"model {loaded.name!r} runs code of its own, which other programs do not know: use "
            f"export --out FOLDER"
        )
    if request.program is not None:
        return PrintedRecipe(candidate, other_tools.say(request.program, loaded, candidate))
    assert request.out is not None
    if request.gguf:
        return REGISTRY.get("gguf").write_file(loaded, candidate, request.out)
    made = export(
        loaded,
        candidate,
        request.out,
        chosen.facts,
        export_format=request.export_format,
        max_shard=request.max_shard,
    )
    if request.push_to_hub is None:
        return made
    url = hub.push(made.folder, request.push_to_hub, candidate.text, public=request.public)
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
