"""Output of `export` and `verify` for people."""

from shlex import quote
from typing import TYPE_CHECKING

from prunesearch.report.tables import Parts, gib, number
from prunesearch.units import noun_for
from prunesearch.widths.layer_widths import described

if TYPE_CHECKING:
    from prunesearch.export.results import (
        Exported,
        ExportedGguf,
        GgufRecheck,
        PrintedRecipe,
        Recheck,
        Verification,
    )


def exported(made: "Exported") -> Parts:
    """Show where the checkpoint is and how it was verified."""
    check = made.verification
    said = " ".join(check.generated.split())
    parts: Parts = [
        f"exported {made.folder}: {number('params', made.params)} parameters, "
        f"{made.bytes:,} bytes ({gib(made.bytes)}), {described(made.candidate.text)}",
        f"verified: {check.weights} tensors equal what was read; reloaded with from_pretrained, "
        f"logits differ by {_differences(check)}; allowed {check.allowed:.3g}",
    ]
    if said:
        parts.append(f"it says: {said}")
    if made.pushed is not None:
        parts.append(f"pushed to {made.pushed}")
    return parts


def _differences(check: "Verification") -> str:
    """List the differences that a verification measured, each with the compared outputs."""
    parts = [f"{check.prefill_difference:.3g} (prompt)"]
    if check.narrow_difference is not None:
        parts.append(f"{check.narrow_difference:.3g} (with narrow attention windows)")
    if check.decode_difference is not None:
        how = "cached decoding" if check.cached else "decoding without a cache"
        steps = f"{check.decoded} {noun_for(check.decoded, 'step')}"
        parts.append(f"{check.decode_difference:.3g} ({how}, {steps})")
    return ", ".join(parts)


def delivered(done: "Exported | ExportedGguf | PrintedRecipe") -> Parts:
    """Show the result of an export command: printed text, a GGUF file or a checkpoint."""
    from prunesearch.export.results import ExportedGguf, PrintedRecipe

    if isinstance(done, PrintedRecipe):
        return [done.text.rstrip()]
    if isinstance(done, ExportedGguf):
        return _exported_gguf(done)
    return exported(done)


def _exported_gguf(made: "ExportedGguf") -> Parts:
    """Show where a GGUF file is and how it was verified."""
    check = made.check
    proof = (
        "not verified, since llama.cpp is not installed: pip install 'prunesearch[gguf]', then run "
        f"prunesearch verify {quote(str(made.path))}"
    )
    if check is not None:
        proof = (
            f"verified in llama.cpp: log-probabilities differ by {check.difference:.3g} nats in "
            f"the mean (allowed {check.allowed}), {check.largest:.3g} at most, over "
            f"{check.steps} {noun_for(check.steps, 'greedy token')}; it says: "
            f"{' '.join(check.generated.split())}"
        )
    written = f"wrote {made.path}: {made.bytes:,} bytes, {described(made.candidate.text)}"
    return [written, proof]


def verified(found: "Recheck | GgufRecheck") -> Parts:
    """Show the result of a repeated verification."""
    from prunesearch.export.results import GgufRecheck

    if isinstance(found, GgufRecheck):
        return [_verified_gguf(found)]
    lines: Parts = [
        f"{found.folder} is what was exported: {found.weights} tensors, logits differ by "
        f"{found.difference:.3g}"
    ]
    if found.against_base is not None:
        lines.append(
            f"against {found.base_model} {described(found.dropped)}: logits differ by "
            f"{_differences(found.against_base)}"
        )
    return lines


def _verified_gguf(found: "GgufRecheck") -> str:
    """Describe the result of a repeated verification of a GGUF file."""
    from prunesearch.export.results import LlamaCppCheck

    said = f"{found.path} is what was exported {described(found.dropped)}: "
    said += f"{found.tensors} tensors"
    check = found.llama_cpp
    if check is None:
        return f"{said}; not run: llama.cpp is not installed (pip install 'prunesearch[gguf]')"
    text = " ".join(check.generated.split())
    if not isinstance(check, LlamaCppCheck):
        return (
            f"{said}; llama.cpp runs it and says: {text} "
            "(--base MODEL compares it with the dense model)"
        )
    return (
        f"{said}; in llama.cpp log-probabilities differ from the base model's candidate by "
        f"{check.difference:.3g} nats in the mean (allowed {check.allowed:.3g}); it says: {text}"
    )
