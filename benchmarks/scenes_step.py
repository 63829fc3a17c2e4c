"""A training step on street scenes against the usual PyTorch way, in turns.

Same encoder (EfficientNet-Lite0), size of images, batch and machine, in one run:

    usual  the head of the common PyTorch codes, with their widths and full
           convolutions; default memory format, dilation by the convolution itself, a
           plain loop
    same   the same network in this book's loop: channels last, depthwise dilation on
           interleaved grids
    page   the chapter's narrower head in this book's loop

Prints the medians and the ratios: above 1 means faster than the usual way.

    python -m benchmarks.scenes_step [pspnet] [deeplab] [refinenet] [gcn] [--batch 4]
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from utils import chapters, encoders, runtime
from utils.training import fit

CLASSES = 11


def pspnet(page):
    """semseg's head of 512 channels, or the chapter's."""
    encoder = encoders.build("lite0", output_stride=8, first_block="new", maps=4)
    return chapters.load("pspnet").PSPNet(CLASSES, encoder, width=128 if page else 512)


def deeplab(page):
    """VainF's head of 256 channels, or the chapter's."""
    encoder = encoders.build("lite0", output_stride=8, maps=4)
    return chapters.load("deeplab").DeepLabV3Plus(
        CLASSES, encoder, width=128 if page else 256, separable=page,
        decoder_convs=2 if page else 1, rates=(4, 8, 12) if page else (12, 24, 36),
    )  # fmt: skip


def refinenet(page):
    """Light-Weight RefineNet with the reference code's widths, or the chapter's."""
    width, encoder = (128 if page else 256), encoders.build("lite0")
    return chapters.load("refinenet").RefineNet(
        CLASSES, encoder, width=width, deepest=2 * width, light=True
    )


def gcn(page):
    """With deconvolutions as in the paper, or bilinear as in the chapter."""
    up = "bilinear" if page else "deconv"
    encoder = encoders.build("lite0", output_stride=8, maps=4)
    return chapters.load("gcn").GCN(CLASSES, encoder, 15, up=up)


NETWORKS = {"pspnet": pspnet, "deeplab": deeplab, "refinenet": refinenet, "gcn": gcn}


def loss(output, labels):
    parts = output if isinstance(output, tuple) else (output,)
    return sum(F.cross_entropy(part, labels) for part in parts)


def usual(model, images, labels, steps):
    optimizer = torch.optim.AdamW(model.parameters())
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(model(images), labels)
        value.backward()
        optimizer.step()
        value.item()


def ours(model, images, labels, steps):
    optimizer = torch.optim.AdamW(model.parameters())
    fit(model, lambda _: (images, labels), loss, optimizer, steps, progress=False)


def compare(build, images, labels, turns, steps):
    """Seconds a step: name -> one for each turn."""
    ways = {"usual": (usual, False), "same": (ours, False), "page": (ours, True)}
    models = {name: build(page).to(images.device) for name, (_, page) in ways.items()}
    times = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, (loop, _) in ways.items():
            encoders.SameConv2d.on_grids = loop is ours
            start = time.perf_counter()
            loop(models[name], images, labels, steps)
            if images.device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first turn warms up
                times[name].append((time.perf_counter() - start) / steps)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--height", type=int, default=129)
    parser.add_argument("--width", type=int, default=161)
    parser.add_argument("--steps", type=int, default=2, help="in one turn")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()

    device = runtime.device()
    images = torch.rand(options.batch, 3, options.height, options.width, device=device)
    labels = (images[:, 0] * CLASSES).long().clamp(max=CLASSES - 1)
    for network in options.networks:
        times = compare(NETWORKS[network], images, labels, options.turns, options.steps)
        print(f"{network}, batch {options.batch}, {options.height}x{options.width}")
        for name, values in times.items():
            middle, low, high = statistics.median(values), min(values), max(values)
            ratios = [u / v for u, v in zip(times["usual"], values)]
            ratio = statistics.median(ratios)
            print(f"  {name:6}{middle:.3f} s a step ({low:.3f}-{high:.3f})", end="")
            print(f"   usual / {name} = {ratio:.2f}")
    print(runtime.device_name())


if __name__ == "__main__":
    main()
