"""The machine a chapter runs on: its profile, its device, its folders."""

import os
import platform
import random
import tempfile
from contextlib import contextmanager, nullcontext
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

PROFILES = ("gpu", "cpu", "smoke")
PACKAGES = ("torch", "numpy", "scipy", "scikit-image", "matplotlib", "ipywidgets")
T4 = 20e12  # operations a second that Colab's free GPU reaches in float16


def profile():
    """How much to run: "gpu" (full settings), "cpu" (scaled down) or "smoke" (a
    check of seconds).

    From SEGBOOK_PROFILE, else from the machine. Another value: ValueError.
    """
    wanted = os.environ.get("SEGBOOK_PROFILE")
    if not wanted:
        return "cpu" if device().type == "cpu" else "gpu"
    if wanted not in PROFILES:
        known = ", ".join(PROFILES)
        raise ValueError(f"SEGBOOK_PROFILE is {wanted!r}; it must be one of: {known}")
    return wanted


def choose(*, gpu, cpu, smoke):
    """The value that belongs to the current profile."""
    return {"gpu": gpu, "cpu": cpu, "smoke": smoke}[profile()]


def device():
    """The accelerator where there is one, else the CPU; the profile does not matter.

    An accelerator is what `torch.accelerator` knows: CUDA, Apple's mps, Intel's xpu, or
    a device that somebody has registered.
    """
    found = torch.accelerator.current_accelerator(check_available=True)
    return found or torch.device("cpu")


def device_name():
    """The device in words, as "NVIDIA H100" or "CPU, 2 cores (AMD EPYC)"."""
    kind = device().type
    if kind == "cpu":
        cores = cpu_count()
        return f"CPU, {cores} core{'s' * (cores != 1)}{in_brackets(cpu_model())}"
    if kind == "mps":
        return f"Apple GPU{in_brackets(cpu_model())}"
    ask = getattr(torch.get_device_module(kind), "get_device_name", lambda: "")
    return ask() or f"accelerator {kind}"


def in_brackets(text):
    return f" ({text})" if text else ""


def precision(on=None):
    """The number format in which a training computes on a device, by default this one.

    bfloat16 where the hardware has it; float16, with a scaler of the loss, on older
    GPUs as Colab's T4, which only emulate bfloat16; float32 elsewhere. On most CPUs
    half precision is slower, and Apple's GPUs compute in it about as fast as in float32
    and the older ones emulate bfloat16, so there is nothing to win there.
    """
    kind = (on or device()).type
    if kind not in ("cuda", "xpu"):
        return torch.float32
    real = torch.get_device_module(kind).is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if real else torch.float16


def autocast(on=None):
    """The context in which a training computes its outputs and its loss."""
    on = on or device()
    dtype = precision(on)
    return nullcontext() if dtype == torch.float32 else torch.autocast(on.type, dtype)


def synchronize():
    """Waits until the accelerator has done what it was told; a CPU always has."""
    if device().type != "cpu":
        torch.get_device_module(device()).synchronize()


def rng_state(on):
    """The state of an accelerator's random numbers, on the CPU; None for a CPU, whose
    state is `torch.get_rng_state()`."""
    if on.type != "cpu":
        return torch.get_device_module(on.type).get_rng_state().cpu()


def set_rng_state(on, state):
    """Goes on from what `rng_state` gave; None leaves everything as it is."""
    if state is not None and on.type != "cpu":
        torch.get_device_module(on.type).set_rng_state(state)


@contextmanager
def estimate(on, steps, say=print):
    """Counts the operations of one step of a training, made within this context, and
    says how long all its steps would take on a Colab T4. On a CPU it does nothing."""
    if on.type == "cpu":
        yield
        return
    with FlopCounterMode(display=False) as counter:
        yield
    operations = counter.get_total_flops()
    minutes = max(1, round(operations * steps / T4 / 60))
    say(
        f"{steps:,} steps of {operations / 1e12:.2g} TFLOP, counted in the first: "
        f"about {minutes} minute{'s' * (minutes > 1)} on a Colab T4"
    )


def cpu_count():
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model():
    """The processor's name, or "" where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1] for line in lines if line.startswith("model name")]
    return " ".join(names[0].split()) if names else platform.machine()


def seed(value):
    """Seeds Python, NumPy and PyTorch (all its devices)."""
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def root():
    """The folder of the book, which holds chapters/ and utils/."""
    return Path(__file__).resolve().parents[1]


def runs():
    """The folder of finished runs: SEGBOOK_RUNS (seen from the book), else runs/."""
    return root() / Path(os.environ.get("SEGBOOK_RUNS") or "runs").expanduser()


def check_writable(folder):
    """Makes a folder for runs where there is none. OSError, with what to do, where no
    file can be written into it: better before a training than after its first hour."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"no run can be kept in {folder} ({error.strerror or error}): let "
            "SEGBOOK_RUNS name a folder that can be written to"
        ) from error


def versions():
    """Version of Python and of each package whose numbers a result may depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
