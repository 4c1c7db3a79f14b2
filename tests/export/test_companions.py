"""The base's small files travel as they are;
weights, keys, data and code that was not trusted stay where they are.
"""

import fnmatch
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from prunesearch.candidate import LayerSubset
from prunesearch.export import export, gguf_write
from prunesearch.export.companions import companions_of, is_companion
from prunesearch.models import source
from prunesearch.models.loading import load
from tests.support.models import N_LAYERS, byte_tokenizer, tiny

CANDIDATE = LayerSubset.of(N_LAYERS, (1,))


@pytest.mark.parametrize(
    "name",
    """tokenizer.json tokenizer.model.v3 tokenizer.bin tekken.json source.spm target.spm encoder.json vocab.bpe
    sentencepiece.bpe.model spiece.model bpe.codes dict.txt qwen.tiktoken added_tokens.json chat_template.jinja
    chat_template.json generation_config.json preprocessor_config.json processor_config.json normalizer.json LICENSE
    LICENCE.txt license.md COPYING COPYING.LESSER NOTICE Notice.txt MODEL_LICENSE USE_POLICY.md TERMS.txt""".split(),
)
def test_a_file_of_the_model_goes_along(name: str) -> None:
    assert is_companion(name)
    assert any(fnmatch.fnmatch(name, pattern) for pattern in source._SMALL), "it is downloaded, too"


@pytest.mark.parametrize(
    "name",
    """model.safetensors pytorch_model.bin consolidated.00.pth tf_model.h5 model.onnx model.gguf params.json
    model.safetensors.index.json config.json README.md prunesearch.json verification.json adapter_config.json
    trainer_state.json training_args.bin all_results.json optimizer.pt .env .gitattributes id_rsa secret.key token
    train.jsonl data.parquet picture.png script.sh modeling.py tokenizer.py vocab.pkl""".split(),
)
def test_a_file_of_something_else_stays(name: str) -> None:
    assert not is_companion(name)


def test_templates_and_trusted_code_are_found_in_folders(tmp_path: Path) -> None:
    for name in (
        "additional_chat_templates/tools.jinja",
        "code/deep/layers.py",
        ".git/hook.py",
        "onnx/config.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")

    def found(*, code: bool) -> list[str]:
        return [str(path.relative_to(tmp_path)) for path in companions_of(tmp_path, code=code)]

    assert found(code=False) == ["additional_chat_templates/tools.jinja"]
    assert found(code=True) == ["additional_chat_templates/tools.jinja", "code/deep/layers.py"]


@pytest.mark.parametrize("stored", ["safetensors", "bin", "bfloat16"])
def test_files_are_byte_identical_whatever_form_the_weights_have(
    stored: str, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    base = make_model()
    small = {
        "LICENSE": "may be used",
        "tekken.json": "{}",
        "chat_template.jinja": "{{messages}}",
        "generation_config.json": '{"top_k": 7,  "my_own": 3}',
        "tokenizer_config.json": '{"tokenizer_class": "PreTrainedTokenizerFast",  "bos_token": '
        '"<s>"}',
        "processor_config.json": '{"image": {"auto_map": {"AutoProcessor": "x.Y"}, "size": 3}}',
    }
    for name, text in small.items():
        (base / name).write_text(text)
    if stored == "bin":
        torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
        (base / "model.safetensors").unlink()
    loaded = load(str(base), device="cpu", dtype="bfloat16" if stored == "bfloat16" else "auto")
    out = export(loaded, CANDIDATE, tmp_path / "out").folder
    assert json.loads((out / "processor_config.json").read_text()) == {"image": {"size": 3}}, (
        "code was not trusted"
    )
    for name in {*small} - {"processor_config.json"}:
        assert (out / name).read_text() == small[name]
    config, dense = (json.loads((folder / "config.json").read_text()) for folder in (out, base))
    follows = {"dtype": "bfloat16"} if stored == "bfloat16" else {}
    assert config == {**dense, "num_hidden_layers": 5, **follows}


def test_an_export_of_a_gguf_has_files_for_older_programs_too(tmp_path: Path) -> None:
    folder = tmp_path / "dense"
    tokenizer = byte_tokenizer(("t", "h"), ascii_only=True)
    tiny(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    place = tmp_path / "gguf" / "dense.gguf"
    place.parent.mkdir()
    gguf_write.write(
        load(str(folder), device="cpu"), LayerSubset.of(N_LAYERS), place, compare=False
    )
    (place.parent / "LICENSE").write_text("may be used")
    out = export(load(str(place), device="cpu"), CANDIDATE, tmp_path / "out").folder
    said = json.loads((out / "tokenizer_config.json").read_text())
    assert said["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not isinstance(said.get("extra_special_tokens"), list)
    assert (
        AutoTokenizer.from_pretrained(out)("the ship")["input_ids"]
        == tokenizer("the ship")["input_ids"]
    )
    config = json.loads((out / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert config["torch_dtype"] == config["dtype"]
    assert (out / "LICENSE").read_text() == "may be used"
    for path in out.glob("*.json"):
        assert str(tmp_path) not in path.read_text(), "no path of this machine travels with a model"
