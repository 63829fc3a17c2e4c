"""The prediction of a chapter, on its first screen.

A page that writes `<div class="first-picture"></div>` gets there, when it is built, the
picture that `networks.yml` names for it: the same file that stands further down.
Notebooks do not show the empty element.
"""

import re

from book_networks import load

PLACE = '<div class="first-picture"></div>'


def picture_of(html, start):
    """The image of a page whose description begins so."""
    for tag in re.findall(r"<img\b[^>]*>", html):
        if f'alt="{start}' in tag:
            return re.sub(r' (?:loading|decoding)="\w+"', "", tag)
    raise ValueError(f"no picture that begins with {start!r}")


def fill_first(html, page):
    """The HTML of a page with its picture where it asks for one."""
    if PLACE not in html:
        return html
    starts = {entry["chapter"]: entry["picture"] for entry in load()}
    if page.stem not in starts:  # the whole book in one page, for the PDF
        return html.replace(PLACE, "")
    picture = picture_of(html, starts[page.stem])
    note = "<p>How it was made, and what else came out, stands below.</p>"
    return html.replace(PLACE, f'<div class="first-picture">{picture}{note}</div>')
