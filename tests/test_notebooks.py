"""The committed chapters: pairs agree, outputs are fresh and real, prose is glued."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jupytext
import nbformat
import pytest
from conftest import ROOT, chapters, need, project_files

from utils import execute

NAMES = [page.removeprefix("chapters/") for page in chapters()]
PREFIX = "application/papermill.record/"
GLUE = re.compile(r"\{glue:text\}`(\w+)(?::[^`]+)?`")

# Results that the papers report: these alone may stand in prose as decimals.
REPORTED = {
    "start": set(),
    "unet": {"0.000353", "0.0382", "0.0611", "0.9203", "0.7756"},
    "pspnet": {"85.4", "80.2", "37.23", "41.68", "40.87", "35.82"},
    "deeplab": {
        "85.7", "87.8", "86.9", "89.0", "82.1", "77.21", "78.85", "60.1", "66.9", "9.4",
    },
    "refinenet": {"83.4", "78.5", "80.3", "82.1", "80.5"},
    "gcn": {"82.2", "76.9"},
    "inplace_abn": {"0.8", "82.0", "53.4"},
    "ternausnetv2": {"0.739", "0.736"},
    "instruments": {
        "75.44", "83.60", "82.36", "48.41", "65.50", "34.55", "15.80", "34.61", "22.47",
    },
    "comparison": set(),
    "own_images": set(),
}
# Settings that the papers name, as their dropout.
SETTINGS = {
    "start": {"1.02"},
    "unet": {"0.99", "0.5", "0.2"},
    "pspnet": {"0.4", "0.5", "0.9", "0.75", "1.75"},
    "deeplab": set(),
    "refinenet": {"0.7", "1.3", "0.5", "0.75", "1.75"},
    "gcn": set(),
    "inplace_abn": set(),
    "ternausnetv2": {"0.5", "0.95", "0.05"},
    "instruments": set(),
    "comparison": set(),
    "own_images": {"2.0", "4.0"},  # of licences
}
# Data sets that exist as drawings only; a page that takes one says so.
DRAWN = {"instrument_parts"}


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def notebook(name):
    return nbformat.read(ROOT / "chapters" / f"{name}.ipynb", 4)


def markdown(notebook):
    return "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")


def outputs(notebook):
    for cell in notebook.cells:
        yield from cell.get("outputs", ())


def glued(notebook):
    """Name -> text of every value that a cell carries into the prose."""
    found = {}
    for output in outputs(notebook):
        record = output.get("metadata", {}).get("scrapbook")
        if record:
            assert record["name"] not in found, f"{record['name']} is glued twice"
            found[record["name"]] = output["data"][f"{PREFIX}text/plain"]
    return found


def test_pair_agrees(name, notebook):
    script = jupytext.read(ROOT / "chapters" / f"{name}.py")
    ours = [(cell.cell_type, cell.source) for cell in notebook.cells]
    theirs = [(cell.cell_type, cell.source) for cell in script.cells]
    assert ours == theirs, f"run `make sync`, or `make run CHAPTER={name}`"
    tags = [cell.metadata.get("tags") for cell in notebook.cells]
    assert tags == [cell.metadata.get("tags") for cell in script.cells]


def test_outputs_belong_to_the_code_and_to_real_data(name, notebook):
    assert execute.state(name) == "fresh", f"run `make run CHAPTER={name}`"
    stamp = notebook.metadata["segbook"]
    assert stamp["profile"] in ("gpu", "cpu")
    real = [source for name, source in stamp["data"].items() if name not in DRAWN]
    assert real and "sample" not in " ".join(real)
    assert stamp["seconds"] > 0 and stamp["device"]


def test_a_changed_line_makes_the_stamp_stale(name, notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code[-1].source += "\n1 + 1"
    assert execute.code_hash(notebook) != notebook.metadata["segbook"]["code_hash"]


def test_every_cell_ran_in_order_without_error(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [o for o in outputs(notebook) if o.output_type == "error"]
    shown = " ".join(o.get("text", "") for o in outputs(notebook))
    assert "Warning" not in shown, shown


def test_first_cell_fetches_the_book_and_never_installs_torch(notebook):
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert re.search(r'^REPOSITORY = "https://', first.source, re.MULTILINE)
    installed = re.findall(r'"([\w-]+)>=', first.source)
    assert installed and "torch" not in installed


def test_prose_and_glued_values_match(notebook):
    used, given = set(GLUE.findall(markdown(notebook))), set(glued(notebook))
    assert used - given == set(), "in the prose, but no cell glues them"
    assert given - used == set(), "glued, but not in the prose"


def test_no_result_is_typed(name, notebook):
    prose = GLUE.sub("", markdown(notebook))
    prose = re.sub(r"^:\w+: .*$", "", prose, flags=re.MULTILINE)  # of directives
    for apart in (r"```python.*?```", r"\$[^$]*\$", r"https?://\S+", r"arXiv [\d.]+"):
        prose = re.sub(apart, "", prose, flags=re.DOTALL)
    typed = set(re.findall(r"\b\d+\.\d+", prose))
    assert typed <= REPORTED[name] | SETTINGS[name]
    units = re.findall(r"\d+(?:\.\d+)?\s*(?:%|s\b|seconds|minutes|MB)", prose)
    assert units == []


def test_code_in_the_prose_is_code(name, notebook):
    for block in re.findall(r"```python\n(.*?)```", markdown(notebook), re.DOTALL):
        compile(block, name, "exec")


def test_every_picture_says_what_it_shows(notebook):
    pictures = re.findall(
        r"<img [^>]*>", json.dumps([o.get("data", {}) for o in outputs(notebook)])
    )
    assert pictures
    assert all(re.search(r'alt=\\"[^"\\]{20,}', picture) for picture in pictures)


def test_outputs_hold_no_path_of_a_machine(notebook):
    text = json.dumps(notebook.cells)
    assert not re.search(r'(?<![\w.:/])/(home|root|tmp|Users|work)/', text)


# --- as in Colab: alone in an empty folder, in the smoke profile, on the sample


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    """The address of a Git repository on this machine that holds the book."""
    need(shutil.which("git"), "git is missing")
    folder = tmp_path_factory.mktemp("repository")
    for path in project_files():
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    author = ["-c", "user.name=me", "-c", "user.email=me@localhost"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "book"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder.as_uri()


@pytest.fixture(scope="session")
def ipywidgets_7(tmp_path_factory):
    """A folder with the ipywidgets that Colab ships."""
    folder = tmp_path_factory.mktemp("ipywidgets")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    packages = ["ipywidgets==7.7.1", "ipython_genutils==0.2.0"]
    done = subprocess.run([*command, "--target", str(folder), *packages])
    need(done.returncode == 0, "ipywidgets 7 cannot be installed")
    return folder


# One package seems to be missing, and what is installed is written down.
PRETEND = """
def _pretend():
    import importlib.util, os, subprocess

    find, run = importlib.util.find_spec, subprocess.run

    def find_spec(name, package=None):
        if name == "tqdm":
            importlib.util.find_spec = find  # once: then it is installed
            return None
        return find(name, package)

    def noted(command, *args, **kwargs):
        if "pip" not in map(str, command):
            return run(command, *args, **kwargs)
        with open(os.environ["INSTALLED"], "a") as file:
            print(*command[1:], file=file)
        return subprocess.CompletedProcess(command, 0)

    importlib.util.find_spec, subprocess.run = find_spec, noted


_pretend()
del _pretend
"""


def run_as_in_colab(name, folder, repository, environment, leave_out=None):
    """The executed notebook, which had nothing beside it; without the cells that carry
    the tag `leave_out`."""
    folder.mkdir()
    path = folder / f"{name}.ipynb"
    notebook = nbformat.read(ROOT / "chapters" / path.name, 4)
    notebook.cells = [
        c for c in notebook.cells if leave_out not in c.metadata.get("tags", ())
    ]
    nbformat.write(notebook, path)
    start = folder.parent / "ipython" / "profile_default" / "startup"
    start.mkdir(parents=True, exist_ok=True)
    (start / "pretend.py").write_text(PRETEND)
    environment = {
        "IPYTHONDIR": str(folder.parent / "ipython"),
        "INSTALLED": str(folder / "installed.txt"),
        "SEGBOOK_PROFILE": "smoke",
        "OMP_NUM_THREADS": "1",  # two run at a time
        "SEGBOOK_DATA": str(folder / "no data"),
        "SEGBOOK_RUNS": str(folder.parent / "runs"),
        "KAGGLE_CONFIG_DIR": str(folder / "no credentials"),
    } | environment
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import colab; "
        "colab.run(*sys.argv[2:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "tools"), path, folder, repository],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return nbformat.read(folder / path.name, 4)


def run_twice(name, folder, repository, ipywidgets_7):
    """With ipywidgets 8, then with the 7 that Colab has; and what the second wrote."""
    first = run_as_in_colab(name, folder / "first", repository, {})
    before = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*")}
    time.sleep(0.01)
    colab = {"PYTHONPATH": str(ipywidgets_7)}
    again = run_as_in_colab(name, folder / "again", repository, colab)
    after = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*")}
    return first, again, before, after


@pytest.fixture(scope="session")
def colab(request, tmp_path_factory, repository, ipywidgets_7):
    """{chapter: (its folder, what `run_twice` will return)}, two at a time."""
    items = (i for i in request.session.items if "colab" in i.fixturenames)
    with ThreadPoolExecutor(2) as pool:
        runs = {}
        for name in [item.callspec.params["name"] for item in items]:
            folder = tmp_path_factory.mktemp(name)
            job = pool.submit(run_twice, name, folder, repository, ipywidgets_7)
            runs[name] = folder, job
        yield runs
        pool.shutdown(cancel_futures=True)


def test_runs_as_in_colab(name, colab):
    """Top to bottom, alone in an empty folder, with ipywidgets 8 and with 7."""
    folder, job = colab[name]
    notebook, again, before, after = job.result()
    assert (folder / "first/segmentation-networks/utils/chapters.py").is_file()
    said = "".join(output.get("text", "") for output in outputs(notebook))
    assert "profile smoke" in said
    assert set(GLUE.findall(markdown(notebook))) == set(glued(notebook))
    installed = (folder / "first/installed.txt").read_text().splitlines()
    assert installed == ["-m pip install tqdm>=4.60"]

    # Finished trainings are read back: every file of a run stays as it was.
    assert before and before == after
    assert untimed(glued(notebook)) == untimed(glued(again))


REAL = os.environ.get("SEGBOOK_DATA")
RECORDED = ("unet", "deeplab", "pspnet")


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_page_trains_nothing_in_colab(name, repository, tmp_path):
    """Everything but the cells tagged `experiment`, on the real data, from an empty
    runs/: the network and its scores come with the book."""
    if not REAL:
        pytest.skip("SEGBOOK_DATA names no folder with the real data")
    environment = {
        "SEGBOOK_PROFILE": "cpu",
        "SEGBOOK_DATA": REAL,
        "SEGBOOK_RUNS": str(tmp_path / "runs"),
    }
    notebook = run_as_in_colab(
        name, tmp_path / "here", repository, environment, "experiment"
    )
    said = "".join(output.get("text", "") for output in outputs(notebook))
    assert "read from results/" in said and "trained here" not in said
    assert not (tmp_path / "runs").exists()


def untimed(values):
    """Measured times differ from run to run; everything else is the same."""
    return {k: v for k, v in values.items() if not re.search("minutes|time$", k)}
