"""Format of the help texts: groups of options, complete summaries, possible values, and
examples.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from prunesearch.cli.flags import name_flags
from prunesearch.cli.parameters import print_notes
from prunesearch.errors import PruneSearchError

# Groups of options. Options without a group come first, under the title "Options".
_SHARED = {
    "Model": "model revision dtype trust_remote_code",
    "Machine": "device device_map threads offload state_memory compile workers engine ray_address "
    "gpus_per_worker checkpointing",
    "Where results are": "study storage warm_start_storage cache run_folder track track_to",
    "Server": "server token_file insecure_http",
}
_SEARCHED = {
    "What is removed": "drop space target criterion order_tokens align first_allocations "
    "protect units keep_pattern against",
    "How it is searched": "sampler trials encoding preselect ranking warm_start asynchronous "
    "population seed race confirm score_weights",
    "Language model (--sampler llm)": "llm_url llm_model llm_calls llm_tokens llm_cost llm_price "
    "llm_seconds llm_timeout llm_retries llm_required llm_temperature llm_candidates llm_attempts "
    "llm_reflection llm_history llm_max_repair llm_context",
    "What it is scored on": "objective kl_top calibration tokens window task task_data "
    "include_path metric limit "
    "num_fewshot batch_tokens protocol protocol_data",
}
_HEALED = {
    "Before healing": "compensate finalists finalist_steps tune tune_steps "
    "tune_sampler tune_pruner",
    "Training": "loss distill_weight kl_top steps batch_size accumulation learning_rate warmup "
    "weight_decay rank alpha "
    "dropout target_modules precision eval_every patience seed",
    "Text": "data held_out held_out_tokens window",
}
_COMPENSATED = {"Text": "calibration tokens window held_out held_out_tokens"}
_SERVED = {
    "Where it listens": "host port dashboard_port trusted_host tls_cert tls_key proxy_addresses",
    "What jobs may use": "models data exports allow_hub devices jobs_per_device",
}
_GROUPS: dict[str, dict[str, str]] = {
    "heal": _HEALED,
    "compensate": _COMPENSATED,
    "export": {},
    "serve": _SERVED,
    "runner": _SERVED,
    "jobs": {"Which jobs": "state study submitted_by last"},
}
_FEW = 8  # largest number of options that is shown without groups
EXAMPLES = {
    "search": (
        "search HuggingFaceTB/SmolLM2-360M-Instruct --drop 25% --calibration my.txt",
        "search ./model --drop 4,8 --sampler pso,woa --task hellaswag --limit 1000 --race",
        "search ./model --drop pareto:50% --against latency",
        "search ./model --drop 25% --sampler llm --llm-model optimizer.gguf",
    ),
    "run": ("run recipe.yaml --out pruned",),
    "evaluate": (
        "evaluate ./pruned --calibration builtin-held-out",
        "evaluate ./model --layers 3,7,12 --task hellaswag --limit 1000",
    ),
    "export": (
        "export STUDY --out pruned",
        "export STUDY --max-loss 2% --out pruned.gguf --gguf",
        "export ./model --layers 3,7,12 --out pruned",
        "export ./model --layers 3:1024/2,7 --criterion flap --out narrow",
    ),
    "report": (
        "report my-study --out report",
        "report pso-0 pso-1 woa-0 woa-1 --out report",
    ),
    "verify": ("verify ./pruned --base ./model",),
    "compare": ("compare model-drop8-kl-pso model-drop8-kl-woa",),
    "compensate": ("compensate STUDY --out compensated --calibration my.txt",),
    "heal": (
        "heal STUDY --compensate --loss distill --steps 1000 --data my.txt --out healed",
        "heal ./model --layers 3,7,12 --tune 20 --out healed",
    ),
    "plan": ("plan meta-llama/Llama-3.1-70B --memory 24GiB",),
    "serve": (
        "serve",
        "serve --host 0.0.0.0 --trusted-host prune.example --tls-cert cert.pem --tls-key key.pem",
    ),
    "runner": ("runner --storage postgresql+psycopg://me@host/team --devices cuda:0,cuda:1",),
    "token create": (
        "token create ann --role submitter --expires 30d",
        "token create ann --role submitter --storage postgresql+psycopg://me@host/team",
    ),
    "jobs": ("jobs --state running --by ann", "jobs job-0123456789abcdef"),
    "study copy": ("study copy --all --to postgresql+psycopg://me@host/team",),
    "submit": (
        "submit recipe.yaml --watch",
        "submit SmolLM2-135M-Instruct --drop 6 --trials 100",
    ),
    "watch": ("watch job-0123456789abcdef --server https://pruning.example.org",),
    "fetch": ("fetch job-0123456789abcdef --out pruned",),
    "work": (
        "work STUDY --storage postgresql+psycopg://me@host/team --cache postgresql+psycopg://me@host/team",
    ),
    "demo": ("demo", "demo --trials 40 --home /tmp/demo"),
}


class Words(click.ParamType):  # type: ignore[type-arg]  # older versions have no argument
    """Type of an option that takes one of several words, or a list of them. Help shows them, and
    shells complete them.

    The words are checked where they are used, because the nearest valid word is suggested there.
    """

    name = "text"

    def __init__(self, words: Sequence[str] | Callable[[], Sequence[str]]) -> None:
        self._given = words

    @property
    def _words(self) -> Sequence[str]:
        # A registry's names are read when help or a shell asks for them.
        if callable(self._given):
            return self._given()
        return self._given

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return the text that help shows in place of a value."""
        return f"[{'|'.join(self._words)}]"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the words that a shell offers."""
        # Complete the last word of a list.
        before, comma, begun = incomplete.rpartition(",")
        offered = []
        for word in self._words:
            if word.startswith(begun):
                offered.append(CompletionItem(before + comma + word))
        return offered


def summary(command: click.Command) -> str:
    """Return the complete first sentence of a command's help."""
    text = " ".join((command.help or "").split("\n\n")[0].split())
    match = re.match(r".+?\.(?=\s|$)", text)
    return (match[0] if match else text).rstrip(".")


class Command(click.Command):
    """A command whose options are shown in groups, and whose errors name its flags."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line, and print the warnings about it if it is accepted."""
        left = super().parse_args(ctx, args)
        print_notes(ctx)
        return left

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 (of click)
        """Run the command. Errors of the core name fields, and get the flags of the command."""
        try:
            return super().invoke(ctx)
        except PruneSearchError as error:
            name_flags(error, self.params)
            raise

    def get_short_help_str(self, limit: int = 45) -> str:
        """Return the line that the list of commands shows."""
        return summary(self)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group."""
        # Collect the help of each option.
        left = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                left[param.name or ""] = record
        # Move the options of each group to it, if there are many options.
        groups: dict[str, list[tuple[str, str]]] = {}
        if len(left) > _FEW:
            for title, names in {**_GROUPS.get(self.name or "", _SEARCHED), **_SHARED}.items():
                groups[title] = [left.pop(name) for name in names.split() if name in left]
        for title, records in {"Options": list(left.values()), **groups}.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        if examples := EXAMPLES.get(_words_of(ctx)):
            with formatter.section("Examples"):
                for example in examples:
                    formatter.write(f"{'':{formatter.current_indent}}prunesearch {example}\n")


def _words_of(ctx: click.Context) -> str:
    """What a command is called after the program's name: ``export``, or ``cache export``."""
    words = []
    while ctx.parent is not None:
        words.append(ctx.info_name or "")
        ctx = ctx.parent
    return " ".join(reversed(words))


class Group(click.Group):
    """A group of such commands."""

    command_class = Command
    group_class = type

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command. Where there is none and none is near, the error lists what there is."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if args[0].startswith("-") or "Did you mean" in error.format_message():
                raise
            known = ", ".join(sorted(self.commands))
            raise click.UsageError(f"No such command {args[0]!r}: known: {known}", ctx) from None

    def get_short_help_str(self, limit: int = 45) -> str:
        """Return the line that the list of commands shows."""
        return summary(self)
