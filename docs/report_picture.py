"""The picture of the report in README and docs, from what `python -m cnnext bench --json bench.json` wrote.

    python docs/report_picture.py bench.json [model]

Needs Chromium and Pillow.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from cnnext.bench import page

WIDTH, HEIGHT = 1120, 1690


def main(file: str, model: str | None = None) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("no Chromium was found")
    data = json.loads(Path(file).read_text())
    model = model or next((network["model"] for network in data["networks"]), None)  # layers of several overlap
    with tempfile.TemporaryDirectory() as folder:
        html, picture = Path(folder, "report.html"), Path(folder, "report.png")
        html.write_text(page.render(data, model), encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1"]
        options += ["--blink-settings=preferredColorScheme=1", f"--window-size={WIDTH},{HEIGHT}"]
        subprocess.run([browser, *options, f"--screenshot={picture}", html.as_uri()], check=True, capture_output=True)
        image = Image.open(picture).convert("RGB").quantize(64, dither=Image.Dither.NONE)
        image.save(Path(__file__).parent / "images" / "report.png", optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
