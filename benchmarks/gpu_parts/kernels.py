"""The kernels that scoring chooses between, at the shapes of the large model.

Reading of the vocabulary head: products, and the logsumexp of their rows. Attention: causal
windows, and token trees with masks. One block: eager, compiled, and as a CUDA graph.
"""

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.gpu_parts.calibration import random_windows
from benchmarks.gpu_parts.clock import Meter
from benchmarks.gpu_parts.shapes import ModelShape
from benchmarks.gpu_parts.tasks import made_up_requests
from prunesearch.execution.batches import Rows
from prunesearch.execution.block_code import run_block
from prunesearch.execution.shared_forward import Forward
from prunesearch.execution.token_trees import Tree
from prunesearch.models.structure import blocks_of
from prunesearch.objectives.loglikelihood import inputs_of, lay_out_trees


def measure(meter: Meter) -> None:
    """Measure the kernels."""
    measure_head(meter, meter.big)
    measure_attention(meter, meter.big)
    for shape in (meter.big, meter.small):
        measure_block(meter, shape)


def _random(meter: Meter, *size: int) -> torch.Tensor:
    """Return random numbers in bfloat16 on the device."""
    return torch.randn(size, device=meter.device, dtype=torch.bfloat16)


def _noted(meter: Meter, name: str, work: Callable[[], object]) -> None:
    """Record the milliseconds of a piece of work; the reason, if it does not run here."""
    try:
        meter.record.add(f"{name}_ms", 1000 * meter.seconds(work, repeats=5))
    except (RuntimeError, ValueError, TypeError, ImportError) as error:
        meter.record.notes[name] = f"{type(error).__name__}: {str(error)[:200]}"
        if meter.device.type == "cuda":
            torch.cuda.empty_cache()


@torch.inference_mode()
def measure_head(meter: Meter, shape: ModelShape) -> None:
    """Time the ways of getting the logsumexp of rows of logits."""
    rows = meter.record.by_size(2048, 2048, 32)
    states_RE = torch.randn(rows, shape.hidden, device=meter.device, dtype=torch.bfloat16)
    weight_VE = 0.02 * torch.randn(
        shape.vocabulary, shape.hidden, device=meter.device, dtype=torch.bfloat16
    )
    target_R = torch.randint(shape.vocabulary, (rows,), device=meter.device)
    logits_RV = states_RE @ weight_VE.T
    name = f"{shape.name}_head"
    _noted(meter, f"{name}_product", lambda: states_RE @ weight_VE.T)
    _noted(meter, f"{name}_lse_float", lambda: torch.logsumexp(logits_RV.float(), -1))
    _noted(meter, f"{name}_lse_own_type", lambda: torch.logsumexp(logits_RV, -1))
    _noted(
        meter,
        f"{name}_log_softmax_float",
        lambda: torch.log_softmax(logits_RV, -1, dtype=torch.float32),
    )
    _noted(
        meter,
        f"{name}_cross_entropy",
        lambda: nn.functional.cross_entropy(logits_RV, target_R, reduction="none"),
    )
    if meter.device.type == "cuda":
        compiled = torch.compile(lambda z_RV: torch.logsumexp(z_RV.float(), -1))
        _noted(meter, f"{name}_lse_compiled", lambda: compiled(logits_RV))


@torch.inference_mode()
def measure_attention(meter: Meter, shape: ModelShape) -> None:
    """Time causal attention in windows, and attention along token trees."""
    size = shape.hidden // shape.heads
    tokens, window = meter.record.by_size((8192, 2048), (8192, 2048), (64, 32))
    q = _random(meter, tokens // window, shape.heads, window, size)
    kv = _random(meter, tokens // window, shape.kv_heads, window, size)
    attend = nn.functional.scaled_dot_product_attention
    group = shape.heads // shape.kv_heads
    _noted(
        meter,
        f"{shape.name}_causal_gqa",
        lambda: attend(q, kv, kv, is_causal=True, enable_gqa=True),
    )
    repeated = kv.repeat_interleave(group, dim=1)
    _noted(
        meter,
        f"{shape.name}_causal_repeated",
        lambda: attend(q, repeated, repeated, is_causal=True),
    )
    requests = made_up_requests(shape, meter.record.by_size(200, 200, 4))
    batches = lay_out_trees(
        requests, inputs_of(requests, 8192), meter.record.by_size(16_384, 16_384, 64)
    )
    tree = batches[0].batch
    assert isinstance(tree, Tree)
    masks = [b.mask.to(meter.device, torch.bfloat16) for b in tree.buckets]
    shapes = [(b.q_index.shape, b.k_index.shape[1]) for b in tree.buckets]
    meter.record.notes[f"{shape.name} buckets of a tree of {tree.tokens} tokens"] = [
        [*queries, keys] for queries, keys in shapes
    ]
    queries = [_random(meter, n, shape.heads, q_len, size) for (n, q_len), _ in shapes]
    keys = [_random(meter, n, shape.kv_heads, k_len, size) for (n, _), k_len in shapes]

    def trees(repeat: bool) -> None:
        for q_NHQD, k_NGKD, mask in zip(queries, keys, masks, strict=True):
            k_NHKD = k_NGKD.repeat_interleave(group, dim=1) if repeat else k_NGKD
            attend(q_NHQD, k_NHKD, k_NHKD, attn_mask=mask, enable_gqa=not repeat)

    _noted(meter, f"{shape.name}_tree_gqa", lambda: trees(False))
    _noted(meter, f"{shape.name}_tree_repeated", lambda: trees(True))


@torch.inference_mode()
def measure_block(meter: Meter, shape: ModelShape) -> None:
    """Time one block: eager, compiled, and recorded as a CUDA graph."""
    loaded = meter.model(shape)
    tokens, window = meter.record.by_size((8192, 512), (8192, 512), (64, 32))
    batch = Rows(random_windows(shape, tokens, window)).on(loaded.model)
    forward = Forward(loaded.model, loaded.layers)
    hidden_BLE, calls = forward.capture_block_inputs(batch)
    block, call = blocks_of(loaded.model)[1], calls[1]
    name = f"{shape.name}_block"
    _noted(meter, f"{name}_eager", lambda: run_block(block, hidden_BLE, call))
    meter.record.add(f"{name}_flops_per_call", shape.block_flops(tokens, window))
    if meter.device.type != "cuda":
        return
    args, kwargs = call
    compiled = torch.compile(block, dynamic=False)
    _noted(meter, f"{name}_compiled", lambda: compiled(hidden_BLE, *args, **kwargs))
    _noted(meter, f"{name}_cuda_graph", _recorded(lambda: run_block(block, hidden_BLE, call)))


def _recorded(work: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """Return a function that plays a recording of the work's kernels."""
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        work()
    return graph.replay
