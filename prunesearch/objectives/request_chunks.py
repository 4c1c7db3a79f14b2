"""The requests of a task for log-likelihoods, in chunks, and their batches."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from prunesearch.execution.shared_forward import Forward
from prunesearch.objectives.base import Chunk, Identity
from prunesearch.objectives.identity import SCORING_VERSION, tokens_digest
from prunesearch.objectives.loglikelihood import (
    Request,
    ScoredBatch,
    inputs_of,
    lay_out_rows,
    lay_out_trees,
    supports_trees,
    tree_depth_fits,
)

CHUNK_REQUESTS = 256
"""Requests of a chunk, rounded up to the end of a document.

HellaSwag has 64 documents in a chunk.
"""
_WORTH = 0.8  # share of a plain pass's tokens below which a token tree is faster


class RequestChunks:
    """Requests in chunks. A chunk ends where the context changes, so that every document is in one
    chunk.

    Args:
        model: the dense model.
        requests: the requests, in the order of their documents.
        longest: largest number of tokens that the model reads of a request.
        batch_tokens: tokens of a forward pass.
    """

    def __init__(
        self, model: PreTrainedModel, requests: Sequence[Request], longest: int, batch_tokens: int
    ) -> None:
        self._model, self._requests = model, tuple(requests)
        self._longest, self._batch_tokens = longest, batch_tokens
        self._chunks = _by_document(requests)
        self._batches: dict[int, list[ScoredBatch]] = {}
        self._trees: bool | None = None

    def __len__(self) -> int:
        """Number of chunks."""
        return len(self._chunks)

    def all(self) -> tuple[Request, ...]:
        """Return the requests of all chunks."""
        return self._requests

    def described(self, numerics: dict[str, str]) -> list[Chunk]:
        """Return the chunks with their identities.

        Args:
            numerics: what decides the rounding of a result.
        """
        chunks = []
        for index, requests in enumerate(self._chunks):
            identity = _identity(requests, numerics, self._longest)
            chunks.append(Chunk(index, identity, _tokens(requests)))
        return chunks

    def batches(self, index: int, forward: Forward) -> list[ScoredBatch]:
        """Return a chunk's batches. They are laid out once and kept.

        Token trees are used if the model can read them and if they are enough shorter than rows.
        """
        if index in self._batches:
            return self._batches[index]
        if self._trees is None:
            self._trees = supports_trees(self._model, forward)
        requests = self._chunks[index]
        sequences = inputs_of(requests, self._longest)
        batches = lay_out_rows(requests, sequences, self._batch_tokens)
        if self._trees and tree_depth_fits(self._model.config, sequences):
            trees = lay_out_trees(requests, sequences, self._batch_tokens)
            if _computed(trees) < _WORTH * _computed(batches):
                batches = trees
        self._batches[index] = [batch.on(self._model) for batch in batches]
        return self._batches[index]

    def laid_out(self) -> list[ScoredBatch]:
        """Return the batches of all chunks that were laid out so far."""
        return [batch for batches in self._batches.values() for batch in batches]


def _by_document(requests: Sequence[Request]) -> list[list[Request]]:
    """Split requests into chunks."""
    chunks: list[list[Request]] = []
    before: Sequence[int] = ()
    for request in requests:
        if not chunks or (len(chunks[-1]) >= CHUNK_REQUESTS and request[0] != before):
            chunks.append([])
        chunks[-1].append(request)
        before = request[0]
    return chunks


def _computed(batches: Sequence[ScoredBatch]) -> int:
    """Return the number of tokens that the batches compute, padding included."""
    return sum(batch.batch.tokens for batch in batches)


def _tokens(requests: Sequence[Request]) -> int:
    """Return the number of tokens that a model reads for the requests one by one."""
    return sum(len(context) + len(continuation) - 1 for context, continuation in requests)


def _identity(requests: Sequence[Request], numerics: dict[str, str], longest: int) -> Identity:
    """Return the identity of a chunk.

    The truncation length is part of it only if a request is truncated.
    """
    identity: Identity = {
        "kind": "loglikelihood",
        "version": SCORING_VERSION,
        "numerics": numerics,
        "tokens": tokens_digest(requests),
    }
    if any(len(context) + len(continuation) > longest + 1 for context, continuation in requests):
        identity["truncation"] = longest
    return identity
