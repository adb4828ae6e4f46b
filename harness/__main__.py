"""`python -m harness`, which is what horovodrun starts: the same as the command `harness`."""

import sys


def main() -> int:
    """The command `harness`; Ctrl-C ends it with one line, even while it is loading."""
    try:
        from harness import cli

        return cli.main()
    except KeyboardInterrupt:
        print("harness: stopped", file=sys.stderr, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
