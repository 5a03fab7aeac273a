"""The command `debugreg`, also as `python -m debugreg`."""

import sys


def main() -> int:
    """Run the command line and return its exit code."""
    try:
        from debugreg._cli import run

        return run()
    except KeyboardInterrupt:  # While modules are still being imported.
        return 130


if __name__ == "__main__":
    sys.exit(main())
