"""Robotic instruments: four networks against a second writing of the reference code,
counted by hand, what they refuse, and the losses from their formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from test_pspnet import Plain, assert_equal, count, stirred
from torch import nn

from utils import chapters, encoders, metrics
from utils.data import instruments as frames

NAMES = ["ternausnet11", "ternausnet16", "LinkNet34", "UNet"]
ALPHAS = [0.0, 0.3, 0.5, 1.0]


@pytest.fixture(scope="module")
def book():
    return chapters.load("instruments")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def shaken(network):
    """In eval, with weights that keep the scale of the maps, and biases: fresh ones
    let what comes from the deepest maps fade away."""
    for module in stirred(network).modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.1)
    return network


# Against a second writing


class Reference(Plain):
    """The reference code's networks; tensors are those of the network themselves, so
    that gradients reach them."""

    def __init__(self, network):
        super().__init__(network)
        state = network.state_dict(keep_vars=True).items()
        self.tensors = [t for name, t in state if not name.endswith("batches_tracked")]
        self.training = network.training

    def bn(self, x):
        scale, shift, mean, variance = self.take(4)
        if self.training:  # of this batch, and nothing is kept
            mean = variance = None
        return F.batch_norm(x, mean, variance, scale, shift, self.training)

    def padded(self, x):
        weight, bias = self.take(2)
        return F.relu(F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2))

    def twice(self, x):
        weight, bias = self.take(2)
        assert weight.shape[2:] == (4, 4)
        return F.conv_transpose2d(x, weight, bias, stride=2, padding=1)

    def last(self, logits):
        assert not self.tensors  # the network has nothing else
        return logits

    def vgg(self, x, convolutions):
        maps = []
        for stage, number in enumerate(convolutions):
            if stage:
                x = F.max_pool2d(x, 2)
            for _ in range(number):
                x = self.padded(x)
            maps.append(x)
        return maps

    def block(self, x):
        return F.relu(self.twice(self.padded(x)))

    def ternausnet(self, images, convolutions):
        conv1, conv2, conv3, conv4, conv5 = self.vgg(images, convolutions)
        x = self.block(F.max_pool2d(conv5, 2))
        for skip in (conv5, conv4, conv3, conv2):
            x = self.block(torch.cat([x, skip], 1))
        x = self.padded(torch.cat([x, conv1], 1))
        return self.last(self.classifier(x))

    def ternausnet11(self, images):
        return self.ternausnet(images, (1, 1, 2, 2, 2))

    def ternausnet16(self, images):
        return self.ternausnet(images, (2, 2, 3, 3, 3))

    def basic(self, x, stride, short_cut):
        y = self.bn(self.conv(self.unit(x, stride)))
        return F.relu(y + (self.bn(self.conv(x, stride)) if short_cut else x))

    def resnet34(self, x):
        x = F.max_pool2d(self.unit(x, 2), 3, 2, padding=1)
        maps = []
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for k in range(blocks):
                first = k == 0 and stage > 0
                x = self.basic(x, 2 if first else 1, first)
            maps.append(x)
        return maps

    def link(self, x):
        x = F.relu(self.bn(self.classifier(x)))
        x = F.relu(self.bn(self.twice(x)))
        return F.relu(self.bn(self.classifier(x)))

    def LinkNet34(self, images):
        e1, e2, e3, e4 = self.resnet34(images)
        d4 = self.link(e4) + e3
        d3 = self.link(d4) + e2
        d2 = self.link(d3) + e1
        x = self.link(d2)
        x = F.relu(F.conv_transpose2d(x, *self.take(2), stride=2))
        x = F.relu(F.conv2d(x, *self.take(2)))
        return self.last(F.conv2d(x, *self.take(2), padding=1))

    def UNet(self, images):
        x, maps = images, []
        for shrink in (1, 2, 2, 2, 4):
            x = F.max_pool2d(x, shrink) if shrink > 1 else x
            x = self.padded(self.padded(x))
            maps.append(x)
        # The way up is listed from its finest level: four convolutions' tensors each.
        levels = [self.take(4) for _ in range(4)]
        for level, grow in ((3, 4), (2, 2), (1, 2), (0, 2)):
            x = x.repeat_interleave(grow, 2).repeat_interleave(grow, 3)
            self.tensors = levels[level] + self.tensors
            x = self.padded(self.padded(torch.cat([x, maps[level]], 1)))
        return self.last(self.classifier(x))


@pytest.mark.parametrize("batch, size", [(1, (96, 64)), (2, (64, 96))])
@pytest.mark.parametrize("name", NAMES)
def test_it_equals_the_reference_code_s_network_in_plain_functions(
    book, name, batch, size
):
    network = shaken(getattr(book, name)(classes=3))
    images = torch.randn(batch, 3, *size)
    with torch.inference_mode():
        expected = getattr(Reference(network), name)(images)
        assert_equal(network(images), expected)


@pytest.mark.parametrize(
    "name, batch", [("ternausnet11", 1), ("LinkNet34", 2), ("UNet", 2)]
)
def test_so_do_its_gradients_in_training(book, name, batch):
    network = shaken(getattr(book, name)()).double().train()
    images = torch.randn(batch, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    wanted = [images, *network.parameters()]
    expected = getattr(Reference(network), name)(images)
    found = network(images)
    assert_equal(found, expected)
    weights = torch.randn_like(found)
    pairs = zip(
        torch.autograd.grad(found, wanted, weights),
        torch.autograd.grad(expected, wanted, weights),
        strict=True,
    )
    for one, other in pairs:
        assert (one - other).abs().max() <= 1e-8 * (1 + other.abs().max())


@pytest.mark.parametrize("batch", [1, 2])
def test_behind_lite0_it_equals_its_parts(book, batch):
    """The last map has half of the size: one block of the decoder more."""
    network = shaken(book.TernausNet(encoders.build("lite0"), 3, filters=4))
    plain = Reference(network)
    encoder = Reference(network.encoder)
    plain.take(len(encoder.tensors))
    images = torch.randn(batch, 3, 64, 128)
    with torch.inference_mode():
        maps = network.encoder(images)
        x = plain.block(F.max_pool2d(maps[-1], 2))
        for skip in maps[::-1]:
            x = plain.block(torch.cat([x, skip], 1))
        expected = plain.last(plain.classifier(x))
        assert_equal(network(images), expected)


@pytest.mark.parametrize("batch", [1, 2])
def test_linknet_behind_lite0_equals_its_parts(book, batch):
    """The finest map is left out, and maps are added."""
    network = shaken(book.LinkNet(encoders.build("lite0"), 3))
    plain = Reference(network)
    plain.take(len(Reference(network.encoder).tensors))
    images = torch.randn(batch, 3, 64, 96)
    with torch.inference_mode():
        _, *finer, x = network.encoder(images)
        for skip in (*finer[::-1], 0):
            x = plain.link(x) + skip
        x = F.relu(F.conv_transpose2d(x, *plain.take(2), stride=2))
        x = F.relu(F.conv2d(x, *plain.take(2)))
        expected = plain.last(F.conv2d(x, *plain.take(2), padding=1))
        assert_equal(network(images), expected)
        assert expected.shape == (batch, 3, 64, 96)
        with pytest.raises(ValueError, match="sides must be multiples of 32"):
            network(images[..., :80])


def test_linknet34_is_linknet_behind_resnet34(book):
    """With the parameters, by name and shape, that its weights were saved with."""
    with torch.device("meta"):
        own = book.LinkNet34(2)
        other = book.LinkNet(encoders.build("resnet34"), 2)
    assert isinstance(own, book.LinkNet)
    assert list(own.state_dict()) == list(other.state_dict())
    assert own.decoder[0][0].weight.shape == (128, 512, 1, 1)


# Parameters


def conv(inputs, outputs, kernel):
    """A convolution, transposed or not, with its bias."""
    return kernel**2 * inputs * outputs + outputs


def block(inputs, middle, outputs):
    return conv(inputs, middle, 3) + conv(middle, outputs, 4)


def link(inputs, outputs):
    quarter = inputs // 4
    squeeze = conv(inputs, quarter, 1) + 2 * quarter
    larger = conv(quarter, quarter, 4) + 2 * quarter
    return squeeze + larger + conv(quarter, outputs, 1) + 2 * outputs


# Of torchvision's numbers, without what comes after the last map.
FULLY_CONNECTED = (512 * 49 + 1) * 4096 + 4097 * 4096 + 4097 * 1000
VGG11 = 132_863_336 - FULLY_CONNECTED
VGG16 = 138_357_544 - FULLY_CONNECTED
RESNET34 = 21_797_672 - (512 + 1) * 1000

# What each block of the decoder receives, has inside and gives, the deepest first.
BLOCKS_11 = [
    (512, 512, 256),
    (512 + 256, 512, 256),
    (512 + 256, 512, 128),
    (256 + 128, 256, 64),
    (128 + 64, 128, 32),
]
BLOCKS_16 = [
    (512, 512, 256),
    (512 + 256, 512, 256),
    (512 + 256, 512, 256),
    (256 + 256, 256, 64),
    (128 + 64, 128, 32),
]
# Behind Lite0, whose maps have 16, 24, 40, 112 and 320 channels.
BLOCKS_LITE0 = [
    (320, 512, 256),
    (320 + 256, 512, 256),
    (112 + 256, 512, 256),
    (40 + 256, 256, 64),
    (24 + 64, 128, 32),
    (16 + 32, 64, 32),
]


def by_hand(name, classes):
    if name == "LinkNet34":
        links = [(512, 256), (256, 128), (128, 64), (64, 64)]
        head = conv(64, 32, 3) + conv(32, 32, 3) + conv(32, classes, 2)
        return RESNET34 + sum(link(*pair) for pair in links) + head
    if name == "UNet":
        down = [(3, 32), (32, 64), (64, 128), (128, 256), (256, 512)]
        up = [(32 + 64, 32), (64 + 128, 64), (128 + 256, 128), (256 + 512, 256)]
        pairs = sum(conv(i, o, 3) + conv(o, o, 3) for i, o in down + up)
        return pairs + conv(32, classes, 1)
    vgg, blocks = {
        "ternausnet11": (VGG11, BLOCKS_11), "ternausnet16": (VGG16, BLOCKS_16)
    }[name]  # fmt: skip
    last = conv(64 + 32, 32, 3) + conv(32, classes, 1)
    return vgg + sum(block(*sizes) for sizes in blocks) + last


@pytest.mark.parametrize("classes", [1, 8])
@pytest.mark.parametrize("name", NAMES)
def test_number_of_parameters(book, name, classes):
    with torch.device("meta"):
        assert count(getattr(book, name)(classes)) == by_hand(name, classes)


@pytest.mark.parametrize(
    "name, expected",
    [("ternausnet11", VGG11), ("ternausnet16", VGG16), ("LinkNet34", RESNET34)],
)
def test_the_encoder_is_the_published_one_without_its_classifier(book, name, expected):
    with torch.device("meta"):
        assert count(getattr(book, name)().encoder) == expected


def shapes(network):
    """(receives, has inside, gives) of the blocks of a TernausNet's decoder."""
    found = []
    for part in (network.center, *network.decoder):
        convs = [m for m in part.modules() if hasattr(m, "kernel_size")]
        if len(convs) == 2:
            first, second = convs
            assert isinstance(second, nn.ConvTranspose2d)
            found.append((first.in_channels, first.out_channels, second.out_channels))
    return found


def test_channels_of_the_decoders(book):
    with torch.device("meta"):
        assert shapes(book.ternausnet11()) == BLOCKS_11
        assert shapes(book.ternausnet16()) == BLOCKS_16
        behind_lite0 = book.TernausNet(encoders.build("lite0"))
        assert shapes(behind_lite0) == BLOCKS_LITE0
        quarter = shapes(book.TernausNet(encoders.build("lite0"), filters=8))
    assert [b[1:] for b in quarter] == [(m // 4, o // 4) for _, m, o in BLOCKS_LITE0]
    assert count(behind_lite0.final) == conv(32, 1, 1)


def test_filters_scale_the_decoder_only(book):
    with torch.device("meta"):
        network = book.ternausnet11(filters=4)
        assert count(network.encoder) == VGG11
        assert network.final.in_channels == network.decoder[-1][0].out_channels == 4
        assert book.ternausnet16(filters=4).final.in_channels == 4
        unet = book.UNet(in_channels=2, filters=4)
    assert unet.down[0][0][0].in_channels == 2
    widths = [level[-1][0].out_channels for level in (*unet.down, *unet.up)]
    assert widths == [4, 8, 16, 32, 64, 4, 8, 16, 32]


# Shapes


SIZES = [(32, 64), (64, 64), (64, 160), (96, 64), (128, 96), (1024, 1280)]
REFUSED = [(48, 64), (64, 80), (65, 96), (96, 127), (63, 63)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [1, 8])
def test_logits_have_the_size_of_the_images(book, name, classes):
    """The challenge's frames among them."""
    with torch.device("meta"):
        network = getattr(book, name)(classes).eval()
        for batch, size in zip((1, 1, 2, 1, 3, 1), SIZES, strict=True):
            logits = network(torch.empty(batch, 3, *size))
            assert logits.shape == (batch, classes, *size)


@pytest.mark.parametrize("name", NAMES)
def test_sizes_that_32_does_not_divide_are_refused(book, name):
    with torch.device("meta"):
        network = getattr(book, name)()
        for height, width in REFUSED:
            message = f"of {height} x {width}: sides must be multiples of 32; .*pad"
            with pytest.raises(ValueError, match=message):
                network(torch.empty(1, 3, height, width))


@pytest.mark.parametrize("classes", [1, 8])
def test_behind_lite0_the_sides_are_multiples_of_64(book, classes):
    with torch.device("meta"):
        network = book.TernausNet(encoders.build("lite0"), classes).eval()
        assert network.multiple == 64
        for size in [(64, 64), (64, 192), (128, 64), (448, 576)]:
            logits = network(torch.empty(1, 3, *size))
            assert logits.shape == (1, classes, *size)
        for size in [(96, 64), (64, 96), (96, 96), (64, 65)]:
            with pytest.raises(ValueError, match="sides must be multiples of 64"):
                network(torch.empty(1, 3, *size))


def test_the_smallest_image_of_the_unet(book):
    assert book.UNet(filters=2)(torch.randn(1, 3, 32, 32)).shape == (1, 1, 32, 32)


@pytest.mark.parametrize("n", [1, 10, 33])
def test_sizes_in_the_head_of_linknet(book, n):
    with torch.device("meta"):
        x, sides = torch.empty(1, 64, n, n), []
        for layer in book.LinkNet34().head:
            x = layer(x)
            if not isinstance(layer, nn.ReLU):
                sides.append(x.shape[-1])
    assert sides == [2 * n + 1, 2 * n - 1, 2 * n]


def test_one_image_in_training_is_fine(book):
    for name in ("LinkNet34", "UNet"):
        network = getattr(book, name)().train()
        assert network(torch.randn(1, 3, 64, 96)).isfinite().all()
    network = book.TernausNet(encoders.build("lite0"), filters=4).train()
    assert network(torch.randn(1, 3, 64, 128)).isfinite().all()


# What reaches what


def test_the_transposed_convolution_draws_no_checkerboard(book):
    """Of a map that is the same everywhere, weights that are the same make one that
    is too, but for its border."""
    module = book.DecoderBlock(2, 3, 1)
    for parameter in module.parameters():
        nn.init.ones_(parameter)
    grown = module(torch.ones(1, 2, 6, 8))
    assert grown.shape == (1, 1, 12, 16)
    inside = grown[..., 3:-3, 3:-3]
    assert (inside == inside[0, 0, 0, 0]).all()


@pytest.mark.parametrize("name", ["LinkNet34", "UNet", "lite0"])
def test_gradients_reach_every_parameter(book, name):
    if name == "lite0":
        network = book.TernausNet(encoders.build("lite0"), 3, filters=4)
    else:
        network = getattr(book, name)(3)
    shaken(network)(torch.randn(2, 3, 64, 64)).square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), key


# Pre-trained weights


@pytest.mark.parametrize(
    "name, encoder",
    [("ternausnet11", "vgg11"), ("ternausnet16", "vgg16"), ("LinkNet34", "resnet34")],
)
def test_weights_are_had_when_asked_for_and_are_the_encoder_s(
    book, monkeypatch, name, encoder
):
    with torch.device("meta"):
        sketch = encoders.build(encoder).state_dict()
    state = {key: torch.rand(t.shape).to(t.dtype) for key, t in sketch.items()}
    state["classifier.6.bias"] = state["fc.bias"] = torch.zeros(1000)
    asked = []

    def weights(of):
        asked.append(of)
        return dict(state)

    monkeypatch.setattr(encoders, "pretrained_weights", weights)
    getattr(book, name)()
    assert asked == []
    network = getattr(book, name)(2, pretrained=True)
    assert asked == [encoder]
    for key, value in network.encoder.state_dict().items():
        assert torch.equal(value, state[key]), key


# Losses


def log_jaccard(p, t):
    p, t = p.double(), t.double()
    common = (p * t).sum()
    return torch.log((common + 1e-15) / (p.sum() + t.sum() - common + 1e-15))


def close(found, expected):
    found, expected = (torch.as_tensor(value).item() for value in (found, expected))
    return math.isclose(found, expected, rel_tol=1e-5, abs_tol=1e-6)


def test_binary_loss_by_hand(book):
    """Two of four pixels are instrument, all probabilities one half: H = log 2, and
    J = 1 / (2 + 2 - 1)."""
    logits, labels = torch.zeros(1, 1, 2, 2), torch.tensor([[[0, 0], [3, 7]]])
    assert close(book.binary_loss(logits, labels), 0.5 * math.log(6))
    expected = 0.8 * math.log(2) + 0.2 * math.log(3)
    assert close(book.binary_loss(logits, labels, 0.2), expected)


def test_class_loss_by_hand(book):
    """Three classes with 1, 1 and 2 pixels and probabilities 1/4, 1/4, 1/2: background
    counts, and the logarithms are summed up."""
    probabilities = torch.tensor([0.25, 0.25, 0.5]).view(1, 3, 1, 1)
    logits = probabilities.log().expand(1, 3, 2, 2)
    labels = torch.tensor([[[0, 1], [2, 2]]])
    entropy = (2 * math.log(4) + 2 * math.log(2)) / 4
    small = 0.25 / (1 + 1 - 0.25)
    large = 1 / (2 + 2 - 1)
    jaccard = 2 * math.log(small) + math.log(large)
    assert close(book.class_loss(logits, labels), 0.5 * entropy - 0.5 * jaccard)
    expected = 0.8 * entropy - 0.2 * jaccard
    assert close(book.class_loss(logits, labels, 0.2), expected)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_binary_loss_from_its_formula(book, alpha):
    """J is of the whole batch, not a mean over its images."""
    logits, labels = torch.randn(3, 1, 8, 9), torch.randint(0, 8, (3, 8, 9))
    labels[0] = 0
    p, t = logits[:, 0].double().sigmoid(), (labels != 0).double()
    entropy = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
    expected = (1 - alpha) * entropy - alpha * log_jaccard(p, t)
    assert close(book.binary_loss(logits, labels, alpha), expected)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_class_loss_from_its_formula(book, alpha):
    logits, labels = torch.randn(3, 5, 8, 9), torch.randint(0, 5, (3, 8, 9))
    labels[0] = 0
    p = logits.double().softmax(1)
    entropy = -p.log().gather(1, labels[:, None]).mean()
    total = sum(log_jaccard(p[:, k], labels == k) for k in range(5))
    expected = (1 - alpha) * entropy - alpha * total
    assert close(book.class_loss(logits, labels, alpha), expected)


def test_alpha_0_is_plain_entropy(book):
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    expected = F.cross_entropy(logits, labels)
    assert torch.equal(book.class_loss(logits, labels, 0), expected)
    logits = logits[:, :1]
    expected = F.binary_cross_entropy_with_logits(logits[:, 0], (labels > 0).float())
    assert torch.equal(book.binary_loss(logits, labels, 0.0), expected)


def test_every_type_is_an_instrument(book):
    logits, labels = torch.randn(2, 1, 4, 5), torch.randint(0, 8, (2, 4, 5))
    one = book.binary_loss(logits, (labels > 0).long())
    assert torch.equal(book.binary_loss(logits, labels), one)
    assert torch.equal(book.binary_loss(logits, labels > 0), one)


def test_what_is_right_and_certain_costs_nothing(book):
    labels = torch.randint(0, 3, (2, 4, 5))
    certain = 60 * F.one_hot(labels, 3).permute(0, 3, 1, 2).float()
    assert abs(book.class_loss(certain, labels)) < 1e-6
    certain = torch.where(labels > 0, 60.0, -60.0)[:, None]
    assert abs(book.binary_loss(certain, labels)) < 1e-6


def test_no_instrument_in_the_batch(book):
    """J is next to zero, and its logarithm -15 log 10 less the one of all probability:
    a large loss, but a small gradient. It pulls every pixel down, by `alpha` in all."""
    logits = torch.randn(2, 1, 8, 8, requires_grad=True)
    labels = torch.zeros(2, 8, 8, dtype=torch.long)
    loss = book.binary_loss(logits, labels, alpha=1.0)
    p = logits.detach().sigmoid()
    assert close(loss, 15 * math.log(10) + p.sum().log())
    loss.backward()
    assert_equal(logits.grad, p * (1 - p) / p.sum())
    assert 0 < logits.grad.sum() < 1


@pytest.mark.parametrize("shift", [0.0, -5.0, -10.0, -20.0])
def test_a_class_that_is_missing_is_pulled_down_just_as_much_when_it_is_rare(
    book, shift
):
    logits = torch.randn(2, 4, 8, 8)
    logits[:, 3] += shift
    logits.requires_grad_()
    labels = torch.randint(0, 3, (2, 8, 8))
    p = logits.detach().double().softmax(1)
    loss = book.class_loss(logits, labels, alpha=1.0)
    there = sum(log_jaccard(p[:, k], labels == k) for k in range(3))
    assert close(loss, 15 * math.log(10) + p[:, 3].sum().log() - there)
    loss.backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[:, 3] > 0).all()
    if shift < 0:
        assert 0.8 < logits.grad[:, 3].sum() < 1.2


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e3, 1e4])
@pytest.mark.parametrize("sign", [1, -1])
def test_gradients_are_finite_however_certain_and_wrong_the_logits_are(
    book, scale, sign
):
    labels = torch.randint(0, 3, (2, 8, 8))  # of four classes
    logits = sign * scale * F.one_hot(labels, 4).permute(0, 3, 1, 2).float()
    logits.requires_grad_()
    found = [book.class_loss(logits, labels), book.binary_loss(logits[:, :1], labels)]
    for labels_of_one in (torch.zeros_like(labels), torch.full_like(labels, 3)):
        found.append(book.class_loss(logits, labels_of_one))
        found.append(book.binary_loss(logits[:, 3:], labels_of_one))
    assert torch.stack(found).isfinite().all()
    for loss in found:
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_logits_of_half_precision_are_summed_in_full(book, dtype, alpha):
    """300 x 300 probabilities of one: more than float16 can hold."""
    labels = torch.ones(1, 300, 300, dtype=torch.long)
    logits = torch.randn(1, 3, 300, 300).to(dtype)
    logits[:, 1] += 8
    for loss, part in ((book.class_loss, logits), (book.binary_loss, logits[:, 1:2])):
        part = part.detach().requires_grad_()
        found = loss(part, labels, alpha)
        assert found.dtype == torch.float32
        assert torch.equal(found, loss(part.float(), labels, alpha))
        found.backward()
        assert part.grad.dtype == dtype and part.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_of_binary_loss_are_of_any_type(book, dtype):
    logits, labels = torch.randn(2, 1, 4, 5), torch.randint(0, 8, (2, 4, 5))
    found = book.binary_loss(logits, labels.to(dtype))
    assert torch.equal(found, book.binary_loss(logits, labels))


def test_so_are_those_of_class_loss(book):
    """Data sets keep labels as uint8."""
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    found = book.class_loss(logits, labels.to(torch.uint8))
    assert torch.equal(found, book.class_loss(logits, labels))


# Training


@pytest.fixture(scope="module")
def frame():
    """A drawn frame of 64 x 128 pixels: image (1, 3, H, W) and parts (1, H, W)."""
    image, _, parts = next(frames.scenes("train"))
    image, parts = (layer[..., 256:768:8, 128:1152:8] for layer in (image, parts))
    return (image[None].float() / 255 - 0.5) / 0.25, parts[None].long()


def learn(network, loss, image, labels, steps=40):
    """Logits in eval, after some steps on one image."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.3  # few steps: the running statistics must keep up
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(network(image), labels).backward()
        optimizer.step()
    with torch.inference_mode():
        return network.eval()(image)


def test_it_learns_one_drawn_frame(book, frame):
    image, labels = frame
    network = book.TernausNet(encoders.build("lite0"), filters=4)
    found = learn(network, book.binary_loss, image, labels) > 0
    table = metrics.confusion_matrix(found[:, 0].long(), labels > 0, 2)
    assert metrics.iou(table)[1] > 0.75


def test_it_learns_the_parts_of_one_drawn_frame(book, frame):
    image, labels = frame
    network = book.TernausNet(encoders.build("lite0"), 4, filters=4)
    found = learn(network, book.class_loss, image, labels).argmax(1)
    table = metrics.confusion_matrix(found, labels, 4)
    assert metrics.iou(table).nanmean() > 0.6
