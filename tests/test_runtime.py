import random
from pathlib import Path

import numpy as np
import pytest
import torch

from utils import runtime


def test_profile_comes_from_the_environment(monkeypatch):
    for name in runtime.PROFILES:
        monkeypatch.setenv("SEGBOOK_PROFILE", name)
        assert runtime.profile() == name
        assert runtime.choose(gpu="gpu", cpu="cpu", smoke="smoke") == name


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_choice_the_machine_decides(monkeypatch, value):
    monkeypatch.delenv("SEGBOOK_PROFILE", raising=False)
    if value is not None:
        monkeypatch.setenv("SEGBOOK_PROFILE", value)
    assert runtime.profile() == ("gpu" if torch.cuda.is_available() else "cpu")


def test_a_bad_profile_is_refused_with_the_good_ones(monkeypatch):
    monkeypatch.setenv("SEGBOOK_PROFILE", "fast")
    with pytest.raises(ValueError, match="'fast'.*gpu, cpu, smoke"):
        runtime.choose(gpu=1, cpu=2, smoke=3)


def test_seed_repeats_all_three_generators():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    runtime.seed(3)
    first = draw()
    other = draw()
    runtime.seed(3)
    assert draw() == first
    assert all(a != b for a, b in zip(first, other))


def test_folders(monkeypatch, tmp_path):
    assert (runtime.root() / "utils" / "runtime.py").is_file()
    monkeypatch.delenv("SEGBOOK_RUNS", raising=False)
    assert runtime.runs() == runtime.root() / "runs"
    monkeypatch.setenv("SEGBOOK_RUNS", str(tmp_path))
    assert runtime.runs() == Path(tmp_path)


def test_device_name_is_words():
    name = runtime.device_name()
    if torch.cuda.is_available():
        assert name == torch.cuda.get_device_name()
    else:
        assert name.startswith(f"CPU, {runtime.cpu_count()} core")
    assert name == name.strip() and "\n" not in name


def test_versions_are_those_imported():
    found = runtime.versions()
    assert found["torch"] == torch.__version__
    assert found["numpy"] == np.__version__
    assert list(found)[0] == "python"
