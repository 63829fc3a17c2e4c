"""A reader's own folder: what is handled, and what is said of all that is not."""

import json
import os
import re
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, TiffImagePlugin

from utils import data
from utils.data import DataError, naming, pictures, splitting, survey

H, W = 40, 48
NAMES = "abcdef"
CLASSES = {"background": 0, "house": 255}


@pytest.fixture
def at(tmp_path, monkeypatch):
    """A whole folder: six images of noise, on each a white square on a black mask."""
    monkeypatch.chdir(tmp_path)
    for k, name in enumerate(NAMES):
        save(tmp_path / f"images/{name}.png", noise(k))
        save(tmp_path / f"masks/{name}.png", square())
    return tmp_path


def noise(seed, height=H, width=W):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def square(high=255, low=0, dtype=np.uint8):
    truth = np.full((H, W), low, dtype)
    truth[8:24, 10:30] = high
    return truth


LABEL = torch.from_numpy(square(1))


def save(path, pixels, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **how)


def masks(at, make, ending="png", **how):
    """Replaces all masks by what `make` gives for the number of each."""
    for k, name in enumerate(NAMES):
        (at / f"masks/{name}.png").unlink()
        save(at / f"masks/{name}.{ending}", make(k), **how)


def palette(colours, truth=None):
    image = Image.fromarray(square(1) if truth is None else truth).convert("P")
    image.putpalette([part for colour in colours for part in colour])
    return image


def coloured(inside, outside):
    return np.where(square(1)[..., None] == 1, np.uint8(inside), np.uint8(outside))


def asked(how):
    return {"images": "images", "masks": "masks", "classes": CLASSES, **how}


def loaded(how, quiet=True):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if quiet else "error")
        return data.folder(**asked(how))


def whole(sets):
    """All three parts by name: name -> (image, label)."""
    parts = sets.train, sets.val, sets.test
    return {n: pair for p in parts for n, *pair in zip(p.names, p.images, p.labels)}


# --- the whole


def test_a_plain_folder_becomes_three_data_sets(at):
    sets = data.folder("images", "masks", CLASSES)
    assert [len(p) for p in (sets.train, sets.val, sets.test)] == [4, 1, 1]
    found = whole(sets)
    assert sorted(found) == [f"{name}.png" for name in NAMES]
    for k, name in enumerate(NAMES):
        image, label = found[f"{name}.png"]
        assert torch.equal(image, torch.from_numpy(noise(k)).permute(2, 0, 1))
        assert torch.equal(label, LABEL)
    for part in ("train", "val", "test"):
        own = getattr(sets, part)
        assert isinstance(own, data.Dataset) and own.split == part
        assert own.name == at.name
        assert own.images.dtype == own.labels.dtype == torch.uint8
        assert own.classes == ("background", "house") and len(own.palette) == 2
        assert own.ignore is None and own.source == "local" and own.licence == "yours"
    assert repr(sets) == "Sets(train: 4, val: 1, test: 1)"
    assert sets.groups == {f"{name}.png": f"{name}.png" for name in NAMES}
    assert sets.levels is None


def test_the_report_counts_and_shares(at):
    report = data.look("images", "masks", CLASSES)
    assert report.faults == report.warnings == []
    text = str(report)
    assert "6 images with masks" in text and "40x48" in text
    assert re.search(r"\| house +\| +255 \| +6 \| 16\.67 %", text)
    assert re.search(r"\| test +\| +1 \| +1 \|", text)
    assert "No faults" in text and report._repr_markdown_() == text


def test_the_same_seed_gives_the_same_parts(at):
    one, two = (data.folder("images", "masks", CLASSES, seed=1) for _ in range(2))
    assert one.train.names == two.train.names and one.test.names == two.test.names
    parts = {
        data.folder("images", "masks", CLASSES, seed=s).test.names for s in range(6)
    }
    assert len(parts) > 1


def test_nothing_is_written(at):
    before = {p: p.stat().st_mtime_ns for p in at.rglob("*")}
    loaded({"tile": 16})
    assert {p: p.stat().st_mtime_ns for p in at.rglob("*")} == before


def test_all_faults_come_at_once_a_line_each(at):
    (at / "images/a.png").write_bytes(b"")
    save(at / "masks/b.png", square()[:-1])
    save(at / "masks/c.png", square(7))
    with pytest.raises(DataError) as caught:
        data.folder("images", "masks", CLASSES)
    lines = str(caught.value).splitlines()
    assert [re.search(r"\w+/\w\.png", line)[0] for line in lines] == [
        "images/a.png", "masks/b.png", "masks/c.png"
    ]  # fmt: skip
    assert data.look("images", "masks", CLASSES).faults == lines


def test_many_faults_of_a_kind_are_counted(at):
    for k in range(10):
        (at / f"images/x{k}.png").touch()
        save(at / f"masks/x{k}.png", square())
    report = data.look("images", "masks", CLASSES)
    assert len(report.faults) == 10
    assert "… and 4 more like the last" in str(report)
    with pytest.raises(DataError, match="and 4 more"):
        data.folder("images", "masks", CLASSES)


def test_warnings_are_given(at):
    (at / "masks/a.png").unlink()
    with pytest.warns(UserWarning, match=r"images/a\.png has no mask"):
        data.folder("images", "masks", CLASSES)


@pytest.mark.parametrize(
    "how, words",
    [
        ({"tile": 0}, "tile is 0"),
        ({"tile": 16, "size": 16}, "not both"),
        ({"size": (1, 2, 3)}, "size is"),
        ({"held_out": 0.2}, "shares of val and test"),
        ({"held_out": (0.5, 0.5)}, "shares of val and test"),
        ({"held_out": (0.2, 0)}, "shares of val and test"),
        ({"groups": "place"}, "no group in brackets"),
        ({"groups": "(a"}, "groups is"),
        ({"groups": True}, "groups is"),
        ({"classes": {"a": 0, "b": "no colour"}}, "'no colour' is no value"),
        ({"classes": {"a": 0, "b": -1}}, "-1 is no value"),
        ({"classes": {"a": 0, "b": 0}}, "a and b have one value, 0"),
        ({"classes": {"a": 0, "b": "#000"}}, "a and b have one value"),
        ({"classes": {"a": 0}}, "name the background too"),
        ({"classes": {"a": 0, "b": "others"}, "ignore": "others"}, "not both"),
    ],
)
def test_arguments_without_sense(at, how, words):
    with pytest.raises(ValueError, match=words):
        data.look(**asked(how))


# --- kinds of folders that are answered by a sentence


def empty_file(at):
    (at / "images/b.png").write_bytes(b"")


def truncated(at):
    path = at / "images/b.png"
    path.write_bytes(path.read_bytes()[:2000])


def text_as_image(at):
    (at / "images/b.png").write_text("<html>not found</html>")


def link_to_nowhere(at):
    (at / "images/b.png").unlink()
    (at / "images/b.png").symlink_to(at / "gone.png")


def pages(at):
    first, *more = (Image.fromarray(noise(k)) for k in range(5))
    (at / "images/b.png").unlink()
    first.save(at / "images/b.tif", save_all=True, append_images=more)


def moving(at):
    first, *more = (Image.fromarray(noise(k)) for k in range(3))
    (at / "images/b.png").unlink()
    first.save(at / "images/b.gif", save_all=True, append_images=more)


def other_size(at):
    save(at / "masks/b.png", square()[:20, :24])


def on_its_side(at):
    save(at / "masks/b.png", square().T.copy())


def jpeg_masks(at):
    masks(at, lambda k: square(), "jpg", quality=60)


def webp_masks(at):
    masks(at, lambda k: square(), "webp", quality=60)


def smoothed(at):
    large = Image.fromarray(np.kron(square(), np.ones((4, 4), np.uint8)))
    soft = large.rotate(20).resize((W, H), Image.BICUBIC)
    save(at / "masks/b.png", soft)


def smoothed_colours(at):
    large = np.kron(coloured((255, 0, 0), (0, 0, 255)), np.ones((4, 4, 1), np.uint8))
    soft = Image.fromarray(large).rotate(20, fillcolor=(0, 0, 255))
    masks(at, lambda k: coloured((255, 0, 0), (0, 0, 255)))
    save(at / "masks/b.png", soft.resize((W, H), Image.BICUBIC))


def value_without_name(at):
    save(at / "masks/b.png", square(128))


def colours_for_numbers(at):
    masks(at, lambda k: coloured((255, 0, 0), (0, 0, 255)))


def instances(at):
    def many(k):
        truth = np.zeros((H, W), np.uint8)
        for n in range(60):
            y, x = divmod(n, 10)
            truth[6 * y : 6 * y + 4, 4 * x : 4 * x + 3] = n + 1
        return truth

    masks(at, many)


def sizes(at):
    save(at / "images/b.png", noise(1, 60, 50))
    save(at / "masks/b.png", np.kron(square(), np.ones((2, 2), np.uint8))[:60, :50])


def same_stem(at):
    save(at / "images/b.jpg", noise(9))


def two_masks(at):
    save(at / "masks/b_mask.png", square())


def two_masks_of_one_kind(at):
    (at / "masks/b.png").unlink()
    for word in ("mask", "label"):
        save(at / f"masks/b_{word}.png", square())


def all_masks(at):
    for path in (at / "images").iterdir():
        path.rename(path.with_stem(f"{path.stem}_mask"))


def elsewhere(at):
    """North has images without masks, south masks without images."""
    for kind, place in (("images", "north"), ("masks", "south")):
        (at / kind / place).mkdir()
        for name in NAMES:
            (at / kind / f"{name}.png").rename(at / kind / place / f"{name}.png")


def one_name(at):
    (at / "labels.txt").write_text("house\n")


def no_name_fits(at):
    for k, name in enumerate(NAMES):
        (at / f"masks/{name}.png").rename(at / f"masks/{k}.png")


def empty_folder(at):
    for path in (at / "masks").iterdir():
        path.unlink()


def only_foreign(at):
    for name in NAMES:
        (at / f"images/{name}.png").rename(at / f"images/{name}.heic")


def fractions(at):
    (at / "masks/b.png").unlink()
    save(at / "masks/b.tif", square().astype(np.float32) / 510)


def two_images(at):
    for name in "cdef":
        (at / f"images/{name}.png").unlink()
        (at / f"masks/{name}.png").unlink()


def one_image(at):
    two_images(at)
    (at / "images/b.png").unlink()
    (at / "masks/b.png").unlink()


def one_class(at):
    masks(at, lambda k: square(0))


def many_classes(at):
    ramp = np.arange(H * W, dtype=np.uint16).reshape(H, W) % 300
    masks(at, lambda k: ramp)


def other_list(at):
    names = [{"title": "a", "color": "#50E3C2"}, {"title": "b", "color": "#F5A623"}]
    (at / "classes.json").write_text(json.dumps({"classes": names}))
    masks(at, lambda k: coloured((255, 0, 0), (0, 0, 255)))


def broken_list(at):
    (at / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nhouse:255::\n")


def two_patients(at):
    for kind in ("images", "masks"):
        for name in NAMES:
            (at / kind / f"{name}.png").rename(
                at / kind / f"{'xy'[name > 'b']}_{name}.png"
            )


def packed(at):
    (at / "photos.zip").write_bytes(b"PK")


def nothing(at):
    pass


NO_CLASSES = {"classes": None}
RED = {"background": "#0000FF", "house": (255, 0, 0)}
ANSWERED = [
    (empty_file, {}, r"images/b\.png is empty: copy it again"),
    (truncated, {}, r"images/b\.png breaks off .*: copy it again"),
    (text_as_image, {}, r"images/b\.png cannot be read \(not a picture\)"),
    (link_to_nowhere, {}, r"images/b\.png is a link to nowhere \(.*gone\.png\)"),
    (pages, {}, r"images/b\.tif holds 5 pictures: save each"),
    (moving, {}, r"images/b\.gif holds 3 pictures: save each"),
    (other_size, {}, r"masks/b\.png is 20x24, its image 40x48 .*nearest pixel"),
    (on_its_side, {}, r"masks/b\.png is 48x40, its image 40x48 .*side.*EXIF"),
    (jpeg_masks, {}, r"masks/a\.jpg is a JPEG, which blurs .*PNG"),
    (jpeg_masks, NO_CLASSES, r"masks/a\.jpg is a JPEG, which blurs .*PNG"),
    (webp_masks, {}, r"masks/a\.webp is a WebP, which blurs .*PNG"),
    (smoothed, {}, r"masks/b\.png has values between those .*smoothing"),
    (smoothed, NO_CLASSES, r"masks/b\.png has \d+ values between others.*smoothing"),
    (smoothed_colours, {"classes": RED}, r"masks/b\.png has values between .*smooth"),
    (value_without_name, {}, r"masks/b\.png holds 128, which classes does not name"),
    (colours_for_numbers, {}, r"masks/a\.png holds colours \(#0000FF, #FF0000\).*col"),
    (instances, {}, r'masks/a\.png has 60 values .*"object": "others"'),
    (instances, NO_CLASSES, r'hold 61 values .*masks/a\.png.*"object": "others"'),
    (sizes, {}, r"2 sizes \(images/a\.png 40x48, images/b\.png 60x50.*tile=256.*size="),
    (same_stem, {}, r"images/b\.jpg, images/b\.png have one name, and masks/b"),
    (two_masks, {}, r"images/b\.png has 2 masks, masks/b\.png, masks/b_mask\.png"),
    (two_masks_of_one_kind, {}, r"images/b\.png has 2 masks.*b_label.*b_mask.*keep"),
    (no_name_fits, {}, r"images has a\.png.*masks has 0\.png.*name them"),
    (elsewhere, {}, r"images has a\.png.*masks has a\.png.*name them alike"),
    (all_masks, {"masks": None}, r"all pictures in images are named as masks are"),
    (one_name, {"classes": "labels.txt"}, r"labels\.txt: .* name the background too"),
    (empty_folder, {}, r"masks holds no mask: name the folder that does"),
    (empty_folder, {"images": "masks", "masks": "images"}, "masks is empty: put"),
    (only_foreign, {}, r"images holds no picture .*a\.heic.*save them as PNG"),
    (fractions, {}, r"masks/b\.tif holds fractions or numbers below 0"),
    (one_image, {}, r"there is 1 different image with a mask, and three parts"),
    (two_images, {}, r"there are 2 different images with a mask, and three parts"),
    (two_patients, {"groups": "prefix"}, r"groups='prefix' gives 2 groups, and three"),
    (nothing, {"groups": r"area(\d)"}, r"a\.png has no group by the pattern 'area"),
    (one_class, NO_CLASSES, r"all masks hold one value, 0, as masks/a"),
    (one_class, {}, r"all masks hold background alone, as masks/a\.png does"),
    (many_classes, {"classes": range(300)}, r"there are 300 classes.*room for 255"),
    (other_list, {"classes": "classes.json"}, r"#50E3C2, #F5A623.*not those of these"),
    (broken_list, {"classes": "labelmap.txt"}, r"labelmap\.txt is no list of classes"),
    (nothing, {"classes": "labels.txt"}, r"labels\.txt cannot be read .*No such file"),
    (nothing, {"images": "image"}, r"there is no folder image: did you mean images\?"),
    (nothing, {"masks": "Mask/b"}, r"there is no folder Mask/b: did you mean masks\?"),
    (nothing, {"images": "q"}, r"there is no folder q: give its path, seen from"),
    (nothing, {"images": "images/b.png"}, r"images/b\.png is a file: name the"),
    (packed, {"images": "photos.zip"}, r"photos\.zip is packed: unpack it"),
    (nothing, {"masks": None}, r"images holds no masks beside its images: name"),
    (nothing, {"masks": "masks/b.png"}, r"masks/b\.png is no folder of masks"),
]  # fmt: skip


@pytest.mark.parametrize("make, how, words", ANSWERED)
def test_answered_by_one_sentence(at, make, how, words):
    make(at)
    report = data.look(**asked(how))
    said = [line for line in report.faults if re.search(words, line)]
    assert len(said) == 1, report.faults
    assert "\n" not in said[0] and said[0] in str(report)
    with pytest.raises(DataError, match=words):
        loaded(how)


def test_files_that_may_not_be_read(at, monkeypatch):
    """Pretended: whoever is root may read everything."""
    shut = [at / "images/b.png"]
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: (
        at / path not in shut and access(path, mode)
    ))  # fmt: skip
    (line,) = data.look("images", "masks", CLASSES).faults
    assert line.startswith("images/b.png may not be read: give yourself permission")
    shut[:] = [at / "masks"]
    (line,) = data.look("images", "masks", CLASSES).faults
    assert line.startswith("masks may not be read: give yourself permission")
    (at / "masks/more").mkdir()
    shut[:] = [at / "masks/more"]
    (line,) = data.look("images", "masks", CLASSES).faults
    assert line.startswith("masks/more may not be read: give yourself permission")


def test_huge_images(at, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", H * W // 3)
    lines = data.look("images", "masks", CLASSES).faults
    assert lines[0].startswith(
        "images/a.png has over 1,280 pixels: cut it into smaller"
    )
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", H * W - 1)  # large, not too large
    assert data.look("images", "masks", CLASSES).faults == []


# --- kinds of folders that raise a doubt


def unlabelled(at):
    (at / "masks/b.png").unlink()


def maskless(at):
    (at / "images/b.png").unlink()


def foreign(at):
    (at / "images/g.heic").write_bytes(b"?")


def twice(at):
    save(at / "images/g.bmp", noise(1))
    save(at / "masks/g.png", square())


def twice_unlike(at):
    twice(at)
    save(at / "masks/g.png", square()[::-1].copy())


def frames(at):
    for k in range(20):
        moved = np.roll(
            np.kron(noise(0, 10, 12), np.ones((4, 4, 1), np.uint8)), 3 * k, 1
        )
        save(at / f"images/frame_{k:03}.png", moved)
        save(at / f"masks/frame_{k:03}.png", square())


def nearly_alike(at):
    smooth = np.kron(noise(0, 10, 12), np.ones((4, 4, 1), np.uint8)) // 2
    for k, name in enumerate("ghijklmn"):
        save(at / f"images/{name}.png", smooth + noise(k) // 16)
        save(at / f"masks/{name}.png", square())


def tiny(at):
    for name in NAMES:
        save(at / f"images/{name}.png", noise(ord(name), 3, 4))
        save(at / f"masks/{name}.png", np.uint8([[0, 255, 0, 0]] * 3))


def large(at):
    for k, name in enumerate(NAMES):
        save(at / f"images/{name}.png", noise(k, 1100, 32))
        save(at / f"masks/{name}.png", noise(k, 1100, 32)[..., 0] // 128 * 255)


def void_by_habit(at):
    def truth(k):
        own = square(1)
        own[0] = 255
        return own

    masks(at, truth)


def rare(at):
    truth = square()
    truth[0, 0] = 9
    save(at / "masks/b.png", truth)


def one_colour(at):
    save(at / "images/b.png", np.full((H, W, 3), 7, np.uint8))


def dark(at):
    save(at / "images/b.png", noise(1) // 20)


def unscored(at):
    save(at / "masks/b.png", square(9, 9))


def deep_and_not(at):
    (at / "images/b.png").unlink()
    save(at / "images/b.tif", np.full((H, W), 4000, np.uint16))


THREE = {"classes": {**CLASSES, "tree": 9}}
DOUBTED = [
    (unlabelled, {}, r"images/b\.png has no mask: left out"),
    (maskless, {}, r"masks/b\.png has no image: left out"),
    (foreign, {}, r"images/g\.heic is in a format that Pillow does not read"),
    (twice, {}, r"images/b\.png and images/g\.bmp are one image under two names, both"),
    (twice_unlike, {}, r"images/g\.bmp are one image .*with different masks"),
    (frames, {}, r"(nearly the same|much more alike).*groups="),
    (nearly_alike, {}, r"images held out are nearly the same as one .*groups="),
    (nothing, {"size": 16}, r"images become 16x16: networks .*size=128"),
    (nothing, {"tile": 16}, r"images become 16x16: networks .*size=128"),
    (tiny, {}, r"images/a\.png is 3x4: networks .*size=128"),
    (large, {}, r"images/a\.png is 1100x32: whole, .*tile=512"),
    (void_by_habit, NO_CLASSES, r"255 occurs beside 0, 1: .*ignore=255"),
    (nothing, THREE, r"the class tree occurs in no mask"),
    (rare, THREE, r"the class tree does not occur in val and test"),
    (one_colour, {}, r"images/b\.png is of one colour all over"),
    (dark, {}, r"images/b\.png is almost black, no level above 12 of 255"),
    (unscored, {"ignore": 9}, r"masks/b\.png has no pixel that is scored"),
    (deep_and_not, {}, r"1 image of 6 have more than 8 bits \(images/b\.tif\)"),
]  # fmt: skip


@pytest.mark.parametrize("make, how, words", DOUBTED)
def test_doubts_are_warnings(at, make, how, words):
    make(at)
    report = data.look(**asked(how))
    assert report.faults == []
    said = [line for line in report.warnings if re.search(words, line)]
    assert said, report.warnings
    with pytest.warns(UserWarning, match=words):
        data.folder(**asked(how))


# --- kinds of folders that are handled


def at_once(at, make, ending="png", **how):
    """Replaces image b by what `make` gives."""
    (at / "images/b.png").unlink()
    save(at / f"images/b.{ending}", make, **how)


def same(sets, image=None, label=LABEL, name="b"):
    """Asserts what the image named so, and its label, are."""
    (found,) = [v for n, v in whole(sets).items() if n.rpartition(".")[0] == name]
    if image is not None:
        wanted = torch.as_tensor(np.ascontiguousarray(image))
        wanted = wanted if wanted.ndim == 3 else wanted[..., None].expand(-1, -1, 3)
        assert torch.equal(found[0], wanted.permute(2, 0, 1))
    assert torch.equal(found[1], torch.as_tensor(np.ascontiguousarray(label)))


GREY = noise(50)[..., 0]


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "webp", "gif", "PNG", "pgm"])
def test_grey_images_of_any_format(at, ending):
    how = {"lossless": True} if ending == "webp" else {}
    at_once(at, GREY, ending, **how)
    same(loaded({}), GREY)


def test_sixteen_bits_are_scaled_by_the_range_of_the_folder(at):
    for k, name in enumerate(NAMES):
        (at / f"images/{name}.png").unlink()
        levels = np.linspace(1000 + 100 * k, 2000 + 100 * k, H * W).reshape(H, W)
        save(at / f"images/{name}.tif", levels.astype(np.uint16))
    sets = loaded({})
    wanted = np.linspace(1100, 2100, H * W).reshape(H, W).astype(np.uint16)
    same(sets, ((wanted - 1000.0) * 255 / 1500).round().astype(np.uint8))
    (said,) = [line for line in sets.report.notes if "8 bits" in line]
    assert "6 images" in said and "1000, the least" in said and "2500, the most" in said
    assert sets.levels == (1000, 2500)


def test_among_images_of_8_bits_only_the_deep_ones_have_levels(at):
    (at / "images/b.png").unlink()
    levels = np.linspace(300, 900, H * W).reshape(H, W).astype(np.uint16)
    save(at / "images/b.tif", levels)
    sets = loaded({})
    assert sets.levels == (300, 900)
    same(sets, ((levels - 300.0) * 255 / 600).round().astype(np.uint8))
    same(sets, noise(2), name="c")


def test_pixels_are_those_a_network_takes(tmp_path):
    save(tmp_path / "a.png", noise(1))
    found = pictures.read_pixels(tmp_path / "a.png", levels=(7, 9))  # not for 8 bits
    assert np.array_equal(found, noise(1).transpose(2, 0, 1))
    with Image.open(tmp_path / "a.png") as image:
        grey = np.asarray(image.convert("L"))[None]
    assert np.array_equal(pictures.read_pixels(tmp_path / "a.png", channels=1), grey)
    deep = np.array([[0, 1000], [2000, 9000]], np.uint16)
    save(tmp_path / "b.png", deep)
    for channels in (1, 3):
        found = pictures.read_pixels(tmp_path / "b.png", (1000, 3000), channels)
        assert found.tolist() == channels * [[[0, 0], [128, 255]]]
        with pytest.raises(DataError, match="b.png has over 8 bits.*levels=sets.lev"):
            pictures.read_pixels(tmp_path / "b.png", channels=channels)


def test_floating_point_images_are_scaled(at):
    for name in NAMES:
        (at / f"images/{name}.png").unlink()
        levels = np.linspace(-1, 1, H * W, dtype=np.float32).reshape(H, W).copy()
        levels[1, 1:7] = NAMES.index(name) / 10  # no two alike
        levels[0, 0] = np.nan if name == "b" else -1
        save(at / f"images/{name}.tif", levels)
    image, _ = whole(loaded({}))["c.tif"]
    assert image[0, 0, 0] == 0 and image[2, -1, -1] == 255
    assert torch.equal(image[0], image[1])
    assert whole(loaded({}))["b.tif"][0][0, 0, 0] == 0  # no number: black


def test_what_lets_light_through_lies_on_black(at):
    layered = np.dstack([noise(1), np.where(square() > 0, 255, 0).astype(np.uint8)])
    at_once(at, layered)
    sets = loaded({})
    same(sets, noise(1) * square(1)[..., None])
    assert any("images/b.png lets light through" in line for line in sets.report.notes)


def test_four_inks_become_three_colours(at):
    inks = np.zeros((H, W, 4), np.uint8)
    inks[..., 0] = 255  # cyan alone
    at_once(at, Image.fromarray(inks, "CMYK"), "tif")
    same(loaded({}), np.broadcast_to(np.uint8([0, 255, 255]), (H, W, 3)))


def test_a_palette_image_has_its_colours(at):
    at_once(at, palette([(10, 20, 30), (200, 100, 50)]))
    same(loaded({}), coloured((200, 100, 50), (10, 20, 30)))


@pytest.mark.parametrize("turn", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("drawn", ["turned", "unturned"])
def test_photographs_are_turned_with_their_masks(at, turn, drawn):
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = turn
    sides = turn > 4
    picture = noise(1, W, H) if sides else noise(1)
    at_once(at, picture, exif=exif)
    wanted = pictures.TURNS[turn](picture)
    with Image.open(at / "images/b.png") as image:
        assert np.array_equal(np.asarray(ImageOps.exif_transpose(image)), wanted)
    label = square(1)
    if drawn == "unturned" and sides:
        lying = square().T.copy()
        save(at / "masks/b.png", lying)
        label = pictures.TURNS[turn](lying) // 255
    sets = loaded({})
    same(sets, wanted, label)
    said = [s for s in (*sets.report.notes, *sets.report.warnings) if "EXIF" in s]
    assert len(said) == 1 and "images/b.png" in said[0]
    assert ("with it" in said[0]) == (drawn == "unturned" and sides)
    assert ("look" in said[0]) == (not sides)


@pytest.mark.parametrize("packed", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("turn", [3, 6])
@pytest.mark.parametrize("deep", [False, True])
def test_a_turned_tiff_is_read_as_it_is_seen(tmp_path, packed, turn, deep):
    levels = np.arange(H * W, dtype=np.uint16).reshape(H, W)
    levels = levels if deep else (levels // 8).astype(np.uint8)
    file = tmp_path / "a.tif"
    save(file, levels, compression=packed, tiffinfo={pictures.ORIENTATION: turn})
    photo = pictures.read_photo(file)
    found = photo.pixels if deep else photo.pixels[..., 0]
    assert np.array_equal(found, pictures.TURNS[turn](levels))


@pytest.mark.parametrize("kind, pages", [(1, 1), (4, 1), (5, 1), (0, 2), (2, 2)])
def test_smaller_copies_in_a_tiff_are_no_pictures(tmp_path, kind, pages):
    file = tmp_path / "map.tif"
    with TiffImagePlugin.AppendingTiffWriter(file, new=True) as pack:
        Image.fromarray(GREY).save(pack, "TIFF")
        pack.newFrame()
        tag = {pictures.PAGE_KIND: kind}
        Image.fromarray(GREY[::2, ::2]).save(pack, "TIFF", tiffinfo=tag)
        pack.newFrame()
    if pages == 1:
        assert np.array_equal(pictures.read_photo(file).pixels[..., 0], GREY)
    else:
        with pytest.raises(DataError, match="holds 2 pictures"):
            pictures.read_photo(file)


def of_zero_and_one(at):
    masks(at, lambda k: square(1))


def of_one_bit(at):
    masks(at, lambda k: Image.fromarray(square()).convert("1"))


def of_sixteen_bits(at):
    masks(at, lambda k: square(4000, 1000, np.uint16))


def of_whole_floats(at):
    masks(at, lambda k: square(2, 1).astype(np.float32), "tif")


def grey_as_colour(at):
    masks(at, lambda k: Image.fromarray(square()).convert("RGB"))


def of_a_palette(at):
    masks(at, lambda k: palette([(0, 0, 255), (255, 0, 0)]))


def of_a_grey_palette(at):
    masks(at, lambda k: palette([(255, 255, 255), (0, 0, 0)], square(0, 1)))


def of_colours(at):
    masks(at, lambda k: coloured((255, 0, 0), (0, 0, 255)))


def of_colours_and_palettes(at):
    of_colours(at)
    save(at / "masks/b.png", palette([(255, 0, 0), (0, 0, 255)], square(0, 1)))
    save(
        at / "masks/c.png", palette([(9, 9, 9), (0, 0, 255), (255, 0, 0)], square(2, 1))
    )


def of_clear_colours(at):
    masks(at, lambda k: np.dstack([coloured((255, 0, 0), (9, 9, 9)), square()]))


def smooth_by_jpeg(at):
    masks(at, lambda k: square(), "jpg", quality=95)


BLUE = {"background": (0, 0, 255), "house": (255, 0, 0)}
DECODED = [  # masks, classes, ignore -> palette, where it is told
    (of_zero_and_one, {"classes": ["background", "house"]}, None),
    (of_zero_and_one, {"classes": ("background", "house")}, None),
    (of_zero_and_one, NO_CLASSES, None),
    (of_one_bit, {}, None),
    (of_one_bit, {"classes": {"background": 0, "house": 1}}, None),
    (of_sixteen_bits, {"classes": {"background": 1000, "house": 4000}}, None),
    (of_whole_floats, {"classes": {"background": 1, "house": 2}}, None),
    (grey_as_colour, {}, None),
    (grey_as_colour, {"classes": {"background": "black", "house": "#FFF"}}, "bw"),
    (of_a_palette, {"classes": {"background": 0, "house": 1}}, "colours"),
    (of_a_palette, NO_CLASSES, "colours"),
    (of_a_palette, {"classes": BLUE}, "colours"),
    (of_a_grey_palette, {}, None),
    (of_colours, {"classes": BLUE}, "colours"),
    (of_colours, {"classes": {"background": "#0000ff", "house": "#FF0000"}}, "colours"),
    (of_colours, NO_CLASSES, "colours"),
    (of_colours_and_palettes, {"classes": BLUE}, "colours"),
    (of_colours_and_palettes, NO_CLASSES, "colours"),
    (of_clear_colours, {"classes": {"background": 0, "house": (255, 0, 0)}}, "clear"),
]  # fmt: skip
SHOWN = {
    "bw": ((0, 0, 0), (255, 255, 255)),
    "colours": ((0, 0, 255), (255, 0, 0)),
    "clear": ((0, 0, 0), (255, 0, 0)),
    None: naming.READABLE[:2],
}


@pytest.mark.parametrize("make, how, shown", DECODED)
def test_masks_of_every_kind(at, make, how, shown):
    make(at)
    sets = loaded(how, quiet=False)
    for name in NAMES:
        same(sets, label=LABEL, name=name)
    assert sets.train.palette == SHOWN[shown]
    assert sets.train.ignore is None


def test_found_classes_are_named_for_copying(at):
    of_colours(at)
    sets = loaded(NO_CLASSES)
    assert sets.train.classes == ("#0000FF", "#FF0000")
    (said,) = [line for line in sets.report.notes if "were found" in line]
    told = eval(re.search(r"classes=(\{.*\})", said)[1])  # noqa: S307
    assert loaded({"classes": told}).train.classes == sets.train.classes


@pytest.mark.parametrize("ignore", [7, [7, 9], "others", "#070707", (7, 7, 7)])
def test_what_is_ignored(at, ignore):
    truth = square()
    truth[0] = 7
    save(at / "masks/b.png", truth)
    sets = loaded({"ignore": ignore})
    label = square(1)
    label[0] = 255
    same(sets, label=label)
    assert sets.train.ignore == sets.test.ignore == 255


def test_fringes_of_jpeg_masks_can_be_left_unscored(at):
    smooth_by_jpeg(at)
    sets = loaded({"ignore": "others"})
    _, label = whole(sets)["b.png"]
    kept = label != 255
    assert 0.5 < kept.float().mean() < 1
    assert torch.equal(label[kept], LABEL[kept])


def test_all_other_values_can_be_one_class(at):
    instances(at)
    classes = {"background": 0, "object": "others"}
    truth = np.asarray(Image.open(at / "masks/b.png")) > 0
    same(loaded({"classes": classes}), label=truth.astype(np.uint8))
    classes = {"background": 0, "odd": list(range(1, 61, 2)), "even": "others"}
    _, label = whole(loaded({"classes": classes}))["b.png"]
    assert label[0, 0] == 1 and label[0, 4] == 2 and label[5, 0] == 0


# --- the files that labelling tools write

WRITTEN = {
    "labelmap.txt": "# label:color_rgb:parts:actions\nbackground:0,0,255::\n"
    "house:255,0,0::\n",
    "classes.json": json.dumps({"classes": [
        {"title": "background", "color": "#0000FF", "shape": "polygon"},
        {"title": "house", "color": "#FF0000"},
    ]}),
    "class_dict.csv": "name,r,g,b\nbackground, 0,0,255\nhouse,255,0,0\n",
    "colours.json": json.dumps({"background": [0, 0, 255], "house": "#FF0000"}),
}  # fmt: skip
NUMBERED = {
    "labels.txt": "background\nhouse\n\n",
    "void.txt": "__ignore__\nbackground\nhouse\n",
    "coco.json": json.dumps({"categories": [{"id": 1, "name": "house"}]}),
    "list.json": json.dumps(["background", "house"]),
    "id2label.json": json.dumps({"0": "background", "1": "house"}),
    "table.csv": "name,number\nbackground,0\nhouse,1\n",
}


@pytest.mark.parametrize("name", [*WRITTEN, *NUMBERED])
def test_classes_from_a_file(at, name):
    (of_colours if name in WRITTEN else of_zero_and_one)(at)
    (at / name).write_text((WRITTEN | NUMBERED)[name])
    sets = loaded({"classes": name})
    assert sets.train.classes == ("background", "house")
    same(sets, label=LABEL)
    assert sets.train.ignore == (255 if name == "void.txt" else None)


# --- names


def moved(at, images, masks):
    """Renames all files: patterns with a {} for the name."""
    for kind, pattern in (("images", images), ("masks", masks)):
        for name in NAMES:
            target = at / pattern.format(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            (at / kind / f"{name}.png").rename(target)


PAIRED = [
    ("images/{}.png", "masks/{}_mask.png"),
    ("images/{}.png", "masks/{}_label.png"),
    ("images/{}.png", "masks/{}_gt.png"),
    ("images/{}.png", "masks/{}_segmentation.png"),
    ("images/{}.png", "masks/{}-mask.png"),
    ("images/{}.png", "masks/{}.mask.png"),
    ("images/{}.png", "masks/mask_{}.png"),
    ("images/{}.png", "masks/{}.BMP"),
    ("images/{}.PNG", "masks/{}.png"),
    ("images/img_{}.png", "masks/mask_{}.png"),
    ("images/{}_image.png", "masks/{}_mask.png"),
    ("images/x_{}_leftImg8bit.png", "masks/x_{}_gtFine_labelIds.png"),
    ("images/a b {} é.png", "masks/a b {} é_mask.png"),
    ("images/north/{}.png", "masks/north/{}.png"),
    ("images/north/{}.png", "masks/{}.png"),
    ("images/north/imgs/{}.png", "masks/north/labels/{}.png"),
]


@pytest.mark.parametrize("photos, truths", PAIRED)
def test_pairs_by_name_in_two_folders(at, photos, truths):
    moved(at, photos, truths)
    sets = loaded({}, quiet=False)
    assert len(whole(sets)) == 6
    for k, (_, (image, _)) in enumerate(sorted(whole(sets).items())):
        assert torch.equal(image, torch.from_numpy(noise(k)).permute(2, 0, 1))


TOGETHER = [
    ("all/imgs/{}.png", "all/labels/{}.png"),
    ("all/images/{}.png", "all/masks/{}_mask.png"),
    ("all/area 1/images/{}.png", "all/area 1/masks/{}.png"),
    ("all/{}.png", "all/{}_mask.png"),
    ("all/{}.png", "all/mask-{}.png"),
    ("all/one/{}.png", "all/one/{}.gt.png"),
]


@pytest.mark.parametrize("photos, truths", TOGETHER)
@pytest.mark.parametrize("given", [None, "all"])
def test_pairs_by_name_in_one_folder(at, photos, truths, given):
    moved(at, photos, truths)
    sets = loaded({"images": "all", "masks": given}, quiet=False)
    assert sorted(whole(sets)) == sorted(
        photos.removeprefix("all/").format(name) for name in NAMES
    )
    for name in sets.train.names:
        assert set(whole(sets)[name][1].unique().tolist()) == {0, 1}


def test_pairs_by_ending_in_one_folder(at):
    for name in NAMES:
        save(at / f"masks/{name}.jpg", noise(ord(name)))
    assert sorted(whole(loaded({"images": "masks", "masks": None}))) == [
        f"{name}.jpg" for name in NAMES
    ]


def test_images_inside_the_folder_of_masks(at):
    (at / "images").rename(at / "masks/photos")
    sets = loaded({"images": "masks/photos"}, quiet=False)
    assert len(whole(sets)) == 6


def test_masks_inside_the_folder_of_images(at):
    (at / "masks").rename(at / "images/truth")
    sets = loaded({"masks": "images/truth"}, quiet=False)
    assert len(whole(sets)) == 6


def test_accents_written_in_two_ways(at):
    moved(at, "images/{}e\u0301.png", "masks/{}\u00e9.png")
    assert len(whole(loaded({}, quiet=False))) == 6


def test_image_10_is_not_image_1(at):
    for k in (1, 10):
        save(at / f"images/image{k}.png", noise(k + 90))
        save(at / f"masks/image{k}_mask.png", square())
    same(loaded({}), noise(100), name="image10")


def test_what_is_no_picture_is_left_aside(at):
    for name in (".DS_Store", "._a.png", "Thumbs.db", "desktop.ini", ".hidden/x.png",
                 "__MACOSX/a.png", "notes.txt", "more/table.xlsx"):  # fmt: skip
        for kind in ("images", "masks"):
            (at / kind / name).parent.mkdir(exist_ok=True)
            (at / kind / name).write_bytes(b"?")
    sets = loaded({}, quiet=False)
    assert len(whole(sets)) == 6
    (said,) = [line for line in sets.report.notes if "aside" in line]
    assert said.startswith("4 files") and "images/notes.txt" in said


def test_folders_that_are_links(at):
    (at / "images").rename(at / "elsewhere")
    (at / "images").mkdir()
    (at / "images/all").symlink_to(at / "elsewhere")
    (at / "elsewhere/round").symlink_to(at / "images")
    assert len(whole(loaded({}, quiet=False))) == 6


# --- sizes


def test_all_is_resized(at):
    sizes(at)
    sets = loaded({"size": (20, 24)})
    assert sets.train.images.shape[1:] == (3, 20, 24)
    assert sets.train.labels.shape[1:] == (20, 24)
    assert set(sets.train.labels.unique().tolist()) == {0, 1}
    same(sets, label=square(1)[1::2, 1::2], name="a")


def test_stretching_and_weight_are_told(at, monkeypatch):
    report = data.look(**asked({"size": (64, 48)}))
    assert any("resizing to 64x48 stretches 6 images" in line for line in report.notes)
    monkeypatch.setattr(survey, "HEAVY", 4 * 6 * 64 * 48 - 1)
    (said,) = data.look(**asked({"size": (64, 48)})).warnings
    assert said.startswith("all images together take 0.0 GiB of memory: resize")
    assert data.look(**asked({"size": (60, 48)})).warnings == []


def test_tiles_hold_each_pixel_once(at):
    sizes(at)
    sets = loaded({"tile": 32})
    assert sets.train.images.shape[1:] == (3, 32, 32) and sets.train.ignore == 255
    found = whole(sets)
    own = {n: v for n, v in found.items() if n.startswith("b.png@")}
    assert sorted(own) == ["b.png@0,0", "b.png@0,18", "b.png@28,0", "b.png@28,18"]
    truth = np.kron(square(1), np.ones((2, 2), np.uint8))[:60, :50]
    again, met = np.full((60, 50), 255, np.uint8), np.zeros((60, 50), int)
    for name, (image, label) in own.items():
        y, x = map(int, name.split("@")[1].split(","))
        part = slice(y, y + 32), slice(x, x + 32)
        assert (image.permute(1, 2, 0).numpy() == noise(1, 60, 50)[part]).all()
        scored = label.numpy() != 255
        met[part] += scored
        again[part][scored] = label.numpy()[scored]
    assert (met == 1).all() and (again == truth).all()


def test_tiles_of_one_image_stay_in_one_part(at):
    sets = loaded({"tile": 16})
    owners = [
        {n.split("@")[0] for n in p.names} for p in (sets.train, sets.val, sets.test)
    ]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 6
    assert {sets.groups[n] for n in sets.test.names} == owners[2]


def test_what_is_smaller_than_a_tile_is_filled_up(at):
    sets = loaded({"tile": 64})
    image, label = whole(sets)["b.png@0,0"]
    assert torch.equal(label[:H, :W], LABEL) and (label[H:] == 255).all()
    assert (label[:, W:] == 255).all() and torch.equal(image[:, H + 5], image[:, H - 1])


# --- groups


def grouped(at, pattern):
    moved(at, f"images/{pattern}", f"masks/{pattern}")


@pytest.mark.parametrize(
    "name, groups, wanted",
    [
        ("north/images/a.png", "folder", "north"),
        ("a.png", "folder", "."),
        ("x/y/a.png", "folder", "x/y"),
        ("seq1_0003.png", "prefix", "seq1"),
        ("seq1 03.png", "prefix", "seq1"),
        ("frame12.png", "prefix", "frame"),
        ("a.png", None, "a.png"),
        ("area7/b.png", r"area(\d)", "7"),
    ],
)
def test_group_of_a_name(name, groups, wanted):
    assert splitting.group_of(name, groups) == wanted


def test_groups_stay_whole(at):
    for k in range(24):
        save(at / f"images/site{k % 6}/{k}.png", noise(k + 10))
        save(at / f"masks/site{k % 6}/{k}.png", square())
    how = {"images": "images", "groups": "folder"}
    for name in NAMES:
        (at / f"images/{name}.png").unlink(), (at / f"masks/{name}.png").unlink()
    sets = loaded(how, quiet=False)
    sites = [
        {n.split("/")[0] for n in p.names} for p in (sets.train, sets.val, sets.test)
    ]
    assert sum(map(len, sites)) == len(set.union(*sites)) == 6
    assert [len(p) for p in (sets.train, sets.val, sets.test)] == [16, 4, 4]


def test_parts_that_are_folders_already(at):
    for k, name in enumerate(NAMES):
        part = ("train", "train", "train", "Valid", "test", "test")[k]
        for kind in ("images", "masks"):
            target = at / part / kind / f"{name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            (at / kind / f"{name}.png").rename(target)
    (at / "images").rmdir(), (at / "masks").rmdir()
    sets = loaded({"images": ".", "masks": None, "groups": "folder"})
    assert [len(p) for p in (sets.train, sets.val, sets.test)] == [3, 1, 2]
    assert sets.val.names == ("Valid/images/d.png",)


def test_blocks_of_neighbours(at):
    sets = loaded({"groups": 2})
    assert len(set(sets.groups.values())) == 3
    assert sets.groups["a.png"] == sets.groups["b.png"] != sets.groups["c.png"]
    assert [len(p) for p in (sets.train, sets.val, sets.test)] == [2, 2, 2]


def test_one_image_under_two_names_is_on_one_side(at):
    twice(at)
    for seed in range(5):
        sets = loaded({"seed": seed})
        assert sets.groups["b.png"] == sets.groups["g.bmp"]


def test_one_image_on_two_sides_is_told(at):
    twice(at)
    said = {
        re.search("under two names, (.*):", line)[1]
        for seed in range(8)
        for line in data.look(**asked({"groups": r"(\w)\.", "seed": seed})).warnings
        if "two names" in line
    }
    assert "both kept in train" in said
    assert any(re.fullmatch("in (train|val|test) and in (?!\\1).*", s) for s in said)


def test_a_rare_class_is_learnt(at):
    rare(at)
    for seed in range(5):
        assert "b.png" in loaded({**THREE, "seed": seed}).train.names


def test_a_class_that_is_held_out_whole(at):
    for k, name in enumerate(NAMES):
        part = ("train", "train", "train", "val", "test", "test")[k]
        for kind in ("images", "masks"):
            target = at / kind / part / f"{name}.png"
            target.parent.mkdir(exist_ok=True)
            (at / kind / f"{name}.png").rename(target)
    truth = square()
    truth[0] = 9
    save(at / "masks/test/f.png", truth)
    report = data.look(**asked({**THREE, "groups": "folder"}))
    (said,) = report.warnings
    assert said.startswith("the class tree occurs only in images held out")


def test_blank_masks_are_counted(at):
    for name in "bc":
        save(at / f"masks/{name}.png", square(0))
    save(at / "masks/d.png", square(255, 255))
    notes = data.look("images", "masks", CLASSES).notes
    assert any(
        "2 masks of background alone: masks/b.png, masks/c.png" in n for n in notes
    )
    assert any("1 mask of house alone: masks/d.png" in n for n in notes)


# --- outlines


def annotation(number, image, category, *polygons, **more):
    return {"id": number, "image_id": image, "category_id": category, "iscrowd": 0,
            "segmentation": [list(p) for p in polygons], **more}  # fmt: skip


def box(x0, y0, x1, y1):
    return x0, y0, x1, y0, x1, y1, x0, y1


def coco(at, annotations=(), categories=None, **more):
    """Replaces the masks by a COCO file; image k has the number 10 + k."""
    for name in NAMES:
        (at / f"masks/{name}.png").unlink()
    categories = categories or [{"id": 3, "name": "house"}, {"id": 90, "name": "tree"}]
    entries = [{"id": 10 + k, "file_name": f"{name}.png", "height": H, "width": W}
               for k, name in enumerate(NAMES)]  # fmt: skip
    plain = [annotation(k, 10 + k, 3, box(10, 8, 30, 24)) for k in range(6)]
    told = {"images": entries, "categories": categories,
            "annotations": [*plain, *annotations]} | more  # fmt: skip
    (at / "annotations.json").write_text(json.dumps(told))
    return told


OUTLINES = {"masks": "annotations.json", "classes": None}


def test_coco_polygons(at):
    coco(at, [annotation(50, 11, 90, box(40, 0, 48, 5), box(0, 30, 5, 35))])
    sets = loaded(OUTLINES)
    assert sets.train.classes == ("background", "house", "tree")
    assert sets.train.ignore is None
    label = square(1)
    label[0:5, 40:48] = label[30:35, 0:5] = 2
    same(sets, noise(1), label)
    same(sets, label=LABEL, name="c")


def test_coco_in_the_folder_of_images(at):
    coco(at)
    (at / "annotations.json").rename(at / "images/_annotations.coco.json")
    same(loaded({"masks": None, "classes": None}), label=LABEL)


def test_coco_names_are_the_reader_s_to_choose(at):
    coco(at, [annotation(50, 11, 90, box(40, 0, 48, 5))])
    classes = {"tree": 90, "ground": 0, "house": 1}
    label = np.where(square(1) == 1, 2, 1)
    label[0:5, 40:48] = 0
    how = {**OUTLINES, "classes": classes}
    same(loaded(how), label=label.astype(np.uint8))
    how = {**OUTLINES, "classes": {"ground": 0, "building": 3}, "ignore": "tree"}
    sets = loaded(how)
    assert sets.train.classes == ("ground", "building") and sets.train.ignore == 255
    label = square(1)
    label[0:5, 40:48] = 255
    same(sets, label=label)


def rle(mask):
    """COCO's counts of a mask: runs of 0 and 1 down the columns."""
    flat = np.concatenate([[0], mask.T.ravel(), [2]])
    ends = np.flatnonzero(np.diff(flat))
    runs = np.diff(np.concatenate([[0], ends[:-1], [mask.size]])).tolist()
    return {"size": list(mask.shape), "counts": runs}


def test_coco_counts_with_a_hole_and_a_crowd(at):
    ring = np.zeros((H, W), np.uint8)
    ring[26:38, 2:20] = 1
    ring[30:34, 8:12] = 0
    crowd = np.zeros((H, W), np.uint8)
    crowd[0:4] = 1
    coco(at, [
        annotation(50, 11, 90) | {"segmentation": rle(ring)},
        annotation(51, 11, 90, iscrowd=1) | {"segmentation": rle(crowd)},
    ])  # fmt: skip
    sets = loaded(OUTLINES)
    label = square(1)
    label[ring == 1] = 2
    label[crowd == 1] = 255
    same(sets, label=label)
    assert sets.train.ignore == 255


def test_coco_packed_counts(at):
    from pycocotools import mask as pack

    packed = pack.encode(np.asfortranarray(square(1)[::-1]))
    packed["counts"] = packed["counts"].decode()
    coco(at, [annotation(50, 11, 90) | {"segmentation": packed}])
    label = np.where(square(1)[::-1] == 1, 2, square(1))
    same(loaded(OUTLINES), label=label.astype(np.uint8))


def test_the_smaller_outline_lies_on_top(at):
    for order in (1, -1):
        more = [annotation(50, 11, 90, box(12, 10, 16, 14)),
                annotation(51, 11, 90, box(0, 0, 48, 40))]  # fmt: skip
        coco(at, more[::order])
        sets = loaded(OUTLINES)
        label = np.where(square(1) == 1, 1, 2)
        label[10:14, 12:16] = 2
        same(sets, label=label.astype(np.uint8))
        assert any("overlap in 1 image (b.png)" in line for line in sets.report.notes)
        for name in NAMES:
            save(at / f"masks/{name}.png", square())


def test_coco_without_annotations_is_background(at):
    told = coco(at)
    told["annotations"] = told["annotations"][1:]
    (at / "annotations.json").write_text(json.dumps(told))
    same(loaded(OUTLINES), label=LABEL)
    same(loaded(OUTLINES), label=0 * LABEL, name="a")


def test_coco_paths_of_other_machines(at):
    told = coco(at)
    for entry in told["images"]:
        entry["file_name"] = f"C:\\data\\{entry['file_name'].upper()}"
    (at / "annotations.json").write_text(json.dumps(told))
    same(loaded(OUTLINES), label=LABEL)


def labelme(at, shapes, **more):
    """Replaces the masks by LabelMe's files beside the images; shapes are those of "
    "b."""
    house = {"label": "house", "shape_type": "polygon",
             "points": [[10, 8], [30, 8], [30, 24], [10, 24]]}  # fmt: skip
    for name in NAMES:
        (at / f"masks/{name}.png").unlink()
        told = {"version": "5.0", "imagePath": f"{name}.png", "imageHeight": H,
                "imageWidth": W, "imageData": "no picture at all",
                "shapes": [house, *(shapes if name == "b" else [])]} | more  # fmt: skip
        (at / f"images/{name}.json").write_text(json.dumps(told))


BESIDE = {"masks": None, "classes": None}


def test_labelme_shapes(at):
    labelme(at, [
        {"label": "tree", "shape_type": "rectangle", "points": [[48, 5], [40, 0]]},
        {"label": "pond", "shape_type": "circle", "points": [[10, 32], [10, 37]]},
        {"label": "__ignore__", "points": [[40, 30], [48, 30], [48, 40], [40, 40]]},
    ])  # fmt: skip
    sets = loaded(BESIDE)
    assert sets.train.classes == ("background", "house", "pond", "tree")
    label = whole(sets)["b.png"][1]
    assert (label[8:24, 10:30] == 1).all() and (label[0:5, 40:48] == 3).all()
    pond = label == 2
    assert abs(int(pond.sum()) - np.pi * 25) < 12
    rows, columns = pond.nonzero().float().mean(0)
    assert abs(rows - 31.5) < 1 and abs(columns - 9.5) < 1
    assert (label[30:40, 40:48] == 255).all() and sets.train.ignore == 255


def test_labelme_in_a_folder_of_its_own(at):
    labelme(at, [])
    for name in NAMES:
        (at / f"images/{name}.json").rename(at / f"masks/{name}.json")
    same(loaded({"classes": ["background", "house"]}), label=LABEL)


def coco_missing(at):
    coco(at)
    (at / "images/b.png").unlink()


def coco_unlisted(at):
    told = coco(at)
    told["images"] = told["images"][1:]
    told["annotations"] = told["annotations"][1:]
    (at / "annotations.json").write_text(json.dumps(told))


def coco_box(at):
    coco(at, [annotation(50, 11, 90, bbox=[0, 0, 5, 5])])


def coco_line(at):
    coco(at, [annotation(50, 11, 90, (0, 0, 5, 5))])


def coco_far(at):
    coco(at, [annotation(50, 11, 90, box(0, 0, 5e9, 5e9))])


def coco_counts(at):
    short = {"size": [H, W], "counts": [3, 4]}
    coco(at, [annotation(50, 11, 90) | {"segmentation": short}])


def coco_torn_counts(at):
    torn = {"size": [H, W], "counts": "not what it should be"}
    coco(at, [annotation(50, 11, 90) | {"segmentation": torn}])


def coco_orphan(at):
    coco(at, [annotation(50, 99, 90, box(0, 0, 5, 5))])


def coco_category(at):
    coco(at, [annotation(50, 11, 7, box(0, 0, 5, 5))])


def coco_smaller(at):
    told = coco(at)
    told["images"][1].update(height=H // 2, width=W // 2)
    (at / "annotations.json").write_text(json.dumps(told))


def coco_torn(at):
    coco(at)
    path = at / "annotations.json"
    path.write_text(path.read_text()[:-20])


def coco_bare(at):
    (at / "annotations.json").write_text(json.dumps({"images": [], "annotations": []}))


def geojson(at):
    (at / "annotations.json").write_text(
        '{"type": "FeatureCollection", "features": []}'
    )


def coco_two(at):
    coco(at)
    text = (at / "annotations.json").read_text()
    for name in ("one.json", "two.json"):
        (at / "images" / name).write_text(text)


def labelme_line(at):
    labelme(
        at, [{"label": "path", "shape_type": "linestrip", "points": [[0, 0], [9, 9]]}]
    )


def labelme_sizeless(at):
    labelme(at, [], imageHeight=None)


SUBSET = {**OUTLINES, "classes": {"ground": 0, "house": 3}}


def coco_of_two(at):
    coco(at, [annotation(50, 11, 90, box(40, 0, 48, 5))])


WRONG = {**OUTLINES, "classes": {"background": 0, "hose": 7}}
OUTLINED = [
    (coco_missing, OUTLINES, "warnings", r"names 1 image that the.*b\.png"),
    (coco_unlisted, OUTLINES, "warnings", r"images/a\.png has no mask: left"),
    (coco_box, OUTLINES, "faults", r"annotation 50 has a box and no outline: draw"),
    (coco_line, OUTLINES, "faults", r"annotation 50 has an outline of fewer"),
    (coco_far, OUTLINES, "faults", r"annotation 50 lies far outside its image"),
    (coco_counts, OUTLINES, "faults", r"annotation 50 has .* counts do not fill"),
    (coco_torn_counts, OUTLINES, "faults", r"annotation 50 has a seg.*cannot be read"),
    (coco_orphan, OUTLINES, "faults", r"annotation 50 belongs to the image 99"),
    (coco_category, OUTLINES, "faults", r"annotation 50 belongs to the category 7"),
    (coco_smaller, OUTLINES, "faults", r"json \(b\.png\) is 20x24, its image 40x48"),
    (coco_torn, OUTLINES, "faults", r"annotations\.json is no whole JSON .*export"),
    (coco_bare, OUTLINES, "faults", r"lacks what COCO files have \(KeyError"),
    (geojson, OUTLINES, "faults", r"annotations\.json holds neither .*export"),
    (coco_two, {"masks": None}, "faults", r"several files of outl.*one\.json.*two"),
    (coco_of_two, SUBSET, "faults", r"json \(b\.png\) holds tree, which classes"),
    (coco, WRONG, "faults", r"no class 'hose' .*\(did you mean house\?\)"),
    (labelme_line, BESIDE, "faults", r"b\.json: shape 2 \(path\) is a linestrip.*poly"),
    (labelme_sizeless, BESIDE, "faults", r"images/a\.json does not say how large"),
]  # fmt: skip


@pytest.mark.parametrize("make, how, where, words", OUTLINED)
def test_outlines_that_are_answered_by_one_sentence(at, make, how, where, words):
    make(at)
    report = data.look(**asked(how))
    said = [line for line in getattr(report, where) if re.search(words, line)]
    assert len(said) == 1, str(report)
    assert where == "faults" or not report.faults


def test_pycocotools_is_needed_for_outlines_only(at, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    assert len(whole(loaded({}))) == 6
