"""Carries measured values from a code cell into the prose of the page."""

import numbers

from IPython.display import display

PREFIX = "application/papermill.record/"


def glue(**values):
    """Records numbers and strings for the text of the page; shows nothing.

    After glue(dice=0.812) the prose may say {glue:text}`dice:.2f`. A key stands once
    in a chapter. The record is the one that MyST-NB reads; its own `glue` needs all
    of Sphinx beside it, which a reader in Colab does not have.
    Anything else than a number or a string: TypeError.
    """
    for key, value in values.items():
        if getattr(value, "ndim", None) == 0:  # a scalar of torch or NumPy
            value = value.item()
        if not isinstance(value, (numbers.Real, str)):
            raise TypeError(f"{key} is {type(value).__name__}: glue numbers or strings")
        record = {"name": key, "mime_prefix": PREFIX}
        data = {f"{PREFIX}text/plain": repr(value)}
        display(data, raw=True, metadata={"scrapbook": record})
