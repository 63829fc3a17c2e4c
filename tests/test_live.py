"""Live networks: what is committed, and what a reader meets in the browser."""

import gzip
import io
import json
import shutil
import sys
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from sphinx.errors import ExtensionError
from test_export import run as run_graph

from utils import live, runs

sys.path.insert(0, str(ROOT / "_ext"))

import book_live  # noqa: E402

SHIPPED = sorted(
    path.parents[1].name for path in (ROOT / "results").glob("*/live/main.json")
)
every_network = pytest.mark.parametrize("name", SHIPPED)


def sample(network, number=0):
    """A committed sample, (C, H, W) uint8."""
    manifest = live.read_manifest(network)
    file = network.manifest.parent / manifest["samples"][number]["file"]
    with Image.open(file) as picture:
        size = manifest["frame"]
        return live.letterbox(picture, size, manifest["channels"])[0]


def settings(count):
    """(gates, fill): all on, then each off, by nothing and by its mean."""
    yield [1.0] * count, 0.0
    for number in range(count):
        for fill in (0.0, 1.0):
            yield [float(k != number) for k in range(count)], fill


def labels_of(network, logits):
    """What the page shows: classes, or the pixels above the threshold."""
    if network.output == "softmax":
        return logits.argmax(0)
    return (live.probability(network, logits) > network.threshold).long()


# What is committed


@every_network
def test_manifest_holds_what_is_committed(name):
    network = live.find(name)
    manifest = live.read_manifest(network)
    weights = runs.files(network.run)[1]
    assert manifest["graph"] == live.identity(network.graph)
    assert manifest["weights"] == live.identity(weights)
    assert len(gzip.compress(network.graph.read_bytes())) < 150_000
    pictures = [*manifest["samples"], manifest["picture"]]
    assert len(manifest["samples"]) in (2, 3)
    for picture in pictures:
        with Image.open(network.manifest.parent / picture["file"]) as image:
            assert image.size == (picture["width"], picture["height"])
        assert picture["alt"]
    kept = {picture["file"] for picture in pictures} | {network.manifest.name}
    assert kept == {path.name for path in network.manifest.parent.iterdir()}
    means = live.means_of(manifest)
    told = live.describe(network, means, manifest["samples"], manifest["picture"])
    assert json.loads(json.dumps(told)) == manifest


@every_network
def test_graph_is_that_of_the_code(name, tmp_path):
    """Exported once more, it has the same bytes."""
    network = live.find(name)
    means = live.means_of(live.read_manifest(network))
    shutil.copy(runs.files(network.run)[1], tmp_path)
    again = tmp_path / network.graph.name
    live.write_graph(network, live.trained(network), means, again)
    assert again.read_bytes() == network.graph.read_bytes(), (
        f"run: make export CHAPTER={name}"
    )


def compare(name, some=slice(None)):
    network, model = live.find(name), live.trained(live.find(name))
    manifest, frame = live.read_manifest(network), sample(network)
    means, seen = live.means_of(manifest), []
    for gates, fill in list(settings(len(network.gates)))[some]:
        found = run_graph(network.graph, frame[None], gates, fill)[0]
        expected = live.run(model, network, frame, means, gates, fill)
        pair = labels_of(network, found), labels_of(network, expected)
        assert (pair[0] == pair[1]).float().mean() >= 0.999, (gates, fill)
        seen.append(pair[0])
    return seen


@every_network
def test_graph_gives_the_labels_of_pytorch(name):
    whole, without = compare(name, slice(2))
    assert len(whole.unique()) > 1 and not torch.equal(whole, without)


@pytest.mark.check
@every_network
def test_every_gate_gives_the_labels_of_pytorch(name):
    whole, *others = compare(name)
    assert all(not torch.equal(whole, other) for other in others)


@every_network
def test_cards_of_samples_name_no_other_data(name):
    """The committed images are of data that may be shown with their source."""
    assert live.find(name).run.data["test"]["name"] in ("camvid", "membranes")


# The definition


def test_an_unknown_output_is_refused():
    with pytest.raises(ValueError, match="there are"):
        replace(live.find("unet"), output="argmax")


def test_a_chapter_without_one_says_so(capsys):
    assert live.main(["gcn"]) == 1
    assert "gcn defines 0 live networks" in capsys.readouterr().out
    assert live.main([]) == 2


def test_drawn_data_are_not_exported(monkeypatch):
    monkeypatch.setenv("SEGBOOK_SOURCE", "sample")
    with pytest.raises(ValueError, match="published files"):
        live.write(live.find("unet"))


def test_letterbox_keeps_the_shape_of_a_photo():
    photo = Image.new("RGB", (200, 50), (10, 20, 30))
    frame, box = live.letterbox(photo, (100, 100), 3)
    assert frame.shape == (3, 100, 100) and box == (0, 37, 100, 25)
    assert frame[:, 37:62].amax((1, 2)).tolist() == [10, 20, 30]
    assert frame[:, 0, 0].tolist() == list(live.MARGIN)
    grey, _ = live.letterbox(photo, (100, 100), 1)
    assert grey.shape == (1, 100, 100)


def test_instances_touch_by_sides_and_count_from_the_top():
    above = np.array([[1, 0, 1], [0, 1, 1], [1, 0, 0]])
    assert live.instances(above, 0.5).tolist() == [[1, 0, 2], [0, 2, 2], [3, 0, 0]]


def test_painting_leaves_what_is_no_instance():
    network = live.find("unet")
    frame = torch.full((1, 2, 3), 100, dtype=torch.uint8)
    logits = torch.zeros(2, 2, 3)
    logits[network.thing, 0, 0] = 9
    painted = live.paint(network, frame, logits)
    assert (painted[0, 0] != 100).any() and (painted[1] == 100).all()


def test_means_are_kept_to_the_last_bit():
    means = {"a": torch.rand(200).half().float(), "b": torch.zeros(3)}
    network = replace(live.find("unet"), gates={"a": "encoder.0", "b": "encoder.1"})
    manifest = json.loads(json.dumps(live.describe(network, means, [], {})))
    assert all(torch.equal(means[k], v) for k, v in live.means_of(manifest).items())


# In a notebook


def parts_of(box):
    """The widgets in a box by their description, and those without by their kind."""
    found = {}
    for child in box.children:
        found |= parts_of(child) if hasattr(child, "children") else {}
        found.setdefault(
            getattr(child, "description", "") or type(child).__name__, child
        )
    return found


def shown(parts):
    with Image.open(io.BytesIO(parts["Image"].value)) as picture:
        return np.array(picture)


def test_widget_answers_and_switches():
    parts = parts_of(live.widget("unet"))
    network = live.find("unet")
    model, frame = live.trained(network), sample(network)
    means = live.means_of(live.read_manifest(network))
    whole = shown(parts)
    logits = live.run(model, network, frame, means)
    assert np.array_equal(whole, live.paint(network, frame, logits))
    parts["skip at full size"].value = False
    logits = live.run(model, network, frame, means, [0, 1, 1, 1])
    assert np.array_equal(shown(parts), live.paint(network, frame, logits))
    parts["off leaves"].value = 1.0
    logits = live.run(model, network, frame, means, [0, 1, 1, 1], 1)
    assert np.array_equal(shown(parts), live.paint(network, frame, logits))
    parts["threshold"].value = 0.5
    assert np.array_equal(
        shown(parts), live.paint(network, frame, logits, threshold=0.5)
    )
    parts["opacity"].value = 0.0
    assert np.array_equal(shown(parts)[..., 0], frame[0].numpy())
    parts["sample"].value = "sample-2.webp"
    assert np.array_equal(shown(parts)[..., 0], sample(network, 1)[0].numpy())
    assert "Answered in" in parts["HTML"].value


def test_widget_takes_an_upload():
    parts = parts_of(live.widget("deeplab"))
    assert "threshold" not in parts
    file = io.BytesIO()
    Image.new("RGB", (300, 100), (90, 140, 220)).save(file, "png")
    parts["opacity"].value = 0.0
    for content in (file.getvalue(), b"no picture"):
        parts["Upload"].value = (
            {"name": "a.png", "type": "image/png", "size": len(content),
             "content": memoryview(content), "last_modified": datetime.now(UTC)},
        )  # fmt: skip
        assert shown(parts).shape == (160, 481, 3)
    assert "no picture" in parts["HTML"].value


def test_uploads_of_ipywidgets_7_are_read_too():
    seven = {"a.png": {"metadata": {"name": "a.png"}, "content": b"bytes"}}
    eight = ({"name": "a.png", "content": memoryview(b"bytes")},)
    assert live.uploaded(seven) == live.uploaded(eight) == b"bytes"


# The build


def test_an_element_without_a_network_stops_the_build():
    def complete(tag):
        found = book_live.ELEMENT.search(tag)
        return book_live.completed(found, ROOT, "intro", "_static")

    with pytest.raises(ExtensionError, match="no live network 'vgg'.*make export"):
        complete('<segbook-live name="vgg">')
    with pytest.raises(ExtensionError, match="without a name"):
        complete("<segbook-live>")
    with pytest.raises(ExtensionError, match="same classes"):
        complete('<segbook-live name="unet" beside="deeplab">')
    told = complete('<segbook-live name="unet">')
    assert 'data-size="8 MB"' in told and 'alt="Prediction of the network' in told


def test_what_a_reader_fetches_is_small():
    scripts = ("live.mjs", "live-worker.mjs")
    packed = [gzip.compress((ROOT / "_static" / name).read_bytes()) for name in scripts]
    assert sum(map(len, packed)) < 12_000
