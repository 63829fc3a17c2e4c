"""The one data file on the networks, and all that is written from it."""

import json
import re
import sys
import unicodedata

import pytest
import test_pages
from bs4 import BeautifulSoup
from conftest import ROOT, chapters

sys.path[:0] = [str(ROOT / "_ext"), str(ROOT / "tools")]

import book_first
import book_networks
import book_pages
import book_tables
import cards

browser, address = test_pages.browser, test_pages.address  # fixtures

ENTRIES = book_networks.load()
ABOUT_NO_PAPER = {"start", "comparison", "own_images"}
every_entry = pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e["chapter"])


def test_each_chapter_on_a_paper_has_its_entry_in_the_order_of_the_contents():
    listed = [page.removeprefix("chapters/") for page in chapters()]
    wanted = [name for name in listed if name not in ABOUT_NO_PAPER]
    assert [entry["chapter"] for entry in ENTRIES] == wanted


@pytest.mark.parametrize("file", cards.expected(), ids=lambda file: file.name)
def test_what_is_written_from_the_file_is_up_to_date(file):
    text = file.read_bytes().decode("utf-8")
    assert cards.expected()[file] == text, "run `make cards`"


@every_entry
def test_card_names_papers_codes_and_citations(entry):
    text = " ".join(line.strip() for line in book_networks.card(entry))
    for paper in entry["papers"]:
        assert f"[arXiv {paper['arxiv']}](https://arxiv.org/abs/{paper['arxiv']})" in text
        assert paper["cite"] in text and paper["title"] in text
    for code in entry["official"] + entry["others"]:
        assert code.get("url", code["name"]) in text
    for row in ("Train code", "Test code", "Pre-trained weights", "Time to run"):
        assert f"* - {row} - " in text


def test_card_of_nothing_official_says_so():
    entry = dict(ENTRIES[0], official=[], others=[])
    lines = book_networks.card(entry)
    assert lines[lines.index("* - Official code") + 1] == "  - None"
    assert lines[lines.index("* - Re-implementations") + 1] == "  - None listed"


def bibliography():
    """Key -> its fields, in plain text."""
    text = (ROOT / "references.bib").read_text(encoding="utf-8")
    entries = re.findall(r"@\w+\{(\w+),(.*?)\n\}", text, re.DOTALL)
    field = re.compile(r"(\w+)\s*=\s*[{\"](.*?)[}\"],?\s*$", re.MULTILINE | re.DOTALL)
    return {key: dict(field.findall(body)) for key, body in entries}


def letters(text):
    """Lower-case words without accents, whether typed or in the way of TeX."""
    plain = unicodedata.normalize("NFKD", re.sub(r"[{}]|\\\W", "", text))
    plain = plain.encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", " ", plain).strip()


@every_entry
def test_papers_agree_with_the_bibliography(entry):
    known = bibliography()
    for paper in entry["papers"]:
        fields = known[paper["cite"]]
        assert letters(fields["title"]) == letters(paper["title"])
        assert fields["year"] == paper["venue"][-4:]
        names = [name.split()[-1] for name in paper["authors"].split(", ")]
        assert all(letters(name) in letters(fields["author"]) for name in names)


# What the old listing said of each network: papers (at arXiv), codes with their
# frameworks, further links, and the words of its citation.
OLD = {
    "unet": {
        "papers": ["1505.04597", "1609.09077"],
        "codes": {
            "https://lmb.informatik.uni-freiburg.de/resources/opensource/unet": "Caffe",
            "https://github.com/jakeret/tf_unet": "TensorFlow",
            "https://github.com/zhixuhao/unet": "Keras",
            "https://github.com/milesial/Pytorch-UNet": "PyTorch",
        },
        "links": [
            "https://tf-unet.readthedocs.io/en/latest/installation.html",
            "https://tf-unet.readthedocs.io/en/latest/usage.html",
            "https://github.com/zhixuhao/unet/blob/master/trainUnet.ipynb",
            "https://github.com/zhixuhao/unet/blob/master/dataPrepare.ipynb",
        ],
        "cited": "Radio frequency interference mitigation using deep convolutional "
        "neural networks",
    },
    "refinenet": {
        "papers": ["1611.06612"],
        "codes": {
            "https://github.com/guosheng/refinenet": "MATLAB",
            "https://github.com/DrSleep/refinenet-pytorch": "PyTorch",
            "https://github.com/DrSleep/light-weight-refinenet": "PyTorch",
            "https://github.com/eragonruan/refinenet-image-segmentation": "TensorFlow",
        },
        "links": [
            "https://github.com/guosheng/refinenet/blob/master/libs/matconvnet/doc/site"
            "/docs/pretrained.md",
        ],
        "cited": "RefineNet: Multi-Path Refinement Networks for High-Resolution "
        "Semantic Segmentation",
    },
    "pspnet": {
        "papers": ["1612.01105"],
        "codes": {
            "https://github.com/hszhao/PSPNet": "Caffe",
            "https://github.com/Vladkryvoruchko/PSPNet-Keras-tensorflow": "Keras",
            "https://github.com/hellochick/PSPNet-tensorflow": "TensorFlow",
        },
        "links": ["https://hszhao.github.io/projects/pspnet/"],
        "cited": "Pyramid Scene Parsing Network",
    },
    "gcn": {
        "papers": ["1612.01105"],
        "codes": {
            "http://research.sualab.com/practice/2018/11/23"
            "/image-segmentation-deep-learning.html": "TensorFlow",
        },
        "links": [],
        "cited": None,
    },
    "deeplab": {
        "papers": ["1706.05587", "1802.02611"],
        "codes": {
            "https://github.com/tensorflow/models/tree/master/research/deeplab":
            "TensorFlow",
        },
        "links": [],
        "cited": "Encoder-Decoder with Atrous Separable Convolution for Semantic Image "
        "Segmentation",
    },
    "inplace_abn": {
        "papers": ["1712.02616"],
        "codes": {"https://github.com/mapillary/inplace_abn": "PyTorch"},
        "links": [],
        "cited": "In-Place Activated BatchNorm for Memory-Optimized Training of DNNs",
    },
    "ternausnetv2": {
        "papers": [],
        "codes": {"https://github.com/ternaus/TernausNetV2": "PyTorch"},
        "links": [
            "http://openaccess.thecvf.com/content_cvpr_2018_workshops/papers/w4/"
            "Iglovikov_TernausNetV2_Fully_Convolutional_CVPR_2018_paper.pdf",
        ],
        "cited": "TernausNetV2: Fully Convolutional Network for Instance Segmentation",
    },
    "instruments": {
        "papers": ["1803.01207"],
        "codes": {"https://github.com/ternaus/TernausNetV2": "PyTorch"},
        "links": [
            "https://drive.google.com/drive/folders/13e0C4fAtJemjewYqxPtQHO6Xggk7lsKe",
        ],
        "cited": "Automatic Instrument Segmentation in Robot-Assisted Surgery Using "
        "Deep Learning",
    },
}  # fmt: skip

# What was wrong in it: (network, link) -> the right link.
WRONG = {
    ("gcn", "https://arxiv.org/abs/1612.01105"): "https://arxiv.org/abs/1703.02719",
    ("instruments", "https://github.com/ternaus/TernausNetV2"):
    "https://github.com/ternaus/robot-surgery-segmentation",
    ("refinenet", OLD["refinenet"]["links"][0]):
    "https://github.com/guosheng/refinenet#testing",
}  # fmt: skip

# What the page must say of its changes: network -> words of that point of the list.
CHANGED = {
    "All networks": ["arXiv", "for each code", "pictures", "report is new"],
    "U-Net": ["akeret2017rfi", "no trained weights", "archive", "left out"],
    "PSPNet": ["official code tests", "PSPNet-tensorflow", "semseg is added"],
    "DeepLab": ["no citation", "torchvision are added", "DeepLabV3Plus-Pytorch"],
    "RefineNet": ["documentation of MatConvNet", "another paper"],
    "GCN": ["paper of PSPNet", "1703.02719", "citation", "ZijunDeng"],
    "In-Place ABN": ["ImageNet only"],
    "TernausNetV2": ["unsupported", "demo", "weights", "arXiv is added"],
    "Robotic instruments": ["code of TernausNetV2", "ICMLA 2018"],
}
FRAMEWORKS = {"Caffe", "Keras", "MATLAB", "PyTorch", "TensorFlow"}


def links_in(lines):
    return re.findall(r"\]\((\S+?)\)", "\n".join(lines))


@every_entry
def test_listing_has_all_that_the_old_one_had_or_its_correction(entry):
    name = entry["chapter"]
    rows = book_networks.codes_table(entry)
    text = "\n".join(rows)
    found = links_in([*book_networks.table(book_networks.summary(entry)), *rows])
    old = OLD[name]
    papers = [f"https://arxiv.org/abs/{number}" for number in old["papers"]]
    for link in [*papers, *old["codes"], *old["links"]]:
        right = WRONG.get((name, link), link.replace("http://", "https://"))
        assert right in found, link
    for link, framework in old["codes"].items():
        right = WRONG.get((name, link), link.replace("http://", "https://"))
        row = next(row for row in text.split("\n* - ") if f"]({right})" in row)
        assert f"\n  - {framework}\n" in row
    if old["cited"]:
        known = bibliography()
        titles = [letters(known[key]["title"]) for key in entry["bibtex"]]
        assert letters(old["cited"]) in titles


def test_page_states_each_change_of_the_old_listing():
    page = (ROOT / "networks.md").read_text(encoding="utf-8")
    points = {
        re.match(r"\*\*(.+?)\*\*", point)[1]: " ".join(point.split())
        for point in page.split("\n- ")[1:]
    }
    assert list(points) == list(CHANGED)
    for name, words in CHANGED.items():
        assert [word for word in words if word not in points[name]] == []


@every_entry
def test_framework_training_testing_and_weights_are_told_of_every_code(entry):
    named = [code["name"] for code in entry["official"] + entry["others"]]
    assert list(entry["codes"]) == named
    for facts in entry["codes"].values():
        assert facts["framework"] in FRAMEWORKS
        assert all(facts[what] for what in ("train", "test", "weights"))


@every_entry
def test_bibtex_can_be_pasted_for_all_papers(entry):
    text = "\n".join(book_networks.bibtex(entry))
    blocks = re.findall(r"(?ms)^```bibtex\n(@\w+\{(\w+),\n.*?^\})\n```$", text)
    assert [key for _, key in blocks] == entry["bibtex"]
    assert all(block.count("{") == block.count("}") for block, _ in blocks)
    cited = {paper["cite"] for paper in entry["papers"]}
    cited |= set(re.findall(r"footcite:t\}`(\w+)`", str(entry["codes"])))
    assert cited <= set(entry["bibtex"])


def test_weights_that_the_old_listing_missed_are_there():
    codes = {entry["chapter"]: entry["codes"] for entry in ENTRIES}
    unet, ternaus = codes["unet"], codes["ternausnetv2"]
    for facts in (
        unet["lmb.informatik.uni-freiburg.de"], unet["milesial/Pytorch-UNet"],
        ternaus["ternaus/TernausNetV2"],
    ):  # fmt: skip
        assert not facts["weights"].startswith(("None", "Gone"))


def test_deeplab_scores_stand_like_for_like():
    reported = {entry["chapter"]: entry["reported"] for entry in ENTRIES}["deeplab"]
    assert "v3 85.7, v3+ 87.8; with JFT-300M as well, 86.9 and 89.0" in reported


@every_entry
def test_picture_and_result_come_from_the_chapter(entry):
    alt, image = book_networks.picture(entry)
    assert alt.startswith(entry["picture"]) and min(image.size) > 100
    value = book_networks.result(entry)
    text = (ROOT / f"chapters/{entry['chapter']}.ipynb").read_text(encoding="utf-8")
    assert re.search(rf'"name": "{entry["result"][0]}"', text)
    assert 0 < float(value) < 1


def test_picture_or_result_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="no picture 'No such'"):
        book_networks.picture(dict(ENTRIES[0], picture="No such"))
    with pytest.raises(ValueError, match="glues no 'nothing'"):
        book_networks.result(dict(ENTRIES[0], result=["nothing", ".2f", "nothing"]))


@every_entry
def test_a_new_card_changes_the_card_alone(entry):
    lines = ["```{list-table}", ":class: chapter-card", ":header-rows: 0", "",
             "* - Paper", "  - Ünï \"quoted\" \\ slashed", "```"]  # fmt: skip
    path = ROOT / "chapters" / f"{entry['chapter']}.ipynb"
    old = path.read_bytes().decode("utf-8")
    new = cards.in_notebook(old, lines)
    cells, before = json.loads(new)["cells"], json.loads(old)["cells"]
    differ = [k for k, pair in enumerate(zip(cells, before)) if pair[0] != pair[1]]
    assert len(cells) == len(before) and len(differ) == 1
    assert "".join(cells[differ[0]]["source"]).endswith("\n".join(lines))
    assert cards.in_notebook(new, book_networks.card(entry)) == old

    script = path.with_suffix(".py").read_text(encoding="utf-8")
    changed = cards.in_script(script, lines)
    assert "# * - Paper\n#   - Ünï" in changed
    assert cards.in_script(changed, book_networks.card(entry)) == script


def test_a_chapter_without_its_place_is_an_error():
    with pytest.raises(ValueError, match="0 places"):
        cards.in_script("# no card\n", ["```{list-table}"])


@every_entry
def test_the_card_opens_under_a_line(site, entry):
    page = (site / f"chapters/{entry['chapter']}.html").read_text(encoding="utf-8")
    (card,) = BeautifulSoup(page, "html.parser").select("details.card-fold")
    assert not card.has_attr("open") and card.summary.get_text(strip=True)
    assert "Time to run" in card.select_one("table.chapter-card").get_text()


def test_a_page_of_the_build_before_is_not_folded_twice():
    once = book_tables.fold_card('<table class="chapter-card table">a</table>')
    assert once.count("card-fold") == 1 and book_tables.fold_card(once) == once


def test_first_screen_gets_the_picture_that_stands_further_down():
    start = next(e["picture"] for e in ENTRIES if e["chapter"] == "gcn")
    image = f'<img alt="{start}, and more" loading="lazy" src="a.webp">'
    html = book_first.PLACE + '<img alt="another">' + image
    filled = book_first.fill_first(html, ROOT / "chapters/gcn.html")
    assert filled.count("a.webp") == 2
    assert filled.index("a.webp") < filled.index("another")
    assert filled.count("lazy") == 1  # the first is on the screen at once
    assert book_first.fill_first(filled, ROOT / "chapters/gcn.html") == filled
    assert book_first.fill_first(html, ROOT / "intro.html").count("a.webp") == 1
    with pytest.raises(ValueError, match="no picture"):
        book_first.fill_first(book_first.PLACE, ROOT / "chapters/gcn.html")


def test_a_column_without_a_name_names_its_rows():
    table = '<table class="table"><thead><tr><th></th><th>Dice</th></tr></thead>'
    table += "<tbody><tr><td>cell</td><td>0.9</td></tr></tbody></table>"
    once = book_tables.label_tables(table)
    assert '<th scope="row">cell</th>' in once and "<td></td>" in once
    assert book_tables.label_tables(once) == once


def test_cells_are_labelled_by_their_own_column():
    words = "a long cell with more than thirty letters"
    table = '<table class="table"><thead><tr><th></th><th>Paper</th><th>Ours</th>'
    table += f"</tr></thead><tbody><tr><td>x</td><td>{words}</td><td>{words}</td>"
    table += "</tr></tbody></table>"
    cells = BeautifulSoup(book_tables.label_tables(table), "html.parser").tbody
    labels = [cell.get("data-label") for cell in cells.tr.find_all(["th", "td"])]
    assert labels == ["", "Paper", "Ours"]


def test_title_of_the_front_page_is_written_once():
    twice = "<title>The Book &#8212; The Book</title>"
    assert book_pages.TWICE.sub(r"<title>\1</title>", twice) == (
        "<title>The Book</title>"
    )
    other = "<title>U-Net &#8212; The Book</title>"
    assert book_pages.TWICE.sub("", other) == other


def test_listing_has_a_section_with_a_picture_for_each_network(site):
    html = BeautifulSoup((site / "networks.html").read_text("utf-8"), "html.parser")
    article = html.select_one(".bd-article")
    titles = [h.find(string=True) for h in article.select("h2")]
    assert titles[: len(ENTRIES)] == [entry["name"] for entry in ENTRIES]
    for entry in ENTRIES:
        section = next(
            h.find_parent("section")
            for h in article.select("h2")
            if h.find(string=True) == entry["name"]
        )
        assert section.select_one("img")["alt"].startswith(entry["picture"])
        text = section.get_text(" ", strip=True)
        assert book_networks.result(entry) in text
        hrefs = [link["href"] for link in section.select("a[href]")]
        for paper in entry["papers"]:
            assert f"https://arxiv.org/abs/{paper['arxiv']}" in hrefs
        for code in entry["official"] + entry["others"]:
            assert (code.get("url") or entry["codes"][code["name"]]["url"]) in hrefs
        assert f"chapters/{entry['chapter']}.html" in hrefs
        blocks = section.select(".highlight-bibtex pre")
        assert len(blocks) == len(entry["bibtex"])


def test_filter_by_framework_works_by_keyboard_and_hides_nothing_without_script(
    browser, address
):
    rows = "table.codes tbody tr:visible"
    frameworks = [f["framework"] for e in ENTRIES for f in e["codes"].values()]
    page = browser.new_page(java_script_enabled=False)
    page.goto(f"{address}networks.html")
    assert page.locator(rows).count() == len(frameworks)
    assert page.locator(".framework-filter button").count() == 0
    page.close()

    page = browser.new_page()
    page.goto(f"{address}networks.html")
    box = page.locator(".framework-filter")
    names = box.get_by_role("button").all_inner_texts()
    assert names == ["all", *sorted(FRAMEWORKS)]
    for name in [*names[1:], "all"]:
        box.get_by_role("button", name=name).press("Enter")
        shown = page.locator(f"{rows} td:nth-child(2)").all_inner_texts()
        wanted = frameworks if name == "all" else [f for f in frameworks if f == name]
        assert sorted(shown) == sorted(wanted)
        pressed = box.locator("[aria-pressed=true]").all_inner_texts()
        assert pressed == [name]
        linked = box.locator("[role=status] a").all_inner_texts()
        with_code = [
            entry["name"] for entry in ENTRIES
            if name in {facts["framework"] for facts in entry["codes"].values()}
        ]  # fmt: skip
        assert linked == with_code
        assert page.get_by_text("No code in").count() == (
            0 if name == "all" else len(ENTRIES) - len(with_code)
        )
    page.close()


def test_bibtex_has_a_button_that_copies_it(browser, address):
    page = browser.new_page()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"{address}networks.html")
    blocks = page.locator(".highlight-bibtex")
    assert blocks.count() == sum(len(entry["bibtex"]) for entry in ENTRIES)
    page.locator("details.sd-dropdown summary").first.click()
    blocks.first.hover()
    blocks.first.locator("button.copybtn").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.strip() in (ROOT / "references.bib").read_text(encoding="utf-8")
    assert copied.startswith("@inproceedings{ronneberger2015unet,")
    page.close()
