"""Exports of tiny models of every type, checked by other means, and exports with planted mistakes."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, ModelError, VerificationError
from prunesearch.export import checkpoint, checkpoint_files, export, reloading
from prunesearch.models.loading import load
from prunesearch.models.structure import blocks_of
from prunesearch.models.weight_files import INDEX
from tests.support.model_types import N_LAYERS, tiny_model
from tests.support.models import byte_tokenizer

SHARD = 40_000
"""Bytes of a tiny model's largest shard: there are several."""
_AGREES = (
    1e-3  # recurrent states in float32 differ by 3e-4 of the largest logit from the whole text's
)


@dataclass(frozen=True)
class Tried:
    """What became of one type without some blocks.

    Attributes:
        outcome: ``verified``, ``refused``, ``not built`` (by transformers), ``failed``
            (verification said no), or ``silently wrong``.
        reason: why, in one line; empty when verified.
        difference: largest difference of a logit in our verification, as a share of the largest
            logit.
        otherwise: the same by other means.
    """

    model_type: str
    dropped: str
    outcome: str
    reason: str = ""
    difference: float = 0.0
    otherwise: float = 0.0


def try_type(model_type: str, dropped: str, folder: Path) -> Tried:
    """Build, save, export, and check by other means."""
    source, out = folder / "dense", folder / "out"
    for path in (source, out):
        shutil.rmtree(path, ignore_errors=True)
    try:
        model = tiny_model(model_type)
        model(torch.arange(1, 25)[None])
        model.save_pretrained(source, max_shard_size=SHARD)
    except Exception as error:  # noqa: BLE001 (each of 189 classes fails in its own way)
        return Tried(
            model_type,
            dropped,
            "not built",
            " ".join(f"{type(error).__name__}: {error}".split())[:160],
        )
    byte_tokenizer().save_pretrained(source)
    candidate = LayerSubset.parse(dropped, N_LAYERS)
    try:
        loaded = load(str(source), device="cpu")
        made = export(loaded, candidate, out, max_shard=SHARD)
    except VerificationError as error:
        return Tried(model_type, dropped, "failed", str(error))
    except (InputError, ModelError) as error:
        return Tried(model_type, dropped, "refused", str(error).replace(str(folder), "FOLDER"))
    except Exception as error:  # noqa: BLE001 (neither verified nor refused in one line: a fault of ours)
        return Tried(model_type, dropped, "failed", f"{type(error).__name__}: {error}")
    found = made.verification
    scale = found.allowed / 1e-4
    otherwise = by_other_means(loaded.model, candidate, out)
    outcome = "verified" if otherwise <= _AGREES else "silently wrong"
    difference = max(found.prefill_difference, found.decode_difference or 0.0)
    return Tried(model_type, dropped, outcome, "", difference / scale, otherwise)


@torch.inference_mode()
def by_other_means(dense: PreTrainedModel, candidate: LayerSubset, out: Path) -> float:
    """Difference of an export's logits from the dense model's with hooks, and of cached from
    uncached decoding.

    Returns:
        The larger of both, as a share of the largest logit.
    """
    exported = AutoModelForCausalLM.from_pretrained(out).eval()
    vocabulary = exported.get_input_embeddings().weight.shape[0]
    ids = torch.randint(
        1, min(vocabulary, 260), (1, 33), generator=torch.Generator().manual_seed(1)
    )
    hooks = [
        blocks_of(dense)[i].register_forward_hook(_hand_on, with_kwargs=True)
        for i in candidate.dropped
    ]
    expected = dense(input_ids=ids, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    actual = exported(input_ids=ids, use_cache=False).logits
    scale = float(expected.abs().max())
    difference = float((expected - actual).abs().max()) / scale
    if (
        _cached_from_whole(dense, ids) / scale > _AGREES
    ):  # so this type decodes: XLNet and Moshi, even the dense model
        return difference
    return max(difference, _cached_from_whole(exported, ids) / scale)


def _cached_from_whole(model: PreTrainedModel, ids: torch.Tensor) -> float:
    """Largest difference of a logit in decoding with a cache from the same text read as a whole."""
    text: Any = model.generate(  # type: ignore[operator]
        input_ids=ids, do_sample=False, max_new_tokens=12, min_new_tokens=12, use_cache=True,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    whole = model(input_ids=text.sequences[:, :-1], use_cache=False).logits[0, ids.shape[1] - 1 :]
    return float((whole - torch.stack(text.logits)[:, 0]).abs().max())


def _hand_on(_: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> Any:  # noqa: ANN401
    hidden = args[0] if args else kwargs["hidden_states"]
    return (hidden, *output[1:]) if isinstance(output, tuple | list) else hidden


def _stale(field: str, value: object) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        assert config[field] != value
        path.write_text(json.dumps({**config, field: value}))

    return plant


def _swap_shards(folder: Path) -> None:
    """Exchange two files, so that the index is wrong;
    transformers reads each file's own header and does not mind.
    """
    index = json.loads((folder / INDEX).read_text())
    first, second, *_ = sorted(set(index["weight_map"].values()))
    spare = folder / "spare"
    (folder / first).rename(spare)
    (folder / second).rename(folder / first)
    spare.rename(folder / second)


def _another_checkpoints_shard(folder: Path) -> None:
    """The same names and shapes, other weights."""
    index = json.loads((folder / INDEX).read_text())
    path = folder / sorted(set(index["weight_map"].values()))[1]
    save_file(
        {name: tensor.flip(0) for name, tensor in load_file(path).items()}, path, {"format": "pt"}
    )


def _swap_tensors(folder: Path) -> None:
    """Two blocks' tensors under each other's names, as a renumbering that is off by one makes
    them.
    """
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if ".layers.1." in name]:
        other = name.replace(".layers.1.", ".layers.2.")
        tensors[name], tensors[other] = tensors[other], tensors[name]
    save_file(tensors, path, {"format": "pt"})


@dataclass(frozen=True)
class Mistake:
    """A mistake in the files of an export of a tiny model of some type, or in the model that is
    loaded from them.

    Attributes:
        harmless: to transformers, so that no logit can tell.
    """

    name: str
    model_type: str
    in_files: Callable[[Path], None] | None = None
    in_memory: Callable[[PreTrainedModel], None] | None = None
    tied: bool = False
    max_shard: int = 10**9
    harmless: bool = False


def _number_caches_as_before(model: PreTrainedModel) -> None:
    for old, block in zip((1, 2, 4, 5), blocks_of(model), strict=True):
        block.self_attn.layer_idx = old  # type: ignore[union-attr]


def _share_a_cache(model: PreTrainedModel) -> None:
    for number, block in zip((0, 1, 1, 2), blocks_of(model), strict=True):
        block.self_attn.layer_idx = number  # type: ignore[union-attr]


MISTAKES = (
    Mistake("stale layer_types", "gemma2", _stale("layer_types", ["full_attention"] * 4)),
    Mistake(
        "layer_types cut, not sliced",
        "gemma2",
        _stale("layer_types", ["sliding_attention", "full_attention"] * 2),
    ),
    Mistake("stale no_rope_layers", "smollm3", _stale("no_rope_layers", [1, 1, 1, 0])),
    Mistake("unrenumbered cache index", "llama", in_memory=_number_caches_as_before),
    Mistake("two blocks with one cache index", "llama", in_memory=_share_a_cache),
    Mistake("swapped shards", "llama", _swap_shards, max_shard=60_000, harmless=True),
    Mistake("another checkpoint's shard", "llama", _another_checkpoints_shard, max_shard=60_000),
    Mistake("swapped blocks", "llama", _swap_tensors),
    Mistake("untied head", "llama", _stale("tie_word_embeddings", False), tied=True),
    Mistake("stale count of dense blocks", "deepseek_v3", _stale("first_k_dense_replace", 3)),
)


@contextmanager
def planted(mistake: Mistake) -> Iterator[None]:
    """Let exports make a mistake inside the ``with`` block."""
    write, read = checkpoint_files.write_files, reloading.reload

    def written(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        done = write(*args, **kwargs)
        if mistake.in_files is not None:
            mistake.in_files(args[3])
        return done

    def reloaded(*args: Any, **kwargs: Any) -> PreTrainedModel:  # noqa: ANN401
        model = read(*args, **kwargs)
        if mistake.in_memory is not None:
            mistake.in_memory(model)
        return model

    with (
        mock.patch.object(checkpoint, "write_files", written),
        mock.patch.object(reloading, "reload", reloaded),
    ):
        yield


def complaint(mistake: Mistake, folder: Path, *, digests: bool = True) -> str | None:
    """What verification says of a mistake; None if it says nothing.

    Args:
        digests: compare the digests of the weights, which catch some mistakes before the logits do.
    """
    source = folder / "dense"
    tiny_model(mistake.model_type, tie_word_embeddings=mistake.tied).save_pretrained(source)
    byte_tokenizer().save_pretrained(source)
    loaded = load(str(source), device="cpu")
    checks = nullcontext() if digests else mock.patch.object(checkpoint, "check_digests")
    with planted(mistake), checks:
        try:
            export(
                loaded,
                LayerSubset.of(N_LAYERS, (0, 3)),
                folder / "out",
                max_shard=mistake.max_shard,
            )
        except VerificationError as error:
            return str(error)
    return None
