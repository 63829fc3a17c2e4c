"""A stranger's folder: the book's way against a plain U-Net, trained in turn here.

Same folder, split, encoder weights and minutes. The rival is what most people would
write: a U-Net decoder, Adam at its usual rate, cross-entropy, mirrored crops, the best
weights on val. Prints mean IoU on val and test, with intervals over images. Needs the
real data.

    python -m benchmarks.own_images [buildings] [landcover] [membranes] [--minutes 10]
"""

import argparse
import time

import torch
import torch.nn.functional as F

from utils import own, own_scores, runtime, strangers, training
from utils.data.augment import Augment

KINDS = {"buildings": "ternausnet", "landcover": "deeplab", "membranes": "ternausnet"}
SETTINGS = {"membranes": dict(softening=2.0)}  # chosen on val, after a tenth
SIDE, BATCH = 224, 8  # of the rival's crops


def plain(sets, minutes):
    """The rival, trained for some minutes."""
    net = own.network(sets, "unet").to(runtime.device())
    augment = Augment((SIDE, SIDE), flip="hv")

    def sample(generator):
        i = torch.randint(len(sets.train), (BATCH,), generator=generator)
        batch = sets.train.images[i], sets.train.labels[i]
        batch = [part.to(runtime.device()) for part in batch]
        pixels, labels = augment(*batch, generator=generator)
        return net.encoder.normalise(pixels), labels

    def loss(logits, labels):
        total = F.cross_entropy(
            logits.float(), labels.long(), ignore_index=255, reduction="sum"
        )
        return total / (labels != 255).sum().clamp(min=1)

    def fit(steps, **how):
        adam = torch.optim.Adam(net.parameters())
        return training.fit(net, sample, loss, adam, steps, power=0, **how)

    start = time.perf_counter()
    validate(net, sets)
    once = time.perf_counter() - start
    fit(1, progress=False)
    start = time.perf_counter()
    fit(3, progress=False)
    step = (time.perf_counter() - start) / 3
    steps = max(10, int((60 * minutes - 10 * once) / step))
    how = dict(evaluate=lambda net: validate(net, sets), every=steps // 10)
    return net, fit(steps, **how)


def validate(net, sets):
    return own_scores.scores(net, sets.val, resamples=0).mean


def ours(name, sets, minutes):
    net = own.network(sets, KINDS[name])
    told = dict(flip="hv", rotate=180.0, patience=None) | SETTINGS.get(name, {})
    return net, own.train(net, sets, minutes, **told)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=list(strangers.ASKED))
    parser.add_argument("--minutes", type=float, default=10)
    options = parser.parse_args()
    for name in options.names:
        sets = strangers.sets(name)
        for kind in (KINDS[name], "plain U-Net"):
            runtime.seed(0)
            train = (plain, (sets,)) if kind == "plain U-Net" else (ours, (name, sets))
            net, history = train[0](*train[1], options.minutes)
            found = own.scores(net, sets.test, groups=strangers.image_of)
            print(
                f"{name}, {kind}: {history.seconds / 60:.1f} minutes, {history.steps} "
                f"steps, mean IoU {history.best[1]:.3f} on val, {found.mean:.3f} "
                f"({found.low[-1]:.3f} to {found.high[-1]:.3f}) on test",
                flush=True,
            )


if __name__ == "__main__":
    main()
