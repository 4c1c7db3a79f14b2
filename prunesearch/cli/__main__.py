"""`python -m prunesearch.cli`."""

from prunesearch.cli.main import main

main()
