"""Time per token by the tokens of a pass, and blocks that come from host memory."""

import torch

from benchmarks.gpu_parts import matmul
from benchmarks.gpu_parts.calibration import candidate_flops, random_windows, score
from benchmarks.gpu_parts.checks import streamed_layers
from benchmarks.gpu_parts.clock import Meter
from benchmarks.gpu_parts.shapes import ModelShape, late_generation, loaded_of
from prunesearch.candidate import LayerSubset
from prunesearch.execution.batches import Rows
from prunesearch.execution.shared_forward import Forward
from prunesearch.objectives.calibration import CalibrationObjective
from prunesearch.objectives.metrics.kl import KL


def measure_curves(meter: Meter) -> None:
    """Measure both shapes."""
    for shape in (meter.big, meter.small):
        curve(meter, shape)


def curve(meter: Meter, shape: ModelShape) -> None:
    """Time a candidate of four blocks on more and more tokens, until memory is short."""
    loaded = meter.model(shape)
    forward = Forward(loaded.model, loaded.layers, state_memory=2**62)
    few = LayerSubset.of(shape.blocks, range(4, shape.blocks))
    window = meter.record.by_size(512, 512, 16)
    top = matmul.peak(meter, shape)
    found: dict[str, list[float]] = {}
    tokens, most = window, meter.record.by_size(131_072, 32_768, 64)
    while tokens <= most and 64 * tokens * shape.hidden < meter.free_bytes():
        batch = Rows(random_windows(shape, tokens, window)).on(loaded.model)

        def run(batch: Rows = batch) -> None:
            for _ in forward.run([(batch, [few])]):
                pass

        seconds = meter.seconds(run)
        share = len(few.kept) * shape.block_flops(tokens, window) / seconds / top
        found[str(tokens)] = [round(1e6 * seconds / tokens, 4), round(share, 3)]
        tokens *= 2
    meter.record.notes[f"{shape.name} microseconds per token and share of matmul, 4 blocks"] = found


def offload(meter: Meter) -> None:
    """Score a generation whose blocks come from host memory. The model cannot be used afterwards."""
    shape, record = meter.big, meter.record
    loaded = meter.model(shape)
    tokens, window, count = record.by_size((8192, 2048, 8), (8192, 2048, 2), (64, 32, 2))
    windows_BL = random_windows(shape, tokens, window)
    generation = late_generation(shape, count)
    objective = CalibrationObjective(loaded, windows_BL, KL())
    forward = Forward(loaded.model, loaded.layers, None)
    score(objective, forward, generation)
    resident = meter.seconds(lambda: score(objective, forward, generation), repeats=1, warm=0)
    block_bytes = loaded.sizes.block_params[0] * loaded.sizes.bytes_per_param
    layers = streamed_layers(loaded, meter.device, shared=record.by_size(4, 4, 2))
    streamed = Forward(loaded.model, layers, None)
    again = loaded_of(loaded.model, layers=layers)
    objective = CalibrationObjective(again, windows_BL, KL())
    score(objective, streamed, generation[:1])
    seconds = meter.seconds(lambda: score(objective, streamed, generation), repeats=1, warm=0)
    record.add("offload_seconds_resident", resident)
    record.add("offload_seconds", seconds)
    record.add("offload_slowdown", seconds / resident, "<= 1.2")
    # One candidate has too little to compute to hide the copies, so its time is theirs.
    one = generation[:1]
    alone = meter.seconds(lambda: score(objective, streamed, one), repeats=2, warm=0)
    record.add("offload_alone_seconds", alone)
    record.add("offload_alone_gb_per_second", len(one[0].kept) * block_bytes / alone / 1e9)
    share = candidate_flops(shape, one[0], tokens, window) / alone / matmul.peak(meter, shape)
    record.add("offload_alone_share_of_matmul", share)
    record.add("offload_copy_gb_per_second", _copy_rate(meter, block_bytes))
    meter.forget(shape)


def _copy_rate(meter: Meter, size: int) -> float:
    """Return the rate of one copy from pinned host memory, in GB/s."""
    host = torch.empty(size, dtype=torch.uint8, pin_memory=meter.device.type == "cuda")
    there = torch.empty(size, dtype=torch.uint8, device=meter.device)
    return size / meter.seconds(lambda: there.copy_(host, non_blocking=True)) / 1e9
