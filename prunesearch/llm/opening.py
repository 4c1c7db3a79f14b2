"""Opens the language model that a user names."""

from pathlib import Path

from prunesearch.llm.chat import Chat
from prunesearch.llm.client import ChatClient, require_openai
from prunesearch.llm.endpoint import Endpoint
from prunesearch.llm.llama_server import LlamaServer, check_gguf
from prunesearch.llm.transformers_chat import TransformersChat, check_folder


def check_chat(url: str | None, model: str) -> None:
    """Refuse a language model that cannot be opened, before anything else is done.

    Args:
        url, model: as `open_chat` takes them.

    Raises:
        InputError: the URL or the model cannot be used, or a package is not installed.
    """
    if url is not None:
        Endpoint.of(url, model)
        require_openai()
        return
    path = Path(model).expanduser()
    check_folder(path)
    if not path.is_dir():
        check_gguf(path)


def open_chat(
    url: str | None,
    model: str,
    timeout: float,
    retries: int = 3,
    context: int = 8192,
    threads: int | None = None,
) -> Chat:
    """Return the language model. Nothing is started or connected before the first request.

    Args:
        url: base URL of an endpoint; None for a model on this machine.
        model: name of the endpoint's model; or a ``.gguf`` file or a folder.
        timeout: most seconds of a request.
        retries: most attempts of a request after the first one.
        context: most tokens of a request and its reply, for a ``.gguf`` file.
        threads: number of threads for a ``.gguf`` file; None for one per core.

    Raises:
        InputError: the URL or the model cannot be used, or a package is not installed.
    """
    if url is not None:
        return ChatClient(Endpoint.of(url, model), timeout, retries)
    path = Path(model).expanduser()
    check_folder(path)
    if path.is_dir():
        return TransformersChat(path, timeout)
    return LlamaServer(path, context, timeout, threads)
