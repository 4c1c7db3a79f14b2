"""The results of exports and of their verification, as plain values."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from prunesearch.candidate import LayerSubset
from prunesearch.runtime.json_values import JsonObject, as_float, as_int, as_list, json_as


@dataclass(frozen=True)
class Reference:
    """The output of a model for a prompt, small enough to be stored with the model.

    Attributes:
        prompt: token ids of the prompt.
        likeliest: ids and logits of the likeliest tokens at each position of the prompt.
        continuation: token ids that the model generates greedily.
    """

    prompt: list[int]
    likeliest: list[list[tuple[int, float]]]
    continuation: list[int]

    @classmethod
    def from_json(cls, stored: JsonObject) -> Self:
        """Read a reference.

        Raises:
            ValueError: the value is not that of a reference.
            KeyError: a field is missing.
        """
        likeliest = []
        for row in as_list(stored["likeliest"], "likeliest"):
            likely = []
            for pair in as_list(row, "likeliest"):
                token, value = as_list(pair, "a likely token")
                likely.append((as_int(token, "a token"), as_float(value, "a logit")))
            likeliest.append(likely)
        prompt = [as_int(token, "a token") for token in as_list(stored["prompt"], "prompt")]
        continuation = as_list(stored["continuation"], "continuation")
        return cls(prompt, likeliest, [as_int(token, "a token") for token in continuation])


@dataclass(frozen=True)
class Verification:
    """Result of comparing a reloaded checkpoint with the candidate.

    Attributes:
        prefill_difference: largest absolute difference of a logit over a prompt.
        narrow_difference: the same with attention windows of a few tokens. None for models without
            windows.
        decode_difference: the same over greedy steps. None if no step was compared, because weights
            are streamed.
        allowed: limit of each of these differences.
        decoded: number of greedy steps that were compared.
        cached: True if each step read one token and took the rest from a cache. Some model types
            have no cache.
        generated: text that the reloaded model generated.
        reference: output of the reloaded model, for later comparisons.
        weights: number of tensors whose digest equals that of their source. None if they were made
            in memory.
    """

    prefill_difference: float
    narrow_difference: float | None
    decode_difference: float | None
    allowed: float
    decoded: int
    cached: bool
    generated: str
    reference: Reference = field(repr=False, metadata=json_as(hidden=True))
    weights: int | None = None


@dataclass(frozen=True)
class Exported:
    """A finished export.

    Attributes:
        folder: folder of the checkpoint.
        candidate: candidate that was exported.
        export_format: name of an export format (see `export.formats`).
        params: number of parameters of the checkpoint as it is loaded.
        bytes: bytes of the weight files.
        verification: result of the comparison with the scored candidate.
        changed: changes that were made to the weights before they were written. Empty if the
            weights are those of the base model.
        pushed: URL of the upload. None if nothing was uploaded.
    """

    folder: Path
    candidate: LayerSubset = field(metadata=json_as("dropped"))
    export_format: str = field(metadata=json_as("form"))
    params: int
    bytes: int
    verification: Verification
    changed: tuple[str, ...] = field(default=(), metadata=json_as(hidden=True))
    pushed: str | None = field(default=None, metadata=json_as(omit_none=True))


@dataclass(frozen=True)
class LlamaCppCheck:
    """Result of running a file in llama.cpp.

    Attributes:
        difference: mean difference of a log-probability, over the likeliest tokens of each step, in
            nats.
        largest: largest such difference.
        allowed: limit of the mean. The limit of the largest difference is ten times as high.
        steps: number of tokens that were generated greedily.
        generated: text that was generated after the prompt.
    """

    difference: float
    largest: float
    allowed: float
    steps: int
    generated: str


@dataclass(frozen=True)
class ExportedGguf:
    """A GGUF file that was written.

    Attributes:
        path: the file.
        bytes: size of the file.
        candidate: candidate that was exported.
        check: comparison in llama.cpp. None if it is not installed.
    """

    path: Path = field(metadata=json_as("gguf"))
    bytes: int
    candidate: LayerSubset = field(metadata=json_as("dropped"))
    check: LlamaCppCheck | None = field(metadata=json_as("llama_cpp"))


@dataclass(frozen=True)
class PrintedRecipe:
    """A recipe for another program. Nothing was written.

    Attributes:
        candidate: candidate that the recipe makes.
        text: the recipe.
    """

    candidate: LayerSubset = field(metadata=json_as("dropped"))
    text: str = field(metadata=json_as("said"))


@dataclass(frozen=True)
class Recheck:
    """Result of a repeated verification of a checkpoint.

    Attributes:
        folder: folder of the export.
        base_model: name of the base model.
        dropped: dropped layers, as ``3,7a,12m``.
        export_format: form of the export.
        weights: number of tensors that were compared.
        difference: largest difference of a logit from the stored output.
        against_base: comparison with the dense model's candidate. None without the dense model.
    """

    folder: Path
    base_model: str
    dropped: str
    export_format: str = field(metadata=json_as("form"))
    weights: int
    difference: float
    against_base: Verification | None = field(default=None, metadata=json_as(omit_none=True))


@dataclass(frozen=True)
class Generated:
    """A text that llama.cpp generated."""

    generated: str


@dataclass(frozen=True)
class GgufRecheck:
    """Result of a repeated verification of a GGUF file.

    Attributes:
        path: the file.
        dropped: dropped layers, as ``3,7a,12m``.
        tensors: number of tensors that were compared.
        compared: whether llama.cpp's predictions were compared with the dense model's candidate.
        llama_cpp: the comparison, or a generated text without a dense model. None if llama.cpp is
            not installed.
    """

    path: Path = field(metadata=json_as("gguf"))
    dropped: str
    tensors: int
    compared: bool
    llama_cpp: LlamaCppCheck | Generated | None
