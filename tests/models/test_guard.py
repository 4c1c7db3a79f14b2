"""Whatever is wrong with a model's files is one line, whatever the reader of others raises."""

import json
import traceback
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import pytest

from prunesearch.candidate import LayerSubset
from prunesearch.errors import (
    DataError,
    ModelError,
    PruneSearchError,
    RunError,
)
from prunesearch.export import export
from prunesearch.models.config_edits import edits
from prunesearch.models.guard import guarded, guarded_writing, refuse_pointers
from prunesearch.models.loading import load
from prunesearch.models.model_configs import meta_model, read_config
from prunesearch.models.streaming import open_streamed
from tests.support.models import tiny

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 5\n"


def _edit(folder: Path, name: str, **values: object) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


class PanicException(BaseException):
    """As the one that code in Rust raises."""


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (KeyError("gone"), "cannot do it: KeyError: 'gone'; try again"),
        (ValueError("two\nlines"), "cannot do it: two lines; try again"),
        (AssertionError(), "cannot do it: AssertionError; try again"),
        (SyntaxError("bad"), "cannot do it: SyntaxError: bad; try again"),
        (SystemExit(7), r"its code ends the program \(exit status 7\)"),
        (
            UnpicklingError("use weights_only=False"),
            "holds more than tensors, which could run code; get it as safe",
        ),
        (PanicException("rust"), "cannot do it: PanicException: rust; try again"),
        (FileNotFoundError(2, "No such file"), "cannot do it: No such file; try again"),
    ],
)
def test_anything_that_foreign_code_raises_is_one_line(raised: BaseException, said: str) -> None:
    with (
        pytest.raises(DataError, match=said) as caught,
        guarded("cannot do it", advice="try again", kind=DataError),
    ):
        raise raised
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is raised


def test_writers_fail_in_one_line_and_full_disks_are_the_callers_matter() -> None:
    with (
        pytest.raises(RunError, match="the tokenizer cannot be written: TypeError: no"),
        guarded_writing("the tokenizer"),
    ):
        raise TypeError("no")
    with pytest.raises(OSError, match="No space left"), guarded_writing("the tokenizer"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    "raised", [KeyboardInterrupt(), GeneratorExit(), ModelError("said already")]
)
def test_stops_and_our_own_errors_pass(raised: BaseException) -> None:
    with pytest.raises(type(raised)) as caught, guarded("cannot do it", kind=DataError):
        raise raised
    assert caught.value is raised


def test_a_git_lfs_pointer_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("text")
    refuse_pointers(tmp_path)
    (tmp_path / "weights.bin").write_text(POINTER)  # of a format that may not be read at all
    refuse_pointers(tmp_path)
    with pytest.raises(ModelError, match=r"weights.bin' is a git-lfs pointer"):
        refuse_pointers([tmp_path, tmp_path / "weights.bin"])
    (tmp_path / "vocab.json").write_text(POINTER)
    with pytest.raises(ModelError, match=r"vocab.json' is a git-lfs pointer .* run 'git lfs pull'"):
        refuse_pointers(tmp_path)
    with pytest.raises(ModelError, match=r"git-lfs pointer"), guarded("cannot read it", tmp_path):
        raise ValueError("header too large")


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": None},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": "6"},
        {"num_hidden_layers": 4},
        {"num_hidden_layers": 10**7},
        {"hidden_size": "32"},
        {"hidden_size": -32},
        {"rms_norm_eps": "1e-5"},
        {"hidden_act": "no_such"},
        {"num_attention_heads": 5},
        {"num_attention_heads": 0},
        {"vocab_size": -1},
        {"rope_parameters": {"rope_type": "nonsense"}},
        {"rope_parameters": [1]},
        {"dtype": "float99"},
        {"layer_types": ["no_such"] * 6},
        {"model_type": 5},
        {"model_type": None},
        {"return_dict": False},
        {"head_dim": None, "num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 2},
    ],
    ids=str,
)
def test_a_config_that_does_not_add_up_is_one_line(
    make_config: Callable[[], Path], change: dict[str, object]
) -> None:
    folder = make_config()
    _edit(folder, "config.json", **change)
    with pytest.raises(ModelError) as caught:
        meta_model(read_config(str(folder)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "change"),
    [
        ("qwen3", {"layer_types": ["full_attention"] * 5}),
        ("llama", {"indexer_types": ["full"] * 5}),
        ("qwen3_moe", {"decoder_sparse_step": 0}),
        ("llama", {"decoder_sparse_step": "2"}),
        ("llama", {"rope_scaling_layers": ["x"]}),
        ("llama", {"first_k_dense_replace": "3"}),
    ],
    ids=str,
)
def test_fields_about_single_blocks_that_say_nothing_are_refused(
    architecture: str, change: dict[str, object]
) -> None:
    config = tiny(architecture).config
    for name, value in change.items():
        setattr(config, name, value)
    with pytest.raises(ModelError, match=f"{next(iter(change))} = .* correct it"):
        edits(config, "num_hidden_layers", (0, 1, 2, 3, 5))


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[[], Path]:
    def make() -> Path:
        tiny("qwen3").config.save_pretrained(tmp_path)
        return tmp_path

    return make


@pytest.mark.parametrize(
    "content", ["null", "[]", "", "{", "5", '"text"', '{"model_type": "llama"}x', "\ufffe"]
)
def test_a_config_that_is_no_object_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-16")
    (tmp_path / "utf8").mkdir()
    (tmp_path / "utf8" / "config.json").write_text(content)
    for folder in (tmp_path, tmp_path / "utf8"):
        with pytest.raises(ModelError, match="cannot read the config") as caught:
            read_config(str(folder))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("tokenizer.json", "[]", "cannot load the tokenizer"),
        (
            "tokenizer.json",
            '{"version": "1.0", "pre_tokenizer": {"type": "FromTheFuture"}}',
            "newer version",
        ),
        ("tokenizer.json", POINTER, "tokenizer.json' is a git-lfs pointer"),
        ("tokenizer_config.json", "[]", "cannot load the tokenizer"),
        ("special_tokens_map.json", "[]", "cannot load the tokenizer"),
        ("generation_config.json", "[]", "cannot load model"),
        ("model.safetensors", "junk", "cannot load model"),
        ("model.safetensors", POINTER, "model.safetensors' is a git-lfs pointer"),
    ],
)
def test_files_that_no_reader_takes_are_one_line(
    make_model: Callable[..., Path], name: str, content: str, complaint: str
) -> None:
    folder = make_model()
    (folder / name).write_text(content)
    with pytest.raises(ModelError, match=complaint) as caught:
        load(str(folder), device="cpu")
    assert "\n" not in str(caught.value)
    if name.startswith("tokenizer"):
        with pytest.raises(ModelError, match=complaint):
            open_streamed(str(folder), device="cpu")


def test_weights_of_junk_are_one_line(make_model: Callable[..., Path]) -> None:
    folder = make_model()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"junk")
    with pytest.raises(ModelError, match="cannot load model"):
        load(str(folder), device="cpu")


def test_weights_of_another_shape_are_one_line(make_model: Callable[..., Path]) -> None:
    folder = make_model()
    _edit(folder, "config.json", vocab_size=300)
    with pytest.raises(ModelError, match="a weight has another shape than the config says"):
        load(str(folder), device="cpu")


@pytest.mark.parametrize(
    "code",
    [
        "raise AttributeError('old')",
        "raise NameError",
        "import no_such_module_x",
        "1/0",
        "raise SystemExit(7)",
        "def f(:",
    ],
)
def test_code_of_a_checkpoint_that_fails_is_one_line(
    make_config: Callable[[], Path], code: str
) -> None:
    folder = make_config()
    (folder / "own.py").write_text(
        f"from transformers import LlamaConfig\n{code}\nclass C(LlamaConfig):\n    pass\n"
    )
    _edit(folder, "config.json", auto_map={"AutoConfig": "own.C"})
    with pytest.raises(ModelError, match="cannot read the config") as caught:
        read_config(str(folder), trust_remote_code=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "front",
    [
        b"- a\n- list",
        b"license: [unclosed",
        b"license: \xff\xfe",
        b"license: 5",
        b'license: "\\ud800"',
        b"a: 1\na: 2",
    ],
)
def test_the_card_of_the_base_model_stops_no_export(
    make_model: Callable[..., Path], tmp_path: Path, front: bytes
) -> None:
    folder = make_model()
    (folder / "README.md").write_bytes(b"---\n" + front + b"\n---\n# A model\n")
    made = export(load(str(folder), device="cpu"), LayerSubset.of(6, (2,)), tmp_path / "out")
    assert "applies: see its model card" in (made.folder / "README.md").read_text()


def test_the_cause_is_kept_for_programs(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("null")
    try:
        read_config(str(tmp_path))
    except PruneSearchError as error:
        shown = "".join(traceback.format_exception(error))
    assert "TypeError" in shown
