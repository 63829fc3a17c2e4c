"""Parts of surgical instruments: the drawn frames of `instruments`, labelled by part.

It exists as a drawing only: no public data set that the book could fetch has these
labels. The claspers are all that works at the tip, such as the head of a probe.
"""

from utils.data import instruments

classes = ("background", "shaft", "wrist", "claspers")
palette = (116, 106, 102), (48, 104, 232), (240, 204, 40), (64, 178, 72)
ignore = None
licence = "drawn by this book, no rights reserved"
citation = ""
splits = {"train": 16, "val": 8}  # frames of each
archive = None
kaggle = None


def sample(split):
    """Yields (image (3, 1024, 1280), label (1024, 1280)), both uint8; always the same.

    They are the frames of `instruments.sample`, in its order.
    """
    for image, _, parts in instruments.scenes(split):
        yield image, parts
