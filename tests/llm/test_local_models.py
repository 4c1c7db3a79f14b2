"""Language models on this machine, without llama.cpp."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prunesearch.errors import InputError
from prunesearch.llm.chat import ChatRequest, LanguageModelError
from prunesearch.llm.client import ChatClient
from prunesearch.llm.llama_server import LlamaServer
from prunesearch.llm.opening import open_chat
from prunesearch.llm.transformers_chat import TransformersChat

REQUEST = ChatRequest("m", "be brief", "count", 0.7, 5, 6)


def test_a_folder_replies_the_same_for_the_same_seed(make_model: Callable[..., Path]) -> None:
    chat = open_chat(None, str(make_model()), 60.0)
    assert isinstance(chat, TransformersChat)
    before = torch.random.get_rng_state()
    one, two = chat.complete(REQUEST), chat.complete(REQUEST)
    assert one.text == two.text
    assert one.completion_tokens == 6
    assert not one.complete
    assert torch.equal(before, torch.random.get_rng_state())
    chat.close()


def test_a_folder_is_named_by_its_content(make_model: Callable[..., Path], tmp_path: Path) -> None:
    first, second = make_model(), make_model(name="other")
    assert TransformersChat(first).model == TransformersChat(second).model
    (second / "config.json").write_text((second / "config.json").read_text() + "\n")
    assert TransformersChat(first).model != TransformersChat(second).model


def test_a_folder_that_cannot_be_loaded_is_one_final_failure(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(LanguageModelError, match="cannot load") as caught:
        TransformersChat(tmp_path).complete(REQUEST)
    assert caught.value.final


def test_an_endpoint_is_opened_by_its_url() -> None:
    assert isinstance(open_chat("http://127.0.0.1:1/v1", "m", 5.0), ChatClient)


@pytest.mark.parametrize(
    ("name", "words"),
    [("absent.gguf", "does not exist"), ("empty", "no config.json"), ("text.gguf", "not a GGUF")],
)
def test_what_is_no_model_is_refused(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(InputError, match=f"llm_model.*{words}"):
        open_chat(None, str(tmp_path / name), 5.0)


def test_without_llama_cpp_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunesearch.llm.llama_server.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "prunesearch\[gguf\]"'):
        LlamaServer(tmp_path / "a.gguf")
