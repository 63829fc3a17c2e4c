"""Augmentation keeps image and label together, and labels in their classes."""

import pytest
import torch

from utils.data.augment import Augment

EVERYTHING = dict(
    flip="hv", rotate=180, scale=(0.7, 1.4), elastic=8.0, brightness=0.1, contrast=0.2
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def blobs(batch=3, channels=1, size=(97, 130)):
    """Smooth shapes; the grey value tells the class: 30, 120 or 220."""
    height, width = size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    labels = ((torch.sin(x / 9) + torch.cos(y / 11) + 1) / 1.01).clamp(0, 2).long()
    images = torch.tensor([30, 120, 220], dtype=torch.uint8)[labels]
    return (
        images.expand(batch, channels, height, width).clone(),
        labels.expand(batch, height, width).clone(),
    )


def test_without_any_warp_a_crop_is_copied_pixel_by_pixel():
    images = torch.randint(0, 256, (2, 3, 40, 50), dtype=torch.uint8)
    labels = torch.arange(2 * 40 * 50).view(2, 40, 50)  # every pixel has its own label
    crops, cut = Augment((17, 23))(images, labels, generator=generator())
    for image, label, source in zip(crops, cut, images):
        first = int(label[0, 0]) % (40 * 50)
        top, left = divmod(first, 50)
        expected = source[:, top : top + 17, left : left + 23]
        assert torch.allclose(image * 255, expected.float(), atol=1e-2)


def test_crops_reach_every_border():
    labels = torch.arange(36).view(1, 6, 6)
    images = torch.zeros(1, 1, 6, 6, dtype=torch.uint8)
    corners = {
        int(Augment((3, 3))(images, labels, generator=generator(seed))[1][0, 0, 0])
        for seed in range(300)
    }
    assert corners == {6 * top + left for top in range(4) for left in range(4)}


def test_image_and_label_stay_aligned_under_everything():
    images, labels = blobs()
    warp = Augment((80, 90), flip="hv", rotate=180, scale=(0.7, 1.4), elastic=8.0)
    pixels, moved = warp(images, labels, generator=generator())
    grey = torch.tensor([30, 120, 220])[moved] / 255
    agree = ((pixels[:, 0] - grey).abs() < 0.02).float().mean()
    assert agree > 0.9  # the rest are mixed pixels on the borders of the shapes


def test_maps_are_cut_like_the_image():
    images, labels = blobs()
    warp = Augment((64, 64), flip="hv", rotate=180, scale=(0.7, 1.4), elastic=8.0)
    pixels, _, moved = warp(images, labels, images[:, 0] / 255, generator=generator())
    assert torch.allclose(pixels[:, 0], moved, atol=1e-5)


def test_labels_stay_in_their_classes_and_images_in_range():
    images, labels = blobs(channels=3)
    pixels, moved = Augment((150, 150), **EVERYTHING)(
        images, labels, generator=generator()
    )
    assert set(moved.unique().tolist()) <= {0, 1, 2}
    assert moved.dtype == torch.int64
    assert pixels.min() >= 0 and pixels.max() <= 1


def test_pixels_from_beyond_the_image_take_the_given_label():
    images, labels = blobs(size=(40, 40))
    _, moved = Augment((60, 60), outside=11)(images, labels, generator=generator())
    assert (moved[:, 0] == 11).all() and (moved[:, -1] == 11).all()
    assert (moved == 11).sum() == 3 * (60 * 60 - 40 * 40)


def test_same_seed_same_batch():
    images, labels = blobs()
    augment = Augment((33, 47), **EVERYTHING)
    first = augment(images, labels, generator=generator(5))
    again = augment(images, labels, generator=generator(5))
    other = augment(images, labels, generator=generator(6))
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first[0], other[0])


def test_a_zoomed_view_stays_in_the_middle():
    augment = Augment((41, 61), flip="hv", rotate=180, scale=(0.5, 3.0))
    where = augment.coordinates(50, (41, 61), generator())  # (B, h, w, 2)
    assert where[:, 20, 30].abs().max() < 1e-5
    assert (where.amax((1, 2)) + where.amin((1, 2))).abs().max() < 1e-5


def test_displacements_have_the_asked_size_on_the_lattice():
    augment = Augment((101, 101), elastic=10.0)
    corners = torch.tensor([[[[0.0, 0.0], [100.0, 100.0]]]]).expand(4000, -1, -1, -1)
    drawn = augment.displacement(corners, torch.tensor([101, 101]), generator())
    assert drawn.std() == pytest.approx(10.0, rel=0.05)
    assert drawn.mean() == pytest.approx(0.0, abs=0.5)


def test_the_images_themselves_are_left_alone():
    images, labels = blobs()
    before = images.clone(), labels.clone()
    Augment((50, 50), **EVERYTHING)(images, labels, generator=generator())
    assert torch.equal(images, before[0]) and torch.equal(labels, before[1])
