"""DeepLab v3 and v3+: against second writings, counted by hand, atrous convolution."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_pspnet import (
    RESNET50,
    Near,
    Plain,
    assert_equal,
    conv_bn,
    count,
    frozen,
    overfit,
    stirred,
)
from torch import nn

from utils import chapters, encoders

KINDS = ("DeepLabV3", "DeepLabV3Plus")
OPTIONS = [("DeepLabV3", {"aux": True}), ("DeepLabV3Plus", {})]


@pytest.fixture(scope="module")
def deeplab():
    return chapters.load("deeplab")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def sketch(kind, *arguments, **options):
    """A network without memory behind its parameters: shapes, but no values."""
    with torch.device("meta"):
        return kind(*arguments, **options)


def rates_of(module):
    """Of all its convolutions with more than one tap, in order."""
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    return [m.dilation[0] for m in convolutions if m.kernel_size[0] > 1]


# Against second writings


def resize(x, like, aligned):
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=aligned)


def conv3x3(plain, x, rate, separable):
    if separable:  # first each channel for itself, then 1x1
        x, rate = plain.unit(x, rate=rate, groups=x.shape[1]), 1
    return plain.unit(x, rate=rate)


def aspp(plain, x, rates, separable):
    maps = [plain.unit(x)]
    maps += [conv3x3(plain, x, rate, separable) for rate in rates]
    scene = plain.unit(x.mean((2, 3), keepdim=True))
    return plain.unit(torch.cat([*maps, resize(scene, x, False)], 1))


def v3(plain, images, features, rates, separable=False, aligned=False):
    """Logits and auxiliary logits, with torchvision's head."""
    *_, middle, last = features
    x = aspp(plain, last, rates, separable)
    main = plain.classifier(conv3x3(plain, x, 1, separable))
    extra = plain.classifier(plain.unit(middle))
    assert not plain.tensors  # the network has nothing else
    return resize(main, images, aligned), resize(extra, images, aligned)


def v3_plus(plain, images, features, rates, convs, separable=False, aligned=False):
    """Logits. features: the one of stride 4 comes first."""
    deep = aspp(plain, features[-1], rates, separable)
    low = plain.unit(features[0])
    x = torch.cat([low, resize(deep, low, aligned)], 1)
    for _ in range(convs):
        x = conv3x3(plain, x, 1, separable)
    logits = plain.classifier(x)
    assert not plain.tensors
    return resize(logits, images, aligned)


def test_v3_equals_torchvision_s_network_in_plain_functions(deeplab):
    network = stirred(deeplab.DeepLabV3(5, aux=True))
    images, plain = torch.randn(2, 3, 65, 73), Plain(network)
    with torch.inference_mode():
        features = plain.resnet50(
            images,
            strides=(1, 2, 1, 1),
            rates=([1] * 3, [1] * 4, [1] + [2] * 5, [2, 4, 4]),
        )
        main, extra = v3(plain, images, features, (12, 24, 36))
        assert_equal(network(images), main)
        found = frozen(network)(images)
    assert_equal(found[0], main)
    assert_equal(found[1], extra)


def test_v3_plus_equals_the_common_form_in_plain_functions(deeplab):
    network = stirred(deeplab.DeepLabV3Plus(5, decoder_convs=1))
    images, plain = torch.randn(1, 3, 97, 113), Plain(network)
    with torch.inference_mode():
        features = plain.resnet50(
            images,
            strides=(1, 2, 2, 1),
            rates=([1] * 3, [1] * 4, [1] * 6, [1, 2, 2]),
        )
        expected = v3_plus(plain, images, features, (6, 12, 18), convs=1)
        assert_equal(network(images), expected)


# Behind an encoder without dilation or depth, maps can be larger than every rate.
WIDE = (2, 3, 290, 322)


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("aligned", [False, True])
def test_v3_behind_another_encoder(deeplab, separable, aligned):
    options = dict(width=8, separable=separable, align_corners=aligned)
    network = stirred(deeplab.DeepLabV3(3, Near(), aux=True, **options))
    images, plain = torch.randn(WIDE), Plain(network)
    with torch.inference_mode():
        expected = v3(
            plain, images, plain.near(images), (12, 24, 36), separable, aligned
        )
        found = frozen(network)(images)
    assert_equal(found[0], expected[0])
    assert_equal(found[1], expected[1])


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("convs", [1, 2])
def test_v3_plus_behind_another_encoder(deeplab, separable, aligned, convs):
    options = dict(width=8, low_level=6, separable=separable, align_corners=aligned)
    network = deeplab.DeepLabV3Plus(3, Near(), decoder_convs=convs, **options)
    stirred(network)
    images, plain = torch.randn(WIDE), Plain(network)
    with torch.inference_mode():
        features = plain.near(images)
        expected = v3_plus(
            plain, images, features, (6, 12, 18), convs, separable, aligned
        )
        assert_equal(network(images), expected)


# Parameters


def aspp_parameters(channels, width=256, rates=3, kernel=conv_bn):
    """The branches, of which two are 1x1, and the projection of them all."""
    dilated = rates * kernel(channels, width, 3)
    return 2 * conv_bn(channels, width) + dilated + conv_bn((rates + 2) * width, width)


def separable_bn(inputs, outputs, side):
    """Parameters of a depthwise and a 1x1 convolution, each with its batch norm."""
    return side**2 * inputs + 2 * inputs + inputs * outputs + 2 * outputs


def test_v3_has_as_many_parameters_as_torchvision_s(deeplab):
    """Published: `num_params` of its deeplabv3_resnet50, with the auxiliary head."""
    auxiliary = conv_bn(1024, 256, 3) + (256 + 1) * 21
    head = aspp_parameters(2048) + conv_bn(256, 256, 3) + (256 + 1) * 21
    assert RESNET50 + head + auxiliary == 42_004_074
    assert count(sketch(deeplab.DeepLabV3, 21, aux=True)) == 42_004_074
    assert count(sketch(deeplab.DeepLabV3, 21)) == 42_004_074 - auxiliary


@pytest.mark.parametrize("classes", [2, 21])
@pytest.mark.parametrize("separable, kernel", [(False, conv_bn), (True, separable_bn)])
@pytest.mark.parametrize("convs", [1, 2])
def test_number_of_parameters_of_v3_plus(deeplab, classes, separable, kernel, convs):
    network = sketch(
        deeplab.DeepLabV3Plus, classes, separable=separable, decoder_convs=convs
    )
    decoder = kernel(48 + 256, 256, 3) + (convs - 1) * kernel(256, 256, 3)
    assert {name: count(part) for name, part in network.named_children()} == {
        "encoder": RESNET50,
        "aspp": aspp_parameters(2048, kernel=kernel),
        "low_level": conv_bn(256, 48),
        "decoder": decoder,
        "classifier": (256 + 1) * classes,
    }


def test_number_of_parameters_of_separable_v3(deeplab):
    network = sketch(deeplab.DeepLabV3, 21, separable=True)
    aspp = aspp_parameters(2048, kernel=separable_bn)
    head = separable_bn(256, 256, 3) + (256 + 1) * 21
    assert count(network) == RESNET50 + aspp + head


# Rates and strides


@pytest.mark.parametrize(
    "kind, stride, rates",
    [("DeepLabV3", 8, [12, 24, 36]), ("DeepLabV3Plus", 16, [6, 12, 18])],
)
@pytest.mark.parametrize("separable", [False, True])
def test_output_stride_and_rates(deeplab, kind, stride, rates, separable):
    network = sketch(getattr(deeplab, kind), 2, separable=separable)
    assert network.encoder.strides[-1] == stride
    assert rates_of(network.aspp) == rates
    with torch.device("meta"):
        last = network.encoder(torch.empty(1, 3, 513, 513))[-1]
        assert network.aspp.eval()(last).shape == (1, 256, *2 * [512 // stride + 1])


@pytest.mark.parametrize(
    "first_block, rates", [("new", [2, 4, 8]), ("previous", [1, 4, 8])]
)
def test_multi_grid(deeplab, first_block, rates):
    """Rates of the paper, twice (1, 2, 4), and those where the first block keeps 1."""
    with torch.device("meta"):
        encoder = encoders.build(
            "resnet50", output_stride=16, multi_grid=(1, 2, 4), first_block=first_block
        )
        network = deeplab.DeepLabV3(4, encoder, rates=(6, 12, 18)).eval()
        assert rates_of(network.encoder.layer4) == rates
        assert set(rates_of(network.encoder.layer3)) == {1}
        assert rates_of(network.aspp) == [6, 12, 18]
        assert network(torch.empty(1, 3, 65, 98)).shape == (1, 4, 65, 98)


# Atrous convolution


def atrous(x, weight, rate):
    """y[o, i, j] = sum of weight[o, c, p, q] x[c, i + rate (p - 1), j + rate (q - 1)],
    for x (C, H, W) that is zero outside."""
    (channels, height, width), y = x.shape, np.zeros((len(weight), *x.shape[1:]))
    for i in range(height):
        for j in range(width):
            for p in range(3):
                for q in range(3):
                    row, column = i + rate * (p - 1), j + rate * (q - 1)
                    if 0 <= row < height and 0 <= column < width:
                        y[:, i, j] += weight[:, :, p, q] @ x[:, row, column]
    return y


@pytest.mark.parametrize("rate", [1, 2, 3])
def test_atrous_convolution_from_its_definition(deeplab, rate):
    convolution = deeplab.conv_bn_relu(3, 4, 3, rate)[0].double()
    x = torch.randn(1, 3, 6, 7, dtype=torch.float64)
    expected = atrous(x[0].numpy(), convolution.weight.detach().numpy(), rate)
    assert np.allclose(convolution(x)[0].detach(), expected, atol=1e-12)


@pytest.mark.parametrize("rate", [1, 2, 3])
def test_separable_atrous_convolution_from_its_definition(deeplab, rate):
    layers = deeplab.conv_bn_relu(3, 4, 3, rate, separable=True)
    depthwise, pointwise = (m for m in layers if isinstance(m, nn.Conv2d))
    x = torch.randn(1, 3, 6, 7)
    expected = np.concatenate(
        [
            atrous(channel.numpy(), kernel.detach().numpy(), rate)
            for channel, kernel in zip(x[0].split(1), depthwise.weight.split(1))
        ]
    )
    assert np.allclose(depthwise(x)[0].detach(), expected, atol=1e-5)
    assert pointwise.weight.shape == (4, 3, 1, 1)


@pytest.mark.parametrize("rate", [6, 7, 40])
def test_a_rate_as_large_as_the_map_leaves_the_middle_weight(deeplab, rate):
    convolution = deeplab.conv_bn_relu(3, 4, 3, rate)[0]
    x = torch.randn(1, 3, 6, 6)
    middle = convolution.weight[:, :, 1:2, 1:2]
    assert torch.allclose(convolution(x), F.conv2d(x, middle), atol=1e-6)


def test_a_smaller_rate_does_not(deeplab):
    convolution = deeplab.conv_bn_relu(3, 4, 3, 5)[0]
    x = torch.randn(1, 3, 6, 6)
    far = convolution(x) - F.conv2d(x, convolution.weight[:, :, 1:2, 1:2])
    assert (far.abs() > 1e-4)[0].any(0).sum() == 6 * 6 - 4 * 4  # only near the border


# Shapes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("aligned", [False, True])
def test_any_size_and_a_batch_of_one_in_eval(deeplab, kind, aligned):
    network = sketch(getattr(deeplab, kind), 4, align_corners=aligned).eval()
    for size in [(33, 33), (65, 98), (100, 47), (513, 513)]:
        images = torch.empty(1, 3, *size, device="meta")
        assert network(images).shape == (1, 4, *size)


@pytest.mark.parametrize("kind", KINDS)
def test_one_image_in_training_is_refused_with_advice(deeplab, kind):
    network = getattr(deeplab, kind)(2, Near(), width=8).train()
    with pytest.raises(ValueError, match="single image.* enlarge the batch.* eval()"):
        network(torch.randn(1, 3, 40, 57))


def test_auxiliary_logits_come_in_training_only_and_only_where_wanted(deeplab):
    images = torch.randn(2, 3, 40, 57)
    network = deeplab.DeepLabV3(4, Near(), width=8, aux=True)
    main, extra = network.train()(images)
    assert main.shape == extra.shape == (2, 4, 40, 57)
    assert network.eval()(images).shape == (2, 4, 40, 57)
    for plain in (
        deeplab.DeepLabV3(4, Near(), width=8),
        deeplab.DeepLabV3Plus(4, Near(), width=8),
    ):
        assert plain.train()(images).shape == (2, 4, 40, 57)


# What reaches what


@pytest.mark.parametrize("kind", KINDS)
def test_image_pooling_reaches_every_pixel(deeplab, kind):
    network = stirred(getattr(deeplab, kind)(2, Near(), rates=(2,), width=16))
    images = torch.randn(1, 3, 96, 128, requires_grad=True)
    network(images)[0, :, 0, 0].sum().backward()
    assert (images.grad[0].abs().sum(0) > 0).all()


@pytest.mark.parametrize("kind, options", OPTIONS)
@pytest.mark.parametrize("separable", [False, True])
def test_gradients_reach_every_parameter(deeplab, kind, options, separable):
    network = getattr(deeplab, kind)(
        3,
        encoders.build("lite0", output_stride=16),
        rates=(1, 2, 3),
        width=16,
        separable=separable,
        **options,
    )
    output = frozen(stirred(network))(torch.randn(2, 3, 65, 81))
    outputs = output if options else (output,)
    sum(logits.square().sum() for logits in outputs).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


# Training


@pytest.mark.parametrize("kind, options", OPTIONS)
def test_it_overfits_two_images(deeplab, kind, options):
    network = getattr(deeplab, kind)(
        3,
        encoders.build("lite0", output_stride=16),
        rates=(1, 2, 3),
        width=16,
        dropout=0.0,
        **options,
    )
    assert overfit(network) > 0.95
