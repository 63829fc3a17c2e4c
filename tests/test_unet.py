"""The U-Net of the chapter: sizes, weights, gradients, tiles, the border weight map."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from utils import chapters


@pytest.fixture(scope="module")
def unet():
    return chapters.load("unet")


def test_sizes_of_the_paper(unet):
    network = unet.UNet().to("meta")
    for size, expected in [(572, 388), (188, 4), (700, 516)]:
        out = network(torch.empty(1, 1, size, size, device="meta"))
        assert out.shape == (1, 2, expected, expected)


def test_number_of_weights(unet):
    for padded in (False, True):
        network = unet.UNet(padded=padded)
        assert sum(p.numel() for p in network.parameters()) == 31_030_658


def test_feature_shapes_on_the_way_down_and_up(unet):
    shapes = []
    network = unet.UNet(width=2).eval()
    for block in (*network.encoder, *network.decoder):
        block.register_forward_hook(lambda *a: shapes.append(tuple(a[2].shape[1:])))
    network(torch.zeros(1, 1, 572, 572))
    assert shapes == [
        (2, 568, 568), (4, 280, 280), (8, 136, 136), (16, 64, 64), (32, 28, 28),
        (16, 52, 52), (8, 100, 100), (4, 196, 196), (2, 388, 388),
    ]  # fmt: skip


def test_it_equals_the_same_network_written_out_in_plain_functions(unet):
    """Parameters in their order are all that is needed: no hidden layer, no twist."""
    torch.manual_seed(0)
    network = unet.UNet(in_channels=3, classes=5, width=4).eval()
    weights = iter(list(network.parameters()))

    def conv(x):
        return F.relu(F.conv2d(x, next(weights), next(weights)))

    images = torch.randn(2, 3, 204, 188)
    x, kept = images, []
    for level in range(5):
        x = conv(conv(F.max_pool2d(x, 2) if level else x))
        kept.append(x)
    for skip in reversed(kept[:4]):
        x = F.conv_transpose2d(x, next(weights), next(weights), stride=2)
        rows = (skip.shape[2] - x.shape[2]) // 2
        columns = (skip.shape[3] - x.shape[3]) // 2
        skip = skip[:, :, rows:-rows or None, columns:-columns or None]
        x = conv(conv(torch.cat([skip, x], 1)))
    expected = F.conv2d(x, next(weights), next(weights))
    assert torch.allclose(network(images), expected, atol=1e-5)
    assert next(weights, None) is None


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (16, 16), (100, 160)])
def test_the_padded_form_takes_any_size_and_a_batch_of_one(unet, size):
    network = unet.UNet(width=2, padded=True)
    assert network(torch.zeros(1, 1, *size)).shape == (1, 2, *size)


@pytest.mark.parametrize("size", [(572, 571), (512, 512), (172, 188), (10, 10)])
def test_the_valid_form_refuses_other_sizes_and_names_the_next(unet, size):
    with pytest.raises(ValueError, match=r"16 k \+ 12.*the next one is (188|572|524)"):
        unet.UNet(width=2)(torch.zeros(1, 1, *size))


def test_gradients_reach_every_parameter(unet):
    torch.manual_seed(0)
    for padded in (True, False):
        network = unet.UNet(width=4, padded=padded).eval()
        network(torch.randn(1, 1, 188, 188)).square().sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("arm", ["none", "wide"])
def test_a_network_without_skips_uses_nothing_that_comes_across(unet, arm):
    recipe = unet.Recipe(width=2, crop=32, batch=1, steps=1, every=1, rate=1e-3)
    network = unet.ARMS[arm][0](recipe).eval()
    assert network(torch.zeros(1, 1, 32, 32)).shape == (1, 2, 32, 32)
    for up in network.decoder:
        deep = torch.randn(1, up.up.in_channels, 5, 5)
        first, second = (up(deep, torch.randn(1, 4, 10, 10)) for _ in range(2))
        assert torch.equal(first, second)


def test_the_wider_network_without_skips_has_no_fewer_weights(unet):
    counts = {
        arm: sum(p.numel() for p in build(unet.SMALL).parameters())
        for arm, (build, _) in unet.ARMS.items()
    }
    assert counts["none"] < counts["all"] <= counts["wide"] < 1.1 * counts["all"]


def test_without_skips_signals_keep_their_size_on_the_way_up(unet):
    torch.manual_seed(0)
    up = unet.UpAlone(64, 64)
    x = F.relu(torch.randn(2, 64, 32, 32))
    ratio = up.up(x).square().mean() / x.square().mean()
    assert 0.7 < ratio < 1.4


def test_arms_differ_in_nothing_but_the_network_and_its_rate(unet):
    for (arm, seed), run in unet.SKIPS.items():
        recipe, rate = run.stages[0], unet.ARMS[arm][1]
        assert recipe == dataclasses.replace(unet.SMALL, rate=rate, seed=seed)
        assert run.data == unet.MAIN.data and run.train is unet.learn


def test_drawn_cells_touch_but_stay_apart(unet):
    images, masks = unet.drawn_cells(0, count=8)
    assert images.shape == (8, 1, 96, 96) and masks.shape == (8, 96, 96)
    assert 0 <= images.min() and images.max() <= 1
    for mask in masks.numpy():
        cells = unet.connected_components(mask, connectivity=1)
        sizes = np.bincount(cells.ravel())[1:]
        assert sizes.max() < np.pi * (0.62 * 32) ** 2  # no two are joined
    near = unet.border_weights(masks[0].numpy())
    assert near.max() > 8  # cells one or two pixels apart


def test_cells_are_counted_as_apart_merged_or_lost(unet):
    mask = torch.zeros(40, 40, dtype=torch.bool)
    for left in (0, 11, 30):
        mask[5:15, left : left + 10] = True
    joined = mask.clone().float()
    joined[5:15, 10] = 1  # the first two run into one
    half = mask.float().clone()
    half[:, 30:] = 0
    assert unet.counted(mask.float(), mask, 0.5).tolist() == [3, 0, 0]
    assert unet.counted(joined, mask, 0.5).tolist() == [1, 2, 0]
    assert unet.counted(half, mask, 0.5).tolist() == [2, 0, 1]
    assert unet.counted(0 * half, mask, 0.5).tolist() == [0, 0, 3]


def test_the_listing_to_copy_is_the_network(unet):
    names = "DoubleConv", "centre_crop", "Up", "UNet", "initialise"
    code = chapters.listing("unet", names).removeprefix("```python").strip("`")
    alone = {}
    exec(code, alone)
    torch.manual_seed(0)
    network = alone["UNet"](width=2, padded=True).eval()
    torch.manual_seed(0)
    ours = unet.UNet(width=2, padded=True).eval()
    images = torch.randn(1, 1, 40, 33)
    assert torch.equal(network(images), ours(images))


def test_signals_keep_their_size_at_the_start(unet):
    torch.manual_seed(0)
    network = unet.UNet(width=16, padded=True).eval()
    sizes = []
    for block in network.encoder:
        block.register_forward_hook(
            lambda *a: sizes.append(a[2].square().mean().sqrt().item())
        )
    network(torch.randn(1, 1, 256, 256))
    assert 0.3 < sizes[-1] / sizes[0] < 4  # pooling lets them grow a little


def test_it_overfits_two_images(unet):
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    images = torch.stack([(x / 5).sin() * (y / 7).cos(), ((x + y) / 6).sin()])[:, None]
    labels = (images[:, 0] > 0).long()
    weights = torch.ones(labels.shape)
    network = unet.UNet(width=4, padded=True, dropout=0.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss = unet.weighted_cross_entropy(network(images), labels, weights)
        loss.backward()
        optimizer.step()
    assert (network(images).argmax(1) == labels).float().mean() > 0.97


@pytest.mark.parametrize("size", [(100, 130), (33, 40), (1, 5), (68, 68)])
def test_tiles_equal_the_prediction_in_one_piece(unet, size):
    torch.manual_seed(0)
    network = unet.UNet(width=2).eval()
    image = torch.rand(1, *size)
    whole = unet.predict_tiles(network, image, tile=132)
    tiles = unet.predict_tiles(network, image, tile=36)
    assert tiles.shape == (2, *size)
    assert torch.allclose(tiles, whole, atol=1e-5)


def test_tiles_off_the_pooling_grid_do_not(unet):
    torch.manual_seed(0)
    network = unet.UNet(width=2).eval()
    image = torch.rand(1, 100, 130)
    whole = unet.predict_tiles(network, image, tile=132)
    assert not torch.allclose(
        unet.predict_tiles(network, image, tile=36, step=30), whole, atol=1e-3
    )


@pytest.mark.parametrize("options", [dict(tile=20, step=48), dict(tile=4)])
def test_tiles_that_do_not_cover_the_image_are_refused(unet, options):
    with pytest.raises(ValueError, match="do not cover"):
        unet.predict_tiles(unet.UNet(width=2), torch.rand(1, 40, 40), **options)


def test_mirror_equals_numpy(unet):
    for size in (1, 2, 5, 40):
        expected = np.pad(np.arange(size), (92, 130), mode="reflect")
        assert unet.mirror(size, 92, 130).tolist() == expected.tolist()


def test_border_weights_against_the_formula_by_brute_force(unet):
    cells = np.zeros((24, 30), bool)
    cells[2:10, 3:12] = cells[2:10, 15:28] = cells[13:22, 4:20] = True
    got = unet.border_weights(cells, w0=10, sigma=2)

    boxes = [(2, 10, 3, 12), (2, 10, 15, 28), (13, 22, 4, 20)]
    for row, column in [(5, 13), (11, 8), (5, 5), (0, 0), (12, 14), (23, 29)]:
        distances = []
        for top, bottom, left, right in boxes:
            inside = np.zeros((24, 30), bool)
            inside[top:bottom, left:right] = True
            other = np.argwhere(inside != inside[row, column])  # across the border
            distances.append(np.hypot(*(other - [row, column]).T).min())
        d1, d2 = sorted(distances)[:2]
        expected = 10 * np.exp(-((d1 + d2) ** 2) / (2 * 2**2))
        assert got[row, column] == pytest.approx(expected, abs=1e-4)


def test_border_weights_without_two_cells_are_zero(unet):
    for cells in (np.zeros((9, 9)), np.ones((9, 9)), np.eye(9)[:1].repeat(9, 0)):
        assert unet.border_weights(cells > 0).max() == 0


def test_class_weights_balance(unet):
    labels = torch.tensor([[0, 1, 1, 1]])
    weights = unet.class_weights(labels)
    assert weights.tolist() == pytest.approx([2.0, 2 / 3])
    assert weights[labels].mean() == pytest.approx(1.0)


def test_the_loss_is_a_weighted_mean(unet):
    logits, labels = torch.randn(2, 2, 4, 5), torch.randint(2, (2, 4, 5))
    weights = torch.rand(2, 4, 5)
    plain = F.cross_entropy(logits, labels)
    ones = unet.weighted_cross_entropy(logits, labels, torch.ones_like(weights))
    assert torch.allclose(ones, plain)
    only = torch.zeros_like(weights)
    only[0, 1, 2] = 7.0
    one_pixel = F.cross_entropy(logits[0, :, 1, 2], labels[0, 1, 2])
    assert torch.allclose(unet.weighted_cross_entropy(logits, labels, only), one_pixel)
