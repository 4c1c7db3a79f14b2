"""Writing a pruned checkpoint, and proving that it is the candidate that was scored.

The checkpoint is written beside its destination, reloaded with plain `from_pretrained`, compared, synced and only
then renamed into place: it is complete and verified, or it is not there.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from prunesearch.candidate import LayerSubset
from prunesearch.errors import StorageError, VerificationError, one_line
from prunesearch.model.anatomy import input_device
from prunesearch.model.loading import LoadedModel, refuse_incomplete
from prunesearch.model.surgery import check_removable, pruned
from prunesearch.store.places import check_writable

MANIFEST = "prunesearch.json"
GREEDY_TOKENS = 50
_PROMPT = "The history of the lighthouse begins with a fire on a hill, which told sailors that"
# Largest difference of a logit, as a share of the largest logit. The same weights on the same machine give 0.
_TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Verification:
    """How a reloaded checkpoint compares with the candidate in memory.

    Attributes:
        prefill_difference: largest absolute difference of a logit over a prompt.
        decode_difference: the same over cached decoding steps, one token at a time.
        greedy_tokens: how many greedily generated tokens were compared; all were equal.
        generated: the text that the reloaded model generated.
    """

    prefill_difference: float
    decode_difference: float
    greedy_tokens: int
    generated: str


@dataclass(frozen=True)
class Exported:
    """A finished export."""

    folder: Path
    candidate: LayerSubset
    params: int
    bytes: int
    verification: Verification

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "folder": str(self.folder),
            "dropped": self.candidate.text,
            "params": self.params,
            "bytes": self.bytes,
            "verification": asdict(self.verification),
        }


def export(
    loaded: LoadedModel,
    candidate: LayerSubset,
    out: Path,
    facts: Mapping[str, Any] | None = None,
    *,
    replace: bool = False,
) -> Exported:
    """Write the candidate as an ordinary checkpoint: weights, config, tokenizer, chat template, model card, manifest.

    Args:
        facts: what is known of the candidate (recipe, metrics); kept in the manifest and shown on the card.
        replace: an earlier export at `out` gives way, after the new one was verified.

    Raises:
        InputError: the candidate drops sublayers.
        StorageError: `out` is not empty or cannot be written.
        VerificationError: the reloaded checkpoint does not equal the candidate.
    """
    check_removable(candidate)
    if not (replace and (out / MANIFEST).is_file()):
        check_destination(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise StorageError(f"cannot write to {str(out.parent)!r}: {error.strerror}") from None
    try:
        with pruned(loaded.model, candidate) as model:
            model.save_pretrained(scratch)
            loaded.tokenizer.save_pretrained(scratch)
            verification = verify(scratch, model, loaded.tokenizer)
        sizes = loaded.sizes
        exported = Exported(out, candidate, sizes.params(candidate), sizes.bytes(candidate), verification)
        _write_manifest(scratch, loaded, exported, facts or {})
        _sync(scratch)
        _put_in_place(scratch, out)
    except OSError as error:
        raise StorageError(f"cannot write the checkpoint to {str(out)!r}: {one_line(error)}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return exported


def check_destination(out: Path) -> None:
    """Refuse a destination that holds something or cannot be written, before any work is done.

    Raises:
        StorageError: it is a file, a folder that is not empty, or nothing can be written there.
    """
    check_writable(out)
    if out.exists() and any(out.iterdir()):
        raise StorageError(f"--out {str(out)!r} is not empty: choose a new folder, or empty it first")


@torch.inference_mode()
def verify(folder: Path, expected: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Verification:
    """Reload a checkpoint as any user would and compare it with the model it was made from.

    Raises:
        VerificationError: it does not load, or prefill, cached decoding or greedy text differ.
    """
    spread = {"device_map": "auto"} if len(set(getattr(expected, "hf_device_map", {}).values())) > 1 else {}
    try:
        reload: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **spread)
        found, report = reload
        refuse_incomplete(folder.name, report)
        if not spread:
            found.to(input_device(expected))
    except (OSError, ValueError, RuntimeError) as error:
        raise VerificationError(
            f"the export could not be reloaded beside the dense model ({one_line(error)}): "
            "where memory is short, export again with --device cpu"
        ) from None
    found.eval()
    device = input_device(expected)
    ids = torch.tensor([tokenizer(_PROMPT)["input_ids"]], device=device)
    reference = expected(input_ids=ids, use_cache=False).logits
    limit = _TOLERANCE.get(reference.dtype, 1e-2) * float(reference.abs().max())
    prefill = _difference(reference, found(input_ids=ids, use_cache=False).logits)
    # Cached decoding of the reload against one uncached pass of the candidate would differ by rounding: like with like.
    decode = _difference(_decode(expected, ids), _decode(found, ids))
    if max(prefill, decode) > limit:
        raise VerificationError(
            f"the reloaded export differs from the scored candidate by {max(prefill, decode):.3g} in a logit "
            f"(allowed {limit:.3g}): it was not kept"
        )
    greedy = [_generate(model, ids) for model in (expected, found)]
    if not torch.equal(*greedy):
        raise VerificationError("the reloaded export generates other text than the scored candidate: it was not kept")
    text = str(tokenizer.decode(greedy[1][0, ids.shape[1] :], skip_special_tokens=True))
    return Verification(prefill, decode, GREEDY_TOKENS, text)


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).abs().max())


def _decode(model: PreTrainedModel, ids: torch.Tensor, steps: int = 8) -> torch.Tensor:
    """Logits of the last `steps` tokens, fed one at a time after a cached prefill of the others."""
    prefix = ids[:, :-steps]
    cache = model(input_ids=prefix, use_cache=True).past_key_values
    rows = []
    for token in torch.split(ids[:, -steps:], 1, dim=1):
        output = model(input_ids=token, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        rows.append(output.logits)
    return torch.cat(rows, dim=1)


def _generate(model: Any, ids: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    generated: torch.Tensor = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        min_new_tokens=GREEDY_TOKENS,
        max_new_tokens=GREEDY_TOKENS,
    )
    return generated


def _write_manifest(folder: Path, loaded: LoadedModel, exported: Exported, facts: Mapping[str, Any]) -> None:
    candidate = exported.candidate
    manifest = {
        "base_model": Path(loaded.name).name,
        "base_fingerprint": loaded.fingerprint,
        "base_layers": candidate.n_layers,
        "dropped": list(candidate.dropped),
        "params": exported.params,
        "bytes": exported.bytes,
        "verification": asdict(exported.verification),
        **facts,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    (folder / "README.md").write_text(_card(loaded, exported, facts))


def _card(loaded: LoadedModel, exported: Exported, facts: Mapping[str, Any]) -> str:
    candidate, check = exported.candidate, exported.verification
    metrics = "".join(f"| {name} | {value:.6g} |\n" for name, value in facts.get("metrics", {}).items())
    table = f"\n| metric | value |\n|---|---|\n{metrics}" if metrics else ""
    return f"""---
library_name: transformers
tags: [pruned, prunesearch]
---
# {Path(loaded.name).name} without layers {candidate.text}

{len(candidate.kept)} of {candidate.n_layers} blocks of {Path(loaded.name).name}, chosen by prunesearch; \
{exported.params:,} parameters, {exported.bytes:,} bytes. The licence of the base model applies.
{table}
```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("{exported.folder.name}")
tokenizer = AutoTokenizer.from_pretrained("{exported.folder.name}")
```

Verified by reloading: logits equal the scored candidate's (largest difference {check.prefill_difference:.3g} \
on a prompt, {check.decode_difference:.3g} in cached decoding), as do {check.greedy_tokens} \
greedily generated tokens. Details: `{MANIFEST}`.
"""


def _put_in_place(scratch: Path, out: Path) -> None:
    """Rename the finished folder to its name; what was there (nothing, or an export to be replaced) goes last."""
    if not out.exists():
        scratch.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
    out.rename(old)
    scratch.rename(out)
    shutil.rmtree(old)


def _sync(folder: Path) -> None:
    """Bring every file and the folder itself to disk before the rename makes them visible."""
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o755 if path.is_dir() else 0o644)  # the temporary folder was private
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
