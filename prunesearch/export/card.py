"""The model card of an export.

It names the dropped layers, the search that chose them, the verification, and the licence that
applies.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path

import yaml
from huggingface_hub import metadata_load

from prunesearch.candidate import LayerSubset, named_layers
from prunesearch.config.data import ORDER_TEXT, DataSection
from prunesearch.config.names import portable_name
from prunesearch.config.recipe import Recipe
from prunesearch.config.search import ORDER_TOKENS
from prunesearch.errors import ModelError
from prunesearch.export.formats.registry import REGISTRY, default_format, narrows
from prunesearch.export.results import Exported, Verification
from prunesearch.models.guard import guarded
from prunesearch.models.loading import LoadedModel
from prunesearch.runtime.json_values import Json, JsonObject, as_int, as_object
from prunesearch.units import noun_for
from prunesearch.widths.layer_widths import LayerWidths

_LICENCE = ("license", "license_name", "license_link", "language")


def base_name(loaded: LoadedModel) -> str:
    """Return the base model's id, or the last part of its path.

    An export never contains a path of the machine that made it.
    """
    return loaded.name if loaded.source.from_hub else portable_name(loaded.name, always=True)


def own_code(loaded: LoadedModel, export_format: str) -> bool:
    """Return whether an export ships with code that loads it: that of its form, or that of the base
    model.
    """
    return REGISTRY.get(export_format).own_code or hasattr(loaded.model.config, "auto_map")


def text_of(
    loaded: LoadedModel, exported: Exported, facts: Mapping[str, Json], manifest: str, report: str
) -> str:
    """Return the text of the card.

    Args:
        loaded: base model.
        exported: finished export.
        facts: facts about the candidate (recipe, metrics).
        manifest: name of the manifest's file.
        report: name of the file with the verification.
    """
    candidate = exported.candidate
    name, base = exported.folder.name, base_name(loaded)
    # The parts of the text that not every export has.
    trust = tokenizer_trust = changed = commit = ""
    if own_code(loaded, exported.export_format):
        trust = ", trust_remote_code=True"
        if hasattr(loaded.model.config, "auto_map"):
            tokenizer_trust = trust
    if exported.changed:
        changed = f" The weights that stay were {' and '.join(exported.changed)}."
    if loaded.source.commit:
        commit = f" at commit `{loaded.source.commit}`"
    return f"""---
{_front_matter(loaded)}---
# {base} {_title(candidate)}

{len(candidate.kept)} of {candidate.n_layers} blocks of {base}{commit}; \
{exported.params:,} parameters, \
{exported.bytes:,} bytes. {REGISTRY.get(exported.export_format).description}{changed}
{_widths(candidate)}{_figures(facts)}
```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("{name}"{trust})
tokenizer = AutoTokenizer.from_pretrained("{name}"{tokenizer_trust})
```

{_origin(loaded, exported, facts)}
Verified by reloading: {_compared(exported.verification)} \
`prunesearch verify {shlex.quote(name)}` repeats it. \
Details: `{manifest}`, `{report}`.

The licence of the base model applies: {_licence(loaded)}.
"""


def _title(candidate: LayerSubset) -> str:
    """Return what the title says of a candidate."""
    if narrows(candidate):
        return "with narrower layers"
    return f"without {named_layers(candidate.text)}"


def _widths(candidate: LayerSubset) -> str:
    """Return a paragraph about narrow layers; nothing if there are none."""
    if not isinstance(candidate, LayerWidths) or not narrows(candidate):
        return ""
    biases = ""
    if candidate.biases:
        biases = " A bias stands for the mean of what was removed."
    return (
        f"\nWhat narrower layers keep, as layer:channels/KV groups (a number alone is a layer that "
        f"is gone; all others are whole): `{candidate.text}`. The channels and groups that stay "
        f"are the first ones of the order `{candidate.order}`.{biases}\n"
    )


def _compared(check: Verification) -> str:
    """Return a sentence about everything that was compared, and nothing else."""
    parts = [f"{check.prefill_difference:.3g} on a prompt"]
    if check.narrow_difference is not None:
        parts.append(f"{check.narrow_difference:.3g} with narrow attention windows")
    if check.decode_difference is not None:
        how = "cached decoding"
        if not check.cached:
            how = "decoding, which this model type does without a cache"
        parts.append(f"{check.decode_difference:.3g} over {check.decoded} steps of {how}")
    said = (
        f"logits differ from the scored candidate's by at most {', '.join(parts)} "
        f"(allowed {check.allowed:.3g})"
    )
    if check.decode_difference is None:
        said += "; decoding was not compared, since the weights were streamed"
    if check.weights is not None:
        said += (
            f"; {check.weights} written tensors were read again and equal what was to be written"
        )
    return f"{said}."


def _origin(loaded: LoadedModel, exported: Exported, facts: Mapping[str, Json]) -> str:
    """Return how the layers were chosen, on which data, and the commands that repeat it."""
    text = ""
    stored = facts.get("recipe")
    if isinstance(stored, dict):
        recipe = Recipe.of_stored(stored)
        data = recipe.data.task_data or recipe.objective.task or recipe.data.calibration
        trials = ""
        if "trials" in facts:
            count = as_int(facts["trials"], "trials")
            trials = f" in {count} {noun_for(count, 'trial')}"
        chosen = yaml.safe_dump(recipe.chosen(), sort_keys=False, allow_unicode=True)
        text += (
            f"Chosen by prunesearch (`{recipe.search.sampler}`, "
            f"objective `{recipe.objective.name}` on `{data}`){trials}, "
            f"study `{facts.get('study')}`. {_repeated(recipe, facts)}\n\n"
            f"```yaml\n{chosen}```\n\n"
        )
    # Weights that were changed cannot be exported again from the base model.
    if not exported.changed:
        export_format = revision = ""
        if isinstance(exported.candidate, LayerWidths) and narrows(exported.candidate):
            export_format = _order_options(exported.candidate, facts)
        if exported.export_format != default_format(exported.candidate).name:
            export_format += f" {REGISTRY.get(exported.export_format).selected_by}"
        if loaded.source.commit:
            revision = f" --revision {loaded.source.commit}"
        text += (
            f"`prunesearch export {shlex.quote(base_name(loaded))}{revision} --layers "
            f"{exported.candidate.text}{export_format} "
            "--out NAME` writes this checkpoint again.\n"
        )
    return text


def _order_options(candidate: LayerWidths, facts: Mapping[str, Json]) -> str:
    """Return the options that give the channel order of a candidate again: its criterion, and the
    calibration text that it was measured on.
    """
    options = f" --criterion {candidate.order.rpartition('-')[0]}"
    # The text is that of the search, or that of the command which named the widths.
    data, tokens = facts.get("order_text"), facts.get("order_tokens")
    stored = facts.get("recipe")
    if isinstance(stored, dict):
        data, search = stored.get("data"), stored.get("search")
        tokens = search.get("order_tokens") if isinstance(search, dict) else None
    if tokens not in (None, ORDER_TOKENS):
        options += f" --order-tokens {tokens}"
    if isinstance(data, dict):
        measured = DataSection.model_validate({name: data[name] for name in ORDER_TEXT})
        for name, value in measured.model_dump(mode="json", exclude_defaults=True).items():
            options += f" --{name} {shlex.quote(str(value))}"
    return options


def _repeated(recipe: Recipe, facts: Mapping[str, Json]) -> str:
    """Return the command that repeats the search, if a single command can."""
    if recipe.search.units == "sublayers" or recipe.search.is_pareto:
        return "The recipe:"
    trials = f" --trials {facts['trials']}" if "trials" in facts else ""
    return f"`prunesearch run recipe.yaml{trials}` repeats the search, with this recipe:"


def _base_metadata(loaded: LoadedModel) -> JsonObject:
    """Return the metadata in the base model's card, or in a GGUF file.

    A card that cannot be read counts as empty. It must not stop an export.
    """
    source = loaded.source
    path: Path | None = None
    if source.folder is not None:
        path = source.folder / "README.md"
    elif source.gguf is not None:
        path = source.gguf
    if path is None or not path.is_file():
        return {}
    read = metadata_load if source.gguf is None else _gguf_metadata
    try:
        with guarded(f"cannot read {str(path)!r}", path):
            found: object = read(path)
    except ModelError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {str(name): value for name, value in found.items()}


def _gguf_metadata(path: Path) -> JsonObject:
    """Return the licence that a GGUF file names in its own fields."""
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    found = {}
    for name in _LICENCE:
        field = fields.get(f"general.{name.replace('_', '.')}")
        if field is not None:
            found[name] = field.contents()
    return found


def _is_plain(value: object) -> bool:
    """Return whether a value can be written to the new card: text that UTF-8 can express, or a list
    of such text.
    """
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, str) and value.encode("utf-8", "ignore").decode("utf-8") == value


def _front_matter(loaded: LoadedModel) -> str:
    """Return the YAML metadata of the card."""
    base = _base_metadata(loaded)
    fields: JsonObject = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    fields["tags"] = ["pruned", "prunesearch"]
    if loaded.source.from_hub:
        fields["base_model"] = loaded.name
    # The licence is that of the base model.
    for name in _LICENCE:
        if _is_plain(base.get(name)):
            fields[name] = base[name]
    return yaml.safe_dump(fields, sort_keys=False)


def _licence(loaded: LoadedModel) -> str:
    """Return the name of the base model's licence."""
    base = _base_metadata(loaded)
    for field in ("license_name", "license"):
        name = base.get(field)
        if isinstance(name, str) and name and _is_plain(name):
            return name
    return "see its model card"


def _figures(facts: Mapping[str, Json]) -> str:
    """Return a table of the metrics, with their standard errors if they have any."""
    metrics = as_object(facts.get("metrics", {}), "metrics")
    errors = as_object(facts.get("stderr", {}), "stderr")
    dense = as_object(facts.get("dense_metrics", {}), "dense_metrics")
    if not metrics:
        return ""
    rows = ""
    for name, value in metrics.items():
        error = before = ""
        if name in errors:
            error = f" ± {errors[name]:.2g}"
        if name in dense:
            before = f"{dense[name]:.6g}"
        rows += f"| {name} | {value:.6g}{error} | {before} |\n"
    return f"\n| metric | pruned (± standard error) | dense |\n|---|---|---|\n{rows}"
