"""One style sheet and one script for a built page, instead of ten and of a dozen.

Sphinx, its theme and the extensions bring a file each; a browser asks for them one by
one and paints when it has the last. Here those of a page's head are put together, in
their order, under names made of their content. What is loaded late, comes from
elsewhere or stands in the page itself stays where it is.
"""

import hashlib
import re
from posixpath import dirname, join, normpath, relpath

STYLE = re.compile(
    r'\s*<link\b(?=[^>]*\brel="stylesheet")[^>]*\bhref="(?P<file>[^":]*_static/[^":?]*)'
    r'(?:\?[^"]*)?"[^>]*>'
)
SCRIPT = re.compile(
    r'\s*<script src="(?P<file>[^":]*_static/[^":?]*)(?:\?[^"]*)?"'
    r'(?: data-files="[^"]*")?></script>'
)
APART = "search.html", "404.html"  # have an order, or addresses, of their own
OPTION = "<script>DOCUMENTATION_OPTIONS."
TABS = re.compile(r'\s*<script[^>]*\bdesign-tabs\.js[^>]*></script>')
IMPORT = re.compile(r"""@import\s+(?:url\()?["']?([^"')]+)["']?\)?\s*;""")
ADDRESS = re.compile(r"""url\((["']?)(?!data:|https?:|#|/)([^"')]+)\1\)""")


def style(out, file):
    """A style sheet with what it imports, its addresses as from the folder _static."""

    def imported(found):
        return style(out, normpath(join(dirname(file), found[1])))

    def moved(found):
        return f"url({relpath(normpath(join(dirname(file), found[2])), '_static')})"

    text = (out / file).read_text(encoding="utf-8").removeprefix('@charset "UTF-8";')
    return IMPORT.sub(imported, ADDRESS.sub(moved, text))


def script(out, file):
    """A script that ends where its file ends."""
    return (out / file).read_text(encoding="utf-8") + "\n;"


def bundle(html, page, out):
    """The HTML of a page with its own style sheet and script, which are written."""
    head, end, rest = html.partition("</head>")
    if page.name in APART or not end:
        return html
    if 'class="sd-tab' not in html:
        head = TABS.sub("", head)
    up = "../" * (len(page.relative_to(out).parts) - 1)
    head = joined(head, STYLE, '<link rel="stylesheet" href="{}"{}>', style, up, out)
    head = joined(head, SCRIPT, '<script src="{}"{}></script>', script, up, out)
    return head + end + rest


def joined(head, pattern, tag, read, up, out):
    """The head of a page with the files of one kind as one.

    The tag names them, so that a build after a change of a file can do it again.
    """
    found = list(pattern.finditer(head))
    files = [file for match in found for file in named(match, up)]
    if len(files) < 2:
        return head
    text = "\n".join(read(out, file) for file in files)
    ending = files[0].rpartition(".")[2]
    name = f"_static/{hashlib.sha256(text.encode()).hexdigest()[:16]}.{ending}"
    (out / name).write_text(text, encoding="utf-8")
    whole = tag.format(up + name, f' data-files="{" ".join(files)}"')
    left = pattern.sub("", head)
    # Scripts that stand in the page come first, but for options of those in the file.
    option = left.find(OPTION) if ending == "js" else -1
    at = option if option >= 0 else found[0].start()
    return f"{left[:at].rstrip()}\n    {whole}\n    {left[at:].lstrip()}"


def named(match, up):
    """The files that a tag stands for, as paths in the built site."""
    together = re.search(r'data-files="([^"]*)"', match[0])
    return together[1].split() if together else [match["file"].removeprefix(up)]
