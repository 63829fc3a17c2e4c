"""Your own images: from data sets to a network in use.

    sets = data.folder("photos", "masks")  # anything with train, val and test
    net = own.network(sets)
    own.train(net, sets, minutes=10, folder="own")
    print(own.scores(net, sets.test))
    own.predict_folder(net, "more photos", "own/predictions")
    own.export(net, sets, "own/network")

`python -m utils.own --help` does all of it from a terminal.
"""

import argparse
import functools
import sys
from pathlib import Path

from utils import data, own_network
from utils.checkpoints import replacing
from utils.own_export import export, lines, read
from utils.own_network import KINDS, STARTS
from utils.own_scores import scores, threshold, worst
from utils.own_training import duration, learning_curve, train
from utils.predict import predict_folder, predict_set

__all__ = [
    "export", "learning_curve", "lines", "network", "predict_folder", "predict_set",
    "read", "scores", "threshold", "train", "worst",
]  # fmt: skip
FAULTS = (
    ValueError, ImportError, OSError, data.DataError, MemoryError, FloatingPointError,
)  # fmt: skip


@functools.wraps(own_network.network)
def network(sets, *arguments, **options):
    net = own_network.network(sets, *arguments, **options)
    net.levels = getattr(sets, "levels", None)  # by which `predict_folder` scales
    return net


def main(arguments=None):
    """From two folders to a network: look, train, score, predict the test images,
    export. Returns the exit status."""
    told = arguments_of(arguments)
    out, classes = Path(told.out), told.classes and chosen_classes(told.classes)
    how = {
        "classes": classes, "groups": told.groups, "tile": told.tile,
        "size": told.size, "ignore": told.ignore,
    }  # fmt: skip
    try:
        for folder in filter(None, (told.images, told.masks)):
            if out.resolve().is_relative_to(Path(folder).resolve()):
                raise ValueError(f"--out {out} lies in {folder}: name one beside it")
        if (out / "plan.json").exists() and not told.resume:
            raise ValueError(
                f"{out} holds a training: --resume goes on with it, --out names "
                "another folder"
            )
        sets = data.folder(told.images, told.masks, **how)
        print(sets.report)
        net = network(sets, told.network, told.start)
        turns = {"flip": told.flip, "rotate": told.rotate}
        history = train(net, sets, told.minutes, told.steps, out, **turns)
        limit = threshold(net, sets.val) if len(sets.train.classes) == 2 else None
        found = scores(net, sets.test, getattr(sets, "groups", None), limit)
        report = as_report(sets, history, found, limit)
        print(report)
        predict_test(net, sets.test, told, out / "test", limit)
        export(net, sets, out / "network", threshold=limit)
        with replacing(out / "scores.txt") as file:
            file.write(f"{report}\n".encode())
    except FAULTS as error:
        print(error, file=sys.stderr)
        return 1
    print(
        f"\nAll is in {out}: test/masks, predictions of the held-out images; network, "
        "what onnxruntime and the live element open; training.pt, for --resume; "
        "scores.txt."
    )
    return 0


def predict_test(net, test, told, out, limit):
    """Predicts the test images: whole ones, where the data set holds tiles of them."""
    how = {"as_": ("mask", "coco"), "threshold": limit}
    if not told.tile:
        return predict_set(net, test, out, **how)
    names = {name.rpartition("@")[0] for name in test.names}
    return predict_folder(net, told.images, out, only=names, **how)


def arguments_of(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m utils.own", description=" ".join(main.__doc__.split()[:-4])
    )
    add = parser.add_argument
    add("images", metavar="IMAGES", help="the folder with the images")
    add("masks", metavar="MASKS", nargs="?", help="the folder of the masks, or a file")
    add("--classes", help="a labelling tool's file, or sky=0,house=255,tree=#3C1098")
    add("--network", default="deeplab", choices=list(KINDS))
    add("--start", default="imagenet", choices=STARTS, help="where weights come from")
    add("--minutes", type=float, default=10, help="of training")
    add("--steps", type=int, help="of training, instead of minutes")
    add("--flip", default="h", choices=("", "h", "v", "hv"), help="mirror along axes")
    add("--rotate", type=float, default=0.0, help="degrees, 180 for what has no up")
    add(
        "--groups",
        type=number_or_text,
        metavar="GROUPS",
        help="what not to part: folder, prefix, a number of neighbours, an expression",
    )
    add("--tile", type=int, help="cut images into tiles of so many pixels a side")
    add("--size", type=int, help="or resize them to so many pixels a side")
    add(
        "--ignore",
        type=listed,
        metavar="VALUES",
        help="values of masks that do not count: 255, or #000000,#9B9B9B, or others",
    )
    add("--out", default="own", help="the folder for all that is made")
    add("--resume", action="store_true", help="go on with the training in it")
    return parser.parse_args(arguments)


def chosen_classes(text):
    """The classes of the command line: {name: value} for "sky=0,house=#3C1098", a list
    for "sky,house", or the text, which then names a file."""
    if "=" in text:
        pairs = (pair.rpartition("=") for pair in text.split(","))
        return {name.strip(): number_or_text(value) for name, _, value in pairs}
    return [name.strip() for name in text.split(",")] if "," in text else text


def listed(text):
    return [number_or_text(value) for value in text.split(",")]


def number_or_text(text):
    return int(text) if text.strip().isdigit() else text.strip()


def as_report(sets, history, found, limit):
    """What a training came to, as text."""
    step, best = history.best
    names = sets.test.names or range(len(sets.test))
    lines = [
        f"{history.steps:,} steps in {duration(history.seconds)}; the best mean IoU on "
        f"val, {best:.3f}, is that of step {step:,}.",
        "",
        "On the test images:",
        str(found),
        f"Worst: {', '.join(str(names[number]) for number in worst(found, 3))}.",
    ]
    if limit is not None:
        lines.append(f"Threshold of {sets.test.classes[1]}, from val: {limit:.3f}.")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
