"""Running a chapter: outputs, stamp, what a failure leaves behind."""

import contextlib
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

import nbformat
import pytest

from utils import chapters, checkpoints, execute

SMALL = '''# %% [markdown]
# # A small chapter

# %%
REPOSITORY = "https://github.com/YOUR_GITHUB_NAME/segmentation-networks"

# %%
import os
import sys

print("\\r 10%", end="")
print("\\r100%")
os.environ["SEGBOOK_PROFILE"], os.getcwd().endswith("chapters")

# %%
print(sys.executable)
'''

WIDGETS = """# %%
import ipywidgets
import numpy as np
from tqdm.notebook import tqdm

from utils import plotting

unused = ipywidgets.Button(description="unused")
for step in tqdm(range(3), desc="kept"):
    pass
for step in tqdm(range(3), desc="gone", leave=False):
    pass

# %%
frames = [np.full((4, 4), value, np.uint8) for value in (0, 255)]
plotting.explorer(frames, ["0.1", "0.9"], "threshold", "grey squares")
"""

# Takes a data set as a reader does who has no copy of it and no network.
OFFLINE = """# %%
from utils import data


def fetch(*_):
    raise data.Unavailable("no network")


data.fetch = fetch
data.load("camvid", "val").source
"""
REAL = {"camvid": "local", "instrument_parts": "sample"}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a chapter "small" into an own book; the kernel finds the real utils."""
    root = execute.runtime.root()
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setattr(
        execute, "FACTS", execute.FACTS.replace("{root!r}", repr(str(root)))
    )
    monkeypatch.setattr(chapters.runtime, "root", lambda: tmp_path)
    folder = tmp_path / "chapters"
    folder.mkdir()

    def write(text):
        (folder / "small.py").write_text(text, encoding="utf-8")
        return folder / "small.ipynb"

    return write


def test_a_run_writes_outputs_and_stamp(write, capsys):
    target = write(SMALL)
    assert execute.main(["small", "--profile", "smoke"]) == 0
    notebook = nbformat.read(target, 4)
    _, first, second, third = notebook.cells
    assert [c.execution_count for c in (first, second, third)] == [1, 2, 3]
    stream, value = second.outputs
    assert stream.text == "100%\n"  # of a progress bar only the last state stays
    assert value["data"]["text/plain"] == "('smoke', True)"
    assert third.outputs[0].text.strip() == execute.sys.executable
    stamp = notebook.metadata["segbook"]
    assert stamp["profile"] == "smoke" and stamp["data"] == {}
    assert isinstance(stamp["seconds"], int) and stamp["versions"]["torch"]
    assert stamp["code_hash"] == execute.code_hash(notebook)
    assert execute.state("small") == "fresh"
    shown = capsys.readouterr().out
    assert "cell 3 of 3" in shown and "A small chapter" in shown


def test_the_stamp_knows_changed_code_but_not_a_changed_address(write):
    target = write(SMALL)
    assert execute.state("small") == "never run"
    execute.run("small", profile="smoke")
    write(SMALL.replace("YOUR_GITHUB_NAME", "somebody").replace("A small", "A tiny"))
    assert execute.state("small") == "fresh"
    write(SMALL + "\n1 + 1\n")
    assert execute.state("small").startswith("stale")
    assert execute.main(["--check"]) == 1
    assert target.exists()


def test_a_failing_cell_leaves_the_notebook_as_it_was(write, capsys):
    target = write(SMALL)
    execute.run("small", profile="smoke")
    before = target.read_bytes()
    write(SMALL + '\n# %%\nraise KeyError("missing thing")\n')
    assert execute.main(["small", "--profile", "smoke"]) == 1
    assert target.read_bytes() == before
    assert [path.name for path in sorted(target.parent.iterdir())] == [
        "small.ipynb",
        "small.py",
    ]
    shown = capsys.readouterr().out
    assert "missing thing" in shown and "nothing is written" in shown


def test_seconds_include_trainings_that_were_read_back(write):
    target = write(SMALL + "\nfrom utils import training\n"
                   "training.restored_seconds = 1000.0\n")  # fmt: skip
    execute.run("small", profile="smoke")
    assert 1000 <= nbformat.read(target, 4).metadata["segbook"]["seconds"] < 1100


def test_an_unknown_chapter_is_named(capsys):
    assert execute.main(["nothing"]) == 1
    assert "unet" in capsys.readouterr().out


# --- real data and the embedded sample


@pytest.fixture
def page(write, monkeypatch):
    """Writes the page "small" with a stamp of these data; runs have no settings."""
    for name in ("PROFILE", "SOURCE", "RUNS", "DATA"):
        monkeypatch.delenv(f"SEGBOOK_{name}", raising=False)

    def page(used, profile="cpu", code=SMALL):
        target = write(code)
        notebook = execute.read("small")
        notebook.metadata["segbook"] = {
            "date": "2026-01-01",
            "profile": profile,
            "data": used,
            "code_hash": execute.code_hash(notebook),
        }
        execute.write(notebook, target)
        return target

    return page


@pytest.fixture
def kernel(monkeypatch):
    """A client that runs no kernel: kernel(data) is what the next run took."""
    facts = {"device": "CPU", "profile": "cpu", "versions": {}, "restored": 0}
    started = []

    class Client:
        closed = ()

        def __init__(self, notebook):
            pass

        def setup_kernel(self, **settings):
            started.append(settings["env"])
            return contextlib.nullcontext()

        def run_cells(self):
            pass

        def ask(self, code):
            return facts

    def kernel(used):
        facts["data"] = used
        return started

    monkeypatch.setattr(execute, "Client", Client)
    return kernel


def stamped(target):
    return execute.read_stamp(target)["data"]


def test_a_run_without_network_keeps_a_real_page_and_its_own_work(
    page, capsys, monkeypatch, tmp_path
):
    monkeypatch.setenv("SEGBOOK_DATA", str(tmp_path / "no data"))
    target = page(REAL, code=OFFLINE)
    before = target.read_bytes()
    assert execute.main(["small"]) == 1
    assert target.read_bytes() == before
    place = target.parents[1] / "runs" / "small" / "stand-in.ipynb"
    assert stamped(place) == {"camvid": "sample"}
    assert "'sample'" in str(nbformat.read(place, 4).cells[0].outputs)
    assert sorted(os.listdir(target.parent)) == ["small.ipynb", "small.py"]
    shown = capsys.readouterr().out
    assert "camvid: no network; trying the embedded sample\n" in shown
    assert "data: camvid from the embedded sample\n" in shown
    assert "made from real data and is kept" in shown and f"lies in {place}" in shown
    assert "--output FILE" in shown and "--replace" in shown
    assert "written" not in shown


@pytest.mark.parametrize(
    "arguments, environment",
    [
        (["--profile", "smoke"], {}),
        (["--source", "sample"], {}),
        ([], {"SEGBOOK_PROFILE": "smoke"}),
        ([], {"SEGBOOK_SOURCE": "sample"}),
        (["--profile", "smoke", "--source", "local"], {}),
    ],
)
def test_what_cannot_replace_a_real_page_does_not_run(
    arguments, environment, page, kernel, capsys, monkeypatch
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    target, started = page(REAL), kernel({"camvid": "sample"})
    before = target.read_bytes()
    assert execute.main(["small", *arguments]) == 1
    assert target.read_bytes() == before and not started
    shown = capsys.readouterr().out
    assert "made from real data and is kept" in shown and "Nothing ran" in shown
    assert "--output FILE" in shown and "--replace" in shown
    # An argument goes before the environment.
    kernel(REAL)
    assert execute.main(["small", "--profile", "cpu", "--source", "local"]) == 0
    assert started


def test_a_real_page_of_the_smoke_profile_takes_real_data_again(page, kernel):
    target, started = page(REAL, "smoke"), kernel({"camvid": "archive"})
    assert execute.main(["small", "--profile", "smoke"]) == 1
    assert not started
    assert execute.main(["small", "--profile", "smoke", "--source", "archive"]) == 0
    assert stamped(target) == {"camvid": "archive"}


def test_a_real_page_is_replaced_when_told(page, kernel):
    for arguments in (["--profile", "smoke"], []):
        target = page(REAL)
        kernel({"camvid": "sample"})
        assert execute.main(["small", "--replace", *arguments]) == 0
        assert stamped(target) == {"camvid": "sample"}
    assert not (target.parents[1] / "runs").exists()


def test_another_file_takes_the_sample(page, kernel, tmp_path):
    target, output = page(REAL), tmp_path / "other.ipynb"
    kernel({"camvid": "sample"})
    arguments = ["small", "--profile", "smoke", "--output", str(output)]
    assert execute.main(arguments) == 0
    assert stamped(output) == {"camvid": "sample"} and stamped(target) == REAL
    kernel(REAL)
    assert execute.main(arguments[:1] + arguments[3:]) == 0
    assert stamped(output) == REAL
    assert execute.main(arguments) == 1  # it is as real as a page now
    assert stamped(output) == REAL


@pytest.mark.parametrize(
    "used, profile",
    [
        ({}, "cpu"),
        ({"instrument_parts": "sample"}, "cpu"),
        ({"camvid": "sample"}, "smoke"),
        ({"camvid": "archive + sample"}, "cpu"),
        ({"camvid": "local", "membranes": "sample"}, "cpu"),
    ],
)
def test_a_page_of_no_real_data_is_replaced(used, profile, page, kernel):
    target = page(used, profile)
    kernel({"camvid": "sample", "buildings": "sample"})
    assert execute.main(["small", "--profile", "smoke"]) == 0
    assert set(stamped(target)) == {"camvid", "buildings"}


@pytest.mark.parametrize("took", ["sample", "archive + sample"])
def test_some_of_the_sample_keeps_a_real_page_too(took, page, kernel):
    target = page({"camvid": "archive"})
    kernel({"camvid": "archive", "buildings": took})
    with pytest.raises(execute.PageKept, match="of buildings. Its notebook"):
        execute.run("small")
    assert stamped(target) == {"camvid": "archive"}
    kernel({"camvid": "kaggle", "instrument_parts": "sample"})
    assert execute.run("small") == target
    assert stamped(target) == {"camvid": "kaggle", "instrument_parts": "sample"}


def test_the_terminal_names_the_data(page, kernel, capsys):
    page({})
    for used, told in {
        (): "none",
        (("camvid", "local"), ("instrument_parts", "sample")): (
            "camvid from the local folder, instrument_parts drawn"
        ),
        (("membranes", "archive + sample"),): (
            "membranes from the public archive and the embedded sample"
        ),
    }.items():
        kernel(dict(used))
        assert execute.main(["small", "--replace"]) == 0
        assert f"data: {told}\n" in capsys.readouterr().out


def test_a_page_of_the_sample_is_not_fresh(page, capsys):
    page(REAL)
    assert execute.main(["--check"]) == 0
    page({"camvid": "archive + sample"})
    assert execute.state("small") == "fresh, but made from the embedded stand-in"
    assert execute.main(["--check"]) == 1
    assert "make run CHAPTER=small" in capsys.readouterr().out


# --- files that cannot be written


@pytest.mark.parametrize(
    "output, told",
    [
        ("missing/small.ipynb", "there is no folder"),
        ("dangling.ipynb", "there is no folder"),
        ("chapters", "is a folder"),
        ("locked.ipynb", "read-only.*--output FILE"),
        ("link.ipynb", "read-only.*--output FILE"),
    ],
)
def test_what_cannot_be_written_is_told_before_the_run(
    output, told, page, kernel, tmp_path, capsys
):
    page({})
    started = kernel({})
    locked = tmp_path / "locked.ipynb"
    locked.write_text("as before")
    locked.chmod(0o444)
    (tmp_path / "link.ipynb").symlink_to(locked)
    (tmp_path / "dangling.ipynb").symlink_to(tmp_path / "missing" / "small.ipynb")
    assert execute.main(["small", "--output", str(tmp_path / output)]) == 1
    assert re.search(told, capsys.readouterr().out) and not started
    assert locked.read_text() == "as before"


def test_a_folder_without_permission_is_told_before_the_run(
    page, kernel, tmp_path, capsys, monkeypatch
):
    page({})
    started = kernel({})
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    (tmp_path / "old.ipynb").write_text("as before")
    assert execute.main(["small", "--output", str(tmp_path / "old.ipynb")]) == 1
    assert "read-only" in capsys.readouterr().out and not started
    assert execute.main(["small", "--output", str(tmp_path / "new.ipynb")]) == 1
    assert "read-only" in capsys.readouterr().out and not started


def test_a_link_is_written_through(page, kernel, tmp_path):
    target = page({})
    place = tmp_path / "elsewhere.ipynb"
    target.rename(place)
    target.symlink_to(place)
    kernel({"camvid": "local"})
    assert execute.run("small") == target
    assert target.is_symlink() and stamped(place) == {"camvid": "local"}


@pytest.mark.parametrize("full", [["chapters"], ["chapters", "runs"], [""]])
def test_a_full_disk_loses_neither_the_old_page_nor_the_run(
    full, page, kernel, tmp_path, capsys, monkeypatch
):
    target = page({})
    before = target.read_bytes()
    kernel({"camvid": "local"})
    monkeypatch.setattr(tempfile, "mkdtemp", lambda: str(tmp_path / "tmp"))

    class Disk(io.FileIO):
        def write(self, data):
            if any(str(self.name).startswith(str(tmp_path / part)) for part in full):
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(checkpoints, "open", Disk, raising=False)
    assert execute.main(["small"]) == 1
    shown = capsys.readouterr().out
    assert f"{target} cannot be written, the disk is full" in shown
    assert target.read_bytes() == before
    assert sorted(os.listdir(target.parent)) == ["small.ipynb", "small.py"]
    if full == [""]:
        assert "lies nowhere" in shown
    else:
        place = tmp_path / ("tmp" if "runs" in full else "runs")
        place = place / "small" / "unwritten.ipynb"
        assert f"lies in {place}" in shown
        assert stamped(place) == {"camvid": "local"}


# --- what a page keeps of its outputs


def test_progress_bars_become_a_line_and_explorers_html(write):
    target = write(WIDGETS)
    execute.run("small", profile="smoke")
    notebook = nbformat.read(target, 4)
    first, second = notebook.cells
    (bar,) = first.outputs
    assert re.fullmatch(r"kept: 100% 3/3 \[.*\]\n", bar.text)
    (explorer,) = second.outputs
    assert set(explorer["data"]) == {"text/html", "text/plain"}
    assert explorer["data"]["text/html"].count("<img") == 2
    assert "widgets" not in notebook.metadata


def test_two_runs_differ_in_nothing_but_time(write):
    target = write(WIDGETS)
    found = []
    for _ in range(2):
        execute.run("small", profile="smoke")
        text = re.sub(r"3/3 \[.*?\]", "", target.read_text(encoding="utf-8"))
        notebook = json.loads(text)
        notebook["metadata"]["segbook"].pop("seconds")
        found.append(notebook)
    assert found[0] == found[1]


# A shell starts what runs in its background deaf to Ctrl-C: listen again. And look all
# the time whether the kernel lives, not once a second, so as to see it die every time.
INTERRUPTED = """
import asyncio, signal, sys
from pathlib import Path

from utils import execute, runtime


async def poll(self):
    while await self.km.is_alive():
        await asyncio.sleep(0.001)
    self.task_poll_for_reply.cancel()


signal.signal(signal.SIGINT, signal.default_int_handler)
runtime.root = lambda: Path({root!r})
execute.Client._async_poll_kernel_alive = poll
sys.exit(execute.main(["small", "--profile", "smoke"]))
"""


@pytest.mark.skipif(os.name == "nt", reason="sends a signal")
def test_an_interrupt_leaves_the_notebook_as_it_was(write):
    target = write(SMALL + "\n# %%\nimport time\n\nopen('../here', 'x').close()\n"
                   "time.sleep(300)\n")  # fmt: skip
    target.write_text("as before")
    book = target.parents[1]
    with subprocess.Popen(
        [sys.executable, "-u", "-c", INTERRUPTED.format(root=str(book))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            while process.poll() is None and not (book / "here").exists():
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=120)[0]
        finally:
            process.kill()
    told = "\nInterrupted; nothing is written. Finished trainings are kept.\n"
    assert said.endswith(told)  # and no word about the death of the kernel
    assert "Error" not in said
    assert process.returncode == 1
    assert target.read_text() == "as before"
