"""A byte-level BPE tokenizer for llama.cpp: what a GGUF says of it, and what llama.cpp would do otherwise.

llama.cpp knows rules for cutting text by name, and nothing of normalisers, prefix spaces or tokens that take spaces
with them. Tokenizers with those are refused by what their ``tokenizer.json`` says. Beyond that, llama.cpp is asked for
the tokens of some texts (`Tokenizer.probes`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import gguf
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase

from prunesearch.errors import InputError
from prunesearch.export.llama_cpp import OTHER_WAY
from prunesearch.model.guard import guarded_writing

# llama.cpp's name for the rule that cuts text before byte-pair encoding, by the rule's regular expression.
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CUTS: Mapping[str, str] = {
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_WORD}|\p{{N}}{{1,3}}|{_TAIL}": "llama-bpe",
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_WORD}|\p{{N}}|{_TAIL}": "qwen2",
}
_WHOLE_WORDS = frozenset({"llama-bpe"})
"""Rules with which llama.cpp takes a word that is a token whole, whatever the merges say."""
_TEXTS = (
    "The lighthouse keeper's log (1871): it's 42 miles, isn't it? THEY'LL say 1234567.89%",
    "  two spaces before,   three within, and two behind  ",
    "\tdef f(x):\n\t\treturn x**2  # why?\n\n\n\r\nend",
    "Ünïcödé, naïve café; Straße, ŒUVRE, ﬁn ①②, ½ ² — “quoted” … ``so''",
    "Привет, мир. 你好，世界。こんにちは、カタカナ。안녕하세요. नमस्ते दुनिया। سلام",
    "😀👍🏽 👩‍👩‍👧 e\u00a0f\u200bg",
    "_under_score_ camelCase HTTPServer https://example.org/a?b=c&d=1#e <tag attr='x'/>",
)
_MOST_TOKENS = 64
"""Of the added tokens, each of which is a probe of its own."""


@dataclass(frozen=True)
class Tokenizer:
    """What a GGUF says of a tokenizer.

    Attributes:
        words: the tokens of the vocabulary, by id.
        added: ``tokenizer.json``'s added tokens, by id.
        cut: llama.cpp's name of the rule that cuts text.
        begins, ends: whether a text begins and ends with the special tokens for that.
    """

    tokenizer: PreTrainedTokenizerBase
    words: Mapping[int, str]
    added: Mapping[int, Mapping[str, Any]]
    cut: str
    begins: bool
    ends: bool

    def add_to(self, writer: Any, vocab_size: int) -> None:  # noqa: ANN401 (gguf.GGUFWriter, which has no types)
        """Write it into a GGUF's header.

        Args:
            vocab_size: rows of the embedding; those without a token are padded.
        """
        words = {**self.words, **{number: entry["content"] for number, entry in self.added.items()}}
        types = dict.fromkeys(words, gguf.TokenType.NORMAL)
        for number, entry in self.added.items():
            types[number] = gguf.TokenType.CONTROL if entry["special"] else gguf.TokenType.USER_DEFINED
        with TemporaryDirectory() as folder:
            with guarded_writing("the tokenizer"):
                self.tokenizer.save_pretrained(folder)
            special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=vocab_size)
        # What is not said, llama.cpp decides by the rule's name.
        special.add_special_token = {"bos": self.begins, "eos": self.ends}
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.cut)
        writer.add_token_list([words.get(i, f"[PAD{i}]") for i in range(vocab_size)])
        writer.add_token_types([types.get(i, gguf.TokenType.UNUSED) for i in range(vocab_size)])
        special.add_to_gguf(writer, quiet=True)

    def probes(self) -> dict[str, list[int]]:
        """Texts that show where llama.cpp differs, and the tokens that they are."""
        letters = set("".join(self.words.values()))
        texts = [text for text in _TEXTS if set(_as_bytes(text)) <= letters]
        if not texts:
            texts = [text for text in (_ascii(text) for text in _TEXTS) if set(_as_bytes(text)) <= letters]
        special = [entry["content"] for entry in self.added.values()][:_MOST_TOKENS]
        texts += [f"a {word} b{word}c" for word in special if set(_as_bytes(f"a {word}bc")) <= letters]
        return {text: list(self.tokenizer(text)["input_ids"]) for text in texts}


def read(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Tokenizer:
    """Look at a tokenizer.

    Args:
        vocab_size: rows of the model's embedding.

    Raises:
        InputError: it is no byte-level BPE, does something to a text that llama.cpp does not, or has more tokens.
    """
    stored = _stored(tokenizer)
    _refuse_others(stored)
    cut = _cut(stored["pre_tokenizer"])
    if bool(stored["model"].get("ignore_merges")) != (cut in _WHOLE_WORDS):
        raise InputError(f"llama.cpp's rule {cut!r} merges words otherwise than this tokenizer: {OTHER_WAY}")
    words = {number: word for word, number in stored["model"]["vocab"].items()}
    added = {entry["id"]: entry for entry in stored["added_tokens"]}
    if (most := max([*words, *added])) >= vocab_size:
        raise InputError(
            f"the tokenizer has a token {most}, and the model's embedding {vocab_size} rows: export a checkpoint"
        )
    return Tokenizer(tokenizer, words, added, cut, *_ends(tokenizer))


def _stored(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"the tokenizer has no tokenizer.json, of which a GGUF is written: {OTHER_WAY}")
    found: dict[str, Any] = json.loads(backend.to_str())
    return found


def _refuse_others(stored: Mapping[str, Any]) -> None:
    """Refuse what llama.cpp has no place for.

    Raises:
        InputError: there is such a thing.
    """
    model, decoder = stored["model"], stored.get("decoder") or {}
    if model["type"] != "BPE" or model.get("byte_fallback") or decoder.get("type") != "ByteLevel":
        raise InputError(f"only byte-level BPE tokenizers can be written to a GGUF: {OTHER_WAY}")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise InputError(f"llama.cpp's byte-pair encoding has no {name}, and this tokenizer's has: {OTHER_WAY}")
    # Composing accents is what the normaliser of Qwen does, of which GGUFs are in common use all the same: texts are
    # composed nearly always.
    others = [kind for kind in _kinds(stored.get("normalizer"), "normalizers") if kind != "NFC"]
    if others:
        raise InputError(
            f"llama.cpp normalises no text, and this tokenizer does ({', '.join(others)}): its tokens would be others; "
            f"{OTHER_WAY}"
        )
    for entry in stored["added_tokens"]:
        if strips := [name for name in ("lstrip", "rstrip", "single_word") if entry.get(name)]:
            raise InputError(
                f"the token {entry['content']!r} is found by what stands beside it ({', '.join(strips)}), which "
                f"llama.cpp does not look at: {OTHER_WAY}"
            )


def _kinds(part: Mapping[str, Any] | None, inside: str) -> list[str]:
    """The types of a normaliser's steps."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [str(part["type"])]
    return [kind for step in part[inside] for kind in _kinds(step, inside)]


def _cut(stored: Mapping[str, Any] | None) -> str:
    """llama.cpp's name for a pre-tokeniser.

    Raises:
        InputError: it has none that this version knows.
    """
    steps = [] if stored is None else stored["pretokenizers"] if stored["type"] == "Sequence" else [stored]
    kinds = [step["type"] for step in steps]
    if any(step.get("add_prefix_space") for step in steps):
        raise InputError(
            f"llama.cpp puts no space before a text, and this tokenizer does (add_prefix_space): {OTHER_WAY}"
        )
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1].get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        rule = steps[0]["pattern"].get("Regex", "")
        if rule in _CUTS and steps[0]["behavior"] == "Isolated" and not steps[0]["invert"]:
            return _CUTS[rule]
    raise InputError(f"llama.cpp's name for this model's pre-tokeniser is not known: {OTHER_WAY}")


def _ends(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Whether a text begins and ends with special tokens.

    Raises:
        InputError: with others than those that llama.cpp adds.
    """
    bare: Sequence[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: Sequence[int] = tokenizer("a")["input_ids"]
    begin, end = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    for begins, ends in ((False, False), (True, False), (False, True), (True, True)):
        if list(whole) == [*begin * begins, *bare, *end * ends]:
            return begins, ends
    raise InputError(f"this tokenizer puts more round a text than a first and a last token: {OTHER_WAY}")


def _as_bytes(text: str) -> str:
    """A text in the letters that byte-level tokens are made of."""
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return "".join(part for part, _ in cut)


def _ascii(text: str) -> str:
    """What a vocabulary without the bytes of other scripts can say of a text."""
    return "".join(letter for letter in text if " " <= letter <= "~")
