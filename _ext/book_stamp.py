"""Says on each chapter's page where its outputs come from.

`utils.execute` leaves a stamp in the notebook's metadata under "segbook";
here it becomes a line under the title and a note at the end of the page.
"""

import json
from datetime import date
from html import escape
from pathlib import Path

from docutils import nodes

PROFILES = {
    "gpu": "the full settings (profile gpu)",
    "cpu": "the settings scaled for a CPU (profile cpu)",
    "smoke": "a quick check that is too short to learn anything (profile smoke)",
}
SOURCES = {
    "local": "local files",
    "archive": "the public archive",
    "kaggle": "Kaggle",
    "sample": "the embedded stand-in, not the real images",
}


def read_stamp(path):
    if Path(path).suffix != ".ipynb":
        return None
    notebook = json.loads(Path(path).read_text(encoding="utf-8"))
    return notebook["metadata"].get("segbook")


def spoken_date(text):
    day = date.fromisoformat(text[:10])
    return f"{day.day} {day:%B %Y}"


def spoken_time(seconds):
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{round(seconds)} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def spoken_data(data):
    return ", ".join(f"{name} ({SOURCES.get(how, how)})" for name, how in data.items())


def line(stamp):
    """The short line under the title."""
    parts = [
        f"Run on {spoken_date(stamp['date'])}",
        stamp["device"],
        spoken_time(stamp["seconds"]),
    ]
    text = escape(" · ".join(parts))
    return f'<p class="stamp-line">{text} · <a href="#stamp">details</a></p>'


def note(stamp):
    """The note at the end of the page."""
    rows = {
        "Date": spoken_date(stamp["date"]),
        "Device": stamp["device"],
        "Settings": PROFILES.get(stamp["profile"], stamp["profile"]),
        "Data": spoken_data(stamp["data"]) or "none",
        "Time": spoken_time(stamp["seconds"]),
        "Versions": ", ".join(f"{k} {v}" for k, v in stamp["versions"].items()),
        "Code": f"SHA-256 {stamp['code_hash'][:12]}…",
    }
    body = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
        for name, value in rows.items()
    )
    title = "Where the outputs on this page come from"
    return f'<aside class="stamp" id="stamp"><p>{title}</p><dl>{body}</dl></aside>'


def without_address(repository):
    """A line for a copy that does not know where it lies: its Colab button fails."""
    if "/YOUR_GITHUB_NAME/" not in repository:
        return ""
    return (
        '<p class="no-address">The button for Colab leads nowhere yet, as this copy of '
        "the book does not know its address. Whoever publishes it runs <code>make repo "
        "URL=…</code> once; until then, open the page in a clone of the book.</p>"
    )


def add_stamp(app, doctree):
    stamp = read_stamp(app.env.doc2path(app.env.docname))
    title = doctree.next_node(nodes.title)
    if not stamp or title is None:
        return
    section = title.parent
    under = line(stamp) + without_address(
        app.config.html_theme_options["repository_url"]
    )
    section.insert(section.index(title) + 1, nodes.raw("", under, format="html"))
    section.append(nodes.raw("", note(stamp), format="html"))


def setup(app):
    app.connect("doctree-read", add_stamp)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
