"""Writes the book's own address wherever it stands. Run by `make repo URL=…`.

In `_config.yml`, the README, the citation file and the first cell of every
chapter, .py and .ipynb alike. Outputs and all other bytes stay as they are.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = re.compile(r"https://github\.com/[\w-]+/[\w.-]*\w")
PAGES = ("_config.yml", "README.md", "CITATION.cff")


def current(root):
    """The address in `_config.yml`."""
    text = Path(root, "_config.yml").read_text(encoding="utf-8")
    return re.search(r"^repository:\s+url: *(\S+)", text, re.MULTILINE)[1]


def replace(path, old, new):
    """Returns whether the file changed."""
    before = path.read_bytes().decode("utf-8")  # keeps the ends of lines
    after = re.sub(re.escape(old) + r"(?![\w-])", lambda _: new, before)
    path.write_bytes(after.encode("utf-8"))
    return after != before


def write_address(url, root=ROOT):
    """Returns the files that changed."""
    old = current(root)
    changed = [
        path for name in PAGES if replace(path := Path(root, name), old, url)
    ]
    for path in sorted(Path(root, "chapters").glob("*")):
        if path.suffix == ".py":
            quote = '"'
        elif path.suffix == ".ipynb":
            quote = r"\""
        else:
            continue
        first = f"REPOSITORY = {quote}"
        if replace(path, f"{first}{old}{quote}", f"{first}{url}{quote}"):
            changed.append(path)
    return changed


def main():
    url = sys.argv[1].strip().rstrip("/").removesuffix(".git")
    if not ADDRESS.fullmatch(url):
        sys.exit(f"Not an address like https://github.com/me/my-book: {url}")
    for path in write_address(url):
        print(f"{path.relative_to(ROOT)}: {url}")


if __name__ == "__main__":
    main()
