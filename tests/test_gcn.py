"""GCN: against a second writing of it, its kernels multiplied out, counted by hand."""

import pytest
import torch
import torch.nn.functional as F
from test_pspnet import (
    RESNET50,
    Plain,
    assert_equal,
    count,
    frozen,
    overfit,
    stirred,
)
from test_refinenet import SIZES, Pyramid, up
from torch import nn

from utils import chapters, encoders


@pytest.fixture(scope="module")
def gcn():
    return chapters.load("gcn")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# Against a second writing


class Reference(Plain):
    """The common code's parts, by their padding."""

    def padded(self, x):
        weight, bias = self.take(2)
        return F.conv2d(x, weight, bias, padding=[k // 2 for k in weight.shape[2:]])

    def scores(self, x):
        left = self.padded(self.padded(x))
        return left + self.padded(self.padded(x))

    def refine(self, x):
        return x + self.padded(F.relu(self.padded(x)))

    def decode(self, first, maps, image, grow=up):
        """Logits of the encoder's maps, the coarsest first."""
        scores = [self.scores(m) for m in maps]
        refined = [self.refine(s) for s in scores]
        x = refined[0]
        for finer in refined[1:]:
            x = self.refine(grow(x, finer) + finer)
        x = self.refine(grow(x, first))
        x = self.refine(grow(x, image))
        assert not self.tensors  # the network has nothing else
        return x


@pytest.mark.parametrize("kernel", [7, 15])
def test_it_equals_the_common_code_s_network_in_plain_functions(gcn, kernel):
    network = stirred(gcn.GCN(5, encoders.build("resnet50"), kernel))
    images = torch.randn(2, 3, 65, 73)
    plain = Reference(network)
    with torch.inference_mode():
        maps = plain.resnet50(
            images,
            strides=(1, 2, 2, 2),
            rates=([1] * 3, [1] * 4, [1] * 6, [1] * 3),
        )
        first = torch.empty(1, 1, 33, 37)  # where the stem's map stands
        assert_equal(network(images), plain.decode(first, maps[::-1], images))


def test_deconvolution_starts_as_linear_interpolation(gcn):
    """Of positions taken as centres of squares; the border is without a neighbour."""
    module = gcn.Up(3, "deconv")
    x = torch.randn(2, 3, 6, 9)
    expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    inside = (..., slice(1, -1), slice(1, -1))
    assert_equal(module(x, (12, 18))[inside], expected[inside])
    assert module(x, (11, 17)).shape == (2, 3, 11, 17)


def test_with_deconvolutions_it_equals_its_parts(gcn):
    network = gcn.GCN(3, Pyramid(), 5, up="deconv").eval()
    images = torch.randn(1, 3, 64, 96)
    plain = Reference(network)
    plain.take(10)  # the encoder
    weights = plain.tensors[-5:]
    plain.tensors = plain.tensors[:-5]

    def grow(x, like):
        return F.conv_transpose2d(x, weights.pop(0), None, 2, 1)

    with torch.inference_mode():
        first, *maps = network.encoder(images)
        expected = plain.decode(first, maps[::-1], images, grow)
        assert_equal(network(images), expected)
    assert not weights


@pytest.mark.parametrize("kernel", [1, 3, 7, 15])
def test_the_block_is_one_linear_map_with_a_window_of_k(gcn, kernel):
    """Multiplied out, the two chains are a plain k x k convolution."""
    block = gcn.GlobalConvolution(4, 3, kernel).double().requires_grad_(False)
    total = 0
    for tall_first, chain in ((True, block.left), (False, block.right)):
        one, two = (conv.weight for conv in chain)
        if tall_first:  # (m, c, k, 1) and (o, m, 1, k)
            total = total + torch.einsum("mcy,omx->ocyx", one[..., 0], two[:, :, 0])
        else:
            total = total + torch.einsum("mcx,omy->ocyx", one[:, :, 0], two[..., 0])
    bias = sum(
        chain[1].bias + chain[1].weight.sum((2, 3)) @ chain[0].bias
        for chain in (block.left, block.right)
    )
    x = torch.randn(2, 4, 40, 33, dtype=torch.float64)
    far = kernel // 2
    found = block(x)[..., far : 40 - far, far : 33 - far]
    assert torch.allclose(found, F.conv2d(x, total, bias), atol=1e-10)


def test_even_kernels_are_refused(gcn):
    with pytest.raises(ValueError, match="must be odd.* 8"):
        gcn.GlobalConvolution(4, 3, 8)


def test_other_ways_up_are_refused(gcn):
    with pytest.raises(ValueError, match="bilinear or deconv, not 'nearest'"):
        gcn.GCN(3, Pyramid(), up="nearest")


# Parameters


def block_weights(inputs, classes, k):
    """Two chains: k weights each for inputs and classes, and two biases."""
    return 2 * (k * classes * (inputs + classes) + 2 * classes)


@pytest.mark.parametrize("kernel", [3, 15])
@pytest.mark.parametrize("classes", [11, 21])
@pytest.mark.parametrize("ways", ["bilinear", "deconv"])
def test_number_of_parameters(gcn, classes, kernel, ways):
    with torch.device("meta"):
        encoder = encoders.build("resnet50")
        network = gcn.GCN(classes, encoder, kernel, up=ways)
    blocks = sum(block_weights(c, classes, kernel) for c in (2048, 1024, 512, 256))
    refinements = 9 * 2 * (9 * classes**2 + classes)
    deconvolutions = 5 * 16 * classes**2 if ways == "deconv" else 0
    assert count(network) == RESNET50 + blocks + refinements + deconvolutions


def test_without_refinement_only_the_blocks_are_left(gcn):
    with torch.device("meta"):
        network = gcn.GCN(11, encoders.build("resnet50"), 7, refine=False)
    blocks = sum(block_weights(c, 11, 7) for c in (2048, 1024, 512, 256))
    assert count(network) == RESNET50 + blocks


# Shapes


@pytest.mark.parametrize("ways", ["bilinear", "deconv"])
def test_any_size_and_a_batch_of_one_in_eval(gcn, ways):
    with torch.device("meta"):
        network = gcn.GCN(4, encoders.build("lite0"), up=ways).eval()
        for size in SIZES:
            assert network(torch.empty(1, 3, *size)).shape == (1, 4, *size)


@pytest.mark.parametrize("kernel", [1, 3, 7, 31])
def test_the_block_keeps_the_size_of_any_map(gcn, kernel):
    block = gcn.GlobalConvolution(4, 3, kernel)
    for size in [(1, 1), (2, 5), (9, 4)]:
        assert block(torch.randn(1, 4, *size)).shape == (1, 3, *size)


# What reaches what


def test_the_kernel_decides_how_far_the_coarsest_scores_see(gcn):
    for kernel in (1, 3, 5):
        network = gcn.GCN(2, Pyramid(), kernel)
        images = torch.randn(1, 3, 320, 320, requires_grad=True)
        scores = network.scores[0](network.encoder(images)[-1])
        scores[..., 5, 5].sum().backward()
        rows = images.grad.abs().sum((0, 1, 3)).nonzero().flatten()
        assert len(rows) == 32 * kernel
        assert rows[0] == 32 * (5 - kernel // 2)


@pytest.mark.parametrize("ways", ["bilinear", "deconv"])
def test_gradients_reach_every_parameter(gcn, ways):
    network = gcn.GCN(3, Pyramid(), 3, up=ways)
    frozen(network)(torch.randn(2, 3, 96, 97)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_a_refinement_starts_from_its_input(gcn):
    module = gcn.BoundaryRefinement(4)
    nn.init.zeros_(module.conv2.weight)
    nn.init.zeros_(module.conv2.bias)
    x = torch.randn(2, 4, 5, 7)
    assert torch.equal(module(x), x)


# Training


def test_it_overfits_two_images(gcn):
    network = gcn.GCN(3, encoders.build("lite0"), 7)
    assert overfit(network, rate=3e-3) > 0.95


# What the page measures with


def test_the_plain_control_is_a_convolution(gcn):
    plain = gcn.Plain(4, 3, 7)
    x = torch.randn(2, 4, 9, 12)
    expected = F.conv2d(x, plain.weight, plain.bias, padding=3)
    assert torch.allclose(plain(x), expected, atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 5])
def test_the_drawn_kernel_is_what_the_block_computes(gcn, kernel):
    block = gcn.GlobalConvolution(4, 3, kernel).double()
    far = kernel // 2
    weight, bias = gcn.multiplied_out(block)
    assert weight.shape == (3, 4, kernel, kernel)
    x = torch.randn(1, 4, 14, 17, dtype=torch.float64)
    inside = block(x)[..., far : 14 - far, far : 17 - far]
    assert torch.allclose(inside, F.conv2d(x, weight, bias), atol=1e-10)


def test_kept_maps_stand_for_the_encoder(gcn):
    """A head on them gives what the whole network gives, also in another order."""
    encoder = encoders.build("lite0", output_stride=8, maps=4).eval()
    images = torch.randint(256, (3, 3, 65, 81), dtype=torch.uint8)
    kept = gcn.Kept(encoder, images)
    network = gcn.GCN(5, encoder, 7).eval()
    pixels = encoder.normalise(images.float() / 255)
    order = torch.tensor([2, 0])
    planes = order.float().view(-1, 1, 1, 1).expand(-1, 1, 65, 81)
    with torch.inference_mode():
        expected = network(pixels[order])
        network.encoder = kept
        found = network(planes)
    assert not list(kept.parameters())
    assert (found - expected).abs().max() < 1e-2 * expected.abs().max()


def test_a_tap_that_never_meets_the_map_is_found(gcn):
    assert gcn.untrained_taps(17, 21, 15) == 0
    assert gcn.untrained_taps(7, 21, 15) > 0
