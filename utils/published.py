"""Published weights of other repositories, for the networks of this book.

The networks compute what those of the repositories compute, under other names of
parameters. `load` renames them:

    file = "deeplabv3_resnet50_coco-cd0a2569.pth"
    state = torch.load(file, map_location="cpu", weights_only=True)
    model = chapters.load("deeplab").DeepLabV3(21, aux=True)
    published.load(model, state, "torchvision_deeplab_v3")
    model.eval()

Fetch the file yourself, and mind its licence. All of the weights must find their place
in the model, and nothing may be left open, else there is an error. What the names
stand for, and what to build (`build` is `encoders.build`; give the classes that the
weights were trained with):

unet
    milesial/Pytorch-UNet, release 3.0, up-convolutions: UNet(3, 2, padded=True). The
    batch normalisation becomes part of the convolutions: this is for predictions. They
    are equal where the sides of the images are multiples of 16.
refinenet
    DrSleep/refinenet-pytorch: RefineNet(21).
light_weight_refinenet
    DrSleep/light-weight-refinenet: RefineNet(21, build("resnet50"), light=True), or
    another ResNet.
pspnet
    hszhao/semseg: PSPNet(150), or PSPNet(150, build("resnet101", output_stride=8,
    first_block="new", deep_stem=True)).
gcn
    ZijunDeng/pytorch-semantic-segmentation, for weights that you trained with it. The
    kernels depend on the stage and on the size of the images there. For 512x512:
    sizes = {2048: 15, 1024: 31, 512: 63, 256: 127}, and GCN(21, build("resnet152"),
    block=lambda c, classes, _: GlobalConvolution(c, classes, sizes[c])).
torchvision_deeplab_v3
    pytorch/vision: DeepLabV3(21, aux=True), or DeepLabV3(21, build("resnet101",
    output_stride=8), aux=True).
vainf_deeplab_v3, vainf_deeplab_v3plus
    VainF/DeepLabV3Plus-Pytorch with a ResNet, output stride 16, and without its
    separable convolutions: DeepLabV3(21, build("resnet101", output_stride=16),
    (6, 12, 18)) and DeepLabV3Plus(21, build("resnet101", output_stride=16),
    decoder_convs=1).
wide_resnet38
    mapillary/inplace_abn, the classifier of ImageNet: WideResNet(3), the encoder of the
    chapter on TernausNetV2, to train on. The later stages are left out. The poolings
    there have windows of 3x3. (The network for Mapillary Vistas has the same names, but
    strides and rates that WideResNet has not.)
resnext50, resnext101, resnext152
    mapillary/inplace_abn, without the classifier: ResNeXt((3, 4, 23, 3), groups=64).
    The weights offered there have a stem of five layers and a pooling. Set model.stem =
    nn.Sequential(conv(3, 64, 2), norm(64), conv(64, 64), norm(64), conv(64, 64),
    nn.MaxPool2d(3, 2, 1)) first: 3x3 convolutions, padded and without bias.
ternausnetv2
    ternaus/TernausNetV2: TernausNetV2(). The repository first had InPlaceABN in it and
    later, by default, plain normalisation. Where the `weight` of one is negative, the
    two differ; the names are the same.
ternausnet11, ternausnet16, linknet34, instruments_unet
    ternaus/robot-surgery-segmentation: ternausnet11(), ternausnet16(), LinkNet34() and
    UNet() of the chapter on instruments, which give logits where those of the
    repository give the logarithms of probabilities, for several classes. ternausnet11
    is also for the UNet11 of ternaus/TernausNet.
"""

import re

import torch
import torch.nn.functional as F

CHECKPOINTS = "state_dict", "model", "model_state"  # where they keep the weights
COUNTER = "num_batches_tracked"  # of batch normalisation; old files have none


def load(model, state, network):
    """Loads published weights into a model.

    state: a state dict, or a checkpoint with one. network: a name from the top of this
    file, where it also says which model to build. An unknown name, or weights that do
    not fit: ValueError, and the model stays as it was.
    """
    model.load_state_dict(renamed(model, state, network), strict=True)


def renamed(model, state, network):
    """Published weights as a complete state dict of a model. Arguments and errors as
    for `load`."""
    if network not in NAMES:
        raise ValueError(f"no weights {network!r}; there are: {', '.join(NAMES)}")
    own = model.state_dict()
    found, problems = assigned(unpacked(state), NAMES[network], own)
    found = PREPARE.get(network, dict)(found)
    found = {k: value for k, value in found.items() if k in own or not spare(k, own)}
    found = {k: v for k, v in own.items() if k.endswith(COUNTER)} | found
    problems |= differences(found, own)
    if any(problems.values()):
        raise ValueError(
            f"the weights do not fit. {described(problems)}. The top of "
            f"utils/published.py says which model to build for {network!r}"
        )
    return found


def assigned(state, names, own):
    """{our name: value}, and the published keys with which there is a problem."""
    found, problems = {}, {"unknown": [], "in two versions": []}
    for key, value in state.items():
        name = rename(key, names)
        if name is None:
            problems["unknown"].append(key)
        elif name:
            name = placed(name, own)
            if name in found and not torch.equal(found[name], value):
                problems["in two versions"].append(key)
            found[name] = value
    return found, problems


def differences(found, own):
    shapes = {
        name: f"{name} {shape(found[name])} instead of {shape(own[name])}"
        for name in own
        if name in found and found[name].shape != own[name].shape
    }
    return {
        "without a place": [name for name in found if name not in own],
        "missing": [name for name in own if name not in found],
        "of another shape": list(shapes.values()),
    }


def unpacked(state):
    """The weights of a checkpoint, without the prefix that nn.DataParallel gives."""
    for key in CHECKPOINTS:
        if isinstance(state.get(key), dict):
            state = state[key]
    return {key.removeprefix("module."): value for key, value in state.items()}


def rename(key, names):
    """By the longest part from the start of the key that has a name: "" if the key is
    to be left out, None if no part has one."""
    parts = key.split(".")
    for k in range(len(parts), 0, -1):
        name = names.get(".".join(parts[:k]))
        if name is not None:
            return name and ".".join([name, *parts[k:]])
    return None


def placed(name, own):
    """norm.weight is norm.0.weight where a model has its normalisation with activation
    as an nn.Sequential."""
    module, _, leaf = name.rpartition(".")
    inside = f"{module}.0.{leaf}"
    return inside if name not in own and inside in own else name


def spare(name, own):
    """Whether a model may do without: counters, and a head that only training needs."""
    head = name.startswith("aux.") and not any(key.startswith("aux.") for key in own)
    return head or name.endswith(COUNTER)


def shape(tensor):
    return "x".join(map(str, tensor.shape))


def described(problems, most=5):
    """The problems as sentences, each with at most so many names."""
    sentences = []
    for problem, names in problems.items():
        if names:
            more = ", …" if len(names) > most else ""
            some = ", ".join(names[:most])
            sentences.append(f"{len(names)} {problem}: {some}{more}")
    return ". ".join(sentences)


# What two of them need besides


def fold(found):
    """Makes batch normalisation in its eval mode, "conv.folded.weight" and so on, part
    of the weight and bias of the convolution in front of it."""
    found = dict(found)
    for key in [key for key in found if key.endswith(".folded.running_var")]:
        conv = key.removesuffix(".folded.running_var")
        leaves = "weight", "bias", "running_mean", "running_var"
        norm = [f"{conv}.folded.{leaf}" for leaf in leaves]
        weight, bias = found.get(f"{conv}.weight"), found.get(f"{conv}.bias", 0)
        shapes = {found[name].shape if name in found else None for name in norm}
        if weight is None or shapes != {weight.shape[:1]}:
            continue  # it will be reported
        gamma, beta, mean, var = (found.pop(name).double() for name in norm)
        scale = gamma / (var + 1e-5).sqrt()
        found[f"{conv}.weight"] = (weight * scale[:, None, None, None]).to(weight)
        found[f"{conv}.bias"] = (beta + (bias - mean) * scale).to(weight)
    return found


def widen(found):
    """Transposed convolutions 3x3 with an output padding of 1 are those of 4x4 without
    it whose last row and column are zero."""
    up = re.compile(r"(center|decoder\.\d)\.1\.weight")
    return {
        name: F.pad(value, (0, 1, 0, 1))
        if up.fullmatch(name) and value.shape[-1] == 3
        else value
        for name, value in found.items()
    }


PREPARE = {"unet": fold, "ternausnet11": widen}


# The names: {published: ours}, each for all that begins with it; "" leaves it out


STAGES = {f"layer{n}": f"encoder.layer{n}" for n in (1, 2, 3, 4)}  # of a ResNet
RESNET = {"conv1": "encoder.conv1", "bn1": "encoder.bn1", **STAGES}


def unet():
    names = {"outc.conv": "classifier", "mask_values": ""}
    blocks = {"inc": "encoder.0"}
    for n in (1, 2, 3, 4):
        blocks[f"down{n}.maxpool_conv.1"] = f"encoder.{n}"
        blocks[f"up{n}.conv"] = f"decoder.{n - 1}.convs"
        names[f"up{n}.up"] = f"decoder.{n - 1}.up"
    for theirs, ours in blocks.items():
        names[f"{theirs}.double_conv.0"] = f"{ours}.0"
        names[f"{theirs}.double_conv.1"] = f"{ours}.0.folded"
        names[f"{theirs}.double_conv.3"] = f"{ours}.2"
        names[f"{theirs}.double_conv.4"] = f"{ours}.2.folded"
    return names


def refinenet(light):
    """Of each three RCUs behind a pooling, the last two are ours of the next path."""
    names = RESNET | {"clf_conv": "head.1" if light else "head.3"}
    for n in (1, 2, 3, 4):
        block = f"blocks.{n - 1}"
        path = f"{block}.paths.{0 if n == 1 else 1}"
        following = f"blocks.{n}.paths.0" if n < 4 else "head"
        names[f"p_ims1d2_outl{n}_dimred"] = f"{path}.0"
        names |= rcus(f"adapt_stage{n}_b.0", f"{path}.1", f"{path}.2")
        fusion = 1 if light else 3
        names[f"adapt_stage{n}_b2_joint_varout_dimred"] = f"{path}.{fusion}"
        for k in range(4):
            link = f"mflow_conv_g{n}_pool.0.{k + 1}_outvar_dimred"
            names[link] = f"{block}.pool.convs.{k}"
        behind = f"{block}.out.0", f"{following}.0", f"{following}.1"
        names |= rcus(f"mflow_conv_g{n}_b.0", *behind)
        fusion = 0 if light else 2
        names[f"mflow_conv_g{n}_b3_joint_varout_dimred"] = f"{following}.{fusion}"
    return names


def rcus(theirs, *ours):
    names = {}
    for n, unit in enumerate(ours, 1):
        names[f"{theirs}.{n}_conv"] = f"{unit}.conv1"
        names[f"{theirs}.{n}_conv_relu_varout_dimred"] = f"{unit}.conv2"
    return names


PSPNET = STAGES | {
    "layer0.0": "encoder.conv1",
    "layer0.1": "encoder.bn1",
    "layer0.3": "encoder.conv2",
    "layer0.4": "encoder.bn2",
    "layer0.6": "encoder.conv3",
    "layer0.7": "encoder.bn3",
    "ppm.features": "pyramid.branches",
    "cls.0": "head.0.0",
    "cls.1": "head.0.1",
    "cls.4": "head.2",
    "aux.0": "aux.0.0",
    "aux.1": "aux.0.1",
    "aux.4": "aux.2",
}


def gcn():
    names = STAGES | {"layer0.0": "encoder.conv1", "layer0.1": "encoder.bn1"}
    names["layer1.1"] = names.pop("layer1")  # layer1.0 is the pooling
    for n in (1, 2, 3, 4):
        for side, chain in (("l", "left"), ("r", "right")):
            names[f"gcm{n}.conv_{side}1"] = f"scores.{n - 1}.{chain}.0"
            names[f"gcm{n}.conv_{side}2"] = f"scores.{n - 1}.{chain}.1"
        names[f"brm{n}"] = f"refine_maps.{n - 1}"
    return names | {f"brm{n}": f"refine_sums.{n - 5}" for n in range(5, 10)}


def aspp(theirs):
    return {
        f"{theirs}.convs": "aspp.branches",
        f"{theirs}.convs.4": "aspp.image_pooling",
        f"{theirs}.project": "aspp.project",
    }


def deeplab_v3(theirs):
    return aspp(f"{theirs}.0") | {
        "backbone": "encoder",
        f"{theirs}.1": "head.0.0",
        f"{theirs}.2": "head.0.1",
        f"{theirs}.4": "head.1",
        "aux_classifier.0": "aux.0.0",
        "aux_classifier.1": "aux.0.1",
        "aux_classifier.4": "aux.2",
    }


DEEPLAB_V3PLUS = aspp("classifier.aspp") | {
    "backbone": "encoder",
    "classifier.project": "low_level",
    "classifier.classifier.0": "decoder.0.0",
    "classifier.classifier.1": "decoder.0.1",
    "classifier.classifier.3": "classifier",
}


def layers(theirs, ours):
    """Of a chain; older files have each normalisation in a wrapper, `bn` once more."""
    names = {}
    for k, layer in enumerate(theirs):
        names[layer] = names[f"{layer}.bn"] = f"{ours}.{k}"
    return names


def residual(theirs, ours):
    chain = [f"{theirs}.convs.{name}" for name in "conv1 bn2 conv2 bn3 conv3".split()]
    return layers(chain, f"{ours}.convs") | {
        f"{theirs}.bn1": f"{ours}.norm",
        f"{theirs}.bn1.bn": f"{ours}.norm",
        f"{theirs}.proj_conv": f"{ours}.short_cut",
    }


def wide_resnet(theirs, ours=""):
    names = {f"{theirs}1.conv1": f"{ours}stem"}
    for stage, blocks in enumerate((3, 3, 6, 3)):
        for k in range(blocks):
            block = f"{theirs}{stage + 2}.block{k + 1}"
            names |= residual(block, f"{ours}stages.{stage}.{k}")
    return names


def resnext(*stages):
    names = {"bn_out": "norm", "bn_out.bn": "norm", "classifier": ""}
    stem = "conv1", "bn1", "conv2", "bn2", "conv3"
    names |= layers([f"mod1.{name}" for name in stem], "stem")
    blocks = [f"mod{s}.block{k + 1}" for s, n in enumerate(stages, 2) for k in range(n)]
    for number, block in enumerate(blocks):
        names |= residual(block, f"blocks.{number}")
    return names


LATER = dict.fromkeys(("mod6", "mod7", "bn_out", "classifier"), "")
DECODER = {"center": "center"} | {f"dec{5 - k}": f"decoder.{k}" for k in range(4)}
LAST = {"dec1.conv": "decoder.4.0", "final": "final"}


def ternausnetv2():
    names = wide_resnet("conv", "encoder.") | LAST
    for theirs, ours in DECODER.items():
        names[f"{theirs}.block.1.conv"] = f"{ours}.1.0"
        names[f"{theirs}.block.2.conv"] = f"{ours}.2.0"
    return names


def ternausnet(again):
    """again: the encoder's convolutions, which stand in the files a second time."""
    names = LAST | {"encoder": "encoder.features"}
    for theirs, ours in DECODER.items():
        names[f"{theirs}.block.0.conv"] = f"{ours}.0.0"
        names[f"{theirs}.block.1"] = f"{ours}.1"
    return names | {key: f"encoder.features.{index}" for key, index in again.items()}


VGG11 = {
    "conv1.0": 0, "conv2.0": 3, "conv3.0": 6, "conv3.2": 8,
    "conv4.0": 11, "conv4.2": 13, "conv5.0": 16, "conv5.2": 18,
}  # fmt: skip
UNET11 = {  # of ternaus/TernausNet
    "conv1": 0, "conv2": 3, "conv3s": 6, "conv3": 8,
    "conv4s": 11, "conv4": 13, "conv5s": 16, "conv5": 18,
}  # fmt: skip
VGG16 = {
    "conv1.0": 0, "conv1.2": 2, "conv2.0": 5, "conv2.2": 7,
    "conv3.0": 10, "conv3.2": 12, "conv3.4": 14,
    "conv4.0": 17, "conv4.2": 19, "conv4.4": 21,
    "conv5.0": 24, "conv5.2": 26, "conv5.4": 28,
}  # fmt: skip


def linknet34():
    names = {"firstconv": "encoder.conv1", "firstbn": "encoder.bn1"}
    inside = {"conv1": 0, "norm1": 1, "deconv2": 3, "norm2": 4, "conv3": 6, "norm3": 7}
    for n in (1, 2, 3, 4):
        names[f"encoder{n}"] = f"encoder.layer{n}"
        for layer, k in inside.items():
            names[f"decoder{n}.{layer}"] = f"decoder.{4 - n}.{k}"
    last = {"finaldeconv1": "head.0", "finalconv2": "head.2", "finalconv3": "head.4"}
    return names | last


def instruments_unet():
    names = {"conv_final": "final"}
    for side, levels in (("down", 5), ("up", 4)):
        for k in range(levels):
            names[f"{side}.{k}.l1.conv"] = f"{side}.{k}.0.0"
            names[f"{side}.{k}.l2.conv"] = f"{side}.{k}.1.0"
    return names


NAMES = {
    "unet": unet(),
    "refinenet": refinenet(light=False),
    "light_weight_refinenet": refinenet(light=True),
    "pspnet": PSPNET,
    "gcn": gcn(),
    "torchvision_deeplab_v3": deeplab_v3("classifier"),
    "vainf_deeplab_v3": deeplab_v3("classifier.classifier"),
    "vainf_deeplab_v3plus": DEEPLAB_V3PLUS,
    "wide_resnet38": wide_resnet("mod") | LATER,
    "resnext50": resnext(3, 4, 6, 3),
    "resnext101": resnext(3, 4, 23, 3),
    "resnext152": resnext(3, 8, 36, 3),
    "ternausnetv2": ternausnetv2(),
    "ternausnet11": ternausnet(VGG11 | UNET11),
    "ternausnet16": ternausnet(VGG16),
    "linknet34": linknet34(),
    "instruments_unet": instruments_unet(),
}
