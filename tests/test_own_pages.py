"""A network of the reader's, opened in the live element."""

import base64
import json
import re

import numpy as np
import pytest
import test_live_pages
import test_own
import torch
from axe_playwright_python.sync_playwright import Axe
from PIL import Image

from utils import live, own, predict

pytestmark = pytest.mark.check
address, browser = test_live_pages.address, test_live_pages.browser
chromium, firefox = test_live_pages.chromium, test_live_pages.firefox
exported = test_own.exported
ELEMENT, FOUND, ANSWER = (
    test_live_pages.ELEMENT, test_live_pages.FOUND, test_live_pages.ANSWER
)  # fmt: skip
OWN = test_live_pages.UNET.replace("name=", "own name=")
PARTS = "network.onnx", "network.safetensors", "network.json"
INPUT = "segbook-live input[accept*=onnx]"


def page(element=OWN):
    return test_live_pages.page_with(element)


def give(tab, files):
    """Chooses files; waits for an answer, or for what the element says of them."""
    tab.evaluate(f"{ELEMENT}.said.textContent = ''")
    tab.page.locator(INPUT).set_input_files(files)
    tab.page.wait_for_function(
        f"/Answered|Choose|choose|hash|could not/.test({ELEMENT}.said.textContent)"
    )
    return tab.said


def parts(folder):
    return [folder / name for name in PARTS]


def copied(folder, to):
    for name in PARTS:
        (to / name).write_bytes((folder / name).read_bytes())
    return to


def same_labels(tab, net, threshold=None):
    found = tab.evaluate(FOUND)
    height, width = tab.evaluate(f"{ELEMENT}.panes[0].manifest.frame")
    channels = net.built.channels
    image = torch.tensor(found["image"], dtype=torch.uint8)
    probability = predict.probabilities(net, image.view(channels, height, width))
    if threshold is None:
        labels = torch.tensor(found["labels"]).view(height, width)
        assert (labels == probability.argmax(0)).float().mean() >= 0.999
        return
    level = np.float32(found["probability"]).reshape(height, width)
    assert np.abs(level - probability[1].numpy()).max() < 2e-3
    numbers = live.instances(level, threshold).flatten().tolist()
    assert found["numbers"] == numbers


def test_opened_instead_of_the_page_s_own(chromium, exported):
    _, sets, folder, _ = exported
    tab = chromium(html=page())
    tab.page.wait_for_load_state("networkidle")
    assert give(tab, parts(folder)).startswith("Answered in")
    same_labels(tab, own.read(folder))
    names = tab.page.locator("segbook-live fieldset label").all_inner_texts()
    assert [re.sub(r"\d+ %", "", n).strip() for n in names] == list(sets.train.classes)
    assert tab.page.locator("segbook-live .thumb img").count() == 3
    assert tab.evaluate(f"{ELEMENT}.shadowRoot.activeElement.tagName") == "CANVAS"
    assert not any("live/unet" in u for u in tab.asked)
    assert all(u.startswith((tab.address, "blob:", "data:")) for u in tab.asked)
    assert tab.errors == []


def test_opened_after_the_page_s_own_and_without_a_network(chromium, exported):
    tab = chromium(html=page())
    tab.answer()
    tab.context.set_offline(True)
    assert give(tab, parts(exported[2])).startswith("Answered in")
    same_labels(tab, own.read(exported[2]))
    photo = Image.new("RGB", (60, 33), (90, 140, 220))
    tab.evaluate(f"void (globalThis.before = {ELEMENT}.photo)")
    file = {
        "name": "photo.png", "mimeType": "image/png",
        "buffer": test_live_pages.as_file(photo),
    }  # fmt: skip
    tab.page.locator("segbook-live input[accept='image/*']").set_input_files(file)
    tab.page.wait_for_function(f"{ELEMENT}.photo !== before")
    assert tab.answer().startswith("Answered")
    same_labels(tab, own.read(exported[2]))
    assert give(tab, parts(exported[2])).startswith("Answered in")  # and once more
    assert tab.errors == []


def test_two_classes_are_shown_as_objects(chromium, tmp_path):
    sets = test_own.sets_of("membranes", 97)
    net = own.network(sets, "ternausnet", "none", width=16)
    own.export(net, sets, tmp_path, threshold=0.45)
    tab = chromium(html=page())
    assert "instances" in give(tab, parts(tmp_path))
    same_labels(tab, own.read(tmp_path), 0.45)
    assert tab.page.get_by_label("Threshold").input_value() == "0.45"
    assert tab.errors == []


def test_what_is_no_network_is_named(chromium, exported, tmp_path):
    folder = copied(exported[2], tmp_path)
    graph, weights, manifest = parts(folder)
    tab = chromium(html=page())
    assert "three files of one network together" in give(tab, [graph, weights])
    assert "There is no .json" in tab.said
    (tmp_path / "b.onnx").write_bytes(b"")
    assert "There are several .onnx" in give(
        tab, [graph, weights, manifest, tmp_path / "b.onnx"]
    )
    told = json.loads(manifest.read_text())
    for wrong in (
        "no json", "{}", "[]", "null",
        json.dumps(told | {"frame": [3]}),
        json.dumps(told | {"graph": told["graph"] | {"integrity": ""}}),
        json.dumps(told | {"weights": {"file": "x", "integrity": "md5-0"}}),
    ):  # fmt: skip
        manifest.write_text(wrong)
        said = give(tab, [graph, weights, manifest])
        assert said == (
            "network.json is no manifest: choose the .json that was exported with the "
            "network."
        )
    assert tab.errors == []
    manifest.write_text(json.dumps(told))
    assert give(tab, parts(folder)).startswith("Answered")


@pytest.mark.parametrize("name", PARTS[:2])
def test_a_wrong_hash_is_refused(chromium, exported, tmp_path, name):
    folder = copied(exported[2], tmp_path)
    file = folder / name
    right = file.read_bytes()
    file.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    tab = chromium(html=page())
    said = give(tab, parts(folder))
    assert said.startswith(name) and "its hash is another" in said
    assert "not used" in said and not tab.evaluate(f"{ELEMENT}.panes")
    file.write_bytes(right)
    assert give(tab, parts(folder)).startswith("Answered")


def test_a_manifest_fetches_nothing(chromium, exported, tmp_path):
    folder = copied(exported[2], tmp_path)
    told = json.loads((folder / "network.json").read_text())
    told["samples"][0]["file"] = "https://elsewhere.example/a.png"
    told["classes"][0]["colour"] = ["0) ; background: url(https://elsewhere.example/b"]
    told["title"] = told["classes"][0]["name"] = "<img src=https://elsewhere.example/c>"
    (folder / "network.json").write_text(json.dumps(told))
    tab = chromium(html=page())
    assert give(tab, parts(folder)).startswith("Answered")
    assert not any("elsewhere" in url for url in tab.asked)
    assert tab.page.locator("segbook-live .thumb img").count() == 2


def test_without_samples_it_waits_for_a_picture(chromium, exported, tmp_path):
    folder = copied(exported[2], tmp_path)
    told = json.loads((folder / "network.json").read_text()) | {"samples": []}
    (folder / "network.json").write_text(json.dumps(told))
    tab = chromium(html=page())
    assert give(tab, parts(folder)).startswith("Answered")  # of a blank one
    assert tab.errors == []


@pytest.mark.parametrize(
    "element", [test_live_pages.UNET, test_live_pages.TWO.replace("name=", "own name=")]
)
def test_it_is_not_there_where_it_does_not_apply(chromium, element):
    tab = chromium(html=page(element))
    assert tab.page.get_by_role("button", name="Try the network").is_visible()
    assert tab.page.locator(INPUT).count() == 0
    tab.answer()
    assert tab.page.locator(INPUT).count() == 0


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_by_keyboard_and_for_screen_readers(chromium, exported, scheme, width):
    how = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    tab = chromium(html=page(), **how)
    choosers = []  # asked for early: to catch them takes the browser a moment
    tab.page.on("filechooser", lambda one: choosers.append(one))
    tab.page.get_by_role("button", name="Try the network").wait_for()
    tab.page.keyboard.press("Tab")
    tab.page.keyboard.press("Tab")
    assert tab.evaluate(f"{ELEMENT}.shadowRoot.activeElement.type") == "file"
    outline = f"getComputedStyle({ELEMENT}.shadowRoot.activeElement.parentElement)"
    assert tab.evaluate(f"{outline}.outlineStyle") == "solid"
    named = tab.page.get_by_label("Open a network: its .onnx, .safetensors and .json")
    assert named.count() == 1
    tab.page.keyboard.press("Space")
    for _ in range(100):
        if not choosers:
            tab.page.wait_for_timeout(100)
    assert choosers[0].is_multiple()
    choosers[0].set_files(parts(exported[2]))
    tab.page.wait_for_function(f"/Answered/.test({ELEMENT}.said.textContent)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(tab.page, context="segbook-live").response["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []
    assert named.count() == 1 and tab.errors == []


def test_firefox_answers_and_refuses_as_well(firefox, address, site, exported):
    """Files are made in the page, as nothing chooses them there."""
    (site / "own.html").write_text(page())
    coded = {
        file.name: base64.b64encode(file.read_bytes()).decode()
        for file in parts(exported[2])
    }
    use = f"""(async files => {{
      const e = {ELEMENT};
      const made = Object.entries(files).map(([name, text]) => new File(
        [Uint8Array.from(atob(text), c => c.charCodeAt(0))], name));
      await e.use(made);
      return e.said.textContent;
    }})"""
    try:
        firefox.open(f"{address}own.html")
        wrong = coded | {"network.safetensors": coded["network.onnx"]}
        said = firefox.evaluate(f"{use}({json.dumps(wrong)})")
        assert "network.safetensors" in said and "its hash is another" in said
        said = firefox.evaluate(f"{use}({json.dumps(coded)})")
        assert said.startswith("Answered")
        same_labels(firefox, own.read(exported[2]))
        assert all("hashes in the integrity" in error for error in firefox.errors)
    finally:
        (site / "own.html").unlink()
