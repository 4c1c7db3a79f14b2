"""GGUF files: written from a checkpoint, edited block by block, exported as safetensors."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from prunesearch.candidate import LayerSubset
from prunesearch.cli.main import cli
from prunesearch.errors import InputError, ModelError, VerificationError
from prunesearch.export import (
    export,
    gguf_edit,
    gguf_record,
    gguf_tokenizer,
    gguf_write,
    llama_cpp,
)
from prunesearch.export.results import LlamaCppCheck
from prunesearch.models.loading import LoadedModel, load
from prunesearch.models.surgery import pruned
from tests.support.models import N_LAYERS, byte_tokenizer, store_head_apart, tiny

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [
    ("t", "h"),
    ("th", "e"),
    ("Ġ", "the"),
    ("Ġ", "Ġ"),
    ("1", "2"),
    ("'", "s"),
    ("Ċ", "Ċ"),
    ("e", "r"),
]
LLAMA_RULE, QWEN_RULE = gguf_tokenizer._CUTS
DENSE, BLOCKS = LayerSubset.of(N_LAYERS), LayerSubset.of(N_LAYERS, (0, 3))
IDS = torch.arange(1, 20)[None]


@pytest.fixture
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A tiny Llama that speaks ASCII: llama.cpp holds back the bytes of an unfinished character."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer(
        ("t", "h"), ascii_only=True
    )  # without a merge llama.cpp takes no tokeniser
    tiny(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load(str(folder), device="cpu")


@pytest.fixture
def dense_file(loaded: LoadedModel, tmp_path: Path) -> Path:
    path = tmp_path / "dense.gguf"
    gguf_write.write(loaded, DENSE, path, compare=False)
    return path


def contents(path: Path) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    reader = gguf.GGUFReader(path)
    fields = {
        k: f.contents()
        for k, f in reader.fields.items()
        if not k.startswith("GGUF.") and k != "general.name"
    }
    return fields, {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}


def test_an_edited_file_is_the_one_that_is_written(
    loaded: LoadedModel, dense_file: Path, tmp_path: Path
) -> None:
    written, edited = tmp_path / "written.gguf", tmp_path / "edited.gguf"
    check = gguf_write.write(loaded, BLOCKS, written, compare=True)
    assert check is not None
    assert check.difference <= check.allowed
    assert gguf_edit.edit(dense_file, BLOCKS, edited, loaded) is not None
    (fields, tensors), (edited_fields, edited_tensors) = contents(written), contents(edited)
    assert fields == edited_fields
    assert fields["llama.block_count"] == 4
    assert tensors.keys() == edited_tensors.keys()
    assert all(np.array_equal(tensors[name], edited_tensors[name]) for name in tensors)


def test_a_head_that_is_stored_apart_is_written_apart(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(("t", "h"), ascii_only=True)
    tiny(vocab_size=len(tokenizer), tie_word_embeddings=True).save_pretrained(tmp_path / "apart")
    tokenizer.save_pretrained(tmp_path / "apart")
    head = store_head_apart(tmp_path / "apart")
    gguf_write.write(
        load(str(tmp_path / "apart"), device="cpu"), BLOCKS, tmp_path / "out.gguf", compare=True
    )
    _, tensors = contents(tmp_path / "out.gguf")
    assert np.array_equal(tensors["output.weight"], head.numpy())
    assert np.array_equal(tensors["token_embd.weight"], head.flip(0).numpy())


def test_llama_cpp_finds_the_wrong_blocks(
    loaded: LoadedModel, dense_file: Path, tmp_path: Path
) -> None:
    other = LayerSubset.of(N_LAYERS, (1, 4))
    with pytest.raises(VerificationError, match=r"llama\.cpp predicts something else"):
        llama_cpp.check(dense_file, loaded, other, "F32")
    assert [path.name for path in tmp_path.iterdir()] == ["dense.gguf"]


@torch.inference_mode()
def test_a_gguf_is_exported_as_safetensors(
    loaded: LoadedModel, dense_file: Path, tmp_path: Path
) -> None:
    from_file = load(str(dense_file), dtype="float32")
    export(from_file, BLOCKS, tmp_path / "out")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with pruned(loaded.model, BLOCKS) as candidate:
        torch.testing.assert_close(
            reloaded(IDS).logits, candidate(IDS).logits, rtol=1e-4, atol=1e-4
        )


def test_a_damaged_file_is_refused(dense_file: Path, tmp_path: Path) -> None:
    dense_file.write_bytes(dense_file.read_bytes()[:100])
    with pytest.raises(ModelError, match="as GGUF"):
        gguf_edit.edit(dense_file, BLOCKS, tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["dense.gguf"]


def whole_tokenizer(
    rule: str = "gpt-2",
    *,
    normalizer: normalizers.Normalizer | None = None,
    prefix: bool = False,
    begins: bool = False,
    added: Sequence[AddedToken] = (),
) -> PreTrainedTokenizerFast:
    """A tokenizer with all bytes, that cuts text as models that are in use do."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    bare = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)
    cuts = {
        "gpt-2": byte_level,
        "smollm": pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), byte_level]
        ),
        "llama-bpe": pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(LLAMA_RULE), "isolated"), bare]
        ),
        "qwen2": pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(QWEN_RULE), "isolated"), bare]
        ),
    }
    words = ["<s>", *LETTERS, *("".join(merge) for merge in MERGES)]
    backend = Tokenizer(
        models.BPE(
            {word: i for i, word in enumerate(words)}, MERGES, ignore_merges=rule == "llama-bpe"
        )
    )
    backend.pre_tokenizer, backend.decoder = cuts[rule], decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    if begins:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="<s>", pad_token="<s>"
    )
    made.add_tokens(list(added))
    return made


def with_tokenizer(
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    **changes: Any,  # noqa: ANN401
) -> LoadedModel:
    tiny(vocab_size=len(tokenizer), **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("rule", "begins"),
    [("gpt-2", True), ("smollm", False), ("llama-bpe", False), ("qwen2", False)],
)
def test_tokens_are_those_of_llama_cpp(rule: str, begins: bool, tmp_path: Path) -> None:
    added = [AddedToken("<tool>"), AddedToken("<|end|>", special=True)]
    normalizer = normalizers.NFC() if rule == "qwen2" else None
    tokenizer = whole_tokenizer(rule, begins=begins, normalizer=normalizer, added=added)
    loaded = with_tokenizer(tokenizer, tmp_path / "m")
    assert len(gguf_tokenizer.read(loaded.tokenizer, len(tokenizer)).probes()) >= 9
    gguf_write.write(loaded, BLOCKS, tmp_path / "out.gguf", compare=True)
    fields, _ = contents(tmp_path / "out.gguf")
    assert fields["tokenizer.ggml.pre"] == rule
    assert fields["tokenizer.ggml.add_bos_token"] is begins
    assert fields["tokenizer.ggml.add_eos_token"] is False


OTHERS = {
    "Lowercase": whole_tokenizer(normalizer=normalizers.Lowercase()),
    "NFKC": whole_tokenizer(
        normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.NFKC()])
    ),
    "Strip": whole_tokenizer(normalizer=normalizers.Strip()),
    "lstrip": whole_tokenizer(added=[AddedToken("<tool>", lstrip=True)]),
    "rstrip": whole_tokenizer(added=[AddedToken("<tool>", rstrip=True)]),
    "add_prefix_space": whole_tokenizer(prefix=True),
}


@pytest.mark.parametrize("reason", OTHERS)
def test_tokenizers_that_llama_cpp_cannot_follow_are_refused(reason: str, tmp_path: Path) -> None:
    loaded = with_tokenizer(OTHERS[reason], tmp_path / "m")
    with pytest.raises(InputError, match=reason):
        gguf_write.write(loaded, BLOCKS, tmp_path / "out.gguf", compare=False)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(
    ("complaint", "changes"),
    [
        ("silu, not gelu", {"hidden_act": "gelu"}),
        (
            "0.5 of each",
            {
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e4,
                    "partial_rotary_factor": 0.5,
                }
            },
        ),
        ("no weights of torch.float64", {"dtype": torch.float64}),
        ("the model's embedding 64 rows", {"vocab_size": 64}),
    ],
)
def test_models_that_llama_cpp_would_compute_otherwise_are_refused(
    complaint: str, changes: dict[str, Any], loaded: LoadedModel, tmp_path: Path
) -> None:
    other = replace(loaded, model=tiny(**{"vocab_size": len(loaded.tokenizer), **changes}))
    with pytest.raises(InputError, match=re.escape(complaint)):
        gguf_write.write(other, BLOCKS, tmp_path / "out.gguf", compare=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("reason", ["NFKC"])
def test_what_no_field_says_is_found_by_comparing_tokens(
    reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_tokenizer, "_refuse_others", lambda stored: None)
    loaded = with_tokenizer(OTHERS[reason], tmp_path / "m")
    with pytest.raises(InputError, match=r"llama\.cpp cuts the text .* into the tokens"):
        gguf_write.write(loaded, BLOCKS, tmp_path / "out.gguf", compare=True)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("scale", [0.05, 30.0])
def test_the_limit_grows_with_the_logits(scale: float, loaded: LoadedModel, tmp_path: Path) -> None:
    with torch.no_grad():
        loaded.model.get_parameter("model.norm.weight").mul_(scale)
    path = tmp_path / "out.gguf"
    gguf_write.write(loaded, BLOCKS, path, compare=scale > 1)
    with pytest.raises(VerificationError, match="predicts something else"):
        llama_cpp.check(path, loaded, LayerSubset.of(N_LAYERS, (1, 4)), "F32")


def test_weights_that_are_only_said_to_be_tied_are_written(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    tied = with_tokenizer(loaded.tokenizer, tmp_path / "m", tie_word_embeddings=True)  # type: ignore[arg-type]
    gguf_write.write(tied, BLOCKS, tmp_path / "tied.gguf", compare=False)
    assert "output.weight" not in contents(tmp_path / "tied.gguf")[1]
    head = tied.model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach() + 1)
    gguf_write.write(tied, BLOCKS, tmp_path / "apart.gguf", compare=False)
    assert "output.weight" in contents(tmp_path / "apart.gguf")[1]


def test_llama_cpp_is_not_waited_for_for_ever(
    dense_file: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp, "_START_SECONDS", 0)
    monkeypatch.setattr(llama_cpp, "_BYTES_PER_SECOND", 1e12)
    with pytest.raises(VerificationError, match="did not finish"):
        llama_cpp.check(dense_file, loaded, DENSE, "F32")


@pytest.mark.parametrize("name", ["M.GGUF", "b179c9523d0e"])
def test_a_gguf_is_known_by_suffix_or_content(
    name: str, dense_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "blobs" / name
    path.parent.mkdir()
    dense_file.rename(path)
    assert load(str(path), dtype="float32").source.gguf == path
    result = CliRunner().invoke(
        cli, ["export", str(path), "--layers", "0,3", "--gguf", "--out", str(tmp_path / "o.GGUF")]
    )
    assert result.exit_code == 0, result.output
    assert (
        "exported without layers 0,3"
        in CliRunner().invoke(cli, ["verify", str(tmp_path / "o.GGUF")]).stdout
    )
    assert CliRunner().invoke(cli, ["analyze", str(path), "--json"]).exit_code == 0
    assert CliRunner().invoke(cli, ["plan", str(path), "--json"]).exit_code == 0


def test_parts_of_a_gguf_are_refused_by_name(dense_file: Path, tmp_path: Path) -> None:
    part = tmp_path / "m-00002-of-00003.gguf"
    dense_file.rename(part)
    for words in (
        "analyze PART",
        "export PART --layers 3 --out out",
        "evaluate PART",
        "search PART --drop 1",
        "verify PART",
    ):
        error = (
            CliRunner()
            .invoke(cli, [word.replace("PART", str(part)) for word in words.split()])
            .exception
        )
        assert isinstance(error, InputError), words
        assert "llama-gguf-split --merge m-00001-of-00003.gguf m.gguf" in str(error)


def test_a_gguf_export_is_verified_again(
    loaded: LoadedModel, dense_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.gguf"
    gguf_edit.edit(dense_file, BLOCKS, out, None, loaded.fingerprint)
    found = gguf_record.recheck(out, loaded)
    assert (found.dropped, found.compared) == ("0,3", True)
    assert isinstance(found.llama_cpp, LlamaCppCheck)
    assert found.llama_cpp.difference < found.llama_cpp.allowed
    monkeypatch.setattr(llama_cpp, "available", lambda: False)
    assert gguf_record.recheck(out).llama_cpp is None
    with pytest.raises(InputError, match="is not the model"):
        gguf_record.recheck(out, replace(loaded, fingerprint="other"))
    content = bytearray(out.read_bytes())
    content[-1] ^= 1
    out.write_bytes(content)
    with pytest.raises(VerificationError, match="are not those that were written"):
        gguf_record.recheck(out)
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "llama")
    writer.add_tensor("x", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match="does not say what it was made from"):
        gguf_record.recheck(tmp_path / "other.gguf")
