"""A training step of `utils.training.fit` against the plain loop of a tutorial.

Same network, loss, optimiser, batch size and machine, in turns, in one run. Prints
the ratio of the median times: above 1 means that `fit` is the faster one.

    python -m benchmarks.unet_step [--width 16] [--crop 192] [--batch 4]
"""

import argparse
import copy
import statistics
import time

import torch
from torch import nn

from utils import chapters, runtime
from utils.training import fit


def plain_loop(model, sample, loss, steps):
    """What most tutorials write: default memory format, no mixed precision."""
    optimizer = torch.optim.AdamW(model.parameters())
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(steps):
        images, labels = sample(generator)
        optimizer.zero_grad()
        value = loss(model(images), labels)
        value.backward()
        optimizer.step()
        value.item()


def our_loop(model, sample, loss, steps):
    optimizer = torch.optim.AdamW(model.parameters())
    fit(model, sample, loss, optimizer, steps, progress=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--crop", type=int, default=192)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5, help="in one turn")
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()

    device = runtime.device()
    shape = (options.batch, 1, options.crop, options.crop)
    images = torch.rand(shape, device=device)
    labels = (images[:, 0] > 0.5).long()
    model = chapters.load("unet").UNet(width=options.width, padded=True).to(device)
    loops = {"plain": plain_loop, "fit": our_loop}
    times = {name: [] for name in loops}
    for turn in range(options.turns + 1):
        for name, loop in loops.items():
            own = copy.deepcopy(model)
            start = time.perf_counter()
            loop(own, lambda _: (images, labels), nn.CrossEntropyLoss(), options.steps)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first turn warms up
                times[name].append((time.perf_counter() - start) / options.steps)
    for name, values in times.items():
        middle, low, high = statistics.median(values), min(values), max(values)
        print(f"{name:6} {middle:.4f} s a step ({low:.4f}-{high:.4f})")
    ratio = statistics.median(p / f for p, f in zip(times["plain"], times["fit"]))
    print(f"plain / fit = {ratio:.2f}  ({runtime.device_name()})")


if __name__ == "__main__":
    main()
