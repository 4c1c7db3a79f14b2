"""Checks of a new checkpoint: its files are read again, and it is reloaded and compared."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, ModelError, VerificationError, one_line
from prunesearch.export.formats.registry import REGISTRY
from prunesearch.export.results import Verification
from prunesearch.export.verification import Expected, compare, compare_streamed, expected_streamed
from prunesearch.export.writer import Written, digest
from prunesearch.models.guard import guarded
from prunesearch.models.loading import LoadedModel, refuse_incomplete
from prunesearch.models.safetensors_files import misplaced, tensors_in
from prunesearch.models.streaming import open_streamed, set_aside
from prunesearch.models.structure import input_device
from prunesearch.runtime import stopping

_SHORT_OF_MEMORY = "where memory is short, export with `offload` disk"


def check_digests(folder: Path, written: Written) -> None:
    """Read the new files again, and compare them with the index and the digests of their sources.

    Raises:
        VerificationError: a tensor is not where the index says, or its content is not that of its
            source.
    """
    stored = tensors_in(folder)
    if (wrong := misplaced(folder)) is not None:
        raise VerificationError(
            f"tensor {wrong} is not in the file where the index says: the export was not kept"
        )
    for name, expected in written.digests.items():
        stopping.check()
        if name not in stored or digest(stored[name]) != expected:
            raise VerificationError(
                f"the written tensor {name} is not what was read: the export was not kept"
            )


def reload_and_compare(
    loaded: LoadedModel, candidate: LayerSubset, export_format: str, folder: Path
) -> tuple[Verification, int]:
    """Reload a new checkpoint, and compare it with the candidate.

    Returns:
        The verification, and the number of parameters of the reloaded model.
    """
    # A streamed model and its export do not fit into memory together, so one is closed before the
    # other opens.
    if loaded.layers.streamed_once:
        if not REGISTRY.get(export_format).streamed:
            raise InputError(
                f"`export_format` {export_format} is verified in memory: leave out `offload`"
            )
        expected = expected_streamed(loaded, candidate)
        device = str(input_device(loaded.model))
        with set_aside(loaded):
            return _reopen_and_compare(expected, folder, device, loaded.trusted)
    model = reload(folder, loaded.model, REGISTRY.get(export_format).own_code or loaded.trusted)
    verification = compare(loaded.model, candidate, model, loaded.tokenizer)
    return verification, sum(p.numel() for p in model.parameters())


def _reopen_and_compare(
    expected: Expected, folder: Path, device: str, trusted: bool
) -> tuple[Verification, int]:
    """Open a streamed checkpoint, and compare it.

    The checkpoint is closed when this function returns.
    """
    found = open_streamed(str(folder), device=device, trust_remote_code=trusted)
    return compare_streamed(expected, found), found.sizes.params()


def reload(
    folder: Path, beside: PreTrainedModel | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load a checkpoint as any user would.

    Args:
        folder: folder of the checkpoint.
        beside: model in memory whose device is used.
        trust_remote_code: run code that ships with the checkpoint.

    Raises:
        VerificationError: the checkpoint does not load, or some of its weights are missing.
    """
    # A model that is spread over several devices is compared with one that is spread as well.
    devices = set(getattr(beside, "hf_device_map", {}).values())
    spread = {"device_map": "auto"} if len(devices) > 1 else {}
    try:
        with guarded(
            "the export could not be reloaded",
            folder,
            advice=_SHORT_OF_MEMORY,
            kind=VerificationError,
        ):
            reloaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, output_loading_info=True, trust_remote_code=trust_remote_code, **spread
            )
        found, report = reloaded
        refuse_incomplete(folder.name, report)
        if beside is not None and not spread:
            found.to(input_device(beside))
    except ModelError as error:
        raise VerificationError(f"the export is not complete: {one_line(error)}") from None
    except RuntimeError as error:  # raised by torch when memory runs out
        raise VerificationError(
            f"the export could not be reloaded: {one_line(error)}; {_SHORT_OF_MEMORY}"
        ) from None
    model: PreTrainedModel = found.eval()
    return model
