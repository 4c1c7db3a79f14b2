"""The command line: commands parse, call and print."""

from prunesearch.cli.main import cli

__all__ = ["cli"]
