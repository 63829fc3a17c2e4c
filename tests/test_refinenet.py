"""RefineNet and its light-weight form: against a second writing, counted by hand."""

import re

import pytest
import torch
import torch.nn.functional as F
from test_pspnet import (
    RESNET50,
    Near,
    Plain,
    assert_equal,
    count,
    frozen,
    overfit,
    stirred,
)
from torch import nn

from utils import chapters, encoders

FORMS = [False, True]  # light or not
SIZES = [(33, 33), (65, 98), (100, 47), (33, 201)]


@pytest.fixture(scope="module")
def refinenet():
    return chapters.load("refinenet")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Pyramid(encoders.Encoder):
    """Five maps of strides 2 to 32 that see only the pixels they stand for."""

    in_channels, channels, strides = 3, (4, 5, 6, 7, 8), (2, 4, 8, 16, 32)

    def __init__(self):
        super().__init__()
        sides = (3, *self.channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 2, 2) for i, o in zip(sides, sides[1:])
        )

    def features_of(self, images):
        maps = [images]
        for conv in self.convs:
            maps.append(conv(F.pad(maps[-1], [0, 1, 0, 1])))
        return maps[1:]


# Against a second writing


class Reference(Plain):
    """The blocks of the reference code, in the order of its forward."""

    def rcu(self, x):
        y = F.relu(x)
        weight, bias = self.take(2)
        y = F.conv2d(y, weight, bias, padding=weight.shape[-1] // 2)
        return x + self.conv(F.relu(y))

    def rcus(self, x, number):
        for _ in range(number):
            x = self.rcu(x)
        return x

    def crp(self, x, poolings):
        total = x
        for _ in range(poolings):
            x = self.conv(F.max_pool2d(x, 5, 1, 2))
            total = total + x
        return total

    def path(self, x, rcus, reduce, fuse):
        x = self.rcus(self.conv(x) if reduce else x, rcus)
        return self.conv(x) if fuse else x

    def block(self, paths, poolings=4, rcus=1):
        """A refinement block behind its paths: at the last one's size."""
        x = sum(up(path, paths[-1]) for path in paths)
        return self.rcus(self.crp(F.relu(x), poolings), rcus)

    def head(self, x, rcus=2):
        """The logits; the network has nothing else."""
        logits = F.conv2d(self.rcus(x, rcus), *self.take(2), padding=1)
        assert not self.tensors
        return logits

    def refine(self, maps, poolings=4, rcus=(2, 1)):
        """The four-cascade network's logits of maps, the coarsest first."""
        coarsest, *finer = maps
        paths = [self.path(coarsest, rcus[0], True, False)]
        x = self.block(paths, poolings, rcus[1])
        for features in finer:
            paths = [self.path(x, rcus[0], False, True)]
            paths.append(self.path(features, rcus[0], True, True))
            x = self.block(paths, poolings, rcus[1])
        return self.head(x, rcus[0])


def up(x, like):
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)


@pytest.mark.parametrize("light", FORMS)
def test_it_equals_the_reference_code_s_network_in_plain_functions(refinenet, light):
    encoder = encoders.build("resnet50")
    network = stirred(refinenet.RefineNet(5, encoder, light=light))
    images = torch.randn(2, 3, 65, 73)
    plain = Reference(network)
    with torch.inference_mode():
        maps = plain.resnet50(
            images,
            strides=(1, 2, 2, 2),
            rates=([1] * 3, [1] * 4, [1] * 6, [1] * 3),
        )
        expected = plain.refine(maps[::-1], rcus=(0, 0) if light else (2, 1))
        assert_equal(network(images), up(expected, images))


@pytest.mark.parametrize("rcus", [(2, 1), (2, 0), (0, 1)])
def test_rcus_can_come_back_to_the_light_form(refinenet, rcus):
    network = refinenet.RefineNet(
        4, Pyramid(), width=6, deepest=10, light=True, rcus=rcus, poolings=2
    ).eval()
    images = torch.randn(1, 3, 49, 81)
    plain = Reference(network)
    plain.take(10)  # the encoder
    with torch.inference_mode():
        maps = network.encoder(images)[:0:-1]
        expected = plain.refine(maps, poolings=2, rcus=rcus)
        assert_equal(network(images), up(expected, images))


@pytest.mark.parametrize("poolings", [0, 4])
def test_an_arm_without_pooling_differs_in_nothing_else(refinenet, poolings):
    network = refinenet.RefineNet(
        4, Pyramid(), width=6, deepest=10, light=True, poolings=poolings
    ).eval()
    images = torch.randn(1, 3, 65, 97)
    plain = Reference(network)
    plain.take(10)  # the encoder
    with torch.inference_mode():
        maps = network.encoder(images)[:0:-1]
        expected = plain.refine(maps, poolings=poolings, rcus=(0, 0))
        assert_equal(network(images), up(expected, images))


def test_the_plain_network_classifies_the_coarsest_map_and_scales_it_up(refinenet):
    network = refinenet.Plain(4, Pyramid(), width=6).eval()
    images = torch.randn(2, 3, 65, 97)
    plain = Reference(network)
    plain.take(10)
    with torch.inference_mode():
        x = F.conv2d(network.encoder(images)[-1], *plain.take(2), padding=1)
        logits = F.conv2d(F.relu(x), *plain.take(2), padding=1)
        assert not plain.tensors
        assert_equal(network(images), up(logits, images))


@pytest.mark.parametrize("light", FORMS)
def test_a_single_block_fuses_all_four_maps(refinenet, light):
    network = refinenet.RefineNet(
        4, Pyramid(), blocks=1, width=6, deepest=10, light=light
    ).eval()
    images = torch.randn(2, 3, 49, 81)
    plain = Reference(network)
    plain.take(10)
    rcus = (0, 0) if light else (2, 1)
    with torch.inference_mode():
        maps = network.encoder(images)[:0:-1]
        paths = [plain.path(m, rcus[0], True, True) for m in maps]
        logits = plain.head(plain.block(paths, rcus=rcus[1]), rcus[0])
    assert_equal(network(images), up(logits, images))


@pytest.mark.parametrize("light", FORMS)
def test_two_blocks_take_two_maps_each(refinenet, light):
    network = refinenet.RefineNet(
        4, Pyramid(), blocks=2, width=6, deepest=10, light=light
    ).eval()
    images = torch.randn(2, 3, 49, 81)
    plain = Reference(network)
    plain.take(10)
    rcus = (0, 0) if light else (2, 1)
    with torch.inference_mode():
        *first, third, finest = network.encoder(images)[:0:-1]
        paths = [plain.path(m, rcus[0], True, True) for m in first]
        x = plain.block(paths, rcus=rcus[1])
        paths = [plain.path(x, rcus[0], False, True)]
        paths += [plain.path(m, rcus[0], True, True) for m in (third, finest)]
        logits = plain.head(plain.block(paths, rcus=rcus[1]), rcus[0])
    assert_equal(network(images), up(logits, images))


def test_the_chain_pools_what_the_link_before_made(refinenet):
    """Not its input: with links that copy, n poolings of 5 reach 4 n + 1 positions."""
    for links in range(4):
        chain = refinenet.CRP(1, links, kernel=1)
        for conv in chain.convs:
            nn.init.ones_(conv.weight)
        spot = torch.zeros(1, 1, 21, 21)
        spot[..., 10, 10] = 1.0
        seen = chain(spot)[0, 0]
        assert (seen[10] > 0).sum() == 4 * links + 1
        assert seen[10, 10] == links + 1  # each link is added, and x itself


def test_an_rcu_never_changes_its_input(refinenet):
    x = torch.randn(1, 4, 5, 5)
    before = x.clone()
    refinenet.RCU(4)(x)
    refinenet.CRP(4)(x)
    assert torch.equal(x, before)


# Parameters


def rcu(channels, kernel=3):
    """Weights of two convolutions, the bias of the first."""
    return 2 * kernel**2 * channels**2 + channels


def by_hand(light, classes, maps=(2048, 1024, 512, 256)):
    k, (in_path, behind) = (1, (0, 0)) if light else (9, (2, 1))
    side = 1 if light else 3
    total, coarser = 0, None
    for channels, width in zip(maps, (512, 256, 256, 256)):
        total += k * channels * width + in_path * rcu(width, side)
        if coarser:
            total += in_path * rcu(coarser, side) + k * coarser * width
            total += k * width * width
        total += 4 * k * width * width + behind * rcu(width, side)
        coarser = width
    total += in_path * rcu(256, side)
    return total + 9 * 256 * classes + classes


@pytest.mark.parametrize("light", FORMS)
@pytest.mark.parametrize("classes", [21, 40])
def test_number_of_parameters(refinenet, light, classes):
    with torch.device("meta"):
        encoder = encoders.build("resnet50")
        network = refinenet.RefineNet(classes, encoder, light=light)
    # torchvision's ResNet-50 without its classifier
    assert count(network.encoder) == RESNET50
    assert count(network) == RESNET50 + by_hand(light, classes)


def test_the_published_size_of_the_light_form(refinenet):
    with torch.device("meta"):
        encoder = encoders.build("resnet50")
        assert count(refinenet.RefineNet(21, encoder, light=True)) == 27_357_525


def test_the_light_form_has_1x1_convolutions_and_one_3x3(refinenet):
    with torch.device("meta"):
        network = refinenet.RefineNet(21, encoders.build("resnet50"), light=True)
    convs = [
        m
        for part in (network.blocks, network.head)
        for m in part.modules()
        if isinstance(m, nn.Conv2d)
    ]
    assert [c.kernel_size for c in convs].count((3, 3)) == 1
    assert [c.bias is not None for c in convs] == [False] * (len(convs) - 1) + [True]
    assert convs[-1].kernel_size == (3, 3)


def test_without_an_encoder_given_it_is_the_reference_code_s_resnet101(refinenet):
    with torch.device("meta"):
        network = refinenet.RefineNet(21)
        assert network.encoder(torch.empty(1, 3, 65, 65))[-1].shape == (1, 2048, 3, 3)
    resnet101 = 44_549_160 - (2048 * 1000 + 1000)  # torchvision's number, without fc
    assert count(network) == resnet101 + by_hand(False, 21)


# Shapes


@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize("light", FORMS)
def test_any_size_and_a_batch_of_one_in_eval(refinenet, blocks, light):
    with torch.device("meta"):
        encoder = encoders.build("lite0")
        network = refinenet.RefineNet(4, encoder, blocks, 8, 16, light).eval()
        for size in SIZES:
            assert network(torch.empty(1, 3, *size)).shape == (1, 4, *size)


@pytest.mark.parametrize("blocks", [0, 3, 5])
def test_other_numbers_of_blocks_are_refused(refinenet, blocks):
    with pytest.raises(ValueError, match=f"1, 2 or 4 blocks, not {blocks}"):
        refinenet.RefineNet(4, Pyramid(), blocks)


def test_an_encoder_with_too_few_maps_is_refused(refinenet):
    with pytest.raises(ValueError, match="four maps"):
        refinenet.RefineNet(4, Near())


def test_scores_are_made_at_a_quarter_of_the_size(refinenet):
    network = refinenet.RefineNet(4, Pyramid(), width=6, deepest=10).eval()
    sizes = []
    network.head.register_forward_hook(lambda m, x, y: sizes.append(y.shape[2:]))
    network(torch.randn(1, 3, 64, 96))
    finest = network.encoder(torch.randn(1, 3, 64, 96))[1]
    assert sizes == [finest.shape[2:]]


def test_maps_are_dealt_to_blocks_in_order(refinenet):
    assert refinenet.grouped("abcd", 4) == [["a"], ["b"], ["c"], ["d"]]
    assert refinenet.grouped("abcd", 2) == [["a", "b"], ["c", "d"]]
    assert refinenet.grouped("abcd", 1) == [["a", "b", "c", "d"]]


def test_frames_and_crops_of_every_profile_keep_the_maps_aligned():
    """Sides of 32 n + 1, and no crop is larger than its frames."""
    text = chapters.path("refinenet").read_text()
    frames = re.findall(r"\b(?:gpu|cpu|smoke)=\((\d+), (\d+)\)", text)
    crops = re.findall(r"\bcrop=\((\d+), (\d+)\)", text)
    assert len(frames) == len(crops) == 3
    for frame, crop in zip(frames, crops):
        assert all(int(side) % 32 == 1 for side in (*frame, *crop))
        assert all(int(inner) <= int(outer) for inner, outer in zip(crop, frame))


# What reaches what


@pytest.mark.parametrize("light", FORMS)
@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_gradients_reach_every_parameter(refinenet, blocks, light):
    network = refinenet.RefineNet(3, Pyramid(), blocks, 8, 12, light)
    frozen(network)(torch.randn(2, 3, 96, 97)).square().sum().backward()
    for name, parameter in network.named_parameters():
        used = not name.startswith("encoder") or parameter.grad is not None
        assert used and parameter.grad.any(), name


def test_dropout_meets_the_two_deepest_maps_in_training_only(refinenet):
    network = refinenet.RefineNet(3, Pyramid(), width=6, deepest=10, light=True)
    images, given = torch.randn(1, 3, 128, 128), []
    for block in network.blocks:
        block.paths[-1].register_forward_hook(lambda m, x, y: given.append(x[0]))
    with torch.inference_mode():
        network.train()(images)
        zeros = [bool((m == 0).any()) for m in given]
        assert zeros == [True, True, False, False]
        given.clear()
        network.eval()(images)
        assert not any((m == 0).any() for m in given)
        assert torch.equal(network(images), network(images))


# Training


@pytest.mark.parametrize("light", FORMS)
def test_it_overfits_two_images(refinenet, light):
    encoder = encoders.build("lite0")
    network = refinenet.RefineNet(3, encoder, 4, 16, 32, light, dropout=0.0)
    assert overfit(network, rate=3e-3) > 0.95
