"""Lighthouse on the built book, as a phone with a slow network would see it.

Needs the built book (make book OFFLINE=1, so that MathJax counts), Chromium and npm,
which fetches Lighthouse itself. Prints of every page the median of some runs by
performance: the four scores, first paint in seconds, requests and kilobytes. On a busy
machine the performance comes out lower than it is.

    python -m benchmarks.lighthouse [intro] [chapters/unet] [--runs 5]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading

from utils import runtime

sys.path.insert(0, str(runtime.root() / "tools"))

import serve  # noqa: E402
from pdf import BROWSERS  # noqa: E402

VERSION = "12.2.3"
SWITCHES = "--headless --no-sandbox --disable-background-networking"


def audit(url):
    """The report of one run, a dict."""
    chromium = next(filter(None, map(shutil.which, BROWSERS)))
    command = "npx", "--yes", f"lighthouse@{VERSION}", url
    how = "--quiet", "--output=json", f"--chrome-flags={SWITCHES}"
    environment = {**os.environ, "CHROME_PATH": chromium}
    found = subprocess.run(
        [*command, *how], env=environment, check=True, stdout=subprocess.PIPE
    )
    return json.loads(found.stdout)


def row(report):
    """(scores of 100, first paint in seconds, requests, kilobytes) of a report."""
    scores = [round(100 * c["score"]) for c in report["categories"].values()]
    audits = report["audits"]
    files = audits["network-requests"]["details"]["items"]
    paint = audits["first-contentful-paint"]["numericValue"] / 1000
    return scores, paint, len(files), sum(f["transferSize"] for f in files) / 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "pages", nargs="*", default=["intro", "chapters/unet", "chapters/comparison"]
    )
    parser.add_argument("--runs", type=int, default=5)
    chosen = parser.parse_args()
    with serve.server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for page in chosen.pages:
            url = f"http://127.0.0.1:{server.server_port}/{page}.html"
            rows = sorted(row(audit(url)) for _ in range(chosen.runs))
            scores, paint, asked, size = rows[len(rows) // 2]
            print(
                f"{page}: {scores} of {[r[0][0] for r in rows]}, first paint "
                f"{paint:.1f} s, {asked} requests, {size:.0f} kB",
                flush=True,
            )
        server.shutdown()


if __name__ == "__main__":
    main()
