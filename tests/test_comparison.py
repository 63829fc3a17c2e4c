"""The harness of the comparison: any network of the book on frames of any size."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from utils import chapters, encoders, scenes

comparison = chapters.load("comparison")
OnFrames, Plain, Colours = comparison.OnFrames, comparison.Plain, comparison.Colours

BUILD = {
    "unet": lambda: (comparison.unet.UNet(3, 5, 2, padded=True), 16),
    "pspnet": lambda: (comparison.pspnet.PSPNet(5, lite0(8), width=8), 1),
    "deeplab v3": lambda: (comparison.deeplab.DeepLabV3(5, lite0(8), (2, 4), 8), 1),
    "deeplab v3+": lambda: (comparison.deeplab.DeepLabV3Plus(5, lite0(), (2,), 8), 1),
    "refinenet": lambda: (
        comparison.refinenet.RefineNet(5, lite0(), 4, 8, 8, light=True), 1
    ),
    "gcn": lambda: (comparison.gcn.GCN(5, lite0(), 3), 1),
    "ternausnetv2": lambda: (
        comparison.ternausnetv2.TernausNetV2(lite0(), 3, 5, 4), 64
    ),
    "ternausnet": lambda: (comparison.instruments.TernausNet(lite0(), 5, 4), 64),
    "linknet": lambda: (comparison.instruments.LinkNet34(5), 32),
    "plain": lambda: (Plain(5, lite0()), 1),
}  # fmt: skip
every_network = pytest.mark.parametrize("name", BUILD)


def lite0(output_stride=32):
    return encoders.build("lite0", output_stride=output_stride)


def build(name):
    torch.manual_seed(0)
    return OnFrames(*BUILD[name]())


@every_network
@pytest.mark.parametrize("size", [(64, 128), (65, 97), (50, 33)])
def test_answers_have_the_size_of_the_images(name, size):
    images = torch.rand(1, 3, *size)
    with torch.no_grad():
        logits = build(name).eval()(images)
    assert logits.shape == (1, 5, *size) and logits.isfinite().all()


@every_network
def test_a_size_that_fits_goes_through_unchanged(name):
    model, images = build(name).eval(), torch.rand(2, 3, 64, 128)
    with torch.no_grad():
        assert torch.equal(model(images), model.network(images))


def test_other_sizes_are_filled_up_at_the_right_and_below_and_cut_back():
    model, images = build("ternausnet").eval(), torch.rand(1, 3, 40, 70)
    filled = F.pad(images, (0, 58, 0, 24), mode="replicate")
    assert torch.equal(filled[..., -1], filled[..., 69])
    with torch.no_grad():
        assert torch.equal(model(images), model.network(filled)[..., :40, :70])


def test_auxiliary_logits_pass_through():
    model = OnFrames(BUILD["pspnet"]()[0], 32).train()
    logits, auxiliary = model(torch.rand(2, 3, 49, 65))
    assert logits.shape == auxiliary.shape == (2, 5, 49, 65)
    assert not torch.equal(logits, auxiliary)


@every_network
def test_each_weight_is_learnt_once(name):
    model = build(name)
    recipe = scenes.Recipe(batch=2, steps=2, every=2, rate=1e-3, faster=4.0)
    groups = scenes.optimizer(model, recipe).param_groups
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    inside = {id(p) for p in model.encoder.parameters()}
    assert {id(p) for p in groups[0]["params"]} == inside
    assert groups[1]["lr"] == 4 * groups[0]["lr"]


def test_network_without_an_exchangeable_encoder_still_gets_normalised_images():
    model, images = build("unet"), torch.rand(1, 3, 8, 8)
    assert isinstance(model.encoder, Colours)
    assert not list(model.encoder.parameters())
    mean, std = images.new_tensor(Colours.mean), images.new_tensor(Colours.std)
    wanted = (images - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    assert torch.allclose(model.encoder.normalise(images), wanted)
    assert build("pspnet").encoder is not None
    assert isinstance(build("pspnet").encoder, encoders.Lite0)


def test_plain_classifies_the_last_map_and_scales_it_up():
    model = Plain(2, lite0()).eval()
    nn.init.zeros_(model.classifier.weight)
    model.classifier.bias.data = torch.tensor([1.0, -2.0])
    with torch.no_grad():
        logits = model(torch.rand(1, 3, 64, 96))
    assert torch.equal(logits[0, :, 5, 7], torch.tensor([1.0, -2.0]))
    assert sum(p.numel() for p in model.classifier.parameters()) == 2 * 321
