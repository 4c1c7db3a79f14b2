"""How fast are exported models whose widths are multiples of 64, of 8, and odd?

All of them have the same number of parameters. They are written and verified as any export, loaded
again with transformers, and timed in turns with the dense model. The zeroed form of the first is
timed too: it has the dense model's shapes, so it should be as fast as the dense model and no faster.
"""

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.rates_parts.campaign import Campaign
from benchmarks.support import speed
from benchmarks.support.record import Record
from prunesearch.export import export
from prunesearch.importance.orders import channel_order
from prunesearch.models.loading import LoadedModel, load
from prunesearch.models.reordering import reorder
from prunesearch.models.width_shape import width_shape_of
from prunesearch.objectives.calibration_data import token_windows
from prunesearch.widths.layer_widths import LayerWidths


def measure(record: Record, campaign: Campaign, scratch: Path) -> None:
    """Add the speed of exported models to that of the dense one.

    Args:
        record: record of the benchmark.
        campaign: settings.
        scratch: folder in which the exports are written.
    """
    loaded = load(campaign.model, device="cpu")
    windows_BL = token_windows(
        str(campaign.calibration), loaded.tokenizer, campaign.tokens, campaign.window
    )
    order = channel_order(loaded, windows_BL, campaign.criterion, None).order
    reorder(loaded.model, order)
    models: dict[str, PreTrainedModel] = {"dense": load(campaign.model, device="cpu").model}
    rows: list[dict[str, Any]] = []
    align = campaign.align
    for name, shift, export_format in (
        ("aligned", 0, "widths"),
        ("multiples_of_8", align // 8, "widths"),
        ("odd", 1, "widths"),
        ("zeroed", 0, "zeroed"),
    ):
        candidate = _candidate(loaded, order.digest, order.biases, align, shift)
        out = scratch / name
        made = export(loaded, candidate, out, export_format=export_format)
        models[name] = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True).eval()
        rows.append({"widths": name, "parameters": made.params, "channels": _channels(candidate)})
        record.add(f"exported_{name}_verified_difference", made.verification.prefill_difference)
    tokens, turns = record.by_size(256, 256, 32), record.by_size(15, 5, 1)
    found = speed.compare(models, tokens, turns)
    dense = found["dense"]
    for row in rows:
        times = found[row["widths"]]
        row |= {"prefill_ms": times.prefill_ms, "decode_ms": times.decode_ms}
        name = f"exported_{row['widths']}"
        record.add(f"{name}_prefill_speedup", dense.prefill_ms / times.prefill_ms)
        record.add(f"{name}_decode_speedup", dense.decode_ms / times.decode_ms)
    row = {"widths": "dense", "parameters": loaded.sizes.params(), "channels": "all"}
    rows.append(row | {"prefill_ms": dense.prefill_ms, "decode_ms": dense.decode_ms})
    record.notes["exported_speed"] = rows


def _candidate(
    loaded: LoadedModel, order: str, biases: bool, align: int, shift: int
) -> LayerWidths:
    """Return a candidate whose MLPs keep two thirds of their channels, `shift` more in every other
    block and as many fewer in the others.
    """
    shape = width_shape_of(loaded.model)
    channels = []
    for index, full in enumerate(shape.channels):
        sign = 1 if index % 2 else -1
        channels.append(full * 2 // 3 // align * align + sign * shift)
    return LayerWidths.within(shape, channels, shape.groups, order, biases)


def _channels(candidate: LayerWidths) -> str:
    """Return the widths that occur, as text."""
    return " and ".join(map(str, sorted(set(candidate.channels))))
