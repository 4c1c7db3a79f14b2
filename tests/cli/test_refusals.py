"""Input that is refused: one line on stderr, exit 2, and nothing is left."""

import json
import sys
from pathlib import Path

import pytest

import prunesearch
from prunesearch.cli import main as cli_module
from prunesearch.cli.main import main
from prunesearch.errors import PruneSearchError
from tests.support.cli import FAST, refused, run

WIDTHS = ("--space", "widths", "--target", "20%")
LONG, DIGITS = "x" * 300, "9" * 5000
"""Longer than a file's name may be, and than a number that Python reads."""


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["search", "MISSING", "--drop", "2"], "no model folder or file"),
        (["search", "cut.gguf", "--drop", "2"], "not a whole GGUF"),
        (["search", "MODEL", "--drop", "6"], "leaves no layer"),
        (["search", "MODEL", "--drop", "0"], "removes nothing"),
        (["search", "MODEL", "--drop", "2", "--sampler", "wao"], "did you mean 'woa'"),
        (["search", "MODEL", "--drop", "2", "--objective", "k"], "unknown objective 'k'"),
        (
            ["search", "MODEL", "--drop", "..3"],
            "--score-weights quality=1,size=2, or use --drop pareto",
        ),
        (["search", "MODEL", "--drop", "pareto", "--sampler", "greedy"], "use pso, woa, "),
        (
            ["search", "MODEL", "--drop", "pareto", "--score-weights", "size=1"],
            "weighs quality against size",
        ),
        (["search", "MODEL", "--drop", "2", "--against", "latency"], "goes with --drop pareto"),
        (
            ["search", "MODEL", "--drop", "2", "--sampler", "ga", "--encoding", "keys"],
            "--encoding goes with --sampler pso or woa",
        ),
        (["search", "MODEL", "--drop", "2", "--encoding", "key"], "did you mean 'keys'"),
        (["search", "MODEL", "--space", "width"], "did you mean 'widths'"),
        (["search", "MODEL", "--space", "widths"], "needs --target 20%"),
        (["search", "MODEL", "--target", "20%"], "drop is missing"),
        (["search", "MODEL", "--drop", "2", "--target", "20%"], "--target goes with --space"),
        (
            ["search", "MODEL", "--space", "widths", "--drop", "2"],
            "--drop goes with layers to drop",
        ),
        (["search", "MODEL", *WIDTHS, "--criterion", "flop"], "did you mean 'flap'"),
        (["search", "MODEL", *WIDTHS, "--sampler", "greedy"], "cannot search widths"),
        (["search", "MODEL", *WIDTHS, "--encoding", "slots"], "use set or keys"),
        (["search", "MODEL", *WIDTHS, "--ranking", "taylor"], "ranks layers"),
        (["search", "MODEL", *WIDTHS, "--keep-pattern"], "--keep-pattern goes with layers to drop"),
        (["search", "MODEL", *WIDTHS, "--offload", "disk"], "leave out --offload disk"),
        (["search", "MODEL", *WIDTHS, "--device-map", "auto"], "leave out --device-map"),
        (["search", "MODEL", *WIDTHS, "--align", "7"], "does not divide the 64 channels"),
        (["search", "MODEL", "--space", "widths", "--target", "lots"], "--target 'lots' cannot be"),
        (["search", "MODEL", "--drop", "2", "--ranking", "tailor"], "did you mean 'taylor'"),
        (
            ["search", "MODEL", "--drop", "2", "--sampler", "tpe", "--ranking", "taylor"],
            "cannot start --sampler tpe",
        ),
        (["search", "MODEL", "--drop", "2", "--units", "layers"], "unknown units 'layers'"),
        (["study", "best", "x", "--max-loss", "little"], "--max-loss 'little' cannot be read"),
        (
            ["study", "best", "x", "--max-size", "100 bananas"],
            "--max-size '100 bananas' cannot be read",
        ),
        (["search", "MODEL", "--drop", "2", "--task", "helaswag"], "did you mean 'hellaswag'"),
        (
            ["search", "MODEL", "--drop", "2", "--score-weights", "qualty=1"],
            "did you mean 'quality'",
        ),
        (["search", "MODEL", "--drop", "2", "--calibration", "short.txt"], "is too short"),
        (
            ["search", "MODEL", "--drop", "2", "--task", "hellaswag", "--task-data", "bad.jsonl"],
            "field 'ctx_a'",
        ),
        (["search", "MODEL", "--drop", "2", "--storage", "foo://x"], "unknown database 'foo'"),
        (
            ["search", "MODEL", "--drop", "2", "--storage", "sqlite:////proc/no/study.db"],
            "cannot write",
        ),
        (["search", "MODEL", "--drop", "2", "--cache", "/proc/no"], "cannot write"),
        (["search", "MODEL", "--drop", "2", "--trials", "0"], "trials = 0: it must be at least 1"),
        (["search", "short.txt", "--drop", "2"], "'short.txt' is not a model"),
        (["search", "MODEL", "--drp", "2"], "--drop"),
        (["search", "MODEL", "--drop", "2", "--threads", "10000"], "--threads 10000 is more than"),
        (["demo", "--threads", "10000"], "cores; give at most"),
        (["search", "MODEL"], "drop is missing in section search"),
        (["serach", "MODEL"], "Did you mean 'search'"),
        (["study", "delete", "x"], "known: best, copy, layers, list, resume, rm, show"),
        (["study", "show", "x", "--best", "0"], "0 is not in the range"),
        (["plan", "MODEL", "--drop", "pareto"], "plan needs a number or a share"),
        (["study", "list", "--storage", "sqlite:///short.txt"], "': file is not a database"),
        (["export", "MODEL", "--layers", "1", "--out", "new.gguf"], "add --gguf"),
        (["export", "MODEL", "--layers", "1", "--out", "new", "--gguf"], "write --out NAME.gguf"),
        (["export", "MODEL", "--layers", "1", "--out", "cut.gguf", "--gguf"], "exists already"),
        (
            ["heal", "MODEL", "--layers", "1", "--out", "new", "--distill-weight", ".3"],
            "goes with --loss mix",
        ),
        (
            ["heal", "MODEL", "--layers", "1", "--out", "new", "--kl-top", "8"],
            "goes with --loss distill or mix",
        ),
        (
            ["heal", "MODEL", "--layers", "1", "--out", "new", "--engine", "ray"],
            "--engine ray goes with --tune N",
        ),
        (
            ["heal", "MODEL", "--layers", "1", "--out", "new", "--workers", "2", "--tune", "3"],
            "--workers 2 goes with --engine ray and --tune N",
        ),
        (
            ["search", "MODEL", "--drop", "2", "--ray-address", "head:6379"],
            "--ray-address head:6379 goes with --engine ray",
        ),
        (
            ["search", "MODEL", "--drop", "2", "--engine", "ray", "--ray-address", "ray://head:1"],
            "run the command on a node of the cluster, with --ray-address auto",
        ),
        (
            ["search", "MODEL", "--drop", "2", "--engine", "ray", "--ray-address", "127.0.0.1:1"],
            "cannot join Ray at --ray-address 127.0.0.1:1: nobody answers at 127.0.0.1:1",
        ),
        (
            ["heal", "MODEL", "--layers", "1", "--out", "new", "--lr", "0"],
            "learning_rate = 0.0: it must be more than 0",
        ),
        (["export", "MODEL", "--layers", "1", "--out", "full"], "is not empty"),
        (["export", "MODEL", "--layers", "7", "--out", "new"], "layers 0 to 5"),
        (["export", "MODEL", "--layers", "", "--out", "new"], "cannot read layers ''"),
        (
            ["export", "MODEL", "--layers", "1", "--print", "mergekit", "--out", "new"],
            "leave out --out",
        ),
        (["export", "MODEL", "--layers", "1", "--out", "n" * 300], "File name too long"),
        (
            ["export", "MODEL", "--layers", "1", "--out", "loop/x"],
            "Too many levels of symbolic links",
        ),
        (["export", "MODEL", "--layers", "1", "--out", "not-\udcff-utf8"], "the name is not UTF-8"),
        (["analyze", "n" * 300], "File name too long"),
        (["export", "two\nlines\x1b[2J", "--out", "new"], "no study database"),
        (["search", "./two\nlines\x1b[2J", "--drop", "1"], "two\\nlines\\x1b[2J"),
        (["export", "nostudy", "--out", "new"], "no study database"),
        (["evaluate", "MODEL", "--layers", "9"], "layers 0 to 5"),
        (["analyze", "MISSING"], "no model folder or file"),
        (
            ["run", "none.yaml", "--out", "new"],
            "cannot read recipe 'none.yaml': No such file or directory",
        ),
        (["run", "typo.yaml", "--out", "new"], "did you mean 'sampler'"),
        (["run", "twice.yaml", "--out", "new"], "'drop' is given twice"),
        (["run", "deep.yaml", "--out", "new"], "cannot read recipe"),
        (["run", "nul.yaml", "--out", "new"], "model 'a\\x00' holds a character"),
        (["run", "out.yaml"], "out = ['a']"),
        (["search", "MODEL", "--drop", "2", "--study", "s" * 513], "at most 512 characters"),
        (["analyze", LONG], "no file can have the name"),
        (["export", "MODEL", "--layers", "2", "--out", LONG], "File name too long"),
        (["study", "list", "--storage", f"sqlite:///{LONG}"], "ile"),
        (["export", LONG, "--out", "new"], "no study database"),
        (["search", "MODEL", "--drop", DIGITS], "cannot be read"),
        (["search", "MODEL", "--drop", f"{DIGITS}%"], "cannot be read"),
        (["evaluate", "MODEL", "--layers", DIGITS], "cannot read layers"),
        (["plan", "MODEL", "--memory", DIGITS], "cannot be read"),
        (["search", "MODEL", "--drop", "2", "--protect", f"0-{DIGITS}"], "--protect"),
        (["study", "list"], "no study database"),
        (["study", "list", "--storage", "sqlite:///loop"], "no study database"),
        (["search", "MODEL", "--drop", "2", "--limit", "9"], "--limit goes with --task"),
        (["export", "nostudy", "--dtype", "float32", "--out", "new"], "go with MODEL --layers"),
    ],
    ids=lambda value: " ".join(value)[:90] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_leaves_nothing(
    here: Path,
    tiny_folder: Path,
    words: list[str],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (here / "full").mkdir()
    (here / "full" / "file").write_text("x")
    (here / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00\x05")
    (here / "short.txt").write_text("hello")
    (here / "loop").symlink_to("loop")
    (here / "bad.jsonl").write_text('{"a": 1}\n')
    (here / "typo.yaml").write_text("model: m\nsearch: {drop: 2, samplr: pso}\n")
    (here / "twice.yaml").write_text("model: m\nsearch: {drop: 2, drop: 3}\n")
    (here / "deep.yaml").write_text(f"model: {'[' * 2000}\n")
    (here / "nul.yaml").write_text('model: "a\\0"\nsearch: {drop: 2}\n')
    (here / "out.yaml").write_text("model: m\nsearch: {drop: 2}\nrun: {out: [a]}\n")
    before = sorted(here.rglob("*"))
    location = {"MODEL": str(tiny_folder), "MISSING": str(here / "missing")}
    assert complaint in refused(capsys, monkeypatch, *(location.get(word, word) for word in words))
    assert sorted(here.rglob("*")) == before


def test_a_study_of_other_settings_or_model_is_not_resumed(
    here: Path,
    tiny_folder: Path,
    prose: Path,
    make_model: object,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["--drop", "2", "--trials", "2", "--calibration", prose, "--study", "s", *FAST]
    run("search", tiny_folder, *words)
    other = make_model(name="other", seed=5)  # type: ignore[operator]
    assert "model content: " in refused(capsys, monkeypatch, "search", other, *words)
    assert "seed: 0 in the study, 1 now" in refused(
        capsys, monkeypatch, "search", tiny_folder, *words, "--seed", 1
    )
    assert "did you mean 's'" in refused(capsys, monkeypatch, "study", "show", "ss")
    assert "'s' is a study" in refused(
        capsys, monkeypatch, "export", "s", "--layers", "2", "--out", "new"
    )
    said = refused(
        capsys, monkeypatch, "search", tiny_folder, *words, "--seed", 1, "--protect", "0"
    )
    assert "to resume it give --seed 0 and no --protect;" in said
    with pytest.raises(PruneSearchError, match=r"run takes a Recipe, not str"):
        prunesearch.run("recipe.yaml")  # type: ignore[arg-type]


SECRET = "postgresql+psycopg://me:s3,cret@127.0.0.1:9/team"


@pytest.mark.parametrize(
    "words",
    [
        ["search", "MODEL", "--drop", "2", "--storage", SECRET],
        ["search", "MODEL", "--drop", "2", "--cache", f"mine,{SECRET}"],
        ["study", "list", "--storage", SECRET],
        [
            "study",
            "list",
            "--storage",
            "postgresql+psycopg://127.0.0.1:9/team?user=me&password=s3,cret",
        ],
        ["study", "list", "--storage", "postgresql+psycopg://me:s3,cret@host:port/team"],
        ["study", "list", "--storage", "me:s3,cret@host/team"],
        ["cache", "stats", "--cache", SECRET],
        ["cache", "verify", "--cache", f"mine,{SECRET}"],
    ],
    ids=lambda words: " ".join(words[:4]),
)
def test_no_error_holds_a_password(
    here: Path,
    tiny_folder: Path,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = refused(
        capsys, monkeypatch, *(str(tiny_folder) if word == "MODEL" else word for word in words)
    )
    assert "cret" not in said
    assert not any("cret" in path.name for path in here.rglob("*"))


def test_errors_are_a_document_with_json(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["prunesearch", "study", "list", "--json"])
    with pytest.raises(SystemExit):
        main()
    captured = capsys.readouterr()
    assert captured.err.startswith("error: no study database")
    document = json.loads(captured.out)
    assert (document["kind"], document["exit"]) == ("StorageError", 2)
    assert captured.err == f"error: {document['error']}\n"


def test_an_unforeseen_error_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise KeyError("password=s3cret")

    monkeypatch.setattr(cli_module.cli, "main", fail)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("failed: KeyError: 'password=***'")
    assert said.count("\n") == 1


def test_failures_are_one_line_with_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunesearch.errors import ScoringError

    def fail(**_: object) -> None:
        raise ScoringError("out of memory")

    monkeypatch.setattr(cli_module.cli, "main", fail)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "failed: out of memory\n"
