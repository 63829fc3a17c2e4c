"""Downloads against a server on this machine: whole and verified, or nothing."""

import dataclasses
import hashlib
import io
import json
import os
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from utils import data, runtime
from utils.data import DataError, download, landcover, membranes
from utils.data.download import Archive, Kaggle, Unavailable, fetch

COMMIT = "0123456789abcdef"
TOP = f"sets-{COMMIT}/"


class Server(ThreadingHTTPServer):
    """Answers each request with the next of `answers`; the last one stays.

    An answer is (status, body, bytes to send): fewer than the body's length, and the
    connection breaks there. `half` is called once a first half has been sent.
    """

    daemon_threads = True

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.answers, self.paths, self.half = [], [], None
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.paths.append(self.path)
        answers = server.answers
        status, body, count = answers.pop(0) if len(answers) > 1 else answers[0]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body[: count // 2])
            if server.half:
                server.half()
            self.wfile.write(body[count // 2 : count])
        except OSError:
            pass  # the reader went away, as some tests want

    def do_POST(self):  # Kaggle's client asks so
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def log_message(self, *_):
        pass


def serve(server):
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    with Server() as server:
        serve(server)
        monkeypatch.setenv("SEGBOOK_MIRROR", server.address)
        monkeypatch.setattr(download, "PAUSES", (0.01, 0.01))
        yield server
        server.half = None
        server.shutdown()


def png(value):
    file = io.BytesIO()
    pixels = np.random.default_rng(value).integers(0, 255, (40, 40), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


GOOD = {f"image/{k}.png": png(k) for k in range(3)} | {"label/0.png": png(9)}


def tar(files, extra=()):
    """A .tar.gz of what GitHub would send, with extra members (TarInfo, bytes)."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{TOP}data/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info, content in extra:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def answer(body, status=200, count=None):
    return status, body, len(body) if count is None else count


@pytest.fixture
def origin(tmp_path):
    for name, content in GOOD.items():
        path = tmp_path / "expected" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    sha256 = download.folder_hash(tmp_path / "expected")
    return Archive("me/sets", COMMIT, "data", ("image", "label"), sha256)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "root" / "sets"


def left(target):
    """What a fetch left beside the data: nothing but its lock, if all is well."""
    return [path.name for path in target.parent.iterdir() if path.name != ".sets.lock"]


def assert_whole(target):
    assert left(target) == ["sets"]
    found = {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()}
    assert found == set(GOOD)
    assert all((target / name).read_bytes() == GOOD[name] for name in GOOD)


# Good and bad answers


def test_good_archive(server, origin, target):
    extra = [(tarfile.TarInfo(f"{TOP}data/notes.txt"), b"not wanted")]
    server.answers = [answer(tar(GOOD, extra))]
    fetch(origin, target)
    assert_whole(target)
    assert server.paths == [f"/me/sets/tar.gz/{COMMIT}"]
    fetch(origin, target)  # is there already: verified, not downloaded again
    assert len(server.paths) == 1


def test_single_file_of_an_archive(server, origin, target, tmp_path):
    (tmp_path / "expected" / "notes.txt").write_bytes(b"wanted")
    sha256 = download.folder_hash(tmp_path / "expected")
    keep = ("image", "label", "notes.txt")
    server.answers = [answer(tar(GOOD | {"notes.txt": b"wanted", "other.txt": b""}))]
    fetch(Archive("me/sets", COMMIT, "data", keep, sha256), target)
    assert (target / "notes.txt").read_bytes() == b"wanted"
    assert not (target / "other.txt").exists()


def test_only_files_with_the_ending_are_kept(server, origin, target):
    notes = {"image/notes.ipynb": b"{}", "label/0.png.txt": b"", "label/png": b""}
    server.answers = [answer(tar(GOOD | notes))]
    fetch(dataclasses.replace(origin, ending=".png"), target)
    assert_whole(target)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_busy_server_then_success(server, origin, target, status, capsys):
    server.answers = [answer(b"busy", status), answer(tar(GOOD))]
    fetch(origin, target)
    assert_whole(target)
    assert f"answered {status}" in capsys.readouterr().out


def test_server_that_stays_busy(server, origin, target):
    server.answers = [answer(b"busy", 503)]
    with pytest.raises(Unavailable, match="answered 503"):
        fetch(origin, target)
    assert len(server.paths) == 3 and left(target) == []


def test_not_found_is_not_tried_again(server, origin, target):
    server.answers = [answer(b"no", 404)]
    with pytest.raises(Unavailable, match="answered 404"):
        fetch(origin, target)
    assert len(server.paths) == 1 and left(target) == []


def test_connection_that_breaks_then_success(server, origin, target):
    body = tar(GOOD)
    server.answers = [answer(body, count=len(body) // 2), answer(body)]
    fetch(origin, target)
    assert_whole(target)


def test_full_stop_in_the_middle_then_the_next_call(server, origin, target):
    body = tar(GOOD)
    server.answers = [answer(body, count=len(body) // 2)]
    with pytest.raises(Unavailable, match="broke"):
        fetch(origin, target)
    assert left(target) == []
    server.answers = [answer(body)]
    fetch(origin, target)
    assert_whole(target)


@pytest.mark.parametrize("keep", [0, 0.01, 0.3, 0.9])
def test_truncated_archive(server, origin, target, keep):
    body = tar(GOOD)
    server.answers = [answer(body[: int(keep * len(body))])]
    with pytest.raises(Unavailable):
        fetch(origin, target)
    assert left(target) == []


def test_page_instead_of_an_archive(server, origin, target):
    server.answers = [answer(b"<html>please log in</html>")]
    with pytest.raises(Unavailable, match="archive.tar.gz is damaged"):
        fetch(origin, target)


def test_wrong_hash(server, origin, target):
    server.answers = [answer(tar(GOOD | {"image/1.png": png(77)}))]
    with pytest.raises(Unavailable, match="not the expected ones"):
        fetch(origin, target)
    assert left(target) == []


def test_missing_file_is_a_wrong_hash(server, origin, target):
    server.answers = [answer(tar({k: v for k, v in GOOD.items() if "1" not in k}))]
    with pytest.raises(Unavailable, match="not the expected ones"):
        fetch(origin, target)


def test_no_network_does_not_wait(origin, target, monkeypatch, capsys):
    monkeypatch.setenv("SEGBOOK_MIRROR", "http://127.0.0.1:9")
    monkeypatch.setattr(download, "PAUSES", (600,))  # waiting would show
    with pytest.raises(Unavailable, match="no connection to 127.0.0.1"):
        fetch(origin, target)
    assert capsys.readouterr().out == "" and left(target) == []


def test_folder_that_cannot_be_written(server, origin, tmp_path):
    (tmp_path / "root").write_text("a file where the data root should be")
    with pytest.raises(Unavailable, match="cannot write"):
        fetch(origin, tmp_path / "root" / "sets")


def test_reader_s_own_folder_is_never_replaced(server, origin, target):
    target.mkdir(parents=True)
    (target / "mine.txt").write_text("mine")
    with pytest.raises(Unavailable, match="remove the folder"):
        fetch(origin, target)
    assert (target / "mine.txt").read_text() == "mine" and server.paths == []


# Archives that want to write elsewhere


def link(name, kind, to):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info, b""


INSIDE = f"{TOP}data/image/"
BAD_MEMBERS = {
    "dots": (tarfile.TarInfo(f"{INSIDE}../../../../evil"), b"x"),
    "dots elsewhere": (tarfile.TarInfo("../evil"), b"x"),
    "backslashes": (tarfile.TarInfo(f"{INSIDE}..\\..\\evil"), b"x"),
    "absolute": (tarfile.TarInfo("/tmp/segbook-evil"), b"x"),
    "drive": (tarfile.TarInfo(f"{INSIDE}C:/evil"), b"x"),
    "symlink": link(f"{INSIDE}evil", tarfile.SYMTYPE, "/etc/passwd"),
    "symlink to a folder": link(f"{INSIDE}evil", tarfile.SYMTYPE, ".."),
    "hard link": link(f"{INSIDE}evil", tarfile.LNKTYPE, f"{INSIDE}0.png"),
    "device": link(f"{INSIDE}evil", tarfile.CHRTYPE, ""),
    "pipe": link(f"{INSIDE}evil", tarfile.FIFOTYPE, ""),
}


@pytest.mark.parametrize("bad", BAD_MEMBERS)
def test_bad_member_of_a_tar_is_refused(server, origin, target, tmp_path, bad):
    server.answers = [answer(tar(GOOD, [BAD_MEMBERS[bad]]))]
    with pytest.raises(Unavailable, match="refused"):
        fetch(origin, target)
    assert left(target) == []
    assert not os.path.exists("/tmp/segbook-evil")
    assert not [path for path in tmp_path.rglob("*") if "evil" in path.name]


def test_writing_through_a_link_is_refused(server, origin, target, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    through = [
        link(f"{TOP}data/image", tarfile.SYMTYPE, str(outside)),
        (tarfile.TarInfo(f"{INSIDE}5.png"), b"x"),
    ]
    server.answers = [answer(tar({}, through))]
    with pytest.raises(Unavailable):
        fetch(origin, target)
    assert list(outside.iterdir()) == [] and left(target) == []


def test_links_in_unwanted_folders_are_passed_over(server, origin, target):
    extra = [link(f"{TOP}docs/latest", tarfile.SYMTYPE, "/etc")]
    server.answers = [answer(tar(GOOD, extra))]
    fetch(origin, target)
    assert_whole(target)


def pack_zip(path, files, link_name=None):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        if link_name:
            info = zipfile.ZipInfo(link_name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, "/etc/passwd")


def test_zip_is_unpacked(tmp_path):
    files = {f"The set/{name}": content for name, content in GOOD.items()}
    pack_zip(tmp_path / "x.zip", files | {"The set/": b"", "other.txt": b""})
    download.unpack(tmp_path / "x.zip", tmp_path / "sets", ["The set/image"])
    found = sorted(p.name for p in (tmp_path / "sets").rglob("*.png"))
    assert found == ["0.png", "1.png", "2.png"]


def test_single_files_are_kept_beside_folders(tmp_path):
    """Of the root or of a folder, but not what only begins with the same name."""
    files = {
        "The set/Tile 1/0.png": b"1", "The set/Tile 10/0.png": b"2",
        "The set/about.json": b"3", "The set/about.json.old": b"4",
        "The set/Tile 2/notes.txt": b"5", "The set/Tile 2/0.png": b"6",
        "about.json": b"7",
    }  # fmt: skip
    pack_zip(tmp_path / "x.zip", files | {"The set/Tile 1/": b""})
    wanted = ["The set/about.json", "The set/Tile 1", "The set/Tile 2/notes.txt"]
    target = tmp_path / "sets"
    download.unpack(tmp_path / "x.zip", target, wanted)
    found = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    names = {"Tile 1/0.png": b"1", "about.json": b"3", "notes.txt": b"5"}
    assert found == {target / name: content for name, content in names.items()}


def test_link_in_the_place_of_a_single_file_is_refused(tmp_path):
    pack_zip(tmp_path / "x.zip", {"a/1.png": b"1"}, link_name="about.json")
    with pytest.raises(Unavailable, match="refused: about.json.*link"):
        download.unpack(tmp_path / "x.zip", tmp_path / "sets", ["a", "about.json"])


@pytest.mark.parametrize("name", ["a/../../evil", "/evil", "a\\..\\..\\evil"])
def test_bad_name_in_a_zip_is_refused(tmp_path, name):
    pack_zip(tmp_path / "x.zip", {"a/1.png": b"1", name: b"x"})
    with pytest.raises(Unavailable, match="refused"):
        download.unpack(tmp_path / "x.zip", tmp_path / "in" / "sets", ["a"])
    assert not [path for path in tmp_path.rglob("*") if "evil" in path.name]


def test_link_in_a_zip_is_refused(tmp_path):
    pack_zip(tmp_path / "x.zip", {}, link_name="a/evil")
    with pytest.raises(Unavailable, match="refused.*link"):
        download.unpack(tmp_path / "x.zip", tmp_path / "sets", ["a"])


def test_damaged_zip(tmp_path):
    pack_zip(tmp_path / "x.zip", {"a/1.png": GOOD["image/0.png"]})
    whole = bytearray((tmp_path / "x.zip").read_bytes())
    whole[200] ^= 255
    (tmp_path / "x.zip").write_bytes(whole)
    with pytest.raises(Unavailable, match="damaged"):
        download.unpack(tmp_path / "x.zip", tmp_path / "sets", ["a"])


# Interruptions and company


def test_keyboard_interrupt_in_the_middle(server, origin, target):
    main = threading.main_thread().ident

    def interrupt():
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.2)

    server.answers, server.half = [answer(tar(GOOD))], interrupt
    # A shell starts what runs in its background deaf to Ctrl-C: listen again.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            fetch(origin, target)
    finally:
        signal.signal(signal.SIGINT, before)
    assert left(target) == []
    server.half = None
    fetch(origin, target)
    assert_whole(target)


CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
import pathlib, download
commit, sha256, target = sys.argv[2:]
origin = download.Archive("me/sets", commit, "data", ("image", "label"), sha256)
download.fetch(origin, pathlib.Path(target))
"""


def start_child(origin, target):
    """Another process that fetches; it needs no PyTorch, so it starts fast."""
    folder = runtime.root() / "utils" / "data"
    arguments = [str(folder), COMMIT, origin.sha256, str(target)]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, text=True
    )


def test_killed_in_the_middle_then_the_next_call(server, origin, target):
    reached, go_on = threading.Event(), threading.Event()

    def stop():
        reached.set()
        go_on.wait(30)

    server.answers, server.half = [answer(tar(GOOD))], stop
    child = start_child(origin, target)
    assert reached.wait(60)
    child.kill()
    child.communicate()
    go_on.set()
    assert not target.exists()
    assert [name.startswith(".sets.part-") for name in left(target)] == [True]
    server.half = None
    fetch(origin, target)  # also takes away what the killed one left
    assert_whole(target)


def test_two_processes_at_once(server, origin, target):
    server.answers, server.half = [answer(tar(GOOD))], lambda: time.sleep(1)
    children = [start_child(origin, target) for _ in range(2)]
    said = [child.communicate(timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    assert len(server.paths) == 1
    assert_whole(target)


# The hash, as documented


def test_folder_hash_is_sha256_over_sorted_lines(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.txt").write_bytes(b"one")
    (tmp_path / "a.txt").write_bytes(b"two")
    one, two = (hashlib.sha256(content).hexdigest() for content in (b"one", b"two"))
    lines = f"a.txt\0{two}\nb/1.txt\0{one}\n"
    expected = hashlib.sha256(lines.encode()).hexdigest()
    assert download.folder_hash(tmp_path) == expected


# Through the loader


def test_loader_takes_the_archive_and_then_the_folder(server, tmp_path, monkeypatch):
    files = {}
    for k in range(30):
        files[f"image/{k}.png"] = png(k)
        label = io.BytesIO()
        Image.new("L", (40, 40), 255 * (k % 2)).save(label, "PNG")
        files[f"label/{k}.png"] = label.getvalue()
    for name, content in files.items():
        path = tmp_path / "expected" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    sha256 = download.folder_hash(tmp_path / "expected")
    origin = Archive("me/sets", COMMIT, "data", ("image", "label"), sha256)
    monkeypatch.setattr(membranes, "archive", origin)
    monkeypatch.setenv("SEGBOOK_DATA", str(tmp_path / "root"))
    monkeypatch.setenv("SEGBOOK_PROFILE", "cpu")
    monkeypatch.delenv("SEGBOOK_SOURCE", raising=False)
    server.answers = [answer(tar(files))]
    assert data.load("membranes").source == "archive"
    assert data.load("membranes", "val").source == "local"
    assert data.load("membranes", "val", source="archive").source == "archive"
    assert len(server.paths) == 1


# Kaggle


@pytest.fixture
def no_account(tmp_path, monkeypatch):
    """No credentials for Kaggle, and no way out to the network."""
    for name in [name for name in os.environ if name.startswith("KAGGLE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")


def test_kaggle_without_account_or_network(no_account, target):
    origin = Kaggle("someone/something", "data", ("image",), "0" * 64)
    with pytest.raises(Unavailable, match="did not give someone/something") as caught:
        fetch(origin, target)
    assert "KAGGLE_API_TOKEN" in str(caught.value)
    assert "api.kaggle.com" in str(caught.value)  # whom its command failed to ask
    assert left(target) == []


@pytest.fixture
def kaggle_server(no_account, monkeypatch):
    """Kaggle's own client, sent to this machine: there it asks port 80, over HTTP."""
    try:
        server = Server(port=80)
    except OSError as error:
        pytest.skip(f"port 80 cannot be served here: {error}")
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    monkeypatch.setenv("NO_PROXY", "localhost")
    with server:
        serve(server)
        yield server
        server.shutdown()


def send(server, packed):
    """Lets Kaggle's client have a zip file: it asks for the set's details first."""
    details = json.dumps({"info": {"licenses": []}}).encode()
    server.answers = [answer(details), answer(packed.read_bytes())]


def test_kaggle_download(kaggle_server, tmp_path, target, origin):
    files = {f"The set/{name}": content for name, content in GOOD.items()}
    pack_zip(tmp_path / "sent.zip", files)
    send(kaggle_server, tmp_path / "sent.zip")
    fetch(Kaggle("me/sets", "The set", ("image", "label"), origin.sha256), target)
    assert_whole(target)


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A reader with an empty data root, in the profile "cpu"."""
    monkeypatch.setenv("SEGBOOK_DATA", str(tmp_path / "root"))
    monkeypatch.setenv("SEGBOOK_PROFILE", "cpu")
    monkeypatch.delenv("SEGBOOK_SOURCE", raising=False)
    return tmp_path / "root"


@pytest.fixture
def small_landcover(tmp_path, monkeypatch):
    """A zip file as Kaggle's, with one small image in each area, all of it road."""
    monkeypatch.setattr(landcover, "SIDE", 40)
    monkeypatch.setattr(landcover, "PARTS", range(1, 2))
    folder = tmp_path / "expected"
    for name in landcover.missing(folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (110, 193, 228)).save(folder / name)
    (folder / "classes.json").write_text("{}")
    names = ["classes.json", *landcover.missing(tmp_path)]
    files = {f"The set/{name}": (folder / name).read_bytes() for name in names}
    pack_zip(tmp_path / "sent.zip", files | {"The set/other.json": b"{}"})
    origin = dataclasses.replace(
        landcover.kaggle, folder="The set", sha256=download.folder_hash(folder)
    )
    monkeypatch.setattr(landcover, "kaggle", origin)
    return tmp_path / "sent.zip"


def test_loader_takes_kaggle_and_then_the_folder(
    kaggle_server, reader, small_landcover
):
    send(kaggle_server, small_landcover)
    found = data.load("landcover", source="kaggle")
    assert found.source == "kaggle" and len(found) == 6
    assert found.labels.unique().tolist() == [landcover.classes.index("road")]
    assert (reader / "landcover/classes.json").read_text() == "{}"
    assert not (reader / "landcover/other.json").exists()
    asked = len(kaggle_server.paths)
    assert data.load("landcover", "val").source == "local"
    assert data.load("landcover", "val", source="kaggle").source == "kaggle"
    assert len(kaggle_server.paths) == asked  # verified, not downloaded again


def test_loader_without_kaggle_takes_the_sample(
    no_account, reader, monkeypatch, capsys
):
    monkeypatch.setattr(landcover, "SCENES", {"train": 1})
    assert data.load("landcover", size=32).source == "sample"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "no folder" in lines[0] and lines[0].endswith("trying Kaggle")
    assert f"Kaggle did not give {landcover.kaggle.dataset}" in lines[1]
    assert lines[1].endswith("trying the embedded sample")
    assert not (reader / "landcover").exists()


def test_kaggle_is_left_out_where_a_set_is_not_there():
    with pytest.raises(DataError, match="membranes does not lie on Kaggle"):
        data.load("membranes", source="kaggle")
