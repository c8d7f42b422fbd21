"""``python -m workers_module`` and the command ``workers``: the command line, if its libraries are there."""

import sys
from importlib.util import find_spec
from typing import Final

_NEEDED: Final = ("typer", "rich", "yaml")


def main() -> None:
    """Run the command line, or say how to install it."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        sys.stderr.write(f"workers needs {', '.join(missing)}; install it: pip install 'workers_module[cli]'\n")
        sys.exit(3)
    from workers_module.cli.app import run  # noqa: PLC0415 - it needs what was just looked for

    run()


if __name__ == "__main__":
    main()
