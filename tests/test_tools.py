"""The small tools: the book's address, links, reports of failures, and their like."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from bs4 import BeautifulSoup
from conftest import ROOT
from sphinx.errors import ConfigError

sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "_ext")]

import book_pages  # noqa: E402
import book_repository  # noqa: E402
import links  # noqa: E402
import repo  # noqa: E402
import report  # noqa: E402

OLD = "https://github.com/me/book"
NEW = "https://github.com/some-reader/my.fork_2"


# --- the book's address ---


@pytest.fixture
def book(tmp_path):
    """A small book: everything that names the address, and one chapter."""
    texts = {
        "_config.yml": f"title: A book\nrepository:\n  url: {OLD}\n  branch: main\n",
        "README.md": f"git clone {OLD}\nNot {OLD}-notes, nor {OLD}.v2.\n",
        "CITATION.cff": f"repository-code: {OLD}\n",
        "chapters/unet.py": f'REPOSITORY = "{OLD}"\n',
        "chapters/unet.ipynb": f'["REPOSITORY = \\"{OLD}\\"\\n"]\n',
    }
    (tmp_path / "chapters").mkdir()
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def texts(book):
    return {path: path.read_bytes() for path in book.rglob("*") if path.is_file()}


def count(book, url):
    return sum(bool(repo.whole(url).search(t.decode())) for t in texts(book).values())


@pytest.mark.parametrize("quote", ["", '"', "'"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "  # ours\n"])
def test_address_is_found_however_it_is_written(book, quote, end):
    config = f"repository:{end}  branch: main{end}\n  url: {quote}{OLD}{quote}{end}"
    (book / "_config.yml").write_bytes(config.encode())
    assert len(repo.write_address(NEW, book)) == 5
    assert (book / "_config.yml").read_bytes() == config.replace(OLD, NEW).encode()
    assert count(book, NEW) == 5
    assert f"Not {OLD}-notes, nor {OLD}.v2." in (book / "README.md").read_text()


@pytest.mark.parametrize(
    "config", ["title: A book\n", "repository:\n  url: ?\n", "launch:\n  url: x\n"]
)
def test_address_that_is_missing_is_said(book, config):
    (book / "_config.yml").write_text(config)
    before = texts(book)
    with pytest.raises(SystemExit, match="url: https://github.com/me/my-book"):
        repo.write_address(NEW, book)
    assert texts(book) == before


def spoil_text(path):
    path.write_bytes(path.read_bytes() + b"\xff")


def spoil_rights(path):
    path.chmod(0o444)
    if os.access(path, os.W_OK):
        pytest.skip("this user may write everything")


def spoil_kind(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [spoil_text, spoil_rights, spoil_kind])
@pytest.mark.parametrize("name", ["CITATION.cff", "chapters/unet.py"])
def test_nothing_changes_unless_everything_can(book, name, spoil):
    spoil(book / name)
    before = texts(book)
    with pytest.raises(SystemExit, match=f"{name}.*Nothing was changed"):
        repo.write_address(NEW, book)
    assert texts(book) == before


@pytest.mark.parametrize("written", range(5))
def test_address_that_stopped_half_way_is_completed(book, written, monkeypatch):
    write, done = Path.write_bytes, []

    def full(path, data):
        if len(done) == written:
            raise OSError(28, "No space left on device")
        done.append(path)
        return write(path, data)

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="No space"):
        patch.setattr(Path, "write_bytes", full)
        repo.write_address(NEW, book)
    assert count(book, NEW) == written and len(texts(book)) == 5
    assert len(repo.write_address(NEW, book)) == 5 - written
    assert count(book, NEW) == 5 and count(book, OLD) == 0


def test_file_that_names_another_address_is_no_success(book):
    (book / "README.md").write_text("git clone https://github.com/you/another\n")
    with pytest.raises(SystemExit, match=f"README.md does not name {OLD}"):
        repo.write_address(NEW, book)


def test_longer_address_is_not_made_longer_again(book):
    longer = f"{OLD}.v3"
    (book / "README.md").write_text(f"git clone {longer}\n")  # stopped after it
    repo.write_address(longer, book)
    assert (book / "README.md").read_text() == f"git clone {longer}\n"
    assert count(book, longer) == 5


@pytest.mark.parametrize("url", ["`id`", "$(id)", f"{NEW}`id`", f'{NEW}"', ""])
def test_address_comes_through_the_environment_and_is_checked(url):
    command = [sys.executable, "tools/repo.py"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"URL": url}, capture_output=True, text=True
    )
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("Not an address like https://github.com/me/my-book")
    assert url in done.stderr


# --- the repository behind the links of the pages ---


def configure(monkeypatch, **variables):
    for name in ("SEGBOOK_REPOSITORY", "SEGBOOK_BRANCH", "SEGBOOK_SITE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    options = {"repository_url": OLD, "repository_branch": "main"}
    config = SimpleNamespace(html_theme_options=options)
    book_repository.set_repository(None, config)
    return config


def test_repository_of_the_links(monkeypatch):
    config = configure(monkeypatch)
    assert config.html_theme_options["repository_url"] == OLD
    assert config.html_baseurl == "https://me.github.io/book/"
    given = {"SEGBOOK_REPOSITORY": f"{NEW}.git", "SEGBOOK_BRANCH": "feature/a-1"}
    config = configure(monkeypatch, **given, SEGBOOK_SITE="https://book.example")
    assert config.html_theme_options == {
        "repository_url": NEW, "repository_branch": "feature/a-1"
    }  # fmt: skip
    assert config.html_baseurl == "https://book.example/"
    assert config.notfound_urls_prefix == "/"


@pytest.mark.parametrize(
    "name, value",
    [
        ("SEGBOOK_REPOSITORY", f'{NEW}" onmouseover="alert(1)'),
        ("SEGBOOK_REPOSITORY", f"{NEW}'"),
        ("SEGBOOK_REPOSITORY", f"{NEW}?a=<b>"),
        ("SEGBOOK_REPOSITORY", "javascript:alert(1)//me/book"),
        ("SEGBOOK_REPOSITORY", "https://github.com/me"),
        ("SEGBOOK_BRANCH", 'main"'),
        ("SEGBOOK_BRANCH", "main extra"),
        ("SEGBOOK_SITE", 'https://me.github.io/book"'),
        ("SEGBOOK_SITE", "javascript:alert(1)"),
    ],
)
def test_repository_that_would_break_out_of_a_link_is_refused(monkeypatch, name, value):
    with pytest.raises(ConfigError, match=f"{name}.* is to look like .*, not like"):
        configure(monkeypatch, **{name: value})


def test_new_tabs_get_no_hold_of_the_page(tmp_path):
    page = tmp_path / "chapters" / "unet.html"
    page.parent.mkdir()
    page.write_text(
        '<a href="x" target="_blank"\n class="button">ä</a> <a\ntarget="_blank">b</a>'
        '<a rel="nofollow noopener" target="_blank">c</a><a href="y">d</a>'
    )
    app = SimpleNamespace(builder=SimpleNamespace(format="html"), outdir=tmp_path)
    for _ in range(2):  # pages that an earlier build has left are not changed again
        book_pages.finish(app, None)
        text = page.read_text()
        tags = BeautifulSoup(text, "html.parser").find_all("a")
        assert [tag.get("rel") for tag in tags] == [
            ["noopener"], ["noopener"], ["nofollow", "noopener"], None
        ]  # fmt: skip
        assert text.count("rel=") == 3 and tags[0]["class"] == ["button"]


# --- links ---


@pytest.mark.parametrize(
    "tag, wrong",
    [
        ('<a href="javascript:alert(1)">', "javascript:"),
        ('<a href=" java\tscript:alert(1)">', "javascript:"),
        ('<a href="data:text/html,x">', "data:"),
        ('<a href="file:///etc/passwd">', "file:"),
        ('<img src="file:///a.png">', "file:"),
        ('<img src="http://example.org/a.png">', "not encrypted"),
        ('<script src="http://example.org/a.js">', "not encrypted"),
        ('<a href="http://[x">', "cannot be read"),
        (f'<a href="{"x" * 300}.html">', "cannot be read"),
        ('<a href="../secret.html">', "leaves the book"),
        ('<a href="%2e%2e/secret.html">', "leaves the book"),
        ('<a href="%2E./secret.html">', "leaves the book"),
        ('<a href="..%2fsecret.html">', "leads nowhere"),
        ('<a href="/intro.html">', "leaves the book"),
        ('<img srcset="a.png, gone.png 2x">', "leads nowhere"),
        ('<source srcset="http://example.org/a.png 640w">', "not encrypted"),
        ('<object data="gone.svg">', "leads nowhere"),
        ('<video poster="gone.png">', "leads nowhere"),
        ('<video src="a.png" poster="gone.png">', "leads nowhere"),
        ('<form action="gone.html">', "leads nowhere"),
    ],
)
def test_bad_links_are_found(tmp_path, tag, wrong):
    site = tmp_path / "site"
    site.mkdir()
    (tmp_path / "secret.html").touch()
    (site / "a.png").touch()
    (site / "intro.html").write_text(tag)
    ((page, _, what),) = links.broken_links(site)
    assert page == "intro.html" and wrong in what


@pytest.mark.parametrize(
    "tag",
    [
        '<a href="http://example.org/old">',
        '<a href="mailto:me@example.org">',
        '<a href="//example.org">',
        '<a href="?search=%2e">',
        '<img srcset="a.png, b%20c.png 2x">',
        '<img srcset="data:image/png;base64,AAA= 1x,a.png 2x">',
        '<img src="data:image/png;base64,AAA=">',
        '<video src="a.png" poster="a.png">',
        '<object data="a.png">',
    ],
)
def test_good_links_are_left_alone(tmp_path, tag):
    for name in ("a.png", "b c.png"):
        (tmp_path / name).touch()
    (tmp_path / "intro.html").write_text(tag)
    assert links.broken_links(tmp_path) == []


# --- the report of a failed run ---

RUN = "https://github.com/me/book/actions/runs/1"


def shown(text):
    """The code block of an issue, read as GitHub reads it; nothing may follow it."""
    fence, block = re.fullmatch(r"[^`]*\n(`{3,})text\n(.*)", text, re.DOTALL).groups()
    block, rest = re.split(rf"(?m)^ {{0,3}}{fence}`*[ \t]*$", block, maxsplit=1)
    assert not rest
    return block.rstrip("\n")


@pytest.mark.parametrize("ticks", [0, 1, 3, 4, 50])
def test_no_log_breaks_out_of_its_block(ticks):
    log = f"before\n{'`' * ticks}\n@everyone <img src=x>\n   {'`' * ticks}\nafter"
    text = report.body(log.encode(), RUN)
    assert text.startswith("The weekly run") and RUN in text.splitlines()[0]
    assert shown(text) == log


def test_report_is_short_and_shows_the_end():
    log = "`" * 10_000 + "x" * 5_000_000 + "the end"
    text = report.body(log.encode(), RUN)
    assert len(text) < 20_000 and shown(text).endswith("the end")
    assert len(report.body(b"`" * 1_000_000, RUN)) < 20_000


def test_report_is_plain_text():
    log = b"\x1b[31mred\x1b[0m \x1b]8;;http://x\x07link\x1b]8;;\x07\x00\x08\r\n"
    log += b" 10%|#   |\r 50%|##  |\r100%|####|\n\xff\xe2\x80\xae\xe2\x80\x8btab\tend"
    text = shown(report.body(log, RUN))
    assert text == "red link\n100%|####|\n\ufffdtab\tend"


@pytest.mark.parametrize("log", [None, b""])
def test_run_without_a_log_is_reported(log):
    assert "did not get as far" in report.body(log, RUN)


def test_report_from_the_command_line(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("it failed")
    for path, said in ((log, "it failed"), (tmp_path / "none.txt", "did not get")):
        command = [sys.executable, "tools/report.py", str(path), "--run", RUN]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and said in done.stdout and RUN in done.stdout
