"""Prints the whole book as one PDF, with Chromium: run by `make pdf`.

The book is built as a single page first; pictures and formulas are waited for.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
READY = """async () => {
  const pictures = [...document.images].filter(image => image.src);
  for (const picture of pictures) picture.loading = "eager";
  await Promise.all(pictures.map(picture => picture.decode()));
  dispatchEvent(new Event("beforeprint"));
  while (document.querySelector(".math") && !window.MathJax?.startup?.promise)
    await new Promise(done => setTimeout(done, 50));
  await window.MathJax?.startup?.promise;
  dispatchEvent(new Event("afterprint"));
}"""
MARGIN = dict(top="15mm", bottom="15mm", left="14mm", right="14mm")


def print_page(page, target):
    """Writes the HTML file `page` as the PDF `target`, with bookmarks."""
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not browser_path:
        sys.exit("Chromium is missing (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"]
        )
        tab = browser.new_page()
        tab.goto(Path(page).resolve().as_uri())
        tab.evaluate(READY)
        tab.pdf(
            path=target,
            format="A4",
            scale=0.8,
            margin=MARGIN,
            print_background=True,
            tagged=True,
            outline=True,
        )
        browser.close()
    print(f"{target}: {Path(target).stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    print_page(*sys.argv[1:])
