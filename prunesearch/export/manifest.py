"""What travels with an export beside its weights: tokenizer files, the manifest, the verification, the model card."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from huggingface_hub import metadata_load

import prunesearch
from prunesearch.errors import ModelError, StorageError
from prunesearch.export.sublayers import PROMISES, trusts
from prunesearch.model.guard import guarded
from prunesearch.model.loading import LoadedModel

if TYPE_CHECKING:
    from prunesearch.export.checkpoint import Exported

MANIFEST = "prunesearch.json"
REPORT = "verification.json"
_COMPANIONS = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken",
    "chat_template*", "additional_chat_templates/*", "generation_config.json", "*processor_config.json", "LICENSE*",
    "LICENCE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
_CODE = ("**/*.py",)
_LICENCE = ("license", "license_name", "license_link", "language")


def companions(loaded: LoadedModel) -> list[Path]:
    """The base model's small files that travel with an export.

    Raises:
        ModelError: one is a link to a file outside the model's folder, which may be meant for nobody else.
    """
    folder = loaded.source.folder
    if folder is None:
        return []
    patterns = (*_COMPANIONS, *_CODE) if loaded.trusted else _COMPANIONS
    found = [path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file()]
    own = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":  # in the Hugging Face cache, files are links to the blobs beside it
        own.append(folder.resolve().parent.parent / "blobs")
    for path in found:
        if not any(path.resolve().is_relative_to(place) for place in own):
            raise ModelError(
                f"{str(path)!r} is a link to a file outside the model's folder and is not copied into an export: "
                "put the file itself there, or delete the link"
            )
    return found


def copy_companions(loaded: LoadedModel, folder: Path | None, out: Path) -> None:
    """Copy the base model's small files as they are; write tokenizer and generation config where there are none.

    Code goes along only if the user trusted it. If not, the tokenizer's config no longer asks for it either.
    """
    for path in companions(loaded):
        assert folder is not None
        target = out / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    if not loaded.trusted:
        _drop_auto_map(out / "tokenizer_config.json")
    if not any(out.glob("tokenizer*")):
        loaded.tokenizer.save_pretrained(out)
    if not (out / "generation_config.json").exists() and loaded.model.generation_config is not None:
        loaded.model.generation_config.save_pretrained(out)


def _drop_auto_map(path: Path) -> None:
    """Let a config file no longer name code; one that names none stays as it is."""
    if not path.is_file():
        return
    document = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(document, dict) and document.pop("auto_map", None) is not None:
        path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write(
    folder: Path,
    loaded: LoadedModel,
    exported: "Exported",
    digests: Mapping[str, str],
    unread: Sequence[str],
    facts: Mapping[str, Any],
) -> None:
    """Write manifest, verification and model card.

    Args:
        digests: of each tensor.
        unread: stored tensors that were left out because the model does not read them.
        facts: what is known of the candidate.
    """
    candidate, check = exported.candidate, exported.verification
    versions = {"prunesearch": prunesearch.__version__, "transformers": transformers.__version__}
    report = {**asdict(check), "versions": versions, "digests": dict(digests)}
    _write_json(folder / REPORT, report)
    (folder / "README.md").write_text(_card(loaded, exported, facts), encoding="utf-8")
    _write_json(
        folder / MANIFEST,
        {
            "base_model": base_name(loaded),
            "base_revision": loaded.source.revision,
            "base_commit": loaded.source.commit,
            "base_fingerprint": loaded.fingerprint,
            "base_layers": candidate.n_layers,
            "dropped": candidate.text,
            "form": exported.form,
            "own_code": own_code(loaded, exported.form),
            "changed": list(exported.changed),
            "params": exported.params,
            "bytes": exported.bytes,
            "left_out": list(unread),
            "verification": check.document(),
            "files": _sizes(folder),
            **facts,
        },
    )


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file but the manifest itself, by its path inside the folder."""
    files = sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    sizes = {str(path.relative_to(folder)): path.lstat().st_size for path in files}
    sizes.pop(MANIFEST, None)
    return sizes


def foreign_files(folder: Path) -> list[str]:
    """The files of an export's folder that the export did not write, or that were changed since."""
    try:
        written = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return [name for name, size in _sizes(folder).items() if written.get(name) != size]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return [MANIFEST]  # it does not say what was written


def check_replaceable(folder: Path) -> None:
    """Refuse to replace an export in whose folder the user has put or changed anything.

    Raises:
        StorageError: there is such a file.
    """
    if foreign := foreign_files(folder):
        raise StorageError(
            f"{str(folder)!r} would be replaced, and it holds {foreign[0]!r}, which this version did not write: "
            "move the folder away"
        )


def own_code(loaded: LoadedModel, form: str) -> bool:
    """Whether an export is loaded with code that it brings along: its form's, or trusted code of the base model."""
    return trusts(form) or hasattr(loaded.model.config, "auto_map")


def base_name(loaded: LoadedModel) -> str:
    """The base model's id, or the last part of its path: no path of this machine travels with a model."""
    return loaded.name if loaded.source.from_hub else Path(loaded.name).name


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _card(loaded: LoadedModel, exported: "Exported", facts: Mapping[str, Any]) -> str:
    candidate, check = exported.candidate, exported.verification
    name, base = exported.folder.name, base_name(loaded)
    trust = ", trust_remote_code=True" if own_code(loaded, exported.form) else ""
    changed = f" The weights that stay were {' and '.join(exported.changed)}." if exported.changed else ""
    source = "what was scored" if exported.changed else "their source"
    narrow = "" if check.narrow_difference is None else f", {check.narrow_difference:.3g} with narrow windows"
    return f"""---
{_front_matter(loaded)}---
# {base} without layers {candidate.text}

{len(candidate.kept)} of {candidate.n_layers} blocks of {base}, chosen by \
prunesearch; {exported.params:,} parameters, {exported.bytes:,} bytes. \
{PROMISES[exported.form]}{changed}
{_figures(facts)}
```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("{name}"{trust})
tokenizer = AutoTokenizer.from_pretrained("{name}")
```

Verified by reloading: logits differ from the scored candidate's by at most {check.prefill_difference:.3g} on a \
prompt{narrow} and {check.decode_difference:.3g} over {check.decoded} steps of cached decoding (allowed \
{check.allowed:.3g}); {check.weights} tensors equal {source}. `prunesearch verify {name}` repeats it. Details: \
`{MANIFEST}`, `{REPORT}`.

The licence of the base model applies: {_licence(loaded)}.
"""


def _base_metadata(loaded: LoadedModel) -> dict[str, Any]:
    """The front matter of the base model's card; a card that cannot be read says nothing, and stops no export."""
    readme = None if loaded.source.folder is None else loaded.source.folder / "README.md"
    if readme is None or not readme.is_file():
        return {}
    try:
        with guarded(f"cannot read {str(readme)!r}", readme):
            found: object = metadata_load(readme)
    except ModelError:
        return {}
    return {str(name): value for name, value in found.items()} if isinstance(found, dict) else {}


def _is_plain(value: object) -> bool:
    """Whether a value can be written to the new card: text that UTF-8 can say, or a list of such."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, str) and value.encode("utf-8", "ignore").decode("utf-8") == value


def _front_matter(loaded: LoadedModel) -> str:
    import yaml

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
