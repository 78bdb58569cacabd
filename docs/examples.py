"""The code in the pages: finds it, runs it, and so makes the pages' pictures.

    python docs/examples.py            write the pictures to docs/images
    python docs/examples.py lecture    of one page

The blocks of a page are one program. A picture that a block saves is what the page shows as `images/NAME`.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, each behind as many empty lines as precede it: tracebacks name page lines."""
    fences = re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return ["\n" * text.count("\n", 0, block.start(1)) + block[1] for block in fences]


def pages() -> list[Path]:
    """The pages that hold Python."""
    return [path for path in sorted(FOLDER.glob("*.md")) if blocks(path.read_text(), "python")]


def run(page: Path, folder: Path) -> None:
    """Runs a page's program in a folder."""
    names: dict[str, Any] = {"__name__": "__main__"}
    before = os.getcwd()
    os.chdir(folder)
    try:
        for block in blocks(page.read_text(), "python"):
            exec(compile(block, str(page), "exec"), names)
    finally:
        os.chdir(before)


if __name__ == "__main__":
    for page in pages():
        if page.stem in sys.argv[1:] or not sys.argv[1:]:
            with tempfile.TemporaryDirectory() as folder:
                run(page, Path(folder))
                for picture in Path(folder).glob("*.png"):
                    shutil.copy(picture, FOLDER / "images")
