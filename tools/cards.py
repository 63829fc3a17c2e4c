"""Writes what comes from `networks.yml` into the chapters and the README.

Run by `make cards`. A chapter's card stands in both files of its pair; nothing else
in them changes, least of all an output.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "_ext"))

import book_networks  # noqa: E402

RESULTS = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- end -->)", re.DOTALL)


def in_script(text, lines):
    """The .py of a chapter with these lines as its card."""
    body = "".join(f"# {line}".rstrip() + "\n" for line in lines)
    card = re.compile(
        r"^# ```\{list-table\}\n# :class: chapter-card\n.*?^# ```\n", re.M | re.S
    )
    return once(card, body, text)


def in_notebook(text, lines):
    """The .ipynb likewise: JSON, one line of text in one line of the file."""
    stored = [json.dumps(f"{line}\n", ensure_ascii=False) for line in lines]
    stored[-1] = json.dumps(lines[-1], ensure_ascii=False)
    body = "".join(f"    {line},\n" for line in stored[:-1]) + f"    {stored[-1]}\n"
    card = re.compile(
        r'^    "```\{list-table\}\\n",\n    ":class: chapter-card\\n",\n'
        r'.*?^    "```"\n',
        re.M | re.S,
    )
    return once(card, body, text)


def in_readme(text, root=ROOT):
    rows = book_networks.overview(root, "chapters/{}.ipynb")
    return once(RESULTS, "\n".join(rows) + "\n", text)


def once(pattern, body, text):
    text, count = pattern.subn(lambda _: body, text)
    if count != 1:
        raise ValueError(f"{count} places for {body.splitlines()[0]!r}, not one")
    return text


def expected(root=ROOT):
    """{file: the text that it should have}."""
    found = {}
    for entry in book_networks.load(root):
        lines = book_networks.card(entry)
        for ending, write in ((".py", in_script), (".ipynb", in_notebook)):
            file = Path(root, "chapters", entry["chapter"] + ending)
            found[file] = write(read(file), lines)
    readme = Path(root, "README.md")
    return found | {readme: in_readme(read(readme), root)}


def read(file):
    return file.read_bytes().decode("utf-8")  # keeps the ends of lines


if __name__ == "__main__":
    for file, text in expected().items():
        if text != read(file):
            file.write_bytes(text.encode("utf-8"))
            print(file.relative_to(ROOT))
