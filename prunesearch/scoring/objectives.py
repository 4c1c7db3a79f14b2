"""What an objective is, and the two that need only text: KL to the dense model, and perplexity.

An objective splits its data into chunks, scores a candidate on one chunk at a time (that result is what the store
keeps), and turns all chunks' results into metrics. Names of shapes: B sequences, L tokens each, V vocabulary.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import transformers
from transformers import PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.errors import ScoringError
from prunesearch.model.anatomy import input_device
from prunesearch.model.loading import LoadedModel
from prunesearch.model.surgery import pruned

SCORING_VERSION = 1
"""Raised whenever a change of this package may change a stored number."""

CHUNK_TOKENS = 1024
_ROWS = 64  # rows of logits in float32 at a time: fits the cache, twice as fast as 2,048 (measured on 2 cores)


@dataclass(frozen=True)
class Chunk:
    """A piece of an objective's data.

    Attributes:
        index: its place among the objective's chunks.
        identity: what is scored and how, as JSON values; with weights and candidate it makes the store's key.
    """

    index: int
    identity: dict[str, Any]


@dataclass(frozen=True)
class Metrics:
    """Values and standard errors by metric name."""

    values: dict[str, float]
    stderr: dict[str, float]


class Objective(Protocol):
    """Scores candidates of one model on fixed data."""

    metric: str
    """The metric that the search improves."""
    maximize: bool
    """Whether more of the metric is better."""
    digest: str
    """Digest of the data, for the study's identity."""

    @property
    def chunks(self) -> Sequence[Chunk]:
        """The pieces of the data, in order."""
        ...

    def score(self, candidate: LayerSubset, chunk: Chunk) -> list[Any]:
        """Score one chunk: a list of JSON values, one per sequence or request.

        Raises:
            ScoringError: the numbers are not finite.
        """
        ...

    def metrics(self, results: Sequence[list[Any]]) -> Metrics:
        """Turn the results of all chunks into metrics."""
        ...


class CalibrationObjective:
    """KL divergence to the dense model and cross-entropy, on fixed windows of tokens.

    Per sequence it stores the sum of KL(dense || pruned) over all L positions, full vocabulary, in nats; the sum of
    the negative log-likelihood of the L - 1 tokens that have a predecessor; and L. Both metrics come from the same
    entries, so a search for one finds the other's in the store.

    Args:
        loaded: the dense model.
        windows_BL: token ids, shape (B, L).
        metric: ``kl`` or ``perplexity``; both are reported, this one is searched.
    """

    maximize = False

    def __init__(self, loaded: LoadedModel, windows_BL: torch.Tensor, metric: str = "kl") -> None:
        self.metric = metric
        self._model = loaded.model
        self._windows = torch.split(windows_BL, max(1, CHUNK_TOKENS // windows_BL.shape[1]))
        self._dense_logits: dict[int, torch.Tensor] = {}
        numerics = numerics_of(loaded.model)
        self.digest = tokens_digest(windows_BL.tolist())
        self.chunks = [
            Chunk(
                index,
                {
                    "kind": "calibration",
                    "version": SCORING_VERSION,
                    "numerics": numerics,
                    "tokens": tokens_digest(chunk_BL.tolist()),
                },
            )
            for index, chunk_BL in enumerate(self._windows)
        ]

    @torch.inference_mode()
    def score(self, candidate: LayerSubset, chunk: Chunk) -> list[Any]:
        """Return ``[kl_sum, nll_sum, tokens]`` per sequence of the chunk.

        Raises:
            ScoringError: the model's output is not finite.
        """
        ids_BL = self._windows[chunk.index].to(input_device(self._model))
        dense_BLV = self._dense(chunk.index, ids_BL)
        with pruned(self._model, candidate):
            logits_BLV = self._model(input_ids=ids_BL, use_cache=False).logits
        rows = []
        for ids_L, dense_LV, logits_LV in zip(ids_BL, dense_BLV, logits_BLV, strict=True):
            kl, nll = _divergence(dense_LV, logits_LV, ids_L)
            if not (math.isfinite(kl) and math.isfinite(nll)):
                raise ScoringError(f"dropping layers {candidate.text} makes the model's output not finite")
            rows.append([kl, nll, len(ids_L)])
        return rows

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
            return Metrics(values, {})
        kl_error, nll_error = (float(x_B.std() / math.sqrt(len(rows))) for x_B in (kl_B, nll_B))
        return Metrics(
            values,
            # d exp(x) = exp(x) dx
            {"kl": kl_error, "cross_entropy": nll_error, "perplexity": perplexity * nll_error},
        )

    def _dense(self, index: int, ids_BL: torch.Tensor) -> torch.Tensor:
        if index not in self._dense_logits:
            self._dense_logits[index] = self._model(input_ids=ids_BL, use_cache=False).logits
        return self._dense_logits[index]


def _divergence(dense_LV: torch.Tensor, logits_LV: torch.Tensor, ids_L: torch.Tensor) -> tuple[float, float]:
    """Sum over one sequence of KL(dense || pruned) and of the pruned model's negative log-likelihood, in float32."""
    kl = nll = 0.0
    next_L = torch.cat([ids_L[1:], ids_L[:1]])  # the last position predicts nothing; it is masked below
    for start in range(0, len(ids_L), _ROWS):
        rows = slice(start, start + _ROWS)
        log_p = torch.log_softmax(dense_LV[rows].float(), dim=-1)
        log_q = torch.log_softmax(logits_LV[rows].float(), dim=-1)
        kl += float(torch.nn.functional.kl_div(log_q, log_p, reduction="sum", log_target=True))
        scored = log_q.gather(1, next_L[rows, None])[:, 0]
        last = start + _ROWS >= len(ids_L)
        nll -= float(scored[:-1].sum() if last else scored.sum())
    return kl, nll


def numerics_of(model: PreTrainedModel) -> dict[str, str]:
    """The class of arithmetic that a result was computed in; results of different classes are kept apart."""
    return {
        "attention": str(model.config._attn_implementation),
        "device": input_device(model).type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "torch": _minor(torch.__version__),
        "transformers": _minor(transformers.__version__),
    }


def _minor(version: str) -> str:
    """Major and minor part: a patch release changes no number on purpose."""
    return ".".join(version.split("+")[0].split(".")[:2])


def tokens_digest(sequences: Sequence[Any]) -> str:
    """Digest nested lists of token ids."""
    return hashlib.sha256(repr(sequences).replace(" ", "").encode()).hexdigest()
