"""Checkpoints: whole or not there, damage is noticed, and messages say what to do."""

import errno
import io
import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from torch import nn

from utils import checkpoints
from utils.checkpoints import load_weights, replacing, restoring, save_weights

OLD = {"a": torch.ones(2)}
NEW = {f"w{k}": torch.full((2000,), float(k)) for k in range(4)}  # 33 kB


@pytest.fixture
def path(tmp_path):
    """A checkpoint, alone in its folder."""
    path = tmp_path / "run.pt"
    save_weights(OLD, path)
    return path


def assert_old(path):
    assert torch.equal(load_weights(path)["a"], OLD["a"])
    assert os.listdir(path.parent) == [path.name]


# Writing


@pytest.mark.parametrize("room", [0, 300, 9000, 32_000])
def test_a_full_disk_is_named_and_the_old_file_kept(path, room, monkeypatch):
    class Full(io.FileIO):
        def write(self, data):
            if self.tell() + len(data) > room:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(checkpoints, "open", Full, raising=False)
    with pytest.raises(OSError, match="run.pt cannot be written, the disk is full"):
        save_weights(NEW, path)
    monkeypatch.undo()
    assert_old(path)


@pytest.mark.skipif(os.name == "nt", reason="no such limits")
@pytest.mark.parametrize("room", [0, 9000, 32_000])
def test_the_system_s_own_limit_is_named(path, room):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(OSError, match="run.pt cannot be written, File too large"):
            save_weights(NEW, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_old(path)


def test_a_folder_that_cannot_be_made_is_named(path):
    with pytest.raises(OSError, match="cannot be written, (File exists|Not a dir)"):
        save_weights(NEW, path / "run.pt")
    assert_old(path)


def test_an_interrupt_while_saving_keeps_the_old_file(path):
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert_old(path)


def test_a_link_is_written_through(path, tmp_path):
    link = tmp_path / "elsewhere" / "link.pt"
    link.parent.mkdir()
    link.symlink_to(path)
    save_weights({"a": torch.zeros(3)}, link)
    assert link.is_symlink() and len(load_weights(path)["a"]) == 3
    assert os.listdir(link.parent) == ["link.pt"]


def test_two_writers_do_not_meet(path):
    with replacing(path) as first:
        first.write(b"first")
        with replacing(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert os.listdir(path.parent) == [path.name]


SAVE_FOR_EVER = """
import sys, time
from utils.checkpoints import replacing

with replacing(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    print("half", flush=True)
    time.sleep(300)
"""


@pytest.mark.skipif(os.name == "nt", reason="sends a signal")
def test_what_a_killed_process_left_is_removed_by_the_next_save(path):
    command = [sys.executable, "-c", SAVE_FOR_EVER, path]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"half\n"
            save_weights(OLD, path)
            assert len(list(path.parent.glob("run.pt.*.part"))) == 1  # it is alive
        finally:
            process.send_signal(signal.SIGKILL)
    assert len(list(path.parent.iterdir())) == 2
    save_weights(OLD, path)
    assert_old(path)


# Reading


def test_every_flipped_bit_is_refused_or_does_no_harm(path):
    raw, refused = path.read_bytes(), 0
    places = range(0, len(raw), 2)
    for k in places:
        damaged = bytearray(raw)
        damaged[k] ^= 1 << k // 2 % 8
        path.write_bytes(damaged)
        try:
            assert torch.equal(load_weights(path)["a"], OLD["a"])
        except ValueError as error:
            assert f"{path} is damaged" in str(error) and "delete it" in str(error)
            refused += 1
    assert refused >= len(places) - len(checkpoints.SEAL)


def test_checkpoints_without_a_checksum_are_read(tmp_path):
    torch.save(OLD, tmp_path / "old.pt")
    assert torch.equal(load_weights(tmp_path / "old.pt")["a"], OLD["a"])


def test_torch_reads_a_checkpoint_by_itself(path):
    assert torch.equal(torch.load(path, weights_only=True)["a"], OLD["a"])


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_what_is_no_checkpoint_is_refused_and_runs_no_code(path, tmp_path):
    for content in (torch.zeros(2), [1, 2], {"a": Evil(tmp_path / "evil")}):
        save_weights(content, path)
        with pytest.raises(ValueError, match="run.pt is .*no checkpoint.*: delete it"):
            load_weights(path)
    for raw in (b"", b"some text", path.read_bytes()[:-200]):
        path.write_bytes(raw)
        with pytest.raises(ValueError, match="run.pt is .*no checkpoint.*: delete it"):
            load_weights(path)
    assert not (tmp_path / "evil").exists()


def test_a_file_is_not_blamed_for_what_it_is_not(path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        load_weights(path.with_name("missing.pt"))

    def load(*_, **__):
        raise torch.OutOfMemoryError("the GPU is full")

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(torch.OutOfMemoryError), restoring(path):
        load_weights(path)


@pytest.mark.parametrize(
    "take",
    [
        lambda state: nn.Linear(3, 2).load_state_dict(state["model"]),
        lambda state: nn.Linear(2, 2, bias=False).load_state_dict(state["model"]),
        lambda state: state["optimizer"],
        lambda state: state["history"]["losses"],
        lambda state: torch.Generator().set_state(state["history"]),
    ],
)
def test_the_checkpoint_of_another_network_says_what_to_do(path, take):
    save_weights({"model": nn.Linear(2, 2).state_dict(), "history": None}, path)
    state = load_weights(path)
    told = "run.pt is .*another network.*: delete it"
    with pytest.raises(ValueError, match=told), restoring(path):
        take(state)
