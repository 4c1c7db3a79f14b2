"""The model card of an export: what was dropped, how it was chosen, what was verified, whose licence applies."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import metadata_load

from prunesearch.errors import ModelError
from prunesearch.export.sublayers import PROMISES, trusts
from prunesearch.export.verification import Verification
from prunesearch.model.guard import guarded
from prunesearch.model.loading import LoadedModel
from prunesearch.recipe import Recipe, portable_name

if TYPE_CHECKING:
    from prunesearch.export.checkpoint import Exported

_LICENCE = ("license", "license_name", "license_link", "language")


def base_name(loaded: LoadedModel) -> str:
    """The base model's id, or the last part of its path: no path of this machine travels with a model."""
    return loaded.name if loaded.source.from_hub else portable_name(loaded.name, always=True)


def own_code(loaded: LoadedModel, form: str) -> bool:
    """Whether an export is loaded with code that it brings along: its form's, or trusted code of the base model."""
    return trusts(form) or hasattr(loaded.model.config, "auto_map")


def text_of(loaded: LoadedModel, exported: "Exported", facts: Mapping[str, Any], manifest: str, report: str) -> str:
    """The whole card.

    Args:
        facts: what is known of the candidate.
        manifest, report: names of the files with the details.
    """
    candidate = exported.candidate
    name, base = exported.folder.name, base_name(loaded)
    trust = ", trust_remote_code=True" if own_code(loaded, exported.form) else ""
    changed = f" The weights that stay were {' and '.join(exported.changed)}." if exported.changed else ""
    commit = f" at commit `{loaded.source.commit}`" if loaded.source.commit else ""
    return f"""---
{_front_matter(loaded)}---
# {base} without layers {candidate.text}

{len(candidate.kept)} of {candidate.n_layers} blocks of {base}{commit}; {exported.params:,} parameters, \
{exported.bytes:,} bytes. {PROMISES[exported.form]}{changed}
{_figures(facts)}
```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("{name}"{trust})
tokenizer = AutoTokenizer.from_pretrained("{name}"{trust if hasattr(loaded.model.config, "auto_map") else ""})
```

{_origin(loaded, exported, facts)}
Verified by reloading: {_compared(exported.verification)} `prunesearch verify {shlex.quote(name)}` repeats it. \
Details: `{manifest}`, `{report}`.

The licence of the base model applies: {_licence(loaded)}.
"""


def _compared(check: Verification) -> str:
    """What was compared, and nothing else."""
    parts = [f"{check.prefill_difference:.3g} on a prompt"]
    if check.narrow_difference is not None:
        parts.append(f"{check.narrow_difference:.3g} with narrow attention windows")
    if check.decode_difference is not None:
        how = "cached decoding" if check.cached else "decoding, which this model type does without a cache"
        parts.append(f"{check.decode_difference:.3g} over {check.decoded} steps of {how}")
    said = f"logits differ from the scored candidate's by at most {', '.join(parts)} (allowed {check.allowed:.3g})"
    if check.decode_difference is None:
        said += "; decoding was not compared, since the weights were streamed"
    if check.weights is not None:
        said += f"; {check.weights} written tensors were read again and equal what was to be written"
    return f"{said}."


def _origin(loaded: LoadedModel, exported: "Exported", facts: Mapping[str, Any]) -> str:
    """How the layers were chosen, on which data, and the commands that do it again."""
    text = ""
    recipe = facts.get("recipe")
    if isinstance(recipe, Mapping):
        data = recipe.get("task_data") or recipe.get("task") or recipe.get("calibration")
        trials = f" in {facts['trials']} trials" if "trials" in facts else ""
        text += (
            f"Chosen by prunesearch (`{recipe['sampler']}`, objective `{recipe['objective']}` on `{data}`){trials}, "
            f"study `{facts.get('study')}`. {_repeated(recipe, facts)}\n\n"
            f"```yaml\n{yaml.safe_dump(_chosen(recipe), sort_keys=False, allow_unicode=True)}```\n\n"
        )
    if not exported.changed:
        form = "" if exported.form == "plain" else f" --as {exported.form}"
        revision = f" --revision {loaded.source.commit}" if loaded.source.commit else ""
        text += (
            f"`prunesearch export {shlex.quote(base_name(loaded))}{revision} --drop {exported.candidate.text}{form} "
            "--out NAME` writes this checkpoint again.\n"
        )
    return text


def _repeated(recipe: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """The command that searches again, where one command does."""
    if recipe.get("units") == "sublayers" or str(recipe.get("drop", "")).startswith("pareto"):
        return "The recipe:"
    trials = f" --trials {facts['trials']}" if "trials" in facts else ""
    return f"`prunesearch run recipe.yaml{trials}` repeats the search, with this recipe:"


def _chosen(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without what is as it is by default."""
    fields = Recipe.model_fields
    defaults = {name: field.get_default(call_default_factory=True) for name, field in fields.items()}
    defaults["weights"] = defaults["weights"].model_dump()
    return {name: value for name, value in recipe.items() if name not in defaults or value != defaults[name]}


def _base_metadata(loaded: LoadedModel) -> dict[str, Any]:
    """What the base model says of its licence; a card that cannot be read says nothing, and stops no export."""
    source = loaded.source
    read, path = (_gguf_metadata, source.gguf) if source.gguf is not None else (metadata_load, None)
    if source.folder is not None:
        path = source.folder / "README.md"
    if path is None or not path.is_file():
        return {}
    try:
        with guarded(f"cannot read {str(path)!r}", path):
            found: object = read(path)
    except ModelError:
        return {}
    return {str(name): value for name, value in found.items()} if isinstance(found, dict) else {}


def _gguf_metadata(path: Path) -> dict[str, Any]:
    """The licence that a GGUF's own fields name."""
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    named = {name: fields.get(f"general.{name.replace('_', '.')}") for name in _LICENCE}
    return {name: field.contents() for name, field in named.items() if field is not None}


def _is_plain(value: object) -> bool:
    """Whether a value can be written to the new card: text that UTF-8 can say, or a list of such."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, str) and value.encode("utf-8", "ignore").decode("utf-8") == value


def _front_matter(loaded: LoadedModel) -> str:
    base = _base_metadata(loaded)
    fields: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    fields["tags"] = ["pruned", "prunesearch"]
    if loaded.source.from_hub:
        fields["base_model"] = loaded.name
    fields |= {name: base[name] for name in _LICENCE if _is_plain(base.get(name))}
    return yaml.safe_dump(fields, sort_keys=False)


def _licence(loaded: LoadedModel) -> str:
    base = _base_metadata(loaded)
    named = (base.get(field) for field in ("license_name", "license"))
    return next((name for name in named if isinstance(name, str) and name and _is_plain(name)), "see its model card")


def _figures(facts: Mapping[str, Any]) -> str:
    """A table of the metrics, each with its standard error where it has one."""
    metrics, errors, dense = (facts.get(name, {}) for name in ("metrics", "stderr", "dense_metrics"))
    if not metrics:
        return ""
    rows = "".join(
        f"| {name} | {value:.6g}{f' ± {errors[name]:.2g}' if name in errors else ''} | "
        f"{f'{dense[name]:.6g}' if name in dense else ''} |\n"
        for name, value in metrics.items()
    )
    return f"\n| metric | pruned (± standard error) | dense |\n|---|---|---|\n{rows}"
