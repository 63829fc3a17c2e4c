"""The front page: what the chapters show, taken from their outputs.

In `intro.md` the line `<!-- the hero -->` gives way to an explorer of a chapter,
`<!-- the chapters -->` to a card for each network and `<!-- the plot -->` to the plot of
the comparison.
"""

import re
from html import escape
from urllib.parse import urlsplit

from book_networks import ROOT, load, read_notebook, result, thumbnail

HERO = "ternausnetv2"
COLAB = "https://colab.research.google.com/github/{}/blob/{}/chapters/{}.ipynb"


def html_outputs(chapter, root=ROOT):
    for cell in read_notebook({"chapter": chapter}, root)["cells"]:
        for output in cell.get("outputs", ()):
            yield "".join(output.get("data", {}).get("text/html", ""))


def output_with(chapter, mark, root=ROOT):
    """The first output of a chapter that holds a mark, in HTML."""
    for html in html_outputs(chapter, root):
        if mark in html:
            return re.sub(r"\n\s*\n", "\n", html)  # Markdown would end HTML there
    raise ValueError(f"{chapter} has no output with {mark!r}")


def card(entry, colab, root=ROOT):
    """A network's card: picture, claim, score, time, and the way to Colab."""
    chapter, name = entry["chapter"], escape(entry["name"])
    stamp = read_notebook(entry, root)["metadata"]["segbook"]
    machine = stamp["device"].split(" (")[0]
    score = f"{entry['result'][2]} {result(entry, root)}"
    open_in = f'<a href="{colab(chapter)}">Open in Colab</a>' if colab else ""
    return (
        f'<article class="network-card"><a href="chapters/{chapter}.html">'
        f"{thumbnail(entry, root, 480)}<strong>{name}</strong></a>"
        f"<p>{escape(entry['claim'])}</p>"
        f"<p><b>{escape(score)}</b>, {escape(entry['data'])}. "
        f"{stamp['seconds'] / 60:.0f} minutes on {escape(machine)}. {open_in}</p>"
        "</article>"
    )


def colab_of(config):
    """chapter -> its address in Colab, or None for a copy without an address."""
    url = config.html_theme_options.get("repository_url", "")
    if "/YOUR_GITHUB_NAME/" in url:
        return None
    place = urlsplit(url).path.strip("/")
    branch = config.html_theme_options.get("repository_branch", "main")
    return lambda chapter: COLAB.format(place, branch, chapter)


def fill_front(app, page, source):
    if page != app.config.root_doc:
        return
    for chapter in [entry["chapter"] for entry in load()] + ["comparison"]:
        app.env.note_dependency(str(ROOT / f"chapters/{chapter}.ipynb"))
    app.env.note_dependency(str(ROOT / "networks.yml"))
    colab = colab_of(app.config)
    cards = "\n".join(card(entry, colab) for entry in load())
    parts = {
        "<!-- the hero -->": output_with(HERO, 'class="explorer"'),
        "<!-- the chapters -->": f'<div class="network-cards">\n{cards}\n</div>',
        "<!-- the plot -->": output_with("comparison", 'class="pareto"'),
    }
    for place, text in parts.items():
        source[0] = source[0].replace(place, text)


def setup(app):
    app.connect("source-read", fill_front)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
