"""The book on an accelerator: a simulated one, and the time that a real one takes."""

import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from conftest import chapters as pages
from torch.utils.flop_counter import FlopCounterMode

from utils import chapters, record, runs, runtime, training

START = """
import sys
sys.path.insert(0, "tests")
import simulated_device, torch
import torch.nn.functional as F
from utils import runtime

def refused(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except (RuntimeError, TypeError) as error:
        return str(error)

"""


def on_device(*command, **environment):
    """What a process of its own prints: a device cannot be taken away again."""
    quiet = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | quiet | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def said_on_device(code):
    return on_device("-c", START + textwrap.dedent(code)).splitlines()


def test_the_simulated_device_refuses_what_a_real_one_does():
    code = """
    simulated_device.register()
    here, there = torch.rand(2, 3), torch.rand(2, 3, device="sim")
    assert "is on the CPU" in refused(torch.add, here, there)
    assert "is on the CPU" in refused(torch.cat, [there, here])
    columns = torch.tensor([0, 2])  # as an index it may come from the CPU
    assert there[:, columns].shape == (2, 2)
    assert "is on the CPU" in refused(lambda: here[:, columns.to("sim")])
    assert "is on the CPU" in refused(torch.stack, [there.sum(), torch.tensor(1.0)])
    layer = torch.nn.Linear(3, 2).to("sim")
    assert "is on the CPU" in refused(layer, here)
    assert "NumPy" in refused(there.numpy)
    assert "float64" in refused(there.double)
    assert "generator" in refused(
        torch.rand, 2, device="sim", generator=torch.Generator()
    )
    assert (there * torch.tensor(2.0)).cpu().equal(2 * there.cpu())
    moved = there.to("cpu").to("sim")
    for tensor in layer(there), there.add_(1), there.flatten(), moved:
        assert tensor.device.type == "sim"
    torch.manual_seed(1)
    before = torch.get_rng_state()
    F.dropout(there)
    assert torch.get_rng_state().equal(before)  # its random numbers are its own
    """
    said_on_device(code)


def test_a_device_that_somebody_registered_is_the_one_that_runs():
    code = """
    import os
    os.environ.pop("SEGBOOK_PROFILE", None)
    assert runtime.device().type == "cpu" and runtime.profile() == "cpu"
    simulated_device.register()
    assert runtime.device().type == "sim" and runtime.profile() == "gpu"
    assert runtime.device_name() == "a simulated accelerator"
    assert runtime.precision() == torch.float32
    runtime.synchronize()
    assert torch.sim.waited == 1
    """
    said_on_device(code)


def test_a_training_there_gives_the_same_numbers_and_can_be_resumed():
    """As on the CPU, but for dropout, whose random numbers are the device's; and the
    line that says how long it takes comes once, after the first step."""
    code = """
    import pathlib, tempfile
    from utils import training

    def train(device, dropout=0.2, stop=99, checkpoint=None):
        torch.manual_seed(3)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.BatchNorm2d(8),
            torch.nn.Dropout(dropout), torch.nn.Conv2d(8, 2, 1),
        ).to(device)
        drawn = []

        def sample(generator):
            drawn.append(1)
            if len(drawn) > stop:
                raise InterruptedError
            images = torch.rand(4, 1, 12, 12, generator=generator)
            return images.to(device), (images[:, 0] > 0.5).long().to(device)

        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        score = lambda model: model(sample(torch.Generator())[0]).mean()
        return training.fit(
            model, sample, F.cross_entropy, optimizer, 20, every=10, clip=1.0,
            evaluate=score, checkpoint=checkpoint,
        )

    simulated_device.register()
    on_cpu, there, expected = train("cpu", 0), train("sim", 0), train("sim")
    assert max(abs(a - b) for a, b in zip(on_cpu.losses, there.losses)) < 1e-5
    assert expected.losses != there.losses

    file = pathlib.Path(tempfile.mkdtemp(), "run.pt")
    try:
        train("sim", stop=15, checkpoint=file)
    except InterruptedError:
        pass
    torch.manual_seed(7)  # whatever happens in between
    resumed = train("sim", checkpoint=file)
    assert resumed.losses == expected.losses and resumed.scores == expected.scores
    """
    said = said_on_device(code)
    lines = [line.strip() for line in said if "on a Colab T4" in line]
    # A step: 4 images of 144 pixels, 8 filters of 9 weights and 2 of 8, each used in
    # the forward pass, for the gradients of weights and, the second, for its maps'.
    operations = 2 * 4 * 144 * (8 * 9 * 2 + 2 * 8 * 3)
    steps = f"{operations / 1e12:.2g} TFLOP, counted in the first: about 1 minute"
    assert lines == [f"{n} steps of {steps} on a Colab T4" for n in (20, 20, 20, 6)]


@pytest.mark.check
@pytest.mark.parametrize("name", [page.removeprefix("chapters/") for page in pages()])
def test_every_chapter_runs_on_an_accelerator(name, tmp_path):
    """With every tensor of it on the simulated one, in the profile smoke."""
    settings = {"SEGBOOK_PROFILE": "smoke", "SEGBOOK_SOURCE": "sample"}
    said = on_device(
        "tests/simulated_device.py", name, SEGBOOK_RUNS=str(tmp_path), **settings
    )
    assert "profile smoke, running on a simulated accelerator" in said


# --- how long a page trains on a GPU

QUARTER = 15 * 60  # seconds


@pytest.fixture
def operations(monkeypatch, tmp_path):
    """Counts the operations of all steps of a page's runs, of which none is made."""
    total = 0

    def fit(model, sample, loss, optimizer, steps, **_):
        nonlocal total
        images, *_ = sample(torch.Generator().manual_seed(0))
        with FlopCounterMode(display=False) as counter:
            found = model.to("meta").train()(images.to("meta"))
            parts = found if isinstance(found, tuple) else (found,)
            sum(part.sum() for part in parts).backward()
        total += steps * counter.get_total_flops()
        return training.History()

    def of(name):
        for run in record.runs_of(name).values():
            sets = run.load()
            for recipe in run.stages:
                if hasattr(recipe, "holds"):  # the hash of the data that are no matter
                    recipe = replace(recipe, holds="")
                run.train(run.build(recipe), recipe, sets, tmp_path / "none.pt")
        return total

    monkeypatch.setattr(training, "fit", fit)
    monkeypatch.setenv("SEGBOOK_PROFILE", "gpu")
    monkeypatch.setenv("SEGBOOK_SOURCE", "sample")  # what the data show is no matter
    chapters.load.cache_clear()
    yield of
    chapters.load.cache_clear()


@pytest.mark.check
@pytest.mark.parametrize("name", sorted(p.name for p in runs.results().glob("*/")))
def test_the_runs_of_a_page_take_a_quarter_of_an_hour_on_a_t4(name, operations):
    assert 0 < operations(name) / runtime.T4 < QUARTER
