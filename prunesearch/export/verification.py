"""Proof that a checkpoint is the candidate that was scored.

The checkpoint is reloaded with plain `from_pretrained` and compared with two other models:

* The dense model whose dropped blocks return their input unchanged. This is the model that was
  scored, and it involves no new block numbers, masks or configs.
* The candidate made in memory, for cached decoding.

Attention windows are longer than a prompt, so they would hide a mask of the wrong kind. The
comparison is therefore repeated with windows of a few tokens.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prunesearch.candidate import LayerSubset
from prunesearch.errors import VerificationError
from prunesearch.execution.batches import Rows
from prunesearch.execution.head import Head
from prunesearch.execution.shared_forward import Forward
from prunesearch.export.results import Reference, Verification
from prunesearch.models.guard import guarded
from prunesearch.models.loading import LoadedModel
from prunesearch.models.structure import (
    blocks_of,
    input_device,
    most_positions,
    settings_of,
)
from prunesearch.models.surgery import ablated, pruned
from prunesearch.objectives.calibration_data import check_ids
from prunesearch.runtime.patching import replaced

NEW_TOKENS = 20
_NARROW = 4
_WINDOWS = (
    "sliding_window",
    "attention_window_size",
    "attention_chunk_size",
    "local_attention",
    "window_size",
)
_PROMPT = "The history of the lighthouse begins with a fire on a hill, which told sailors that"
# Largest allowed difference of a logit, as a share of the largest logit. The same weights on the
# same machine give 0, or a rounding error if a matrix is laid out differently in memory.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def prompt_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> torch.Tensor:
    """Return the token ids of a prompt, shape (1, L). Without a tokenizer they are made up."""
    if tokenizer is None:
        most = min(int(getattr(settings_of(model.config), "vocab_size", 100)), 5000)
        ids = [(7 * i + 5) % most for i in range(24)]
    else:
        ids = tokenizer(_PROMPT)["input_ids"]
        # The prompt and its continuation must fit into the model's position table.
        positions = most_positions(model)
        if positions is not None:
            ids = ids[: max(1, positions - NEW_TOKENS)]
        check_ids(model, max(ids))
    return torch.tensor([ids], device=input_device(model))


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
        expected = _prefill(dense, ids)
    limit = _TOLERANCE.get(found.dtype, 1e-2) * max(float(expected.abs().max()), 1e-6)
    with _running("a prompt"):
        actual = _prefill(found, ids)
    prefill = _difference(expected, actual, limit, "in the prompt")
    # Compare them again with narrow attention windows, if both models have windows.
    narrow = None
    with short_windows(dense.config) as dense_narrows, short_windows(found.config) as found_narrows:
        if dense_narrows and found_narrows:
            with identity_blocks(dense, candidate):
                wanted = _prefill(dense, ids)
            narrow = _difference(wanted, _prefill(found, ids), limit, "where attention windows end")
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


@contextmanager
def identity_blocks(model: PreTrainedModel, candidate: LayerSubset) -> Iterator[None]:
    """Make the dropped blocks of a dense model return their input unchanged inside the ``with``
    block.

    The kept blocks keep their own numbers and masks. The dropped blocks still compute, which shows
    in what form a block of any type returns its hidden states.
    """

    def handing_on(forward: Callable[..., Any]) -> Callable[..., Any]:
        def hand_on(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            out = forward(*args, **kwargs)
            hidden = args[0] if args else kwargs["hidden_states"]
            if isinstance(out, tuple | list):
                return (hidden, *out[1:])
            return hidden

        return hand_on

    blocks = blocks_of(model)
    with ExitStack() as stack:
        for number in candidate.dropped:
            forward = blocks[number].forward
            # Each block needs a closure of its own, as `forward` is a variable of the loop.
            stack.enter_context(replaced(blocks[number], "forward", handing_on(forward)))
        for number in {*candidate.attention, *candidate.mlp}:
            use = (number in candidate.attention, number in candidate.mlp)
            stack.enter_context(ablated(model, blocks[number], *use))
        yield


@contextmanager
def short_windows(config: PretrainedConfig) -> Iterator[bool]:
    """Make a model's attention windows a few tokens wide inside the ``with`` block.

    Yields:
        True if the model has attention windows.
    """
    settings = settings_of(config)
    stored = settings.to_dict()
    windows: dict[str, int] = {}
    for name in _WINDOWS:
        width = getattr(settings, name, None)
        if name in stored and isinstance(width, int) and width > _NARROW:
            windows[name] = width
    try:
        for name in windows:
            setattr(settings, name, _NARROW)
        yield bool(windows)
    finally:
        for name, width in windows.items():
            setattr(settings, name, width)


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
    logits = _prefill(found, ids)[0].float()
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


def likeliest(logits_BLV: torch.Tensor, number: int = 4) -> list[list[tuple[int, float]]]:
    """Return ids and logits of the likeliest tokens at each position of the first sequence.

    Args:
        logits_BLV: logits, shape (B, L, V).
        number: number of tokens per position.
    """
    values, ids = logits_BLV[0].float().topk(number, dim=-1)
    likely = []
    for ids_here, values_here in zip(ids.tolist(), values.tolist(), strict=True):
        rounded = [round(value, 6) for value in values_here]
        likely.append(list(zip(ids_here, rounded, strict=True)))
    return likely


class Decoded(NamedTuple):
    """Greedy steps of a model.

    Attributes:
        ids: ids of the new tokens, shape (T,).
        logits: logits at each step, shape (T, V).
        cached: True if each step after the first read less than the whole text, and took the rest
            from a cache.
    """

    ids: torch.Tensor
    logits: torch.Tensor
    cached: bool


def generate(model: PreTrainedModel, ids: torch.Tensor) -> Decoded:
    """Continue greedily with a cache.

    Settings that come with the model (`generation_config.json`, ``use_cache``, generation code) are
    ignored. They could sample, stop early, disable the cache, or require something that is not
    available here.
    """
    lengths: list[int] = []

    def note_length(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A model takes token ids or embeddings. Input that is not found counts as the whole text.
        read = kwargs.get("input_ids", args[0] if args else None)
        if read is None:
            read = kwargs.get("inputs_embeds")
        if read is None:
            read = ids
        lengths.append(read.shape[1])

    hook = model.register_forward_pre_hook(note_length, with_kwargs=True)
    try:
        clean = GenerationConfig()  # type: ignore[no-untyped-call]
        with replaced(model, "generation_config", clean):
            answer: Any = type(model).generate(  # type: ignore[attr-defined]
                model,
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                use_cache=True,
                max_new_tokens=NEW_TOKENS,
                return_dict_in_generate=True,
                output_logits=True,
            )
    finally:
        hook.remove()
    cached = all(length < ids.shape[1] for length in lengths[1:])
    return Decoded(
        answer.sequences[0, ids.shape[1] :], torch.stack(answer.logits)[:, 0].float(), cached
    )


def _prefill(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits over a prompt, shape (1, L, V)."""
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.float()


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
