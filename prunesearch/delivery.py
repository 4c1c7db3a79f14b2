"""From a study, or from layers that are named, to something that runs: a checkpoint, a GGUF, a repository, a line."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from prunesearch import stopping
from prunesearch.bench import load_for, space_of
from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, ModelError, StudyError, UnknownNameError
from prunesearch.export import (
    FORMS,
    check_destination,
    elsewhere,
    export,
    gguf_edit,
    gguf_record,
    gguf_write,
    hub,
    llama_cpp,
    recheck,
)
from prunesearch.model.loading import LoadedModel
from prunesearch.model.source import is_gguf
from prunesearch.quantity import parse_size
from prunesearch.recipe import Recipe, RunOptions
from prunesearch.store import selection, studies
from prunesearch.store.places import check_writable


@dataclass(frozen=True)
class Chosen:
    """A candidate of a loaded model, and what is known of it.

    Attributes:
        ranked: it and those behind it in its study, best first; it alone where it is not simply a study's best.
    """

    loaded: LoadedModel
    candidate: LayerSubset
    facts: dict[str, Any] = field(default_factory=dict)
    ranked: tuple[LayerSubset, ...] = ()


@dataclass(frozen=True)
class Wish:
    """What shall be made of it.

    Attributes:
        out: folder, or the file of a GGUF.
        form: one of `export.FORMS`.
        public: upload even to a repository that anybody can read.
        program: say it to this program and write nothing.
    """

    out: Path | None
    form: str = "plain"
    gguf: bool = False
    max_shard: int = 5 * 10**9
    push_to_hub: str | None = None
    public: bool = False
    program: str | None = None

    @classmethod
    def parse(
        cls,
        out: str | None,
        form: str,
        gguf: bool,
        max_shard: str,
        push_to_hub: str | None,
        public: bool,
        program: str | None,
    ) -> Self:
        """Read the command line's options, and refuse before any work what cannot be done.

        Raises:
            InputError: options that do not go together, or a destination that cannot be written.
        """
        if form not in FORMS:
            raise UnknownNameError("form of export", form, FORMS)
        if program is not None:
            if program not in elsewhere.PROGRAMS:
                raise UnknownNameError("program", program, elsewhere.PROGRAMS)
            if out is not None:
                raise InputError(f"--print {program} prints a recipe and writes nothing: leave out --out")
        elif out is None:
            raise InputError("--out is needed: a new folder for the checkpoint, or with --gguf a new file")
        elif gguf:
            if Path(out).suffix.lower() != ".gguf" or os.path.lexists(out):
                raise InputError(f"--gguf writes a new file, and --out {out!r} is none: write --out NAME.gguf")
            if form != "plain" or push_to_hub is not None:
                raise InputError("--gguf goes neither with --as nor with --push-to-hub")
            check_writable(Path(out))
        else:
            check_destination(Path(out))
        if public and push_to_hub is None:
            raise InputError("--public goes with --push-to-hub OWNER/NAME")
        if push_to_hub is not None:
            hub.check_name(push_to_hub)
            if out is not None and program is None:
                hub.check_access(push_to_hub, Path(out), public)
        size = parse_size(max_shard, "--max-shard")
        if size < 1:
            raise InputError(f"--max-shard {max_shard} is no size: write 5GB or 500MiB")
        return cls(Path(out) if out else None, form, gguf, size, push_to_hub, public, program)


def from_study(
    name: str, options: RunOptions, wanted: selection.Wanted, trust_remote_code: bool, model: str | None = None
) -> Chosen:
    """A study's best candidate.

    Args:
        wanted: which one, where it is not simply the best.
        trust_remote_code: run the checkpoint's own code; what the study's maker trusted does not count.
        model: where the model is, on another machine or in another folder than the study knows; its content must be
            the one that was searched.

    Raises:
        StudyError: no finished trial, or the model is not here or not the one that was searched.
    """
    study = studies.load(studies.open_storage(options.storage, create=False), name)
    trial = selection.choose(study, wanted)
    recipe = studies.located(study, {"model": model}, needed=("model",))
    try:
        loaded = load_for(recipe.model_copy(update={"trust_remote_code": trust_remote_code}), options)
    except ModelError as error:
        hint = "" if model else f"; if it lies elsewhere, give --model PATH: study {name!r} knows its content"
        raise ModelError(f"{error}{hint}") from None
    searched = studies.identity_of(study)["model content"]
    if loaded.fingerprint != searched:
        raise StudyError(
            f"model {recipe.model!r} is not the one that study {name!r} searched: its weights differ (fingerprint "
            f"{loaded.fingerprint[:12]}, searched was {searched[:12]}): give --model PATH of that one, or search this "
            "one with --study NAME"
        )
    space = space_of(recipe, loaded)
    others = selection.best_trials(study, None) if wanted == selection.Wanted() else [trial]
    trials = len(study.get_trials(deepcopy=False))
    facts = {"study": name, "trials": trials, "recipe": recipe.portable(), **selection.figures(study, trial)}
    return Chosen(loaded, space.from_params(trial.params), facts, tuple(space.from_params(t.params) for t in others))


def from_layers(recipe: Recipe, options: RunOptions, dropped: str) -> Chosen:
    """The recipe's model without the layers that are named, as in ``3,7a,12``."""
    loaded = load_for(recipe, options)
    candidate = LayerSubset.parse(dropped, loaded.n_layers)
    return Chosen(loaded, candidate, ranked=(candidate,))


def deliver(chosen: Chosen, wish: Wish) -> dict[str, Any]:
    """Make what is wished.

    Returns:
        What was made, as JSON values.

    Raises:
        PruneSearchError: see `errors`; nothing half-made stays.
    """
    with stopping.deferred():
        return _deliver(chosen, wish)


def _deliver(chosen: Chosen, wish: Wish) -> dict[str, Any]:
    loaded, candidate = chosen.loaded, chosen.candidate
    if (wish.program is not None or wish.gguf) and hasattr(loaded.model.config, "auto_map"):
        raise InputError(
            f"model {loaded.name!r} runs code of its own, which other programs do not know: use export --out FOLDER"
        )
    if wish.program is not None:
        return {"dropped": candidate.text, "said": elsewhere.say(wish.program, loaded, candidate)}
    assert wish.out is not None
    if wish.gguf:
        return _gguf(loaded, candidate, wish.out)
    made = export(loaded, candidate, wish.out, chosen.facts, form=wish.form, max_shard=wish.max_shard)
    document = made.document()
    if wish.push_to_hub is not None:
        document["pushed"] = hub.push(made.folder, wish.push_to_hub, candidate.text, public=wish.public)
    return document


def _gguf(loaded: LoadedModel, candidate: LayerSubset, out: Path) -> dict[str, Any]:
    """Write a GGUF: from a GGUF by editing it, from a checkpoint by converting it."""
    if loaded.source.gguf is not None:
        compare = loaded if llama_cpp.available() else None
        check = gguf_edit.edit(loaded.source.gguf, candidate, out, compare, loaded.fingerprint)
    else:
        check = gguf_write.write(loaded, candidate, out, compare=llama_cpp.available())
    return {
        "gguf": str(out),
        "bytes": out.stat().st_size,
        "dropped": candidate.text,
        "llama_cpp": check.document() if check else None,
    }


def verify_again(path: Path, base: Recipe | None, options: RunOptions, trust_remote_code: bool) -> dict[str, Any]:
    """Verify an export, a folder or a GGUF, and compare it with its base model where that is named."""
    dense = None if base is None else load_for(base, options)
    if is_gguf(str(path)):
        return gguf_record.recheck(path, dense)
    return recheck(path, dense, trust_remote_code)
