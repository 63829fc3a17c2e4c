"""The scripts that pages take from elsewhere: MathJax and the widgets' runtime.

Pinned files of a CDN, checked by the browser against their hashes; or, with
SEGBOOK_OFFLINE=1, copies of the same files that `tools/vendor.py` has fetched,
so that a page asks nothing of any other host.
"""

import os
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
REQUIREJS = Script(
    "requirejs",
    "2.3.8",
    "require.js",
    "sha384-gzoQyNpzaOK+Aes9TTuBq/ZgYdleZUDN3sFwxyLRbRytLEWofprkKj2F7z3a6nTu",
)
WIDGETS = Script(
    "@jupyter-widgets/html-manager",
    "1.0.15",
    "dist/embed-amd.js",
    "sha384-/x/n24gdFNkRW3aFeWPOJ5tgVI0ZmBOBu6UKswtJLAm6SIAzWBZUdrLEr5A9yXvL",
)

# Font Awesome otherwise replaces the <i> of a widget's buttons, and blanks them.
ICONS = "window.FontAwesomeConfig = {autoReplaceSvg: 'nest'}"

# The widgets still ask for MathJax 2 to set their labels; version 3 answers.
LABELS = """\
(() => {
  const Hub = {Queue: ([, , element]) => MathJax.typesetPromise?.([element])};
  const ready = () => { MathJax.startup.defaultReady(); MathJax.Hub = Hub; };
  window.MathJax = {...window.MathJax, Hub, startup: {ready}};
})()"""


def set_scripts(app, config):
    if os.environ.get("SEGBOOK_OFFLINE"):
        config.mathjax_path = f"vendor/{MATHJAX.package}/{MATHJAX.path}"
        config.nb_ipywidgets_js = {
            f"vendor/{REQUIREJS.package}/{REQUIREJS.path}": {},
            "vendor/paths.js": {},
            f"vendor/{WIDGETS.package}/{WIDGETS.path}": {},
        }
    else:
        config.mathjax_path = MATHJAX.url
        config.mathjax_options = attributes(MATHJAX)
        config.nb_ipywidgets_js = {
            REQUIREJS.url: attributes(REQUIREJS),
            WIDGETS.url: attributes(WIDGETS) | {"data-jupyter-widgets-cdn": f"{CDN}/"},
        }


def attributes(script):
    return {"integrity": script.integrity, "crossorigin": "anonymous"}


def copy_vendor(app, error):
    if error or app.builder.format != "html" or not os.environ.get("SEGBOOK_OFFLINE"):
        return
    if not VENDOR.is_dir():
        raise RuntimeError(f"{VENDOR} is missing: run python tools/vendor.py first")
    target = Path(app.outdir, "_static", "vendor")
    shutil.copytree(VENDOR, target, dirs_exist_ok=True)


def tidy_scripts(app, page, template, context, doctree):
    """Drops the scripts of the live-code button, which this book does not offer."""
    context["script_files"] = [
        script
        for script in context.get("script_files", [])
        if "sphinx-thebe" not in str(script)
        and "THEBE_JS_URL" not in script.attributes.get("body", "")
    ]


def setup(app):
    app.connect("config-inited", set_scripts, priority=900)
    app.connect("html-page-context", tidy_scripts, priority=900)
    app.connect("build-finished", copy_vendor)
    app.add_js_file(None, body=ICONS, priority=100)
    app.add_js_file(None, body=LABELS, priority=600)  # after Sphinx's configuration
    return {"parallel_read_safe": True, "parallel_write_safe": True}
