"""Live networks in a browser, as a reader meets them."""

import base64
import io
import json
import re
import shutil
import sys

import numpy as np
import pytest
import test_firefox
import test_pages
import torch
from axe_playwright_python.sync_playwright import Axe
from conftest import ROOT
from PIL import Image
from test_live import SHIPPED, every_network, labels_of, settings

from utils import live

sys.path.insert(0, str(ROOT / "_ext"))

import book_live  # noqa: E402

pytestmark = pytest.mark.check
address, browser, firefox = test_pages.address, test_pages.browser, test_firefox.firefox
ELEMENT = "document.querySelector('segbook-live')"
ANSWER = f"""(async () => {{
  const e = {ELEMENT}, wait = () => new Promise(done => setTimeout(done, 30));
  if (!e.panes) e.go.click();
  while (!(e.panes?.every(pane => pane.result && !pane.stale) && !e.busy)) {{
    if (/could not|hash|WebAssembly/.test(e.said.textContent)) break;
    await wait();
  }}
  return e.said.textContent;
}})()"""
FOUND = f"""(() => {{
  const {{image, result, box}} = {ELEMENT}.panes[0];
  return {{image: [...image], box, labels: [...result.labels],
    probability: [...result.probability], numbers: [...result.numbers ?? []]}};
}})()"""


class Chromium:
    """A page that a reader has opened, with all that it asked for and complained of."""

    def __init__(self, browser, address, html=None, **how):
        how.setdefault("viewport", {"width": 1280, "height": 900})
        self.context = browser.new_context(**how)
        self.page, self.address = self.context.new_page(), address
        self.asked, self.errors = [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on(
            "console",
            lambda m: self.errors.append(m.text) if m.type == "error" else None,
        )
        if html is not None:
            self.page.route(
                f"{address}own.html",
                lambda route: route.fulfill(body=html, content_type="text/html"),
            )

    def open(self, name="own"):
        self.page.goto(f"{self.address}{name}.html", wait_until="load")
        return self

    def evaluate(self, expression):
        return self.page.evaluate(expression)

    def answer(self):
        return self.evaluate(ANSWER)

    @property
    def said(self):
        return self.page.locator("segbook-live [role=status]").inner_text()

    def give(self, name, content, kind="image/png"):
        """Chooses a file, and waits until it is taken or named, and for the answer."""
        self.evaluate(f"void (globalThis.before = {ELEMENT}.photo)")
        file = {"name": name, "mimeType": kind, "buffer": content}
        self.page.locator("segbook-live input[type=file]").set_input_files(file)
        self.page.wait_for_function(
            f"{ELEMENT}.photo !== before || /is no/.test({ELEMENT}.said.textContent)"
        )
        return self.answer()


@pytest.fixture
def chromium(browser, address):
    """chromium(name, …) opens a page; chromium(html=…) one with this text."""
    tabs = []

    def open_page(name="own", route=(), **how):
        tab = Chromium(browser, address, **how)
        tabs.append(tab)
        for pattern, handler in route:
            tab.page.route(pattern, handler)
        return tab.open(name)

    yield open_page
    for tab in tabs:
        tab.context.close()


def page_with(element):
    """A page with one element, as the build makes it."""
    return (
        '<!doctype html><html lang="en"><title>Live</title>'
        f"{element}<script type=module src=_static/live.mjs></script>"
    )


UNET = '<segbook-live name="unet" data-size="8 MB"><p>A line.</p></segbook-live>'
TWO = UNET.replace('name="unet"', 'name="unet" beside="unet"')
chapter_of = "chapters/{}".format


# The answers


def same_labels(tab, name, some=slice(None)):
    """A tab's labels and PyTorch's, on the pixels that the page used."""
    network, model = live.find(name), live.trained(live.find(name))
    manifest = live.read_manifest(network)
    means, (height, width) = live.means_of(manifest), manifest["frame"]
    for gates, fill in list(settings(len(network.gates)))[some]:
        tab.evaluate(
            f"Object.assign({ELEMENT}.panes[0], {{stale: true, fill: {fill}, "
            f"gates: {json.dumps(gates)}}}) && {ELEMENT}.answer()"
        )
        tab.evaluate(ANSWER)
        found = tab.evaluate(FOUND)
        frame = torch.tensor(found["image"], dtype=torch.uint8)
        frame = frame.view(manifest["channels"], height, width)
        logits = live.run(model, network, frame, means, gates, fill)
        expected = labels_of(network, logits)
        labels = torch.tensor(found["labels"]).view(height, width)
        if network.output == "sigmoid":
            probability = np.float32(found["probability"]).reshape(height, width)
            labels = torch.tensor(probability > network.threshold).long()
            numbers = live.instances(probability, network.threshold)
            assert found["numbers"] == numbers.flatten().tolist()
        assert (labels == expected).float().mean() >= 0.999, (gates, fill)


@every_network
def test_answers_are_those_of_pytorch(chromium, name):
    tab = chromium(chapter_of(name))
    assert re.match(r"Answered in \d+ milliseconds: ", tab.answer())
    same_labels(tab, name, slice(2))
    assert tab.errors == []


@every_network
def test_every_gate_answers_as_pytorch_in_chromium(chromium, name):
    tab = chromium(chapter_of(name))
    tab.answer()
    same_labels(tab, name)
    assert tab.errors == []


@every_network
def test_every_gate_answers_as_pytorch_in_firefox(firefox, address, name):
    firefox.open(f"{address}{chapter_of(name)}.html")
    assert firefox.evaluate(ANSWER).startswith("Answered in")
    same_labels(firefox, name)
    assert firefox.errors == []


def test_the_same_pixels_as_the_sample(chromium):
    """A picture as large as the frame is used as it is."""
    tab = chromium(html=page_with(UNET))
    tab.answer()
    network = live.find("unet")
    file = network.manifest.parent / live.read_manifest(network)["samples"][0]["file"]
    with Image.open(file) as picture:
        expected = live.letterbox(picture, (320, 320), 1)[0]
    found = np.array(tab.evaluate(FOUND)["image"]) - expected.flatten().numpy()
    assert np.abs(found).max() <= 1  # two decoders of WebP


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (17, 23), (40, 64)])
def test_instances_are_those_of_python(chromium, size):
    tab, random = chromium(html=page_with("")), np.random.default_rng(0)
    for threshold in (0.2, 0.4, 0.6, 0.8):
        maps = random.random(size).astype(np.float32)
        maps[::3] = np.float32(threshold)  # at the threshold is below it
        numbers = live.instances(maps, threshold).flatten().tolist()
        found = tab.evaluate(
            "import('./_static/live.mjs').then(({instances}) => instances("
            f"Float32Array.from({json.dumps(maps.flatten().tolist())}), {size[1]}, "
            f"{threshold})).then(({{numbers, count}}) => [[...numbers], count])"
        )
        assert found == [numbers, max(numbers)]


@pytest.mark.parametrize("palette", [None, [[1, 2, 3], [40, 50, 60], [7, 8, 9]]])
def test_saved_numbers_can_be_read(chromium, palette):
    numbers = np.random.default_rng(0).integers(0, 3 if palette else 65536, (13, 29))
    tab = chromium(html=page_with(""))
    found = tab.evaluate(
        "import('./_static/live.mjs').then(({png}) => png(Int32Array.from("
        f"{json.dumps(numbers.flatten().tolist())}), 29, {json.dumps(palette)} ?? "
        "undefined)).then(f => f.bytes ? f.bytes() : f.arrayBuffer())"
        ".then(b => btoa(String.fromCharCode(...new Uint8Array(b))))"
    )
    with Image.open(io.BytesIO(base64.b64decode(found))) as image:
        assert np.array_equal(np.array(image), numbers)
        assert image.mode == ("P" if palette else "I;16")
        if palette:
            assert image.getpalette()[:9] == sum(palette, [])


def test_saves_classes_at_the_size_of_the_photo(chromium):
    tab = chromium("chapters/deeplab")
    tab.answer()
    tab.give("wide.png", as_file(Image.new("RGB", (600, 200), (90, 140, 220))))
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="Save the classes").click()
    assert download.value.suggested_filename == "deeplab-mask.png"
    with Image.open(download.value.path()) as mask:
        assert mask.size == (600, 200) and np.array(mask).max() < 11
        box = tab.evaluate(FOUND)["box"]
        labels = np.array(tab.evaluate(FOUND)["labels"]).reshape(353, 481)
        inside = labels[box["top"] :, box["left"] :][: box["height"], : box["width"]]
        assert box == {"left": 0, "top": 96, "width": 481, "height": 160}
        assert set(np.unique(mask)) <= set(np.unique(inside))


def as_file(image, kind="png", **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


# What it asks for


def test_nothing_is_fetched_before_the_button(chromium):
    tab = chromium("intro")
    tab.page.wait_for_load_state("networkidle")
    of_live = [u for u in tab.asked if "live" in u and not u.endswith(".webp")]
    assert of_live == [f"{tab.address}_static/live.mjs"]
    assert not any("vendor" in url or "onnx" in url for url in tab.asked)


def test_no_picture_leaves_and_no_network_is_needed(chromium):
    tab = chromium(html=page_with(UNET))
    tab.answer()
    before = len(tab.asked)
    tab.context.set_offline(True)
    tab.page.locator("segbook-live .thumb").nth(1).click()
    assert tab.answer().startswith("Answered")
    photo = Image.new("RGB", (900, 300), (120, 130, 140))
    assert tab.give("photo.png", as_file(photo)).startswith("Answered")
    assert [u for u in tab.asked[before:] if not u.startswith(("blob:", "data:"))] == []
    assert all(url.startswith((tab.address, "blob:", "data:")) for url in tab.asked)
    assert tab.errors == []


def test_other_pages_do_without(chromium):
    tab = chromium("chapters/gcn")
    assert not any("live" in url for url in tab.asked)


def test_runtime_of_a_cdn_is_taken(chromium, vendor):
    """As in a build that is not offline; the CDN is played by the copy."""
    told = {
        name: {"url": script.url, "integrity": script.integrity}
        for name, script in book_live.RUNTIME.items()
    }

    def cdn(route):
        path = re.search(r"onnxruntime-web@[\d.]+/(.*)", route.request.url)[1]
        route.fulfill(
            path=vendor / "onnxruntime-web" / path,
            headers={"Access-Control-Allow-Origin": "*"},
        )

    tab = chromium(
        html=page_with(UNET),
        route=[
            ("**/runtime.json", lambda route: route.fulfill(json=told)),
            (f"{book_live.RUNTIME['wasm'].url.partition('@')[0]}@**", cdn),
        ],
    )
    assert tab.answer().startswith("Answered")
    assert sum(url.startswith("https://") for url in tab.asked) == 2


WRONG = [
    ("**/main.safetensors", "main.safetensors"),
    ("**/main.onnx", "main.onnx"),
    ("**/*.wasm", "ort-wasm-simd-threaded.wasm"),
]


@pytest.mark.parametrize("pattern, file", WRONG)
def test_a_wrong_hash_is_refused(chromium, pattern, file):
    def change(route):
        if route.request.method == "HEAD":
            return route.fulfill(status=200)
        body = route.fetch().body()
        route.fulfill(body=body[:-1] + bytes([body[-1] ^ 1]))

    tab = chromium(html=page_with(UNET), route=[(pattern, change)])
    said = tab.answer()
    assert file in said and "its hash is another" in said and "not used" in said


def test_a_cut_network_is_named_and_one_can_try_again(chromium):
    tab = chromium(html=page_with(UNET), route=[("**/*.wasm", lambda r: r.abort())])
    assert "is there a network?" in tab.answer()
    assert tab.page.get_by_role("button", name="Try the network").is_enabled()
    tab.page.unroute("**/*.wasm")
    tab.evaluate(f"{ELEMENT}.said.textContent = ''")
    assert tab.answer().startswith("Answered")


def test_without_webassembly_it_says_so(chromium):
    html = page_with(UNET)
    removed = "<script>delete globalThis.WebAssembly</script>"
    tab = chromium(html=html.replace("<script", f"{removed}<script"))
    assert "no WebAssembly" in tab.answer()


@pytest.mark.parametrize("error", ["std::bad_alloc", "error 8359528", "out of memory"])
def test_full_memory_is_named(chromium, error):
    tab = chromium(html=page_with(UNET))
    tab.evaluate(f"{ELEMENT}.fail(new Error({error!r}))")
    assert "not enough memory" in tab.said and "smaller picture would not" in tab.said


# What it is given


def test_odd_files_are_answered_or_named(chromium):
    tab = chromium("chapters/deeplab")
    tab.answer()
    said = tab.give("notes.png", b"no picture", "image/png")
    assert "notes.png is no picture" in tab.said, said
    thin = as_file(Image.new("L", (1, 3000), 200))
    assert tab.give("thin.png", thin).startswith("Answered")
    deep = as_file(Image.fromarray(np.full((50, 40), 40000, np.uint16)))
    assert tab.give("deep.png", deep).startswith("Answered")
    clear = as_file(Image.new("RGBA", (481, 353), (0, 0, 0, 0)))
    assert tab.give("clear.png", clear).startswith("Answered")
    assert set(tab.evaluate(FOUND)["image"]) == {255}
    large = as_file(Image.new("L", (9000, 500), 90))
    assert tab.give("large.png", large).startswith("Answered")
    assert tab.evaluate(f"{ELEMENT}.photo.width") == 1600
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    turned = as_file(Image.new("RGB", (300, 100), "red"), "jpeg", exif=exif)
    assert tab.give("turned.jpg", turned, "image/jpeg").startswith("Answered")
    assert tab.evaluate(f"[{ELEMENT}.photo.width, {ELEMENT}.photo.height]") == [
        100,
        300,
    ]
    assert tab.errors == []


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_pictures_come_by_drop_and_paste(chromium, kind):
    tab = chromium(html=page_with(UNET))
    tab.answer()
    tab.evaluate(
        f"""(async () => {{
          const file = await (await fetch('_static/live/unet/sample-2.webp')).blob();
          const given = new DataTransfer();
          given.items.add(new File([file], 'own.webp', {{type: 'image/webp'}}));
          const e = {ELEMENT}, stage = e.shadowRoot.querySelector('.panes');
          {
            dict(
                drop="stage.dispatchEvent(new DragEvent('drop', {dataTransfer: given, "
                "bubbles: true, cancelable: true}))",
                paste="document.dispatchEvent(new ClipboardEvent('paste', "
                "{clipboardData: given}))",
            )[kind]
        };
          const before = e.photo;
          while (e.photo === before) await new Promise(done => setTimeout(done, 20));
        }})()"""
    )
    assert tab.answer().startswith("Answered")
    pressed = tab.page.locator(".thumb[aria-pressed=true]")
    assert pressed.count() == 0 and tab.errors == []


def test_camera_gives_a_still_picture_and_is_let_go(browser, address):
    path = next(filter(None, map(shutil.which, test_pages.BROWSERS)), None)
    fake = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    filming = browser.browser_type.launch(
        executable_path=path, args=test_pages.SWITCHES + fake
    )
    tab = Chromium(filming, address, html=page_with(UNET)).open()
    tab.answer()
    tab.page.get_by_role("button", name="Camera").click()
    take = tab.page.get_by_role("button", name="Take the picture")
    take.wait_for()
    video = f"{ELEMENT}.shadowRoot.querySelector('video')"
    tab.evaluate(f"void (globalThis.stream = {video}.srcObject)")
    tab.page.wait_for_function(f"{video}.videoWidth > 0")
    before = tab.evaluate(f"{ELEMENT}.photo.width")
    take.click()
    tab.page.wait_for_function(f"{ELEMENT}.photo.width !== {before}")
    assert tab.answer().startswith("Answered")
    states = tab.evaluate("stream.getTracks().map(t => t.readyState)")
    assert states == ["ended"] and not tab.page.locator("video").count()
    filming.close()


# How it is used


def test_by_keyboard_alone(chromium):
    tab = chromium(html=page_with(UNET))
    press, page = tab.page.keyboard.press, tab.page
    press("Tab")
    press("Enter")
    tab.answer()
    page.locator("canvas").focus()
    probe = page.locator("segbook-live output")
    press("ArrowRight")
    first = probe.inner_text()
    assert re.match(r"cell \d\.\d\d", first) and probe.get_attribute("aria-live") == (
        "polite"
    )
    for _ in range(25):
        press("ArrowDown")
    assert probe.inner_text() != first
    whole = tab.evaluate(FOUND)["numbers"]
    press("Tab")  # the first part
    press("Space")
    assert tab.answer().startswith("Answered")
    assert tab.evaluate(f"{ELEMENT}.panes[0].gates") == [0, 1, 1, 1]
    without = tab.evaluate(FOUND)["numbers"]
    assert without != whole
    page.get_by_label("off leaves").select_option("its average")
    tab.answer()
    assert tab.evaluate(FOUND)["numbers"] not in (without, whole)
    count = max(tab.evaluate(FOUND)["numbers"])
    page.get_by_label("Threshold").focus()
    for _ in range(20):
        press("ArrowLeft")
    assert max(tab.evaluate(FOUND)["numbers"]) != count
    assert f"{max(tab.evaluate(FOUND)['numbers'])} instances" in tab.said
    assert tab.errors == []


def test_pointer_names_the_class_and_the_legend_hides_it(chromium):
    tab = chromium("chapters/deeplab")
    tab.answer()
    page, canvas = tab.page, tab.page.locator("segbook-live canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 5)
    assert re.match(r"sky [01]\.\d\d", page.locator("segbook-live output").inner_text())
    pixel = f"""[...{ELEMENT}.panes[0].canvas.getContext('2d').getImageData(
      {ELEMENT}.photo.width / 2, 5, 1, 1).data]"""
    painted = tab.evaluate(pixel)
    page.get_by_label(re.compile("^sky")).click()
    assert tab.evaluate(pixel) != painted
    plain = tab.evaluate(pixel)
    page.get_by_label(re.compile("^sky")).click()
    assert tab.evaluate(pixel) == painted
    page.get_by_label("Opacity").fill("0")
    assert np.abs(np.subtract(tab.evaluate(pixel), plain)).max() <= 1
    shares = page.locator("segbook-live fieldset .small").all_inner_texts()
    assert len(shares) == 11 and 95 <= sum(int(s.split()[0]) for s in shares) <= 105


def test_two_networks_share_a_picture(chromium):
    tab = chromium(html=page_with(TWO))
    assert re.fullmatch(r"A in .*instances; B in .*instances\.", tab.answer())
    assert sum(url.endswith("main.onnx") for url in tab.asked) == 1
    numbers = f"{ELEMENT}.panes.map(pane => [...pane.result.numbers].join())"
    first, other = tab.evaluate(numbers)
    assert first == other
    second = tab.page.locator("fieldset", has_text="paper").nth(1)
    second.get_by_role("checkbox").first.click()
    tab.answer()
    again, without = tab.evaluate(numbers)
    assert again == first and without != first
    tab.page.locator("canvas").first.focus()
    tab.page.keyboard.press("ArrowUp")
    assert re.match(r"A: cell .* · B: cell", tab.page.locator("output").inner_text())
    assert tab.errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_bars_a_reader_and_nothing_moves(chromium, scheme, width):
    how = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    tab = chromium("chapters/deeplab", **how)
    tab.page.wait_for_load_state("networkidle")
    moved = tab.evaluate(
        """new Promise(done => {
          let sum = 0;
          new PerformanceObserver(list => list.getEntries().forEach(entry => {
            if (entry.sources.some(s => s.node?.closest?.('segbook-live')))
              sum += entry.value;
          })).observe({type: 'layout-shift', buffered: true});
          setTimeout(() => done(sum), 300);
        })"""
    )
    assert moved < 0.01
    tab.answer()
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.errors == []
    found = Axe().run(tab.page, context="segbook-live").response["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []


def test_without_scripts_there_is_a_picture_and_a_line(browser, address):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{address}chapters/unet.html")
    element = page.locator("segbook-live")
    assert element.locator("img").is_visible()
    assert "make serve" in element.locator("p").inner_text()
    assert not page.get_by_role("button", name="Try the network").count()
    context.close()


def test_a_page_opened_as_a_file_says_what_to_do(browser, site):
    """Browsers load no modules there."""
    page = browser.new_context().new_page()
    page.goto((site / "chapters/unet.html").as_uri())
    line = page.locator("segbook-live p")
    assert line.is_visible() and "make serve" in line.inner_text()
    assert not page.get_by_role("button", name="Try the network").count()
    page.context.close()


# The build


def test_the_site_has_what_the_manifests_name(site):
    for name in SHIPPED:
        folder = site / "_static/live" / name
        manifest = json.loads((folder / "main.json").read_text(encoding="utf-8"))
        for part in (*manifest["samples"], manifest["picture"]):
            assert (folder / part["file"]).is_file()
        for part in ("graph", "weights"):
            assert live.identity(folder / manifest[part]["file"]) == manifest[part]
