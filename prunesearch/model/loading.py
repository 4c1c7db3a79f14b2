"""Loading a causal LM and its tokenizer from a hub id, a folder or a ``.gguf`` file."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prunesearch.errors import InputError, ModelError, one_line
from prunesearch.model.anatomy import Sizes, blocks_of, family_of, read_config, settings_of, sizes_of
from prunesearch.model.checkpoint import tensors_of
from prunesearch.model.fingerprint import fingerprint
from prunesearch.model.gguf_file import open_gguf
from prunesearch.model.guard import guarded
from prunesearch.model.layers import Layers, ResidentLayers
from prunesearch.model.source import IN_MEMORY, ResolvedSource, resolve, with_weights
from prunesearch.model.sources import check_stored

TOKENIZER_ADVICE = "get its files again, or a newer version of transformers and tokenizers"


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be scored.

    Attributes:
        name: what the user called it.
        fingerprint: digest of its content (`model.fingerprint`).
        sizes: parameters and bytes, dense and of any candidate.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    sizes: Sizes
    layers: Layers
    """Its blocks: part of `model`, or streamed (then those of `model` have no weights)."""
    source: ResolvedSource = IN_MEMORY
    """The files it was read from. Nothing else of it is read later; `name` is for messages."""
    trusted: bool = False
    """Whether the user allowed code that ships with the model to run (``--trust-remote-code``)."""

    @property
    def n_layers(self) -> int:
        """How many blocks the dense model has."""
        return len(self.sizes.block_params)


def load(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    device_map: str | None = None,
    trust_remote_code: bool = False,
    quantised: bool = False,
) -> LoadedModel:
    """Load a model for scoring, in evaluation mode.

    Args:
        name: a Hugging Face id, a local folder or a ``.gguf`` file (dequantised).
        revision: branch, tag or commit of a hub id.
        dtype: ``bfloat16``, ``float16``, ``float32``, or ``auto``: as stored (a GGUF: bfloat16).
        device: torch device; default: cuda where there is one, else cpu.
        device_map: given to accelerate instead of a device, e.g. ``auto``.
        trust_remote_code: run modelling code that ships with the checkpoint.
        quantised: take a quantised checkpoint, which can be scored but not exported.

    Raises:
        ModelError: missing, unreadable, cut short, quantised or of an unsupported architecture.
    """
    place = device_named(device)
    source = resolve(name, revision=revision, trust_remote_code=trust_remote_code)
    how: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if source.gguf is not None:
        open_gguf(source.gguf)  # a damaged one is refused before transformers spends minutes on it
        path = source.gguf.parent
        how["gguf_file"] = source.gguf.name
    else:
        assert source.folder is not None
        path = source.folder
        # An unsupported type is refused before its weights are read.
        config = read_config(str(path), trust_remote_code)
        family_of(config, trust_remote_code)
        if not quantised:
            refuse_quantised(config, name)
        source = with_weights(source)
    with guarded(f"cannot load the tokenizer of {name!r}", path, advice=TOKENIZER_ADVICE):
        tokenizer = AutoTokenizer.from_pretrained(path, **how)
    if source.gguf is not None:
        how["quantization_config"] = GgufConfig(dequantize=True)
    precision = _dtype(dtype, source.gguf is not None)
    with guarded(f"cannot load model {name!r}", (path, *source.weights)):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=precision, device_map=device_map, output_loading_info=True, **how
        )
    model, report = loaded
    refuse_incomplete(name, report)
    if source.safetensors and not is_quantised(model.config):
        check_stored(model, tensors_of(source.weights), name)
    if not trust_remote_code:
        forget_code(model.config, tokenizer)
    if source.gguf is not None:
        _forget_gguf(model)
    if device_map is None:
        try:
            model.to(place)
        except RuntimeError as error:  # torch: out of memory
            raise ModelError(
                f"model {name!r} does not fit {place} ({one_line(error)}): try --device-map auto or --device cpu"
            ) from None
    model.eval()
    blocks_of(model)
    return LoadedModel(
        name,
        model,
        tokenizer,
        fingerprint(model),
        sizes_of(model),
        ResidentLayers(blocks_of(model)),
        source,
        trust_remote_code,
    )


def refuse_incomplete(name: str, report: dict[str, Any]) -> None:
    """Refuse a checkpoint that lacks weights: transformers fills them with random numbers and goes on.

    Args:
        report: what `from_pretrained` says with ``output_loading_info``.

    Raises:
        ModelError: a weight is missing or has another shape than the config says.
    """
    for problem in ("missing_keys", "mismatched_keys"):
        if keys := sorted(map(str, report.get(problem) or ())):
            raise ModelError(
                f"checkpoint {name!r} is not complete: {len(keys)} {problem.replace('_keys', '')} "
                f"weight(s), the first is {keys[0]}; get it again"
            )


def is_quantised(config: PretrainedConfig) -> bool:
    """Whether a config says that the weights are quantised."""
    parts = (config, settings_of(config))
    return any(getattr(part, "quantization_config", None) is not None for part in parts)


def refuse_quantised(config: PretrainedConfig, name: str) -> None:
    """Refuse a quantised checkpoint, whose pruned copies cannot be written.

    Raises:
        ModelError: its config says that it is quantised.
    """
    if is_quantised(config):
        raise ModelError(
            f"the weights of {name!r} are quantised (quantization_config), and what is searched in them could not be "
            "exported: give the unquantised model and quantise the result"
        )


def device_named(name: str | None) -> torch.device:
    """The torch device of that name; by default cuda where there is one, else cpu.

    Raises:
        InputError: there is no such device here.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = "no such device type" if "device type" in str(error) else one_line(error).partition(".")[0]
        usable = [str(other) for other in _devices() if other != str(name)]
        raise InputError(f"--device {name!r} cannot be used here ({reason}): try {' or '.join(usable)}") from None
    return device


def _devices() -> list[str]:
    """The torch devices of this machine."""
    found = ["cpu"]
    if torch.cuda.is_available():
        found += [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def forget_code(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a model and its tokenizer forget code that was not trusted, so that no copy of them asks for it."""
    if hasattr(config, "auto_map"):
        del config.auto_map
    tokenizer.init_kwargs.pop("auto_map", None)
    tokenizer._auto_map = None


def _dtype(name: str, is_gguf: bool) -> torch.dtype | str:
    if name == "auto":
        return torch.bfloat16 if is_gguf else "auto"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _forget_gguf(model: Any) -> None:  # noqa: ANN401
    """Make a dequantised GGUF an ordinary checkpoint, which `save_pretrained` refuses it to be otherwise."""
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
