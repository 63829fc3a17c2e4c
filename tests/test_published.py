"""Names of published weights: `published/*.txt` lists what the repositories' networks
have, a key and its shape a line, in the order of their state dicts."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch import nn

from utils import chapters, encoders, published

LISTS = ROOT / "tests" / "published"


def deeplab(kind, **options):
    return getattr(chapters.load("deeplab"), kind)(21, **options)


def gcn():
    sizes = {2048: 15, 1024: 31, 512: 63, 256: 127}
    chapter = chapters.load("gcn")

    def block(channels, classes, _):
        return chapter.GlobalConvolution(channels, classes, sizes[channels])

    return chapter.GCN(21, encoders.build("resnet152"), block=block)


def resnext():
    model = chapters.load("inplace_abn").ResNeXt((3, 4, 23, 3), groups=64)
    norm = chapters.load("inplace_abn").InPlaceABN
    model.stem = nn.Sequential(
        nn.Conv2d(3, 64, 3, 2, 1, bias=False), norm(64),
        nn.Conv2d(64, 64, 3, 1, 1, bias=False), norm(64),
        nn.Conv2d(64, 64, 3, 1, 1, bias=False), nn.MaxPool2d(3, 2, 1),
    )  # fmt: skip
    return model


def light():
    encoder = encoders.build("resnet50")
    return chapters.load("refinenet").RefineNet(21, encoder, light=True)


MODELS = {  # of each list
    "unet": lambda: chapters.load("unet").UNet(3, 2, padded=True),
    "refinenet": lambda: chapters.load("refinenet").RefineNet(21),
    "light_weight_refinenet": light,
    "pspnet": lambda: chapters.load("pspnet").PSPNet(150),
    "gcn": gcn,
    "torchvision_deeplab_v3": lambda: deeplab("DeepLabV3", aux=True),
    "vainf_deeplab_v3": lambda: deeplab("DeepLabV3"),
    "vainf_deeplab_v3plus": lambda: deeplab("DeepLabV3Plus", decoder_convs=1),
    "wide_resnet38": lambda: chapters.load("ternausnetv2").WideResNet(3),
    "resnext101": resnext,
    "ternausnetv2": lambda: chapters.load("ternausnetv2").TernausNetV2(),
    "ternausnet11": lambda: chapters.load("instruments").ternausnet11(),
    "carvana_ternausnet11": lambda: chapters.load("instruments").ternausnet11(),
    "ternausnet16": lambda: chapters.load("instruments").ternausnet16(),
    "linknet34": lambda: chapters.load("instruments").LinkNet34(),
    "instruments_unet": lambda: chapters.load("instruments").UNet(),
}
LEFT_OUT = {"wide_resnet38": ("mod6", "mod7", "bn_out", "classifier")}
LEFT_OUT |= {"resnext101": ("classifier",)}


def build(name):
    with torch.device("meta"):  # without memory
        return MODELS[name]()


def listed(name):
    """{key: shape} of a list."""
    lines = LISTS.joinpath(f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return {key: tuple(map(int, rest)) for key, *rest in map(str.split, lines)}


def numbered(name):
    """Weights that all say which they are: the first has zeros, the next ones, ..."""
    shapes = listed(name)
    state = {
        key: torch.tensor(float(number)).expand(shape)
        for number, (key, shape) in enumerate(shapes.items())
    }
    if name.endswith(("net11", "net16")):  # the encoder is in there twice
        first = [key for key in shapes if key.startswith("encoder.")]
        again = [key for key in shapes if key.startswith("conv")]
        state |= {a: state[b] for a, b in zip(again, first, strict=True)}
    return state


def test_there_is_a_list_for_every_network():
    assert set(MODELS) == {file.stem for file in LISTS.glob("*.txt")}
    without = {"resnext50", "resnext152"}  # resnext101 in other lengths
    assert set(published.NAMES) == set(MODELS) - {"carvana_ternausnet11"} | without


def test_the_lists_have_the_published_numbers_of_weights():
    for name, number in (
        ("torchvision_deeplab_v3", 42_004_074),
        ("light_weight_refinenet", 27_357_525),
    ):
        buffers = "running_mean", "running_var", "num_batches_tracked"
        shapes = listed(name).items()
        learnt = [shape for key, shape in shapes if not key.endswith(buffers)]
        assert sum(map(math.prod, learnt)) == number


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"unet"}))
def test_weights_by_name_come_in_the_order_of_the_layers(name):
    """Both networks create their layers in one order, so that counting must agree."""
    model, state = build(name), numbered(name)
    found = published.renamed(model, state, name.removeprefix("carvana_"))
    own = model.state_dict()
    assert set(found) == set(own)
    assert all(found[key].shape == own[key].shape for key in own)
    numbers = [found[key].flatten()[0].item() for key in own]
    if name != "vainf_deeplab_v3plus":  # except in this one; it is computed below
        assert all(a < b for a, b in zip(numbers, numbers[1:]))
    has_counters = any(key.endswith("num_batches_tracked") for key in own)
    used = {
        value.flatten()[0].item()
        for key, value in state.items()
        if has_counters or not key.endswith("num_batches_tracked")
        if not key.startswith(LEFT_OUT.get(name, "no such key"))
    }
    assert set(numbers) == used


def test_unet_takes_all_that_is_listed():
    model = build("unet")
    state = {key: torch.empty(s, device="meta") for key, s in listed("unet").items()}
    found = published.renamed(model, state | {"mask_values": [0, 1]}, "unet")
    assert {k: v.shape for k, v in found.items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


# Small networks, written out in plain functions under the published names


class Reference(dict):
    """A state dict that fills with random weights as its network runs."""

    def __init__(self, signed=True):
        super().__init__()
        self.signed = signed  # whether a normalisation may have negative weights
        self.generator = torch.Generator().manual_seed(0)

    def random(self, key, *shape):
        if key not in self:
            inputs = math.prod(shape[1:])
            value = torch.randn(shape, generator=self.generator) / inputs**0.5
            self[key] = value
        return self[key]

    def conv(self, x, key, channels, kernel, bias=True, stride=1):
        weight = self.random(f"{key}.weight", channels, x.shape[1], kernel, kernel)
        bias = self.random(f"{key}.bias", channels) if bias else None
        return F.conv2d(x, weight, bias, stride, kernel // 2)

    def up(self, x, key, channels, kernel, *padding):
        weight = self.random(f"{key}.weight", x.shape[1], channels, kernel, kernel)
        bias = self.random(f"{key}.bias", channels)
        return F.conv_transpose2d(x, weight, bias, 2, *padding)

    def norm(self, x, key):
        leaves = "running_mean", "running_var", "weight", "bias"
        mean, var, weight, bias = (
            self.random(f"{key}.{leaf}", x.shape[1]) for leaf in leaves
        )
        var.abs_().add_(0.5)
        if not self.signed:
            weight.abs_().add_(0.5)
        return F.batch_norm(x, mean, var, weight, bias)


class Maps(nn.Module):
    """An encoder without weights, which gives the same maps for every image."""

    def __init__(self, maps, strides):
        super().__init__()
        self.maps, self.strides = maps, strides
        self.channels = tuple(x.shape[1] for x in maps)

    def forward(self, images):
        return list(self.maps)


def random_maps(*channels, first=16):
    return [torch.randn(1, c, first >> k, first >> k) for k, c in enumerate(channels)]


def resize(x, like):
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)


def agree(model, state, network, images, expected):
    published.load(model, state, network)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), expected, rtol=1e-3, atol=1e-3)


def test_unet_computes_the_same_without_its_normalisation():
    r, images = Reference(), torch.randn(2, 3, 32, 32)

    def double(x, key, channels):
        for k in (0, 3):
            x = r.conv(x, f"{key}.double_conv.{k}", channels, 3, bias=False)
            x = r.norm(x, f"{key}.double_conv.{k + 1}").relu()
        return x

    maps = [double(images, "inc", 4)]
    for n in (1, 2, 3, 4):
        pooled = F.max_pool2d(maps[-1], 2)
        maps.append(double(pooled, f"down{n}.maxpool_conv.1", 4 * 2**n))
    x = maps.pop()
    for n in (1, 2, 3, 4):
        skip = maps.pop()
        x = torch.cat([skip, r.up(x, f"up{n}.up", skip.shape[1], 2)], 1)
        x = double(x, f"up{n}.conv", skip.shape[1])
    expected = r.conv(x, "outc.conv", 2, 1)
    model = chapters.load("unet").UNet(3, 2, width=4, padded=True)
    agree(model, r, "unet", images, expected)


@pytest.mark.parametrize("network", ["refinenet", "light_weight_refinenet"])
def test_refinenet_computes_the_same(network):
    is_light = network.startswith("light")
    kernel = 1 if is_light else 3
    r, maps = Reference(), random_maps(3, 4, 5, 6)

    def rcus(x, key, count):
        for k in range(1, 1 if is_light else count + 1):
            y = r.conv(x.relu(), f"{key}.0.{k}_conv", x.shape[1], 3)
            key2 = f"{key}.0.{k}_conv_relu_varout_dimred"
            x = x + r.conv(y.relu(), key2, x.shape[1], 3, bias=False)
        return x

    x = None
    for n, (feature, width) in enumerate(zip(maps[::-1], (4, 2, 2, 2)), 1):
        y = r.conv(feature, f"p_ims1d2_outl{n}_dimred", width, kernel, bias=False)
        y = rcus(y, f"adapt_stage{n}_b", 2)
        if x is not None:
            key = f"adapt_stage{n}_b2_joint_varout_dimred"
            y = r.conv(y, key, width, kernel, bias=False)
            key = f"mflow_conv_g{n - 1}_b3_joint_varout_dimred"
            y = y + resize(r.conv(x, key, width, kernel, bias=False), y)
        x = link = y.relu()
        for k in (1, 2, 3, 4):
            key = f"mflow_conv_g{n}_pool.0.{k}_outvar_dimred"
            link = F.max_pool2d(link, 5, 1, 2)
            link = r.conv(link, key, width, kernel, bias=False)
            x = x + link
        x = rcus(x, f"mflow_conv_g{n}_b", 3)
    images = torch.zeros(1, 3, 32, 32)
    expected = resize(r.conv(x, "clf_conv", 3, 3), images)
    # The published network has a ResNet, which is not at stake here.
    model = chapters.load("refinenet").RefineNet(
        3, Maps(maps, (4, 8, 16, 32)), width=2, deepest=4, light=is_light
    )
    agree(model, r, network, images, expected)


def test_pspnet_and_deeplab_compute_the_same():
    r, maps = Reference(), random_maps(3, 4, 8)
    images = torch.zeros(1, 3, 32, 32)

    def conv_norm(x, key, k, channels, kernel):
        x = r.conv(x, f"{key}.{k}", channels, kernel, bias=False)
        return r.norm(x, f"{key}.{k + 1}").relu()

    parts = [maps[-1]]
    for k, bin in enumerate((1, 2, 3, 6)):
        pooled = F.adaptive_avg_pool2d(maps[-1], bin)
        parts.append(resize(conv_norm(pooled, f"ppm.features.{k}", 1, 2, 1), maps[-1]))
    x = r.conv(conv_norm(torch.cat(parts, 1), "cls", 0, 4, 3), "cls.4", 5, 1)
    r.conv(conv_norm(maps[-2], "aux", 0, 2, 3), "aux.4", 5, 1)
    network = chapters.load("pspnet").PSPNet
    for aux in (True, False):
        model = network(5, Maps(maps, (2, 4, 8)), width=4, aux=aux)
        agree(model, r, "pspnet", images, resize(x, images))

    r = Reference()
    low = conv_norm(maps[1], "classifier.project", 0, 3, 1)
    key = "classifier.aspp"
    parts = [conv_norm(maps[2], f"{key}.convs.0", 0, 4, 1)]
    # Rate 1: the names do not depend on it.
    parts += [conv_norm(maps[2], f"{key}.convs.{k}", 0, 4, 3) for k in (1, 2, 3)]
    scene = conv_norm(F.adaptive_avg_pool2d(maps[2], 1), f"{key}.convs.4", 1, 4, 1)
    parts.append(scene.expand_as(parts[0]))
    x = conv_norm(torch.cat(parts, 1), f"{key}.project", 0, 4, 1)
    x = conv_norm(torch.cat([low, resize(x, low)], 1), "classifier.classifier", 0, 4, 3)
    x = resize(r.conv(x, "classifier.classifier.3", 5, 1), images)
    model = chapters.load("deeplab").DeepLabV3Plus(
        5, Maps(maps, (2, 4, 8)), (1, 1, 1), 4, 3, decoder_convs=1, align_corners=True
    )
    agree(model, r, "vainf_deeplab_v3plus", images, x)


def plain(model):
    """Every InPlaceABN replaced by batch normalisation and leaky ReLU."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "InPlaceABN":
                norm = nn.BatchNorm2d(len(child.weight)), nn.LeakyReLU(0.01)
                setattr(module, name, nn.Sequential(*norm))
    return model


@pytest.mark.parametrize("norm", ["in place", "plain"])
def test_ternausnetv2_computes_the_same(norm):
    r, images = Reference(signed=norm == "plain"), torch.randn(1, 5, 64, 64)

    def block(x, key, channels):
        y = F.leaky_relu(r.norm(x, f"{key}.bn1"))
        beside = x
        if x.shape[1] != channels[1]:
            beside = r.conv(y, f"{key}.proj_conv", channels[1], 1, bias=False)
        y = r.conv(y, f"{key}.convs.conv1", channels[0], 3, bias=False)
        y = F.leaky_relu(r.norm(y, f"{key}.convs.bn2"))
        return beside + r.conv(y, f"{key}.convs.conv2", channels[1], 3, bias=False)

    def up(x, key, *channels):
        x = F.interpolate(x, scale_factor=2)
        for k, c in enumerate(channels, 1):
            x = r.conv(x, f"{key}.block.{k}.conv", c, 3).relu()
        return x

    maps = [r.conv(images, "conv1.conv1", 1, 3, bias=False)]
    stages = (2, 2, 3), (4, 4, 3), (8, 8, 6), (8, 16, 3)
    for n, (*channels, count) in enumerate(stages, 2):
        x = F.max_pool2d(maps[-1], 2)
        for k in range(1, count + 1):
            x = block(x, f"conv{n}.block{k}", channels)
        maps.append(x)
    x = up(F.max_pool2d(maps[-1], 2), "center", 8, 8)
    for n, channels in ((5, (8, 8)), (4, (8, 8)), (3, (2, 2)), (2, (2, 1))):
        x = up(torch.cat([x, maps[n - 1]], 1), f"dec{n}", *channels)
    x = r.conv(torch.cat([x, maps[0]], 1), "dec1.conv", 1, 3).relu()
    expected = r.conv(x, "final", 2, 1)
    chapter = chapters.load("ternausnetv2")
    model = chapter.TernausNetV2(chapter.WideResNet(5, slim=64), filters=1)
    model = plain(model) if norm == "plain" else model
    agree(model, r, "ternausnetv2", images, expected)


def test_ternausnet_carvana_computes_the_same():
    """Its transposed convolutions have kernels of 3x3."""
    r, maps = Reference(), random_maps(2, 2, 3, 4, 4, first=32)

    def up(x, key, middle, channels):
        x = r.conv(x, f"{key}.block.0.conv", middle, 3).relu()
        return r.up(x, f"{key}.block.1", channels, 3, 1, 1).relu()

    x = up(F.max_pool2d(maps[-1], 2), "center", 16, 8)
    widths = {5: (16, 8), 4: (16, 4), 3: (8, 2), 2: (4, 1)}
    for n, channels in widths.items():
        x = up(torch.cat([x, maps[n - 1]], 1), f"dec{n}", *channels)
    x = r.conv(torch.cat([x, maps[0]], 1), "dec1.conv", 1, 3).relu()
    expected = r.conv(x, "final", 1, 1)
    chapter = chapters.load("instruments")
    encoder = Maps(maps, (1, 2, 4, 8, 16))
    model = chapter.TernausNet(encoder, filters=1, widths=chapter.WIDTHS_11)
    agree(model, r, "ternausnet11", torch.zeros(1, 3, 32, 32), expected)


# What files have around the weights, and errors


@pytest.fixture
def small():
    """A small network and weights for it under the published names."""
    model = chapters.load("instruments").UNet(classes=2, filters=1)
    r = Reference()
    for side in ("down", "up"):
        for k, block in enumerate(getattr(model, side)):
            x = torch.zeros(1, block[0][0].in_channels, 4, 4)
            for layer in ("l1", "l2"):
                x = r.conv(x, f"{side}.{k}.{layer}.conv", block[1][0].out_channels, 3)
    r.conv(torch.zeros(1, 1, 4, 4), "conv_final", 2, 1)
    return model, dict(r)


def refused(model, state, network="instruments_unet"):
    """The message; the model must be as before."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        published.load(model, state, network)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    return str(caught.value)


def test_checkpoints_and_the_prefix_of_data_parallel(small):
    model, state = small
    parallel = {f"module.{key}": value for key, value in state.items()}
    checkpoints = parallel, {"model": parallel, "epoch": 3}, {"model_state": state}
    for checkpoint in checkpoints:
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        published.load(model, checkpoint, "instruments_unet")
        assert torch.equal(model.up[3][1][0].bias, state["up.3.l2.conv.bias"])


def test_keys_that_are_unknown_missing_or_of_another_shape(small):
    model, state = small
    message = refused(model, state | {"extra.weight": torch.zeros(1)})
    assert "1 unknown: extra.weight. The top" in message
    rest = {key: value for key, value in state.items() if "up.2.l1" not in key}
    message = refused(model, rest)
    assert "2 missing: up.2.0.0.weight, up.2.0.0.bias. The top" in message
    message = refused(model, state | {"conv_final.weight": torch.zeros(5, 1, 1, 1)})
    assert "1 of another shape: final.weight 5x1x1x1 instead of 2x1x1x1" in message
    message = refused(model, {"net": state})
    assert "1 unknown: net. 38 missing: down.0.0.0.weight, " in message
    assert message.count(", ") == 5 and "…. The top of utils/published.py" in message


def test_an_unknown_network_lists_the_known(small):
    message = refused(*small, network="unet2")
    assert message.startswith("no weights 'unet2'; there are: unet, refinenet, ")


def test_weights_that_have_no_place():
    with torch.device("meta"):
        model = chapters.load("refinenet").RefineNet(21, encoders.build("resnet50"))
    with pytest.raises(ValueError, match=r"255 without a place: encoder\.layer3\.6\."):
        published.renamed(model, numbered("refinenet"), "refinenet")


def test_old_files_without_counters_and_with_wrappers():
    model = build("pspnet")
    state = numbered("pspnet")
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    found = published.renamed(model, old, "pspnet")
    assert set(found) == set(model.state_dict())
    model, state = build("wide_resnet38"), numbered("wide_resnet38")
    new = {key.replace(".bn.", "."): value for key, value in state.items()}
    assert set(new) != set(state)
    a, b = (published.renamed(model, s, "wide_resnet38") for s in (state, new))
    assert a.keys() == b.keys() and all(a[key] is b[key] for key in a)


def test_the_auxiliary_head():
    """It is left out where the model has none; it does not come from nowhere."""
    state = numbered("torchvision_deeplab_v3")
    without = build("vainf_deeplab_v3")
    found = published.renamed(without, state, "torchvision_deeplab_v3")
    assert set(found) == set(without.state_dict())
    state = {k: v for k, v in state.items() if not k.startswith("aux")}
    with pytest.raises(ValueError, match=r"7 missing: aux\.0\.0\.weight"):
        model = build("torchvision_deeplab_v3")
        published.renamed(model, state, "torchvision_deeplab_v3")


def test_a_normalisation_that_is_not_complete_is_reported():
    model = build("unet")
    state = {key: torch.empty(s, device="meta") for key, s in listed("unet").items()}
    key = "inc.double_conv.4.bias"
    rest = {k: value for k, value in state.items() if k != key}
    for broken in (rest, state | {key: torch.empty(3, device="meta")}):
        with pytest.raises(ValueError, match=r"1 missing: encoder\.0\.2\.bias\."):
            published.renamed(model, broken, "unet")


def test_two_copies_of_one_weight_must_be_equal():
    state = numbered("ternausnet16")
    state["conv3.2.bias"] = state["conv3.2.bias"] + 1
    with pytest.raises(ValueError, match=r"1 in two versions: conv3\.2\.bias\. "):
        published.renamed(build("ternausnet16"), state, "ternausnet16")
