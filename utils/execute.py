"""Runs a chapter from top to bottom and writes its outputs: python -m utils.execute.

The code is that of chapters/<name>.py; chapters/<name>.ipynb is replaced at once, at
the end, and only if every cell ran. It gets a stamp that says where its outputs come
from. A page made from real data stays, unless told, if the run took the embedded
sample. The kernel is the Python that runs this module.
"""

import argparse
import asyncio
import contextlib
import hashlib
import html
import importlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import time
import warnings
from datetime import date
from pathlib import Path

import jupytext
import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import ensure_event_loop
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from utils import chapters, data, runtime
from utils.checkpoints import replacing

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")

# What the kernel knows about the run, asked after the last cell.
FACTS = """
import json, sys
sys.path.insert(0, {root!r})
from utils import runtime
print(json.dumps({{
    "device": runtime.device_name(),
    "profile": runtime.profile(),
    "data": sys.modules["utils.data"].sources_used() if "utils.data" in sys.modules
    else {{}},
    "versions": runtime.versions(),
    "restored": getattr(sys.modules.get("utils.training"), "restored_seconds", 0.0),
}}))
"""


class PageKept(Exception):
    """The page stays as it was; the message says why, and what to do."""


def run(name, *, profile=None, source=None, output=None, replace=False):
    """Execute a chapter and write the notebook with its outputs and its stamp.

    profile and source: SEGBOOK_PROFILE and SEGBOOK_SOURCE for the kernel. output:
    another file than chapters/<name>.ipynb. replace: even a page made from real data
    by a run on the embedded sample. A cell that fails: CellExecutionError, and nothing
    is written. A file that cannot be written: ValueError, before the run.

    PageKept: the page stays. If only the run could tell, or the disk is full, the
    message says where the notebook lies instead, mostly in runs/.
    """
    notebook = read(name)
    target = Path(output or chapters.path(name).with_suffix(".ipynb"))
    check_writable(target)
    environment = dict(os.environ)
    if profile:
        environment["SEGBOOK_PROFILE"] = profile
    if source:
        environment["SEGBOOK_SOURCE"] = source
    if not replace:
        refuse_ahead(target, environment)
    client = Client(notebook)
    start = time.monotonic()
    with client.setup_kernel(cwd=str(chapters.path(name).parent), env=environment):
        client.run_cells()
        seconds = time.monotonic() - start
        facts = client.ask(FACTS.format(root=str(runtime.root())))
    clean(notebook, client.closed)
    notebook.metadata["segbook"] = {
        "date": date.today().isoformat(),
        "device": facts["device"],
        "profile": facts["profile"],
        "data": facts["data"],
        # Trainings read back from runs/ count with the time that they once took.
        "seconds": round(seconds + facts["restored"]),
        "versions": facts["versions"],
        "code_hash": code_hash(notebook),
    }
    for line in (*failed_sources(notebook), f"data: {in_words(facts['data'])}"):
        print(line)
    if not replace:
        refuse_after(name, notebook, target)
    try:
        write(notebook, target)
    except OSError as error:
        place = put_aside(notebook, name, "unwritten.ipynb")
        raise PageKept(f"{error}. The run's own notebook lies {place}.") from error
    return target


def check_writable(target):
    """Raises ValueError, with what to do, unless a file may be written or replaced."""
    file = Path(os.path.realpath(target))  # a link is written through
    if not file.parent.is_dir():
        raise ValueError(f"there is no folder {file.parent}; make it first")
    if file.is_dir():
        raise ValueError(f"{target} is a folder; name a file in it")
    # For root everything may be written, so ask what the owner of the file wished.
    locked = file.exists() and not file.stat().st_mode & stat.S_IWUSR
    needed = [place for place in (file, file.parent) if place.exists()]
    if locked or not all(os.access(place, os.W_OK) for place in needed):
        raise ValueError(
            f"{target} may not be written, it or its folder is read-only: change that, "
            "or add --output FILE to write elsewhere"
        )


def read(name):
    """The chapter's notebook without outputs, as its .py has it."""
    notebook = jupytext.read(chapters.path(name))
    kernel = notebook.metadata.get("kernelspec") or {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    }
    notebook.metadata = nbformat.from_dict(
        {
            "accelerator": "GPU",  # what Colab is to open the chapter with
            "jupytext": {"formats": "ipynb,py:percent"},
            "kernelspec": kernel,
            "language_info": {"name": "python", "pygments_lexer": "ipython3"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    seen = {}
    for cell in notebook.cells:  # an id that stays as long as the cell does
        digest = hashlib.sha256(cell.source.encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    return notebook


def code_hash(notebook):
    """SHA-256 of the code cells, but for the book's own address in the first one."""
    digest = hashlib.sha256()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            lines = cell.source.splitlines()
            kept = [line for line in lines if not line.startswith("REPOSITORY = ")]
            digest.update("\n".join(kept).encode() + b"\0")
    return digest.hexdigest()


def state(name):
    """Whether the outputs belong to the code: "fresh", or what is wrong."""
    path = chapters.path(name).with_suffix(".ipynb")
    if not path.is_file():
        return "never run"
    stamp = read_stamp(path)
    if not stamp:
        return "without a stamp"
    if stamp["code_hash"] != code_hash(read(name)):
        return f"stale, the code changed since it ran on {stamp['date']}"
    if drawn(stamp["data"]):
        return "fresh, but made from the embedded stand-in"
    return "fresh"


def read_stamp(path):
    """The stamp of a notebook; {} without one, or without a notebook in the file."""
    try:
        return nbformat.read(path, 4).metadata.get("segbook", {})
    except (OSError, ValueError):
        return {}


def write(notebook, target):
    """In one step: the file holds the old notebook or the new one, never a part."""
    nbformat.validate(notebook)
    with replacing(target) as file:
        file.write(f"{nbformat.writes(notebook)}\n".encode())


def put_aside(notebook, name, file):
    """Writes a notebook that must not, or cannot, lie in its place into runs/, else
    into a folder for temporary files; returns where, in words."""
    for folder in (runtime.runs, tempfile.mkdtemp):
        with contextlib.suppress(OSError):
            place = Path(folder()) / name / file
            write(notebook, place)
            return f"in {place}"
    return "nowhere, as no other place could be written either"


# --- real data and the embedded sample


def refuse_ahead(target, environment):
    """Raises PageKept if the settings alone tell that the page must stay."""
    stamp = read_stamp(target)
    smoke = environment.get("SEGBOOK_PROFILE") == "smoke"
    source = environment.get("SEGBOOK_SOURCE") or ("sample" if smoke else None)
    why = ""
    if source == "sample":
        why = "would take the embedded sample, drawings that stand in for the data"
    elif smoke and stamp.get("profile") != "smoke":
        why = "would only check, in the profile smoke, that all cells run"
    if why and is_real(stamp):
        raise PageKept(
            f"{target} was made from real data and is kept: this run {why}. Nothing "
            "ran. Choose neither the profile smoke nor the source sample; or add "
            "--output FILE to look at the result elsewhere, or --replace (with make: "
            "REPLACE=1) to replace the page all the same."
        )


def refuse_after(name, notebook, target):
    """Raises PageKept if the run took the sample; its notebook goes to runs/."""
    took = drawn(notebook.metadata["segbook"]["data"])
    if took and is_real(read_stamp(target)):
        place = put_aside(notebook, name, "stand-in.ipynb")
        raise PageKept(
            f"{target} was made from real data and is kept: this run took the embedded "
            f"sample, drawings that stand in for the data, of {' and '.join(took)}. "
            f"Its notebook lies {place}. Get the data (the messages above say what "
            "failed) and run again; or add --output FILE to write elsewhere, or "
            "--replace (with make: REPLACE=1) to replace the page all the same."
        )


def is_real(stamp):
    """Whether a page shows data from files, and none that stand in for them."""
    used = stamp.get("data", {})
    return any(map(has_files, used)) and not drawn(used)


def drawn(used):
    """The data sets, of a stamp's, that exist as files but came from the sample."""
    return [name for name in used if "sample" in used[name] and has_files(name)]


def has_files(name):
    """Whether a data set exists as files; one that the book no longer has did."""
    if name not in data.NAMES:
        return True
    return hasattr(importlib.import_module(f"{data.__name__}.{name}"), "read")


def in_words(used):
    """Data sets and sources for the terminal: "camvid from the local folder"."""
    told = []
    for name, sources in used.items():
        places = [data.SOURCES.get(key, key) for key in sources.split(" + ")]
        place = "from " + " and ".join(places) if has_files(name) else "drawn"
        told.append(f"{name} {place}")
    return ", ".join(told) or "none"


def failed_sources(notebook):
    """What utils.data printed about sources that did not have the data."""
    following = tuple(f"; trying {place}" for place in data.SOURCES.values())
    return [
        line
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.output_type == "stream"
        for line in output.text.splitlines()
        if line.endswith(following)
    ]


# --- the kernel and its progress on the terminal


class Kernel(AsyncKernelManager):
    """The Python that runs this module, whatever kernels are installed."""

    @property
    def kernel_spec(self):
        launcher = ["-m", "ipykernel_launcher", "--log-level=CRITICAL", "-f"]
        return KernelSpec(
            argv=[sys.executable, *launcher, "{connection_file}"],
            display_name="Python",
            language="python",
        )


class Client(NotebookClient):
    """Tells on the terminal which cell runs, for how long, and its progress bar."""

    def __init__(self, notebook):
        super().__init__(
            notebook,
            kernel_manager_class=Kernel,
            timeout=None,
            record_timing=False,
            store_widget_state=True,
        )
        self.closed = set()  # widgets that the kernel has closed
        self.line = ""

    def run_cells(self):
        self.reset_execution_trackers()
        total = sum(cell.cell_type == "code" for cell in self.nb.cells)
        number = 0
        for index, cell in enumerate(self.nb.cells):
            if cell.cell_type == "markdown":
                for heading in re.findall(r"^##? +(.+)", cell.source, re.MULTILINE):
                    print(f"\n{heading}", flush=True)
            if cell.cell_type != "code":
                continue
            number += 1
            self.line = f"cell {number} of {total}"
            self.rewrite(f"{self.line} …")
            start = time.monotonic()
            self.execute_cell(cell, index, execution_count=number)
            seconds = f"{time.monotonic() - start:.1f} s"
            self.rewrite("")
            print(f"{self.line}  {seconds:>8}  {summary(cell)}", flush=True)
        self.set_widgets_metadata()

    def execute_cell(self, *arguments, **settings):
        try:
            return super().execute_cell(*arguments, **settings)
        except KeyboardInterrupt:
            self.stop_waiting()
            raise

    def stop_waiting(self):
        """Ends the tasks that wait for the kernel: left alone, they complain of its
        death, which is wanted now."""
        warnings.filterwarnings("ignore", "coroutine .* never awaited", RuntimeWarning)
        loop = ensure_event_loop()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))

    def ask(self, code):
        """What a piece of code prints, read as JSON; it leaves no trace."""
        cell = nbformat.v4.new_code_cell(code)
        self.nb.cells.append(cell)
        try:
            self.execute_cell(cell, len(self.nb.cells) - 1, store_history=False)
        finally:
            self.nb.cells.pop()
        return json.loads("".join(output.text for output in cell.outputs))

    def handle_comm_msg(self, outs, msg, cell_index):
        super().handle_comm_msg(outs, msg, cell_index)
        if msg["msg_type"] == "comm_close":
            self.closed.add(msg["content"]["comm_id"])
        value = msg["content"]["data"].get("state", {}).get("value")
        if isinstance(value, str) and re.search(r"\d+/\d+ *\[", plain(value)):
            self.rewrite(f"{self.line} {plain(value)}")

    def rewrite(self, text):
        """Replaces the last line of a terminal; a log file gets no such lines."""
        if sys.stdout.isatty():
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{text[:width]}", end="", flush=True)


def summary(cell):
    """The first line of a cell that says something."""
    lines = [line.strip() for line in cell.source.splitlines()]
    said = (line for line in lines if line and not line.startswith(("import", "from")))
    return next(said, lines[0] if lines else "")[:60]


def plain(text):
    """The text of a progress bar's label."""
    return html.unescape(text).replace("\u2007", " ").strip(" |")


# --- the outputs


def clean(notebook, closed=()):
    """Outputs as a page wants them: no passing states, no widgets.

    Of a progress bar its last line stays, of one that was closed nothing, of an
    explorer its pictures as HTML.
    """
    saved = notebook.metadata.pop("widgets", {}).get(WIDGET_STATE, {})
    models = saved.get("state", {})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            outputs = (settle(output, models, closed) for output in cell.outputs)
            cell.outputs = join_streams(output for output in outputs if output)


def settle(output, models, closed):
    """An output as it looks when all is done; None if nothing is left of it."""
    if output.output_type == "stream":
        # Carriage returns start a line again, as progress bars do.
        lines = (line.rstrip("\r").rsplit("\r")[-1] for line in output.text.split("\n"))
        output.text = ANSI.sub("", "\n".join(lines))
        return output if output.text else None
    view = output.get("data", {}).get(WIDGET_VIEW)
    if view is None:
        return output
    if view["model_id"] in closed or view["model_id"] not in models:
        return None
    bar = progress_bar(models[view["model_id"]], models)
    if bar is None:  # what the widget says of itself in other forms
        del output.data[WIDGET_VIEW]
        return output
    return nbformat.v4.new_output("stream", name="stdout", text=f"{bar}\n")


def progress_bar(model, models):
    """The last line of a progress bar of tqdm; None for any other widget."""
    children = references(model["state"].get("children"))
    parts = [(models[key]["model_name"], models[key]["state"]) for key in children]
    if [kind for kind, _ in parts] != ["HTMLModel", "FloatProgressModel", "HTMLModel"]:
        return None
    labels = (state.get("value") for kind, state in parts if kind == "HTMLModel")
    return " ".join(plain(label) for label in labels if label)


def join_streams(outputs):
    joined = []
    for output in outputs:
        last = joined[-1] if joined else {}
        if output.output_type == "stream" and last.get("name") == output.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


def references(part):
    """Ids of the widgets that a part of a widget's state names."""
    return re.findall(r"IPY_MODEL_(\w+)", json.dumps(part))


# --- the command


def main(arguments=None):
    """Returns the exit status."""
    options = parse(arguments)
    names = options.chapters or (chapters.names() if options.check else [])
    try:
        if options.check:
            return check(names)
        for name in names:
            start = time.monotonic()
            target = run(
                name,
                profile=options.profile,
                source=options.source,
                output=options.output,
                replace=options.replace,
            )
            print(f"\n{target}: written, {time.monotonic() - start:.0f} s")
    except CellExecutionError as error:
        text = str(error)
        print(f"\n{text if sys.stdout.isatty() else ANSI.sub('', text)}")
        print("A cell failed; nothing is written. Finished trainings are kept.")
        return 1
    except DeadKernelError:
        print("\nThe kernel died, often for want of memory; nothing is written.")
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; nothing is written. Finished trainings are kept.")
        return 1
    except PageKept as error:
        print(f"\n{error}")
        return 1
    except ValueError as error:
        print(error)
        return 1
    return 0


def check(names):
    states = {name: state(name) for name in names}
    for name, found in states.items():
        print(f"{name}: {found}")
        if found != "fresh":
            print(f"  make run CHAPTER={name}")
    return int(any(found != "fresh" for found in states.values()))


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m utils.execute", description="Runs chapters top to bottom."
    )
    parser.add_argument("chapters", nargs="*", metavar="chapter")
    parser.add_argument("--profile", choices=runtime.PROFILES)
    parser.add_argument(
        "--source", choices=("local", "archive", "kaggle", "sample"), help="of the data"
    )
    parser.add_argument("--output", help="another file for the notebook")
    parser.add_argument(
        "--replace",
        action="store_true",
        help="let a run on the embedded sample replace a page made from real data",
    )
    parser.add_argument(
        "--check", action="store_true", help="only say whether the stamps are fresh"
    )
    options = parser.parse_args(arguments)
    if not options.check and not options.chapters:
        parser.error(f"name a chapter: {', '.join(chapters.names())}")
    if options.output and len(options.chapters) != 1:
        parser.error("--output goes with one chapter")
    return options


if __name__ == "__main__":
    sys.exit(main())
