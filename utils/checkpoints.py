"""Files of a training under way: whole or not there, and read back with care."""

import contextlib
import errno
import glob
import hashlib
import os
import secrets
from pathlib import Path

import torch

try:
    import fcntl
except ImportError:  # Windows, where no file can be removed that is open
    fcntl = None

restored_seconds = 0.0  # of all trainings read back so far, told by the stamp
FULL = errno.ENOSPC, errno.EDQUOT  # a disk, or the part of it that one may fill
SEAL = b"SHA-256:"  # what the 32 bytes of it follow, at the end of a checkpoint
BLOCK = 1 << 20


def save_weights(state, path):
    """Write with torch.save, so that `path` only ever holds a whole file.

    A SHA-256 follows at the end, where torch.load does not mind it: by itself it reads
    damaged files without a word. What cannot be written: OSError, as from `replacing`.
    """
    with replacing(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # PyTorch complains of bytes that are missing, after they met a full disk.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.write(SEAL + sha256(file, file.tell()))


def load_weights(path, device="cpu"):
    """Read what `save_weights` wrote.

    A file that is damaged, by a single bit even, or no checkpoint: ValueError with what
    to do. One without a SHA-256, as they were once written, is read all the same.
    """
    with open(path, "rb") as file:
        try:
            check_seal(file)
            file.seek(0)
            state = torch.load(file, map_location=device, weights_only=True)
            if not isinstance(state, dict):
                raise TypeError("a checkpoint is a dict")
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise ValueError(
                f"{path} is damaged, or no checkpoint ({type(error).__name__}): "
                "delete it, and the training starts anew"
            ) from error
    return state


def check_seal(file):
    """Raises ValueError if a file has another SHA-256 than it says, if it says one."""
    size = file.seek(0, os.SEEK_END) - len(SEAL) - 32
    file.seek(max(size, 0))
    if file.read(len(SEAL)) == SEAL and file.read() != sha256(file, size):
        raise ValueError("another SHA-256")


def sha256(file, size):
    """The SHA-256 of the first bytes of a file."""
    file.seek(0)
    digest = hashlib.sha256()
    for start in range(0, size, BLOCK):
        digest.update(file.read(min(BLOCK, size - start)))
    return digest.digest()


@contextlib.contextmanager
def restoring(path):
    """Around what takes the content of a checkpoint: if it does not fit, as that of
    another network, ValueError with what to do."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is the checkpoint of another network or of another training: "
            "delete it, and the training starts anew"
        ) from error


@contextlib.contextmanager
def replacing(path):
    """Gives a new file of bytes, to write and read, that takes the place of `path`.

    `path` holds what it held before or all that is new, whatever happens. Its folder is
    made, a link is written through, and what killed processes left is removed. OSError
    says what is wrong, as a full disk, and that nothing has changed.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_left(target)
        with open(part, "x+b") as file:
            with contextlib.suppress(OSError):  # not every network drive can lock
                lock(file)
            yield file
            file.flush()
            os.fsync(file.fileno())  # a network drive that is full tells only now
            if fcntl:  # while it is locked; Windows wants it closed first
                os.replace(part, target)
        if not fcntl:
            os.replace(part, target)
    except OSError as error:
        full = error.errno in FULL
        reason = "the disk is full: make room" if full else error.strerror or error
        raise OSError(
            f"{path} cannot be written, {reason}. What was there before is kept"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def remove_left(target):
    """Removes what killed processes left beside a file; a live one holds a lock."""
    for part in target.parent.glob(f"{glob.escape(target.name)}.*.part"):
        with contextlib.suppress(OSError):
            if part.stat().st_size:  # an empty one may be just about to be locked
                with open(part, "r+b") as file:
                    lock(file)
                part.unlink()


def lock(file):
    """Locks a file until it is closed, or its process killed. Another process has done
    so: BlockingIOError."""
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
