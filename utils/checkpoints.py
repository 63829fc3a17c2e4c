"""Files of a training under way: whole or not there, and read back with care."""

import os
from pathlib import Path

import torch

restored_seconds = 0.0  # of all trainings read back so far, told by the stamp


def save_weights(state, path):
    """Write with torch.save, so that `path` only ever holds a whole file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        torch.save(state, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load_weights(path, device="cpu"):
    """Read what `save_weights` wrote; a broken file is a clear ValueError."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}): "
            "delete it, and the training starts anew"
        ) from error
