"""The book's networks, on EfficientNet-Lite0, for the classes of your images."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from utils import chapters, encoders, runs, runtime

STARTS = "imagenet", "book", "none"
RECORDED = "deeplab", "pspnet"  # kinds whose chapter has kept its weights
# What kinds ask of `own_training.Plan`. Decoders without normalisation fail or learn
# little at four times the encoder's rate; their chapters train them at its own, too.
SETTINGS = {"refinenet": {"faster": 1.0}, "ternausnet": {"faster": 1.0}}


@dataclass(frozen=True)
class Built:
    """What a network was built as and for: `network.built`."""

    kind: str
    start: str
    channels: int  # of the images
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    width: int


class UNet(nn.Module):
    """A U-Net decoder on an encoder: nearest pixel, skip, two convolutions, five times.

    images (B, C, H, W), normalised, sides multiples of 32 -> logits (B, K, H, W).
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
        *skips, x = self.encoder(images)  # (B, 320, H/32, W/32)
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


def unet(classes, encoder, width):
    """A U-Net as in the first chapter, on the encoder: up to single pixels."""
    return UNet(classes, encoder(), [max(8, width * 2 >> k) for k in range(5)])


def deeplab(classes, encoder, width):
    """DeepLab v3+ as in the recorded run: much context, edges from stride 4."""
    return chapters.load("deeplab").DeepLabV3Plus(
        classes, encoder(output_stride=8, maps=4), (4, 8, 12), width,
        separable=True, dropout=0.1, align_corners=True,
    )  # fmt: skip


def pspnet(classes, encoder, width):
    """PSPNet as in the recorded run: the whole scene in a pyramid, coarse edges."""
    body = encoder(output_stride=8, maps=4)
    return chapters.load("pspnet").PSPNet(classes, body, width=width, aux=False)


def refinenet(classes, encoder, width):
    """Light-Weight RefineNet: quick, edges from stride 4."""
    return chapters.load("refinenet").RefineNet(
        classes, encoder(), width=width, deepest=width, light=True, dropout=0.1
    )


def ternausnet(classes, encoder, width):
    """The U-Net-like decoder of TernausNetV2, up to single pixels: fine detail."""
    chapter = chapters.load("ternausnetv2")
    return chapter.TernausNetV2(encoder(maps=4), classes=classes, filters=width // 8)


KINDS = {one.__name__: one for one in (deeplab, pspnet, refinenet, ternausnet, unet)}


def network(sets, kind="deeplab", start="imagenet", width=None, seed=0):
    """One of the book's networks with as many classes as the sets have.

    images (B, C, H, W), normalised -> logits (B, K, H, W), C and K those of
    `sets.train`. kind: "deeplab", "pspnet", "refinenet", or "ternausnet" for the finest
    detail. start: "imagenet", the encoder's weights from there; "book", those of the
    recorded run (deeplab and pspnet), but for the last layer, which is new; "none".
    width: channels of the decoder. seed: of the new layers.

    Raises ValueError for an unknown kind or start, and for "book" without a record.
    """
    if kind not in KINDS:
        raise ValueError(f"no network {kind!r}; there are: {', '.join(KINDS)}")
    if start not in STARTS:
        raise ValueError(f"no start {start!r}; there are: {', '.join(STARTS)}")
    one = sets.train
    width = width or runtime.choose(gpu=128, cpu=128, smoke=16)
    built = Built(kind, start, one.images.shape[1], one.classes, one.palette, width)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = build(built)
    return with_weights_of_the_book(net) if start == "book" else net


def build(built, pretrained=None):
    """The network of a `Built`; pretrained: of its encoder, by default unless its start
    is "none"."""
    pretrained = built.start != "none" if pretrained is None else pretrained

    def encoder(**options):
        return encoders.build("lite0", built.channels, pretrained=pretrained, **options)

    net = KINDS[built.kind](len(built.classes), encoder, built.width)
    net.built = built
    return net


def with_weights_of_the_book(net):
    """The network with what fits of its chapter's recorded weights; the last layer
    stays new, as its classes are others."""
    from safetensors.torch import load_file

    kind = net.built.kind
    run = getattr(chapters.load(kind), "MAIN", None) if kind in RECORDED else None
    if run is None or not runs.files(run)[1].is_file():
        raise ValueError(
            f"the book has no recorded weights of {kind}: take start='imagenet', or "
            f"one of the kinds {', '.join(RECORDED)}"
        )
    file, own = runs.files(run)[1], net.state_dict()
    if runs.sha256(file) != runs.read(run).weights["sha256"]:
        raise ValueError(f"{file} is damaged: fetch it again with git checkout")
    found = load_file(file)
    first, last = next(iter(own)), list(own)[-1].rpartition(".")[0]
    found[first] = encoders.widen(found[first].float(), net.built.channels)
    fits = {
        name: value
        for name, value in found.items()
        if name in own and value.shape == own[name].shape
        and not name.startswith(f"{last}.")
    }  # fmt: skip
    net.load_state_dict(own | fits)
    return net
