"""PSPNet: against a second writing of it, counted by hand, and what reaches what."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from utils import chapters, data, encoders, runtime, scenes


@pytest.fixture(scope="module")
def pspnet():
    return chapters.load("pspnet")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# What the tests of DeepLab need too


class Plain:
    """Layers as plain functions, which take the tensors of a network in their order."""

    def __init__(self, network):
        state = network.state_dict().items()
        self.tensors = [t for name, t in state if not name.endswith("batches_tracked")]

    def take(self, number):
        taken, self.tensors = self.tensors[:number], self.tensors[number:]
        return taken

    def conv(self, x, stride=1, rate=1, groups=1):
        (weight,) = self.take(1)
        padding = rate * (weight.shape[-1] // 2)
        return F.conv2d(x, weight, None, stride, padding, rate, groups)

    def bn(self, x):
        scale, shift, mean, variance = self.take(4)
        return F.batch_norm(x, mean, variance, scale, shift)

    def unit(self, x, stride=1, rate=1, groups=1):
        return F.relu(self.bn(self.conv(x, stride, rate, groups)))

    def classifier(self, x):
        return F.conv2d(x, *self.take(2))

    def bottleneck(self, x, stride, rate, short_cut):
        y = self.unit(self.unit(x), stride, rate)
        y = self.bn(self.conv(y))
        return F.relu(y + (self.bn(self.conv(x, stride)) if short_cut else x))

    def resnet50(self, x, strides, rates, deep_stem=False):
        """Maps of the four stages; rates: of the 3x3 of each block, by stages."""
        x = self.unit(x, 2)
        if deep_stem:
            x = self.unit(self.unit(x))
        x = F.max_pool2d(x, 3, 2, padding=1)
        maps = []
        for stride, of_blocks in zip(strides, rates):
            for block, rate in enumerate(of_blocks):
                x = self.bottleneck(x, 1 if block else stride, rate, block == 0)
            maps.append(x)
        return maps

    def near(self, x):
        """The maps of `Near`."""
        low = F.conv2d(x, *self.take(2), stride=4)
        middle = F.conv2d(low, *self.take(2), stride=2)
        return low, middle, F.conv2d(middle, *self.take(2))


class Near(encoders.Encoder):
    """An encoder whose positions see the 4 or 8 pixels a side they stand for, only."""

    in_channels, channels, strides = 3, (8, 12, 16), (4, 8, 8)

    def __init__(self):
        super().__init__()
        self.low = nn.Conv2d(3, 8, 4, 4)
        self.middle = nn.Conv2d(8, 12, 2, 2)
        self.last = nn.Conv2d(12, 16, 1)

    def features_of(self, images):
        low = self.low(images)
        middle = self.middle(low)
        return [low, middle, self.last(middle)]


def stirred(network):
    """In eval, with batch norms that do something: fresh ones change nothing."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return network.eval()


def frozen(network):
    """In training, but with batch norms and dropout in eval."""
    network.train()
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.Dropout, nn.Dropout2d)):
            module.eval()
    return network


def assert_equal(found, expected):
    """Equal up to rounding, whatever the scale."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def conv_bn(inputs, outputs, kernel=1):
    """Parameters of a convolution without bias and its batch norm."""
    return kernel**2 * inputs * outputs + 2 * outputs


RESNET50 = 25_557_032 - (2048 * 1000 + 1000)  # torchvision's number, without its fc


def drawn():
    """Two images (2, 3, 64, 64) of three surfaces, and their labels (2, 64, 64)."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    labels = torch.stack([(x > 38).long(), (x + y < 50).long()])
    labels[0, (y > 36) & (x <= 38)] = 2
    labels[1, y > 44] = 2
    colours = torch.tensor([[0.9, -0.8, 0.1], [-0.7, 0.6, 0.2], [-0.1, -0.4, 0.9]])
    images = colours[labels].permute(0, 3, 1, 2)
    return images + 0.1 * torch.randn(images.shape), labels


def share_right(logits, labels):
    return (logits.argmax(1) == labels).float().mean().item()


def overfit(network, steps=30, rate=1e-2):
    """Trains on the two drawn images; returns the share of pixels right, in eval."""
    images, labels = drawn()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.3  # few steps: the running statistics must keep up
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    network.train()
    for _ in range(steps):
        output = network(images)
        outputs = output if isinstance(output, tuple) else (output,)
        loss = sum(F.cross_entropy(logits, labels) for logits in outputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        return share_right(network.eval()(images), labels)


# Against a second writing


def regions(size, bins):
    """From where to where the bins of one side reach; together they cover it."""
    return [slice(k * size // bins, -(-(k + 1) * size // bins)) for k in range(bins)]


def pyramid(plain, x, bins, reduce=torch.mean):
    maps = [x]
    for number in bins:
        rows, columns = (regions(size, number) for size in x.shape[2:])
        cells = [reduce(x[:, :, r, c], (2, 3)) for r in rows for c in columns]
        pooled = torch.stack(cells, 2).view(*x.shape[:2], number, number)
        maps.append(to_size(plain.unit(pooled), x))
    return torch.cat(maps, 1)


def to_size(x, image):
    return F.interpolate(x, image.shape[2:], mode="bilinear", align_corners=True)


def semseg(network, images):
    """Logits and auxiliary logits of the reference code's PSPNet."""
    plain = Plain(network)
    *_, middle, last = plain.resnet50(
        images,
        strides=(1, 2, 1, 1),
        rates=([1] * 3, [1] * 4, [2] * 6, [4] * 3),
        deep_stem=True,
    )
    main = plain.classifier(plain.unit(pyramid(plain, last, (1, 2, 3, 6))))
    extra = plain.classifier(plain.unit(middle))
    assert not plain.tensors  # the network has nothing else
    return to_size(main, images), to_size(extra, images)


def test_it_equals_the_reference_code_s_network_in_plain_functions(pspnet):
    network = stirred(pspnet.PSPNet(5))
    images = torch.randn(2, 3, 65, 73)
    with torch.inference_mode():
        main, extra = semseg(network, images)
        assert_equal(network(images), main)
        found = frozen(network)(images)
    assert_equal(found[0], main)
    assert_equal(found[1], extra)


@pytest.mark.parametrize("bins", [(1, 2, 3, 6), (2, 3), (4,), ()])
def test_pyramid_pooling_from_its_definition(pspnet, bins):
    """On a map whose sides and channels the bins do not divide."""
    module = stirred(pspnet.PyramidPooling(14, bins))
    x = torch.randn(2, 14, 7, 11)
    expected = pyramid(Plain(module), x, bins, torch.mean)
    assert_equal(module(x), expected)
    assert module.out_channels == expected.shape[1]
    assert torch.equal(expected[:, :14], x)


def test_the_four_bins_bring_as_many_channels_as_the_map_has(pspnet):
    with torch.device("meta"):
        module = pspnet.PyramidPooling(2048)
        assert module(torch.empty(2, 2048, 9, 9)).shape == (2, 4096, 9, 9)
    assert [branch[1].out_channels for branch in module.branches] == [512] * 4


# Parameters

# Three 3x3 convolutions in place of the 7x7, and a first block that receives 128
# channels where it had 64: in its first 1x1 convolution and in its short cut.
DEEP_STEM = (
    (conv_bn(3, 64, 3) + conv_bn(64, 64, 3) + conv_bn(64, 128, 3))
    - conv_bn(3, 64, 7)
    + (128 - 64) * (64 + 256)
)


@pytest.mark.parametrize("classes", [21, 150])
def test_number_of_parameters(pspnet, classes):
    with torch.device("meta"):
        network = pspnet.PSPNet(classes)
        without = pspnet.PSPNet(classes, aux=False)
    auxiliary = conv_bn(1024, 256, 3) + (256 + 1) * classes
    parts = {
        "encoder": RESNET50 + DEEP_STEM,
        "pyramid": 4 * conv_bn(2048, 512),
        "head": conv_bn(4096, 512, 3) + (512 + 1) * classes,
        "aux": auxiliary,
    }
    found = {name: count(part) for name, part in network.named_children()}
    assert found == parts
    assert count(network) == sum(parts.values())
    assert count(network) - count(without) == auxiliary


# Shapes


SIZES = [(33, 33), (65, 98), (100, 47), (33, 201)]


def test_any_size_and_a_batch_of_one_in_eval(pspnet):
    with torch.device("meta"):
        network = pspnet.PSPNet(4).eval()
        for size in SIZES:
            assert network(torch.empty(1, 3, *size)).shape == (1, 4, *size)


@pytest.mark.parametrize("bins", [(1, 2, 3, 6), (5,), ()])
def test_any_size_with_other_bins(pspnet, bins):
    network = pspnet.PSPNet(4, Near(), bins, width=8).eval()
    for size in SIZES:
        assert network(torch.randn(1, 3, *size)).shape == (1, 4, *size)


def test_the_control_on_streets_does_not_pool_and_has_as_many_weights(pspnet):
    recipe = pspnet.STREETS["pyramid", 0].stages[0]
    pooled = pspnet.build_context(recipe).eval()
    control = pspnet.build_context(replace(recipe, pool="none")).eval()
    assert count(pooled) == count(control)
    control.load_state_dict(pooled.state_dict())
    x = torch.rand(1, 40, 6, 9)
    changed = x.clone()
    changed[..., 0, 0] += 1
    with torch.inference_mode():
        moved = [
            (m.pyramid(changed) - m.pyramid(x))[..., -1, -1].abs().max() > 0
            for m in (pooled, control)
        ]
    assert moved == [True, False]


def test_the_paper_s_size_makes_a_map_of_60_positions_a_side(pspnet):
    with torch.device("meta"):
        encoder = pspnet.PSPNet(150).encoder
        assert encoder.strides[-1] == 8
        assert encoder(torch.empty(1, 3, 473, 473))[-1].shape == (1, 2048, 60, 60)


def test_auxiliary_logits_come_in_training_only_and_only_where_wanted(pspnet):
    images = torch.randn(2, 3, 40, 57)
    network = pspnet.PSPNet(4, Near(), width=8)
    main, extra = network.train()(images)
    assert main.shape == extra.shape == (2, 4, 40, 57)
    assert network.eval()(images).shape == (2, 4, 40, 57)
    assert pspnet.PSPNet(4, Near(), width=8, aux=False).train()(images).shape == (
        2, 4, 40, 57,
    )  # fmt: skip


def test_the_auxiliary_head_changes_nothing_in_eval(pspnet):
    network = stirred(pspnet.PSPNet(4, Near(), width=8))
    images = torch.randn(1, 3, 40, 57)
    before = network(images)
    nn.init.constant_(network.aux[-1].weight, 1e3)
    assert torch.equal(network(images), before)


def test_one_image_in_training_is_refused_with_advice(pspnet):
    network = pspnet.PSPNet(4, Near(), width=8).train()
    with pytest.raises(ValueError, match="two images in training.* enlarge.* eval()"):
        network(torch.randn(1, 3, 40, 57))


@pytest.mark.parametrize("bins", [(2, 3), ()])
def test_one_image_in_training_is_fine_without_a_global_bin(pspnet, bins):
    network = pspnet.PSPNet(4, Near(), bins, width=8).train()
    for logits in network(torch.randn(1, 3, 40, 57)):
        assert logits.shape == (1, 4, 40, 57) and logits.isfinite().all()


# What reaches what


def gradient_at_the_image(pspnet, bins):
    """Where a change of the image moves the logits of the first pixel: (64, 96)."""
    network = stirred(pspnet.PSPNet(2, Near(), bins, width=16))
    images = torch.randn(1, 3, 64, 96, requires_grad=True)
    network(images)[0, :, 0, 0].sum().backward()
    return images.grad[0].abs().sum(0) > 0


def test_the_global_bin_reaches_every_pixel(pspnet):
    assert gradient_at_the_image(pspnet, (1,)).all()


def test_without_a_pyramid_the_view_ends_with_encoder_and_head(pspnet):
    seen = gradient_at_the_image(pspnet, ())
    assert seen[:16, :16].all()  # two positions of 8 pixels, by the 3x3 of the head
    assert seen.sum() == 16 * 16


@pytest.mark.parametrize("bins", [(1, 2, 3, 6), ()])
def test_gradients_reach_every_parameter(pspnet, bins):
    encoder = encoders.build("lite0", output_stride=8, first_block="new")
    network = frozen(stirred(pspnet.PSPNet(3, encoder, bins, width=16)))
    main, extra = network(torch.randn(2, 3, 49, 65))
    (main.square().sum() + extra.square().sum()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


# Training


def test_it_overfits_two_images(pspnet):
    encoder = encoders.build("lite0", output_stride=16, first_block="new")
    network = pspnet.PSPNet(3, encoder, width=16, dropout=0.0)
    assert overfit(network) > 0.95


VOID = 3


def street(labels):
    """A data set with three classes, for the weights of the loss."""
    images = torch.zeros(len(labels), 3, *labels.shape[1:], dtype=torch.uint8)
    return data.Dataset(
        "drawn", "train", images, labels.to(torch.uint8), ("sky", "road", "car"),
        ((0, 0, 0),) * 3, VOID, "", "", "sample",
    )  # fmt: skip


def outputs_and_labels(pspnet):
    """A training output of the network and labels with void in them."""
    images, labels = drawn()
    labels[:, 20:30] = VOID
    labels[1, :, 50:] = VOID
    output = pspnet.PSPNet(3, Near(), width=8).train()(images)
    device = runtime.device()
    return tuple(logits.detach().to(device) for logits in output), labels.to(device)


def test_ignored_pixels_contribute_nothing_to_the_loss(pspnet):
    output, labels = outputs_and_labels(pspnet)
    loss = scenes.scene_loss(street(labels.cpu()), aux=0.4)
    void = (labels == VOID)[:, None]
    changed = tuple(torch.where(void, 50 * torch.randn_like(o), o) for o in output)
    assert not torch.equal(changed[0], output[0])
    assert torch.equal(loss(changed, labels), loss(output, labels))

    for logits in output:
        logits.requires_grad_()
    loss(output, labels).backward()
    for logits in output:
        assert torch.equal(logits.grad.abs().sum(1) > 0, labels != VOID)


def test_an_image_that_is_all_void_leaves_the_loss_of_the_others(pspnet):
    output, labels = outputs_and_labels(pspnet)
    loss = scenes.scene_loss(street(labels.cpu()), aux=0.4)
    alone = loss(tuple(logits[:1] for logits in output), labels[:1])
    labels[1] = VOID
    assert torch.equal(loss(output, labels), alone)


# A batch of one


def test_a_batch_of_one_trains_where_the_norms_do_not_count_it(pspnet):
    module = pspnet.PyramidPooling(8).train()
    one = torch.randn(1, 8, 12, 12)
    with pytest.raises(ValueError, match="at least two images"):
        module(one)
    frozen(module)
    assert module(one).shape == (1, 16, 12, 12)
    over_machines = nn.SyncBatchNorm.convert_sync_batchnorm(pspnet.PyramidPooling(8))
    assert not over_machines.train().counts_the_batch()


@pytest.mark.parametrize("parts", [1, 2])
def test_in_drawn_worlds_the_strip_above_names_the_patch(pspnet, parts):
    images, labels = pspnet.drawn_worlds(20, parts, 0)
    assert images.shape == (20, 3, 96, 96) and labels.shape == (20, 96, 96)
    wide = 96 // parts
    for image, label in zip(images, labels):
        found = []
        for part in range(parts):
            half = slice(part * wide, (part + 1) * wide)
            (kind,) = label[:, half].unique()[1:].tolist()
            red, _, blue = image[:, :6, half].mean((1, 2))
            assert (kind == 1) == (blue > red)  # a boat under water
            assert (label[:, half] > 0).sum() == 12 * 12
            found.append(kind)
        assert len(set(found)) == parts


def test_the_short_sighted_network_cannot_see_the_strip_from_a_patch(pspnet):
    torch.manual_seed(0)
    images, labels = pspnet.drawn_worlds(8, 1, 0)
    network = pspnet.ShortSighted(()).eval()
    other = images.clone()
    other[:, :, :6] = 0.5
    with torch.inference_mode():
        same = network(images).isclose(network(other), atol=1e-5).all(1)
    assert same[labels > 0].all() and not same.all()
    tops = labels.flatten(1).argmax(1) // 96
    assert tops.min() - 6 > 15  # pixels that a position sees


def test_every_bin_reaches_the_patch(pspnet):
    torch.manual_seed(0)
    images, labels = pspnet.drawn_worlds(4, 2, 0)
    other = images.clone()
    other[:, :, :6] = 0.5
    for bins in ((1,), (1, 2, 3, 6)):
        network = pspnet.ShortSighted(bins).eval()
        with torch.inference_mode():
            moved = (network(images) - network(other)).abs().amax(1)
        assert (moved[labels > 0] > 0).all()
