"""A folder of Hugging Face as a language model, which generates plain text in this process."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunesearch.errors import InputError
from prunesearch.llm.chat import MOST_CHARACTERS, ChatReply, ChatRequest, LanguageModelError
from prunesearch.llm.model_files import digest_of_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TransformersChat:
    """Generates replies with transformers. The model is loaded when it is first needed.

    Args:
        path: folder with the model and its tokenizer. Code of a checkpoint is not run.
        timeout: most seconds of a reply.

    Attributes:
        model: digest of the folder's content.

    Raises:
        InputError: the folder holds no model.
    """

    def __init__(self, path: Path, timeout: float = 600.0) -> None:
        self.model = f"folder-{digest_of_folder(path)[:32]}"
        self._path, self._timeout = path, timeout
        self._loaded: PreTrainedModel | None = None
        self._tokenizer: Any = None  # transformers has no type for all tokenizers

    def complete(self, request: ChatRequest) -> ChatReply:
        """Return the model's reply. The schema is not enforced.

        Raises:
            LanguageModelError: the model cannot be loaded, or the request is too long for it.
        """
        import torch

        begun = time.perf_counter()
        if self._loaded is None:
            self._load()
        model, tokenizer = self._loaded, self._tokenizer
        assert model is not None
        # The seed is used in this block only, so that other random numbers stay as they are.
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(request.seed)
            ids = self._prompt(request).to(model.device)
            made = model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=request.temperature > 0,
                temperature=max(request.temperature, 1e-3),
                max_new_tokens=request.max_tokens,
                max_time=self._timeout,
                pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id or 0,
            )
        new = made[0, ids.shape[1] :]
        text = str(tokenizer.decode(new, skip_special_tokens=True))
        return ChatReply(
            text=text[:MOST_CHARACTERS],
            prompt_tokens=int(ids.shape[1]),
            completion_tokens=int(new.numel()),
            seconds=round(time.perf_counter() - begun, 3),
            complete=int(new.numel()) < request.max_tokens,
        )

    def _prompt(self, request: ChatRequest) -> Any:  # noqa: ANN401 (a tensor; torch is imported late)
        """Return the token ids of a request, by the chat template if the tokenizer has one."""
        if self._tokenizer.chat_template:
            text = self._tokenizer.apply_chat_template(
                request.messages, tokenize=False, add_generation_prompt=True
            )
            return self._tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        text = f"{request.system}\n\n{request.user}\n\n"
        return self._tokenizer(text, return_tensors="pt").input_ids

    def _load(self) -> None:
        """Load the model and its tokenizer, onto the GPU if there is one."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(self._path, local_files_only=True)
            self._loaded = AutoModelForCausalLM.from_pretrained(
                self._path, local_files_only=True, dtype="auto", device_map=device
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise LanguageModelError(
                f"transformers cannot load {self._path.name}: {error}", final=True
            ) from None

    def close(self) -> None:
        """Drop the model."""
        self._loaded = None


def check_folder(path: Path) -> None:
    """Refuse a path that is neither a folder nor a GGUF file.

    Raises:
        InputError: there is nothing of that name.
    """
    if not path.exists():
        raise InputError(
            f"`llm_model` {path} does not exist: give a .gguf file, a folder, or the name of a "
            f"model at `llm_url`"
        )
