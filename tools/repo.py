"""Writes the book's own address wherever it stands. Run by `make repo URL=…`.

In `_config.yml`, the README, the citation file and the first cell of every
chapter, .py and .ipynb alike. Outputs and all other bytes stay as they are.
The address is the argument or, so that no shell reads it, the variable URL.
"""

import os
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = re.compile(r"https://github\.com/[\w-]+/[\w.-]*\w", re.ASCII)
CONFIG = re.compile(
    r"""^repository:[ ]*(?:\#.*)?\r?\n
      (?:[ \t]+.*\n|\r?\n)*?  # other keys of the block
      [ \t]+url:[ ]*(["']?)(?P<url>[^"'\s]+)\1[ ]*(?:\#.*)?\r?$""",
    re.MULTILINE | re.VERBOSE,
)
# In a notebook, which is JSON, a backslash stands before each quote.
FIRST_CELL = re.compile(r'REPOSITORY = (\\?")[^"\\\n]*\1')
PAGES = ("README.md", "CITATION.cff", "_config.yml")


def whole(url):
    """Finds the address, but not longer ones that begin with it."""
    return re.compile(re.escape(url) + r"(?:(?=\.git\b)|(?!\.?[\w-]))")


def read(path):
    """The file's text, its ends of lines kept; an error if it could not be written."""
    try:
        with open(path, "r+b") as file:
            return file.read().decode("utf-8")
    except UnicodeDecodeError:
        sys.exit(f"{path} is not UTF-8: save it as such. Nothing was changed.")
    except OSError as error:
        sys.exit(f"Cannot change {path}: {error.strerror}. Nothing was changed.")


def current(config):
    """The address that the text of `_config.yml` names."""
    found = CONFIG.search(config)
    if not found or not ADDRESS.fullmatch(found["url"]):
        sys.exit(
            "_config.yml names no address under `repository:` that looks like "
            "`url: https://github.com/me/my-book`: write one there"
        )
    return found["url"]


def plan(url, root):
    """[(file, its text, its new text)]: what to write, when all files are in order."""
    root = Path(root)
    texts = {name: read(root / name) for name in PAGES}
    old = current(texts["_config.yml"])
    work = []
    for path in sorted((root / "chapters").glob("*")):
        if path.suffix in (".py", ".ipynb"):
            text = read(path)
            line = rf"REPOSITORY = \g<1>{url}\g<1>"
            work.append((path, text, FIRST_CELL.sub(line, text, count=1)))
    for name, text in texts.items():
        work.append((root / name, text, whole(old).sub(url, text)))
    for path, _, after in work:
        if not whole(url).search(after):
            sys.exit(f"{path} does not name {old}: add it. Nothing was changed.")
    return work


def write(path, text):
    """Replaces the file, whole or not at all; a link stays a link."""
    path = path.resolve()
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(text.encode("utf-8"))
        shutil.copymode(path, part)
        part.replace(path)
    except OSError as error:
        sys.exit(f"Cannot write {path}: {error.strerror}. Mend that, and do it again.")
    finally:
        part.unlink(missing_ok=True)


def write_address(url, root=ROOT):
    """Returns the files that changed.

    All are read and tried before the first is written, and `_config.yml`, which says
    what to look for, is written last: when something fails in between, do it again.
    """
    changed = [(path, after) for path, text, after in plan(url, root) if after != text]
    for path, after in changed:
        write(path, after)
    return [path for path, _ in changed]


def main():
    given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("URL", "")
    url = given.strip().rstrip("/").removesuffix(".git")
    if not ADDRESS.fullmatch(url):
        sys.exit(f"Not an address like https://github.com/me/my-book: {url}")
    for path in write_address(url):
        print(f"{path.relative_to(ROOT)}: {url}")


if __name__ == "__main__":
    main()
