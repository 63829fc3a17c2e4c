"""The networks of the book, from `networks.yml`: cards, the listing, results.

On the page `networks` the line `<!-- the networks -->` gives way to the listing. The
cards in the chapters and the table in the README are text in these files, so that
Colab and GitHub show them too; `tools/cards.py` writes them with the functions here.
The page carries a script that filters its codes by framework, `book_networks.js`.
"""

import base64
import io
import json
import re
import textwrap
from html import escape, unescape
from pathlib import Path

import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = Path(__file__).with_suffix(".js")
PLACE = "<!-- the networks -->"
FILTER = '<div class="framework-filter"></div>'  # for the script to fill
IMAGE = re.compile(r'<img [^>]*?alt="([^"]*)"[^>]*?src="data:image/\w+;base64,([^"]+)"')
WIDTH = 86  # of a card's lines, which stand behind "# " in a chapter's .py


def load(root=ROOT):
    """The entries of `networks.yml`, a list of dictionaries."""
    return yaml.safe_load(Path(root, "networks.yml").read_text(encoding="utf-8"))


def read_notebook(entry, root=ROOT):
    file = Path(root, "chapters", f"{entry['chapter']}.ipynb")
    return json.loads(file.read_text(encoding="utf-8"))


# --- a chapter's card ---


def card(entry):
    """The lines of a chapter's card, Markdown with directives of MyST."""
    several = len(entry["papers"]) > 1
    cited = ",".join(paper["cite"] for paper in entry["papers"])
    rows = {
        "Papers" if several else "Paper": ". ".join(map(about, entry["papers"])),
        f"What {'they' if several else 'it'} brought": entry["brought"],
        "Reported there": entry["reported"],
        **codes(entry),
        "Time to run": "{glue:text}`page_minutes:.1f` minutes for the whole page as it "
        "stands here; the main training took {glue:text}`train_minutes:.0f` minutes on "
        "{glue:text}`device`",
        "Cite": f"{{footcite:t}}`{cited}`",
    }
    return table(rows)


def codes(entry):
    """Rows on code and weights."""
    return {
        "Official code": listed(entry["official"]) or "None",
        "Re-implementations": listed(entry["others"]) or "None listed",
        "Train code": entry["train"],
        "Test code": entry["test"],
        "Pre-trained weights": entry["weights"],
    }


def about(paper):
    link = f"[arXiv {paper['arxiv']}](https://arxiv.org/abs/{paper['arxiv']})"
    return f"*{paper['title']}*, {paper['authors']}. {paper['venue']}. {link}"


def listed(repositories):
    names = (
        f"[{code['name']}]({code['url']})" if "url" in code else code["name"]
        for code in repositories
    )
    return ", ".join(f"{n} ({c['note']})" for n, c in zip(names, repositories))


def table(rows):
    lines = ["```{list-table}", ":class: chapter-card", ":header-rows: 0", ""]
    for name, text in rows.items():
        lines += [f"* - {name}", *cell(text)]
    return [*lines, "```"]


def cell(text, first="  - "):
    """The wrapped lines of a cell in a list-table."""
    wrapped = textwrap.wrap(
        text.replace("[arXiv ", "[arXiv\0"), WIDTH, initial_indent=first,
        subsequent_indent="    ", break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return [line.replace("\0", " ") for line in wrapped]


# --- what the chapters show ---


def result(entry, root=ROOT):
    """The headline number of a chapter as its page shows it, as "0.806"."""
    name, form, _ = entry["result"]
    for cell in read_notebook(entry, root)["cells"]:
        for output in cell.get("outputs", ()):
            record = output.get("metadata", {}).get("scrapbook", {})
            if record.get("name") == name:
                value = output["data"]["application/papermill.record/text/plain"]
                return format(float(value), form)
    raise ValueError(f"{entry['chapter']} glues no {name!r}")


def picture(entry, root=ROOT):
    """The chapter's picture of predictions: (its description, a PIL image)."""
    for cell in read_notebook(entry, root)["cells"]:
        for output in cell.get("outputs", ()):
            html = "".join(output.get("data", {}).get("text/html", ""))
            for alt, data in IMAGE.findall(html):
                if unescape(alt).startswith(entry["picture"]):
                    return unescape(alt), Image.open(io.BytesIO(base64.b64decode(data)))
    raise ValueError(f"{entry['chapter']} has no picture {entry['picture']!r}")


def thumbnail(entry, root=ROOT, width=640):
    """The picture as an HTML image that holds its own, smaller, data."""
    alt, image = picture(entry, root)
    height = round(image.height * width / image.width)
    file = io.BytesIO()
    small = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    small.save(file, format="webp", quality=60, method=6)
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<img class="dark-light" alt="{escape(alt)}" width="{width}" '
        f'height="{height}" loading="lazy" src="data:image/webp;base64,{data}" '
        'style="max-width:100%;height:auto;margin-bottom:1rem;border-radius:6px">'
    )


# --- the listing ---


def overview(root=ROOT, link="chapters/{}"):
    """A Markdown table: each chapter with its result, and the run that it comes from."""
    lines = [
        "| Chapter | Year | Images | Result here | Run |",
        "| --- | --- | --- | --- | --- |",
    ]
    for entry in load(root):
        years = ", ".join(paper["venue"][-4:] for paper in entry["papers"])
        title = f"[{entry['name']}]({link.format(entry['chapter'])})"
        stamp = read_notebook(entry, root)["metadata"]["segbook"]
        minutes = f"{stamp['device']}, {stamp['seconds'] / 60:.0f} min"
        found = f"{entry['result'][2]} {result(entry, root)}"
        lines.append(f"| {title} | {years} | {entry['data']} | {found} | {minutes} |")
    return lines


def listing(root=ROOT):
    """The page's Markdown: the overview, then a section for each chapter."""
    lines = [*overview(root), "", FILTER]
    for entry in load(root):
        lines += ["", f"## {entry['name']}", "", thumbnail(entry, root), ""]
        lines += table(summary(entry, root))
        lines += ["", *codes_table(entry), "", *bibtex(entry, root)]
    script = SCRIPT.read_text(encoding="utf-8")
    return [*lines, "", f"<script>\n{script}</script>"]


def summary(entry, root=ROOT):
    """The rows on a network, its papers and its chapter."""
    cited = ",".join(paper["cite"] for paper in entry["papers"])
    rows = {
        "Papers" if len(entry["papers"]) > 1 else "Paper": ". ".join(
            map(about, entry["papers"])
        ),
        "What it brought": entry["brought"],
        "Reported there": entry["reported"],
        "More": entry.get("more"),
        "Cite": f"{{footcite:t}}`{cited}`",
        "In this book": f"[Chapter](chapters/{entry['chapter']}): "
        f"{entry['result'][2]} {result(entry, root)}",
    }
    return {name: text for name, text in rows.items() if text}


def codes_table(entry):
    """The official codes, then the others: framework, training, testing, weights."""
    lines = ["```{list-table}", ":class: codes", ":header-rows: 1", ""]
    for k, head in enumerate(("Code", "Framework", "Train", "Test", "Weights")):
        lines += cell(head, "  - " if k else "* - ")
    official = [code["name"] for code in entry["official"]]
    for code in entry["official"] + entry["others"]:
        facts = entry["codes"][code["name"]]
        name = f"[{code['name']}]({facts.get('url') or code['url']})"
        told = "official" if code["name"] in official else "", facts.get("note")
        lines += cell(", ".join([name, *filter(None, told)]), "* - ")
        for what in ("framework", "train", "test", "weights"):
            lines += cell(facts[what])
    return [*lines, "```"]


def bibtex(entry, root=ROOT):
    """The entries of references.bib behind a network and its codes, each to copy."""
    text = Path(root, "references.bib").read_text(encoding="utf-8")
    known = dict(re.findall(r"(?ms)^(?=@\w+\{(\w+),)(.*?^\})$", text))
    lines = ["````{dropdown} BibTeX"]
    for key in entry["bibtex"]:
        lines += ["```bibtex", *known[key].splitlines(), "```"]
    return [*lines, "````"]


def fill_page(app, page, source):
    if PLACE in source[0]:
        for file in (ROOT / "networks.yml", ROOT / "references.bib", SCRIPT):
            app.env.note_dependency(str(file))
        for entry in load():
            app.env.note_dependency(str(ROOT / f"chapters/{entry['chapter']}.ipynb"))
        source[0] = source[0].replace(PLACE, "\n".join(listing()))


def setup(app):
    app.connect("source-read", fill_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
