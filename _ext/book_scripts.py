"""The scripts and pictures of the pages: as few and as late as they can be.

MathJax is the one script from elsewhere: a pinned file of a CDN, checked by the browser
against its hash; or, with SEGBOOK_OFFLINE=1, a copy that `tools/vendor.py` has fetched,
so that a page asks nothing of any other host. Only pages with formulas load it, and only
when a reader comes near one (`_static/maths.js`).

Pictures lie in the notebooks' outputs as data. The built pages name them as files, so
that a browser fetches those that are looked at.
"""

import base64
import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

CDN = "https://cdn.jsdelivr.net/npm"
VENDOR = Path(__file__).resolve().parents[1] / ".vendor"


class Script(NamedTuple):
    package: str
    version: str
    path: str
    integrity: str

    @property
    def url(self):
        return f"{CDN}/{self.package}@{self.version}/{self.path}"


MATHJAX = Script(
    "mathjax",
    "3.2.2",
    "es5/tex-mml-chtml.js",
    "sha384-Wuix6BuhrWbjDBs24bXrjf4ZQ5aFeFWBuKkFekO2t8xFU0iNaLQfp2K6/1Nxveei",
)

# What the theme loads and the book does without: the live-code button; all icons of
# Font Awesome (book.css has the few that are used).
UNUSED = re.compile(r"sphinx-thebe|THEBE_JS_URL|thebe-config")
FONT_AWESOME = re.compile(r'\s*<script[^>]*\bscripts/fontawesome\.js[^>]*></script>')
# Only the page of results searches; on the others these would undo its highlights.
SEARCH = re.compile(
    r'\s*<script[^>]*\b(?:searchtools|language_data|searchindex)\.js[^>]*></script>'
)
MATHS = re.compile(r"<script\b(?=[^>]*mathjax)")
DATA = re.compile(r'<img\b[^>]*\bsrc="(data:image/(png|webp);base64,([^"]+))"[^>]*>')
SMALL = 2_000  # characters of data that stay in the page


def set_scripts(app, config):
    config.nb_ipywidgets_js = {}  # no widget is left in a committed output
    if os.environ.get("SEGBOOK_OFFLINE"):
        config.mathjax_path = f"vendor/{MATHJAX.package}/{MATHJAX.path}"
    else:
        config.mathjax_path = MATHJAX.url
        config.mathjax_options = {
            "integrity": MATHJAX.integrity,
            "crossorigin": "anonymous",
        }


def copy_vendor(app, error):
    if error or app.builder.format != "html" or not os.environ.get("SEGBOOK_OFFLINE"):
        return
    if not VENDOR.is_dir():
        raise RuntimeError(f"{VENDOR} is missing: run python tools/vendor.py first")
    target = Path(app.outdir, "_static", "vendor")
    shutil.copytree(VENDOR, target, dirs_exist_ok=True)


def tidy_scripts(app, page, template, context, doctree):
    """Drops the scripts that the page has no use for."""
    formulas = 'class="math' in context.get("body", "")

    def used(script):
        told = str(script), str(script.attributes.get("body", ""))
        if "mathjax" in told[0].lower() or "MathJax" in told[1]:
            return formulas
        return not any(map(UNUSED.search, told))

    context["script_files"] = [s for s in context.get("script_files", []) if used(s)]


def lighten(html, page, out):
    """The HTML of a page with its pictures as files, without scripts that it need not
    have."""
    html = FONT_AWESOME.sub("", html)
    html = MATHS.sub('<script type="text/late"', html)
    if page.name != "search.html":
        html = SEARCH.sub("", html)
    return DATA.sub(Files(out, page), html)


class Files:
    """Writes the pictures of a page into _images, and names them there.

    All but the first wait until they come near to being seen.
    """

    def __init__(self, out, page):
        self.folder = out / "_images"
        self.up = "../" * (len(page.relative_to(out).parts) - 1)
        self.first = True

    def __call__(self, found):
        tag, (source, kind, data) = found[0], found.groups()
        if len(data) < SMALL:
            return tag
        content = base64.b64decode(data)
        file = self.folder / f"{hashlib.sha256(content).hexdigest()[:20]}.{kind}"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content)
        tag = tag.replace(source, f"{self.up}_images/{file.name}")
        if not self.first and "loading=" not in tag:
            tag = tag.replace("<img", '<img loading="lazy" decoding="async"', 1)
        self.first = False
        return tag


def setup(app):
    app.connect("config-inited", set_scripts, priority=900)
    app.connect("html-page-context", tidy_scripts, priority=900)
    app.connect("build-finished", copy_vendor)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
