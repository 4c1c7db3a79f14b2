"""What an objective is, and the two that need only text: KL to the dense model, and perplexity.

An objective splits its data into chunks, scores candidates on chunks (one candidate's result on one chunk is what the
store keeps), and turns all chunks' results into metrics. Shapes: B sequences of L tokens, R rows, V vocabulary.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, Protocol

import torch
import transformers
from transformers import PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.errors import ScoringError
from prunesearch.model.anatomy import blocks_of, input_device
from prunesearch.model.loading import LoadedModel
from prunesearch.scoring.batches import Rows
from prunesearch.scoring.forward import HEAD_ROWS, Forward, Head
from prunesearch.scoring.reference import Reference, ReferenceStore
from prunesearch.scoring.text import check_fits
from prunesearch.store.keys import minor

SCORING_VERSION = 2
"""Raised whenever a change of this package may change a stored number."""

CHUNK_TOKENS = {"cpu": 1024, "cuda": 8192}
"""Tokens of a chunk by device: what its caches, or its cores, are filled by."""
_ROWS = 64  # rows of logits in float32 at a time: fits the cache, twice as fast as 2,048 (measured on 2 cores)


@dataclass(frozen=True)
class Chunk:
    """A piece of an objective's data.

    Attributes:
        index: its place among the objective's chunks.
        identity: what is scored and how, as JSON values; with weights and candidate it makes the store's key.
        tokens: tokens that a candidate's forward pass over it takes.
        stored: whether its results are a function of `identity`; sampled texts are not, and nothing keeps them.
    """

    index: int
    identity: dict[str, Any]
    tokens: int
    stored: bool = True


@dataclass(frozen=True)
class Metrics:
    """Values and standard errors by metric name."""

    values: dict[str, float]
    stderr: dict[str, float] = field(default_factory=dict)


Work = Sequence[tuple[Chunk, Sequence[LayerSubset]]]
"""What is to be scored: chunks, each with the candidates that lack it."""
Scored = tuple[int, LayerSubset, "list[Any] | ScoringError"]
"""Chunk index, candidate, and its results there (one JSON value per sequence or request) or why there are none."""


class Objective(Protocol):
    """Scores candidates of one model on fixed data."""

    metric: str
    """The metric that the search improves."""
    maximize: bool
    """Whether more of the metric is better."""
    digest: str
    """Digest of the data, for the study's identity."""
    settings: Mapping[str, Any]
    """What else decides the metrics, by name, for the study's identity; JSON values."""

    @property
    def chunks(self) -> Sequence[Chunk]:
        """The pieces of the data, in order."""
        ...

    def score(self, work: Work, forward: Forward) -> Iterator[Scored]:
        """Score candidates on chunks, together; each pair is yielded as it is done."""
        ...

    def metrics(self, results: Sequence[list[Any]]) -> Metrics:
        """Turn the results of all chunks into metrics."""
        ...

    def losses(self, results: Sequence[list[Any]]) -> Sequence[float]:
        """Loss of each item (sequence or document) in the leading chunks given; less is better, for races.

        Raises:
            InputError: the metric is none of single items.
        """
        ...


class CalibrationObjective:
    """KL divergence to the dense model and cross-entropy, on fixed windows of tokens.

    Per sequence it stores the sum of KL(dense || pruned) over all L positions, in nats; the sum of the negative
    log-likelihood of the L - 1 tokens that have a predecessor; and L. Both metrics come from the same entries, so a
    search for one finds the other's in the store.

    Args:
        loaded: the dense model.
        windows_BL: token ids, shape (B, L).
        metric: ``kl`` or ``perplexity``; both are reported, this one is searched.
        top_k: take the KL over the dense model's `top_k` likeliest tokens and one lump of the rest, which bounds the
            full KL from below (data processing inequality) and whose reference is thousands of times smaller; None:
            over the full vocabulary.
        references: where the dense model's answers are kept; default: in memory.
        chunk_tokens: tokens of a chunk; default: by device.
    """

    maximize = False

    def __init__(
        self,
        loaded: LoadedModel,
        windows_BL: torch.Tensor,
        metric: str = "kl",
        top_k: int | None = None,
        references: ReferenceStore | None = None,
        chunk_tokens: int | None = None,
    ) -> None:
        check_fits(loaded.model, windows_BL)
        self.metric = metric
        self._model = loaded.model
        self._head = Head(loaded.model)
        self._references = references or ReferenceStore(None)
        self._fingerprint = loaded.fingerprint
        self._top_k = top_k
        device = input_device(loaded.model)
        per_chunk = max(1, (chunk_tokens or CHUNK_TOKENS.get(device.type, 1024)) // windows_BL.shape[1])
        self._windows = [chunk_BL.to(device) for chunk_BL in torch.split(windows_BL, per_chunk)]
        numerics = numerics_of(loaded.model)
        self.digest = tokens_digest(windows_BL.tolist())
        self.settings: Mapping[str, Any] = {}
        self.chunks = [
            Chunk(
                index,
                {
                    "kind": "calibration" if top_k is None else f"calibration top {top_k}",
                    "version": SCORING_VERSION,
                    "numerics": numerics,
                    "tokens": tokens_digest(chunk_BL.tolist()),
                },
                chunk_BL.numel(),
            )
            for index, chunk_BL in enumerate(self._windows)
        ]

    def score(self, work: Work, forward: Forward) -> Iterator[Scored]:
        """Yield ``[kl_sum, nll_sum, tokens]`` per sequence of each chunk for each of its candidates.

        Where the dense model's answers to a chunk are not known yet, it takes part as one more candidate.
        """
        dense = LayerSubset.of(len(blocks_of(self._model)))
        chunks = [chunk for chunk, candidates in work if candidates]
        references = {c.index: self._references.get(self._fingerprint, c.identity) for c in chunks}
        wanted = [set(candidates) for _, candidates in work if candidates]
        jobs = [
            (Rows(self._windows[c.index]), [*asked, dense] if references[c.index] is None else list(asked))
            for c, asked in zip(chunks, wanted, strict=True)
        ]
        for job, states in groupby(forward.run(jobs), key=itemgetter(0)):
            chunk, batch = chunks[job], jobs[job][0]
            while lot := list(islice(states, forward.lot(batch))):
                finished = {c: self._head.finish(state_BLE.flatten(0, 1)) for _, c, state_BLE in lot}
                if references[chunk.index] is None:
                    references[chunk.index] = self._reference(chunk, finished[dense])
                reference = references[chunk.index]
                assert reference is not None
                yield from self._compare(chunk, reference, {c: f for c, f in finished.items() if c in wanted[job]})

    def _reference(self, chunk: Chunk, finished_RE: torch.Tensor) -> Reference:
        blocks = (self._head.logits(rows_RE) for rows_RE in torch.split(finished_RE, _ROWS))
        reference = Reference.of(blocks, self._top_k)
        self._references.put(self._fingerprint, chunk.identity, reference)
        return reference

    @torch.inference_mode()
    def _compare(
        self, chunk: Chunk, reference: Reference, finished: Mapping[LayerSubset, torch.Tensor]
    ) -> Iterator[Scored]:
        """Compare all candidates with the dense model, a few rows at a time: what these need of it is made once."""
        ids_BL = self._windows[chunk.index]
        next_R = torch.cat([ids_BL[:, 1:], ids_BL[:, :1]], dim=1).flatten()  # a last position's is masked below
        kl_R = {c: torch.empty(len(next_R), device=ids_BL.device) for c in finished}
        nll_R = {c: torch.empty(len(next_R), device=ids_BL.device) for c in finished}
        step = HEAD_ROWS.get(ids_BL.device.type, HEAD_ROWS["cpu"])
        for start in range(0, len(next_R), step):
            every = slice(start, min(start + step, len(next_R)))
            parts = [slice(first, min(first + _ROWS, every.stop)) for first in range(start, every.stop, _ROWS)]
            dense = [reference.rows(rows, ids_BL.device) for rows in parts]
            for candidate, finished_RE in finished.items():
                logits = torch.split(self._head.logits(finished_RE[every]), _ROWS)
                for rows, dense_rows, logits_RV in zip(parts, dense, logits, strict=True):
                    log_q_RV = torch.log_softmax(logits_RV, dim=-1, dtype=torch.float32)
                    kl_R[candidate][rows] = dense_rows.divergence(log_q_RV)
                    nll_R[candidate][rows] = -log_q_RV.gather(1, next_R[rows, None])[:, 0]
        for candidate in finished:
            kl_B = kl_R[candidate].view(ids_BL.shape).double().sum(1).tolist()
            nll_B = nll_R[candidate].view(ids_BL.shape)[:, :-1].double().sum(1).tolist()
            if all(map(math.isfinite, (*kl_B, *nll_B))):
                sums = zip(kl_B, nll_B, strict=True)
                yield chunk.index, candidate, [[kl, nll, ids_BL.shape[1]] for kl, nll in sums]
            else:
                yield chunk.index, candidate, not_finite(candidate)

    def metrics(self, results: Sequence[list[Any]]) -> Metrics:
        """Return ``kl`` and ``cross_entropy`` in nats per token and ``perplexity``; errors are over sequences."""
        rows = torch.tensor([row for chunk in results for row in chunk], dtype=torch.float64)
        kl_B, nll_B = rows[:, 0] / rows[:, 2], rows[:, 1] / (rows[:, 2] - 1)
        cross_entropy = float(rows[:, 1].sum() / (rows[:, 2] - 1).sum())
        perplexity = math.exp(min(cross_entropy, 700.0))
        values = {
            "kl": float(rows[:, 0].sum() / rows[:, 2].sum()),
            "cross_entropy": cross_entropy,
            "perplexity": perplexity,
        }
        if len(rows) < 2:
            return Metrics(values)
        kl_error, nll_error = (float(x_B.std() / math.sqrt(len(rows))) for x_B in (kl_B, nll_B))
        return Metrics(
            values,
            # d exp(x) = exp(x) dx
            {"kl": kl_error, "cross_entropy": nll_error, "perplexity": perplexity * nll_error},
        )

    def losses(self, results: Sequence[list[Any]]) -> Sequence[float]:
        """KL, or cross-entropy where perplexity is searched, in nats per token of each sequence."""
        rows = [row for chunk in results for row in chunk]
        return [kl / n if self.metric == "kl" else nll / (n - 1) for kl, nll, n in rows]


def not_finite(candidate: LayerSubset) -> ScoringError:
    """Why a candidate has no numbers when the model's output overflows."""
    return ScoringError(f"dropping layers {candidate.text} makes the model's output not finite")


def numerics_of(model: PreTrainedModel) -> dict[str, str]:
    """The class of arithmetic that a result was computed in; results of different classes are kept apart."""
    return {
        "attention": str(model.config._attn_implementation),
        "device": input_device(model).type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "torch": minor(torch.__version__),
        "transformers": minor(transformers.__version__),
    }


def tokens_digest(sequences: Sequence[Any]) -> str:
    """Digest nested lists of token ids. Spaces do not count, so text needs `content_digest`."""
    return hashlib.sha256(repr(sequences).replace(" ", "").encode()).hexdigest()


def content_digest(value: Any) -> str:  # noqa: ANN401 (any JSON value)
    """Digest JSON values, text included; what JSON does not know is taken by its text."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
