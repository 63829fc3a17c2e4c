"""What a run was made with, as a few hexadecimal digits that change when it changes.

Values count by value: numbers, texts, arrays, tensors, and containers and dataclasses
of them. Functions and classes of the book count as syntax trees without docstrings,
comments and layout, and so does what they call and the constants that they read, to any
depth; those of libraries count by name. What can be told neither way is refused, since
two of its kind would look alike.
"""

import ast
import builtins
import dataclasses
import dis
import enum
import functools
import hashlib
import inspect
import linecache
import re
import sys
import sysconfig
import types
from pathlib import Path

import numpy as np
import torch

# Modules that decide where and how a run is made and shown, not what comes out: what
# they define counts by name.
NEUTRAL = {
    f"utils.{name}"
    for name in (
        "checkpoints", "data.download", "glue", "plotting", "record", "runs", "runtime",
    )
}
LIBRARIES = [Path(sysconfig.get_path(key)) for key in ("stdlib", "purelib", "platlib")]
PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice)
PLAIN += (type(...), torch.dtype, torch.device, torch.Size, np.dtype)
OPERATORS = type(torch.ops.aten.relu), type(torch.ops.aten.relu.default)  # of PyTorch


def fingerprint(*things):
    """Sixteen hexadecimal digits that change when any of the things changes.

    Raises TypeError for what cannot be told apart from others of its kind, with what
    to give instead, and NameError for code that reads a name that is not there.
    """
    teller = _Teller()
    for thing in things:
        teller.tell(thing)
    return teller.digest.hexdigest()[:16]


class _Teller:
    """Feeds descriptions to a digest; a function or class met again is not followed."""

    def __init__(self):
        self.digest, self.met = hashlib.sha256(), {}

    def say(self, *words):
        for word in words:
            raw = word if isinstance(word, bytes) else str(word).encode()
            self.digest.update(b"%d:" % len(raw) + raw)

    def tell(self, thing):
        kind = type(thing)
        if isinstance(thing, enum.Enum):
            self.say("enum", kind.__qualname__, thing.name)
        elif isinstance(thing, PLAIN):
            self.say(kind.__name__, repr(thing))
        elif isinstance(thing, OPERATORS):
            self.say("operator", thing)
        elif isinstance(thing, re.Pattern):
            self.say("pattern", thing.pattern, thing.flags)
        elif isinstance(thing, (list, tuple)):
            self.say(kind.__name__, len(thing))
            for item in thing:
                self.tell(item)
        elif isinstance(thing, (set, frozenset)):
            self.say(kind.__name__, *sorted(fingerprint(item) for item in thing))
        elif isinstance(thing, (dict, types.MappingProxyType)):
            pairs = sorted((fingerprint(key), key) for key in thing)
            self.say("dict", len(thing))
            for mark, key in pairs:
                self.say(mark)
                self.tell(thing[key])
        elif isinstance(thing, torch.Tensor):
            self.tell_tensor(thing)
        elif isinstance(thing, (np.ndarray, np.generic)):
            self.tell_array(np.asarray(thing))
        elif isinstance(thing, functools.partial):
            self.say("partial")
            self.tell((thing.func, thing.args, thing.keywords))
        elif isinstance(thing, types.MethodType):
            self.say("method")
            self.tell(thing.__func__)
            self.tell(thing.__self__)
        elif inspect.isclass(thing) or callable_by_name(thing):
            self.tell_code(thing)
        elif dataclasses.is_dataclass(thing):
            self.say("dataclass", kind.__qualname__)
            for field in dataclasses.fields(thing):
                self.say(field.name)
                self.tell(getattr(thing, field.name))
        else:
            raise TypeError(
                f"a {kind.__module__}.{kind.__qualname__} cannot be told apart from "
                "others of its kind: give numbers, texts, tensors, functions, classes, "
                "or containers and dataclasses of them"
            )

    def tell_tensor(self, tensor):
        if tensor.is_nested:
            self.say("nested")
            self.tell(list(tensor.unbind()))
            return
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise TypeError("give a sparse or quantised tensor as a dense one")
        value = tensor.detach().cpu().contiguous()
        self.say("tensor", value.dtype, tuple(value.shape))
        self.say(value.flatten().view(torch.uint8).numpy().tobytes())

    def tell_array(self, array):
        if array.dtype.hasobject:
            raise TypeError("give an array of objects as a list")
        self.say("array", array.dtype.str, array.shape)
        self.say(np.ascontiguousarray(array).tobytes())

    def tell_code(self, thing):
        thing = inspect.unwrap(thing)
        package = str(thing.__module__).split(".")[0]  # the rest moves within a library
        if package == "tqdm":  # in a notebook its bar is another class
            self.say("code", package)
            return
        self.say("code", thing.__qualname__.rsplit(".", 1)[-1])
        if id(thing) in self.met:  # it may call itself
            self.say("again", self.met[id(thing)])
        elif is_of_a_library(thing) or thing.__module__ in NEUTRAL:
            self.say(package)
        else:
            self.met[id(thing)] = len(self.met)
            tell = self.tell_class if inspect.isclass(thing) else self.tell_function
            tell(thing)

    def tell_function(self, function):
        tree = tree_of(function)
        self.say(dump(tree))
        self.tell((function.__defaults__, function.__kwdefaults__))
        held = zip(function.__code__.co_freevars, function.__closure__ or ())
        inside = {}
        for name, cell in held:
            try:
                inside[name] = cell.cell_contents
            except ValueError:  # not bound yet, as a function that names itself
                inside[name] = None
        names = set(global_names(function.__code__)) | set(inside)
        for decorator in getattr(tree, "decorator_list", ()):
            names |= {n.id for n in ast.walk(decorator) if isinstance(n, ast.Name)}
        known = function.__globals__ | inside
        self.follow(tree, names, known, function)

    def tell_class(self, cls):
        fields = getattr(cls, "__dataclass_fields__", {})
        for field in fields.values():
            given = (field.default, field.default_factory)
            self.say("field", field.name)
            self.tell([one for one in given if one is not dataclasses.MISSING])
        for base in cls.__bases__:
            self.tell_code(base)
        for name, value in sorted(vars(cls).items()):
            for part in parts_of(value):
                if inspect.isfunction(part) and is_written(part):
                    self.say(name)
                    self.tell_code(part)
            constant = isinstance(value, (*PLAIN, tuple, list, dict))
            if constant and name not in fields and not name.startswith("__"):
                self.say(name)
                self.tell(value)

    def follow(self, tree, names, known, function):
        """Tells what the code reads from outside: by name, in alphabetical order."""
        found = {}
        for node in ast.walk(tree):
            path = dotted(node)
            if path and path[0] in names:
                found[".".join(path)] = path
        for text, (first, *rest) in sorted(found.items()):
            if first not in known:
                if hasattr(builtins, first):
                    continue
                raise NameError(
                    f"{function.__qualname__} reads {first}, which is not there: "
                    "define it first, in a chapter in a cell tagged `model` too"
                )
            thing = known[first]
            while rest and is_followed(thing) and hasattr(thing, rest[0]):
                thing = getattr(thing, rest.pop(0))
            self.say(text)
            if not inspect.ismodule(thing):
                self.tell(thing)


def is_followed(module):
    """Whether it is a module of the book whose members count by what they are."""
    file = getattr(module, "__file__", None)
    known = inspect.ismodule(module) and file and not is_installed(file)
    return known and module.__name__ not in NEUTRAL


def callable_by_name(thing):
    """Functions, those of C included, and what wraps one, as functools.cache does."""
    known = types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType
    return isinstance(thing, known) or (
        callable(thing)
        and hasattr(thing, "__qualname__")
        and hasattr(thing, "__wrapped__")
    )


def is_of_a_library(thing):
    """Whether a function or class was not written for this book."""
    if inspect.isclass(thing):
        module = sys.modules.get(thing.__module__)
        if module is None or module.__name__ == "__main__":
            return False
        file = getattr(module, "__file__", None)
        return file is None or is_installed(file)
    code = getattr(thing, "__code__", None)
    return code is None or is_installed(code.co_filename)


def is_installed(file):
    path = Path(file)
    return "site-packages" in path.parts or any(
        path.is_relative_to(folder) for folder in LIBRARIES
    )


def is_written(function):
    """Whether somebody wrote it: dataclasses write methods by themselves."""
    return inspect.unwrap(function).__code__.co_filename != "<string>"


def parts_of(value):
    """The functions behind a member of a class."""
    if isinstance(value, property):
        return [part for part in (value.fget, value.fset) if part]
    if isinstance(value, (staticmethod, classmethod)):
        return [value.__func__]
    if isinstance(value, functools.cached_property):
        return [value.func]
    return [value]


@functools.lru_cache(maxsize=256)
def parsed(text):
    return ast.parse(text)


def tree_of(function):
    """The syntax tree of a function, found by its line in the file or notebook cell.

    Two lambdas on a line cannot be told apart: TypeError.
    """
    code = function.__code__
    lines = linecache.getlines(code.co_filename, function.__globals__)
    if not lines:
        raise TypeError(f"the code of {function.__qualname__} is nowhere to be read")
    found = [
        node
        for node in ast.walk(parsed("".join(lines)))
        if name_of(node) == code.co_name and first_line(node) == code.co_firstlineno
    ]
    if len(found) != 1:
        raise TypeError(
            f"{len(found)} functions {code.co_name} stand on line "
            f"{code.co_firstlineno} of {Path(code.co_filename).name}: give it a name, "
            "or read the file again if it changed meanwhile"
        )
    return found[0]


def name_of(node):
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return node.name
    return "<lambda>" if isinstance(node, ast.Lambda) else None


def first_line(node):
    return min(part.lineno for part in (node, *getattr(node, "decorator_list", ())))


def dump(node):
    """A tree as text, without places, docstrings, annotations and empty fields: the
    same for every version of Python that knows its syntax."""
    if isinstance(node, list):
        return "[" + ",".join(map(dump, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for name, value in ast.iter_fields(node):
        if name in ("ctx", "kind", "type_comment", "annotation", "returns"):
            continue
        if name == "body" and isinstance(value, list) and has_docstring(node):
            value = value[1:]
        if value is not None and value != []:
            fields.append(f"{name}={dump(value)}")
    return f"{type(node).__name__}({','.join(fields)})"


def has_docstring(node):
    kinds = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
    return isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None


def dotted(node):
    """("scenes", "score") for the expression scenes.score; None for another one."""
    path = []
    while isinstance(node, ast.Attribute):
        path.append(node.attr)
        node = node.value
    return (node.id, *path[::-1]) if isinstance(node, ast.Name) else None


def global_names(code):
    """The names from outside that a function, or one inside it, reads."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if inspect.iscode(constant):
            yield from global_names(constant)
