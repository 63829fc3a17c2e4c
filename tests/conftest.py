"""What several tests share: the book's folder, its pages, and one offline build."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]

# Folders that commands fill; no part of the project.
MADE = {
    ".git", ".venv", ".vendor", "_build", "data", "runs", "own", "__pycache__",
    ".pytest_cache", ".ipynb_checkpoints", ".ruff_cache",
}


def project_files(root=ROOT):
    """Every file of the project, without what commands make in it."""
    for folder, folders, names in os.walk(root):
        inside = Path(folder).relative_to(root).parts
        folders[:] = [
            name for name in folders if name not in MADE or (inside and name == "data")
        ]
        # In a worktree .git is a file: a copy of it would commit to the book itself.
        yield from (Path(folder, name) for name in names if name not in MADE)


def pages():
    """The pages that `_toc.yml` names, without suffix: "chapters/unet"."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [toc["root"], *(entry["file"] for entry in toc["chapters"])]


def chapters():
    return [page for page in pages() if page.startswith("chapters/")]


def need(present, message):
    """Skips the test with the message; in CI, where nothing may be missing, fails."""
    if not present:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)


def build(source, output, **environment):
    """Builds the book in `source` as `make book` does. Returns its HTML folder."""
    program = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", program, "build", str(source)]
    command += ["-W", "--keep-going", "-n", "--path-output", str(output)]
    done = subprocess.run(
        command,
        cwd=source,
        env=os.environ | {"NO_COLOR": "1"} | environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.fail(f"The book does not build:\n{(done.stdout + done.stderr)[-4000:]}")
    return Path(output, "_build", "html")


@pytest.fixture(scope="session")
def vendor():
    """The folder with the local copies of MathJax and the widgets' scripts."""
    need(shutil.which("npm"), "npm is missing (Debian: apt-get install npm)")
    subprocess.run([sys.executable, "tools/vendor.py"], cwd=ROOT, check=True)
    return ROOT / ".vendor"


@pytest.fixture(scope="session")
def site(vendor):
    """The HTML folder of the book, built to need no other host."""
    return build(ROOT, ROOT / "_build" / "tests", SEGBOOK_OFFLINE="1")
