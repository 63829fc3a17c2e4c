"""Setting up: the lists of pins, the Python that make takes, and what make hands on."""

import functools
import gzip
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from importlib.metadata import packages_distributions, requires

import pytest
from conftest import ROOT, build, need
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

sys.path.insert(0, str(ROOT / "tools"))

import serve  # noqa: E402


def pins(path):
    """The list's own requirements and the lists that it takes in."""
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    lines = [line.split("#")[0].strip() for line in lines]
    own = [Requirement(line) for line in lines if line and not line.startswith("-r ")]
    return own, [line.removeprefix("-r ") for line in lines if line.startswith("-r ")]


# --- the lists ---


def test_each_list_takes_in_the_smaller_one():
    assert pins("requirements-book.txt")[1] == []
    assert pins("requirements.txt")[1] == ["requirements-book.txt"]
    for name in ("dev", "comparison"):
        assert pins(f"requirements-{name}.txt")[1] == ["requirements.txt"]


def test_pins_are_exact_and_stand_once():
    lists = [path.name for path in ROOT.glob("requirements*.txt")]
    found = [pin for name in lists for pin in pins(name)[0]]
    for pin in found:
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), pin
    names = [canonicalize_name(pin.name) for pin in found]
    assert len(names) == len(set(names)) > 40


def test_comparison_keeps_the_release_of_pytorch():
    """torchvision 0.N asks for exactly one release of PyTorch: 2.(N-15)."""
    (torch,) = [pin for pin in pins("requirements.txt")[0] if pin.name == "torch"]
    others = pins("requirements-comparison.txt")[0]
    own = {pin.name: str(pin.specifier) for pin in others}
    assert "torch" not in own and "segmentation-models-pytorch" in own
    _, minor, patch = str(torch.specifier).removeprefix("==").split(".")
    assert own["torchvision"] == f"==0.{int(minor) + 15}.{patch}"


@functools.cache
def of_the_book():
    """All distributions that requirements-book.txt brings, with what they require."""
    found, todo = set(), list(pins("requirements-book.txt")[0])
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        extras = {"", *requirement.extras}
        if name in found and extras == {""}:
            continue
        found.add(name)
        for line in requires(name) or ():
            needed = Requirement(line)
            marker = needed.marker
            if not marker or any(marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(needed)
    return found


def test_book_s_list_brings_no_pytorch():
    assert "sphinx" in of_the_book()
    assert not {"torch", "torchvision", "numpy", "scipy"} & of_the_book()


def hidden():
    """A line of Python that hides every installed package but the book's."""
    others = [
        module
        for module, owners in packages_distributions().items()
        if not {canonicalize_name(owner) for owner in owners} & of_the_book()
    ]
    assert "torch" in others
    return f"import sys; sys.modules.update(dict.fromkeys({others}))\n"


def test_build_and_its_tools_load_from_the_book_s_list_alone():
    extensions = [path.stem for path in (ROOT / "_ext").glob("*.py")]
    assert "book_networks" in extensions
    modules = [*extensions, "cards", "links", "repo", "serve", "vendor"]
    program = f"{hidden()}sys.path[:0] = ['_ext', 'tools']\nimport {', '.join(modules)}"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.check
def test_book_builds_from_its_own_list_alone(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(hidden())
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert (build(ROOT, tmp_path, SEGBOOK_OFFLINE="") / "intro.html").is_file()


# --- the newest Python ---

PRETEND = """\
#!/bin/sh
exec {python} -c 'import sys; sys.version_info = {version}; exec(sys.argv[2])' "$@"
"""


@pytest.fixture
def pythons(tmp_path):
    """Gives pretend(name, version), and found(*names): what tools/python.sh prints."""

    def pretend(name, version):
        text = PRETEND.format(python=sys.executable, version=version)
        if not version:  # as pyenv's names of versions that are not chosen
            text = "#!/bin/sh\nexit 127\n"
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def found(*names):
        return subprocess.run(
            ["/bin/sh", "tools/python.sh", *names], cwd=ROOT, capture_output=True,
            text=True, env={"PATH": str(tmp_path)},
        )  # fmt: skip

    return pretend, found


def test_newest_python_that_runs_is_taken(pythons):
    pretend, found = pythons
    pretend("python3.14", None)
    pretend("python3.12", (3, 12))
    pretend("python3.11", (3, 11))
    pretend("python3", (3, 11))
    assert found().stdout == "python3.12\n"
    pretend("python3.13", (3, 13))
    assert found().stdout == "python3.13\n"
    pretend("python3.14", (3, 14))
    assert found().stdout == "python3.14\n"


def test_python_that_is_named_is_taken(pythons):
    pretend, found = pythons
    pretend("python3.14", (3, 14))
    pretend("mine", (3, 11))
    assert found("mine").stdout == "mine\n"


@pytest.mark.parametrize("version", [(3, 10), (3, 15), None])
def test_python_that_does_not_suit_is_refused(pythons, version):
    pretend, found = pythons
    pretend("python3", version)
    for done in (found(), found("python3")):
        assert done.returncode == 1 and done.stdout == ""
        assert "No Python from 3.11 to 3.14" in done.stderr
        assert "make book PYTHON=" in done.stderr


# --- make ---


def make(folder, *arguments):
    need(shutil.which("make"), "make is missing")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=kept, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "url",
    ["https://github.com/me/fork", "`touch ran`", "$(touch ran)", "$(shell touch ran)",
     '"; touch ran; "', "'; touch ran; '", r"\$(touch ran)", "$URL$$HOME", "a b"],
)  # fmt: skip
def test_address_is_handed_on_as_it_is(tmp_path, url):
    (tmp_path / "tools").mkdir()
    for name in ("Makefile", "tools/python.sh"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / "tools/repo.py").write_text("import sys; print(sys.argv[1:])")
    done = make(tmp_path, "repo", f"PYTHON={sys.executable}", f"URL={url}")
    assert done.stdout == f"{[url]}\n", done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"Makefile", "tools"}


def test_book_needs_its_own_list_and_run_the_rest(tmp_path):
    """What make would do in a fresh clone."""
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    for path in [ROOT / "Makefile", *ROOT.glob("requirements*.txt")]:
        shutil.copy(path, tmp_path)
    book = make(tmp_path, "--dry-run", "book").stdout
    assert "tools/install.sh .venv" in book and "-r requirements.txt" not in book
    assert "file://" in book.splitlines()[-1]
    assert "-r requirements.txt" in make(tmp_path, "--dry-run", "install").stdout
    tests = make(tmp_path, "--dry-run", "test", "ARGS=-k pages").stdout
    assert "-r requirements-dev.txt" in tests and tests.endswith("-m pytest -k pages\n")


def test_slow_checks_are_left_to_make_check(tmp_path):
    (tmp_path / "test_two.py").write_text(
        "import pytest\ndef test_quick(): pass\n"
        "@pytest.mark.check\ndef test_slow(): pass\n"
    )
    shutil.copy(ROOT / "pytest.ini", tmp_path)
    told = "[pytest]\ntestpaths = tests"
    text = (tmp_path / "pytest.ini").read_text().replace(told, "[pytest]")
    (tmp_path / "pytest.ini").write_text(text)
    for arguments, name in (((), "test_quick"), (("-m", "check"), "test_slow")):
        command = [sys.executable, "-m", "pytest", "--strict-markers", "-v", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert f"{name} PASSED" in done.stdout
        assert "1 passed, 1 deselected" in done.stdout


def test_ci_builds_tests_and_checks():
    lines = (ROOT / ".ci/run").read_text().splitlines()
    steps = [line.split(" <")[0] for line in lines if line.startswith("make ")]
    assert steps == ["make book", "make test", "make check"]


# --- make serve ---


@pytest.fixture
def address(tmp_path):
    (tmp_path / "chapters").mkdir()
    (tmp_path / "index.html").write_text("<p>the book</p>" * 100)
    (tmp_path / "chapters/unet.mjs").write_text("export default 1;" * 100)
    (tmp_path / "dot.png").write_bytes(b"\x89PNG" * 100)
    with serve.server(tmp_path) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/"
        http.shutdown()


def ask(url, packing="gzip"):
    request = urllib.request.Request(url, headers={"Accept-Encoding": packing})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.headers, answer.read()


@pytest.mark.parametrize(
    "path, kind", [("", "text/html"), ("chapters/unet.mjs?v=1", "text/javascript")]
)
def test_text_is_served_packed_to_those_who_take_it(address, path, kind):
    headers, packed = ask(address + path)
    assert headers["Content-Encoding"] == "gzip" and headers["Content-Type"] == kind
    plain_headers, plain = ask(address + path, packing="identity")
    assert plain_headers["Content-Encoding"] is None
    assert gzip.decompress(packed) == plain and len(packed) < len(plain) / 5
    assert headers["Vary"] == plain_headers["Vary"] == "Accept-Encoding"


def test_pictures_are_served_as_they_are(address, tmp_path):
    headers, body = ask(f"{address}dot.png")
    assert headers["Content-Encoding"] is None
    assert body == (tmp_path / "dot.png").read_bytes()


def test_new_build_is_served_at_once(address, tmp_path):
    ask(address)
    (tmp_path / "index.html").write_text("<p>the new book</p>")
    os.utime(tmp_path / "index.html", ns=(1, 1))
    assert gzip.decompress(ask(address)[1]) == b"<p>the new book</p>"


@pytest.mark.parametrize("path", ["gone.html", "../test_setup.py", "%2e%2e/x.html"])
def test_only_the_book_is_served(address, tmp_path, path):
    (tmp_path.parent / "x.html").write_text("outside")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        ask(address + path)


def test_serving_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(serve, "PAGES", tmp_path)
    monkeypatch.setattr(sys, "argv", ["serve.py"])
    with pytest.raises(SystemExit, match="make book"):
        serve.main()


def test_port_in_use_is_named(tmp_path, monkeypatch):
    (tmp_path / "index.html").touch()
    monkeypatch.setattr(serve, "PAGES", tmp_path)
    with serve.server(tmp_path) as first:
        monkeypatch.setattr(sys, "argv", ["serve.py", str(first.server_port)])
        with pytest.raises(SystemExit, match=f"Port {first.server_port}: .* PORT=8001"):
            serve.main()
