"""Each kind of file is read as what it is, or refused by its name."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from prunesearch.errors import DataError
from prunesearch.objectives.calibration_data import read_text, token_windows
from prunesearch.objectives.text_files import read_rows
from prunesearch.recovery.training_data import packed
from tests.support.models import byte_tokenizer

DOCUMENTS = ["one, two", 'three "four"\nfive']
ROWS = [{"text": text} for text in DOCUMENTS]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TABLE = 'id,text\n1,"one, two"\n2,"three ""four""\nfive"\n'
CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Ahoy"}]
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.JSONL", LINES),
        ("a.ndjson", LINES),
        ("a.json", json.dumps(ROWS)),
        ("a.json", json.dumps(DOCUMENTS)),
        ("a.json", LINES),
        ("a.json", json.dumps({"text": DOCUMENTS})),
        ("a.json", json.dumps({"version": 1, "data": ROWS})),
        ("a.csv", TABLE),
        ("a.CSV", "\ufeff" + TABLE),
        ("a.tsv", 'text\tn\n"one, two"\t1\n"three ""four""\nfive"\t2\n'),
    ],
)
def test_every_kind_gives_the_same_documents(tmp_path: Path, name: str, content: str) -> None:
    pack: dict[str, Callable[[bytes], bytes]] = {
        "": bytes,
        ".gz": gzip.compress,
        ".BZ2": bz2.compress,
    }
    pack[".xz"] = lzma.compress
    for ending, compress in pack.items():
        path = tmp_path / (name + ending)
        path.write_bytes(compress(content.encode()))
        assert read_text(str(path)) == DOCUMENTS


def test_parquet_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"n": [1, 2, 3], "text": [DOCUMENTS[0], None, DOCUMENTS[1]]})
    pyarrow.parquet.write_table(table, path)
    assert read_text(str(path)) == DOCUMENTS
    assert [row["n"] for row in read_rows(path)] == [1, 2, 3]


@pytest.mark.parametrize(
    "ending", ["zip", "tar.gz", "zst", "jsonl.zst", "parquet.gz", "pdf", "DOCX", "gguf", "arrow"]
)
def test_other_kinds_are_refused_by_name(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_text("text")
    with pytest.raises(
        DataError, match=r"is a \.\S+ file, which is not read: give \.txt"
    ) as caught:
        read_text(str(path))
    assert "\n" not in str(caught.value)


def test_null_is_no_word(tmp_path: Path) -> None:
    rows = [{"text": None}, {"text": "words"}, {}, {"text": ""}]
    for name, content in {
        "a.jsonl": "\n".join(map(json.dumps, rows)),
        "a.json": json.dumps(rows),
    }.items():
        (tmp_path / name).write_text(content)
        assert read_text(str(tmp_path / name)) == ["words"]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_text(str(tmp_path / "data")) == ["words"]


def test_a_field_of_nulls_gives_way_to_one_with_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": null, "content": "words"}\n' * 2)
    assert read_text(str(tmp_path / "a.jsonl")) == ["words"] * 2


@pytest.mark.parametrize(
    "rows", [[{"text": None}] * 3, [{"text": ""}, {"text": " \n"}], [None], [[]]]
)
def test_a_file_without_text_is_refused(tmp_path: Path, rows: list[object]) -> None:
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"holds no text|is not text"):
        read_text(str(tmp_path / "a.json"))


def test_marks_and_nuls(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfwords")
    assert read_text(str(tmp_path / "a.txt")) == ["words"]
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "wo\\u0000rds \\ud83d"}')
    assert read_text(str(tmp_path / "a.jsonl")) == ["words \ufffd"]
    for name in ("b.txt", "b.jsonl", "b.csv", "b.json"):
        (tmp_path / name).write_bytes(b"text\n\0words")
        with pytest.raises(DataError, match="has NUL characters"):
            read_text(str(tmp_path / name))
    (tmp_path / "c.txt").write_text("words", encoding="utf-16")
    with pytest.raises(DataError, match="it is not UTF-8"):
        read_text(str(tmp_path / "c.txt"))


def test_conversations_are_written_by_the_chat_template(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    shared = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Ahoy"}]
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"messages": CHAT}) + "\n" + json.dumps({"messages": None}) + "\n"
    )
    (tmp_path / "b.json").write_text(json.dumps([{"conversations": shared}]))
    for name in ("a.jsonl", "b.json"):
        assert read_text(str(tmp_path / name), tokenizer) == ["[user]Hello[assistant]Ahoy"]
    assert (
        packed(str(tmp_path / "a.jsonl"), tokenizer, 16, 1)[1]
        == len("[user]Hello[assistant]Ahoy") + 1
    )


@pytest.mark.parametrize(
    ("template", "row", "complaint"),
    [
        (
            None,
            {"messages": CHAT},
            "row 1 has a conversation in the field 'messages', and .* has no chat template",
        ),
        (
            "{{ raise_exception('no system') }}",
            {"messages": CHAT},
            "row 1: .* cannot write the field 'messages': .*no sys",
        ),
        ("{% broken", {"messages": CHAT}, "cannot write the field 'messages'"),
        (TEMPLATE, {"text": 5}, "row 1 has 5 in the field 'text', which is not text"),
        (TEMPLATE, {"text": ["a"]}, "has a list in the field 'text'"),
        (TEMPLATE, {"text": {"a": 1}}, "has an object in the field 'text'"),
        (TEMPLATE, {"messages": "x", "n": 1}, None),
        (
            TEMPLATE,
            {"prompt": "x", "n": 1},
            "has no field 'text', 'content', 'document' or 'messages': .* n, prompt",
        ),
    ],
)
def test_rows_that_are_no_text_are_refused(
    tmp_path: Path, template: str | None, row: dict[str, object], complaint: str | None
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    if complaint is None:
        assert read_text(str(tmp_path / "a.jsonl"), tokenizer) == ["x"]
        return
    for read in (
        lambda source: token_windows(source, tokenizer, 64, 32),
        lambda source: packed(source, tokenizer, 16, 1),
    ):
        with pytest.raises(DataError, match=complaint) as caught:
            read(str(tmp_path / "a.jsonl"))
        assert "\n" not in str(caught.value)


def test_no_text_is_left_out_because_it_is_in_another_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"text": "one"}\n{"text": null}\n{"id": 1}\n{"content": "two"}\n'
    )
    with pytest.raises(
        DataError, match="row 4 has the field 'content', and other rows have 'text'"
    ):
        read_text(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.json", b"{", "is not JSON: line 1"),
        ("a.json", b"5", "holds 5: give a list"),
        ("a.json", b"[" * 50_000, "is not JSON"),
        ("a.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "line 1 is not JSON"),
        ("a.csv", b'text\n"open', "cannot read"),
        ("a.csv", b"words\nx\n", "its fields are words"),
        ("a.parquet", b"PAR1 but not really", "cannot read"),
        ("a.txt.gz", b"plain", "cannot read"),
        ("a.txt.xz", b"plain", "cannot read"),
        (
            "a.jsonl",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 5\n",
            "git-lfs pointer",
        ),
    ],
)
def test_damaged_files_are_one_line(
    tmp_path: Path, name: str, content: bytes, complaint: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=complaint) as caught:
        read_text(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_task_data_comes_in_every_kind_too(hellaswag_like: Path, tmp_path: Path) -> None:
    rows = read_rows(hellaswag_like)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.JSONL.gz").write_bytes(gzip.compress(hellaswag_like.read_bytes()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.json", "a.JSONL.gz", "a.parquet"):
        assert read_rows(tmp_path / name) == rows
