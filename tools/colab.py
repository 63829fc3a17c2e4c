"""Runs notebooks as Colab does: each alone in an empty folder, by a plain kernel.

python tools/colab.py --repository URL chapters/unet.ipynb …: the first cell of each
fetches the book from the URL. Says how each went; the exit status is 1 if one failed.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

LINE = re.compile(r'^REPOSITORY = ".*"$', re.MULTILINE)
FAILURES = (CellExecutionError, CellTimeoutError, DeadKernelError)


def run(path, folder, repository):
    """Executes a notebook in a folder, where it then lies; returns it with outputs."""
    notebook = nbformat.read(path, 4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    line = f"REPOSITORY = {json.dumps(str(repository))}"
    first.source, count = LINE.subn(lambda _: line, first.source)
    if count != 1:
        raise ValueError(f"{path}: the first cell does not name the book's repository")
    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=1800, resources=where)
    try:
        client.execute()
    finally:
        nbformat.write(notebook, Path(folder, Path(path).name))
    return notebook


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--repository", required=True)
    options = parser.parse_args()
    failed = []
    for path in options.notebooks:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                run(path, folder, options.repository)
                state = "runs"
            except FAILURES as error:
                failed.append(path.stem)
                state = f"FAILED\n{error}"
        print(f"{path.stem}: {state}, {time.monotonic() - start:.0f} s", flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
