"""Published protocols of perplexity: which rows are read, and how they are joined and cut.

Perplexities of two papers can be compared only if text, joining, special tokens and windows are the
same. Each protocol is that of published code:

* ``wikitext2-2048``: GPTQ (datautils.py, llama.py), SparseGPT and Wanda (lib/data.py,
  lib/eval.py). The joined text is tokenised as the tokenizer does it by default, so a tokenizer
  that adds BOS adds it once, before the first window.
* ``wikitext2-4096``, ``wikitext2-8192``: EvoPress and Týr-the-Pruner (src/data_utils.py). No
  special tokens. EvoPress takes 4,096 for Llama 2 and 8,192 else, and Týr takes 4,096.
* ``c4-2048``: SparseGPT, and GPTQ with ``--new-eval``. Documents are joined by one space, with
  special tokens, and the text ends after 256 windows.
* ``c4-4096``, ``c4-8192``: EvoPress. Documents are joined by two newlines, without special tokens.

All of them cut the tokens into windows that do not overlap, leave out the remainder, and predict
L - 1 tokens of each window of L. They differ in how they write the mean, and agree in its value:
GPTQ multiplies the mean loss of a window by L and divides the sum by N L, and EvoPress keeps a
running mean weighted by L - 1. Windows have equal lengths, so both are the mean over all predicted
tokens.

The command line reads this table, so it imports neither torch nor transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from prunesearch.errors import UnknownNameError


@dataclass(frozen=True)
class ProtocolText:
    """A text of the model hub, as the published code loads it.

    Attributes:
        repository: id of the dataset.
        config: name of its configuration; None if single files are read.
        files: data files by split.
        split: the split that is read.
        revision: commit of the dataset; None for the latest.
        rows: number of rows that the protocol reads: the first ones.
        lines_are_rows: whether a plain text file has one row per line, as the raw files of
            WikiText-2. A row keeps the newline at its end, and a blank line is an empty row.
        replaced: a word that shows that a file is another version of the text.
    """

    repository: str
    split: str
    rows: int
    config: str | None = None
    files: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    revision: str | None = None
    lines_are_rows: bool = False
    replaced: str = ""


WIKITEXT2 = ProtocolText(
    "Salesforce/wikitext",
    "test",
    4358,
    config="wikitext-2-raw-v1",
    lines_are_rows=True,
    replaced="<unk>",
)
C4 = ProtocolText(
    "allenai/c4",
    "validation",
    1100,
    files=MappingProxyType({"validation": "en/c4-validation.00000-of-00008.json.gz"}),
    revision="607bd4c8450a42878aa9ddc051a65a055450ef87",
)


@dataclass(frozen=True)
class Protocol:
    """A published way to measure perplexity.

    Attributes:
        name: name on the command line.
        text: what is read.
        window: tokens of a window, L.
        separator: text between two rows.
        special_tokens: whether the joined text gets the tokenizer's special tokens, such as BOS.
        most_windows: number of windows after which the text ends; None: all.
        papers: who measures in this way.
    """

    name: str
    text: ProtocolText
    window: int
    separator: str
    special_tokens: bool
    papers: str
    most_windows: int | None = None


_TABLE = (
    Protocol("wikitext2-2048", WIKITEXT2, 2048, "\n\n", True, "GPTQ, SparseGPT, Wanda"),
    Protocol("wikitext2-4096", WIKITEXT2, 4096, "\n\n", False, "EvoPress (Llama 2), Týr"),
    Protocol("wikitext2-8192", WIKITEXT2, 8192, "\n\n", False, "EvoPress"),
    Protocol("c4-2048", C4, 2048, " ", True, "SparseGPT, GPTQ --new-eval", most_windows=256),
    Protocol("c4-4096", C4, 4096, "\n\n", False, "EvoPress (Llama 2)"),
    Protocol("c4-8192", C4, 8192, "\n\n", False, "EvoPress"),
)
PROTOCOLS: Mapping[str, Protocol] = MappingProxyType({entry.name: entry for entry in _TABLE})
"""The protocols by name."""


def protocol_of(name: str) -> Protocol:
    """Return the protocol of a name.

    Raises:
        UnknownNameError: no protocol has this name.
    """
    if name not in PROTOCOLS:
        raise UnknownNameError("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
