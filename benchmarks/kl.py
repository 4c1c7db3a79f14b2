"""How exact, how large and how fast is the comparison of a candidate with the dense model?

SmolLM2-135M, 1,024 tokens, one thread. KL from sufficient statistics of the dense model beside the
former way, which is written down here: all logits of the dense model are kept, and both softmaxes
are taken in float32. Both are compared with float64. Then the pieces: the product of the
head alone (the floor), ways to take a logsumexp, and the whole comparison, in alternating turns.

    python -m benchmarks.kl --json benchmarks/results/kl.json
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import transformers

from benchmarks.support.inputs import model_folder
from benchmarks.support.record import Record, arguments, precision
from prunesearch.candidate import LayerSubset
from prunesearch.execution.batches import Rows
from prunesearch.execution.head import Head
from prunesearch.execution.head_choice import measure_choice
from prunesearch.execution.head_reading import HeadChoice, PickedTokens, read_head
from prunesearch.execution.logsumexp import COMPILER_ERRORS, EAGER, METHODS, logsumexp
from prunesearch.execution.shared_forward import Forward
from prunesearch.models.bf16_cpu import wide_products
from prunesearch.models.loading import LoadedModel, load
from prunesearch.objectives.base import BUILTIN_TEXT
from prunesearch.objectives.calibration_data import token_windows
from prunesearch.objectives.metrics.kl import KL
from prunesearch.objectives.tensor_files import write_tensors

Work = Callable[[], object]
SHARES = (0.0, 0.04, 0.13, 0.2, 0.33, 0.73)
"""Shares of the blocks that are dropped, from the middle of the model."""
TILES = (1024, 2048, 4096, 8192)


def subsets(blocks: int) -> dict[str, LayerSubset]:
    """Return subsets of all sizes by name."""
    found = {}
    for share in SHARES:
        count = round(share * blocks)
        first = (blocks - count) // 2
        found[f"{count}_dropped"] = LayerSubset.of(blocks, range(first, first + count))
    return found


def former_kl(
    head: Head, dense_RV: torch.Tensor, normed_RE: torch.Tensor, next_R: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return KL and negative log-likelihood of each row as they were computed before.

    128 rows of logits at a time, 64 rows of softmax, all logits of the dense model.
    """
    kl, nll = [], []
    for start in range(0, len(normed_RE), 128):
        logits_RV = head.logits(normed_RE[start : start + 128])
        for first in range(0, len(logits_RV), 64):
            rows = slice(start + first, min(start + first + 64, len(normed_RE)))
            log_p_RV = torch.log_softmax(dense_RV[rows], dim=-1, dtype=torch.float32)
            p_RV = log_p_RV.exp()
            log_q_RV = torch.log_softmax(logits_RV[first : first + 64], dim=-1, dtype=torch.float32)
            negative_entropy_R = torch.linalg.vecdot(p_RV, log_p_RV)
            kl.append(negative_entropy_R - torch.linalg.vecdot(p_RV, log_q_RV))
            nll.append(-log_q_RV.gather(1, next_R[rows, None])[:, 0])
    return torch.cat(kl), torch.cat(nll)


def exact_kl(head: Head, dense_RE: torch.Tensor, normed_RE: torch.Tensor) -> float:
    """Return the mean KL in float64, of logits that are not rounded to 16 bits."""
    linear = head.linear
    assert linear is not None
    weight_VE = linear.weight_VE.float()
    total = 0.0
    for start in range(0, len(dense_RE), 128):
        rows = slice(start, start + 128)
        log_p_RV = (dense_RE[rows].float() @ weight_VE.T).double().log_softmax(-1)
        log_q_RV = (normed_RE[rows].float() @ weight_VE.T).double().log_softmax(-1)
        total += float((log_p_RV.exp() * (log_p_RV - log_q_RV)).sum())
    return total / len(dense_RE)


@torch.inference_mode()
def states_of(
    loaded: LoadedModel, head: Head, windows_BL: torch.Tensor, candidates: Mapping[str, LayerSubset]
) -> dict[str, torch.Tensor]:
    """Return the states of candidates after the final norm, by name."""
    names = {candidate: name for name, candidate in candidates.items()}
    forward = Forward(loaded.model, loaded.layers)
    found = {}
    for _, candidate, state_BLE in forward.run([(Rows(windows_BL), list(names))]):
        found[names[candidate]] = head.apply_final_norm(state_BLE.flatten(0, 1))
    return found


def timed(work: Mapping[str, Work], repeats: int) -> dict[str, float]:
    """Return the median seconds of several works, in alternating turns, after one that warms up."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats + 1):
        for name, call in work.items():
            start = time.perf_counter()
            call()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(spent) for name, spent in times.items()}


def main() -> None:
    """Run the benchmark."""
    options = arguments("The comparison of a candidate with the dense model: error, size, seconds")
    transformers.logging.disable_progress_bar()
    record = Record("kl", options.size)
    torch.set_num_threads(1)
    tokens, repeats = record.by_size((1024, 5), (512, 3), (64, 1))
    with tempfile.TemporaryDirectory() as scratch:
        loaded = load(str(model_folder(record, Path(scratch))), dtype=precision())
        windows_BL = token_windows(BUILTIN_TEXT, loaded.tokenizer, tokens, min(256, tokens))
        head = Head(loaded.model)
        with wide_products():
            states = states_of(loaded, head, windows_BL, subsets(loaded.n_layers))
            _error_and_size(record, head, windows_BL, states, Path(scratch))
            _seconds(record, head, windows_BL, states, repeats)
    record.finish(options.json)


@torch.inference_mode()
def _error_and_size(
    record: Record,
    head: Head,
    windows_BL: torch.Tensor,
    states: Mapping[str, torch.Tensor],
    scratch: Path,
) -> None:
    """Compare both ways with float64, and measure what is kept of the dense model."""
    dense_RE, kl = states["0_dropped"], KL()
    reference = kl.reference(dense_RE, head)
    dense_RV = head.logits(dense_RE)
    next_R = torch.cat([windows_BL[:, 1:], windows_BL[:, :1]], dim=1).flatten()
    whole = LayerSubset.of(1)
    further = 0.0
    for name, normed_RE in states.items():
        exact = exact_kl(head, dense_RE, normed_RE)
        former = float(former_kl(head, dense_RV, normed_RE, next_R)[0].double().mean())
        sums = kl.compare(windows_BL, reference, {whole: normed_RE}, head)[whole]
        ours = sum(row[0] for row in sums) / len(normed_RE)
        record.add(f"{name}_exact_kl", exact)
        record.add(f"{name}_former_error", former - exact)
        record.add(f"{name}_error", ours - exact)
        further = max(further, abs(ours - exact) - abs(former - exact))
    record.add("largest_error_beyond_the_former", further, "<= 0.0005")
    values = sum(tensor.numel() for name, tensor in reference.items() if name != "head")
    rows, width = dense_RE.shape
    record.add("reference_values_per_row", values / rows, f"<= {width + 130}")
    record.add("former_reference_values_per_row", dense_RV.shape[1])
    for name, tensors in {"reference": reference, "former_reference": {"logits": dense_RV}}.items():
        write_tensors(scratch / name, tensors)
        record.add(f"{name}_file_bytes", (scratch / name).stat().st_size)


@torch.inference_mode()
def _seconds(
    record: Record,
    head: Head,
    windows_BL: torch.Tensor,
    states: Mapping[str, torch.Tensor],
    repeats: int,
) -> None:
    """Time the pieces and the whole."""
    normed_RE = list(states.values())[2]
    products = timed(_products(head, normed_RE), repeats)
    sums = timed(_logsumexps(record, head, normed_RE), repeats)
    readings = timed(_readings(record, head, normed_RE), repeats)
    whole = timed(_comparisons(head, windows_BL, states["0_dropped"], normed_RE), repeats)
    for name, seconds in (products | sums | readings | whole).items():
        bound = "<= 0.1" if name == "comparison" and record.size == "full" else None
        record.add(f"{name}_seconds", seconds, bound)
    floor = min(products.values())
    record.add("comparison_over_fastest_product", whole["comparison"] / floor)
    record.add("former_comparison_over_fastest_product", whole["former_comparison"] / floor)
    record.add("comparison_speedup", whole["former_comparison"] / whole["comparison"])


def _products(head: Head, normed_RE: torch.Tensor) -> dict[str, Work]:
    """Return the product of the head alone, by rows and by tiles."""
    assert head.linear is not None
    weight_VE = head.linear.weight_VE
    work: dict[str, Work] = {}
    for rows in (64, 128, 256, 512):
        work[f"product_{rows}_rows"] = partial(_multiply, normed_RE.split(rows), [weight_VE])
    for columns in TILES:
        parts = weight_VE.split(columns)
        work[f"product_{columns}_columns"] = partial(_multiply, [normed_RE], parts)
    return work


def _multiply(rows: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]) -> None:
    """Multiply all parts of the rows by all parts of the weight."""
    for weight_VE in weights:
        for part_RE in rows:
            torch.nn.functional.linear(part_RE, weight_VE)


def _logsumexps(record: Record, head: Head, normed_RE: torch.Tensor) -> dict[str, Work]:
    """Return ways to take the logsumexp of logits that are there, and record their errors."""
    parts = head.logits(normed_RE).split(128)
    exact_R = torch.cat([part_RV.double().logsumexp(-1) for part_RV in parts])
    work: dict[str, Work] = {}
    for method in METHODS if record.size == "full" else EAGER:
        try:
            found_R = torch.cat([logsumexp(part_RV, method) for part_RV in parts])
        except COMPILER_ERRORS:
            continue
        record.add(f"logsumexp_{method}_error", float((found_R - exact_R).abs().max()))
        work[f"logsumexp_{method}"] = partial(_each, partial(logsumexp, method=method), parts)
    # What torch offers beside them.
    wide = partial(torch.log_softmax, dim=-1, dtype=torch.float32)
    work["log_softmax_64_rows"] = partial(_each, wide, head.logits(normed_RE).split(64))
    work["float32_copy_logsumexp"] = partial(_each, _copied_logsumexp, parts)
    if hasattr(torch.nn.functional, "linear_cross_entropy"):
        fused = partial(_linear_cross_entropy, head)
        work["product_and_linear_cross_entropy"] = partial(_each, fused, normed_RE.split(128))
    return work


def _each(call: Callable[[torch.Tensor], object], parts: Sequence[torch.Tensor]) -> None:
    """Call a function with each part."""
    for part in parts:
        call(part)


def _copied_logsumexp(logits_RV: torch.Tensor) -> torch.Tensor:
    """Return torch's own logsumexp of a float32 copy."""
    return torch.logsumexp(logits_RV.float(), -1)


def _linear_cross_entropy(head: Head, normed_RE: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropies of rows by torch's fused function, rounded to 16 bits."""
    assert head.linear is not None
    target_R = torch.zeros(len(normed_RE), dtype=torch.int64)
    function = torch.nn.functional.linear_cross_entropy
    losses_R: torch.Tensor = function(normed_RE, head.linear.weight_VE, target_R, reduction="none")
    return losses_R


def _readings(record: Record, head: Head, normed_RE: torch.Tensor) -> dict[str, Work]:
    """Return ways to read the head, among them the one that is measured to be the fastest."""
    picked = PickedTokens(torch.zeros(len(normed_RE), 1, dtype=torch.int64))
    chosen = measure_choice(head, normed_RE)
    record.notes["choice"] = asdict(chosen)
    choices = {"read_as_chosen": chosen}
    for columns in TILES:
        choices[f"read_{columns}_columns"] = HeadChoice(128, columns, chosen.method)
    for rows in (128, 512):
        choices[f"read_{rows}_rows"] = HeadChoice(rows, None, chosen.method)
    work: dict[str, Work] = {}
    for name, choice in choices.items():
        work[name] = partial(read_head, head, normed_RE, picked, choice)
    return work


def _comparisons(
    head: Head, windows_BL: torch.Tensor, dense_RE: torch.Tensor, normed_RE: torch.Tensor
) -> dict[str, Work]:
    """Return the whole comparison of one candidate in both ways."""
    kl = KL()
    reference, dense_RV = kl.reference(dense_RE, head), head.logits(dense_RE)
    next_R = torch.cat([windows_BL[:, 1:], windows_BL[:, :1]], dim=1).flatten()
    states = {LayerSubset.of(1): normed_RE}
    return {
        "former_comparison": partial(former_kl, head, dense_RV, normed_RE, next_R),
        "comparison": partial(kl.compare, windows_BL, reference, states, head),
    }


if __name__ == "__main__":
    main()
