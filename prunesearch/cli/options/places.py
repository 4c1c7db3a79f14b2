"""Where studies, evaluations, servers and files are, and what a report shows."""

from prunesearch.cli.help import Words
from prunesearch.cli.parameters import SharedOption
from prunesearch.config.run_options import RunOptions
from prunesearch.export.formats.registry import checkpoint_formats
from prunesearch.runtime.masking import CACHE_VARIABLE, STORAGE_VARIABLE
from prunesearch.service.credentials import DEFAULT_SERVER, SERVER_VARIABLE, TOKEN_VARIABLE

# Where results are. A password belongs into ~/.pgpass or into the variable: other users of the
# machine can read command lines.
STUDY = SharedOption("--study", help="Name of the study.", show_default="made from the recipe")
STORAGE = SharedOption(
    "--storage",
    default=RunOptions().storage,
    show_default=True,
    envvar=STORAGE_VARIABLE,
    show_envvar=True,
    help="Optuna RDB URL of the studies. Keep its password in ~/.pgpass.",
)
COPY_FROM = SharedOption(
    "--from",
    "source",
    default=RunOptions().storage,
    show_default=True,
    envvar=STORAGE_VARIABLE,
    show_envvar=True,
    help="Optuna RDB URL of the database with the studies.",
)
COPY_TO = SharedOption(
    "--to",
    "target",
    required=True,
    help="Optuna RDB URL of the database for the copies. Keep its password in ~/.pgpass.",
)
CACHE = SharedOption(
    "--cache",
    default=RunOptions().cache,
    show_default=True,
    envvar=CACHE_VARIABLE,
    show_envvar=True,
    help="The cache: DIR, URL or DIR,URL. Keep a password in ~/.pgpass.",
)

# The server.
SERVER = SharedOption(
    "--server",
    default=DEFAULT_SERVER,
    show_default=True,
    envvar=SERVER_VARIABLE,
    show_envvar=True,
    help="URL of the server.",
)
TOKEN_FILE = SharedOption(
    "--token-file",
    show_default=f"{TOKEN_VARIABLE}, ~/.config/prunesearch/token, storage/admin.token",
    help="File with the token, which others may not read.",
)
INSECURE_HTTP = SharedOption(
    "--insecure-http",
    is_flag=True,
    help="Send the token to another machine without encryption.",
)

# The checkpoint that is written.
OUT = SharedOption(
    "--out",
    help="New or empty folder for what is written; with --gguf of export a new file, and for "
    "report also an earlier report.",
)
EXPORT_FORMAT = SharedOption(
    "--as",
    "export_format",
    type=Words(checkpoint_formats),
    show_default="plain; widths for narrow layers",
    help="Format of the checkpoint. Dropped sublayers need another format than plain.",
)
MAX_SHARD = SharedOption(
    "--max-shard", default="5GB", show_default=True, help="Size of the largest weight file."
)
JOINT = SharedOption("--joint", is_flag=True, help="Put studies of different models side by side.")
SCORE = SharedOption(
    "--score",
    is_flag=True,
    help="First load the model, and measure on held-out data what the report lacks.",
)
EXPORTED = SharedOption(
    "--exported",
    multiple=True,
    metavar="DIR",
    help="Checkpoint of a study to measure too; those of this machine are known.",
)
JSON = SharedOption("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
