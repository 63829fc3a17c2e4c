"""Random crops, flips, rotation, scale, elastic deformation and light, in one go.

Everything that moves pixels is composed into one field of coordinates and
resampled once: images with bilinear interpolation, labels by nearest neighbour.
Several resamplings in a row would blur the image and let labels drift from it.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Augment:
    """What may happen to a batch; the defaults only cut random crops.

    size        height and width of the result, in pixels
    flip        axes that may flip: "h", "v", "hv" or ""
    rotate      largest rotation either way, in degrees
    scale       smallest and largest zoom (2 shows things twice as large)
    elastic     standard deviation of the displacements of a coarse `grid` x
                `grid` lattice over the whole image, in pixels (U-Net, section 3.1)
    brightness  largest shift of the grey values, as a share of the range
    contrast    largest change of the contrast around the mean, as a share
    outside     label of pixels from beyond the image; None mirrors the image
    """

    size: tuple[int, int]
    flip: str = ""
    rotate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    elastic: float = 0.0
    grid: int = 3
    brightness: float = 0.0
    contrast: float = 0.0
    outside: int | None = None

    def __call__(self, images, labels, *maps, generator=None):
        """Augment a batch, on the device where the images are.

        images (B, C, H, W) uint8, labels (B, H, W) of any integer type, maps
        (B, H, W) float. Returns images (B, C, h, w) float in [0, 1], labels
        (B, h, w) int64, and the maps (B, h, w), all cut by the same coordinates.
        """
        where = self.coordinates(len(images), images.shape[-2:], generator)
        where = where.to(images.device)  # (B, h, w, 2)
        edge = "reflection" if self.outside is None else "zeros"
        pixels = sample(images.float() / 255, where, "bilinear", edge)
        pixels = self.relight(pixels, generator)
        # Labels shift by one, so that the zeros from beyond the image stay apart.
        moved = sample(labels[:, None].float() + 1, where, "nearest", edge)[:, 0]
        moved = moved.round().long() - 1
        if self.outside is not None:
            moved = torch.where(moved < 0, self.outside, moved)
        moved_maps = [sample(m[:, None], where, "bilinear", edge)[:, 0] for m in maps]
        return pixels, moved, *moved_maps

    def coordinates(self, batch, image_size, generator=None):
        """Where each pixel of the result comes from: (B, h, w, 2), x then y,
        in units of grid_sample (-1 and 1 are the outer edges of the image)."""
        (height, width), (h, w) = image_size, self.size

        def uniform(low, high):
            return low + (high - low) * torch.rand(batch, generator=generator)

        y = torch.arange(h) - (h - 1) / 2
        x = torch.arange(w) - (w - 1) / 2
        offset = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)  # (h, w, 2)

        angle = uniform(-self.rotate, self.rotate) * math.pi / 180
        zoom = torch.exp(uniform(*map(math.log, self.scale)))
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1)
        matrix = turn.view(batch, 2, 2) / zoom.view(batch, 1, 1)
        for axis, letter in enumerate("hv"):
            sign = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
            if letter in self.flip:
                matrix[:, :, axis] *= sign[:, None]

        # A crop starts at a whole pixel: without any warp, pixels are copied.
        left = (uniform(0, 1) * (width - w + 1)).floor()
        top = (uniform(0, 1) * (height - h + 1)).floor()
        centre = torch.stack([left + (w - 1) / 2, top + (h - 1) / 2], 1)
        pixel = torch.einsum("bij,hwj->bhwi", matrix, offset) + centre[:, None, None]
        extent = torch.tensor([width, height])
        if self.elastic:
            pixel = pixel + self.displacement(pixel, extent, generator)
        return (2 * pixel + 1) / extent - 1

    def displacement(self, pixel, extent, generator=None):
        """Displacement of each pixel (B, h, w, 2), in pixels: normal vectors on a
        coarse lattice over the image, bicubic in between (U-Net, section 3.1)."""
        shape = (len(pixel), 2, self.grid, self.grid)
        lattice = self.elastic * torch.randn(shape, generator=generator)
        on_lattice = 2 * pixel / (extent - 1) - 1  # corners at the pixel centres
        field = F.grid_sample(
            lattice, on_lattice, "bicubic", "border", align_corners=True
        )
        return field.permute(0, 2, 3, 1)

    def relight(self, pixels, generator=None):
        """Shift the brightness and stretch the contrast of each image."""
        if not (self.brightness or self.contrast):
            return pixels
        shift, stretch = (
            2 * torch.rand(2, len(pixels), 1, 1, 1, generator=generator) - 1
        ).to(pixels.device)
        mean = pixels.mean((1, 2, 3), keepdim=True)
        pixels = (pixels - mean) * (1 + self.contrast * stretch) + mean
        return (pixels + self.brightness * shift).clamp(0, 1)


def sample(values, where, mode, edge):
    """`values` (B, C, H, W) at the coordinates `where` (B, h, w, 2)."""
    return F.grid_sample(values, where, mode, edge, align_corners=False)
