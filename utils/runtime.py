"""The machine a chapter runs on: its profile, its device, its folders."""

import os
import platform
import random
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

PROFILES = ("gpu", "cpu", "smoke")
PACKAGES = ("torch", "numpy", "scipy", "scikit-image", "matplotlib", "ipywidgets")


def profile():
    """How much to run: "gpu" (full settings), "cpu" (scaled down) or "smoke" (a
    check of seconds).

    From SEGBOOK_PROFILE, else from the machine. Another value: ValueError.
    """
    wanted = os.environ.get("SEGBOOK_PROFILE")
    if not wanted:
        return "gpu" if torch.cuda.is_available() else "cpu"
    if wanted not in PROFILES:
        known = ", ".join(PROFILES)
        raise ValueError(f"SEGBOOK_PROFILE is {wanted!r}; it must be one of: {known}")
    return wanted


def choose(*, gpu, cpu, smoke):
    """The value that belongs to the current profile."""
    return {"gpu": gpu, "cpu": cpu, "smoke": smoke}[profile()]


def device():
    """The GPU where there is one, else the CPU; the profile does not matter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name():
    """The device in words, as "NVIDIA H100" or "CPU, 2 cores (AMD EPYC)"."""
    if device().type == "cuda":
        return torch.cuda.get_device_name()
    cores = cpu_count()
    model = cpu_model()
    return f"CPU, {cores} core{'s' * (cores != 1)}{f' ({model})' if model else ''}"


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
    """The folder that keeps finished runs: SEGBOOK_RUNS, else runs/ in the book."""
    return Path(os.environ.get("SEGBOOK_RUNS") or root() / "runs")


def versions():
    """Version of Python and of each package whose numbers a result may depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
