"""Options have one definition, and their earlier spellings still work."""

import json
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from prunesearch.cli import main as cli_module
from prunesearch.cli.main import cli, main
from prunesearch.cli.parameters import RenamedOption, present_words
from prunesearch.errors import InputError
from tests.support.cli import refused, run

MAY_DIFFER = {"required", "default", "show_default", "envvar"}


def all_commands(group: click.Group = cli, *names: str) -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= all_commands(command, *names, name)
        else:
            found[" ".join([*names, name])] = command
    return found


COMMANDS = all_commands()


def parsed(*words: str) -> dict[str, object]:
    name = words[0]
    with COMMANDS[name].make_context(name, list(words[1:])) as ctx:
        return ctx.params


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("export", ["--workers", "--state-memory"]),
        ("verify", ["--workers", "--state-memory"]),
        ("compensate", ["--workers", "--state-memory"]),
        ("evaluate", ["--workers"]),
    ],
)
def test_an_option_without_an_effect_is_accepted_with_a_warning(
    command: str, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    help_text = run(command, "--help").stdout
    given = []
    for flag in flags:
        assert f"{flag} " not in help_text
        given += [flag, "2"]
    if command == "compensate":
        given += ["--out", "folder"]
    assert "workers" not in parsed(command, "X", *given)
    warned = capsys.readouterr().err.splitlines()
    expected = [f"warning: {flag} has no effect on {command}: leave it out" for flag in flags]
    assert sorted(warned) == sorted(expected)


def test_search_says_what_to_write_instead_of_layers() -> None:
    result = run("search", "MODEL", "--layers", "3,7")
    assert result.exit_code == 2
    assert "No such option: --layers: search finds out which layers to drop" in result.stderr
    assert "--drop 8" in result.stderr


def test_an_option_means_the_same_on_every_command() -> None:
    definitions: dict[str, set[tuple[object, ...]]] = {}
    for command in COMMANDS.values():
        for param in command.params:
            if isinstance(param, click.Option) and not param.hidden:
                meaning = (param.help, param.name, type(param.type), param.is_flag, param.multiple)
                definitions.setdefault(param.opts[0], set()).add(meaning)
    for flag, meanings in definitions.items():
        assert len(meanings) == 1, (flag, meanings)


def test_fixed_words_are_those_of_the_code() -> None:
    from prunesearch.export.other_tools import PROGRAMS
    from prunesearch.recovery.gap_fitting import METHODS

    def words(command: str, name: str) -> str:
        option = next(param for param in COMMANDS[command].params if param.name == name)
        return option.make_metavar(click.Context(COMMANDS[command]))

    assert words("export", "program") == f"[{'|'.join(PROGRAMS)}]"
    assert words("compensate", "method") == f"[{'|'.join(METHODS)}]"


def test_a_flag_is_either_present_or_earlier_on_a_command() -> None:
    for name, command in COMMANDS.items():
        flags = [flag for param in command.params for flag in param.opts]
        assert len(set(flags)) == len(flags), name


@pytest.mark.parametrize(
    ("earlier", "present", "parameter", "value"),
    [
        ("search m --drop 2 --form keys", "--encoding keys", "encoding", "keys"),
        ("search m --drop 2 --weights stream", "--offload disk", "offload", "disk"),
        ("search m --drop 2 --weights resident", "--offload none", "offload", "none"),
        ("search m --drop 2 --weights size=2", "--score-weights size=2", "score_weights", "size=2"),
        ("evaluate m --weights host", "--offload cpu", "offload", "cpu"),
        ("run r.yaml --weights memory", "--offload none", "offload", "none"),
        ("export m --drop 3,7a", "--layers 3,7a", "layers", "3,7a"),
        ("evaluate m --drop=3", "--layers 3", "layers", "3"),
        ("heal m --out o --drop 3", "--layers 3", "layers", "3"),
        ("heal m --out o --work w", "--run-folder w", "run_folder", "w"),
        ("compensate m --out o --drop 3", "--layers 3", "layers", "3"),
        ("demo --model m", "m", "model", "m"),
    ],
)
def test_an_earlier_spelling_is_accepted_with_a_warning(
    earlier: str, present: str, parameter: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parsed(*earlier.split())[parameter] == value
    shown = capsys.readouterr()
    assert shown.err.startswith("warning: --")
    assert shown.err.endswith(f"is the earlier spelling: write {present}\n")
    assert shown.err.count("\n") == 1
    assert shown.out == ""
    # The command that resumes the work has the present spelling.
    name, *words = earlier.split()
    assert " ".join(present_words(words, COMMANDS[name])).endswith(present)


def test_completion_of_an_earlier_spelling_prints_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    completer = ShellComplete(cli, {}, "prunesearch", "_PRUNESEARCH_COMPLETE")
    args = ["search", "m", "--weights", "strem"]
    assert [item.value for item in completer.get_completions(args, "--off")] == ["--offload"]
    offered = [item.value for item in completer.get_completions(["export", "m"], "--")]
    assert "--layers" in offered
    assert "--drop" not in offered
    assert capsys.readouterr().err == ""


def test_both_kinds_of_earlier_weights_go_together() -> None:
    found = parsed(*"search m --drop 2 --weights stream --weights quality=1,size=2".split())
    assert (found["offload"], found["score_weights"]) == ("disk", "quality=1,size=2")


def test_a_present_spelling_prints_no_warning(capsys: pytest.CaptureFixture[str]) -> None:
    words = "search m --drop 2 --encoding keys --offload disk --score-weights size=2"
    found = parsed(*words.split())
    assert (found["encoding"], found["offload"], found["drop"]) == ("keys", "disk", "2")
    assert capsys.readouterr().err == ""


def test_earlier_spellings_are_hidden() -> None:
    for name, command in COMMANDS.items():
        shown = CliRunner().invoke(cli, [*name.split(), "--help"]).output
        for param in command.params:
            if isinstance(param, RenamedOption):
                assert f"{param.spelling} " not in shown


CONTRADICTIONS = {
    "export m --drop 3 --layers 4": "--drop 3 and --layers 4 contradict each other: give --layers",
    "export m --drop 3 --drop 4": "--drop 4 and --drop 3 contradict each other: give --layers only",
    "search m --drop 2 --form keys --encoding set": "--form keys and --encoding set contradict",
    "demo m1 --model m2": "--model m2 and m1 contradict each other: give MODEL only",
    "evaluate m --weights host --offload disk": "--weights host and --offload disk contradict",
    "evaluate m --weights host --weights stream": "--weights stream and --weights host contradict",
    "heal m --out o --drop 3 --work a --run-folder b": "--work a and --run-folder b contradict",
    "search m --drop 2 --weights quality=1 --score-weights quality=2": "give --score-weights only",
}


@pytest.mark.parametrize("words", CONTRADICTIONS)
def test_an_earlier_and_a_present_spelling_must_agree(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=CONTRADICTIONS[words]):
        parsed(*words.split())
    # No warning stands before the error.
    assert capsys.readouterr().err == ""


def test_an_earlier_and_a_present_spelling_may_be_equal() -> None:
    assert parsed(*"export m --drop 3 --layers 3".split())["layers"] == "3"
    assert parsed(*"evaluate m --weights host --offload cpu".split())["offload"] == "cpu"
    assert parsed(*"demo m --model m".split())["model"] == "m"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["search", "m", "--drop", "2", "--form", "foo"], "unknown encoding 'foo'"),
        (["search", "m", "--drop", "2", "--form", ""], "unknown encoding ''"),
        (["search", "m", "--drop", "2", "--weights", "quality=nan"], "must be a finite number"),
        (["search", "m", "--drop", "2", "--weights", "host=3"], "unknown weight 'host'"),
        (["evaluate", "m", "--weights", "host=3"], "unknown weight 'host'"),
        (["evaluate", "m", "--weights", "cpu"], "--weights cpu: write --offload cpu"),
        (["evaluate", "m", "--weights", "none"], "--weights none: write --offload none"),
        (["export", "m", "--drop", ""], "cannot read layers ''"),
        (["export", "m", "--drop", "25%"], "cannot read layers '25%'"),
        (["demo", "--model", ""], "--model is empty"),
    ],
)
def test_no_warning_recommends_what_is_refused(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=complaint):
        parsed(*words)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("place", "word"), [("host", "cpu"), ("memory", "none")])
def test_an_earlier_place_of_weights_names_the_present_one(
    place: str, word: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refused(capsys, monkeypatch, "evaluate", "m", "--offload", place)
    assert message == f"error: --offload {place}: write --offload {word}"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("search m --drop 2 --weights strem", "did you mean 'stream'"),
        ("evaluate m --weights quality=1", "--weights quality=1 goes with search"),
        ("study resume s --weights size=1", "--weights size=1 goes with search"),
    ],
)
def test_earlier_weights_that_mean_nothing_are_refused(words: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        cli.main(words.split(), standalone_mode=False)


def test_the_command_line_overrides_a_recipe_by_either_spelling(tmp_path: Path) -> None:
    with COMMANDS["run"].make_context("run", ["r.yaml", "--weights", "stream"]) as ctx:
        source = ctx.get_parameter_source("offload")
    assert source is click.core.ParameterSource.COMMANDLINE


def test_a_word_that_looks_like_an_earlier_spelling_stays() -> None:
    assert present_words(["x", "--form"], COMMANDS["search"]) == ["x", "--form"]
    assert present_words(["x", "--form=keys"], COMMANDS["search"]) == ["x", "--encoding", "keys"]
    assert present_words(["x", "--form", "keys"], COMMANDS["plan"]) == ["x", "--form", "keys"]


@pytest.mark.parametrize("words", ["search m --drop 2", "plan m", "compensate m --out o"])
def test_few_tokens_are_refused_alike(words: str) -> None:
    with pytest.raises(click.BadParameter, match="15 is not in the range x>=16"):
        cli.main([*words.split(), "--tokens", "15"], standalone_mode=False)


def test_json_stays_one_document_after_a_warning(here: Path, tiny_folder: Path) -> None:
    small = ["--tokens", 128, "--window", 64]
    result = run("evaluate", tiny_folder, "--drop", "1,3", *small, "--json")
    assert json.loads(result.stdout)["dropped"] == "1,3"
    assert result.stderr.startswith(
        "warning: --drop 1,3 is the earlier spelling: write --layers 1,3\n"
    )


@pytest.mark.parametrize(
    ("typed", "resumes"),
    [
        ("heal s --out o --drop 3 --work w", "heal s --out o --layers 3 --run-folder w"),
        ("search m --drop 2 --weights=stream", "search m --drop 2 --offload disk"),
        ("study resume s --weights host", "study resume s --offload cpu"),
        ("demo --model m", "demo m"),
    ],
)
def test_the_command_that_resumes_has_the_present_spellings(
    typed: str, resumes: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["prunesearch", *typed.split()])
    monkeypatch.setattr(cli_module.cli, "main", stop)
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.splitlines()[-1] == f"  prunesearch {resumes}"
