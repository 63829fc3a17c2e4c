"""A network of yours as three files that run without PyTorch.

    network.onnx         the graph, with scaling and normalisation in it
    network.safetensors  its weights, most of them rounded to 16 bits
    network.json         the manifest: classes, colours, size, hashes, samples

The live element of the book opens the three; `lines` says how onnxruntime does.
"""

import base64
import copy
import io
import json
import logging
import warnings
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from utils import export as graphs
from utils.checkpoints import replacing
from utils.live import MARGIN, as_picture, identity
from utils.own_network import Built, build
from utils.plotting import overlay
from utils.predict import fitting, labels_of, probabilities
from utils.runs import as_json

NAME = "network"
LARGEST = 513  # pixels a side of the frame, unless another is asked for

LINES = """\
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

folder = Path("{folder}")
told = json.loads((folder / "{name}.json").read_text(encoding="utf-8"))
session = onnxruntime.InferenceSession(folder / "{name}.onnx")
height, width = told["frame"]
{opening}.convert("{mode}").resize((width, height))
image = np.asarray(photo).reshape(1, height, width, -1).transpose(0, 3, 1, 2)
logits = session.run(["logits"], {{"image": image}})[0]  # (1, K, H, W)
labels = {labels}
Image.fromarray(labels).save("{mask}")
"""

DEEP = """\
photo = Image.open("{photo}")
if photo.mode[0] in "IF":  # over 8 bits: scaled like the images learnt from
    black, white = told["levels"]
    grey = np.asarray(photo, np.float32)
    grey = np.nan_to_num(grey, nan=black, posinf=white, neginf=black) - black
    grey = (grey * (255 / max(white - black, 1e-12))).round().clip(0, 255)
    photo = Image.fromarray(grey.astype(np.uint8))
photo = photo"""


def export(
    net, sets, folder, title=None, domain="images of your own", frame=None,
    threshold=None, samples=3,
):  # fmt: skip
    """Writes a network into a folder, for the live element and for onnxruntime; returns
    the manifest.

    sets: of `sets.test` a few images go into the manifest as `samples`, with the first
    one's prediction (0: none); `sets.levels`, where there are any, for pictures of over
    8 bits. title, domain: what the page says ("Trained on …"). frame: height and width
    of the images that the graph takes, by default those of the test images, at most 513
    a side. threshold: of two classes the second one is then shown as separate objects,
    with a slider.

    Raises ImportError without the packages; ValueError for a threshold with other than
    two classes, or a frame that the network does not take.
    """
    folder, one = Path(folder), sets.test
    levels = getattr(sets, "levels", None)
    if threshold is not None and len(one.classes) != 2:
        raise ValueError(f"a threshold is for two classes, not {len(one.classes)}")
    sides = frame or [min(side, LARGEST) for side in one.images.shape[-2:]]
    frame = tuple(fitting(net, side, down=frame is None) for side in sides)
    folder.mkdir(parents=True, exist_ok=True)
    graph, weights = folder / f"{NAME}.onnx", folder / f"{NAME}.safetensors"
    image = torch.zeros(1, net.built.channels, *frame, dtype=torch.uint8)
    on_cpu = copy.deepcopy(net).cpu()  # where graphs are made
    graphs.save_weights(on_cpu, weights)
    with without_hints():
        graphs.export(on_cpu, image, graph, weights=weights)
    chosen = torch.linspace(0, len(one) - 1, min(samples, len(one))).round().long()
    cuts = [image[:, : frame[0], : frame[1]] for image in one.images[chosen]]
    answer = None  # the prediction of the first one
    if cuts:
        shown = labels_of(probabilities(net, cuts[0]), threshold)
        answer = picture(overlay(cuts[0], shown, one.palette, 0.55), "prediction")
    manifest = {
        "name": NAME,
        "title": title or f"{net.built.kind} of your own",
        "domain": domain,
        "terms": terms(net, one),
        "frame": list(frame),
        "channels": net.built.channels,
        "levels": levels and list(levels),
        "margin": MARGIN,
        "classes": [
            {"name": name, "colour": list(map(int, colour))}
            for name, colour in zip(one.classes, one.palette)
        ],
        "output": "softmax" if threshold is None else "sigmoid",
        "thing": 1,
        "threshold": 0.5 if threshold is None else threshold,
        "gates": [],
        "samples": [
            picture(as_picture(cut), f"sample {number}")
            for number, cut in enumerate(cuts, 1)
        ],
        "picture": answer,
        "graph": identity(graph),
        "weights": identity(weights),
        "built": asdict(net.built),
    }
    with replacing(folder / f"{NAME}.json") as file:
        file.write(f"{as_json(manifest)}\n".encode())
    return manifest


@contextmanager
def without_hints():
    """PyTorch says of packages that are not needed that they are not there, and of its
    own insides that they will change."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(before)


def terms(net, dataset):
    """What the weights were learnt from, in one line."""
    start = {
        "imagenet": " Before that: ImageNet (EfficientNet-Lite0).",
        "book": f" Before that: the book's {net.built.kind}, by its own data's terms.",
        "none": "",
    }
    return f"Learnt from: {dataset.licence}.{start[net.built.start]}"


def picture(pixels, alt):
    """Pixels (H, W, 3) or (H, W) uint8 as the manifest holds a picture."""
    file, image = io.BytesIO(), Image.fromarray(np.ascontiguousarray(pixels))
    image.save(file, "webp", quality=80, method=6)
    coded = base64.b64encode(file.getvalue()).decode()
    return {
        "file": f"data:image/webp;base64,{coded}",
        "width": image.width,
        "height": image.height,
        "alt": alt,
    }


def read(folder):
    """The network that was exported to a folder, in eval mode on the CPU, with the
    levels that `predict_folder` scales pictures of over 8 bits by.

    ValueError where the folder holds none, or other weights than its manifest says.
    """
    from safetensors.torch import load_file

    file = Path(folder, f"{NAME}.json")
    if not file.is_file():
        raise ValueError(f"{folder} holds no exported network: export one to it")
    manifest = json.loads(file.read_text(encoding="utf-8"))
    weights = file.with_suffix(".safetensors")
    if not weights.is_file() or identity(weights) != manifest["weights"]:
        raise ValueError(f"{weights} is not the file of its manifest: export again")
    told = manifest["built"]
    told["classes"] = tuple(told["classes"])
    told["palette"] = tuple(map(tuple, told["palette"]))
    net = build(Built(**told), pretrained=False)
    net.load_state_dict(load_file(weights))
    levels = manifest.get("levels")
    net.levels = levels and tuple(levels)
    return net.eval()


def lines(folder, photo="photo.jpg", mask="mask.png"):
    """Python that runs an exported network by onnxruntime alone, as text.

    Where the network learnt from images of over 8 bits it scales such a photo alike.
    """
    manifest = json.loads(Path(folder, f"{NAME}.json").read_text(encoding="utf-8"))
    labels = 'logits[0].argmax(0).astype(np.uint8)  # numbers of told["classes"]'
    if manifest["output"] == "sigmoid":
        likely = "1 / (1 + np.exp(logits[0, 0] - logits[0, 1]))  # of the second class"
        labels = f'{likely}\nlabels = (labels > told["threshold"]).astype(np.uint8)'
    opening = DEEP if manifest.get("levels") else 'photo = Image.open("{photo}")'
    return LINES.format(
        folder=Path(folder).as_posix(), name=NAME, mask=mask, labels=labels,
        opening=opening.format(photo=photo),
        mode="L" if manifest["channels"] == 1 else "RGB",
    )  # fmt: skip
