"""Networks that answer on the page: how a chapter names one, and how it is written.

A chapter says in one cell, tagged `model`, how its recorded run goes live:

    LIVE = live.Network(MAIN, title=…, domain=…, gates={label: part}, samples={…})

`make export CHAPTER=unet` (python -m utils.live unet) then writes

    results/unet/main.onnx        the graph; its weights are those of main.safetensors
    results/unet/live/main.json   the manifest: what the page has to know
    results/unet/live/*.webp      the samples, and the prediction of the first one

and the build copies them beside `_static/live.mjs`, which runs them in the browser. In
Jupyter and Colab `widget("unet")` shows the same network, run by PyTorch.
"""

import base64
import colorsys
import hashlib
import io
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from skimage.measure import label as connected_components

from utils import chapters, data, export, plotting, runs
from utils.checkpoints import replacing
from utils.own_inputs import contents

IMAGES = 60  # training images, spread over the set, behind the mean of a part
MARGIN = (124, 116, 104)  # beside a photo of another shape: ImageNet's mean colour
OUTPUTS = "softmax", "sigmoid"


@dataclass(frozen=True)
class Network:
    """How the network of a recorded run goes live.

    run         the recorded run; its weights, its classes, its data
    title       "DeepLab v3+"
    domain      what it has seen: "streets, seen from a car in Cambridge"
    samples     {frame of the test split, by name or number: what it shows}
    gates       {label: part}, what a reader can switch off; parts as `export.attach`
    size        (height, width) of the frame, by default that of the run's images;
                of a smaller one samples are the upper left corner
    output      "softmax": the most probable class. "sigmoid": the probability of
                `thing`, whose connected parts above `threshold` are instances
    thing       the class with instances
    prepare     pixels in [0, 1] -> images, as `export.export` takes it
    """

    run: runs.Run
    title: str
    domain: str
    samples: dict
    gates: dict[str, str]
    size: tuple[int, int] | None = None
    output: str = "softmax"
    thing: int = 1
    threshold: float = 0.5
    prepare: Callable | None = None

    def __post_init__(self):
        if self.output not in OUTPUTS:
            raise ValueError(f"output is {self.output!r}; there are: {OUTPUTS}")

    @property
    def graph(self):
        """The file of the graph."""
        return runs.files(self.run)[0].with_suffix(".onnx")

    @property
    def manifest(self):
        """The file of the manifest; its pictures lie beside it."""
        return self.graph.parent / "live" / f"{self.run.name}.json"

    @property
    def module(self):
        """The description of the data: classes, palette, licence."""
        return data.described(self.run.data["train"]["name"], "train")


def find(chapter):
    """The `Network` that a chapter defines; ValueError if there is none."""
    defined = vars(chapters.load(chapter)).values()
    found = [one for one in defined if isinstance(one, Network)]
    if len(found) != 1:
        raise ValueError(f"{chapter} defines {len(found)} live networks, not one")
    return found[0]


def trained(network):
    """The network of the record, in eval mode on the CPU. Raises what `runs.check` and
    `runs.weights_into` do where it is not of the code that stands."""
    runs.check(network.run)
    return runs.weights_into(network.run, runs.read(network.run)).cpu()


def read_manifest(network):
    """The manifest; FileNotFoundError says how to make it."""
    if not network.manifest.is_file():
        chapter = network.run.chapter
        raise FileNotFoundError(f"no live network yet: make export CHAPTER={chapter}")
    return json.loads(network.manifest.read_text(encoding="utf-8"))


# --- writing


def write(network):
    """Writes graph, pictures and manifest; returns the manifest. Needs the real data:
    ValueError without."""
    model = trained(network)
    train = real(network.run.data["train"])
    chosen = torch.linspace(0, len(train) - 1, min(IMAGES, len(train))).round().long()
    means = export.part_means(
        model, network.gates, train.images[chosen], network.prepare
    )
    frames = sample_frames(network)
    network.manifest.parent.mkdir(exist_ok=True)
    write_graph(network, model, means, network.graph)
    samples = [
        write_picture(network, f"sample-{number}.webp", as_picture(frame), alt)
        for number, (frame, alt) in enumerate(zip(frames, network.samples.values()), 1)
    ]
    with Image.open(network.manifest.parent / samples[0]["file"]) as first:
        frame = letterbox(first, frame_size(network), len(frames[0]))[0]
    picture = paint(network, frame, run(model, network, frame, means))
    alt = f"Prediction of the network: {next(iter(network.samples.values()))}"
    shown = write_picture(network, "prediction.webp", picture, alt)
    manifest = describe(network, means, samples, shown)
    with replacing(network.manifest) as new:
        new.write(f"{runs.as_json(manifest)}\n".encode())
    return manifest


def real(how):
    """A data set of published files; ValueError for any other."""
    found = data.load(**how)
    if runs.is_drawn({"": found}) or runs.is_changed({"": found}):
        raise ValueError(f"{found.name}: an export needs the published files")
    return found


def sample_frames(network):
    """The samples, each (C, H, W) uint8."""
    test = real(network.run.data["test"])
    chosen = [test.names.index(k) if isinstance(k, str) else k for k in network.samples]
    height, width = network.size or test.images.shape[-2:]
    return test.images[chosen, :, :height, :width]


def write_graph(network, model, means, path):
    """Writes the graph; the weights' file lies in the folder of `path`."""
    height, width = frame_size(network)
    frame = torch.zeros(1, channels(model), height, width, dtype=torch.uint8)
    weights = path.parent / runs.files(network.run)[1].name
    export.export(model, frame, path, network.gates, network.prepare, weights, means)


def frame_size(network):
    return network.size or network.run.data["test"]["size"]


def channels(model):
    """Of the images: what the first convolution takes."""
    layers = model.modules()
    return next(m for m in layers if isinstance(m, torch.nn.Conv2d)).in_channels


def describe(network, means, samples, picture):
    """The manifest, plain values."""
    weights, module = runs.files(network.run)[1], network.module
    height, width = frame_size(network)
    return {
        "name": network.run.chapter,
        "title": network.title,
        "domain": network.domain,
        "terms": f"{module.licence}. {module.citation}.",
        "frame": [height, width],
        "channels": channels(network.run.build(network.run.stages[0])),
        "margin": MARGIN,
        "classes": [
            {"name": name, "colour": colour}
            for name, colour in zip(module.classes, module.palette)
        ],
        "output": network.output,
        "thing": network.thing,
        "threshold": network.threshold,
        "gates": [
            {"label": label, "mean": [float(f"{v:.5g}") for v in means[label].tolist()]}
            for label in network.gates
        ],
        "samples": samples,
        "picture": picture,
        "graph": identity(network.graph),
        "weights": identity(weights),
    }


def identity(file):
    """Name, size and hash of a file, as a browser checks it."""
    digest = hashlib.sha256(file.read_bytes()).digest()
    return {
        "file": file.name,
        "bytes": file.stat().st_size,
        "integrity": f"sha256-{base64.b64encode(digest).decode()}",
    }


def write_picture(network, name, picture, alt):
    """Writes a picture (H, W, 3) or (H, W) uint8; returns its place in the manifest."""
    file, image = io.BytesIO(), Image.fromarray(picture)
    image.save(file, "webp", quality=80, method=6)
    with replacing(network.manifest.parent / name) as new:
        new.write(file.getvalue())
    return {"file": name, "width": image.width, "height": image.height, "alt": alt}


def as_picture(frame):
    """(C, H, W) uint8 -> (H, W) or (H, W, 3)."""
    return frame[0].numpy() if len(frame) == 1 else frame.permute(1, 2, 0).numpy()


# --- answering


@torch.inference_mode()
def run(model, network, frame, means, gates=None, fill=0.0):
    """Logits (K, H, W) of a frame (C, H, W) uint8, as the graph gives them.

    gates: a number for each part, 1 without them; fill: 0 or 1, what a removed part
    leaves, nothing or its mean.
    """
    prepare = network.prepare or export.preparation(model)
    live = export.Live(export.evaluated(model), prepare, network.gates, means).eval()
    gates = torch.ones(len(network.gates)) if gates is None else torch.tensor(gates)
    return live(frame[None], gates.float(), torch.tensor([float(fill)]))[0]


def means_of(manifest):
    """The means of the parts, {label: (C,) float32}, as `write_graph` takes them."""
    return {
        gate["label"]: torch.tensor(gate["mean"]).half().float()
        for gate in manifest["gates"]
    }


def probability(network, logits):
    """Of the class with instances: (K, H, W) -> (H, W)."""
    return logits.sigmoid()[0] if len(logits) == 1 else logits.softmax(0)[network.thing]


def instances(probability, threshold):
    """Numbers of the instances (H, W), from 1 in the order of their first pixels;
    0 is what is at or below the threshold."""
    above = np.asarray(probability) > threshold
    return connected_components(above, connectivity=1).astype(np.int32)


def colour(number):
    """Of an instance: hues that go round by the golden angle, in red, green, blue."""
    parts = colorsys.hls_to_rgb(number * 137.508 % 360 / 360, 0.6, 0.65)
    return [round(255 * part) for part in parts]


def paint(network, frame, logits, opacity=0.55, threshold=None):
    """The answer over its frame, (H, W, 3) uint8."""
    if network.output == "softmax":
        palette = network.module.palette
        return plotting.overlay(frame, logits.argmax(0), palette, opacity)
    threshold = network.threshold if threshold is None else threshold
    found = instances(probability(network, logits), threshold)
    colours = [colour(number) for number in range(1, found.max() + 1)]
    # What is no instance has a number without colour, and stays as it is.
    numbers = np.where(found > 0, found - 1, len(colours))
    return plotting.overlay(frame, numbers, colours or [(0, 0, 0)], opacity)


def letterbox(picture, size, channels):
    """An image of any size in a frame: (C, H, W) uint8, and its place in it (left,
    top, width, height)."""
    mode, fill = ("RGB", MARGIN) if channels == 3 else ("L", MARGIN[1])
    picture = ImageOps.exif_transpose(picture).convert(mode)
    scale = min(size[1] / picture.width, size[0] / picture.height)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    left, top = (size[1] - width) // 2, (size[0] - height) // 2
    frame = Image.new(mode, (size[1], size[0]), fill)
    frame.paste(picture.resize((width, height), Image.Resampling.BILINEAR), (left, top))
    pixels = torch.from_numpy(np.array(frame))
    pixels = pixels[None] if channels == 1 else pixels.permute(2, 0, 1)
    return pixels, (left, top, width, height)


# --- in Jupyter and Colab


def widget(network):
    """A live network for a notebook: pictures, its answer by PyTorch, its switches.

    network: a `Network`, or the name of its chapter. Works with ipywidgets 7 and 8.
    Raises what `trained` and `read_manifest` do.
    """
    import ipywidgets as widgets

    network = find(network) if isinstance(network, str) else network
    manifest, model = read_manifest(network), trained(network)
    means, now = means_of(manifest), {}
    samples = [(sample["alt"], sample["file"]) for sample in manifest["samples"]]
    choice = widgets.Dropdown(options=samples, description="sample")
    upload = widgets.FileUpload(accept="image/*", multiple=False)
    gates = [
        widgets.Checkbox(value=True, description=label, indent=False)
        for label in network.gates
    ]
    fill = widgets.Dropdown(
        options=[("nothing", 0.0), ("its average", 1.0)], description="off leaves"
    )
    opacity = widgets.FloatSlider(0.55, min=0, max=1, step=0.05, description="opacity")
    threshold = widgets.FloatSlider(
        network.threshold, min=0, max=1, step=0.01, description="threshold"
    )
    said = widgets.HTML()
    picture = widgets.Image(format="png", layout={"max_width": "100%"})

    def take(file):
        try:
            with Image.open(file) as photo:
                size = manifest["frame"]
                now["frame"], now["box"] = letterbox(photo, size, manifest["channels"])
        except (OSError, SyntaxError, Image.DecompressionBombError):
            said.value = "This file is no picture that can be read."
        else:
            answer()

    def answer(*_):
        on = [float(gate.value) for gate in gates]
        begin = time.perf_counter()
        now["logits"] = run(model, network, now["frame"], means, on, fill.value)
        seconds = time.perf_counter() - begin
        said.value = f"Answered in {1000 * seconds:.0f} milliseconds."
        draw()

    def draw(*_):
        left, top, width, height = now["box"]
        answered = now["frame"], now["logits"]
        shown = paint(network, *answered, opacity.value, threshold.value)
        file = io.BytesIO()
        part = np.ascontiguousarray(shown[top : top + height, left : left + width])
        Image.fromarray(part).save(file, "png")
        picture.value = file.getvalue()

    def from_upload(change):
        if change["new"]:
            take(io.BytesIO(uploaded(change["new"])))

    choice.observe(lambda _: take(network.manifest.parent / choice.value), "value")
    upload.observe(from_upload, "value")
    for one in (*gates, fill):
        one.observe(answer, "value")
    sliders = [opacity, threshold] if network.output == "sigmoid" else [opacity]
    for one in sliders:
        one.observe(draw, "value")
    take(network.manifest.parent / choice.value)
    rows = [[choice, upload], [*gates, fill] if gates else [], sliders]
    wrap = {"flex_flow": "row wrap"}
    told = f"Trained on {network.domain}; anything else is outside of what it knows."
    return widgets.VBox(
        [picture, said, *(widgets.HBox(row, layout=wrap) for row in rows if row),
         widgets.HTML(f"{told} {manifest['terms']}")]
    )  # fmt: skip


def uploaded(value):
    """The bytes of the last file in an upload."""
    return list(contents(value).values())[-1]


# --- the command


def main(arguments):
    """Returns the exit status."""
    if len(arguments) != 1:
        print("say which: python -m utils.live unet")
        return 2
    try:
        network = find(arguments[0])
        manifest = write(network)
    except (ValueError, ImportError, OSError, runs.Stale, data.DataError) as error:
        print(error)
        return 1
    size = manifest["graph"]["bytes"] + manifest["weights"]["bytes"]
    print(f"{network.graph} and {network.manifest}: {size / 1e6:.1f} MB")
    print("make book copies them. If a cell of the page has changed, run it again.")
    return 0


if __name__ == "__main__":
    from utils import live  # the module of which a chapter's networks are

    sys.exit(live.main(sys.argv[1:]))
