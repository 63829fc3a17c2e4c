"""Writes the body of an issue that tells of a failed run, from the log of the run.

python tools/report.py log.txt --run URL prints it. A log may say anything: it is
shown as plain text, without control characters, and only its end.
"""

import argparse
import re
import unicodedata
from pathlib import Path

LIMIT = 6000  # characters of the log; with both fences the body stays below 20,000
# Terminals take these as orders: colours, places, addresses behind words.
ESCAPE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?)")
OVERWRITTEN = re.compile(r"(?m)^[^\n]*\r(?=[^\r\n])")  # a progress bar's past


def plain(text):
    """The text without colours, overwritten lines and control characters.

    Invisible ones go too, such as those that turn the direction of writing.
    """
    text = OVERWRITTEN.sub("", ESCAPE.sub("", text))
    return "".join(
        c for c in text if c in "\n\t" or not unicodedata.category(c).startswith("C")
    )


def fenced(text):
    """A block of code in Markdown that nothing in the text can end."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def body(log, run):
    """The issue's text. log: bytes, or None if there is no log; run: its address."""
    said = f"The weekly run in Colab's image failed: {run}"
    if not log:
        return f"{said}\n\nIt did not get as far as writing a log."
    end = log[-20 * LIMIT :].decode("utf-8", errors="replace")
    end = plain(end)[-LIMIT:].strip("\n")
    return f"{said}\n\n{fenced(end)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("--run", required=True, help="address of the run")
    options = parser.parse_args()
    log = options.log.read_bytes() if options.log.is_file() else None
    print(body(log, options.run))


if __name__ == "__main__":
    main()
