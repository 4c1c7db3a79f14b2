"""The command line: commands parse, call and print."""

from prunesearch.cli.app import cli, main

__all__ = ["cli", "main"]
