import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from prunesearch.cli.help import EXAMPLES, summary
from prunesearch.cli.main import cli


def help_of(*words: str, width: int = 100) -> str:
    return (
        CliRunner()
        .invoke(cli, [*words, "--help"], terminal_width=width, env={"COLUMNS": str(width)})
        .output
    )


def commands(group: click.Group = cli, *names: str) -> list[tuple[tuple[str, ...], click.Command]]:
    found: list[tuple[tuple[str, ...], click.Command]] = []
    for name, command in group.commands.items():
        found.append(((*names, name), command))
        if isinstance(command, click.Group):
            found += commands(command, *names, name)
    return found


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_summary_is_cut(width: int) -> None:
    for words, command in commands():
        shown = " ".join(help_of(*words[:-1], width=width).split())
        assert summary(command) in shown
        assert "..." not in shown.partition("Commands:")[2]
    assert summary(cli.commands["run"]).endswith("evaluate")


def test_help_has_groups_and_every_option_once() -> None:
    shown = help_of("search")
    for title in (
        "What is removed:",
        "How it is searched:",
        "What it is scored on:",
        "Machine:",
        "Examples:",
    ):
        assert f"\n{title}\n" in shown
    for words, command in commands():
        lines = [line.split()[0] for line in help_of(*words).splitlines() if line.startswith("  -")]
        options = []
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                options.append(option.opts[0])
        assert set(options) <= set(lines)
        assert len(set(lines)) == len(lines)


def test_fixed_values_are_shown_and_completed() -> None:
    assert "--encoding [set|keys|slots|binary]" in help_of("search")
    assert "--loss [lm|distill|mix]" in help_of("heal")
    completer = ShellComplete(cli, {}, "prunesearch", "_PRUNESEARCH_COMPLETE")
    args = ["search", "model", "--sampler"]
    assert {item.value for item in completer.get_completions(args, "pso,w")} == {"pso,woa"}
    assert {item.value for item in completer.get_completions(["heal", "s", "--as"], "z")} == {
        "zeroed"
    }


def test_help_speaks_of_its_own_command() -> None:
    assert "prunesearch verify ./pruned" in help_of("verify")
    assert "Examples:" not in help_of("cache", "verify")
    assert "How it is searched:" not in help_of("export")
    assert "What it is scored on:" not in help_of("compensate")
    assert "\nText:\n" in help_of("compensate")
    assert "--last" in help_of("jobs").partition("\nWhich jobs:\n")[2]
    assert "What it is scored on:" not in help_of("jobs")
    assert "\nWhat jobs may use:\n" in help_of("serve")
    assert "quality=1" in help_of("search")
    assert "quality=1" not in help_of("evaluate")


@pytest.mark.parametrize(
    "example", [example for examples in EXAMPLES.values() for example in examples]
)
def test_every_example_is_understood(example: str) -> None:
    name, *words = example.split()
    command = cli.commands[name]
    # A group, such as `token`, has commands of its own.
    if isinstance(command, click.Group) and words:
        command = command.commands[words.pop(0)]
    with command.make_context("prunesearch", words) as context:
        assert context.params
