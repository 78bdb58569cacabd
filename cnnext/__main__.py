"""`python -m cnnext`: `info` describes and tests the installation, `bench` measures it beside torch, `train` trains."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

import cnnext


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="cnnext", description=cnnext.__doc__)
    parser.add_argument("--version", action="version", version=f"cnnext {cnnext.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    info = commands.add_parser("info", help="versions, processor, kernels, and a self-test")
    info.add_argument("--json", action="store_true", help="print one JSON object")

    for name, purpose in (("bench", "measure models or single layers beside torch"), ("train", "train a classifier")):
        command = commands.add_parser(name, help=purpose)
        if argv[:1] != [name]:
            continue
        try:  # imported only when asked for: its packages come with extras
            package = importlib.import_module(f"cnnext.{name}")
            package.add_arguments(command)
            return package.main(parser.parse_args(argv))
        except ModuleNotFoundError as error:
            missing = (error.name or "cnnext").partition(".")[0]
            if missing == "cnnext":
                raise
            extra = "report" if name == "bench" and missing in ("jinja2", "matplotlib") else name
            print(f"cnnext {name} needs {missing}: run `pip install 'cnnext[{extra}]'`", file=sys.stderr)
            return 1

    from cnnext import _info

    return _info.main(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
