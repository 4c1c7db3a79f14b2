"""Recipe files, and the translation of errors to flags."""

from pathlib import Path

import click
import pytest

from prunesearch.cli.flags import name_flags
from prunesearch.cli.main import cli
from prunesearch.cli.recipes import read_recipe
from prunesearch.errors import DataError, InputError


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
        ("search: {drop: 2, trials: 3}", "`trials` belongs to section run, not search"),
        ("search: {drop: 2}\ntrials: 3", "`trials` belongs to section run"),
        ("search: {drop: 2}\nrun: {drop: 3}", "`drop` belongs to section search, not run"),
        ("search: {drop: 2}\nrun: {trails: 3}", "section run 'trails': did you mean 'trials'"),
        ("search: {drop: 2}\nrun: 3", "run = 3 is not a section"),
        ("search: {drop: 2}\ntokens: 3", "`tokens` belongs to section data"),
        ("search: {drop: 2}\nlimits: 3", "recipe key 'limits': did you mean 'limit'"),
        ("search: {drop: [1, 2]}\nrecover: {}", "one sampler and one number"),
        ("search: {drop: 2}\nrun: {out: 3}", "out = 3: give the name of a folder"),
        ("search: {drop: 2}\nrecover: 3", "recover = 3 is not a section"),
    ],
)
def test_misplaced_keys_are_refused(file: Path, lines: str, complaint: str) -> None:
    file.write_text(f"model: m\n{lines}\n")
    with pytest.raises(InputError) as caught:
        read_recipe(file, {}, ())
    assert complaint in str(caught.value)


def test_fields_become_the_flags_of_the_command() -> None:
    assert isinstance(cli, click.Group)
    params = cli.commands["search"].params
    error = DataError("`task_data` with `preselect=False`, `model` and `search.drop` or `nosuch`")
    name_flags(error, params)
    assert str(error) == "--task-data with --no-preselect, MODEL and `search.drop` or `nosuch`"
