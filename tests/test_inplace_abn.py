"""In-Place ABN: against PyTorch's parts and the reference code's formulas, what it
refuses, what it keeps, and converted networks."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_pspnet import Plain, assert_equal, conv_bn, count, drawn, overfit
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call
from torch.profiler import ProfilerActivity, profile

from utils import chapters, encoders

DOUBLE = torch.float64
NAMES = ["weight", "bias", "running_mean", "running_var"]


@pytest.fixture(scope="module")
def book():
    return chapters.load("inplace_abn")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Apart(nn.Module):
    """What InPlaceABN computes, from PyTorch's functions; nothing is overwritten."""

    def __init__(self, channels, eps=1e-5, momentum=0.1, slope=0.01):
        super().__init__()
        self.eps, self.momentum, self.slope = eps, momentum, slope
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        positive = torch.where(self.weight < 0, -self.weight, self.weight)  # and zero
        z = F.batch_norm(
            x, self.running_mean, self.running_var, positive + self.eps, self.bias,
            self.training, self.momentum, self.eps,
        )  # fmt: skip
        return F.leaky_relu(z, self.slope)


def norms(network):
    return [m for m in network.modules() if hasattr(m, "running_var")]


def stir(network):
    """Gives normalisations something to do: scales of both signs, none near zero."""
    for norm in norms(network):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        norm.weight.data[::2] *= -1
        nn.init.normal_(norm.bias, 0, 0.3)
        nn.init.normal_(norm.running_mean, 0, 0.3)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return network


def pair(book, channels=6, train=True, dtype=DOUBLE, **options):
    """An InPlaceABN and its counterpart from parts, with the same tensors."""
    ours = stir(book.InPlaceABN(channels, **options)).to(dtype).train(train)
    theirs = Apart(channels, ours.eps, ours.momentum, ours.slope).to(dtype)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs.train(train)


def run(layer, x, g, arrange=lambda x: x):
    """Output, gradients and statistics of one step, by name."""
    x = x.clone().requires_grad_()
    y = layer(arrange(x * 1))  # the product: a map that nobody else needs
    y.backward(g)
    found = {"output": y.detach(), "of x": x.grad}
    found |= {f"of {name}": p.grad for name, p in layer.named_parameters()}
    return found | dict(layer.named_buffers())


def assert_close(found, expected, tolerance=1e-10):
    """Each tensor, beside the largest value of the expected one."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        error = (found[name] - value).abs().max() / value.abs().max()
        assert error <= tolerance, f"{name} is off by {error:.1e}"


# Against PyTorch's parts


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype, tolerance", [(DOUBLE, 1e-10), (torch.float32, 1e-5)])
def test_it_equals_batch_norm_and_leaky_relu(book, train, dtype, tolerance):
    x, g = torch.randn(2, 4, 6, 7, 5, dtype=dtype)
    ours, theirs = pair(book, train=train, dtype=dtype)
    assert_close(run(ours, x, g), run(theirs, x, g), tolerance)


@pytest.mark.parametrize("train", [True, False])
def test_a_scale_of_zero_has_the_gradient_of_a_positive_one(book, train):
    x, g = torch.randn(2, 4, 6, 7, 5, dtype=DOUBLE)
    ours, theirs = pair(book, train=train)
    for layer in (ours, theirs):
        layer.weight.data[2:4] = 0
        layer.bias.data[3] = 0
    found = run(ours, x, g)
    assert_close(found, run(theirs, x, g), 1e-9)
    assert found["of weight"][2:4].all()


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"activation": "identity"},
        {"activation_param": 0.3},
        {"activation_param": 1e-3},
        {"activation_param": 2.0},
        {"eps": 0.1},
        {"momentum": 0.7},
    ],
    ids=str,
)
def test_options(book, train, options):
    x, g = torch.randn(2, 4, 6, 7, 5, dtype=DOUBLE)
    ours, theirs = pair(book, train=train, **options)
    if "activation" in options:
        theirs.slope = 1
    else:
        expected = {"eps": 1e-5, "momentum": 0.1, "activation_param": 0.01} | options
        assert theirs.slope == expected["activation_param"]
        assert (theirs.eps, theirs.momentum) == (expected["eps"], expected["momentum"])
    assert_close(run(ours, x, g), run(theirs, x, g))


def channels_last(x):
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": channels_last,
    "every second channel": lambda x: torch.stack([x, -x], 2).flatten(1, 2)[:, ::2],
    "cut out": lambda x: F.pad(x, (1, 2, 1, 0))[..., 1:, 1:-2],
    "columns first": lambda x: x.mT.contiguous().mT,
    "batch last": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("of_gradient", ["contiguous", "channels last", "batch last"])
def test_memory_may_lie_in_any_order(book, train, layout, of_gradient):
    x, g = torch.randn(2, 4, 6, 7, 5, dtype=DOUBLE)
    ours, theirs = pair(book, train=train)
    arrange = LAYOUTS[layout]
    assert torch.equal(arrange(x), x)
    found = run(ours, x, LAYOUTS[of_gradient](g), arrange)
    assert_close(found, run(theirs, x, g))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("arrange", [LAYOUTS["contiguous"], channels_last])
@pytest.mark.parametrize(
    "shape",
    [(5, 6), (5, 6, 7), (1, 6, 7), (1, 6, 4, 3), (4, 6, 1, 1), (2, 6, 3, 2, 4)],
    ids=str,
)
def test_any_number_of_dimensions(book, train, arrange, shape):
    x, g = torch.randn(2, *shape, dtype=DOUBLE)
    ours, theirs = pair(book, train=train)
    assert_close(run(ours, x, g, arrange), run(theirs, x, g))


def test_a_slice_overwrites_its_part_of_the_whole(book):
    """Gradients come through the slice and through the whole map alike."""
    x, g = torch.randn(2, 4, 12, 7, 5, dtype=DOUBLE)
    results = []
    for layer in pair(book):
        entering = x.clone().requires_grad_()
        whole = entering * 1
        if isinstance(layer, book.InPlaceABN):
            part = layer(whole[:, ::2])
        else:
            part = layer(whole[:, ::2])
            whole = torch.stack([part, whole[:, 1::2]], 2).flatten(1, 2)
        ((whole * g).sum() + part.square().sum()).backward()
        found = {"whole": whole.detach(), "of x": entering.grad}
        results.append(found | {"of weight": layer.weight.grad})
    assert_close(*results)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    "options",
    [{"activation_param": 0.01}, {"activation_param": 0.3}, {"activation": "identity"}],
    ids=str,
)
def test_gradients_agree_with_finite_differences(book, train, options):
    layer, _ = pair(book, 3, train, **options)

    def apply(x, weight, bias):
        return functional_call(layer, {"weight": weight, "bias": bias}, x * 1)

    x = torch.randn(3, 3, 4, 3, dtype=DOUBLE, requires_grad=True)
    assert gradcheck(apply, (x, layer.weight, layer.bias))


# Against the reference code's formulas


class TwoStages:
    """mapillary/inplace_abn in tensor operations: sums first, then the gradient."""

    def __init__(self, layer):
        self.weight, self.bias, self.mean, self.var = (
            tensor.clone() for tensor in layer.state_dict().values()
        )
        self.eps, self.momentum, self.slope = layer.eps, layer.momentum, layer.slope

    def over(self, vector):
        return vector[:, None, None]

    def forward(self, x, training):
        self.m = x.numel() // x.shape[1]
        mean, var = self.mean, self.var
        if training:
            mean = x.mean((0, 2, 3))
            var = (x - self.over(mean)).square().mean((0, 2, 3))
            unbiased = var * self.m / (self.m - 1)
            self.mean = (1 - self.momentum) * self.mean + self.momentum * mean
            self.var = (1 - self.momentum) * self.var + self.momentum * unbiased
        self.gamma = self.weight.abs() + self.eps
        self.inv_std = 1 / torch.sqrt(var + self.eps)
        z = (x - self.over(mean)) * self.over(self.gamma * self.inv_std)
        z = z + self.over(self.bias)
        self.y, self.training = torch.where(z < 0, self.slope * z, z), training
        return self.y

    def backward(self, dy):
        """Gradients of x, weight and bias, from the output."""
        negative = self.y < 0
        z = torch.where(negative, self.y / self.slope, self.y)
        dz = torch.where(negative, self.slope * dy, dy)
        x_hat = (z - self.over(self.bias)) / self.over(self.gamma)
        edz, eydz = dz.sum((0, 2, 3)), (dz * x_hat).sum((0, 2, 3))
        dx = dz
        if self.training:
            dx = dz - self.over(edz) / self.m - x_hat * self.over(eydz) / self.m
        dx = dx * self.over(self.gamma * self.inv_std)
        return dx, torch.where(self.weight < 0, -eydz, eydz), edz


@pytest.mark.parametrize("slope", [0.01, 0.2])
def test_it_equals_the_reference_code_over_several_steps(book, slope):
    layer = pair(book, 5, activation_param=slope)[0]
    reference = TwoStages(layer)
    for step, training in enumerate([True, True, True, False]):
        x, g = torch.randn(2, 3, 5, 4, 6, dtype=DOUBLE) + step
        layer.train(training).zero_grad()
        expected = {"output": reference.forward(x, training)}
        of_x, of_weight, of_bias = reference.backward(g)
        expected |= {"of x": of_x, "of weight": of_weight, "of bias": of_bias}
        expected |= {"running_mean": reference.mean, "running_var": reference.var}
        assert_close(run(layer, x, g), expected)
        with torch.no_grad():  # the next step starts where this one leads
            layer.weight -= 0.05 * layer.weight.grad
            layer.bias -= 0.05 * layer.bias.grad
        reference.weight = reference.weight - 0.05 * of_weight
        reference.bias = reference.bias - 0.05 * of_bias


# 16 bits

ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-11}  # relative


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("half", ROUNDING)
def test_under_autocast_gradients_are_near_those_of_single_precision(
    book, train, half
):
    """Within 8 times the rounding of a single value, beside the largest gradient."""
    ours, theirs = pair(book, train=train, dtype=torch.float32)
    x, g = torch.randn(2, 4, 6, 17, 15).to(half)
    with torch.autocast("cpu", half):
        found = run(ours, x, g)
    assert found["output"].dtype == found["of x"].dtype == half
    assert found["of weight"].dtype == found["of bias"].dtype == torch.float32
    assert all(value.isfinite().all() for value in found.values())
    found = {name: value.float() for name, value in found.items()}
    assert_close(found, run(theirs, x.float(), g.float()), 8 * ROUNDING[half])


def autocast_errors(network, images, g, half):
    """Of each parameter's gradient: the length of the error beside its own length."""
    gradients = {}
    for enabled in (True, False):
        network.zero_grad()
        with torch.autocast("cpu", half, enabled=enabled):
            output = network(images)
        assert output.dtype == (half if enabled else torch.float32)
        (output.float() * g).sum().backward()
        gradients[enabled] = [p.grad.clone() for p in network.parameters()]
    pairs = zip(gradients[True], gradients[False], strict=True)
    return torch.stack([(a - b).norm() / b.norm() for a, b in pairs])


@pytest.mark.parametrize("half", ROUNDING)
def test_under_autocast_a_network_is_as_exact_as_a_standard_one(book, half):
    """To the rounding of a single value. The errors of both are larger, up to some
    percent: a value near zero that changes its sign changes its slope."""

    def network(norm):
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, bias=False), norm(6),
            nn.Conv2d(6, 4, 3, bias=False), norm(4),
        )  # fmt: skip

    ours, theirs = stir(network(book.InPlaceABN)), network(Apart)
    theirs.load_state_dict(ours.state_dict())
    images, g = torch.randn(4, 3, 33, 31), torch.randn(4, 4, 29, 27)
    found = autocast_errors(ours, images, g, half)
    expected = autocast_errors(theirs, images, g, half)
    assert expected.isfinite().all() and expected.max() < 0.3
    assert (found <= expected + ROUNDING[half]).all()


# In place


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_output_is_the_input_s_memory(book, train, layout):
    layer, parts = pair(book, train=train)
    x = LAYOUTS[layout](torch.randn(4, 6, 7, 5, dtype=DOUBLE))
    expected, strides = parts(x).detach(), x.stride()
    y = layer(x)
    assert y.data_ptr() == x.data_ptr() and y.stride() == strides
    assert torch.allclose(x, expected, atol=1e-12)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_no_second_map_is_made_on_the_way(book, train, layout):
    layer = pair(book, train=train)[0]
    x = LAYOUTS[layout](torch.randn(4, 6, 37, 35, dtype=DOUBLE))
    layer(x)  # warm
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        layer(x)
    largest = max(event.self_cpu_memory_usage for event in profiler.events())
    assert 0 < largest < x.nbytes / 10


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_works_where_no_gradients_are_wanted(book, train, context):
    layer, parts = pair(book, train=train)
    x = torch.randn(4, 6, 7, 5, dtype=DOUBLE)
    with context():
        expected = parts(x)
        y = layer(x)
        assert torch.allclose(y, expected, atol=1e-12)
        assert y.data_ptr() == x.data_ptr() and not y.requires_grad
    assert torch.allclose(layer.running_var, parts.running_var, atol=1e-12)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("fixed", [["weight"], ["bias"], ["weight", "bias"]], ids=str)
def test_frozen_weights_leave_the_other_gradients(book, train, fixed):
    x, g = torch.randn(2, 4, 6, 7, 5, dtype=DOUBLE)
    ours, theirs = pair(book, train=train)
    for name in fixed:
        getattr(ours, name).requires_grad_(False)
    found, expected = run(ours, x, g), run(theirs, x, g)
    for name in fixed:
        assert found.pop(f"of {name}") is None
        del expected[f"of {name}"]
    assert_close(found, expected)


def test_an_input_without_gradient_leaves_those_of_the_weights(book):
    x, g = torch.randn(2, 4, 6, 7, 5, dtype=DOUBLE)
    ours, theirs = pair(book)
    ours(x.clone()).backward(g)
    theirs(x).backward(g)
    assert torch.allclose(ours.weight.grad, theirs.weight.grad, atol=1e-10)
    assert torch.allclose(ours.bias.grad, theirs.bias.grad, atol=1e-10)


def test_its_tensors_have_the_reference_code_s_names(book):
    layer = book.InPlaceABN(4)
    assert list(layer.state_dict()) == NAMES
    assert [name for name, _ in layer.named_parameters()] == NAMES[:2]
    values = {name: torch.rand(4) for name in NAMES}
    layer.load_state_dict(values)
    assert all(torch.equal(layer.state_dict()[name], values[name]) for name in NAMES)


def test_weights_of_layers_that_count_their_batches_load_strictly(book):
    """As those of the reference code do; anything else unknown is still an error."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), book.InPlaceABN(4))
    state = {name: torch.rand_like(t) for name, t in network.state_dict().items()}
    counted = state | {"1.num_batches_tracked": torch.tensor(7)}
    network.load_state_dict(counted, strict=True)
    assert all(torch.equal(t, state[n]) for n, t in network.state_dict().items())
    assert "1.num_batches_tracked" in counted  # the caller's own stays whole
    with pytest.raises(RuntimeError, match="1.other"):
        network.load_state_dict(state | {"1.other": torch.tensor(7)}, strict=True)


@pytest.mark.parametrize("slope", [0.01, 0.3, 2.0])
def test_the_readable_function_does_what_the_fast_one_does(book, slope):
    x, g = torch.randn(2, 4, 6, 7, 5, dtype=DOUBLE)
    layer, _ = pair(book, activation_param=slope)
    layer.weight.data[1] = 0

    def readable(x):
        return book.ReadableFunction.apply(
            x, layer.weight, layer.bias, layer.eps, slope
        )

    fast = run(layer, x, g)
    layer.zero_grad()
    entering = x.clone().requires_grad_()
    hidden = entering * 1
    z = readable(hidden)
    assert z.data_ptr() == hidden.data_ptr()
    z.backward(g)
    found = {"output": z.detach(), "of x": entering.grad}
    found |= {f"of {name}": p.grad for name, p in layer.named_parameters()}
    assert_close(found, {name: fast[name] for name in found}, 1e-8)


def test_a_fresh_layer_starts_as_batch_norm_does(book):
    layer = book.InPlaceABN(4)
    assert (layer.eps, layer.momentum, layer.slope) == (1e-5, 0.1, 0.01)
    for name, value in nn.BatchNorm2d(4).state_dict().items():
        if name in NAMES:
            assert torch.equal(layer.state_dict()[name], value), name


def test_a_copy_computes_the_same_and_is_a_layer_of_its_own(book):
    layer = pair(book, eps=1e-3, momentum=0.3, activation_param=0.2)[0]
    x, g = torch.randn(2, 4, 6, 7, 5, dtype=DOUBLE)
    twin = copy.deepcopy(layer)
    expected = run(layer, x, g)
    assert_close(run(twin, x, g), expected, 0)
    before = layer.running_mean.clone()
    run(twin, x, g)
    assert torch.equal(layer.running_mean, before)


@pytest.mark.parametrize("name", ["relu", "elu", "", None])
def test_other_activations_are_refused(book, name):
    with pytest.raises(ValueError, match="is not leaky_relu or identity"):
        book.InPlaceABN(4, activation=name)


@pytest.mark.parametrize("slope", [0, 0.0, -0.01])
def test_slopes_that_cannot_be_undone_are_refused(book, slope):
    with pytest.raises(ValueError, match="cannot be undone"):
        book.InPlaceABN(4, activation_param=slope)
    assert book.InPlaceABN(4, activation="identity", activation_param=slope).slope == 1


@pytest.mark.parametrize("shape", [(1, 6), (1, 6, 1), (1, 6, 1, 1)])
def test_one_value_a_channel_is_refused_in_training_only(book, shape):
    layer, parts = pair(book)
    x = torch.randn(shape, dtype=DOUBLE)
    before = x.clone()
    with pytest.raises(ValueError, match="one value a channel.* enlarge.* eval()"):
        layer(x)
    assert torch.equal(x, before)
    assert torch.allclose(layer.eval()(x), parts.eval()(before), atol=1e-12)


def test_another_number_of_channels_is_refused(book):
    layer = book.InPlaceABN(6).eval()
    for channels in (5, 7):  # in this order: unchecked, 7 would write past the end
        with pytest.raises((ValueError, RuntimeError)):
            layer(torch.randn(2, channels, 4, 4))


# Misuse

CHANGED = "modified by an inplace operation"


@pytest.mark.parametrize("earlier", [torch.square, torch.sin, lambda h: h * h])
def test_an_input_that_another_operation_needs_is_noticed(book, earlier):
    layer, x = book.InPlaceABN(4), torch.randn(2, 4, 5, 5, requires_grad=True)
    hidden = x * 2
    result = earlier(hidden)
    loss = result.sum() + layer(hidden).square().sum()
    with pytest.raises(RuntimeError, match=CHANGED):
        loss.backward()


@pytest.mark.parametrize("earlier", [torch.exp, torch.sigmoid, torch.relu])
def test_an_input_that_its_own_operation_needs_is_noticed(book, earlier):
    """Their gradients are computed from what comes out of them."""
    layer, x = book.InPlaceABN(4), torch.randn(2, 4, 5, 5, requires_grad=True)
    with pytest.raises(RuntimeError, match=CHANGED):
        layer(earlier(x * 2)).square().sum().backward()


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y.add_(1),
        lambda y: y.relu_(),
        lambda y: y.mul_(2),
        lambda y: y.detach().zero_(),
        lambda y: y[:, 0].fill_(1),
    ],
    ids=["add", "relu", "mul", "detached", "slice"],
)
def test_an_output_that_is_changed_afterwards_is_noticed(book, change):
    layer, x = book.InPlaceABN(4), torch.randn(2, 4, 5, 5, requires_grad=True)
    y = layer(x * 2)
    change(y)
    with pytest.raises(RuntimeError, match=CHANGED):
        y.sum().backward()


def test_a_map_that_is_normalised_twice_is_noticed(book):
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    hidden = x * 2
    loss = book.InPlaceABN(4)(hidden).sum() + book.InPlaceABN(4)(hidden).sum()
    with pytest.raises(RuntimeError, match=CHANGED):
        loss.backward()


def test_a_leaf_that_requires_a_gradient_is_refused(book):
    layer, x = book.InPlaceABN(4), torch.randn(2, 4, 5, 5, requires_grad=True)
    for leaf in (x, x[:1]):
        with pytest.raises(RuntimeError, match="leaf Variable"):
            layer(leaf)


def test_one_of_several_views_is_refused(book):
    part, _ = (torch.randn(2, 8, 5, 5, requires_grad=True) * 1).chunk(2, 1)
    with pytest.raises(RuntimeError, match="view.* multiple views"):
        book.InPlaceABN(4)(part)


def test_second_derivatives_are_refused(book):
    layer, x = book.InPlaceABN(4), torch.randn(2, 4, 5, 5, requires_grad=True)
    loss = layer(x * 1).square().sum()
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


# What is kept


def unit(norm, entering, channels, kernel=3, bias=False):
    """Convolution, then norm(channels)."""
    padding = kernel // 2
    return [
        nn.Conv2d(entering, channels, kernel, padding=padding, bias=bias),
        *norm(channels),
    ]


def usual(channels):
    return nn.BatchNorm2d(channels), nn.LeakyReLU(0.01, inplace=True)


def test_a_standard_chain_keeps_two_maps_and_two_vectors_a_unit(book):
    """BN its input, mean and deviation; the activation its output, which is also what
    the next convolution keeps. Images, weights and statistics are there anyway."""
    network = nn.Sequential(*unit(usual, 3, 4), *unit(usual, 4, 6), nn.Conv2d(6, 2, 1))
    small, large = (4 * 2 * channels * 7 * 5 for channels in (4, 6))
    found = book.kept(network, torch.randn(2, 3, 7, 5))
    assert found == [
        ("1", "BatchNorm2d", small + 2 * 4 * 4),
        ("2", "LeakyReLU", small),
        ("4", "BatchNorm2d", large + 2 * 4 * 6),
        ("5", "LeakyReLU", large),
    ]
    assert book.total(found) == 2 * (small + 16 + large + 24)


def test_in_place_it_keeps_one_map_and_one_vector_a_unit(book):
    def norm(channels):
        return (book.InPlaceABN(channels),)

    inner = nn.Sequential(*unit(norm, 4, 6), nn.Conv2d(6, 2, 1))
    network = nn.Sequential(*unit(norm, 3, 4), inner)
    small, large = (4 * 2 * channels * 7 * 5 for channels in (4, 6))
    assert book.kept(network, torch.randn(2, 3, 7, 5)) == [
        ("1", "InPlaceABN", small + 4 * 4),
        ("2.1", "InPlaceABN", large + 4 * 6),
    ]


class Gate(nn.Module):
    """x times its own sigmoid: three tensors saved, of two storages."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        x = self.conv(x)
        return x * x.sigmoid()


def test_memory_that_is_saved_twice_counts_once(book):
    size = 4 * 2 * 4 * 7 * 5
    images = torch.randn(2, 3, 7, 5)
    assert book.kept(Gate(), images) == [("", "Gate", 2 * size)]
    assert book.kept(nn.Sequential(Gate()), images) == [("0", "Gate", 2 * size)]


def test_a_slice_keeps_all_of_its_memory(book):
    class Half(nn.Module):
        def forward(self, x):
            return (x + 1)[:, :2].square()

    images = torch.randn(2, 4, 7, 5, requires_grad=True)
    assert book.kept(Half(), images) == [("", "Half", 4 * 2 * 4 * 7 * 5)]


def test_images_and_weights_do_not_count_and_nothing_kept_is_an_empty_list(book):
    assert book.kept(nn.Conv2d(3, 4, 3), torch.randn(2, 3, 7, 5)) == []
    assert book.total([]) == 0


def test_without_gradients_nothing_is_kept(book):
    network = nn.Sequential(*unit(usual, 3, 4))
    with torch.no_grad():
        assert book.kept(network, torch.randn(2, 3, 7, 5)) == []


def test_counting_changes_neither_the_network_nor_the_next_count(book):
    network = nn.Sequential(*unit(usual, 3, 4), nn.Conv2d(4, 2, 1)).eval()
    images = torch.randn(2, 3, 7, 5)
    before, found = network(images), book.kept(network, images)
    assert book.kept(network, images) == found
    assert torch.equal(network(images), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


@pytest.mark.parametrize("channels", [(4,), (8, 8), (3, 16, 5), 5 * (4,)], ids=str)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_in_place_a_chain_keeps_at_most_half(book, channels, kernel, bias):
    layers, entering = [], 3
    for width in channels:
        layers += unit(usual, entering, width, kernel, bias)
        entering = width
    network, images = nn.Sequential(*layers), torch.randn(2, 3, 9, 8)
    before = book.total(book.kept(network, images))
    assert book.convert(network) == {}
    assert 0 < book.total(book.kept(network, images)) <= before / 2


def allocated(network, images):
    """Bytes that a warm forward pass leaves allocated, by the allocator; the output."""
    network(images)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        output = network(images)
    events = profiler.key_averages()
    return sum(event.self_cpu_memory_usage for event in events), output


@pytest.mark.parametrize("in_place", [False, True])
def test_counting_leaves_nothing_behind(book, in_place):
    """A saved output that holds itself would never be freed."""
    norm = (lambda channels: [book.InPlaceABN(channels)]) if in_place else usual
    network, images = nn.Sequential(*unit(norm, 3, 8)), torch.randn(2, 3, 16, 16)
    book.kept(network, images)  # warm
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        assert book.total(book.kept(network, images)) > images.nbytes
    assert sum(event.self_cpu_memory_usage for event in profiler.key_averages()) == 0


def leaky(network, slope=0.01):
    """With leaky ReLUs in the place of ReLU and ReLU6."""
    for parent in network.modules():
        for name, child in parent.named_children():
            if isinstance(child, (nn.ReLU, nn.ReLU6)):
                setattr(parent, name, nn.LeakyReLU(slope, inplace=True))
    return network


@pytest.mark.parametrize("in_place", [False, True])
def test_of_a_chain_the_allocator_says_the_same(book, in_place):
    """The output is the last activation, which is kept anyway."""
    network = nn.Sequential(*unit(usual, 3, 8), *unit(usual, 8, 16))
    if in_place:
        book.convert(network)
    images = torch.randn(2, 3, 33, 31)
    assert allocated(network, images)[0] == book.total(book.kept(network, images))


def test_of_deeplab_the_allocator_says_the_same_and_30_percent_are_saved(book):
    """Its output, which is interpolated, is alive too, but not kept."""
    deeplab = chapters.load("deeplab")
    encoder = encoders.build("lite0", output_stride=16, maps=4)
    network = leaky(deeplab.DeepLabV3(5, encoder, (2, 4, 6), 96))
    network.to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 129, 129).to(memory_format=torch.channels_last)
    counts = []
    for in_place in (False, True):
        if in_place:
            book.convert(network)
        counts.append(book.total(book.kept(network, images)))
        alive, output = allocated(network, images)
        assert alive == counts[-1] + output.untyped_storage().nbytes()
    assert counts[1] <= 0.7 * counts[0]


# Converting


def double_chain(*activations, bias=True):
    """Conv, norm, activation, several times, in double precision, and a classifier."""
    layers, entering = [], 3
    for activation in activations:
        layers.append(nn.Conv2d(entering, 6, 3, padding=1, bias=bias))
        layers += [nn.BatchNorm2d(6, eps=1e-3, momentum=0.3), activation]
        entering = 6
    return stir(nn.Sequential(*layers, nn.Conv2d(entering, 2, 1))).double()


def losses(network, images, labels, steps):
    """Of plain gradient descent in training mode."""
    network.train()
    optimizer, found = torch.optim.SGD(network.parameters(), lr=0.1), []
    for _ in range(steps):
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found)


@pytest.mark.parametrize("bias", [True, False])
def test_a_converted_chain_computes_and_learns_the_same(book, bias):
    """Mirrored filters have mirrored gradients, so that whole trainings agree."""
    slopes = (0.2, 0.05, 0.05)
    theirs = double_chain(*(nn.LeakyReLU(a) for a in slopes), bias=bias)
    ours = copy.deepcopy(theirs)
    ours[5], ours[8] = nn.ReLU(inplace=True), nn.ReLU6()
    assert book.convert(ours, slope=0.05) == {}
    assert [norm.slope for norm in norms(ours)] == list(slopes)
    assert [type(ours[k]) for k in (1, 4, 7)] == [book.InPlaceABN] * 3
    assert [type(ours[k]) for k in (2, 5, 8)] == [nn.Identity] * 3

    images = torch.randn(2, 3, 9, 8, dtype=DOUBLE)
    labels = torch.randint(2, (2, 9, 8))
    before = theirs.eval()(images)
    assert torch.allclose(ours.eval()(images), before, atol=1e-5)
    found, expected = (losses(m, images, labels, 6) for m in (ours, theirs))
    assert torch.allclose(found, expected, atol=1e-5)
    assert expected[-1] < expected[0] - 0.05  # they have learnt something
    assert torch.allclose(ours.eval()(images), theirs.eval()(images), atol=1e-4)
    assert not torch.allclose(theirs(images), before, atol=0.05)


def test_gradients_are_those_of_the_standard_chain_up_to_mirrors(book):
    theirs = double_chain(nn.LeakyReLU(0.1), nn.LeakyReLU(0.1))
    ours = copy.deepcopy(theirs)
    book.convert(ours)
    images = torch.randn(2, 3, 9, 8, dtype=DOUBLE)
    for network in (ours, theirs):
        network.train()(images).square().sum().backward()
    for norm, conv in (("1", "0"), ("4", "3")):
        old, new = theirs.get_submodule(norm), ours.get_submodule(norm)
        sign = old.weight.detach().sign()
        assert (sign < 0).any() and (sign > 0).any()
        assert_close(
            {
                "weight": new.weight.grad,
                "bias": new.bias.grad,
                "filters": ours.get_submodule(conv).weight.grad,
                "running_mean": new.running_mean,
                "running_var": new.running_var,
            },
            {
                "weight": sign * old.weight.grad,
                "bias": old.bias.grad,
                "filters": sign.view(-1, 1, 1, 1)
                * theirs.get_submodule(conv).weight.grad,
                "running_mean": sign * old.running_mean,
                "running_var": old.running_var,
            },
            1e-5,
        )


def test_double_precision_is_kept_to_the_last_digits(book):
    network = double_chain(nn.LeakyReLU(0.1), nn.LeakyReLU(0.1)).eval()
    images = torch.randn(2, 3, 9, 8, dtype=DOUBLE)
    expected = network(images)
    book.convert(network)
    assert {t.dtype for t in network.state_dict().values()} == {DOUBLE}
    assert_close({"output": network(images)}, {"output": expected}, 1e-12)


def test_a_scale_smaller_than_epsilon_stays_as_good_as_zero(book):
    network = double_chain(nn.LeakyReLU(0.1)).eval()
    network[1].weight.data[:3] = torch.tensor([0.0, 1e-4, -1e-4])
    images = torch.randn(2, 3, 9, 8, dtype=DOUBLE)
    expected = network(images)
    book.convert(network)
    assert (network[1].weight[:3] == 0).all()
    assert torch.allclose(network(images), expected, atol=1e-2)


def test_a_grouped_convolution_is_mirrored_too(book):
    network = nn.Sequential(
        nn.Conv2d(4, 8, 3, 2, groups=4), nn.BatchNorm2d(8), nn.LeakyReLU(0.1)
    )
    stir(network).eval()
    images = torch.randn(2, 4, 9, 8)
    expected = network(images)
    assert book.convert(network) == {}
    assert torch.allclose(network(images), expected, atol=1e-5)


def test_frozen_parameters_and_modes_stay(book):
    network = double_chain(nn.ReLU(), nn.ReLU(), nn.ReLU())
    network[1].weight.requires_grad_(False)
    network[4].bias.requires_grad_(False)
    network[0].weight.requires_grad_(False)
    network[4].eval()
    fixed = {name for name, p in network.named_parameters() if not p.requires_grad}
    book.convert(network)
    assert fixed == {"0.weight", "1.weight", "4.bias"}
    assert fixed == {n for n, p in network.named_parameters() if not p.requires_grad}
    assert [norm.training for norm in norms(network)] == [True, False, True]


def test_epsilon_and_momentum_stay(book):
    network = double_chain(nn.ReLU())
    book.convert(network)
    assert (network[1].eps, network[1].momentum) == (1e-3, 0.3)


class Called(nn.Module):
    """A unit whose order only its forward knows."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x):
        return self.relu(self.bn(self.conv(x)))


def test_it_says_what_it_left_and_why(book):
    def three(norm, activation, before=None):
        return nn.Sequential(before or nn.Conv2d(4, 4, 1), norm, activation)

    network = nn.ModuleDict(
        {
            "fine": three(nn.BatchNorm2d(4), nn.ReLU()),
            "first": nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)),
            "pooled": three(nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
            "last": nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
            "tanh": three(nn.BatchNorm2d(4), nn.Tanh()),
            "called": nn.Sequential(Called()),
            "plain": three(nn.BatchNorm2d(4, affine=False), nn.ReLU()),
            "fresh": three(nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()),
        }
    )
    stir(network["fine"])
    copies, x = copy.deepcopy(network), torch.randn(2, 4, 6, 5)
    left = book.convert(network)
    assert {name: why.split(",")[0] for name, why in left.items()} == {
        "first.0": "no Conv2d in front",
        "pooled.1": "no Conv2d in front",
        "last.1": "no ReLU behind",
        "tanh.1": "no ReLU behind",
        "called.0.bn": "not in an nn.Sequential",
        "plain.1": "no weights",
        "fresh.1": "no weights",
    }
    for name in network.keys() - {"fine"}:
        assert torch.equal(network[name](x), copies[name](x)), name
    assert isinstance(network["fine"][1], book.InPlaceABN)


class Reader(nn.Sequential):
    """Adds the map in front of the batch norm, which in place would be overwritten."""

    def forward(self, x):
        x = self[0](x)
        return x + self[2](self[1](x))


def test_a_sequential_with_a_forward_of_its_own_is_left(book):
    network = stir(Reader(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())).eval()
    x = torch.randn(2, 3, 6, 5)
    before = network(x)
    left = book.convert(network)
    assert left == {"1": "its nn.Sequential has a forward of its own"}
    assert torch.equal(network(x), before)


class Named(nn.Sequential):
    """A subclass that changes nothing about the order."""


def test_a_sequential_of_another_name_is_converted(book):
    network = Named(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    assert book.convert(network) == {}


@pytest.mark.parametrize("of", [0, 1, 2])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_where_a_hook_could_read_the_map_it_is_left(book, of, kind):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    handle = getattr(network[of], kind)(lambda *_: None)
    if (of, kind) != (0, "register_forward_pre_hook"):  # that one sees what comes in
        why = "a hook may read what would be overwritten"
        assert book.convert(network) == {"1": why}
        handle.remove()
    assert book.convert(network) == {}


def test_a_network_that_is_a_sequential_gives_names_without_a_dot_in_front(book):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert list(book.convert(network)) == ["1"]


def test_a_shared_convolution_is_left_as_it_is(book):
    """Mirrored for one norm, it would be wrong for the other."""
    conv = nn.Conv2d(3, 4, 3)
    heads = [
        nn.Sequential(conv, nn.BatchNorm2d(4), nn.LeakyReLU(0.01)) for _ in range(2)
    ]
    network = stir(nn.ModuleList(heads)).eval()
    x = torch.randn(1, 3, 6, 5)
    before = [head(x) for head in network]
    left = book.convert(network)
    assert left == dict.fromkeys(("0.1", "1.1"), "its convolution is shared")
    assert all(torch.equal(head(x), y) for head, y in zip(network, before))


def test_a_layer_used_twice_does_not_make_false_neighbours(book):
    pool = nn.MaxPool2d(3, 1, 1)
    network = nn.Sequential(
        pool, nn.Conv2d(3, 4, 3), pool, nn.BatchNorm2d(4), nn.LeakyReLU(0.01)
    )
    stir(network).eval()
    x = torch.randn(1, 3, 6, 5)
    before = network(x)
    assert book.convert(network) == {"3": "no Conv2d in front"}
    assert torch.equal(network(x), before)


def test_a_slope_that_cannot_be_undone_changes_nothing(book):
    network = stir(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    weight = network[0].weight.clone()
    with pytest.raises(ValueError, match="slope"):
        book.convert(network, slope=0)
    assert torch.equal(network[0].weight, weight)


def test_groups_are_refused_in_a_block_of_two_convolutions(book):
    with pytest.raises(ValueError, match="three convolutions"):
        book.IdentityResidual(8, (8, 8), groups=4)


def test_converting_twice_changes_nothing_more(book):
    network = double_chain(nn.ReLU(), nn.ReLU())
    book.convert(network)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    assert book.convert(network) == {}
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())


def test_lite0_converted_equals_lite0_with_leaky_relus(book):
    """Left are the 16 normalisations that end a block: no activation follows them."""
    plain = stir(encoders.build("lite0"))
    converted = copy.deepcopy(plain)
    left = book.convert(converted, slope=0.1)
    assert left == {f"blocks.{k}.project.1": "no ReLU behind" for k in range(16)}
    assert not any(isinstance(m, (nn.ReLU, nn.ReLU6)) for m in converted.modules())
    changed = [m for m in converted.modules() if isinstance(m, book.InPlaceABN)]
    assert len(changed) == len(norms(plain)) - 16 == 32
    images = torch.randn(1, 3, 65, 73)
    with torch.inference_mode():
        maps = converted.eval()(images)
        for found, expected in zip(maps, leaky(plain, 0.1).eval()(images), strict=True):
            assert found.shape == expected.shape
            assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_converted_network_s_state_dict_round_trips(book):
    network, other = (encoders.build("lite0", maps=3) for _ in range(2))
    book.convert(stir(network))
    book.convert(other)
    other.load_state_dict(network.state_dict())
    images = torch.randn(1, 3, 33, 41)
    with torch.inference_mode():
        for a, b in zip(network.eval()(images), other.eval()(images), strict=True):
            assert torch.equal(a, b)


def test_a_converted_network_overfits_two_images(book):
    network = nn.Sequential(
        *unit(usual, 3, 12), *unit(usual, 12, 12), nn.Conv2d(12, 3, 1)
    )
    assert book.convert(network) == {}
    for norm in norms(network):
        norm.momentum = 0.3  # few steps: the running statistics must keep up
    assert overfit(network) > 0.95


def test_a_converted_deeplab_learns(book):
    deeplab = chapters.load("deeplab")
    encoder = encoders.build("lite0", output_stride=16, maps=4)
    network = deeplab.DeepLabV3(3, encoder, (1, 2), 16, dropout=0)
    book.convert(network)
    images, labels = drawn()
    found = losses(network, images, labels, 8)
    assert found.isfinite().all() and found[-1] < 0.8 * found[0]


# The peak of a step, and checkpointing


def two_units(norm):
    return nn.Sequential(*unit(norm, 3, 8), *unit(norm, 8, 16))


def warm_trace(book, network, images):
    book.step(network, images)
    return book.trace(network, images)


def test_a_trace_ends_its_forward_pass_with_what_is_kept(book):
    """And the loss, one number; it ends the backward pass with the gradients."""
    network, images = two_units(usual), torch.randn(2, 3, 33, 31)
    forward, backward = warm_trace(book, network, images)
    assert forward[-1] == book.total(book.kept(network, images)) + 4
    gradients = sum(p.nbytes for p in network.parameters())
    assert gradients <= backward[-1] <= gradients + 1000
    assert backward.max() > forward[-1]


def test_in_place_and_checkpointed_hold_about_the_same_and_less_than_standard(book):
    standard, images = two_units(usual), torch.randn(2, 3, 65, 63)
    for _ in range(4):
        standard.extend(unit(usual, 16, 16))
    ways = [standard, copy.deepcopy(standard), copy.deepcopy(standard)]
    book.checkpointed(ways[1])
    assert book.convert(ways[2]) == {}
    traces = [warm_trace(book, network, images) for network in ways]
    standard, again, ours = (forward[-1] for forward, _ in traces)
    output = 4 * 2 * 16 * 65 * 63  # checkpointed, the last map is kept as x and as z
    assert ours <= 0.51 * standard
    assert abs(again - output - ours) <= 0.01 * standard
    peaks = [max(part.max() for part in halves) for halves in traces]
    assert peaks[1] < 0.9 * peaks[0] and peaks[2] < 0.9 * peaks[0]


@pytest.mark.parametrize("train", [True, False])
def test_checkpointing_changes_no_number(book, train):
    """Outputs, gradients, and running statistics, which are updated once."""
    standard = stir(two_units(usual)).double().train(train)
    again = book.checkpointed(copy.deepcopy(standard))
    assert sum(isinstance(m, book.Recomputed) for m in again.modules()) == 2
    images = torch.randn(2, 3, 9, 8, dtype=DOUBLE)
    for network in (standard, again):
        book.step(network, images)
    for a, b in zip(standard.parameters(), again.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    for a, b in zip(norms(standard), norms(again), strict=True):
        assert torch.equal(a.running_mean, b.running_mean)
        assert torch.equal(a.running_var, b.running_var)
    assert torch.equal(standard(images), again(images))


def test_a_map_that_two_convolutions_read_is_made_again_once(book, monkeypatch):
    made = []
    plain = book.F.batch_norm
    network = book.checkpointed(stir(book.IdentityResidual(4, (4, 8), norm=folded)))
    images = torch.randn(2, 4, 9, 8).requires_grad_() * 1

    def counted(*args, **kwargs):
        made.append(1)
        return plain(*args, **kwargs)

    output = network(images)
    monkeypatch.setattr(book.F, "batch_norm", counted)
    output.sum().backward()
    assert network.short_cut is not None and len(made) == 2  # one for each norm


def folded(channels):
    return nn.Sequential(*usual(channels))


def test_the_page_s_network_learns_alike_both_ways(book):
    """From the same weights, in training mode."""
    found = []
    for in_place in (False, True):
        torch.manual_seed(0)
        network = book.build(in_place)
        torch.manual_seed(1)
        images, labels = drawn()
        found.append(losses(network, images, labels % book.CLASSES, 3))
    assert torch.allclose(*found, rtol=1e-3)
    assert found[0][-1] < found[0][0]


# ResNeXt


class Reference(Plain):
    """The reference code's blocks, which normalise first."""

    def norm(self, x):
        weight, shift, mean, variance = self.take(4)
        z = F.batch_norm(x, mean, variance, weight.abs() + 1e-5, shift)
        return F.leaky_relu(z, 0.01)

    def block(self, x, convs, stride=1, rate=1, groups=1, short_cut=False):
        first = self.norm(x)
        if convs == 2:
            y = self.conv(first, stride, rate)
            y = self.conv(self.norm(y), rate=rate)
        else:
            y = self.conv(first, stride)
            y = self.conv(self.norm(y), rate=rate, groups=groups)
            y = self.conv(self.norm(y))
        return y + (self.conv(first, stride) if short_cut else x)


# Channels entering, channels of the convolutions, options, whether there is a short cut
# with a convolution.
BLOCKS = [
    (8, (8, 8), {}, False),
    (8, (4, 8), {}, False),
    (8, (12, 10), {}, True),
    (8, (8, 8), {"stride": 2}, True),
    (8, (8, 8), {"rate": 2}, False),
    (8, (4, 4, 8), {}, False),
    (8, (4, 4, 16), {}, True),
    (8, (4, 4, 8), {"stride": 2}, True),
    (8, (4, 6, 8), {"rate": 2}, False),
    (8, (8, 12, 8), {"groups": 4}, False),
    (8, (8, 8, 12), {"stride": 2, "rate": 2, "groups": 2}, True),
]


@pytest.mark.parametrize("entering, channels, options, short_cut", BLOCKS)
def test_a_block_equals_its_second_writing(
    book, entering, channels, options, short_cut
):
    block = stir(book.IdentityResidual(entering, channels, **options)).eval()
    x = torch.randn(2, entering, 9, 7)
    plain = Reference(block)
    with torch.inference_mode():
        expected = plain.block(x, len(channels), short_cut=short_cut, **options)
        assert not plain.tensors  # the block has nothing else
        assert_equal(block(x), expected)
    stride = options.get("stride", 1)
    assert expected.shape == (2, channels[-1], -(-9 // stride), -(-7 // stride))


@pytest.mark.parametrize("entering, channels, options, short_cut", BLOCKS)
def test_in_place_norms_corrupt_neither_short_cut_nor_gradients(
    book, entering, channels, options, short_cut
):
    """Two blocks, one after the other: the second one's input is a sum."""
    then = dict(options, stride=1)
    sides = []
    for norm in (book.InPlaceABN, Apart):
        blocks = nn.Sequential(
            book.IdentityResidual(entering, channels, norm=norm, **options),
            book.IdentityResidual(channels[-1], channels, norm=norm, **then),
        )
        sides.append(blocks.double().train())
    ours, theirs = sides
    theirs.load_state_dict(stir(ours).state_dict())
    x = torch.randn(2, entering, 9, 7, dtype=DOUBLE)
    g = torch.randn_like(ours(x.clone()))
    theirs(x)
    ours.zero_grad()
    assert_close(run(ours, x, g), run(theirs, x, g))


def test_a_block_leaves_its_input_alone_only_in_the_short_cut(book):
    """What a block receives is overwritten; what it adds is the map as it came."""
    block = book.IdentityResidual(4, (4, 4)).eval()
    nn.init.zeros_(block.convs[-1].weight)
    x = torch.randn(2, 4, 5, 5)
    before = x.clone()
    assert torch.equal(block(x), before)
    assert not torch.equal(x, before)


def test_in_place_a_block_keeps_half_of_its_maps(book):
    def norm(channels):
        return nn.Sequential(*usual(channels))

    sizes = []
    for kind in (norm, book.InPlaceABN):
        network = nn.Sequential(
            nn.Conv2d(3, 8, 1), book.IdentityResidual(8, (4, 4, 8), norm=kind)
        )
        sizes.append(book.total(book.kept(network, torch.randn(2, 3, 9, 7))))
    assert sizes[1] == 4 * ((8 + 4 + 4) * 2 * 9 * 7 + (8 + 4 + 4))
    assert sizes[1] <= sizes[0] / 2


def test_resnext_equals_its_second_writing(book):
    network = stir(book.ResNeXt((2, 1, 1, 1), groups=8)).eval()
    images, plain = torch.randn(1, 3, 65, 49), Reference(network)
    with torch.inference_mode():
        x = F.max_pool2d(plain.conv(images, 2), 3, 2, padding=1)
        x = plain.block(x, 3, groups=8, short_cut=True)
        x = plain.block(x, 3, groups=8)
        for _ in range(3):
            x = plain.block(x, 3, stride=2, groups=8, short_cut=True)
        x = plain.norm(x)
        assert not plain.tensors
        assert_equal(network(images), x)


def test_resnext_50_has_the_parameters_counted_by_hand(book):
    """Each convolution with a norm of its own output counts as `conv_bn` does."""
    with torch.device("meta"):
        network = book.ResNeXt()
        deeper = book.ResNeXt((3, 4, 23, 3))
    stem, end = 3 * 64 * 7 * 7, 2 * 2048

    def block(entering, width, first):
        """Norm, three convolutions, norms behind two of them, the short cut."""
        inner = conv_bn(entering, width) + 9 * width * width // 32 + 2 * width
        short_cut = entering * 2 * width if first else 0
        return 2 * entering + inner + width * 2 * width + short_cut

    blocks = entering = 0
    for width, number in zip((128, 256, 512, 1024), (3, 4, 6, 3)):
        blocks += block(entering or 64, width, True)
        blocks += (number - 1) * block(2 * width, width, False)
        entering = 2 * width
    assert count(network) == stem + blocks + end == RESNEXT50
    assert count(deeper) == RESNEXT50 + 17 * block(1024, 512, False)


# torchvision's resnext50_32x4d without its fc, but for the norms: there the stem has
# one, each block one on its last map, and the short cuts have theirs; here each block
# has one on its input.
RESNEXT50 = (
    25_028_904
    - (2048 * 1000 + 1000)
    - 2 * 64
    - 2 * (3 * 256 + 4 * 512 + 6 * 1024 + 3 * 2048 + 256 + 512 + 1024 + 2048)
    + 2 * (64 + 3 * 256 + 4 * 512 + 6 * 1024 + 2 * 2048 + 2048)
)


@pytest.mark.parametrize("size", [(33, 33), (65, 98), (47, 31)])
def test_resnext_s_map_is_32_times_smaller_rounded_up(book, size):
    network = book.ResNeXt((1, 1, 1, 1), groups=8).eval()
    expected = tuple(-(-n // 32) for n in size)
    with torch.inference_mode():
        assert network(torch.randn(1, 3, *size)).shape == (1, 2048, *expected)


def test_gradients_reach_every_parameter_of_resnext(book):
    network = book.ResNeXt((1, 1, 1, 1), groups=32)
    network(torch.randn(2, 3, 65, 65)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
