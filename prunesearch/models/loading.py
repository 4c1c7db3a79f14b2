"""Loading a causal LM and its tokenizer from a hub id, a folder or a ``.gguf`` file."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
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

from prunesearch.compat.gguf import quick_reader
from prunesearch.compat.transformers import forget_code_of_tokenizer
from prunesearch.errors import InputError, ModelError, one_line
from prunesearch.models.fingerprint import fingerprint
from prunesearch.models.gguf_file import read_header
from prunesearch.models.guard import guarded
from prunesearch.models.layers import Layers, ResidentLayers
from prunesearch.models.model_configs import read_config, settings_of
from prunesearch.models.safetensors_files import tensors_of
from prunesearch.models.sizes import Sizes, sizes_of
from prunesearch.models.source import (
    IN_MEMORY,
    ResolvedSource,
    resolve,
    with_weights,
)
from prunesearch.models.structure import architecture_of, blocks_of
from prunesearch.models.weight_map import check_stored
from prunesearch.models.weights_state import WeightsState
from prunesearch.units import noun_for

TOKENIZER_ADVICE = "get its files again, or a newer version of transformers and tokenizers"


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to be scored.

    Attributes:
        name: name that the user gave, for messages.
        model: the model, in evaluation mode.
        tokenizer: tokenizer of the model.
        fingerprint: digest of the model's content (`models.fingerprint`).
        sizes: parameters and bytes of the dense model and of any candidate.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    sizes: Sizes
    layers: Layers
    """The blocks: part of `model`, or streamed.

    The blocks of a streamed `model` have no weights.
    """
    source: ResolvedSource = IN_MEMORY
    """The files that the model was read from. Later steps read these files only."""
    trusted: bool = False
    """True if the user allowed code that ships with the model to run (`trust_remote_code`)."""
    weights: WeightsState = field(default_factory=WeightsState)
    """Changes of the weights in memory since they were loaded."""

    @property
    def content(self) -> str:
        """Digest of the weights in memory: the fingerprint, or another one if they were changed."""
        return self.weights.content(self.fingerprint)

    @property
    def n_layers(self) -> int:
        """Return the number of blocks of the dense model."""
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
        name: a Hugging Face id, a local folder or a ``.gguf`` file, which is dequantised.
        revision: branch, tag or commit of a Hugging Face id.
        dtype: ``bfloat16``, ``float16``, ``float32``, or ``auto`` for the stored dtype (GGUF:
            bfloat16).
        device: torch device. Default: cuda if there is one, else cpu.
        device_map: device map of accelerate, such as ``auto``; it replaces `device`.
        trust_remote_code: run modelling code that ships with the checkpoint.
        quantised: accept a quantised checkpoint, which can be scored but not exported.

    Raises:
        ModelError: the model is missing, unreadable, cut short, quantised or of an unsupported
            architecture.
    """
    # Find the files, and refuse a model that cannot be used before its weights are read.
    place = device_named(device)
    source = resolve(name, revision=revision, trust_remote_code=trust_remote_code)
    how: dict[str, bool | str | GgufConfig] = {"trust_remote_code": trust_remote_code}
    if source.gguf is not None:
        # transformers spends minutes on a GGUF file before it notices that the file is damaged.
        read_header(source.gguf)
        path = source.gguf.parent
        how["gguf_file"] = source.gguf.name
    else:
        assert source.folder is not None
        path = source.folder
        config = read_config(str(path), trust_remote_code)
        architecture_of(config, trust_remote_code)
        if not quantised:
            refuse_quantised(config, name)
        source = with_weights(source)
    # Load the tokenizer and the weights.
    failure = f"cannot load the tokenizer of {name!r}"
    with quick_reader(), guarded(failure, path, advice=TOKENIZER_ADVICE):
        tokenizer = AutoTokenizer.from_pretrained(path, **how)
    if source.gguf is not None:
        how["quantization_config"] = GgufConfig(dequantize=True)
    precision = _dtype(dtype, source.gguf is not None)
    with quick_reader(), guarded(f"cannot load model {name!r}", (path, *source.weights)):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=precision, device_map=device_map, output_loading_info=True, **how
        )
    model, report = loaded
    # transformers accepts incomplete checkpoints and some ambiguous ones.
    refuse_incomplete(name, report)
    if source.safetensors and not is_quantised(model.config):
        check_stored(model, tensors_of(source.weights), name)
    # Remove all traces that would make copies of the model unusable.
    if not trust_remote_code:
        forget_code(model.config, tokenizer)
    if source.gguf is not None:
        _forget_gguf(model)
    if device_map is None:
        try:
            model.to(place)
        except RuntimeError as error:  # raised by torch when memory runs out
            raise ModelError(
                f"model {name!r} does not fit {place} ({one_line(error)}): try `device_map` auto "
                f"or `device` cpu"
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


def refuse_incomplete(name: str, report: Mapping[str, Collection[object] | None]) -> None:
    """Refuse a checkpoint that lacks weights. transformers would fill them with random numbers.

    Args:
        name: name of the checkpoint, for messages.
        report: report that `from_pretrained` returns with ``output_loading_info``.

    Raises:
        ModelError: a weight is missing, or its shape is not the shape in the config.
    """
    for problem in ("missing_keys", "mismatched_keys"):
        if keys := sorted(map(str, report.get(problem) or ())):
            weights = noun_for(len(keys), "weight, ", "weights, the first is ")
            raise ModelError(
                f"checkpoint {name!r} is not complete: {len(keys)} {problem.replace('_keys', '')} "
                f"{weights}{keys[0]}; get it again"
            )


def is_quantised(config: PretrainedConfig) -> bool:
    """Return whether a config says that the weights are quantised."""
    parts = (config, settings_of(config))
    return any(getattr(part, "quantization_config", None) is not None for part in parts)


def refuse_quantised(config: PretrainedConfig, name: str) -> None:
    """Refuse a quantised checkpoint, whose pruned copies cannot be written.

    Raises:
        ModelError: the config says that the weights are quantised.
    """
    if is_quantised(config):
        raise ModelError(
            f"the weights of {name!r} are quantised (quantization_config), and what is searched in "
            f"them could not be "
            "exported: give the unquantised model and quantise the result"
        )


def device_named(name: str | None) -> torch.device:
    """Return the torch device of a name. Without a name: cuda if there is one, else cpu.

    Raises:
        InputError: this machine does not have the device.
    """
    default = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name or default)
        # Only an allocation shows whether the device exists.
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # The first sentence of torch's message is enough, but one message lists every device type.
        reason = one_line(error).partition(".")[0]
        if "device type" in str(error):
            reason = "no such device type"
        usable = [str(other) for other in _devices() if other != str(name)]
        raise InputError(
            f"`device` {name!r} cannot be used here ({reason}): try {' or '.join(usable)}"
        ) from None
    return device


def _devices() -> list[str]:
    """Return the names of the torch devices of this machine."""
    found = ["cpu"]
    if torch.cuda.is_available():
        found += [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def forget_code(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Remove references to untrusted code from a model's config and its tokenizer.

    Otherwise a copy of the model would name code that was never run.
    """
    if hasattr(config, "auto_map"):
        del config.auto_map
    forget_code_of_tokenizer(tokenizer)


def _dtype(name: str, is_gguf: bool) -> torch.dtype | str:
    """Return the dtype of a name, in the form that `from_pretrained` takes."""
    if name == "auto":
        return torch.bfloat16 if is_gguf else "auto"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _forget_gguf(model: Any) -> None:  # noqa: ANN401
    """Make a dequantised GGUF model an ordinary model.

    `save_pretrained` would refuse it otherwise.
    """
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
