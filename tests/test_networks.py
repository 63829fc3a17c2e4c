"""The one data file on the networks, and all that is written from it."""

import json
import re
import sys
import unicodedata

import pytest
from bs4 import BeautifulSoup
from conftest import ROOT, chapters

sys.path[:0] = [str(ROOT / "_ext"), str(ROOT / "tools")]

import book_networks
import cards

ENTRIES = book_networks.load()
ABOUT_NO_PAPER = {"start", "comparison"}
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


def test_errors_of_the_old_listing_stay_corrected():
    papers = {e["chapter"]: [p["arxiv"] for p in e["papers"]] for e in ENTRIES}
    assert papers["gcn"] == ["1703.02719"] and papers["pspnet"] == ["1612.01105"]
    codes = {e["chapter"]: [c["url"] for c in e["official"]] for e in ENTRIES}
    assert codes["instruments"] == [
        "https://github.com/ternaus/robot-surgery-segmentation"
    ]
    assert codes["ternausnetv2"] == ["https://github.com/ternaus/TernausNetV2"]
    by_name = {entry["chapter"]: entry for entry in ENTRIES}
    assert by_name["unet"]["papers"][0]["cite"] == "ronneberger2015unet"
    for name in ("unet", "ternausnetv2"):
        assert "official code" in by_name[name]["weights"]


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
            assert "url" not in code or code["url"] in hrefs
        assert f"chapters/{entry['chapter']}.html" in hrefs
