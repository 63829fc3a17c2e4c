"""Photographs the built book: _static/preview.png and _static/book.webp.

The first is what a link to the book shows elsewhere, 1200 by 630 pixels; the second
stands in the README. Run it by hand after `make book OFFLINE=1`, when the look of the
book has changed; it needs what the tests need, playwright and Chromium.
"""

import base64
import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "_ext"))

import book_networks  # noqa: E402

SITE = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "_build" / "html").resolve()
STATIC = ROOT / "_static"
SHOWN = "unet", "deeplab", "ternausnetv2", "instruments"

PREVIEW = """
<body style="margin:0;width:1200px;height:630px;background:#fff;color:#222;
  font-family:sans-serif;display:flex;flex-direction:column;justify-content:center">
<div style="display:flex;align-items:center;gap:36px;padding:0 70px">
<img src="LOGO" style="height:150px">
<div><div style="font-size:66px;font-weight:700">Segmentation Networks</div>
<div style="font-size:40px;margin-top:10px">from Paper to PyTorch</div></div></div>
<div style="display:flex;gap:14px;padding:56px 70px 0">PICTURES</div>
<div style="height:8px;margin:40px 70px 0;background:linear-gradient(90deg,
  #3f76bd 0 33%,#c0479a 33% 66%,#c4741d 66%)"></div></body>
"""


def pictures():
    """The pictures of predictions of some chapters, as the listing shows them."""
    entries = {entry["chapter"]: entry for entry in book_networks.load()}
    boxes = (
        '<div style="flex:1;height:190px;overflow:hidden">'
        f'{book_networks.thumbnail(entries[name], width=520)}</div>'
        for name in SHOWN
    )
    return "".join(boxes)


def main():
    path = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1200, "height": 630})
        logo = (STATIC / "logo.svg").read_bytes()
        data = f"data:image/svg+xml;base64,{base64.b64encode(logo).decode()}"
        page.set_content(
            PREVIEW.replace("LOGO", data).replace("PICTURES", pictures())
        )
        page.wait_for_load_state("networkidle")
        save(page.screenshot(), STATIC / "preview.png")

        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto((SITE / "chapters" / "ternausnetv2.html").as_uri())
        page.wait_for_timeout(3000)
        save(page.screenshot(), STATIC / "book.webp")
        browser.close()


def save(screenshot, target):
    image = Image.open(io.BytesIO(screenshot)).convert("RGB")
    if target.suffix == ".png":
        image = image.quantize(255)
        image.save(target, optimize=True)
    else:
        image.save(target, quality=80, method=6)
    print(target.relative_to(ROOT), target.stat().st_size)


if __name__ == "__main__":
    main()
