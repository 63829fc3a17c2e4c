"""Networks as ONNX graphs: all of the book, gates, and weights for both sides."""

import copy
import importlib.util
import re
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import need
from torch import nn

from utils import chapters, encoders, export, runtime

PACKAGES = "onnx", "onnxscript", "onnxruntime", "safetensors"


@pytest.fixture(autouse=True, scope="module")
def packages():
    for name in PACKAGES:
        need(importlib.util.find_spec(name), f"{name} is missing: pip install {name}")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# Networks


def lite0(output_stride=32, maps=4, **options):
    return encoders.build("lite0", output_stride=output_stride, maps=maps, **options)


class Classified(nn.Module):
    """What ResNeXt gives, with a classifier: images (B, 3, H, W) -> (B, 3, H, W)."""

    def __init__(self, body):
        super().__init__()
        self.body, self.classifier = body, nn.LazyConv2d(3, 1)

    def forward(self, images):
        return F.interpolate(self.classifier(self.body(images)), images.shape[-2:])


def unet(**options):
    return chapters.load("unet").UNet(width=4, **options)


def refinenet(encoder, **options):
    return chapters.load("refinenet").RefineNet(3, encoder, 4, 8, 16, **options)


def pspnet(encoder, **options):
    return chapters.load("pspnet").PSPNet(3, encoder, width=16, **options)


def gcn(**options):
    return chapters.load("gcn").GCN(3, lite0(), 7, **options)


def deeplab(kind, **options):
    made = getattr(chapters.load("deeplab"), kind)
    return made(3, lite0(8), (4, 8, 12), 16, **options)


def in_place():
    network = deeplab("DeepLabV3", align_corners=True)
    chapters.load("inplace_abn").convert(network)
    return network


def resnext():
    return Classified(chapters.load("inplace_abn").ResNeXt((1, 1, 1, 1)))


def ternausnetv2(encoder=None):
    book = chapters.load("ternausnetv2")
    encoder = encoder or book.WideResNet(slim=16, blocks=(1, 1, 1, 1))
    return book.TernausNetV2(encoder, filters=4)


def four_bands():
    return ternausnetv2(lite0(maps=5, in_channels=4))


def instruments(name, *arguments, **options):
    return getattr(chapters.load("instruments"), name)(*arguments, **options)


ODD, EVEN = (65, 85), (64, 128)  # sizes of frames; at stride 8, 6 bins divide neither
NETWORKS = {
    "U-Net": (lambda: unet(padded=True), ODD),
    "U-Net, valid": (unet, (188, 204)),
    "RefineNet": (lambda: refinenet(encoders.build("resnet18")), ODD),
    "Light-Weight RefineNet": (lambda: refinenet(lite0(maps=5), light=True), ODD),
    "PSPNet": (lambda: pspnet(lite0(8, first_block="new")), ODD),
    "GCN": (gcn, ODD),
    "DeepLab v3": (lambda: deeplab("DeepLabV3", aux=True), ODD),
    "DeepLab v3+": (lambda: deeplab("DeepLabV3Plus", separable=True), ODD),
    "In-Place ABN": (in_place, ODD),
    "ResNeXt": (resnext, ODD),
    "TernausNetV2": (ternausnetv2, EVEN),
    "TernausNetV2, greenness": (four_bands, EVEN),
    "TernausNet-11": (lambda: instruments("ternausnet11", 3, filters=4), EVEN),
    "TernausNet-16": (lambda: instruments("ternausnet16", 3, filters=4), EVEN),
    "LinkNet-34": (lambda: instruments("LinkNet34", 3), EVEN),
    "U-Net of instruments": (lambda: instruments("UNet", 3, filters=4), EVEN),
}


def ready(name):
    """A network by name, in evaluation, an image for it (1, C, H, W) uint8 and what
    prepares images in [0, 1] for it.

    Fresh weights let maps fade away and prefer one class; here batch norms have the
    statistics of two images, and on the first of them no class wins everywhere.
    """
    build, size = NETWORKS[name]
    network = build()
    image = frame(size, 1 if name in ("U-Net", "U-Net, valid") else 3)
    prepare = preparation(network)
    images = prepare(torch.cat([image, image.flip(2, 3)]).float() / 255)
    network(images)  # for lazy layers
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and module.groups == 1:
            nn.init.kaiming_normal_(module.weight)
        elif hasattr(module, "running_var"):
            module.momentum = 1.0  # of the last batch alone
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.weight.data[::3] *= -1
            nn.init.normal_(module.bias, 0, 0.3)
        elif isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
    with torch.no_grad():
        network.train()(images)
        last = last_convolution(network.eval(), images)
        last.bias -= network(images[:1]).mean((0, 2, 3))  # so no class is everywhere
    return network, image, prepare


def frame(size, channels=3):
    """An image (1, channels, *size) uint8 of random squares."""
    squares = torch.randint(256, (1, channels, 32, 32), dtype=torch.uint8)
    squares = squares.repeat_interleave(8, 2).repeat_interleave(8, 3)
    return squares[..., : size[0], : size[1]].contiguous()


def preparation(network):
    """Images in [0, 1] (B, C, H, W) -> what the network takes, as in its chapter."""
    encoder = getattr(network, "encoder", None)
    if not isinstance(encoder, encoders.Encoder):
        return lambda pixels: pixels
    return partial(chapters.load("ternausnetv2").prepare, encoder)


def last_convolution(network, images):
    """The convolution that a network runs last."""
    ran = []
    hooks = [
        module.register_forward_hook(lambda module, *_: ran.append(module))
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
    ]
    network(images)
    for hook in hooks:
        hook.remove()
    return ran[-1]


# Graphs


def run(path, image, gates=None, fill=None):
    """What onnxruntime makes of a graph, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )
    inputs = {"image": image.numpy()}
    if gates is not None:
        inputs["gates"] = np.array(gates, np.float32)
    if fill is not None:
        inputs["fill"] = np.array([fill], np.float32)
    (logits,) = session.run(["logits"], inputs)
    return torch.from_numpy(logits)


@torch.no_grad()
def assert_gives(path, network, image, prepare, gates=None):
    """A graph has the network's labels, as good as all, and its logits, rounded."""
    found, expected = run(path, image, gates), network(prepare(image.float() / 255))
    assert found.shape == expected.shape
    labels = expected.argmax(1)
    assert len(labels.unique()) > 1
    assert (found.argmax(1) == labels).float().mean() >= 0.999
    assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()


def state_of(network):
    """All that an export could change: values, modes, hooks, replaced methods."""
    modules = list(network.modules())
    return (
        {name: value.clone() for name, value in network.state_dict().items()},
        [(m.training, "forward" in vars(m)) for m in modules],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules],
        encoders.SameConv2d.on_grids,
    )


def assert_unchanged(network, before):
    values, *others = state_of(network)
    assert others == list(before[1:])
    assert values.keys() == before[0].keys()
    assert all(torch.equal(values[name], before[0][name]) for name in values)


# Of the standard; what onnxruntime-web's WebAssembly runs, tried with all of them.
OPERATIONS = {
    "Abs", "Add", "BatchNormalization", "Cast", "Clip", "Concat", "Constant", "Conv",
    "ConvTranspose", "Div", "Expand", "Gather", "GatherND", "LeakyRelu", "MaxPool",
    "Mul", "Pad", "ReduceMean", "Relu", "Resize", "Slice", "Split", "Sub", "Transpose",
    "Where",
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_graph_gives_the_labels_of_pytorch(name, tmp_path):
    network, image, prepare = ready(name)
    before = state_of(network.train())
    path = tmp_path / "graph.onnx"
    given = {"prepare": prepare} if "greenness" in name else {}
    count = export.export(network, image, path, **given)
    assert_unchanged(network, before)
    assert encoders.SameConv2d.on_grids
    assert count.keys() <= OPERATIONS
    assert_plain(path, network)
    assert_gives(path, network.eval(), image, prepare)


def assert_plain(path, network):
    """Only operations of the standard, weights by the names and with the values of the
    state dict, no path of this machine, and little beside the weights."""
    import onnx

    graph = onnx.load(path)
    assert not graph.functions
    assert {node.domain for node in graph.graph.node} == {""}
    state = network.state_dict()
    weights = {w.name: w for w in graph.graph.initializer}
    expected = {n for n in state if not n.endswith("num_batches_tracked")}
    assert all(n.startswith("aux.") for n in expected - weights.keys())
    for name in expected & weights.keys():
        value = torch.from_numpy(onnx.numpy_helper.to_array(weights[name]).copy())
        assert torch.equal(value, state[name])
    written = path.read_bytes()
    assert str(runtime.root()).encode() not in written
    of_weights = sum(len(w.raw_data) for w in weights.values())
    assert len(written) - of_weights < 150_000


def test_same_network_gives_the_same_file(tmp_path):
    network, image, _ = ready("U-Net of instruments")
    files = [tmp_path / "first.onnx", tmp_path / "second.onnx"]
    for path in files:
        export.export(network, image, path)
    assert files[0].read_bytes() == files[1].read_bytes()


# Gates


def zero(*tensors):
    for tensor in tensors:
        tensor.data.zero_()


# Of each part, a way to remove it by weights alone.
GATED = {
    "U-Net": {
        "skip": ("decoder.3(1)", lambda n: zero(n.decoder[3].convs[0].weight[:, :4])),
        "depth": ("encoder.4", lambda n: zero(n.decoder[0].up.weight)),
    },
    "DeepLab v3+": {
        "branch": (
            "aspp.branches.2",
            lambda n: zero(*n.aspp.branches[2][4].parameters()),
        ),
        "scene": (
            "aspp.image_pooling",
            lambda n: zero(*n.aspp.image_pooling[2].parameters()),
        ),
        "fine map": ("encoder[1]", lambda n: zero(n.low_level[0].weight)),
    },
}


@pytest.mark.parametrize("name", GATED)
def test_gates_remove_parts(name, tmp_path):
    network, image, prepare = ready(name)
    before, path = state_of(network), tmp_path / "graph.onnx"
    parts = {gate: part for gate, (part, _) in GATED[name].items()}
    export.export(network, image, path, parts)
    assert_unchanged(network, before)
    ones = np.ones(len(parts))
    assert_gives(path, network, image, prepare, ones)
    whole = run(path, image, ones).argmax(1)
    for number, (_, remove) in enumerate(GATED[name].values()):
        without = copy.deepcopy(network)
        remove(without)
        gates = np.where(np.arange(len(parts)) == number, 0, 1)
        assert_gives(path, without, image, prepare, gates)
        assert (run(path, image, gates).argmax(1) != whole).float().mean() > 0.01


@pytest.mark.parametrize("name", GATED)
def test_parts_give_way_to_their_means(name, tmp_path):
    """On the image of which the means are, a constant is left of each part."""
    network, image, prepare = ready(name)
    before, path = state_of(network), tmp_path / "graph.onnx"
    parts = {gate: part for gate, (part, _) in GATED[name].items()}
    pair = torch.cat([image, image.flip(3)])
    means = export.part_means(network, parts, pair)
    export.export(network, image, path, parts, means=means)
    assert_unchanged(network, before)
    ones = np.ones(len(parts))
    for fill in (0, 1):
        assert torch.equal(run(path, image, ones, fill), run(path, image, ones, 0))
    for number, (gate, part) in enumerate(parts.items()):
        gates = np.where(np.arange(len(parts)) == number, 0, 1)
        constant = means[gate][:, None, None].expand
        hook = export.attach(network, part, lambda x: constant(*x.shape[1:])[None])
        with hook, torch.no_grad():
            expected = network(prepare(image.float() / 255))
        found = run(path, image, gates, 1)
        assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()
        assert not torch.equal(found, run(path, image, gates, 0))


def test_means_are_those_of_all_images(tmp_path):
    network, image, prepare = ready("DeepLab v3+")
    images = torch.cat([image, image.flip(2)])
    found = export.part_means(network, {"early": "low_level"}, images)["early"]
    with torch.no_grad():
        early = network.encoder(prepare(images.float() / 255))[network.level]
        expected = network.low_level(early).mean((0, 2, 3))
    assert torch.allclose(found, expected, rtol=2e-3, atol=1e-4)
    assert torch.equal(found, found.half().float())


@pytest.mark.parametrize(
    "part, message",
    [
        ("aspp.branches.9", "no part 'aspp.branches.9'"),
        ("aspp.branches[", "no part"),
        ("encoder[7]", "number 7 of 4"),
        ("aux", "do not depend on 'aux'"),
    ],
)
def test_gate_without_effect_is_refused(part, message, tmp_path):
    network, image, _ = ready("DeepLab v3")
    with pytest.raises(ValueError, match=re.escape(message)):
        export.export(network, image, tmp_path / "graph.onnx", {"some": part})


# Weights


def test_one_file_of_weights_for_both_sides(tmp_path):
    from safetensors.torch import load_file

    network, image, prepare = ready("In-Place ABN")
    path, weights = tmp_path / "graph.onnx", tmp_path / "weights.safetensors"
    export.save_weights(network, weights)
    export.export(network, image, path, weights=weights)
    rounded = copy.deepcopy(network)
    rounded.load_state_dict(load_file(weights))
    assert_gives(path, rounded, image, prepare)
    assert not torch.equal(rounded.head[1].weight, network.head[1].weight)
    assert torch.equal(rounded.head[1].bias, network.head[1].bias)
    assert path.stat().st_size < 150_000
    numbers = sum(value.numel() for value in network.state_dict().values())
    assert weights.stat().st_size < 2.5 * numbers


def test_weights_of_another_model_or_folder_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    export.save_weights(nn.Conv2d(3, 4, 1), path)
    state = nn.Conv2d(3, 5, 1).state_dict()
    with pytest.raises(ValueError, match="another model"):
        export.point(None, state, path, tmp_path)
    with pytest.raises(ValueError, match="in the folder"):
        export.point(None, state, path, tmp_path / "below")


# What is refused


@pytest.mark.parametrize(
    "image", [torch.zeros(1, 3, 65, 85), torch.zeros(3, 65, 85, dtype=torch.uint8)]
)
def test_other_frames_are_refused(image, tmp_path):
    with pytest.raises(ValueError, match="uint8"):
        export.export(nn.Identity(), image, tmp_path / "graph.onnx")


def test_errors_are_the_networks_own_and_nothing_stays_switched(tmp_path, monkeypatch):
    path = tmp_path / "graph.onnx"
    with pytest.raises(ValueError, match="16 k"):
        export.export(unet(), frame((64, 64), 1), path)
    assert encoders.SameConv2d.on_grids

    def fail(*_, **__):
        assert not encoders.SameConv2d.on_grids
        raise RuntimeError("the exporter fails")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(RuntimeError, match="the exporter fails"):
        export.export(unet(padded=True), frame((64, 64), 1), path)
    assert encoders.SameConv2d.on_grids
    assert not path.exists()


def test_operations_outside_the_standard_are_refused():
    import onnx_ir as ir

    node = ir.node("Fancy", [], domain="own")
    graph = ir.Graph([], [], nodes=[node], opset_imports={"": 20, "own": 1})
    with pytest.raises(ValueError, match="own.Fancy"):
        export.operations(ir.Model(graph, ir_version=10))


def test_missing_packages_say_what_to_install(monkeypatch, tmp_path):
    for name in (*PACKAGES, "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install onnx onnxscript"):
        export.export(nn.Identity(), frame((64, 64)), tmp_path / "graph.onnx")
    with pytest.raises(ImportError, match="safetensors"):
        export.save_weights(nn.Identity(), tmp_path / "weights.safetensors")
