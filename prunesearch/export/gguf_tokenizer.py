"""Byte-level BPE tokenizers in GGUF files.

llama.cpp knows the rules that split text by name. It does not support normalisers, prefix spaces,
or tokens that absorb spaces. Tokenizers with these are refused, judged by their ``tokenizer.json``.
In addition llama.cpp must give the right tokens for some texts (`Tokenizer.probes`).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Self

import gguf
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase

from prunesearch.errors import InputError
from prunesearch.export.llama_cpp import OTHER_WAY
from prunesearch.models.guard import guarded_writing
from prunesearch.runtime.json_values import JsonObject, as_int, as_list, as_object, as_text

# llama.cpp's name of the rule that splits text before byte-pair encoding, by the rule's regular
# expression.
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CUTS: Mapping[str, str] = {
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_WORD}|\p{{N}}{{1,3}}|{_TAIL}": "llama-bpe",
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_WORD}|\p{{N}}|{_TAIL}": "qwen2",
}
_WHOLE_WORDS = frozenset({"llama-bpe"})
"""Rules with which llama.cpp keeps a word whole if it is a token, whatever the merges say."""
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
"""Largest number of added tokens that are probed. Each of them is a probe of its own."""
_STRIPS = ("lstrip", "rstrip", "single_word")


@dataclass(frozen=True)
class AddedToken:
    """A token beside the vocabulary.

    Attributes:
        content: text of the token.
        special: True for a token such as the end of a text.
        strips: rules by which the text beside the token decides whether it is found.
    """

    content: str
    special: bool
    strips: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenizerFile:
    """The parts of ``tokenizer.json`` that a GGUF depends on.

    Attributes:
        model: rules and vocabulary of the byte-pair encoding.
        vocab: ids of the words.
        added: added tokens by id.
        pre_tokenizer: rule that splits text; None without one.
        normalizer: rule that changes text before; None without one.
        decoder: rule that turns tokens into text; empty without one.
    """

    model: JsonObject
    vocab: Mapping[str, int]
    added: Mapping[int, AddedToken]
    pre_tokenizer: JsonObject | None
    normalizer: JsonObject | None
    decoder: JsonObject

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text of the file.

        Raises:
            ValueError: a part is of another kind than tokenizers writes.
            KeyError: a part is missing.
        """
        stored = as_object(json.loads(text), "tokenizer.json")
        model = as_object(stored["model"], "model")
        vocab = {}
        # Other kinds of tokenizers than byte-pair encodings have other vocabularies.
        words = model.get("vocab")
        if isinstance(words, dict):
            for word, number in words.items():
                vocab[word] = as_int(number, "vocab")
        added = {}
        for part in as_list(stored["added_tokens"], "added_tokens"):
            entry = as_object(part, "added_tokens")
            strips = tuple(name for name in _STRIPS if entry.get(name))
            number = as_int(entry["id"], "id")
            added[number] = AddedToken(
                as_text(entry["content"], "content"), bool(entry["special"]), strips
            )
        return cls(
            model,
            vocab,
            added,
            _part(stored, "pre_tokenizer"),
            _part(stored, "normalizer"),
            _part(stored, "decoder") or {},
        )


def _part(stored: JsonObject, name: str) -> JsonObject | None:
    """Return a part of the file; None without it."""
    part = stored.get(name)
    return None if part is None else as_object(part, name)


@dataclass(frozen=True)
class Tokenizer:
    """The description of a tokenizer in a GGUF file.

    Attributes:
        tokenizer: tokenizer that is described.
        words: tokens of the vocabulary by id.
        added: added tokens of ``tokenizer.json`` by id.
        cut: llama.cpp's name of the rule that splits text.
        begins: True if a text starts with the special token for its beginning.
        ends: True if a text ends with the special token for its end.
    """

    tokenizer: PreTrainedTokenizerBase
    words: Mapping[int, str]
    added: Mapping[int, AddedToken]
    cut: str
    begins: bool
    ends: bool

    def add_to(self, writer: gguf.GGUFWriter, vocab_size: int) -> None:
        """Write the tokenizer into the header of a GGUF file.

        Args:
            writer: writer of the file.
            vocab_size: number of rows of the embedding. Rows without a token get a padding token.
        """
        # Words of the vocabulary are normal tokens. Added tokens replace them.
        words = [f"[PAD{number}]" for number in range(vocab_size)]
        types = [gguf.TokenType.UNUSED] * vocab_size
        for number, word in self.words.items():
            words[number], types[number] = word, gguf.TokenType.NORMAL
        for number, entry in self.added.items():
            words[number], types[number] = entry.content, gguf.TokenType.USER_DEFINED
            if entry.special:
                types[number] = gguf.TokenType.CONTROL
        # The gguf package reads the special tokens and the merges from files.
        with TemporaryDirectory() as folder:
            with guarded_writing("the tokenizer"):
                self.tokenizer.save_pretrained(folder)
            special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=vocab_size)
        # Without these two flags, llama.cpp would decide by the rule's name.
        special.add_special_token = {"bos": self.begins, "eos": self.ends}
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.cut)
        writer.add_token_list(words)
        writer.add_token_types(types)
        special.add_to_gguf(writer, quiet=True)

    def probes(self) -> dict[str, list[int]]:
        """Return texts that show differences of llama.cpp, with their token ids."""
        # A text must consist of bytes that the vocabulary has.
        letters = set("".join(self.words.values()))
        texts = _expressible(_TEXTS, letters)
        if not texts:
            texts = _expressible(map(_ascii, _TEXTS), letters)
        # Added tokens are found between other letters.
        for entry in list(self.added.values())[:_MOST_TOKENS]:
            word = entry.content
            if set(_as_bytes(f"a {word}bc")) <= letters:
                texts.append(f"a {word} b{word}c")
        return {text: list(self.tokenizer(text)["input_ids"]) for text in texts}


def read(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Tokenizer:
    """Describe a tokenizer for a GGUF file.

    Args:
        tokenizer: tokenizer to describe.
        vocab_size: number of rows of the model's embedding.

    Raises:
        InputError: the tokenizer is not a byte-level BPE, it does something that llama.cpp does
            not, or it has more tokens than the embedding has rows.
    """
    stored = _stored(tokenizer)
    _refuse_others(stored)
    cut = _cut(stored.pre_tokenizer)
    if bool(stored.model.get("ignore_merges")) != (cut in _WHOLE_WORDS):
        raise InputError(
            f"llama.cpp's rule {cut!r} merges words otherwise than this tokenizer: {OTHER_WAY}"
        )
    words = {number: word for word, number in stored.vocab.items()}
    if (most := max([*words, *stored.added])) >= vocab_size:
        raise InputError(
            f"the tokenizer has a token {most}, and the model's embedding {vocab_size} rows: "
            f"export a checkpoint"
        )
    return Tokenizer(tokenizer, words, stored.added, cut, *_ends(tokenizer))


def _stored(tokenizer: PreTrainedTokenizerBase) -> TokenizerFile:
    """Return the content of a tokenizer's ``tokenizer.json``.

    Raises:
        InputError: the tokenizer has no such file.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"the tokenizer has no tokenizer.json, of which a GGUF is written: {OTHER_WAY}"
        )
    return TokenizerFile.parse(backend.to_str())


def _refuse_others(stored: TokenizerFile) -> None:
    """Refuse a tokenizer with a feature that llama.cpp does not support.

    Raises:
        InputError: the tokenizer has such a feature.
    """
    model, decoder = stored.model, stored.decoder
    if model["type"] != "BPE" or model.get("byte_fallback") or decoder.get("type") != "ByteLevel":
        raise InputError(f"only byte-level BPE tokenizers can be written to a GGUF: {OTHER_WAY}")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise InputError(
                f"llama.cpp's byte-pair encoding has no {name}, and this tokenizer's has: "
                f"{OTHER_WAY}"
            )
    # Qwen's normaliser composes accents (NFC). Nearly all texts are composed already, and GGUF
    # files of Qwen are in common use, so this one is accepted.
    others = [kind for kind in _kinds(stored.normalizer, "normalizers") if kind != "NFC"]
    if others:
        raise InputError(
            f"llama.cpp normalises no text, and this tokenizer does ({', '.join(others)}): its "
            f"tokens would be others; "
            f"{OTHER_WAY}"
        )
    for token in stored.added.values():
        if token.strips:
            raise InputError(
                f"the token {token.content!r} is found by what stands beside it "
                f"({', '.join(token.strips)}), which "
                f"llama.cpp does not look at: {OTHER_WAY}"
            )


def _kinds(part: JsonObject | None, inside: str) -> list[str]:
    """Return the types of a normaliser's steps.

    Args:
        part: normaliser, or one of its steps.
        inside: key under which a sequence has its steps.
    """
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [str(part["type"])]
    kinds = []
    for step in as_list(part[inside], inside):
        kinds += _kinds(as_object(step, inside), inside)
    return kinds


def _cut(stored: JsonObject | None) -> str:
    """Return llama.cpp's name of a pre-tokeniser.

    Raises:
        InputError: this version knows no name for the pre-tokeniser.
    """
    steps: list[JsonObject] = []
    if stored is not None and stored["type"] == "Sequence":
        for step in as_list(stored["pretokenizers"], "pretokenizers"):
            steps.append(as_object(step, "pretokenizers"))
    elif stored is not None:
        steps.append(stored)
    kinds = [step["type"] for step in steps]
    if any(step.get("add_prefix_space") for step in steps):
        raise InputError(
            f"llama.cpp puts no space before a text, and this tokenizer does (add_prefix_space): "
            f"{OTHER_WAY}"
        )
    # Each name stands for one combination of steps.
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if (
        kinds == ["Digits", "ByteLevel"]
        and steps[0]["individual_digits"]
        and steps[1].get("use_regex", True)
    ):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        rule = as_object(steps[0]["pattern"], "pattern").get("Regex", "")
        if (
            isinstance(rule, str)
            and rule in _CUTS
            and steps[0]["behavior"] == "Isolated"
            and not steps[0]["invert"]
        ):
            return _CUTS[rule]
    raise InputError(f"llama.cpp's name for this model's pre-tokeniser is not known: {OTHER_WAY}")


def _ends(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Return whether a text starts and whether it ends with a special token.

    Raises:
        InputError: the tokenizer adds other tokens than llama.cpp does.
    """
    bare: Sequence[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: Sequence[int] = tokenizer("a")["input_ids"]
    begin, end = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    for begins, ends in ((False, False), (True, False), (False, True), (True, True)):
        if list(whole) == [*begin * begins, *bare, *end * ends]:
            return begins, ends
    raise InputError(
        f"this tokenizer puts more round a text than a first and a last token: {OTHER_WAY}"
    )


def _as_bytes(text: str) -> str:
    """Return a text in the letters that byte-level tokens consist of."""
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return "".join(part for part, _ in cut)


def _expressible(texts: Iterable[str], letters: set[str]) -> list[str]:
    """Return the texts that consist of some letters of byte-level tokens."""
    return [text for text in texts if set(_as_bytes(text)) <= letters]


def _ascii(text: str) -> str:
    """Return the ASCII letters of a text, for a vocabulary that lacks the bytes of other
    scripts.
    """
    return "".join(letter for letter in text if " " <= letter <= "~")
