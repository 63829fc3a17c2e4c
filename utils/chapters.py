"""Gives tests and other chapters the network that a chapter builds on its page."""

import functools
import inspect
import json
import re
import sys
import types

from utils import runtime

IMPORTS = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n"
TAGS = re.compile(r"tags=(\[.*?\])")


@functools.cache
def load(name):
    """The definitions in the cells tagged `model` of a chapter: load("unet").UNet.

    Nothing else of the chapter runs, so that there is no training. Returns a module.
    An unknown chapter, or one without such cells: ValueError.
    """
    file = path(name)
    source = model_source(file.read_text(encoding="utf-8"))
    if not source.strip():
        raise ValueError(f"{file.name} has no cell tagged `model`")
    module = types.ModuleType(f"chapters.{name}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, str(file), "exec"), vars(module))
    except BaseException as error:
        del sys.modules[module.__name__]
        if isinstance(error, NameError):
            error.add_note(f"Tag the cell of {file.name} that defines it `model` too.")
        raise
    return module


def listing(name, parts, *imports):
    """Classes and functions of a chapter, by their names, as one block of Markdown.

    imports: lines that they need beside those of PyTorch.
    """
    chapter = load(name)
    sources = [inspect.getsource(getattr(chapter, part)) for part in parts]
    header = "\n".join([IMPORTS.strip("\n"), *imports, ""])
    return "```python\n" + "\n\n".join([header, *sources]) + "```"


def path(name):
    """The .py of a chapter; ValueError if there is none."""
    file = runtime.root() / "chapters" / f"{name}.py"
    if not file.is_file():
        known = ", ".join(names()) or "none yet"
        raise ValueError(f"there is no chapter {name!r}; the chapters: {known}")
    return file


def names():
    """The chapters that there are, in alphabetical order."""
    return sorted(file.stem for file in (runtime.root() / "chapters").glob("*.py"))


def model_source(text):
    """A chapter's text with all lines blank but those of the cells tagged `model`.

    The lines keep their numbers, so that tracebacks and inspect find them in the file.
    """
    kept, lines = False, []
    for line in text.splitlines():
        if line.startswith("# %%"):
            tags = TAGS.search(line)
            kept = tags is not None and "model" in json.loads(tags[1])
            lines.append("")
        else:
            lines.append(line if kept else "")
    return "\n".join(lines) + "\n"
