"""A live network in Chromium against PyTorch on one thread, in turns.

Needs the built book (make book OFFLINE=1) and Chromium. Prints the medians of both and
their ratio: above 1, the browser is slower.

    python -m benchmarks.live_browser [unet] [deeplab] [--turns 7]
"""

import argparse
import shutil
import statistics
import sys
import threading
import time

import torch
from playwright.sync_api import sync_playwright

from utils import export, live, runtime

sys.path.insert(0, str(runtime.root() / "tools"))

import serve  # noqa: E402

START = """async () => {
  const element = document.querySelector('segbook-live');
  element.go.click();
  while (!element.panes?.[0].result) await new Promise(done => setTimeout(done, 50));
}"""
RUN = """async () => {
  const element = document.querySelector('segbook-live'), [pane] = element.panes;
  pane.stale = true;
  await element.answer();
  return pane.result.milliseconds / 1000;
}"""


def pytorch(name):
    """A function that runs the network once, in the frame's size: seconds."""
    network = live.find(name)
    manifest = live.read_manifest(network)
    model = export.evaluated(live.trained(network))
    prepare = network.prepare or export.preparation(model)
    once = export.Live(model, prepare, {}).eval()
    frame = torch.zeros(
        1, manifest["channels"], *manifest["frame"], dtype=torch.uint8
    )  # a convolution takes as long for any image

    @torch.inference_mode()
    def run():
        start = time.perf_counter()
        once(frame)
        return time.perf_counter() - start

    return run


def compare(page, address, name, turns):
    """Prints the medians and their ratio."""
    page.goto(f"{address}chapters/{name}.html")
    page.evaluate(START)
    run = pytorch(name)
    times = [(page.evaluate(RUN), run()) for _ in range(turns + 1)][1:]
    browser, ours = map(statistics.median, zip(*times))
    print(
        f"{name}: browser {browser:.2f} s, PyTorch {ours:.2f} s, {browser / ours:.1f}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["unet", "deeplab"])
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with serve.server() as http, sync_playwright() as playwright:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{http.server_port}/"
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        for name in options.names:
            compare(browser.new_page(), address, name, options.turns)
        browser.close()
        http.shutdown()


if __name__ == "__main__":
    main()
