"""Recipe files, and the translation of errors to flags."""

import warnings
from pathlib import Path

import click
import pytest

from prunesearch.cli.flags import name_flags
from prunesearch.cli.main import cli
from prunesearch.cli.recipe_files import read_recipe
from prunesearch.errors import DataError, InputError
from tests.support.cli import refused


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


def test_a_file_in_sections_is_the_recipe(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(
        "model: {path: m, dtype: float32}\ndata: {tokens: 64}\nobjective: perplexity\n"
        "search: {drop: [2, 25%], sampler: [pso, woa], encoding: keys}\n"
        "run: {trials: 9, offload: disk, out: made}\n"
    )
    read = read_recipe(file, {"trials": None, "cache": "mine"}, {"cache"})
    kinds = [(recipe.search.sampler, recipe.search.drop) for recipe in read.recipes]
    assert kinds == [("pso", "2"), ("pso", "25%"), ("woa", "2"), ("woa", "25%")]
    assert read.recipes[0].objective.name == "perplexity"
    assert read.recipes[0].search.encoding == "keys"
    assert (read.options.trials, read.options.offload, read.options.cache) == (9, "disk", "mine")
    assert read.out == "made"
    assert capsys.readouterr().err == ""


def test_what_is_typed_goes_before_the_file(file: Path) -> None:
    file.write_text("model: m\nsearch: {drop: 2}\nrun: {trials: 9}\nout: made\n")
    assert read_recipe(file, {"trials": 3, "out": None}, {"trials"}).options.trials == 3


def test_an_empty_recovery_is_the_default_one(file: Path) -> None:
    file.write_text("model: m\nsearch: {drop: 2}\nrecover:\n")
    assert read_recipe(file, {}, ()).recipes[0].recover is not None


@pytest.mark.parametrize(
    "lines", ["drop: 2\ntokens: 64\nform: keys\n", "drop: 2\nweights_in: stream\n"]
)
def test_a_file_without_sections_is_read_with_a_warning(
    file: Path, capsys: pytest.CaptureFixture[str], lines: str
) -> None:
    file.write_text(f"model: m\n{lines}trials: 9\nout: made\nrecover: {{finalists: 2}}\n")
    read = read_recipe(file, {}, ())
    (recipe,) = read.recipes
    assert (recipe.model.path, recipe.search.drop) == ("m", "2")
    assert recipe.recover is not None and recipe.recover.finalists == 2
    assert (read.options.trials, read.out) == (9, "made")
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "has no sections" in warning
    if "form" in lines:
        assert (recipe.search.encoding, recipe.data.tokens) == ("keys", 64)
    else:
        assert read.options.offload == "disk"


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("search: {drop: 2, trials: 3}", "key 'trials' belongs to section run, not search"),
        (
            "search: {drop: 2}\ntrials: 3",
            "key 'trials' belongs to section run: write it below run:",
        ),
        ("search: {drop: 2}\nrun: {drop: 3}", "`drop` belongs to section search, not run"),
        ("search: {drop: 2}\nrun: {trails: 3}", "section run 'trails': did you mean 'trials'"),
        ("search: {drop: 2}\nrun: 3", "run = 3 is not a section"),
        ("search: {drop: 2}\ntokens: 3", "`tokens` belongs to section data"),
        ("search: {drop: 2}\nlimits: 3", "recipe key 'limits': did you mean 'limit'"),
        ("search: {drop: [1, 2]}\nrecover: {}", "one sampler and one number"),
        ("search: {drop: 2}\nrun: {out: 3}", "out = 3: give the name of a folder"),
        ("search: {drop: 2}\nrecover: 3", "recover = 3 is not a section"),
        ("drop: 2\nform: keys\nencoding: set", "form keys and encoding set contradict each other"),
        ("drop: 2\nweights: a\nscore_weights: b", "give score_weights only"),
        ("drop: 2\nweights_in: host\noffload: disk", "weights_in host and offload disk contradict"),
        ("search: {drop: 2}\nrun: {weights_in: host, offload: disk}", "give offload only"),
        ("search: {drop: 2}\nout: a\nrun: {out: b}", "out a and run: out b contradict each other"),
        ("drop: 2\nrun: {trials: 3}", "has the section run and settings outside sections"),
        ("drop: 2\ndata: {tokens: 64}", "`drop` belongs to section search: write search: drop"),
        ("search: {drop: 2, 1: 3}", "unknown key 1 in section search"),
        ("search: {drop: 2}\nrecover: {heal: {1: 3}}", "unknown key 1 in section heal"),
        ("search: {drop: 2}\nrun: {1: 3}", "unknown key 1 in section run"),
        ("search: {drop: 2}\n1: 3", "unknown key 1 in recipe"),
        ("search: {drop: 2}\nfoo: 3", "unknown recipe key 'foo'"),
    ],
)
def test_misplaced_keys_and_contradictions_are_refused(
    file: Path, lines: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(f"model: m\n{lines}\n")
    with pytest.raises(InputError) as caught:
        read_recipe(file, {}, ())
    assert complaint in str(caught.value)
    assert "'form'" not in str(caught.value)
    assert capsys.readouterr().err == ""


def test_a_key_of_a_file_is_not_called_a_flag(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("model: m\nsearch: {drop: 2}\ntrials: 3\n")
    message = refused(capsys, monkeypatch, "run", file)
    assert message == "error: key 'trials' belongs to section run: write it below run:"


@pytest.mark.parametrize(
    "lines",
    ["drop: 2\nform: keys\nencoding: keys", "search: {drop: 2, encoding: keys}\nrun: {out: a}"],
)
def test_equal_values_do_not_contradict_each_other(file: Path, lines: str) -> None:
    file.write_text(f"model: m\n{lines}\nout: a\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = read_recipe(file, {}, ())
    assert (read.recipes[0].search.encoding, read.out) == ("keys", "a")


def test_fields_become_the_flags_of_the_command() -> None:
    assert isinstance(cli, click.Group)
    params = cli.commands["search"].params
    error = DataError("`task_data` with `preselect=False`, `model` and `search.drop` or `nosuch`")
    name_flags(error, params)
    assert str(error) == "--task-data with --no-preselect, MODEL and `search.drop` or `nosuch`"
