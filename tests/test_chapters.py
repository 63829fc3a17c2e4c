import ast
import inspect
import pickle
import re
import sys
import traceback

import pytest

from utils import chapters

SMALL = '''# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown] tags=["model"]
# # A small chapter

# %%
# !pip install nothing
raise SystemExit("no other cell may run")

# %% tags=["hide-input", "model"]
import math


def area(radius):
    """Of a disc."""
    return math.pi * radius**2


# %% [markdown]
# Then

# %% A title tags=["model"]
class Disc:
    def area(self):
        return area(2)

    def fail(self):
        raise RuntimeError("here")


# %% tags=["modelling"]
forgotten = 1
'''


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes chapters into an own book, which then is the one that is read."""
    monkeypatch.setattr(chapters.runtime, "root", lambda: tmp_path)
    (tmp_path / "chapters").mkdir()
    chapters.load.cache_clear()

    def write(name, text):
        (tmp_path / "chapters" / f"{name}.py").write_text(text, encoding="utf-8")

    yield write
    chapters.load.cache_clear()
    for name in chapters.names():
        sys.modules.pop(f"chapters.{name}", None)


def test_only_cells_tagged_model_run(write):
    write("small", SMALL)
    small = chapters.load("small")
    assert small.Disc().area() == pytest.approx(12.566, abs=1e-3)
    assert not hasattr(small, "forgotten")
    assert chapters.load("small") is small


def test_definitions_have_source_tracebacks_and_pickle(write):
    write("small", SMALL)
    small = chapters.load("small")
    assert inspect.getsource(small.area).startswith("def area(radius):")
    assert inspect.getsource(small.Disc).startswith("class Disc:")
    with pytest.raises(RuntimeError) as caught:
        small.Disc().fail()
    frame = traceback.extract_tb(caught.tb)[-1]
    assert frame.line == 'raise RuntimeError("here")'
    assert SMALL.splitlines()[frame.lineno - 1].strip() == frame.line
    assert pickle.loads(pickle.dumps(small.Disc())).area() == small.Disc().area()


def test_a_chapter_can_use_another(write):
    write("small", SMALL)
    write(
        "second",
        '# %% tags=["model"]\nfrom utils import chapters\n\n'
        'disc = chapters.load("small").Disc()\n',
    )
    assert chapters.load("second").disc.area() > 12


def test_an_unknown_chapter_lists_the_known(write):
    write("small", SMALL)
    write("other", SMALL)
    known = "no chapter 'smal'; the chapters: other, small"
    with pytest.raises(ValueError, match=known):
        chapters.load("smal")


def test_a_chapter_without_model_cells(write):
    write("prose", "# %% [markdown]\n# Words\n\n# %%\nx = 1\n")
    with pytest.raises(ValueError, match="prose.py has no cell tagged `model`"):
        chapters.load("prose")


def test_a_cell_that_needs_an_untagged_one_says_so_and_leaves_nothing(write):
    write("broken", '# %%\nimport math\n\n# %% tags=["model"]\nx = math.pi\n')
    with pytest.raises(NameError) as caught:
        chapters.load("broken")
    assert "`model` too" in caught.value.__notes__[0]
    assert "chapters.broken" not in sys.modules


LISTED = re.compile(r"names = (.+)\n.*?chapters\.listing\((.+?)\)", re.S)
WITH_LISTING = {
    name: found
    for name in chapters.names()
    if (found := LISTED.search(chapters.path(name).read_text(encoding="utf-8")))
}


@pytest.mark.parametrize("name", WITH_LISTING)
def test_the_network_to_copy_runs_alone(name):
    parts = ast.literal_eval(WITH_LISTING[name][1])
    imports = re.findall(r'"([^"]*)"', WITH_LISTING[name][2])[1:]
    code = chapters.listing(name, parts, *imports).strip("`").removeprefix("python")
    alone = {}
    exec(code, alone)
    assert all(part in alone for part in parts)
