import base64
import io
import re
from types import SimpleNamespace

import ipywidgets as widgets
import matplotlib
import numpy as np
import pytest
from bs4 import BeautifulSoup
import torch
from PIL import Image

from utils import glue, plotting

PALETTE = ((255, 0, 0), (0, 0, 255))


@pytest.fixture
def shown(monkeypatch):
    """Calls `show` and returns what it would send to the notebook."""

    def call(*arguments, **options):
        sent = []
        with monkeypatch.context() as patch:
            patch.setattr(plotting, "display", lambda data, raw: sent.append(data))
            plotting.show(*arguments, **options)
        (data,) = sent
        return data

    return call


def decode(html):
    kind, data = re.search(r'src="data:image/(\w+);base64,([^"]+)"', html).groups()
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.format.lower() == kind
    return image


def noise(height=40, width=60, channels=3):
    return np.random.default_rng(0).integers(
        256, size=(height, width, channels), dtype=np.uint8
    )


# --- show


def test_show_puts_description_and_picture_on_the_page(shown):
    fig, axis = plotting.figure(width=5, height=2)
    axis.plot([0, 1])
    data = shown(fig, 'A "rising" line')
    assert data["text/plain"] == 'A "rising" line'
    assert 'alt="A &quot;rising&quot; line"' in data["text/html"]
    assert 'width="480" height="192"' in data["text/html"]
    image = decode(data["text/html"])
    assert image.size == (600, 240)
    assert image.convert("RGBA").getpixel((0, 0))[3] == 0  # no paper
    assert len(data["text/html"]) < 20_000


def luminance(colour):
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in matplotlib.colors.to_rgb(colour)
    ]
    return np.dot(linear, (0.2126, 0.7152, 0.0722))


@pytest.mark.parametrize("page", ["#ffffff", "#121212"])  # the theme's, light and dark
def test_ink_reads_well_on_a_light_and_on_a_dark_page(page):
    dark, light = sorted((luminance(plotting.INK), luminance(page)))
    assert (light + 0.05) / (dark + 0.05) > 4


def test_what_a_cell_adds_later_gets_the_ink_of_the_page(shown):
    fig, axis = plotting.figure(width=5, height=2)
    axis.plot([0, 1], label="line")
    note, own = axis.text(0, 0, "note"), axis.text(0, 1, "own", color="k")
    legend = axis.legend()
    shown(fig, "A line")
    assert note.get_color() == legend.get_texts()[0].get_color() == plotting.INK
    assert own.get_color() == "k"
    assert not legend.get_frame_on()


def test_a_reserved_place_is_filled_by_a_later_cell(monkeypatch):
    sent = []

    class Place:
        def update(self, bundle, raw):
            sent.append((bundle, raw))

    monkeypatch.setattr(plotting, "display", lambda *_, display_id: Place())
    fill = plotting.reserve("The prediction comes here.")
    assert sent == []
    fill(np.zeros((4, 4), np.uint8), alt="A black square")
    ((bundle, raw),) = sent
    assert raw and bundle["text/plain"] == "A black square"
    assert bundle["text/html"].startswith("<img") and "A black square" in str(bundle)


def test_a_small_image_is_shown_to_the_bit(shown):
    image = noise(8, 12)
    html = shown(image, "noise", width=300)["text/html"]
    assert 'width="300" height="200"' in html
    assert (np.asarray(decode(html).convert("RGB")) == image).all()


def test_a_large_noisy_image_is_compressed(shown):
    image = noise(300, 400)
    html = shown(image, "noise")["text/html"]
    assert len(html) < image.size / 2
    assert decode(html).size == (400, 300)


@pytest.mark.parametrize("alt", ["", "  "])
def test_no_picture_without_description(alt):
    with pytest.raises(ValueError, match="alt is empty"):
        plotting.show(noise(), alt)


# --- overlay and figures


def test_overlay_by_hand():
    image = torch.tensor([[0, 100, 200]], dtype=torch.uint8)
    labels = torch.tensor([[0, 1, 255]])
    result = plotting.overlay(image, labels, PALETTE, alpha=0.5)
    assert result.tolist() == [[[128, 0, 0], [50, 50, 178], [200, 200, 200]]]
    assert result.dtype == np.uint8
    assert (plotting.overlay(image[None], labels, PALETTE) == result).all()
    assert image.tolist() == [[0, 100, 200]]


def test_overlay_refuses_what_does_not_fit():
    image = torch.zeros(1, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"\(4, 4\) and labels \(4, 5\)"):
        plotting.overlay(image, torch.zeros(4, 5, dtype=torch.long), PALETTE)
    with pytest.raises(ValueError, match="uint8 image.*float32"):
        plotting.overlay(image.float(), torch.zeros(4, 4, dtype=torch.long), PALETTE)


@pytest.mark.parametrize("channels", [1, 3])
def test_predictions_paint_errors_and_leave_out_ignored_pixels(channels, shown):
    images = torch.full((2, channels, 10, 10), 90, dtype=torch.uint8)
    truths = torch.zeros(2, 10, 10, dtype=torch.uint8)
    truths[:, :5] = 11
    predicted = torch.zeros(2, 10, 10, dtype=torch.long)
    predicted[0, :6] = 1  # ten counted pixels wrong of fifty
    fig = plotting.predictions(
        images, truths, predicted, ("a", "b"), PALETTE, ignore=11, titles=("x", "y")
    )
    axes = np.array(fig.axes).reshape(2, 4)
    assert [axis.get_title() for axis in axes[0]] == [
        "image", "truth", "prediction", "error",
    ]  # fmt: skip
    assert [axis.get_xlabel() for axis in axes[:, 3]] == ["20.0 % wrong", "0.0 % wrong"]
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ["x", "y"]
    errors = axes[0, 3].images[0].get_array()
    assert (errors == plotting.WRONG).all(-1).sum() == 10
    assert (errors[:5] == 160).all()
    prediction = axes[0, 2].images[0].get_array()
    assert (prediction[:5] == 90).all() and (prediction[5:] != 90).any(-1).all()
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["a", "b"]
    assert "img" in shown(fig, "predictions")["text/html"]


def test_curves(shown):
    histories = {
        "short": SimpleNamespace(losses=[1.0, 0.5], scores=[(2, 0.4)]),
        "long": SimpleNamespace(losses=list(range(200)), scores=[]),
        "new": SimpleNamespace(losses=[], scores=[]),
    }
    fig = plotting.curves(histories, score="Dice")
    left, right = fig.axes
    short, long, _ = left.lines
    assert short.get_xydata().tolist() == [[1, 1], [2, 0.5]]
    # the mean of four values, 0 .. 3 first
    assert long.get_xydata()[0].tolist() == [4, 1.5] and len(long.get_xdata()) == 197
    assert right.lines[0].get_xydata().tolist() == [[2, 0.4]]
    assert right.lines[0].get_color() == short.get_color()
    assert right.get_ylabel() == "Dice"
    assert "img" in shown(fig, "curves")["text/html"]
    (alone,) = plotting.curves(histories, score=None).axes  # the loss and nothing else
    assert [len(line.get_xdata()) for line in alone.lines] == [2, 197, 0]


# --- explorer


def parts(box):
    controls, pages = box.children
    return *controls.children, pages


@pytest.mark.parametrize("old", [False, True])
def test_explorer_ties_slider_and_pictures_without_a_kernel(old, monkeypatch):
    if old:
        monkeypatch.delattr(widgets, "Stack")
    linked = []
    monkeypatch.setattr(widgets, "jslink", lambda *ends: linked.append(ends))
    frames = [np.full((4, 6), 60 * index, np.uint8) for index in range(3)]
    box = plotting.explorer(frames, [0.1, 0.5, 0.9], "threshold", "cells", start=1)
    play, slider, pages = parts(box)
    assert isinstance(pages, widgets.Tab if old else widgets.Stack)
    assert (play.min, play.max, slider.min, slider.max) == (0, 2, 0, 2)
    assert slider.value == pages.selected_index == play.value == 1
    assert slider.description == "threshold"
    assert linked == [
        ((play, "value"), (slider, "value")),
        ((slider, "value"), (pages, "selected_index")),
    ]
    for pane, label, frame in zip(pages.children, ("0.1", "0.5", "0.9"), frames):
        assert f">threshold {label}</p>" in pane.value
        assert f'alt="cells, threshold {label}"' in pane.value
        assert (np.asarray(decode(pane.value).convert("L")) == frame).all()


def test_explorer_as_html_where_no_kernel_runs():
    frames = [np.full((4, 6), 60 * index, np.uint8) for index in range(3)]
    box = plotting.explorer(frames, [0.1, 0.5, 0.9], "a < b", "cells", start=1)
    bundle = box._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert "application/vnd.jupyter.widget-view+json" in data  # where one does
    outer = BeautifulSoup(data["text/html"], "html.parser").div
    assert outer["class"] == ["explorer"] and outer["data-name"] == "a < b"
    panes = outer.find_all("div", class_="frame")
    assert [pane["data-label"] for pane in panes] == ["0.1", "0.5", "0.9"]
    assert [pane.has_attr("hidden") for pane in panes] == [True, False, True]
    for pane, widget in zip(panes, parts(box)[-1].children):
        assert pane.img["alt"] == BeautifulSoup(widget.value, "html.parser").img["alt"]


def test_explorer_takes_figures_and_counts_labels():
    frames = [plotting.figure(width=2, height=1)[0] for _ in range(2)]
    box = plotting.explorer(frames, "ab", "step", "empty axes")
    assert all("data:image" in pane.value for pane in parts(box)[-1].children)
    with pytest.raises(ValueError, match="2 frames and 3 labels"):
        plotting.explorer(frames, "abc", "step", "empty axes")
    with pytest.raises(ValueError, match="0 frames"):
        plotting.explorer([], [], "step", "nothing")


# --- glue


def test_glue_records_plain_values(monkeypatch):
    records = {}

    def record(data, raw, metadata):
        records[metadata["scrapbook"]["name"]] = data

    monkeypatch.setattr(glue, "display", record)
    glue.glue(
        dice=torch.tensor(0.5), best=np.float64(0.25), steps=700, name="padded"
    )
    expected = {"dice": "0.5", "best": "0.25", "steps": "700", "name": "'padded'"}
    assert records == {
        key: {"application/papermill.record/text/plain": text}
        for key, text in expected.items()
    }


def test_glue_refuses_arrays_and_objects():
    with pytest.raises(TypeError, match="scores is list"):
        glue.glue(scores=[0.1])
    with pytest.raises(TypeError, match="scores is Tensor"):
        glue.glue(scores=torch.zeros(3))
