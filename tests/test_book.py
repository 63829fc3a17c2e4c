"""The project around the chapters: pins, addresses, sources, the plain build."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from urllib.parse import urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup
from conftest import ROOT, build, chapters, need, pages, project_files
from PIL import Image

FORK = "https://github.com/some-reader/my.fork_2"
FORK_PATH = "/my.fork_2/"
FORK_SITE = f"https://some-reader.github.io{FORK_PATH}"


def read(path):
    return (ROOT / path).read_text(encoding="utf-8")


def pins(path):
    lines = (line.split("#")[0].strip() for line in read(path).splitlines())
    return [line for line in lines if line and not line.startswith("-r ")]


def copy_book(folder):
    for path in project_files():
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return folder


# --- pins ---


@pytest.mark.parametrize(
    "path", ["requirements-book.txt", "requirements.txt", "requirements-dev.txt"]
)
def test_every_requirement_is_pinned_and_installed(path):
    for pin in pins(path):
        assert re.fullmatch(r"[\w.-]+==[\w.]+", pin), f"not an exact pin: {pin}"
        name, wanted = pin.split("==")
        assert version(name).split("+")[0] == wanted, name


def test_conda_and_developers_install_the_same_list():
    environment = yaml.safe_load(read("environment.yml"))
    *_, pip = environment["dependencies"]
    assert pip == {"pip": ["-r requirements.txt"]}
    assert "python=3.11" in environment["dependencies"]
    assert "-r requirements.txt" in read("requirements-dev.txt").splitlines()


# --- the repository's address ---


def addresses(root):
    """Where the address stands -> what it says."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    found = {"_config.yml": config["repository"]["url"]}
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    found["CITATION.cff"] = citation["repository-code"]
    readme = (root / "README.md").read_text(encoding="utf-8")
    found["README.md"] = re.search(r"git clone (\S+)", readme)[1]
    for chapter in chapters():
        line = r'^REPOSITORY = "(.+)"$'
        script = (root / f"{chapter}.py").read_text(encoding="utf-8")
        found[f"{chapter}.py"] = re.search(line, script, re.MULTILINE)[1]
        first = first_code_cell(root / f"{chapter}.ipynb")
        found[f"{chapter}.ipynb"] = re.search(line, first, re.MULTILINE)[1]
    return found


def first_code_cell(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    cell = next(cell for cell in cells if cell["cell_type"] == "code")
    return "".join(cell["source"])


def test_all_addresses_agree():
    found = addresses(ROOT)
    assert len(set(found.values())) == 1, found


def set_address(book, url):
    command = [sys.executable, "tools/repo.py", url]
    return subprocess.run(command, cwd=book, capture_output=True, text=True)


@pytest.mark.parametrize("url", [FORK, f"{FORK}/", f"{FORK}.git"])
def test_make_repo_writes_the_address_everywhere(tmp_path, url):
    book = copy_book(tmp_path)
    done = set_address(book, url)
    assert done.returncode == 0, done.stderr
    assert set(addresses(book).values()) == {FORK}

    # Nothing else in a notebook changes, and the way back restores every byte.
    old = addresses(ROOT)["_config.yml"]
    for chapter in chapters():
        before = json.loads(read(f"{chapter}.ipynb"))
        after = json.loads((book / f"{chapter}.ipynb").read_text(encoding="utf-8"))
        differ = [
            i for i, pair in enumerate(zip(before["cells"], after["cells"]))
            if pair[0] != pair[1]
        ]
        assert len(differ) == 1
        assert before["metadata"] == after["metadata"]
    set_address(book, old)
    for path in project_files():
        assert (book / path.relative_to(ROOT)).read_bytes() == path.read_bytes(), path


@pytest.mark.parametrize(
    "url", ["me/fork", "https://example.org/me/fork", "https://github.com/me", 'x"y']
)
def test_make_repo_refuses_what_is_no_address(tmp_path, url):
    book = copy_book(tmp_path)
    done = set_address(book, url)
    assert done.returncode != 0
    assert "https://github.com/me/my-book" in done.stderr
    assert addresses(book) == addresses(ROOT)


# --- sources ---


def test_every_chapter_is_a_pair_in_the_contents():
    scripts = {path.stem for path in (ROOT / "chapters").glob("*.py")}
    notebooks = {path.stem for path in (ROOT / "chapters").glob("*.ipynb")}
    listed = {page.removeprefix("chapters/") for page in chapters()}
    assert scripts == notebooks == listed


def test_citations_are_known_and_entries_complete():
    entries = re.findall(r"@(\w+)\{(\w+),(.*?)\n\}", read("references.bib"), re.DOTALL)
    keys = [key for _, key, _ in entries]
    assert len(keys) == len(set(keys))
    for _, key, body in entries:
        fields = set(re.findall(r"^\s*(\w+)\s*=", body, re.MULTILINE))
        assert {"author", "title", "year"} <= fields, key

    sources = [ROOT / name for name in ("intro.md", "networks.md", "networks.yml")]
    sources += [ROOT / f"{name}.py" for name in chapters()]
    for path in sources:
        text = path.read_text(encoding="utf-8")
        # Two pages with a {bibliography} of their own may not share an entry.
        assert "{cite" not in text, f"{path.name}: use {{footcite:t}} or {{footcite:p}}"
        for cited in re.findall(r"\{footcite(?::\w+)?\}`([^`]+)`", text):
            unknown = {key.strip() for key in cited.split(",")} - set(keys)
            assert not unknown, f"{path.name}: not in references.bib: {unknown}"


def test_nothing_of_one_machine_in_the_project():
    # Written in halves, so that this file does not find itself.
    words = ["py" + "pi.org", "python" + "hosted", "npm" + "js.", "/ro" + "ot/"]
    words += ["/wo" + "rk/", "/ho" + "me/", "/Us" + "ers/", "--extra" + "-index-url"]
    for path in project_files():
        text = path.read_bytes().decode("utf-8", errors="ignore")
        found = [word for word in words if word in text]
        assert not found, f"{path.relative_to(ROOT)}: {found}"


def test_no_file_is_large():
    for path in project_files():
        limit = {".ipynb": 4e6, ".safetensors": 8e6}.get(path.suffix, 5e5)
        if path.is_relative_to(ROOT / "results"):  # all of it: test_runs.py
            limit = max(limit, 2e6)
        assert path.stat().st_size < limit, path.relative_to(ROOT)


def test_colours_stand_out_on_light_and_dark():
    tokens = dict(re.findall(r"--(\w+): (#\w{6});", read("_static/book.css")))
    assert set(tokens) == {"encoder", "decoder", "skip", "new"}
    for name, colour in tokens.items():
        assert f"`{colour}`" in read("CONTRIBUTING.md"), name
        for background in ("#ffffff", "#121212"):
            assert contrast(colour, background) > 3.5, (name, background)


def contrast(one, other):
    """Contrast ratio of two colours, after WCAG 2."""
    dark, light = sorted(luminance(colour) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_make_says_what_it_lacks():
    need(shutil.which("make"), "make is missing")
    done = subprocess.run(["make", "repo"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "make repo URL=https://github.com/me/fork" in done.stdout


# --- the built pages ---


def test_every_page_of_the_contents_is_built(site):
    for page in pages():
        assert (site / f"{page}.html").is_file(), page
    assert (site / "index.html").is_file()


def test_the_front_page_shows_every_network(site):
    """A card each, with its picture, its score and a link; an explorer; the plot."""
    sys.path.insert(0, str(ROOT / "_ext"))
    import book_networks

    text = (site / "index.html").read_text("utf-8")
    front = BeautifulSoup((site / "intro.html").read_text("utf-8"), "html.parser")
    assert "intro.html" in text
    cards = front.select(".network-card")
    entries = book_networks.load()
    assert len(cards) == len(entries) == 8
    for card, entry in zip(cards, entries):
        assert card.a["href"] == f"chapters/{entry['chapter']}.html"
        assert (site / card.a["href"]).is_file() and card.img["alt"]
        assert entry["claim"] in card.get_text()
        assert book_networks.result(entry) in card.get_text()
    assert len(front.select(".explorer")) == len(front.select(".pareto")) == 1
    assert "<!--" not in front.article.get_text()


def test_cells_show_no_marks_and_toggles_say_what_they_hide(site):
    sys.path.insert(0, str(ROOT / "_ext"))
    import book_cells

    cell = (
        '<div class="cell{} docutils container"><details><summary'
        ' aria-label="Toggle hidden content"><p class="collapsed admonition-title">Show'
        ' code cell source</p></summary>f(<span class="n">x</span>)'
        '  <span class="c1"># fmt: skip</span></details>{}</div>'
    )
    page = cell.format(" tag_hide-input", "<img>") + cell.format("", "text")
    shown = book_cells.tidy(page + cell.format(" tag_hide-cell", "<img>"))
    titles = re.findall('admonition-title">(.*?)</p>', shown)
    assert titles == [
        "Show the code of the figure", "Show the code", "Show the code and what it says"
    ]  # fmt: skip
    html = (site / "chapters/unet.html").read_text("utf-8")
    assert html.count("Show the imports") == html.count("Show the whole network") == 1
    assert "fmt" not in shown and "Toggle" not in shown
    for page in pages():
        html = (site / f"{page}.html").read_text("utf-8")
        assert "# fmt:" not in html and "code cell" not in html, page


def test_local_scripts_are_the_ones_that_the_cdn_serves(vendor):
    sys.path.insert(0, str(ROOT / "_ext"))
    from book_scripts import MATHJAX

    content = (vendor / MATHJAX.package / MATHJAX.path).read_bytes()
    digest = base64.b64encode(hashlib.sha384(content).digest()).decode()
    assert MATHJAX.integrity == f"sha384-{digest}"


@pytest.fixture(scope="module")
def fork(tmp_path_factory):
    """The site of a fork, built as it is published, from a copy of the book."""
    folder = tmp_path_factory.mktemp("fork")
    book = copy_book(folder / "book")
    address = {"SEGBOOK_REPOSITORY": FORK, "SEGBOOK_BRANCH": "dev"}
    return build(book, folder, SEGBOOK_OFFLINE="", SEGBOOK_SITE="", **address)


def test_plain_build_of_a_fork(fork):
    """Pages name its own address, and no other host but the pinned CDN files."""
    for page in pages():
        html = BeautifulSoup((fork / f"{page}.html").read_text("utf-8"), "html.parser")
        loaded = [tag["src"] for tag in html.select("script[src], img[src]")]
        loaded += [
            tag["href"] for tag in html.select("link[href]")
            if not {"canonical", "next", "prev"} & set(tag["rel"])
        ]
        for url in loaded:
            assert not urlsplit(url).netloc or re.match(
                r"https://cdn\.jsdelivr\.net/npm/[\w@/-]+@\d+\.\d+\.\d+/", url
            ), f"{page} loads {url}"
        for script in html.select("script[src^=https]"):
            assert script["integrity"].startswith("sha384-")
        tabs = html.select("a[target=_blank]")
        assert tabs and all("noopener" in tag.get("rel", ()) for tag in tabs), page
    for page in chapters():
        html = (fork / f"{page}.html").read_text("utf-8")
        assert f"/github/some-reader/my.fork_2/blob/dev/{page}.ipynb" in html
        assert "no-address" not in html


def test_site_map_and_previews_name_the_site(fork):
    text = (fork / "sitemap.xml").read_text("utf-8")
    assert set(re.findall("<loc>(.*?)</loc>", text)) == {
        f"{FORK_SITE}{page}.html" for page in pages()
    }
    for page in pages():
        html = BeautifulSoup((fork / f"{page}.html").read_text("utf-8"), "html.parser")
        said = {
            tag["property"]: tag["content"] for tag in html.select("meta[property]")
        }
        assert said["og:url"] == f"{FORK_SITE}{page}.html"
        assert said["og:image"] == f"{FORK_SITE}_static/preview.png"
        assert len(said["og:description"]) > 60 and said["og:title"]
        assert html.select_one("link[rel=icon], link[rel~=icon]")
        assert html.select_one("link[rel=canonical]")["href"] == said["og:url"]
    with Image.open(fork / "_static/preview.png") as preview:
        assert preview.size == (1200, 630)


def test_lost_readers_find_back_from_any_address(fork):
    """The page stands at any depth, so all that it names begins at the root."""
    html = BeautifulSoup((fork / "404.html").read_text("utf-8"), "html.parser")
    assert "not here" in html.select_one("main").get_text()
    paths = [
        tag.get("href", tag.get("src")) for tag in html.select("[href], [src]")
        if not tag.get("href", tag.get("src")).startswith(("http", "#", "data:"))
    ]
    assert f"{FORK_PATH}intro.html" in paths
    for path in paths:
        assert path.startswith(FORK_PATH), path
        file = fork / urlsplit(path).path.removeprefix(FORK_PATH)
        assert file.is_file() or (file / "index.html").is_file(), path


@pytest.mark.parametrize(
    "repository, site",
    [
        (FORK, "https://some-reader.github.io/my.fork_2"),
        ("https://github.com/Me/me.github.io", "https://me.github.io"),
    ],
)
def test_address_of_the_site_is_where_github_puts_it(repository, site):
    sys.path.insert(0, str(ROOT / "_ext"))
    from book_repository import pages_of

    assert pages_of(repository) == site


def test_missing_pages_and_broken_links_are_found(tmp_path):
    sys.path.insert(0, str(ROOT / "tools"))
    import links

    (tmp_path / "chapters").mkdir()
    (tmp_path / "intro.html").write_text(
        '<h1 id="top"></h1><a href="chapters/unet.html#here">good</a>'
        '<a href="#top">good</a><a href="https://example.org/x">elsewhere</a>'
        '<a href="chapters/unet.html#gone">bad</a><img src="_static/gone.png">'
    )
    (tmp_path / "chapters/unet.html").write_text(
        '<p id="here"></p><a href="../intro.html">good</a><a href="intro.html">bad</a>'
    )
    assert links.broken_links(tmp_path) == [
        ("chapters/unet.html", "intro.html", "leads nowhere"),
        ("intro.html", "chapters/unet.html#gone", "leads nowhere"),
        ("intro.html", "_static/gone.png", "leads nowhere"),
    ]
    missing = links.missing_pages(tmp_path)
    assert "index.html" in missing and "chapters/pspnet.html" in missing
    assert "intro.html" not in missing and "chapters/unet.html" not in missing
