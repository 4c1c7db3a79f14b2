"""Objectives on calibration text: KL to the dense model, and perplexity.

Shapes: B sequences of L tokens, R rows, V vocabulary.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, groupby, islice
from operator import itemgetter

import torch

from prunesearch.candidate import LayerSubset
from prunesearch.execution.batches import CHUNK_TOKENS, Rows
from prunesearch.execution.shared_forward import HEAD_ROWS, Forward, Head
from prunesearch.models.loading import LoadedModel
from prunesearch.models.structure import blocks_of, input_device
from prunesearch.objectives.base import (
    Chunk,
    ChunkResult,
    Identity,
    Metrics,
    Row,
    Work,
    not_finite,
    numbers_of,
)
from prunesearch.objectives.calibration_data import check_fits
from prunesearch.objectives.identity import SCORING_VERSION, numerics_of, tokens_digest
from prunesearch.objectives.reference_logits import Reference, ReferenceLogitsCache

# Rows of float32 logits at a time. They fit the cache: twice as fast as 2,048 on 2 cores.
_ROWS = 64


class CalibrationObjective:
    """KL divergence to the dense model and cross-entropy, on fixed windows of tokens.

    Three numbers are stored per sequence: the sum of KL(dense || pruned) over all L positions in
    nats, the sum of the negative log-likelihood of the L - 1 tokens that have a predecessor, and L.
    Both metrics are computed from the same entries, so a search for one metric reuses the entries
    of a search for the other.

    Args:
        loaded: the dense model.
        windows_BL: token ids, shape (B, L).
        metric: ``kl`` or ``perplexity``. Both are reported, and this one is searched.
        top_k: number of tokens that the KL distinguishes: the dense model's `top_k` likeliest
            tokens, and one tail bucket for the rest. The result is a lower bound of the full KL
            (data processing inequality), and its reference is thousands of times smaller. None: the
            full vocabulary.
        references: store of the dense model's reference logits. Default: in memory.
        chunk_tokens: tokens of a chunk. Default: by device.
    """

    maximize = False

    def __init__(
        self,
        loaded: LoadedModel,
        windows_BL: torch.Tensor,
        metric: str = "kl",
        top_k: int | None = None,
        references: ReferenceLogitsCache | None = None,
        chunk_tokens: int | None = None,
    ) -> None:
        check_fits(loaded.model, windows_BL)
        self.metric = metric
        self._model = loaded.model
        self._head = Head(loaded.model)
        self._references = references or ReferenceLogitsCache(None)
        self._fingerprint = loaded.fingerprint
        self._top_k = top_k
        self.digest = tokens_digest(windows_BL.tolist())
        self.settings: Mapping[str, str | int] = {}
        # Cut the windows into chunks of about `chunk_tokens` tokens.
        device = input_device(loaded.model)
        per_chunk = max(
            1, (chunk_tokens or CHUNK_TOKENS.get(device.type, 1024)) // windows_BL.shape[1]
        )
        self._windows = [chunk_BL.to(device) for chunk_BL in torch.split(windows_BL, per_chunk)]
        # Describe each chunk. These values are part of the store's keys.
        numerics = numerics_of(loaded.model)
        kind = "calibration" if top_k is None else f"calibration top {top_k}"
        self.chunks: list[Chunk] = []
        for index, chunk_BL in enumerate(self._windows):
            identity: Identity = {
                "kind": kind,
                "version": SCORING_VERSION,
                "numerics": numerics,
                "tokens": tokens_digest(chunk_BL.tolist()),
            }
            self.chunks.append(Chunk(index, identity, chunk_BL.numel()))

    def score(self, work: Work, forward: Forward) -> Iterator[ChunkResult]:
        """Yield ``[kl_sum, nll_sum, tokens]`` per sequence of each chunk, for each of its
        candidates.

        If the reference logits of a chunk are not known yet, the dense model is run on it as one
        more candidate.
        """
        dense = LayerSubset.of(len(blocks_of(self._model)))
        # Prepare one job per chunk: its token ids and its candidates.
        chunks: list[Chunk] = []
        wanted: list[set[LayerSubset]] = []
        references: dict[int, Reference | None] = {}
        jobs: list[tuple[Rows, list[LayerSubset]]] = []
        for piece in work:
            chunk = piece.chunk
            if not piece.candidates:
                continue
            asked = set(piece.candidates)
            reference = self._references.get(self._fingerprint, chunk.identity)
            members = list(asked)
            if reference is None:
                members.append(dense)
            chunks.append(chunk)
            wanted.append(asked)
            references[chunk.index] = reference
            jobs.append((Rows(self._windows[chunk.index]), members))

        # Run the jobs, and compare as many candidates at a time as the memory for states allows.
        for job, states in groupby(forward.run(jobs), key=itemgetter(0)):
            chunk, batch = chunks[job], jobs[job][0]
            while lot := list(islice(states, forward.max_candidates(batch))):
                finished = self._finish(lot)
                # The dense model's path is the first one, so it is in the first group.
                reference = references[chunk.index]
                if reference is None:
                    reference = references[chunk.index] = self._reference(chunk, finished[dense])
                if dense not in wanted[job]:
                    finished.pop(dense, None)
                yield from self._compare(chunk, reference, finished)

    def _finish(
        self, lot: Sequence[tuple[int, LayerSubset, torch.Tensor]]
    ) -> dict[LayerSubset, torch.Tensor]:
        """Apply the final norm to each candidate's state: by candidate, shape (R, E)."""
        finished: dict[LayerSubset, torch.Tensor] = {}
        for _, candidate, state_BLE in lot:
            finished[candidate] = self._head.apply_final_norm(state_BLE.flatten(0, 1))
        return finished

    def _reference(self, chunk: Chunk, finished_RE: torch.Tensor) -> Reference:
        """Compute the reference logits of a chunk from the dense model's state, and store them."""
        blocks = (self._head.logits(rows_RE) for rows_RE in torch.split(finished_RE, _ROWS))
        reference = Reference.of(blocks, self._top_k)
        self._references.put(self._fingerprint, chunk.identity, reference)
        return reference

    @torch.inference_mode()
    def _compare(
        self, chunk: Chunk, reference: Reference, finished: Mapping[LayerSubset, torch.Tensor]
    ) -> Iterator[ChunkResult]:
        """Compare candidates with the dense model in blocks of rows.

        The dense distribution of a block of rows is computed once and used for all candidates.
        """
        ids_BL = self._windows[chunk.index]
        # The token that each row predicts. The last position of a sequence predicts nothing, and
        # its value is left out of the sums below.
        next_R = torch.cat([ids_BL[:, 1:], ids_BL[:, :1]], dim=1).flatten()
        kl_R = {c: torch.empty(len(next_R), device=ids_BL.device) for c in finished}
        nll_R = {c: torch.empty(len(next_R), device=ids_BL.device) for c in finished}
        step = HEAD_ROWS.get(ids_BL.device.type, HEAD_ROWS["cpu"])
        # Per row: the divergence from the dense model, and the negative log-likelihood.
        for start in range(0, len(next_R), step):
            every = slice(start, min(start + step, len(next_R)))
            parts = [
                slice(first, min(first + _ROWS, every.stop))
                for first in range(start, every.stop, _ROWS)
            ]
            dense = [reference.rows(rows, ids_BL.device) for rows in parts]
            for candidate, finished_RE in finished.items():
                logits = torch.split(self._head.logits(finished_RE[every]), _ROWS)
                for rows, dense_rows, logits_RV in zip(parts, dense, logits, strict=True):
                    log_q_RV = torch.log_softmax(logits_RV, dim=-1, dtype=torch.float32)
                    kl_R[candidate][rows] = dense_rows.divergence(log_q_RV)
                    nll_R[candidate][rows] = -log_q_RV.gather(1, next_R[rows, None])[:, 0]
        # Per sequence: the sums over its positions.
        for candidate in finished:
            kl_B = kl_R[candidate].view(ids_BL.shape).double().sum(1).tolist()
            nll_B = nll_R[candidate].view(ids_BL.shape)[:, :-1].double().sum(1).tolist()
            if all(map(math.isfinite, (*kl_B, *nll_B))):
                length = ids_BL.shape[1]
                row_of: list[Row] = []
                for kl, nll in zip(kl_B, nll_B, strict=True):
                    row_of.append([kl, nll, length])
                yield ChunkResult(chunk, candidate, row_of)
            else:
                yield ChunkResult(chunk, candidate, error=not_finite(candidate))

    def metrics(self, results: Sequence[Sequence[Row]]) -> Metrics:
        """Return ``kl`` and ``cross_entropy`` in nats per token, and ``perplexity``.

        The standard errors are those of the mean over sequences.
        """
        rows = torch.tensor(numbers_of(chain.from_iterable(results)), dtype=torch.float64)
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
        kl_error = float(kl_B.std() / math.sqrt(len(rows)))
        nll_error = float(nll_B.std() / math.sqrt(len(rows)))
        # The error of perplexity = exp(cross_entropy) follows from d exp(x) = exp(x) dx.
        errors = {"kl": kl_error, "cross_entropy": nll_error, "perplexity": perplexity * nll_error}
        return Metrics(values, errors)

    def losses(self, results: Sequence[Sequence[Row]]) -> Sequence[float]:
        """Return the searched loss of each sequence in nats per token: KL, or cross-entropy for
        perplexity.
        """
        rows = numbers_of(chain.from_iterable(results))
        if self.metric == "kl":
            return [kl / n for kl, _, n in rows]
        return [nll / (n - 1) for _, nll, n in rows]
