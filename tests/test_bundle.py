"""One style sheet and one script a page."""

import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "_ext"))

import book_bundle

PAGE = """<html><head>
<link rel="stylesheet" href="../_static/styles/a.css?v=1" />
<link rel="stylesheet" type="text/css" href="../_static/b.css" />
<script>let hint = 1;</script>
<script src="../_static/first.js?v=2"></script>
<script src="../_static/second.js"></script>
<script defer src="https://example.org/late.js"></script>
<script>DOCUMENTATION_OPTIONS.pagename = 'x';</script>
</head><body><script src="../_static/body.js"></script></body></html>"""


@pytest.fixture
def site(tmp_path):
    files = {
        "_static/styles/a.css": '@import "../base.css"; a {color: red}',
        "_static/base.css": "i {background: url(dot.png)}",
        "_static/b.css": "b {background: url('data:image/png;base64,A')}",
        "_static/first.js": "const one = () => 1",
        "_static/second.js": "(() => one())()",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def bundled(site, html=PAGE):
    return book_bundle.bundle(html, site / "chapters/x.html", site)


def made(site, ending):
    return [f for f in (site / "_static").glob(f"*.{ending}") if len(f.stem) == 16]


def test_files_of_the_head_become_one_of_each_kind(site):
    html = bundled(site)
    assert html.count("stylesheet") == 1 and html.count("<script src=") == 2
    [style], [script] = made(site, "css"), made(site, "js")
    text = style.read_text()
    assert text.index("url(dot.png)") < text.index("a {color") < text.index("b {")
    assert "@import" not in text and "data:image/png;base64,A" in text
    assert f'href="../_static/{style.name}"' in html
    order = ["let hint", "late.js", script.name, "DOCUMENTATION_OPTIONS.", "body.js"]
    places = [html.index(part) for part in order]
    assert places == sorted(places)
    assert "=> 1\n;\n(()" in script.read_text()  # else the first would be called


def test_a_page_that_stands_gets_what_has_changed(site):
    html = bundled(site)
    assert bundled(site, html) == html
    (site / "_static/b.css").write_text("b {color: blue}")
    again = bundled(site, html)
    assert again != html and again.count("stylesheet") == 1
    assert any("blue" in file.read_text() for file in made(site, "css"))


def test_pages_with_an_order_of_their_own_are_left_alone(site):
    assert book_bundle.bundle(PAGE, site / "search.html", site) == PAGE


def test_a_page_without_options_has_its_script_where_the_first_stood(site):
    html = bundled(site, PAGE.replace("DOCUMENTATION_OPTIONS.", "OTHER."))
    [script] = made(site, "js")
    order = ["let hint", script.name, "late.js", "OTHER.pagename", "</head>"]
    places = [html.index(part) for part in order]
    assert places == sorted(places)
