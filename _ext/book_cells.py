"""How cells of code look on a page: marks for the formatter go, toggles say what they
hide.
"""

import re

MARK = re.compile(r' *<span class="c1"># fmt: \w+</span>')
CELL = re.compile(r'(?=<div class="cell(?: tag_[\w-]+)* docutils container">)')
TITLE = re.compile(r'(admonition-title">)(Show|Hide) code cell \w+(?=</p>)')
LABEL = ' aria-label="Toggle hidden content"'  # it would hide the titles from a listener
IMPORTS = '<pre><span></span><span class="kn">import</span>'  # they come first
SHOWN = {
    'class="explorer"': "the code of the pictures",
    "<img": "the code of the figure",
    "<table": "the code of the table",
}


def hidden(cell):
    """What the toggle of a cell hides, in words."""
    if "the book's `utils`" in cell:
        return "the set-up"
    if cell.startswith('<div class="cell tag_hide-output'):
        return "the whole network" if "The whole network" in cell else "what it says"
    if IMPORTS in cell:
        return "the imports"
    if cell.startswith('<div class="cell tag_hide-cell'):
        return "the code and what it says"
    after = cell.partition("</details>")[2]
    return next((name for mark, name in SHOWN.items() if mark in after), "the code")


def tidy(html):
    """The HTML of a page with these changes."""
    cells = CELL.split(MARK.sub("", html))
    return "".join(
        TITLE.sub(rf"\1\2 {hidden(cell)}", cell).replace(LABEL, "")
        if TITLE.search(cell)
        else cell
        for cell in cells
    )
