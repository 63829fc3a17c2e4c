"""What is changed in the pages when all are built, in one reading of each."""

import re
from pathlib import Path

from book_bundle import bundle
from book_cells import tidy
from book_first import fill_first
from book_repository import close_openers
from book_scripts import lighten
from book_tables import fold_card, label_tables

TWICE = re.compile(r"<title>\s*([^<]+?)\s*(?:&#8212;|—)\s*\1\s*</title>")


def finish(app, error):
    if error or app.builder.format != "html":
        return
    out = Path(app.outdir)
    for page in out.rglob("*.html"):
        before = page.read_text(encoding="utf-8")
        after = fill_first(close_openers(before), page)
        after = fold_card(label_tables(tidy(lighten(after, page, out))))
        after = bundle(TWICE.sub(r"<title>\1</title>", after), page, out)
        if after != before:
            page.write_text(after, encoding="utf-8")


def setup(app):
    app.connect("build-finished", finish, priority=900)  # the theme writes styles first
    return {"parallel_read_safe": True, "parallel_write_safe": True}
