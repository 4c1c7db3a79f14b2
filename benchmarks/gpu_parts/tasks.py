"""HellaSwag: ours against lm-eval; without lm-eval or documents, against the loop that it runs."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.gpu_parts import matmul
from benchmarks.gpu_parts.clock import Meter
from benchmarks.gpu_parts.shapes import ModelShape, late_generation
from prunesearch.candidate import LayerSubset
from prunesearch.execution.batches import TASK_BATCH_TOKENS
from prunesearch.execution.head import Head
from prunesearch.execution.shared_forward import Forward
from prunesearch.models.loading import LoadedModel
from prunesearch.objectives.loglikelihood import (
    LogLikelihood,
    Request,
    ScoredBatch,
    inputs_of,
    lay_out_trees,
)

CONTEXT_TOKENS = (62.0, 26.0)
"""Mean and standard deviation of a HellaSwag context, in tokens of a vocabulary of 49,152."""
ENDING_TOKENS = (27.0, 13.0)
CHUNK_REQUESTS = 256


def measure_large(meter: Meter) -> None:
    """Measure the large shape."""
    measure(meter, meter.big)


def measure_small(meter: Meter) -> None:
    """Measure the small shape."""
    measure(meter, meter.small)


def measure(meter: Meter, shape: ModelShape) -> None:
    """Measure the dense model and a late generation."""
    documents = meter.record.by_size(200, 100, 4)
    generation = late_generation(shape, meter.record.by_size(16, 4, 2))
    # A smoke run tries both ways.
    loop = meter.record.size == "smoke" and shape is meter.small
    if meter.data is not None and meter.tokenizer is not None and _has_lm_eval() and not loop:
        meter.record.notes[f"{shape.name} tasks"] = "HellaSwag, against lm-eval"
        _against_lm_eval(meter, shape, documents, generation)
    else:
        meter.record.notes[f"{shape.name} tasks"] = (
            "requests of HellaSwag's lengths, against a plain loop that computes what lm-eval does"
        )
        _against_loop(meter, shape, documents, generation)
    meter.memory_peak(f"{shape.name}_hellaswag")


def _has_lm_eval() -> bool:
    return importlib.util.find_spec("lm_eval") is not None


def _against_lm_eval(
    meter: Meter, shape: ModelShape, documents: int, generation: Sequence[LayerSubset]
) -> None:
    """Score documents with lm-eval and with an engine."""
    from benchmarks.scoring import engine_seconds
    from benchmarks.support.stock_lm_eval import stock_hellaswag
    from prunesearch.objectives.task import TaskObjective

    assert meter.data is not None
    record, loaded, name = meter.record, meter.model(shape), f"{shape.name}_hellaswag"
    objective = TaskObjective(loaded, "hellaswag", data=str(meter.data), limit=documents)
    dense = [LayerSubset.of(shape.blocks)]
    # Warm both up on few documents, and find the best batch size of lm-eval.
    few = min(documents, 24)
    tried = {}
    for size in record.by_size((32, 64, 128), (64,), (4,)):
        stock_hellaswag(loaded, meter.data, 4, size)
        tried[size] = stock_hellaswag(loaded, meter.data, few, size).seconds
    best = min(tried, key=lambda size: tried[size])
    record.notes[f"{name} batch size of lm-eval"] = best
    theirs = stock_hellaswag(loaded, meter.data, documents, best)
    engine_seconds(loaded, objective, dense)
    seconds, (ours,) = engine_seconds(loaded, objective, dense)
    record.add(f"{name}_acc_norm_difference", abs(ours["acc_norm"] - theirs.metrics["acc_norm"]))
    pieces = objective.laid_out()
    _add_dense(meter, shape, pieces, seconds, theirs.seconds)
    late, _ = engine_seconds(loaded, objective, generation)
    record.add(f"{name}_late_seconds_per_candidate", late / len(generation))
    # lm-eval's time of a candidate is taken from its share of blocks.
    share = _candidate_share(shape, pieces, generation)
    record.notes[f"{name} share of the dense model's products"] = round(share, 3)
    record.add(f"{name}_late_speedup", theirs.seconds * share * len(generation) / late, ">= 4")


def _against_loop(
    meter: Meter, shape: ModelShape, documents: int, generation: Sequence[LayerSubset]
) -> None:
    """Score requests of HellaSwag's lengths with a plain batched loop and with ours."""
    record, loaded, name = meter.record, meter.model(shape), f"{shape.name}_hellaswag"
    requests = made_up_requests(shape, documents)
    dense = [LayerSubset.of(shape.blocks)]
    scorer = RequestScorer.of(loaded, requests)
    expected: list[LogLikelihood] = []

    def loop() -> None:
        expected[:] = plain_loop(loaded, requests, 64)

    loop_seconds = meter.seconds(loop, repeats=1)
    answers: dict[LayerSubset, list[LogLikelihood]] = {}
    seconds = meter.seconds(lambda: answers.update(scorer.score(dense)), repeats=2)
    away = np.abs([a[0] - b[0] for a, b in zip(answers[dense[0]], expected, strict=True)])
    record.add(f"{name}_mean_difference", float(away.mean()))
    record.add(f"{name}_largest_difference", float(away.max()))
    _add_dense(meter, shape, scorer.batches, seconds, loop_seconds)
    late = meter.seconds(lambda: scorer.score(generation), repeats=1, warm=0)
    record.add(f"{name}_late_seconds_per_candidate", late / len(generation))
    share = _candidate_share(shape, scorer.batches, generation)
    record.add(f"{name}_late_speedup", loop_seconds * share * len(generation) / late, ">= 4")


def _add_dense(
    meter: Meter,
    shape: ModelShape,
    batches: Sequence[ScoredBatch],
    seconds: float,
    other_seconds: float,
) -> None:
    """Record the figures of the dense model."""
    record, name = meter.record, f"{shape.name}_hellaswag"
    tokens = sum(batch.batch.tokens for batch in batches)
    record.add(f"{name}_passes", len(batches))
    record.add(f"{name}_tokens_read", tokens)
    record.add(f"{name}_dense_seconds", seconds)
    record.add(f"{name}_dense_seconds_lm_eval", other_seconds)
    record.add(f"{name}_dense_speedup", other_seconds / seconds, ">= 4")
    record.add(f"{name}_dense_tokens_per_second", tokens / seconds)
    flops = _flops(shape, batches, shape.blocks)
    record.add(f"{name}_dense_share_of_matmul", flops / seconds / matmul.peak(meter, shape))


def _flops(shape: ModelShape, batches: Sequence[ScoredBatch], blocks: float) -> float:
    """Return the operations of the matrices that read the batches."""
    tokens = sum(batch.batch.tokens for batch in batches)
    rows = sum(len(batch.rows_R) for batch in batches)
    return blocks * shape.block_flops(tokens, 80) + shape.head_flops(rows)


def _candidate_share(
    shape: ModelShape, batches: Sequence[ScoredBatch], generation: Sequence[LayerSubset]
) -> float:
    """Return the operations of a candidate as a share of the dense model's."""
    blocks = sum(len(candidate.kept) for candidate in generation) / len(generation)
    return _flops(shape, batches, blocks) / _flops(shape, batches, shape.blocks)


def made_up_requests(shape: ModelShape, documents: int) -> list[Request]:
    """Return requests with HellaSwag's lengths: four endings for each context."""
    rng = np.random.default_rng(0)
    requests: list[Request] = []
    for _ in range(documents):
        length = int(np.clip(rng.normal(*CONTEXT_TOKENS), 10, 160))
        context = rng.integers(shape.vocabulary, size=length).tolist()
        for _ in range(4):
            ending = int(np.clip(rng.normal(*ENDING_TOKENS), 3, 80))
            requests.append((context, rng.integers(shape.vocabulary, size=ending).tolist()))
    return requests


@dataclass(frozen=True)
class RequestScorer:
    """Scores requests without lm-eval.

    Attributes:
        loaded: the dense model.
        batches: token trees of the requests.
        requests: number of requests.
    """

    loaded: LoadedModel
    batches: list[ScoredBatch]
    requests: int

    @classmethod
    def of(cls, loaded: LoadedModel, requests: Sequence[Request]) -> "RequestScorer":
        """Lay requests out as token trees."""
        budget = TASK_BATCH_TOKENS[loaded.model.device.type]
        trees = lay_out_trees(requests, inputs_of(requests, 8192), budget)
        return cls(loaded, [tree.on(loaded.model) for tree in trees], len(requests))

    def score(self, candidates: Sequence[LayerSubset]) -> dict[LayerSubset, list[LogLikelihood]]:
        """Return the answers of each candidate, in the order of the requests."""
        forward, head = (
            Forward(self.loaded.model, self.loaded.layers, None),
            Head(self.loaded.model),
        )
        found: dict[LayerSubset, dict[int, LogLikelihood]] = {c: {} for c in candidates}
        jobs = [(batch.batch, candidates) for batch in self.batches]
        for job, candidate, state_BLE in forward.run(jobs):
            found[candidate].update(self.batches[job].answers(head, state_BLE))
        answers = {}
        for candidate in candidates:
            answers[candidate] = [found[candidate][i] for i in range(self.requests)]
        return answers


@torch.inference_mode()
def plain_loop(
    loaded: LoadedModel, requests: Sequence[Request], batch_size: int
) -> list[LogLikelihood]:
    """Answer requests as lm-eval does: sorted by length, padded, all logits, one by one at the end.

    lm-eval keeps one request of those with the same context and ending of one token only, so it
    reads each of HellaSwag's.
    """
    model = loaded.model
    order = sorted(range(len(requests)), key=lambda i: -sum(map(len, requests[i])))
    answers: dict[int, LogLikelihood] = {}
    for start in range(0, len(order), batch_size):
        members = order[start : start + batch_size]
        width = sum(map(len, requests[members[0]])) - 1
        ids_BL = torch.zeros(len(members), width, dtype=torch.int64)
        for row, i in enumerate(members):
            tokens = [*requests[i][0], *requests[i][1]][:-1]
            ids_BL[row, : len(tokens)] = torch.tensor(tokens)
        logits_BLV = model(input_ids=ids_BL.to(model.device), use_cache=False).logits
        log_p_BLV = torch.log_softmax(logits_BLV, dim=-1)
        for row, i in enumerate(members):
            context, ending = requests[i]
            first, target = len(context) - 1, torch.tensor(ending, device=model.device)
            log_p_RV = log_p_BLV[row, first : first + len(ending)]
            greedy = bool((log_p_RV.argmax(-1) == target).all())
            answers[i] = float(log_p_RV.gather(1, target[:, None]).sum()), greedy
    return [answers[i] for i in range(len(requests))]
