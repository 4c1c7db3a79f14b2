"""KL of candidates on calibration text: ours against plain transformers, one by one."""

from collections.abc import Sequence

import torch

from benchmarks.gpu_parts import matmul
from benchmarks.gpu_parts.clock import Meter
from benchmarks.gpu_parts.shapes import ModelShape, late_generation, random_generation
from prunesearch.candidate import LayerSubset
from prunesearch.execution.block_code import BlockCode, Compile
from prunesearch.execution.shared_forward import Forward
from prunesearch.models.loading import LoadedModel
from prunesearch.models.surgery import pruned
from prunesearch.objectives.base import ChunkWork, numbers_of
from prunesearch.objectives.calibration import CalibrationObjective
from prunesearch.objectives.metrics.kl import KL


def measure_large(meter: Meter) -> None:
    """Measure the large shape."""
    tokens, count = meter.record.by_size((16_384, 20), (8192, 4), (64, 2))
    measure(meter, meter.big, tokens, meter.record.by_size(2048, 2048, 32), count)


def measure_small(meter: Meter) -> None:
    """Measure the small shape, whose kernels are short: several chunks share a pass."""
    tokens, count = meter.record.by_size((65_536, 20), (32_768, 4), (64, 2))
    measure(meter, meter.small, tokens, meter.record.by_size(512, 512, 32), count, 32_768)


def measure_compiled(meter: Meter) -> None:
    """Measure compiled blocks against the model's own code, on both shapes."""
    for shape in (meter.big, meter.small):
        tokens, window = meter.record.by_size((16_384, 512), (8192, 512), (64, 32))
        count = meter.record.by_size(8, 4, 2)
        _compiled(meter, shape, random_windows(shape, tokens, window), count)


def _compiled(meter: Meter, shape: ModelShape, windows_BL: torch.Tensor, count: int) -> None:
    """Time a generation with compiled blocks and without."""
    record, loaded, name = meter.record, meter.model(shape), f"{shape.name}_compiled"
    objective = CalibrationObjective(loaded, windows_BL, KL())
    generation = late_generation(shape, count)
    own = Forward(loaded.model, loaded.layers, None)
    # A compiler is tried where it is meant to be used.
    mode: Compile = "on" if meter.device.type == "cuda" else "auto"
    code = BlockCode(mode)
    fast = Forward(loaded.model, loaded.layers, None, code=code)
    expected = score(objective, own, generation)
    found = score(objective, fast, generation)
    differences = [abs(found[c] / expected[c] - 1) for c in generation]
    record.add(f"{name}_largest_relative_difference", max(differences), "<= 0.02")
    record.notes[f"{name} blocks run"] = code.name
    record.add(f"{name}_compile_seconds", code.seconds)
    plain = meter.seconds(lambda: score(objective, own, generation), repeats=2, warm=0)
    seconds = meter.seconds(lambda: score(objective, fast, generation), repeats=2, warm=0)
    record.add(f"{name}_seconds_per_candidate", seconds / count)
    record.add(f"{name}_speedup", plain / seconds)
    record.notes[f"{name} tokens of a pass"] = own.pass_tokens


def measure(
    meter: Meter, shape: ModelShape, tokens: int, window: int, count: int, plain_tokens: int = 8192
) -> None:
    """Measure one candidate alone, and generations of a search.

    Args:
        meter: the run.
        shape: shape of the model.
        tokens: tokens of the calibration text.
        window: tokens of a sequence.
        count: candidates of a generation.
        plain_tokens: tokens of a pass of plain transformers.
    """
    record, loaded = meter.record, meter.model(shape)
    top = matmul.peak(meter, shape)
    windows_BL = random_windows(shape, tokens, window)
    objective = CalibrationObjective(loaded, windows_BL, KL())
    forward = Forward(loaded.model, loaded.layers, None)
    populations = {
        "random": random_generation(shape, count),
        "late": late_generation(shape, count),
    }
    alone = populations["late"][:1]
    dense_seconds = meter.seconds(lambda: score(objective, forward, alone), repeats=1, warm=0)
    record.add(f"{shape.name}_kl_first_seconds", dense_seconds)
    meter.memory_peak(f"{shape.name}_kl_first")
    # One candidate alone: all of its arithmetic is its own.
    own_flops = candidate_flops(shape, alone[0], tokens, window)
    ours = meter.seconds(lambda: score(objective, forward, alone))
    name = f"{shape.name}_kl_alone"
    record.add(f"{name}_seconds", ours)
    record.add(f"{name}_tokens_per_second", tokens / ours)
    record.add(f"{name}_share_of_matmul", own_flops / ours / top, ">= 0.5")
    # The model's own code, and the comparison of whole logits.
    plain = Plain(loaded, plain_windows(meter, windows_BL, plain_tokens))
    record.notes[f"{shape.name} tokens of a pass"] = forward.pass_tokens
    plain_seconds = meter.seconds(lambda: plain.kl(alone[0]), repeats=2)
    record.add(f"{name}_seconds_plain", plain_seconds)
    record.add(f"{name}_speedup", plain_seconds / ours, ">= 2")
    record.add(f"{name}_plain_share_of_matmul", own_flops / plain_seconds / top)
    meter.memory_peak(f"{shape.name}_kl_plain")
    for kind, population in populations.items():
        if meter.left < 2 * count * plain_seconds:
            record.notes[f"{shape.name} {kind}"] = "no time was left"
            continue
        _generation(meter, f"{shape.name}_kl_{kind}", objective, forward, plain, population)
    meter.memory_peak(f"{shape.name}_kl_generation")


def _generation(
    meter: Meter,
    name: str,
    objective: CalibrationObjective,
    forward: Forward,
    plain: "Plain",
    population: Sequence[LayerSubset],
) -> None:
    """Time a generation together and one by one, and compare the values."""
    record = meter.record
    found: dict[LayerSubset, float] = {}
    before = forward.work_counter.computed, forward.work_counter.separate
    ours = meter.seconds(
        lambda: found.update(score(objective, forward, population)), repeats=2, warm=1
    )
    computed = forward.work_counter.computed - before[0]
    separate = forward.work_counter.separate - before[1]
    expected: dict[LayerSubset, float] = {}

    def one_by_one() -> None:
        for candidate in population:
            expected[candidate] = plain.kl(candidate)

    plain_seconds = meter.seconds(one_by_one, repeats=1, warm=0)
    record.add(f"{name}_seconds_per_candidate", ours / len(population))
    record.add(f"{name}_seconds_per_candidate_plain", plain_seconds / len(population))
    record.add(f"{name}_speedup", plain_seconds / ours, ">= 2.5")
    record.add(f"{name}_block_forwards_saved", 1 - computed / separate)
    differences = []
    for candidate in population:
        differences.append(abs(found[candidate] / expected[candidate] - 1))
    record.add(f"{name}_largest_relative_difference", max(differences), "<= 0.02")


def random_windows(shape: ModelShape, tokens: int, window: int) -> torch.Tensor:
    """Return random token ids, shape (B, L)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(shape.vocabulary, (tokens // window, window), generator=generator)


def plain_windows(meter: Meter, windows_BL: torch.Tensor, tokens: int) -> list[torch.Tensor]:
    """Cut windows into the passes of plain transformers."""
    most = max(1, tokens // windows_BL.shape[1])
    return [part_BL.to(meter.device) for part_BL in torch.split(windows_BL, most)]


def candidate_flops(shape: ModelShape, candidate: LayerSubset, tokens: int, window: int) -> float:
    """Return the operations that a candidate's products need: its blocks and the head."""
    return len(candidate.kept) * shape.block_flops(tokens, window) + shape.head_flops(tokens)


def score(
    objective: CalibrationObjective, forward: Forward, candidates: Sequence[LayerSubset]
) -> dict[LayerSubset, float]:
    """Score candidates on all chunks, and return the KL of each."""
    rows: dict[LayerSubset, dict[int, list[list[float]]]] = {c: {} for c in candidates}
    work = [ChunkWork(chunk, candidates) for chunk in objective.chunks]
    for result in objective.score(work, forward):
        if result.error is not None:
            raise result.error
        rows[result.candidate][result.chunk.index] = numbers_of(result.rows)
    values = {}
    for candidate, chunks in rows.items():
        ordered = [list(chunks[index]) for index in sorted(chunks)]
        values[candidate] = objective.metrics(ordered).values["kl"]
    return values


class Plain:
    """The KL of candidates by the model's own code and whole logits in float32.

    The dense model's log-probabilities are computed once and kept, if they fit.
    """

    def __init__(self, loaded: LoadedModel, windows: Sequence[torch.Tensor]) -> None:
        self._model, self._windows = loaded.model, windows
        self._dense: dict[int, torch.Tensor] = {}

    @torch.inference_mode()
    def kl(self, candidate: LayerSubset) -> float:
        """Return the mean KL of a candidate in nats per token."""
        total, tokens = 0.0, 0
        for index, windows_BL in enumerate(self._windows):
            if index not in self._dense:
                logits_BLV = self._pass(windows_BL)
                self._dense[index] = torch.log_softmax(logits_BLV.float(), dim=-1)
            log_p_BLV = self._dense[index]
            with pruned(self._model, candidate):
                logits_BLV = self._pass(windows_BL)
            log_q_BLV = torch.log_softmax(logits_BLV.float(), dim=-1)
            kl_BL = (log_p_BLV.exp() * (log_p_BLV - log_q_BLV)).sum(-1)
            total += float(kl_BL.double().sum())
            tokens += kl_BL.numel()
        return total / tokens

    def _pass(self, windows_BL: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._model(input_ids=windows_BL, use_cache=False).logits
        return logits
