"""The rate of matrix products, which every other figure is a share of."""

import torch

from benchmarks.gpu_parts.clock import Meter
from benchmarks.gpu_parts.shapes import ModelShape


def measure(meter: Meter) -> None:
    """Measure a square product, and the products of the models' own shapes."""
    side = meter.record.by_size(8192, 8192, 64)
    square = _rate(meter, side, side, side)
    meter.record.add("matmul_square_tflops", square / 1e12)
    for shape in (meter.big, meter.small):
        measure_shape(meter, shape)


def measure_shape(meter: Meter, shape: ModelShape) -> None:
    """Measure the products of one shape."""
    tokens = meter.record.by_size(8192, 8192, 64)
    seconds = flops = 0.0
    for inputs, outputs, count in shape.products:
        rate = _rate(meter, tokens, inputs, outputs)
        work = 2.0 * tokens * inputs * outputs * count
        flops += work
        seconds += work / rate
        meter.record.notes[f"{shape.name} {inputs} to {outputs}, TFLOP/s"] = round(rate / 1e12, 1)
    meter.peaks[shape.name] = flops / seconds
    meter.record.add(f"{shape.name}_matmul_tflops", flops / seconds / 1e12)
    rows = meter.record.by_size(2048, 2048, 64)
    head = _rate(meter, rows, shape.hidden, shape.vocabulary)
    meter.record.add(f"{shape.name}_head_tflops", head / 1e12)


def peak(meter: Meter, shape: ModelShape) -> float:
    """Return the rate of a shape's products, which is measured if it has not been."""
    if shape.name not in meter.peaks:
        measure_shape(meter, shape)
    return meter.peaks[shape.name]


def _rate(meter: Meter, tokens: int, inputs: int, outputs: int) -> float:
    """Return the operations per second of a product of random numbers."""
    x_TI = torch.randn(tokens, inputs, device=meter.device, dtype=torch.bfloat16)
    weight_OI = torch.randn(outputs, inputs, device=meter.device, dtype=torch.bfloat16)
    calls = meter.record.by_size(10, 10, 1)

    def multiply() -> None:
        for _ in range(calls):
            torch.nn.functional.linear(x_TI, weight_OI)

    return 2.0 * tokens * inputs * outputs * calls / meter.seconds(multiply)
