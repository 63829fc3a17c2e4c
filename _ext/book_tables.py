"""Tables of words on a built page.

Wide ones are made so that a phone can stack them: each cell learns the name of its
column, which `book.css` writes above it where a screen is too narrow for the table.
Tables of numbers stay tables. The card of a chapter is folded, so that its prediction
comes sooner.
"""

import re

from bs4 import BeautifulSoup

# A page that stands from the build before has its fold already.
CARD = re.compile(
    r'(?<!</summary>)<table class="chapter-card table">.*?</table>', re.S
)
HEADS = "thead th, thead td"
TABLE = re.compile(r'<table class="(?:codes )?table">.*?</table>', re.S)


def stackable(table):
    """Whether a table lists codes, or has three columns or more, with words in them."""
    heads = table.select(HEADS)
    cells = [cell.get_text(" ", strip=True) for cell in table.select("tbody td")]
    long = sum(len(text) > 25 for text in cells)
    return "codes" in table["class"] or (len(heads) >= 3 and 3 * long > len(cells))


def labelled(found):
    fragment = BeautifulSoup(found[0], "html.parser")
    table = fragment.table
    name_rows(table)
    if not stackable(table):
        return str(fragment)
    table["class"] = [*table["class"], "stack"]
    heads = [head.get_text(" ", strip=True) for head in table.select(HEADS)]
    for row in table.select("tbody tr"):
        for head, cell in zip(heads, row.find_all(["td", "th"], recursive=False)):
            cell["data-label"] = head
    return str(fragment)


def name_rows(table):
    """Where the first column has no name, its cells are the names of the rows."""
    first = table.select_one("thead th")
    if first is None or first.get_text(strip=True):
        return
    first.name = "td"
    for row in table.select("tbody tr"):
        cell = row.find(["td", "th"])
        cell.name, cell["scope"] = "th", "row"


def fold_card(html):
    """The HTML of a page whose card, if it has one, opens under a line."""
    summary = "<summary>The paper, its code, and the time to run</summary>"
    return CARD.sub(rf'<details class="card-fold">{summary}\g<0></details>', html)


def label_tables(html):
    """The HTML of a page whose tables of words are labelled."""
    return TABLE.sub(labelled, html)
