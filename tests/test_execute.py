"""Running a chapter: outputs, stamp, what a failure leaves behind."""

import json
import os
import re
import signal
import subprocess
import sys

import nbformat
import pytest

from utils import chapters, execute

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


def test_only_widgets_that_are_shown_are_saved(write):
    target = write(WIDGETS)
    execute.run("small", profile="smoke")
    notebook = nbformat.read(target, 4)
    first, second = notebook.cells
    (bar,) = first.outputs
    assert re.fullmatch(r"kept: 100% 3/3 \[.*\]\n", bar.text)
    saved = notebook.metadata.widgets[execute.WIDGET_STATE]["state"]
    kinds = [model["model_name"] for model in saved.values()]
    assert kinds.count("LinkModel") == kinds.count("HTMLModel") == 2
    assert not {"ButtonModel", "FloatProgressModel"} & set(kinds)
    view = second.outputs[0]["data"][execute.WIDGET_VIEW]
    assert saved[view["model_id"]]["model_name"] == "VBoxModel"
    assert set(execute.references(saved)) <= set(saved)


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


@pytest.mark.skipif(os.name == "nt", reason="sends a signal")
def test_an_interrupt_leaves_the_notebook_as_it_was(write):
    target = write(SMALL + "\n# %%\nimport time\n\ntime.sleep(300)\n")
    target.write_text("as before")
    # A shell starts what runs in its background deaf to Ctrl-C: listen again.
    program = (
        "import signal, sys; from pathlib import Path; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from utils import execute, runtime; "
        f"runtime.root = lambda: Path({str(target.parents[1])!r}); "
        "sys.exit(execute.main(['small', '--profile', 'smoke']))"
    )
    with subprocess.Popen(
        [sys.executable, "-u", "-c", program], stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if "cell 3 of 4" in line:
                process.send_signal(signal.SIGINT)
                break
        try:
            rest = process.communicate(timeout=60)[0]
        finally:
            process.kill()
    assert "Interrupted; nothing is written" in rest
    assert process.returncode == 1
    assert target.read_text() == "as before"
