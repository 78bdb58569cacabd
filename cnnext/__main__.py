"""`python -m cnnext`: `info` describes the installation and tests it, `bench` measures it beside torch."""

from __future__ import annotations

import argparse
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

    bench = commands.add_parser("bench", help="measure models or single layers beside torch")
    try:
        # Imported only when asked for: its packages come with extras.
        if argv[:1] == ["bench"]:
            from cnnext.bench import add_arguments
            from cnnext.bench import main as run_bench

            add_arguments(bench)
            return run_bench(parser.parse_args(argv))
    except ModuleNotFoundError as error:
        package = (error.name or "cnnext").partition(".")[0]
        if package == "cnnext":
            raise
        extra = "report" if package in ("jinja2", "matplotlib") else "bench"
        print(f"cnnext bench needs {package}: run `pip install 'cnnext[{extra}]'`", file=sys.stderr)
        return 1

    from cnnext import _info

    return _info.main(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
