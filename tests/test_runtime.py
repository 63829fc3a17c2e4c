import random
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from utils import data, runtime


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
    there = torch.accelerator.is_available()
    assert runtime.profile() == ("gpu" if there else "cpu")


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu", None])
def test_any_accelerator_is_taken(monkeypatch, kind):
    monkeypatch.delenv("SEGBOOK_PROFILE", raising=False)
    found = kind and torch.device(kind)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: found)
    assert runtime.device().type == (kind or "cpu")
    assert runtime.profile() == ("gpu" if kind else "cpu")


@pytest.fixture
def on(monkeypatch):
    """Pretends that the device is of a kind and that `functions` are its module's."""

    def on(kind, **functions):
        monkeypatch.setattr(runtime, "device", lambda: torch.device(kind))
        module = types.SimpleNamespace(**functions)
        monkeypatch.setattr(torch, "get_device_module", lambda device: module)

    return on


def test_precision_is_what_the_hardware_has(on):
    for real, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        # Asked with emulation, a T4 would say yes too.
        on("cuda", is_bf16_supported=lambda including_emulation=True: (
            including_emulation or real
        ))  # fmt: skip
        assert runtime.precision() == dtype
    on("xpu", is_bf16_supported=lambda including_emulation: True)
    assert runtime.precision() == torch.bfloat16
    for kind in ("mps", "cpu"):
        on(kind)
        assert runtime.precision() == torch.float32


def test_autocast_computes_in_that_precision(monkeypatch):
    here, one = torch.device("cpu"), torch.ones(2, 2)
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(runtime, "precision", lambda on: dtype)
        with runtime.autocast(here):
            assert one.mm(one).dtype == dtype


def test_an_accelerator_has_random_numbers_of_its_own(on):
    drawn = torch.Generator()
    on("xpu", get_rng_state=drawn.get_state, set_rng_state=drawn.set_state)
    there, here = torch.device("xpu"), torch.device("cpu")
    kept, first = runtime.rng_state(there), torch.rand(3, generator=drawn)
    runtime.set_rng_state(there, None)
    assert not torch.rand(3, generator=drawn).equal(first)
    runtime.set_rng_state(there, kept)
    assert torch.rand(3, generator=drawn).equal(first)
    assert runtime.rng_state(here) is None


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


def test_the_folder_of_runs_is_seen_from_the_book_as_that_of_the_data(
    monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for given, folder in (
        ("kept/here", runtime.root() / "kept" / "here"),
        ("~/kept", tmp_path / "kept"),
    ):
        monkeypatch.setenv("SEGBOOK_RUNS", given)
        monkeypatch.setenv("SEGBOOK_DATA", given)
        assert runtime.runs() == folder == data.data_root()


def test_a_folder_for_runs_is_made_or_refused(tmp_path):
    runtime.check_writable(tmp_path / "new" / "unet")
    assert list((tmp_path / "new" / "unet").iterdir()) == []
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "unet"):
        with pytest.raises(OSError, match="no run can be kept in .*SEGBOOK_RUNS"):
            runtime.check_writable(folder)


def test_device_name_is_words(on):
    on("cpu")
    assert runtime.device_name().startswith(f"CPU, {runtime.cpu_count()} core")
    on("xpu", get_device_name=lambda: "Intel Arc")
    assert runtime.device_name() == "Intel Arc"
    on("hpu")
    assert runtime.device_name() == "accelerator hpu"
    on("mps")
    assert runtime.device_name().startswith("Apple GPU")


def test_the_name_of_this_device_is_one_line():
    name = runtime.device_name()
    assert name and name == name.strip() and "\n" not in name


def test_versions_are_those_imported():
    found = runtime.versions()
    assert found["torch"] == torch.__version__
    assert found["numpy"] == np.__version__
    assert list(found)[0] == "python"
