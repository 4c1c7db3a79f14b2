"""Objectives on calibration text: what they share.

Shapes: B sequences of L tokens, R = B * L token positions, E hidden size.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby, islice
from operator import itemgetter
from typing import Protocol

import torch

from prunesearch.candidate import LayerSubset
from prunesearch.errors import DataError
from prunesearch.execution.batches import CHUNK_TOKENS, Rows
from prunesearch.execution.head import Head
from prunesearch.execution.shared_forward import Forward
from prunesearch.models.loading import LoadedModel
from prunesearch.models.structure import blocks_of, input_device
from prunesearch.objectives.base import (
    Chunk,
    ChunkResult,
    ChunkWork,
    Identity,
    Metrics,
    Row,
    Work,
    not_finite,
    numbers_of,
)
from prunesearch.objectives.calibration_data import check_fits
from prunesearch.objectives.identity import numerics_of, tokens_digest
from prunesearch.objectives.reference_cache import ReferenceCache

State = tuple[LayerSubset, torch.Tensor]
"""A candidate, and its hidden state after the last block, shape (B, L, E)."""


class Measure(Protocol):
    """What is measured on calibration text: a few numbers per sequence, and metrics of them."""

    metric: str
    """The metric that the search improves. A smaller value is better."""
    kind: str
    """Name of the numbers that are stored. It is part of the cache's keys."""

    def version(self, head: Head) -> int:
        """Return the version of the numbers. It is part of the cache's keys."""
        ...

    def fits(self, reference: Mapping[str, torch.Tensor], head: Head) -> bool:
        """Return whether candidates with this head can be compared with a reference.

        The reference may have been made with another model.
        """
        ...

    def reference(self, dense_RE: torch.Tensor, head: Head) -> dict[str, torch.Tensor]:
        """Return what is kept of the dense model for one chunk.

        Args:
            dense_RE: the dense model's hidden states after the final norm.
            head: the vocabulary head.
        """
        ...

    def compare(
        self,
        windows_BL: torch.Tensor,
        reference: Mapping[str, torch.Tensor],
        normed_states: Mapping[LayerSubset, torch.Tensor],
        head: Head,
    ) -> dict[LayerSubset, list[list[float]]]:
        """Return numbers for each candidate and each sequence of one chunk.

        Args:
            windows_BL: token ids of the chunk.
            reference: what `reference` returned for the chunk.
            normed_states: hidden states after the final norm by candidate, shape (R, E).
            head: the vocabulary head.
        """
        ...

    def metrics(self, per_sequence: Sequence[Sequence[float]]) -> Metrics:
        """Turn the numbers of all sequences into metrics.

        Args:
            per_sequence: one item for each sequence: the numbers that `compare` returned for it.
        """
        ...

    def losses(self, per_sequence: Sequence[Sequence[float]]) -> list[float]:
        """Return the loss of each sequence. A smaller loss is better. Races compare them.

        The argument is that of `metrics`.
        """
        ...


@dataclass(frozen=True)
class DenseOutputs:
    """The stored outputs of a dense model, which a model made from it is compared with.

    Attributes:
        fingerprint: fingerprint of the dense model.
        chunks: identities of the chunks that the outputs belong to, in order.
    """

    fingerprint: str
    chunks: tuple[Identity, ...]


class CalibrationObjective:
    """Compares candidates with the dense model on fixed windows of tokens.

    Args:
        loaded: the dense model.
        windows_BL: token ids, shape (B, L).
        measure: what is measured.
        references: cache of the dense model's outputs. Default: in memory.
        chunk_tokens: tokens of a chunk. Default: by device.
        compared_with: outputs of another dense model, from which `loaded` was made. Default: the
            candidates are compared with `loaded` itself.

    Raises:
        DataError: the outputs of the other dense model are not those of the same windows.
    """

    maximize = False

    def __init__(
        self,
        loaded: LoadedModel,
        windows_BL: torch.Tensor,
        measure: Measure,
        references: ReferenceCache | None = None,
        chunk_tokens: int | None = None,
        compared_with: DenseOutputs | None = None,
    ) -> None:
        check_fits(loaded.model, windows_BL)
        self.metric = measure.metric
        self._measure = measure
        self._dense = LayerSubset.of(len(blocks_of(loaded.model)))
        self._head = Head(loaded.model)
        self._references = references or ReferenceCache(None)
        self.digest = tokens_digest(windows_BL.tolist())
        self.settings: Mapping[str, str | int] = {}
        # Cut the windows into chunks of about `chunk_tokens` tokens.
        device = input_device(loaded.model)
        chunk_tokens = chunk_tokens or CHUNK_TOKENS.get(device.type, 1024)
        per_chunk = max(1, chunk_tokens // windows_BL.shape[1])
        self._windows = [chunk_BL.to(device) for chunk_BL in torch.split(windows_BL, per_chunk)]
        # Describe each chunk. These values are part of the cache's keys.
        numerics = numerics_of(loaded.model)
        self.chunks: list[Chunk] = []
        for index, chunk_BL in enumerate(self._windows):
            identity: Identity = {
                "kind": measure.kind,
                "version": measure.version(self._head),
                "numerics": numerics,
                "tokens": tokens_digest(chunk_BL.tolist()),
            }
            self.chunks.append(Chunk(index, identity, chunk_BL.numel()))
        self._outputs = DenseOutputs(
            loaded.fingerprint, tuple(chunk.identity for chunk in self.chunks)
        )
        if compared_with is not None:
            self._compare_with(compared_with)

    @property
    def outputs(self) -> DenseOutputs:
        """What identifies the outputs that candidates are compared with."""
        return self._outputs

    def missing_outputs(self) -> list[Chunk]:
        """Return the chunks on which the dense model's outputs are not stored."""
        return [chunk for chunk in self.chunks if self._stored_reference(chunk) is None]

    def _compare_with(self, outputs: DenseOutputs) -> None:
        """Compare candidates with the stored outputs of another dense model.

        Its name becomes a part of the cache's keys, because the numbers depend on it.
        """
        own = [chunk.identity["tokens"] for chunk in self.chunks]
        if own != [identity["tokens"] for identity in outputs.chunks]:
            raise DataError("the tokenizer cuts the text into other tokens than the dense model's")
        self._outputs = outputs
        if self.missing_outputs():
            raise DataError("the outputs of the dense model are not stored")
        # All chunks were made with the same head.
        reference = self._stored_reference(self.chunks[0])
        if reference is not None and not self._measure.fits(reference, self._head):
            raise DataError(
                "its vocabulary head is not the dense model's, whose stored outputs therefore do "
                "not fit: give `kl_top` 512"
            )
        for index, chunk in enumerate(self.chunks):
            identity: Identity = {**chunk.identity, "dense": outputs.fingerprint}
            self.chunks[index] = replace(chunk, identity=identity)

    def _stored_reference(self, chunk: Chunk) -> Mapping[str, torch.Tensor] | None:
        """Return the stored reference of a chunk; None if it is not known."""
        outputs = self._outputs
        return self._references.get(outputs.fingerprint, outputs.chunks[chunk.index])

    def score(self, work: Work, forward: Forward) -> Iterator[ChunkResult]:
        """Yield the numbers of each sequence of each chunk, for each of the chunk's candidates."""
        for piece, states in self._run_chunks(work, forward):
            windows_BL = self._windows[piece.chunk.index]
            # Compare as many candidates at a time as the memory for states allows.
            for group in _groups(states, forward.max_candidates(Rows(windows_BL))):
                normed_states = self._apply_final_norm(group)
                reference = self._reference(piece.chunk, normed_states)
                if self._dense not in piece.candidates:
                    normed_states.pop(self._dense, None)
                yield from self._compare(piece.chunk, reference, normed_states)

    def _run_chunks(
        self, work: Work, forward: Forward
    ) -> Iterator[tuple[ChunkWork, Iterator[State]]]:
        """Run the candidates of each chunk, and yield their states after the last block.

        If the reference of a chunk is not known yet, the dense model is run on the chunk as one
        more candidate. Its path is the first one, so its state comes first.
        """
        pieces = [piece for piece in work if piece.candidates]
        jobs: list[tuple[Rows, list[LayerSubset]]] = []
        for piece in pieces:
            candidates = list(piece.candidates)
            if self._stored_reference(piece.chunk) is None:
                candidates.append(self._dense)
            jobs.append((Rows(self._windows[piece.chunk.index]), candidates))
        for job, states in groupby(forward.run(jobs), key=itemgetter(0)):
            yield pieces[job], ((candidate, state_BLE) for _, candidate, state_BLE in states)

    def _apply_final_norm(self, group: Sequence[State]) -> dict[LayerSubset, torch.Tensor]:
        """Apply the final norm to each candidate's state: by candidate, shape (R, E)."""
        normed_states: dict[LayerSubset, torch.Tensor] = {}
        for candidate, state_BLE in group:
            normed_states[candidate] = self._head.apply_final_norm(state_BLE.flatten(0, 1))
        return normed_states

    @torch.inference_mode()
    def _reference(
        self, chunk: Chunk, normed_states: Mapping[LayerSubset, torch.Tensor]
    ) -> Mapping[str, torch.Tensor]:
        """Return the reference of a chunk: the stored one, or one of the dense model's state."""
        known = self._stored_reference(chunk)
        if known is not None:
            return known
        reference = self._measure.reference(normed_states[self._dense], self._head)
        outputs = self._outputs
        self._references.put(outputs.fingerprint, outputs.chunks[chunk.index], reference)
        return reference

    @torch.inference_mode()
    def _compare(
        self,
        chunk: Chunk,
        reference: Mapping[str, torch.Tensor],
        normed_states: Mapping[LayerSubset, torch.Tensor],
    ) -> list[ChunkResult]:
        """Compare candidates with the dense model on a chunk."""
        windows_BL = self._windows[chunk.index]
        results: list[ChunkResult] = []
        measured = self._measure.compare(windows_BL, reference, normed_states, self._head)
        for candidate, numbers in measured.items():
            if all(map(math.isfinite, chain.from_iterable(numbers))):
                rows: list[Row] = list(numbers)
                results.append(ChunkResult(chunk, candidate, rows))
            else:
                results.append(ChunkResult(chunk, candidate, error=not_finite(candidate)))
        return results

    def items(self) -> frozenset[str]:
        """Return a digest of the tokens of each sequence."""
        digests = set()
        for windows_BL in self._windows:
            for window_L in windows_BL.tolist():
                digests.add(tokens_digest(window_L))
        return frozenset(digests)

    def metrics(self, results: Sequence[Sequence[Row]]) -> Metrics:
        """Turn the results of all chunks into metrics."""
        return self._measure.metrics(numbers_of(chain.from_iterable(results)))

    def losses(self, results: Sequence[Sequence[Row]]) -> Sequence[float]:
        """Return the loss of each sequence in the leading chunks."""
        return self._measure.losses(numbers_of(chain.from_iterable(results)))


def _groups(states: Iterable[State], size: int) -> Iterator[list[State]]:
    """Split states into groups of at most `size`, without holding more than one group."""
    states = iter(states)
    while group := list(islice(states, size)):
        yield group
