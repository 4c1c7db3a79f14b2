"""``python -m prunesearch`` is the command ``prunesearch``."""

from prunesearch.cli import main

if __name__ == "__main__":
    main()
