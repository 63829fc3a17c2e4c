"""The whole book as one PDF, as `make pdf` prints it."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, chapters
from pypdf import PdfReader
from test_pages import squeezed


@pytest.mark.check
def test_book_as_one_pdf(vendor, tmp_path):
    """Every chapter begins a page and has a bookmark; nothing at the end is cut off."""
    program = "from jupyter_book.cli.main import main; main()"
    build = [sys.executable, "-c", program, "build", ROOT, "--builder", "singlehtml"]
    environment = os.environ | {"SEGBOOK_OFFLINE": "1"}
    done = subprocess.run(
        [*build, "--path-output", tmp_path], env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    page, target = tmp_path / "_build/singlehtml/intro.html", tmp_path / "book.pdf"
    subprocess.run([sys.executable, ROOT / "tools/pdf.py", page, target], check=True)

    book = PdfReader(target)
    marks = [mark for mark in book.outline[1] if not isinstance(mark, list)]
    first = {
        squeezed(mark.title): book.pages[book.get_destination_page_number(mark)]
        for mark in marks  # in the order of the book, without parts of a chapter
    }
    for name in chapters():
        source = (ROOT / f"{name}.py").read_text(encoding="utf-8")
        title = squeezed(re.search(r"^# # (.+)", source, re.M)[1])
        assert squeezed(first[title].extract_text()).startswith(title)
    assert list(first)[-1] == "Forteachers"
    assert "Second edition" in book.pages[-1].extract_text()  # how to cite it
