"""An accelerator written in Python, for machines that have none.

`register()` makes "sim" a device of PyTorch. Its tensors hold one on the CPU, where the
work is done, but behave as those of a GPU do: an operation with tensors of both places
fails, and so do `.numpy()` and, as on Apple's mps, float64. It has random numbers of
its own. As a program it runs a chapter with every tensor on it:

    python tests/simulated_device.py unet
"""

import os
import sys
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "sim"
COPIES = {"aten::copy_", "aten::_to_copy", "aten::to", "aten::_copy_from"}
# What `torch.tensor(…, device="sim")` calls: PyTorch does not look for a fallback where
# a dispatch mode, as FlopCounterMode, is active.
_aten = torch.ops.aten
MAKERS = _aten.empty_strided.default, _aten.empty.memory_format, _aten.copy_.default
JOINS = {"aten::cat", "aten::stack"}
# Their indices, the second argument, may lie on the CPU, as for a real device.
INDEXES = {"aten::index", "aten::index_put", "aten::index_put_"}
_libraries = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")


class Module(_DummyBackendModule):
    """torch.sim: what PyTorch and the book ask a device for."""

    random = torch.Generator().get_state()
    waited = 0  # times

    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]

    def get_device_name(self, device=None):
        return "a simulated accelerator"

    def synchronize(self, device=None):
        self.waited += 1

    def manual_seed_all(self, seed):
        self.random = torch.Generator().manual_seed(seed).get_state()

    def get_rng_state(self, device=None):
        return self.random.clone()

    def set_rng_state(self, state, device=None):
        self.random = state.clone()

    @contextmanager
    def own_random_numbers(self):
        of_the_cpu = torch.get_rng_state()
        torch.set_rng_state(self.random)
        try:
            yield
        finally:
            self.random = torch.get_rng_state()
            torch.set_rng_state(of_the_cpu)


class SimTensor(torch.Tensor):
    """A tensor on the device; `held` is the one on the CPU that it wraps."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        tensor.held = held
        return tensor

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return run(operation, args, kwargs or {})

    def numpy(self, *, force=False):
        raise TypeError(f"a tensor on {NAME} has no NumPy array: use .cpu() first")

    # What plain tensors do themselves, and a wrapper has to pass on.

    def tolist(self):
        return self.held.tolist()

    def untyped_storage(self):
        return self.held.untyped_storage()

    def __format__(self, spec):
        return format(self.held if self.held.dim() else self.held.item(), spec)

    def __repr__(self, **_):
        return f"{self.held!r} on {NAME}"

    def __reduce_ex__(self, protocol):
        parts = self.detach().cpu(), self.dtype, str(self.device), self.requires_grad
        return torch._utils._rebuild_device_tensor_from_cpu_tensor, parts


def run(operation, args, kwargs):
    """An operation, done on the CPU; its results are on the device that it was told,
    by default the simulated one."""
    name = operation.overloadpacket._qualified_op_name
    places, indices = [], args[1] if name in INDEXES else ()

    def unwrap(value):
        if isinstance(value, SimTensor):
            return value.held
        if isinstance(value, torch.device):
            places.append(value.type)
            return torch.device("cpu") if value.type == NAME else value
        if isinstance(value, torch.Tensor) and not any(value is i for i in indices):
            refuse_stranger(name, value)
        return value

    inside = tree_map(unwrap, (args, kwargs))
    here = not places or places[-1] == NAME
    if here and isinstance(kwargs.get("generator"), torch.Generator):
        raise RuntimeError(f"{name}: a generator of the CPU for a tensor on {NAME}")
    random = torch.Tag.nondeterministic_seeded in operation.tags
    with torch.sim.own_random_numbers() if random else nullcontext():
        found = operation(*inside[0], **inside[1])
    written = overwritten(operation._schema, args, kwargs)
    if written:  # in place, or out=: the very objects that were given
        return written[0] if len(written) == 1 else tuple(written)
    return tree_map(wrap, found) if here else found


def refuse_stranger(name, tensor):
    """RuntimeError for a tensor of the CPU that an operation may not take along: a mere
    number may come, but not be joined to others."""
    if name not in COPIES and (tensor.dim() or name in JOINS):
        raise RuntimeError(
            f"{name}: a tensor {tuple(tensor.shape)} is on the CPU and others are on "
            f"{NAME}"
        )


def explicitly(operation, *args, **kwargs):
    return run(operation, args, kwargs)


def overwritten(schema, args, kwargs):
    """The arguments that an operation writes into and gives back."""
    given = dict(zip((a.name for a in schema.arguments), args)) | kwargs
    places = {
        frozenset(a.alias_info.before_set): given[a.name]
        for a in schema.arguments
        if a.alias_info is not None and a.alias_info.is_write and a.name in given
    }
    return [
        places[frozenset(r.alias_info.before_set)]
        for r in schema.returns
        if r.alias_info is not None and r.alias_info.is_write
    ]


def wrap(value):
    if not isinstance(value, torch.Tensor) or isinstance(value, SimTensor):
        return value
    if value.dtype == torch.float64:
        raise TypeError(f"{NAME} has no float64, as Apple's mps: use float32")
    return SimTensor(value)


def register():
    """Makes "sim" the accelerator of this process; it cannot be undone."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    everything, some = _libraries
    everything.fallback(explicitly, "PrivateUse1")
    for operation in MAKERS:
        some.impl(operation, partial(explicitly, operation), "PrivateUse1")


def without_gradients(mode=True):
    """In place of `torch.inference_mode`."""
    if callable(mode):
        return torch.no_grad(mode)
    return torch.no_grad() if mode else nullcontext()


def run_chapter(name):
    """Runs the code cells of a chapter as a notebook does, up to the first error."""
    import jupytext
    from IPython.core.interactiveshell import InteractiveShell

    from utils import chapters

    path = chapters.path(name)
    os.chdir(path.parent)
    shell = InteractiveShell.instance()
    for cell in jupytext.read(path).cells:
        if cell.cell_type == "code":
            shell.run_cell(cell.source).raise_error()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    register()
    # A tensor that holds another cannot be one of inference: views of it fail, which
    # no real device asks for. Nothing else tells the two apart here.
    torch.inference_mode = without_gradients
    run_chapter(sys.argv[1])
