"""The built pages in a browser, as a reader meets them.

The book is built to need no other host and served on this machine. Every page
of the contents goes through the same checks.
"""

import functools
import http.server
import io
import json
import os
import re
import shutil
import sys
import threading
import unicodedata
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from conftest import ROOT, chapters, need, pages
from playwright.sync_api import sync_playwright
from pypdf import PdfReader

from utils import metrics

sys.path.insert(0, str(ROOT / "tools"))

import links  # noqa: E402
import serve  # noqa: E402

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SWITCHES = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]
every_page = pytest.mark.parametrize("name", pages())
every_chapter = pytest.mark.parametrize("name", chapters())


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address(site):
    """Serves the built book on this machine; gives the address."""
    handler = functools.partial(QuietHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    need(path, "Chromium is missing (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=SWITCHES)
        yield browser
        browser.close()


class Visit:
    """A page opened by a reader, with what went wrong while it loaded."""

    def __init__(self, browser, address, name, width=1280, scheme="light"):
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        self.context.set_default_timeout(30_000)
        self.page = self.context.new_page()
        self.errors, self.elsewhere = [], []
        self.page.on("console", self.hear)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self.watch)
        self.page.on("response", self.check)
        self.address = address
        self.page.goto(f"{address}{name}.html", wait_until="load")
        self.settle()

    def hear(self, message):
        if message.type == "error":
            self.errors.append(message.text)

    def watch(self, request):
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.elsewhere.append(request.url)

    def check(self, response):
        if response.status >= 400:
            self.errors.append(f"{response.status} {response.url}")

    def settle(self):
        """Waits until maths is there, which comes with a reader's first sign."""
        page = self.page
        if page.locator("div.math, span.math").count():
            page.keyboard.press("Shift")
            page.wait_for_function("window.MathJax?.startup?.promise")
            page.evaluate("MathJax.startup.promise.then(() => true)")
        page.wait_for_load_state("networkidle")


@pytest.fixture(scope="module")
def visit(browser, address):
    """visit(name, width=…, scheme=…) opens each kind of page once."""
    visits = {}

    def open_page(name, **how):
        key = (name, *sorted(how.items()))
        if key not in visits:
            visits[key] = Visit(browser, address, name, **how)
        return visits[key]

    yield open_page
    for one in visits.values():
        one.context.close()


@every_page
def test_no_error_and_no_other_host(visit, name):
    seen = visit(name)
    assert seen.errors == []
    assert seen.elsewhere == []


@every_page
def test_images_are_decoded_and_described(visit, name):
    images = visit(name).page.evaluate(
        """() => Promise.all([...document.querySelectorAll('.bd-article img')].map(
          async image => {
            image.loading = 'eager';
            const decoded = await image.decode().then(() => true, () => false);
            return [image.src.slice(0, 120), decoded, image.alt];
          }))"""
    )
    assert images or name not in chapters()
    for source, decoded, alt in images:
        assert decoded, source
        described = alt and not alt.endswith((".png", ".svg", ".webp"))
        assert described, f"no alternative text: {source} (see CONTRIBUTING.md)"


WITHOUT_FORMULAS = {"chapters/own_images"}


@every_page
def test_maths_is_rendered(visit, name):
    formulas, rendered, failed = visit(name).page.evaluate(
        """() => ['.math', '.math mjx-container', 'mjx-merror, [data-mjx-error]'].map(
          selector => document.querySelectorAll(selector).length)"""
    )
    assert rendered >= formulas
    assert failed == 0
    assert formulas or name not in chapters() or name in WITHOUT_FORMULAS


def test_maths_waits_for_a_reader(browser, address):
    """MathJax is fetched once, when a formula comes near or a reader does something."""
    context = browser.new_context(viewport={"width": 390, "height": 600})
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{address}chapters/unet.html", wait_until="networkidle")
    assert page.locator(".math").count() and not any("mathjax" in u for u in asked)
    for sign in range(2):
        page.mouse.wheel(0, 300)
        page.wait_for_selector("mjx-container")
    assert sum("tex-mml-chtml" in url for url in asked) == 1
    context.close()


# What these show needs no slider.
STILL = {
    "chapters/gcn", "chapters/inplace_abn", "chapters/instruments", "chapters/own_images",
}  # fmt: skip


@every_chapter
def test_explorers_move_without_a_kernel(visit, name):
    """By key they show another picture and say which; played, they go to the last."""
    page = visit(name).page
    boxes = page.locator(".explorer")
    if name in STILL:
        assert not boxes.count(), f"{name} has an explorer now: take it out of STILL"
        return
    assert boxes.count(), "a chapter has at least one explorer"
    assert not page.locator(".jupyter-widgets").count()
    for box in boxes.all():
        slider, frames = box.locator("input"), box.locator(".frame")
        shown = "e => [...e.querySelectorAll('.frame')].findIndex(f => !f.hidden)"
        start, last = box.evaluate(shown), frames.count() - 1
        assert int(slider.input_value()) == start
        slider.focus()
        page.keyboard.press("ArrowLeft" if start == last else "ArrowRight")
        now = box.evaluate(shown)
        assert abs(now - start) == 1
        label = frames.nth(now).get_attribute("data-label")
        assert slider.get_attribute("aria-valuetext") == label
        assert box.locator("output").inner_text() == label
        assert box.get_attribute("data-name") in box.locator("label").inner_text()
    slider.fill(str(max(0, last - 1)))
    box.locator(".explorer-bar button").click()
    page.wait_for_function(f"([e, last]) => ({shown})(e) === last",
                           arg=[box.element_handle(), last])  # fmt: skip
    assert box.locator(".explorer-bar button").get_attribute("class") == "play"


@every_chapter
def test_without_scripts_an_explorer_is_a_picture(browser, address, name):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{address}{name}.html")
    for box in page.locator(".explorer").all():
        assert box.locator("img:visible").count() == 1
    context.close()


@every_page
def test_pages_ask_for_little(visit, name):
    """No data in the page that could be a file, no runtime of widgets, no fonts of
    icons but the book's own, no MathJax without formulas."""
    page = visit(name).page
    sizes = page.evaluate(
        "() => [...document.querySelectorAll('img')].map(i => i.outerHTML.length)"
    )
    assert max(sizes, default=0) < 4_000
    asked = page.evaluate(
        "() => performance.getEntriesByType('resource').map(e => e.name)"
    )
    heavy = [u for u in asked if re.search("fontawesome|embed-amd|require", u)]
    assert heavy == []
    formulas = page.locator(".math").count()
    assert any("mathjax" in url for url in asked) == bool(formulas)


def test_scores_that_follow_the_prediction_are_those_of_utils(visit):
    """Reads truth and prediction off the painted pixels, and compares the scores."""
    page = visit("chapters/start").page
    box = page.locator(".score-explorer")
    read = """e => {
      const c = e.querySelector('canvas'), w = c.width, h = c.height;
      const data = c.getContext('2d').getImageData(0, 0, w, h).data;
      const red = [...Array(w * h).keys()].map(i => data[4 * i]);
      const rows = [...e.querySelectorAll('tbody tr')].map(
        row => [row.cells[0].textContent, Number(row.cells[1].textContent)]);
      return [h, w, red, Object.fromEntries(rows), c.getAttribute('aria-label')];
    }"""
    seen = []

    def check():
        height, width, red, scores, label = box.evaluate(read)
        red = np.array(red).reshape(height, width)
        assert set(np.unique(red)) <= {128, 196, 63, 252}
        truth, guess = (red == 128) | (red == 63), (red == 128) | (red == 196)
        pair = guess.astype(int), truth.astype(int)
        table = metrics.confusion_matrix(*pair, 2)
        wanted = {
            "accuracy": metrics.pixel_accuracy(table),
            "IoU": metrics.iou(table)[1].item(),
            "Dice": metrics.dice(table)[1].item(),
            "precision": (table[1, 1] / table[:, 1].sum()).item(),
            "recall": (table[1, 1] / table[1].sum()).item(),
            "boundary F1": metrics.boundary_f1(*pair, 2)[1].nan_to_num().item(),
        }
        assert scores == pytest.approx(wanted, abs=6e-4, nan_ok=True)
        assert f"IoU {scores['IoU']:.3f}" in label
        seen.append((truth.sum(), guess.sum(), scores["IoU"]))

    for position in ((0, 0, 0), (3, 0, 0), (-7, 4, 2), (0, -2, -2), (30, 30, 6)):
        for slider, value in zip(box.locator("input").all(), position):
            slider.fill(str(value))
        check()
    assert seen[0][2] == 1 and len({truth for truth, *_ in seen}) == 1
    assert seen[2][1] > seen[0][1] > seen[3][1]
    for button in box.get_by_role("button").all():
        button.click()
        check()
    box.locator("input").first.focus()
    before = box.locator("tbody").inner_text()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert box.locator("output").first.inner_text() == "2"
    assert box.locator("tbody").inner_text() != before


def test_comparison_sorts_by_each_column_both_ways(visit):
    box = visit("chapters/comparison").page.locator(".comparison-table")
    column = """(e, k) => [...e.querySelectorAll('tbody tr')].map(
      row => Number(row.cells[k].dataset.value))"""
    heads = box.locator("th[scope=col]")
    for number in range(1, heads.count()):
        for order in ("descending", "ascending"):
            heads.nth(number).get_by_role("button").click()
            values = box.evaluate(column, number)
            assert len(values) > 10
            assert values == sorted(values, reverse=order == "descending")
            assert heads.nth(number).get_attribute("aria-sort") == order
    heads.first.get_by_role("button").click()
    names = box.locator("tbody th").all_inner_texts()
    assert names == sorted(names)
    assert box.locator("[aria-sort]").count() == 1


def test_pareto_front_is_right_for_each_choice(visit):
    page = visit("chapters/comparison").page
    table, plot = page.locator(".comparison-table"), page.locator(".pareto")
    rows = table.evaluate(
        """e => [...e.querySelectorAll('tbody tr')].map(row => [
          row.cells[0].textContent.replace(' *', ''),
          ...[...row.cells].slice(1).map(cell => Number(cell.dataset.value))])"""
    )
    heads = [h.removesuffix(" ↓").removesuffix(" ↑")
             for h in table.locator("th[scope=col]").all_inner_texts()]  # fmt: skip
    costs, gains = (plot.locator("select").nth(k) for k in range(2))
    assert costs.locator("option").count() >= 5
    for cost in costs.locator("option").all():
        for gain in gains.locator("option").all():
            costs.select_option(cost.get_attribute("value"))
            gains.select_option(gain.get_attribute("value"))
            c, g = (heads.index(one.text_content()) for one in (cost, gain))
            sign = -1 if "a second" in heads[c] else 1
            points = {row[0]: (sign * row[c], -row[g]) for row in rows}
            front = {
                name for name, one in points.items()
                if not any(other != one and other[0] <= one[0] and other[1] <= one[1]
                           for other in points.values())
            }  # fmt: skip
            said = plot.locator("[role=status]").inner_text()
            cost_of = {row[0]: row[c] for row in rows}
            names = ", ".join(sorted(front, key=cost_of.get))  # some hold a comma
            assert said == f"On the front: {names}."
            assert plot.locator("svg circle").count() == len(rows)


@every_page
def test_fits_a_phone(visit, name):
    page = visit(name, width=390).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    clipped = page.evaluate(
        """() => [...document.querySelectorAll('.bd-article .explorer-bar')]
          .filter(e => e.checkVisibility() && e.getBoundingClientRect().right > 390)
          .map(e => e.className)"""
    )
    assert clipped == []


@every_page
def test_a_phone_shows_code_and_tables_of_words_whole(visit, name):
    """Code wraps; a table of words stacks, each cell with the name of its column."""
    page = visit(name, width=390).page
    hidden = page.evaluate(
        """() => [...document.querySelectorAll(
             '.bd-article div.highlight pre, .bd-article table.stack')]
          .filter(e => e.checkVisibility() && e.scrollWidth > e.clientWidth + 1)
          .map(e => e.textContent.slice(0, 80))"""
    )
    assert hidden == []
    for table in page.locator("table.stack").all():
        cells = table.locator("tbody tr").first.locator("td, th")
        assert all(
            cell.get_attribute("data-label") is not None for cell in cells.all()
        )
        assert cells.nth(1).evaluate("e => getComputedStyle(e).display") == "block"


def test_a_search_leads_to_the_word(browser, address):
    page = browser.new_context().new_page()
    page.goto(f"{address}search.html?q=watershed")
    link = page.locator("#search-results li a").first
    link.wait_for()
    link.click()
    word = page.locator(".bd-article span.highlighted").first
    word.wait_for()
    assert "watershed" in word.inner_text().lower()
    page.wait_for_function(
        "e => e.getBoundingClientRect().top < innerHeight", arg=word.element_handle()
    )
    page.context.close()


def test_a_small_figure_opens_at_its_full_size(visit):
    page = visit("chapters/ternausnetv2", width=390).page
    button = page.locator(".zoom-button").first
    button.scroll_into_view_if_needed()
    button.click()
    shown = page.locator("dialog.zoom img")
    assert shown.is_visible() and shown.get_attribute("alt")
    assert shown.evaluate("e => e.clientWidth === e.naturalWidth")
    page.keyboard.press("Escape")
    assert not shown.is_visible()


# The lowest contrast of any text in the article: [ratio, the text].
CONTRAST = """() => {
  const paint = document.createElement('canvas').getContext('2d',
    {willReadFrequently: true});
  const rgba = colour => {
    paint.clearRect(0, 0, 1, 1);
    paint.fillStyle = colour;
    paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data];
  };
  const luminance = colour => {
    const [r, g, b] = rgba(colour).slice(0, 3).map(v => v / 255).map(
      v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = e => {
    for (; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (rgba(colour)[3] > 250) return colour;
    }
    return 'white';
  };
  const texts = 'p, li, h1, h2, h3, td, th, dt, dd, a, code, figcaption, pre, label';
  return [...document.querySelectorAll(`.bd-article :is(${texts})`)]
    .filter(e => e.checkVisibility() && e.innerText.trim() && !e.closest('.headerlink'))
    .map(e => {
      const pair = [luminance(getComputedStyle(e).color), luminance(background(e))];
      const [dark, light] = pair.sort((a, b) => a - b);
      return [(light + 0.05) / (dark + 0.05), e.innerText.slice(0, 60)];
    })
    .reduce((a, b) => a[0] < b[0] ? a : b);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@every_page
def test_text_is_readable(visit, name, scheme):
    page = visit(name, scheme=scheme).page
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    ratio, text = page.evaluate(CONTRAST)
    assert ratio >= 4.5, text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@every_page
def test_nothing_bars_a_reader(visit, name, scheme):
    """No violation that axe-core calls serious or critical, on the whole page."""
    page, options = visit(name, scheme=scheme).page, {"resultTypes": ["violations"]}
    found = Axe().run(page, options=options).response["violations"]
    grave = [
        f"{v['id']}: {v['help']}: {node['html'][:200]}"
        for v in found
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"]
    ]
    assert grave == []


@every_page
def test_headings_are_in_order(site, name):
    levels = [int(h.name[1]) for h in soup(site, name).select(".bd-article h1, "
              ".bd-article h2, .bd-article h3, .bd-article h4")]  # fmt: skip
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:]))


@every_chapter
def test_dark_mode_leaves_pictures_alone(visit, name):
    filters = visit(name, scheme="dark").page.evaluate(
        """() => [...document.querySelectorAll('.cell_output img')]
          .map(image => getComputedStyle(image).filter)"""
    )
    assert filters and set(filters) == {"none"}


def test_paper_has_the_whole_page(browser, address):
    """Solutions unfold before pages are counted, so that the end is not cut off."""
    seen = Visit(browser, address, "chapters/unet")
    words = seen.page.evaluate(ALL_WORDS).split()
    last = PdfReader(io.BytesIO(seen.page.pdf())).pages[-1].extract_text()
    assert squeezed(last).endswith(squeezed(" ".join(words[-3:])))
    seen.context.close()


ALL_WORDS = """() => {
  for (const details of document.querySelectorAll('details')) details.open = true;
  return document.querySelector('.bd-article').innerText;
}"""


def squeezed(text):
    """Letters and digits only: fonts join some and PDFs break lines."""
    return re.sub(r"\W", "", unicodedata.normalize("NFKC", text))


@every_page
def test_prints_on_paper(browser, address, name):
    """A4 with margins: only the article, all of it, dark on white in dark mode too."""
    seen = Visit(browser, address, name, width=718, scheme="dark")
    seen.page.emulate_media(media="print")
    seen.page.wait_for_function("document.documentElement.dataset.theme === 'light'")
    folds = ".tag_hide-cell > details:not([open]), details.sd-dropdown:not([open])"
    assert not seen.page.locator(folds).count()
    assert not seen.page.locator(".tag_hide-input > details:visible").count()
    around = ".bd-sidebar, .bd-header-article, .bd-footer-content, .prev-next-footer"
    shown, ink, paper, cut = seen.page.evaluate(
        """around => {
          const luminance = colour => colour.match(/[\\d.]+/g).slice(0, 3)
            .reduce((sum, v) => sum + Number(v), 0) / 765;
          const main = document.querySelector('.bd-article');
          const page = getComputedStyle(document.body).backgroundColor;
          return [
            [...document.querySelectorAll(around)].filter(e => e.checkVisibility())
              .map(e => e.className),
            luminance(getComputedStyle(main.querySelector('p')).color),
            page === 'rgba(0, 0, 0, 0)' ? 1 : luminance(page),
            [...main.querySelectorAll('pre, table, img')]
              .filter(e => e.checkVisibility() && e.scrollWidth > 718)
              .map(e => e.outerHTML.slice(0, 100)),
          ];
        }""",
        around,
    )
    assert shown == [] and cut == []
    assert ink < 0.4 and paper > 0.9
    seen.context.close()


def test_reader_can_switch_to_dark(browser, address):
    seen = Visit(browser, address, pages()[0])
    theme = "document.documentElement.dataset.theme"
    for _ in range(3):  # the button goes round: auto, light, dark
        if seen.page.evaluate(theme) == "dark":
            break
        seen.page.locator(".theme-switch-button").first.click()
    assert seen.page.evaluate(theme) == "dark"
    seen.context.close()


def test_search_finds_a_chapter(browser, address):
    seen = Visit(browser, address, "search")
    seen.page.goto(f"{address}search.html?q=segmentation")
    seen.page.wait_for_selector("#search-results li a")
    assert seen.elsewhere == []
    seen.context.close()


@every_chapter
def test_colab_link_opens_this_notebook(visit, name):
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    url = os.environ.get("SEGBOOK_REPOSITORY") or config["repository"]["url"]
    branch = os.environ.get("SEGBOOK_BRANCH") or config["repository"]["branch"]
    colab = "https://colab.research.google.com/"
    link = visit(name).page.locator(f"a[href^='{colab}']").first
    repository = url.removeprefix("https://github.com/")
    wanted = f"{colab}github/{repository}/blob/{branch}/{name}.ipynb"
    assert link.get_attribute("href") == wanted


@every_chapter
def test_notebook_can_be_downloaded(visit, site, name):
    link = visit(name).page.locator("a.btn-download-source-button").first
    path = urlsplit(link.evaluate("a => a.href")).path.lstrip("/")
    assert path.endswith(".ipynb")
    assert (site / path).read_bytes() == (ROOT / f"{name}.ipynb").read_bytes()


@every_chapter
def test_page_says_where_its_outputs_come_from(visit, name):
    notebook = json.loads((ROOT / f"{name}.ipynb").read_text(encoding="utf-8"))
    stamp = notebook["metadata"]["segbook"]
    page = visit(name).page
    line = page.locator(".stamp-line").inner_text()
    note = page.locator("aside.stamp").inner_text()
    assert stamp["device"] in line and stamp["date"][:4] in line
    expected = [stamp["device"], f"profile {stamp['profile']}", *stamp["data"]]
    expected += [f"torch {stamp['versions']['torch']}", stamp["code_hash"][:12]]
    for words in expected:
        assert words in note


@every_chapter
def test_page_says_why_colab_cannot_open_it_yet(visit, name):
    said = visit(name).page.locator(".no-address").inner_text()
    assert "Colab leads nowhere yet" in said and "make repo URL=" in said


def test_pages_are_there_and_links_inside_the_book_lead_somewhere(site):
    assert links.missing_pages(site) == []
    assert links.broken_links(site) == []


@every_page
def test_page_is_light(site, name):
    html = (site / f"{name}.html").stat().st_size
    images = soup(site, name).select(".bd-article img[src]")
    sources = {image["src"] for image in images if ":" not in image["src"]}
    files = [(site / name).parent / unquote(source) for source in sources]
    pictures = sum(path.stat().st_size for path in files)
    assert html + pictures <= 1.5e6, f"html {html}, pictures {pictures} bytes"


@pytest.mark.check
def test_pages_keep_within_the_budget(browser, site):
    """On a phone, behind a server that packs as GitHub Pages does, before anything is
    asked for: at most 25 requests and 700 kB a page."""
    over = {}
    with serve.server(site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in pages():
            asked, size = cost(browser, f"http://127.0.0.1:{server.server_port}/{name}")
            if asked > 25 or size > 700_000:
                over[name] = asked, size
        server.shutdown()
    assert over == {}


def cost(browser, url):
    """Requests of a page as it opens on a phone, and their bytes on the way."""
    context = browser.new_context(viewport={"width": 412, "height": 823})
    page = context.new_page()
    session, sizes = context.new_cdp_session(page), []
    session.on("Network.loadingFinished", lambda e: sizes.append(e["encodedDataLength"]))
    session.send("Network.enable")
    page.goto(f"{url}.html", wait_until="networkidle")
    context.close()
    return len(sizes), sum(sizes)


def soup(site, name):
    return links.soup(site / f"{name}.html")
