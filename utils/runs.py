"""Where finished and interrupted trainings are kept, so that none is lost.

A run is one file, runs/<chapter>/<name>-<fingerprint>.pt. The fingerprint covers
everything that the caller names as decisive: settings, data, and the code of
functions and classes. Change one of them and the run is made anew.
"""

import hashlib
import inspect

import torch

from utils import runtime


def path(chapter, name, *decisive):
    """The checkpoint of a run, for `utils.training.fit`."""
    decisive = (*decisive, runtime.profile(), runtime.device().type, torch.__version__)
    return runtime.runs() / chapter / f"{name}-{fingerprint(*decisive)}.pt"


def fingerprint(*things):
    """Twelve hexadecimal digits that change when any of the things changes.

    Functions and classes count by their source, tensors by their values,
    everything else by its repr.
    """
    digest = hashlib.sha256()
    for thing in things:
        digest.update(_description(thing).encode() + b"\0")
    return digest.hexdigest()[:12]


def _description(thing):
    if inspect.isclass(thing):
        try:
            return inspect.getsource(thing)
        except (OSError, TypeError):  # inspect finds no class of a notebook
            methods = [m for m in vars(thing).values() if inspect.isfunction(m)]
            return thing.__name__ + "".join(map(inspect.getsource, methods))
    if inspect.isfunction(thing):
        return inspect.getsource(thing)
    if isinstance(thing, torch.Tensor):
        value = thing.detach().cpu().contiguous()
        raw = value.flatten().view(torch.uint8).numpy().tobytes()
        return f"{value.dtype}{tuple(value.shape)}{hashlib.sha256(raw).hexdigest()}"
    return repr(thing)
