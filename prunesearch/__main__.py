"""The command ``prunesearch``, and ``python -m prunesearch``: signals are seen to before anything
else is imported.
"""

from prunesearch.runtime import stopping


def main() -> None:
    """Run the command line.

    A signal that comes before its first step, or after its last, ends the process quietly.
    """
    stopping.guard_process()
    from prunesearch.cli import main as program  # takes half a second

    program.main()


if __name__ == "__main__":
    main()
