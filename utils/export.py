"""Networks of the book as ONNX graphs, which a browser runs on the live pages.

`export(model, frame, path)` writes one: the evaluation path at one size of frame, in
operations of the ONNX standard alone. Its inputs and its output:

    image   uint8 (1, C, H, W), 0 to 255, as the page has it: scaling to [0, 1] and the
            encoder's normalisation are in the graph
    gates   float32 (G,), only if asked for: for each named part, a number by which the
            part's output is multiplied; 1 leaves it alone, 0 removes it. The page
            always sends them: an input with a default is one that onnxruntime-web
            does not let it set
    fill    float32 (1,), only with means: what comes in place of a removed part, as a
            multiple of its mean; 0 is nothing, 1 the mean
    logits  float32 (1, K, H, W): softmax, sigmoid or argmax are left to the page

What had to change for it, per network:

    all                 batch norm is not folded into convolutions, as the exporter does
                        by default, so that names and values are the state dict's
                        (onnxruntime folds when it loads the graph); no metadata, which
                        has stack traces with paths
    those on Lite0      SameConv2d.on_grids off: the grids are fast in PyTorch only
    In-Place ABN,       InPlaceABN overwrites its input by a Function of its own, which
    TernausNetV2        no exporter knows: batch norm with scale |weight| + eps and
                        leaky ReLU instead. Abs and Add stay in the graph, so that the
                        weights are the state dict's here too
    TernausNetV2 with   `prepare` must be given: the chapter's, which adds greenness
    greenness           behind the normalisation
    PSPNet              nothing: where bins do not divide the map, the exporter gathers
                        their windows, by indices that are constants, and averages
                        them; matrices are not needed
    U-Net, RefineNet,   nothing
    GCN, DeepLab,
    instruments

A gate on a skip: in U-Net, what a level of the encoder gives also goes down to the
next, so the gate is on the argument of the decoder's block. Encoders of
`utils.encoders` give a list that only decoders read: there it is on an item of it.
"""

import contextlib
import copy
import json
import re
from collections import Counter
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from utils import encoders, runs

STANDARD = "", "ai.onnx"  # names of the standard's own operations
OPSET = 20  # of the standard; fixed, so that a new exporter writes the same graph
# path, path[item], path(argument)
PART = re.compile(r"([\w.]*)(?:\[(\d+)\]|\((\d+)\))?")
INSIDE = "network."  # what `Live` puts before the names of the state dict


def export(model, frame, path, gates=None, prepare=None, weights=None, means=None):
    """Writes a network as an ONNX graph; returns how often it has each operation.

    model: images (1, C', H, W) float32 -> logits (1, K, H, W); a copy is exported, the
    model stays as it is. frame: an image (1, C, H, W) uint8, of which only the size
    matters. path: of the new file. gates: {name: part}, see `attach`; the input has
    their order. prepare: pixels (1, C, H, W) in [0, 1] -> images; by default the
    normalisation of the model's encoder, if it has one of `utils.encoders`.

    weights: a file that `save_weights` has made of this model, in the folder of the
    graph, which then reads them from there and is small. means: of each gate's part,
    the mean of each channel (C,), see `part_means`.

    Raises ImportError without the packages; ValueError for another frame or one that
    the model does not take, for a gate on a part that there is not or that has no say
    in the logits, for weights of another model, for operations outside the standard.
    """
    onnx, ir, _ = tools()
    path, gates = Path(path), gates or {}
    if frame.dtype != torch.uint8 or frame.ndim != 4 or len(frame) != 1:
        shape = tuple(frame.shape)
        raise ValueError(f"a frame is (1, C, H, W) uint8, not {shape} {frame.dtype}")
    check_names(model, gates)
    live = Live(evaluated(model), prepare or preparation(model), gates, means).eval()
    graph = convert(live, frame.cpu())
    count = operations(graph)
    if weights is not None:
        point(graph, model.state_dict(), Path(weights), path.parent)
    ir.save(graph, path)
    onnx.checker.check_model(str(path), full_check=True)
    return count


@contextlib.contextmanager
def needed():
    """For imports of what only an export needs; ImportError says what to do."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            "an export needs more packages: pip install onnx onnxscript safetensors"
        ) from error


def tools():
    """The packages onnx, onnx_ir and onnxscript."""
    with needed():
        import onnx
        import onnx_ir
        import onnxscript.optimizer
    return onnx, onnx_ir, onnxscript


# The network


class Live(nn.Module):
    """A network as the page calls it: image (1, C, H, W) uint8 -> logits (1, K, H, W).

    gates, in forward: float32 (G,), one for each of the parts; fill: float32 (1,), with
    means (name -> (C,) each).
    """

    def __init__(self, network, prepare, parts, means=None):
        super().__init__()
        self.network, self.prepare, self.parts = network, prepare, parts
        self.means = nn.ParameterDict()  # under these names in the graph
        for number, name in enumerate(parts if means else ()):
            self.means[str(number)] = nn.Parameter(means[name][:, None, None], False)

    def forward(self, image, gates=None, fill=None):
        with contextlib.ExitStack() as hooks:
            for number, part in enumerate(self.parts.values()):
                gate = gates[number]
                off = (1 - gate) * fill * self.means[str(number)] if self.means else 0
                change = partial(gated, gate, off)
                hooks.enter_context(attach(self.network, part, change))
            return self.network(self.prepare(image.float() / 255))


def gated(gate, off, maps):
    """Maps (B, C, H, W) times a gate, and what comes in their place."""
    return maps * gate + off


def attach(network, part, change):
    """A hook that changes what a part of a network gives, as a context manager.

    part: "aspp.branches.1" for what this submodule gives, "encoder[2]" for one item of
    a list that it gives, "decoder.3(1)" for one of its arguments. Both count from 0.
    change: maps (B, C, H, W) -> maps.
    """
    path, item, argument = PART.fullmatch(part).groups()
    module = network.get_submodule(path)
    if argument:
        return module.register_forward_pre_hook(
            lambda _, given: changed(given, int(argument), change)
        )
    if item:
        return module.register_forward_hook(
            lambda _, given, made: changed(made, int(item), change)
        )
    return module.register_forward_hook(lambda _, given, made: change(made))


def changed(maps, number, change):
    """Maps, a list or tuple, with one of them changed."""
    if number >= len(maps):
        raise ValueError(f"a gate on number {number} of {len(maps)}; they count from 0")
    return type(maps)(change(m) if k == number else m for k, m in enumerate(maps))


@torch.inference_mode()
def part_means(model, gates, images, prepare=None):
    """What each gated part gives on average: {name: (C,) float32}.

    images: (N, C, H, W) uint8, one at a time through a copy of the model. Rounded to
    float16, so that another machine hardly ever finds others.
    """
    live = Live(evaluated(model), prepare or preparation(model), {})
    check_names(model, gates)
    sums = dict.fromkeys(gates, 0)

    def look(name, maps):
        sums[name] = sums[name] + maps[0].double().mean((1, 2))
        return maps

    with contextlib.ExitStack() as hooks:
        for name, part in gates.items():
            hooks.enter_context(attach(live.network, part, partial(look, name)))
        for image in images:
            live(image[None])
    return {name: (total / len(images)).half().float() for name, total in sums.items()}


def check_names(network, gates):
    """ValueError for gates on parts that there are not."""
    paths = dict(network.named_modules())
    for name, part in gates.items():
        found = PART.fullmatch(part)
        if not found or found[1] not in paths:
            raise ValueError(f"gate {name!r}: the network has no part {part!r}")


def check_effects(live, frame):
    """ValueError for gates that the logits do not depend on: nan does not arrive."""
    for number, (name, part) in enumerate(live.parts.items()):
        gates = torch.ones(len(live.parts))
        gates[number] = torch.nan
        if not live(frame, *controls(live, gates)).isnan().any():
            raise ValueError(f"gate {name!r}: the logits do not depend on {part!r}")


def controls(live, gates):
    """The inputs of a `Live` network beside the image."""
    return (gates, torch.zeros(1)) if live.means else (gates,)


def preparation(model):
    """Pixels in [0, 1] -> what the model takes."""
    encoder = getattr(model, "encoder", None)
    return getattr(encoder, "normalise", nn.Identity())


def evaluated(model):
    """A copy of a model on the CPU, in evaluation, with InPlaceABN in plain parts."""
    copied = copy.deepcopy(model).cpu().eval()
    for module in copied.modules():
        if type(module).__name__ == "InPlaceABN":  # each notebook has its own class
            module.forward = partial(apart, module)
    return copied


def apart(norm, x):
    """What an InPlaceABN gives in evaluation; x stays as it is."""
    scale = norm.weight.abs() + norm.eps
    y = F.batch_norm(
        x, norm.running_mean, norm.running_var, scale, norm.bias, eps=norm.eps
    )
    return F.leaky_relu(y, norm.slope)


# The graph


def convert(live, frame):
    """The graph of a `Live` network; its weights have the names of the state dict."""
    _, ir, onnxscript = tools()
    inputs = {"image": frame}
    if live.parts:
        given = controls(live, torch.ones(len(live.parts)))
        inputs |= zip(("gates", "fill"), given)
    with without_grids(), torch.no_grad():
        live(*inputs.values())  # the model's own errors are clearer than the exporter's
        check_effects(live, frame)
        program = torch.onnx.export(
            live, tuple(inputs.values()), input_names=list(inputs),
            output_names=["logits"], opset_version=OPSET, dynamo=True, optimize=False,
            verbose=False,
        )  # fmt: skip
    model = program.model
    onnxscript.optimizer.fold_constants(model, should_fold=without_weights)
    without_zeros(model.graph)
    ir.passes.common.RemoveUnusedNodesPass()(model)
    ir.passes.common.ClearMetadataAndDocStringPass()(model)  # it has paths in it
    for name, value in list(model.graph.initializers.items()):
        value.metadata_props.clear()
        value.name = name.removeprefix(INSIDE)
    return model


@contextlib.contextmanager
def without_grids():
    """SameConv2d as one convolution, dilated, and afterwards as it was."""
    before = encoders.SameConv2d.on_grids
    encoders.SameConv2d.on_grids = False
    try:
        yield
    finally:
        encoders.SameConv2d.on_grids = before


def is_weight(value):
    return value is not None and (value.name or "").startswith(INSIDE)


def without_weights(node):
    """Whether a node may be folded into a constant; None: as usual."""
    return False if any(map(is_weight, node.inputs)) else None


def without_zeros(graph):
    """Convolutions without bias get none; the exporter gives them one of zeros."""
    for node in graph:
        if node.op_type == "Conv" and len(node.inputs) > 2:
            bias = node.inputs[2]
            if not is_weight(bias) and not bias.const_value.numpy().any():
                node.resize_inputs(2)


def operations(model):
    """How often the graph has each operation; ValueError where one is not standard."""
    nodes = [*model.graph, *(n for f in model.functions.values() for n in f)]
    other = {f"{n.domain}.{n.op_type}" for n in nodes if n.domain not in STANDARD}
    if other:
        raise ValueError(f"operations outside the standard: {', '.join(sorted(other))}")
    return Counter(node.op_type for node in model.graph)


# The weights


def save_weights(model, path):
    """Writes a state dict as .safetensors, rounded as the weights of recorded runs.

    Labels of the rounded weights may differ from those of the model: load the file
    into it to compare.
    """
    with needed():
        from safetensors.torch import save_file
    save_file(runs.rounded(model.state_dict()), path)


def point(model, state, path, folder):
    """Lets a graph read its weights from a .safetensors file in its own folder.

    The file is named as external data, which begin behind its header. A Cast stands
    behind what is fp16. Raises ValueError where names or shapes are not those of the
    state dict, or the file is in another folder.
    """
    _, ir, _ = tools()
    if path.parent.resolve() != folder.resolve():
        raise ValueError(f"{path} must be in the folder of the graph, {folder}")
    header, begin = read_header(path)
    if {n: tuple(h["shape"]) for n, h in header.items()} != {
        n: tuple(v.shape) for n, v in state.items()
    }:
        raise ValueError(f"{path} holds the weights of another model")
    for name, value in list(model.graph.initializers.items()):
        if name in header:
            entry = header[name]
            first, last = entry["data_offsets"]
            dtype = {"F16": ir.DataType.FLOAT16, "F32": ir.DataType.FLOAT}
            value.const_value = ir.ExternalTensor(
                path.name, begin + first, last - first, dtype[entry["dtype"]],
                shape=ir.Shape(entry["shape"]), name=name, base_dir=folder,
            )  # fmt: skip
            if entry["dtype"] == "F16":
                value.dtype = ir.DataType.FLOAT16
                cast(model.graph, value)


def read_header(path):
    """The entries of a .safetensors file by name, and the byte where data begin."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return header, 8 + size


def cast(graph, value):
    """Puts a Cast to float32 between a weight and all that use it."""
    _, ir, _ = tools()
    wide = ir.Value(
        name=f"{value.name}.wide", shape=value.shape,
        type=ir.TensorType(ir.DataType.FLOAT),
    )  # fmt: skip
    ir.convenience.replace_all_uses_with(value, wide)
    attributes = {"to": ir.DataType.FLOAT}
    graph.insert_before(graph[0], ir.node("Cast", [value], attributes, outputs=[wide]))
