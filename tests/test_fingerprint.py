"""Fingerprints: what changes them, what does not, and what is refused."""

import ast
import functools
import importlib.util
import re
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from utils import chapters, fingerprint, scenes, training
from utils.data import Dataset
from utils.fingerprint import fingerprint as mark

CODE = '''
import functools
import torch
import torch.nn.functional as F
from dataclasses import dataclass
from torch import nn

SCALE = 2.0
TABLE = {"a": (1, 2), "b": [3]}


def helper(x, factor=3):
    return factor * x


def top(x):
    y = helper(x) * SCALE
    return F.relu(y) + TABLE["a"][0]


@functools.cache
def cached(x):
    return helper(x)


def decorate(function):
    @functools.wraps(function)
    def inner(*values):
        return helper(function(*values))
    return inner


@decorate
def decorated(x):
    return x


def recursive(n):
    return n * recursive(n - 1) if n else 1


class Base(nn.Module):
    width = 4

    def forward(self, x):
        return helper(x)


class Net(Base):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(self.width, 2)

    @property
    def size(self):
        return top(self.width)


@dataclass(frozen=True)
class Settings:
    rate: float = 0.1


def settings():
    return Settings()


def outer(k):
    def inside(x):
        return k * x
    return inside


double, triple = outer(2), outer(3)
square = lambda x: x**2
'''


@pytest.fixture
def write(tmp_path):
    """Writes a module and imports it anew."""
    count = 0

    def write(text=CODE, **changes):
        nonlocal count
        count += 1
        for old, new in changes.values():
            assert old in text
            text = text.replace(old, new)
        file = tmp_path / f"module_{count}.py"
        file.write_text(text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(f"module_{count}", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return write


NAMES = (
    "top", "cached", "decorated", "recursive", "Net", "settings", "double", "square",
)  # fmt: skip


def marks(module):
    return {name: mark(getattr(module, name)) for name in NAMES}


def test_layout_comments_and_docstrings_change_nothing(write):
    text = CODE.replace("    return factor * x", '    """Says."""\n\n    # why\n'
                        "    return (\n        factor\n        * x\n    )")  # fmt: skip
    text = text.replace("class Net(Base):", 'class Net(Base):\n    """Says too."""\n')
    text = text.replace("def top(x):", "def top(x: float) -> float:")
    assert marks(write(text)) == marks(write())


@pytest.mark.parametrize(
    "old, new, changed",
    [
        ("factor * x", "factor + x", {"top", "cached", "decorated", "Net"}),
        ("factor=3", "factor=4", {"top", "cached", "decorated", "Net"}),
        ("SCALE = 2.0", "SCALE = 2.5", {"top", "Net"}),  # a constant, read further down
        ('"b": [3]', '"b": [4]', {"top", "Net"}),
        ("F.relu(y)", "F.elu(y)", {"top", "Net"}),
        ("n - 1", "n - 2", {"recursive"}),
        ("width = 4", "width = 5", {"Net"}),  # of a base class
        ("rate: float = 0.1", "rate: float = 0.2", {"settings"}),
        ("outer(2)", "outer(4)", {"double"}),  # what a closure holds
        ("x**2", "x**3", {"square"}),
        ("helper(function(*values))", "function(*values)", {"decorated"}),
    ],
)
def test_what_is_called_or_read_changes_it(write, old, new, changed):
    before, after = marks(write()), marks(write(one=(old, new)))
    assert {name for name in NAMES if before[name] != after[name]} == changed


def test_closures_of_one_function_differ(write):
    module = write()
    assert mark(module.double) != mark(module.triple)


@dataclass(frozen=True)
class Recipe:
    steps: int = 10
    nested: tuple = (1, 2)
    more: dict = field(default_factory=dict)


def a_dataset(value=0):
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    images[1, 2, 3, 3] = value
    return Dataset(
        "street", "train", images, images[:, 0], ("sky",), ((0, 0, 0),), None, "", "",
        "sample",
    )  # fmt: skip


LONG = np.arange(5000.0)
OTHER = LONG.copy()
OTHER[2500] += 1  # in the middle, which a printed array leaves out
DIFFERENT = [
    (1, 1.0), (1, True), ("1", 1), (None, "None"), ((1, 2), [1, 2]), ({1, 2}, {1, 3}),
    (LONG, OTHER), (LONG, LONG.astype(np.float32)), (LONG, LONG.reshape(50, 100)),
    ([torch.arange(3)], [torch.tensor([0, 1, 3])]),
    ({"a": {"b": torch.zeros(2000)}}, {"a": {"b": torch.zeros(2000) + 1e-7}}),
    (torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
     torch.nested.nested_tensor([torch.zeros(2), torch.ones(3)])),
    (torch.zeros(2, 3), torch.zeros(3, 2)), (torch.zeros(2), torch.zeros(2).long()),
    (Recipe(), Recipe(steps=11)), (Recipe(), Recipe(nested=(1, 3))),
    (Recipe(more={"a": 1}), Recipe(more={"a": 2})),
    (a_dataset(), a_dataset(1)), (torch.float16, torch.bfloat16),
    (functools.partial(max, 1), functools.partial(max, 2)),
    (re.compile("a" * 500), re.compile("a" * 499 + "b")),
]  # fmt: skip


@pytest.mark.parametrize("one, other", DIFFERENT)
def test_values_count_by_value(one, other):
    assert mark(one) != mark(other)
    assert mark(one) == mark(one)


def test_equal_values_are_equal():
    assert mark(a_dataset()) == mark(a_dataset())
    assert mark({"a": 1, "b": 2}) == mark({"b": 2, "a": 1})
    assert mark({3, 1, 2}) == mark({2, 3, 1})
    view = torch.arange(12).view(3, 4).T
    assert mark(view) == mark(view.contiguous())
    assert mark(1, 2) != mark((1, 2)) and mark("ab", "c") != mark("a", "bc")


@pytest.mark.parametrize(
    "thing",
    [
        object(),
        torch.nn.Linear(2, 2),
        iter([1]),
        torch.Generator(),
        np.array([{}]),
        torch.eye(2).to_sparse(),
        torch.utils.data.TensorDataset(torch.zeros(2)),
    ],
)
def test_what_cannot_be_told_apart_is_refused(thing):
    with pytest.raises(TypeError, match="give"):
        mark(thing)


def test_a_function_of_a_library_counts_by_its_name():
    assert mark(torch.relu) == mark(torch.relu) != mark(torch.tanh)
    assert mark(torch.ops.aten.relu) != mark(torch.ops.aten.elu)
    assert mark(print) != mark(open) and mark(torch.nn.ReLU) != mark(torch.nn.ELU)


def test_a_progress_bar_does_not_count(monkeypatch):
    """In a notebook tqdm.auto gives another class than on a terminal."""
    from tqdm.notebook import tqdm_notebook

    before = mark(training.fit)
    monkeypatch.setattr(training, "tqdm", tqdm_notebook)
    assert mark(training.fit) == before


def test_two_lambdas_on_one_line_are_refused(write):
    module = write("pair = (lambda x: x, lambda x: -x)\n")
    with pytest.raises(TypeError, match="give it a name"):
        mark(module.pair[0])


def test_a_name_that_is_not_there_is_an_error(write):
    module = write("def lost(x):\n    return nowhere(x)\n")
    with pytest.raises(NameError, match="nowhere.*tagged `model`"):
        mark(module.lost)


def test_machine_and_files_do_not_count_but_numerics_do(monkeypatch):
    before = mark(training.fit), mark(scenes.score)
    from utils import checkpoints, metrics, runtime

    monkeypatch.setattr(runtime, "device", lambda: 1 / 0)
    monkeypatch.setattr(checkpoints, "save_weights", lambda *_: None)
    monkeypatch.setattr(checkpoints, "restored_seconds", 77.0)
    assert (mark(training.fit), mark(scenes.score)) == before
    monkeypatch.setattr(training, "poly", lambda *_: None)
    assert mark(training.fit) != before[0] and mark(scenes.score) == before[1]
    monkeypatch.setattr(metrics, "iou", lambda confusion: confusion)
    assert mark(scenes.score) != before[1]


def test_a_notebook_s_cells_are_the_chapter_s_file(monkeypatch):
    """Classes and functions typed into a kernel have the fingerprint of those loaded
    from the .py, although there inspect finds no class."""
    from IPython.core.interactiveshell import InteractiveShell

    chapter = chapters.load("deeplab")
    source = chapters.path("deeplab").read_text(encoding="utf-8")
    cells = re.split(r"^# %%.*$", chapters.model_source(source), flags=re.M)
    text = "\n".join(line for line in cells[0].splitlines())
    shell = InteractiveShell.instance()
    try:
        # Cell by cell, as a kernel would.
        for part in re.split(r"\n{4,}", text):
            if part.strip():
                assert shell.run_cell(part.strip()).success
        for name in ("DeepLabV3Plus", "ASPP", "conv_bn_relu"):
            assert mark(shell.user_ns[name]) == mark(getattr(chapter, name)), name
    finally:
        InteractiveShell.clear_instance()


def test_trees_are_told_alike_by_every_python():
    """Fields that some versions of Python lack, or leave empty, are not in the text."""
    text = "def f(x: int = 1, *y) -> str:\n    'Says.'\n    return f'{x:.2f}'"
    tree = ast.parse(text)
    assert fingerprint.dump(tree.body[0]) == (
        "FunctionDef(name='f',args=arguments(args=[arg(arg='x')],vararg=arg(arg='y'),"
        "defaults=[Constant(value=1)]),body=[Return(value=JoinedStr(values=["
        "FormattedValue(value=Name(id='x'),conversion=-1,format_spec=JoinedStr(values=["
        "Constant(value='.2f')]))]))])"
    )


def test_a_replaced_recipe_is_another():
    recipe = scenes.Recipe(batch=4, steps=10, every=5)
    assert mark(recipe) == mark(scenes.Recipe(batch=4, steps=10, every=5))
    assert mark(recipe) != mark(replace(recipe, softening=1.02))
