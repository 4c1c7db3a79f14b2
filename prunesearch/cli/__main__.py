"""`python -m prunesearch.cli`."""

from prunesearch.cli.app import main

main()
