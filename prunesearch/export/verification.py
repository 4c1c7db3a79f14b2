"""Proof that a checkpoint is the candidate that was scored.

The checkpoint is reloaded with plain `from_pretrained` and compared with two other models:

* The dense model whose dropped blocks return their input unchanged. This is the model that was
  scored, and it involves no new block numbers, masks or configs.
* The candidate made in memory, for cached decoding.

Attention windows are longer than a prompt, so they would hide a mask of the wrong kind. The
comparison is therefore repeated with windows of a few tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunesearch.candidate import LayerSubset
from prunesearch.errors import VerificationError
from prunesearch.execution.batches import Rows
from prunesearch.execution.head import Head
from prunesearch.execution.shared_forward import Forward
from prunesearch.export.altered_models import identity_blocks, short_windows
from prunesearch.export.decoding import Decoded, generate, likeliest, prefill_logits, prompt_ids
from prunesearch.export.results import Reference, Verification
from prunesearch.models.guard import guarded
from prunesearch.models.loading import LoadedModel
from prunesearch.models.structure import input_device
from prunesearch.models.surgery import pruned

# Largest allowed difference of a logit, as a share of the largest logit. The same weights on the
# same machine give 0, or a rounding error if a matrix is laid out differently in memory.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@torch.inference_mode()
def compare(
    dense: PreTrainedModel,
    candidate: LayerSubset,
    found: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Verification:
    """Compare a reloaded checkpoint with the candidate of the dense model.

    Args:
        dense: dense model, in memory.
        candidate: candidate of the dense model.
        found: reloaded checkpoint.
        tokenizer: tokenizer of the dense model.

    Raises:
        VerificationError: a logit differs by more than rounding, in prefill or in cached decoding.
    """
    # Compare the logits over a prompt.
    ids = prompt_ids(dense, tokenizer)
    with _dense_running("a prompt"), identity_blocks(dense, candidate):
        expected = prefill_logits(dense, ids)
    limit = _TOLERANCE.get(found.dtype, 1e-2) * max(float(expected.abs().max()), 1e-6)
    with _running("a prompt"):
        actual = prefill_logits(found, ids)
    prefill = _difference(expected, actual, limit, "in the prompt")
    # Compare them again with narrow attention windows, if both models have windows.
    narrow = None
    with short_windows(dense.config) as dense_narrows, short_windows(found.config) as found_narrows:
        if dense_narrows and found_narrows:
            with identity_blocks(dense, candidate):
                wanted = prefill_logits(dense, ids)
            narrow = _difference(
                wanted, prefill_logits(found, ids), limit, "where attention windows end"
            )
    # Compare greedy decoding, which uses the cache.
    with _dense_running("cached decoding"), pruned(dense, candidate):
        in_memory = generate(dense, ids)
    with _running("cached decoding"):
        continuation = generate(found, ids)
    decode, decoded = _same_steps(in_memory, continuation, limit)
    text = (
        ""
        if tokenizer is None
        else str(tokenizer.decode(continuation.ids, skip_special_tokens=True))
    )
    reference = Reference(ids[0].tolist(), likeliest(actual), continuation.ids.tolist())
    cached = in_memory.cached and continuation.cached
    return Verification(prefill, narrow, decode, limit, decoded, cached, text, reference)


@contextmanager
def _running(what: str) -> Iterator[None]:
    """Turn any error of the reloaded model's code into a failed verification.

    A wrong checkpoint can make that code fail in any way.
    """
    with guarded(f"the reloaded export fails on {what}", kind=VerificationError):
        yield


@contextmanager
def _dense_running(what: str) -> Iterator[None]:
    """Turn any error of the dense model's code into a failed verification.

    Code that ships with a model may be too old for this version of transformers.
    """
    failure = f"the dense model fails on {what}, with which an export is compared"
    with guarded(
        failure,
        kind=VerificationError,
        advice="its code does not work with this version of transformers",
    ):
        yield


@dataclass(frozen=True)
class Expected:
    """The expected output of a candidate for a prompt.

    Attributes:
        ids: token ids of the prompt, shape (1, L).
        logits: logits at each position, shape (L, V).
        narrow: logits with narrow attention windows; None for models without windows.
    """

    ids: torch.Tensor
    logits: torch.Tensor
    narrow: torch.Tensor | None


@torch.inference_mode()
def expected_streamed(loaded: LoadedModel, candidate: LayerSubset) -> Expected:
    """Compute the candidate's logits over a prompt while its blocks are streamed.

    This works for models that are larger than memory.
    """
    ids = prompt_ids(loaded.model, loaded.tokenizer)
    logits = _streamed(loaded, candidate, ids)
    narrow = None
    with short_windows(loaded.model.config) as narrows:
        if narrows:
            narrow = _streamed(loaded, candidate, ids)
    return Expected(ids, logits, narrow)


@torch.inference_mode()
def compare_streamed(expected: Expected, found: LoadedModel) -> Verification:
    """Compare the logits of a streamed checkpoint over a prompt with the expected ones.

    Raises:
        VerificationError: a logit differs by more than rounding.
    """
    ids, whole = expected.ids, LayerSubset.of(found.n_layers)
    actual = _streamed(found, whole, ids)
    limit = _TOLERANCE.get(found.model.dtype, 1e-2) * max(float(expected.logits.abs().max()), 1e-6)
    prefill = _difference(expected.logits, actual, limit, "in the prompt")
    narrow = None
    with short_windows(found.model.config) as narrows:
        if narrows and expected.narrow is not None:
            actual_narrow = _streamed(found, whole, ids)
            narrow = _difference(
                expected.narrow, actual_narrow, limit, "where attention windows end"
            )
    reference = Reference(ids[0].tolist(), likeliest(actual[None]), [])
    return Verification(prefill, narrow, None, limit, 0, False, "", reference)


def _streamed(loaded: LoadedModel, candidate: LayerSubset, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits at each position, shape (L, V)."""
    [(_, _, hidden_BLE)] = Forward(loaded.model, loaded.layers).run([(Rows(ids), [candidate])])
    head = Head(loaded.model)
    return head.logits(head.apply_final_norm(hidden_BLE[0])).float()


@torch.inference_mode()
def matches(found: PreTrainedModel, reference: Reference) -> float:
    """Compare a reloaded checkpoint with the reference that was stored when it was verified.

    Args:
        found: reloaded checkpoint.
        reference: the stored reference.

    Returns:
        The largest difference of a logit.

    Raises:
        VerificationError: the output differs by more than rounding.
    """
    # Compare the stored logits of the likeliest tokens.
    ids = torch.tensor([reference.prompt], device=input_device(found))
    logits = prefill_logits(found, ids)[0].float()
    limit = _TOLERANCE.get(found.dtype, 1e-2) * max(float(logits.abs().max()), 1e-6)
    worst = 0.0
    for row, likely in zip(logits, reference.likeliest, strict=True):
        for token, value in likely:
            worst = max(worst, abs(float(row[token]) - value))
    if not worst <= limit:
        raise VerificationError(
            f"the checkpoint gives logits that differ by {worst:.3g} (allowed {limit:.3g}) from "
            f"those it gave when it "
            "was exported: its files have changed, or the versions of its libraries compute "
            "something else"
        )
    # Compare the greedy continuation, which streamed exports do not have.
    if not reference.continuation:
        return worst
    with _running("cached decoding"):
        found_now = generate(found, ids)
    for step, token in enumerate(reference.continuation[: len(found_now.ids)]):
        chosen = int(found_now.ids[step])
        if chosen == token:
            continue
        if float(found_now.logits[step][chosen] - found_now.logits[step][token]) > limit:
            raise VerificationError(
                "the checkpoint generates another text than it did when it was exported"
            )
        # The two tokens are tied, and the texts may differ after them.
        break
    return worst


def _difference(expected: torch.Tensor, actual: torch.Tensor, limit: float, where: str) -> float:
    """Return the largest difference of a logit.

    Raises:
        VerificationError: the difference exceeds the limit.
    """
    difference = float((expected.to(actual.device) - actual).abs().max())
    # The comparison is negated so that NaN fails as well.
    if not difference <= limit:
        raise VerificationError(
            f"the reloaded export differs from the scored candidate by {difference:.3g} in a logit "
            f"{where} "
            f"(allowed {limit:.3g}): it was not kept"
        )
    return difference


def _same_steps(expected: Decoded, actual: Decoded, limit: float) -> tuple[float, int]:
    """Compare greedy steps up to the first one whose tokens differ, which must be a tie.

    Returns:
        The largest difference of a logit, and the number of steps that were compared.
    """
    steps = 0
    worst = 0.0
    for step in range(min(len(expected.ids), len(actual.ids))):
        worst = max(
            worst,
            _difference(expected.logits[step], actual.logits[step], limit, "in cached decoding"),
        )
        steps += 1
        if expected.ids[step] != actual.ids[step]:
            break
    return worst, steps
