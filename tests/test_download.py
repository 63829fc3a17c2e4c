"""Downloads against a server on this machine: whole and verified, or nothing."""

import dataclasses
import fcntl
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
import traceback
import zipfile
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

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
    connection breaks there. It may also be a function, which gets the handler. `half`
    is called once a first half has been sent.
    """

    daemon_threads = True

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.answers, self.paths, self.logins, self.half = [], [], [], None
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.paths.append(self.path)
        server.logins.append(self.headers.get("Authorization"))
        answers = server.answers
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if callable(answer):
            return answer(self)
        status, body, count = answer
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


# Answers without sense, without end, without haste


def send(status=200, parts=(), **headers):
    """An answer with these headers and no others; its body comes part by part."""

    def to(handler):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        try:
            for part in parts:
                handler.wfile.write(part)
        except OSError:
            pass  # the reader went away

    return to


@pytest.mark.parametrize("length", ["many", "-5", "", "9" * 5000, "\u00b2"])
def test_length_that_is_no_number_does_not_matter(server, origin, target, length):
    server.answers = [send(parts=[tar(GOOD)], Content_Length=length)]
    fetch(origin, target)
    assert_whole(target)


@pytest.mark.parametrize("to", ["http://[::1/x", "http://[nonsense]/x", "ftp://x/y"])
def test_redirection_to_no_url(server, origin, target, to):
    server.answers = [send(302, Location=to)]
    with pytest.raises(Unavailable, match="answered without sense"):
        fetch(origin, target)
    assert len(server.paths) == 1 and left(target) == []


def test_redirections_in_a_circle(server, origin, target):
    server.answers = [send(302, Location="/again")]
    with pytest.raises(Unavailable, match=r"without sense \(TooManyRedirects\)"):
        fetch(origin, target)
    assert len(server.paths) == 31 and left(target) == []  # no new try of all that


def test_endless_body(server, origin, target, monkeypatch):
    monkeypatch.setattr(download, "LARGEST", 1 << 20)
    server.answers = [send(parts=[bytes(1 << 16)] * 200)]
    with pytest.raises(Unavailable, match="sends more than 1,048,576 bytes"):
        fetch(origin, target)
    assert len(server.paths) == 1 and left(target) == []


def test_too_large_a_body_is_not_even_begun(server, origin, target):
    server.answers = [send(Content_Length=str(download.LARGEST + 1))]
    with pytest.raises(Unavailable, match="sends more than"):
        fetch(origin, target)
    assert len(server.paths) == 1 and left(target) == []


@pytest.mark.parametrize("chunk", [b"%s", b"1\r\n%s\r\n"])
def test_body_that_trickles(server, origin, target, monkeypatch, chunk):
    def trickle():
        for _ in range(200):
            time.sleep(0.02)
            yield chunk % b"x"

    monkeypatch.setattr(download, "PATIENCE", 0.1)
    encoding = "chunked" if chunk != b"%s" else "identity"
    server.answers = [send(parts=trickle(), Transfer_Encoding=encoding)]
    with pytest.raises(Unavailable, match=r"is too slow: \d+ bytes in 0 s"):
        fetch(origin, target)
    assert len(server.paths) == 1 and left(target) == []


def test_steady_body_that_takes_too_long(server, origin, target, monkeypatch):
    monkeypatch.setattr(download, "LONGEST", 0)
    server.answers = [answer(tar(GOOD))]
    with pytest.raises(Unavailable, match="is too slow"):
        fetch(origin, target)


@pytest.fixture
def secret(server, monkeypatch):
    """The server as a mirror that wants a password."""
    mirror = server.address.replace("//", "//reader:s%C3%A9cret@")
    monkeypatch.setenv("SEGBOOK_MIRROR", mirror)
    return server


@pytest.mark.parametrize("what", ["busy", "missing", "broken", "away", "senseless"])
def test_password_of_a_mirror_is_never_shown(
    secret, origin, target, monkeypatch, capsys, what
):
    secret.answers = [
        {
            "busy": answer(b"", 503), "missing": answer(b"", 404),
            "broken": answer(b"x" * 99, count=9), "away": None,
            "senseless": send(302, Location="http://[::1/x"),
        }[what]
    ]  # fmt: skip
    if what == "away":
        mirror = "http://reader:s%C3%A9cret@127.0.0.1:9"
        monkeypatch.setenv("SEGBOOK_MIRROR", mirror)
    with pytest.raises(Unavailable, match="127.0.0.1") as caught:
        fetch(origin, target)
    told = "".join(traceback.format_exception(caught.value)) + capsys.readouterr().out
    assert "cret" not in told and "reader" not in told


def test_password_reaches_the_mirror(secret, server, origin, target):
    server.answers = [answer(tar(GOOD))]
    fetch(origin, target)
    assert server.logins[0].startswith("Basic ")


@pytest.mark.parametrize(
    "mirror, shown",
    [
        ("mirror.example", "'mirror.example/"),
        ("127.0.0.1:9/sets", "'127.0.0.1:9/sets/"),
        ("ftp://mirror.example", "'ftp://mirror"),
        ("https:/mirror.example", "'https:/mirror"),
        ("http://", "'http:///me"),
        ("http://[::1", r"'http://\[::1"),
        ("http://mirror.example:port", "'http://mirror.example:port"),
        ("reader:secret@mirror.example", r"^'\*\*\*@mirror.example"),
        ("http://reader:s/ecret@mirror", r"^'http://\*\*\*@mirror/"),
    ],
)
def test_mirror_that_is_no_url(origin, target, monkeypatch, capsys, mirror, shown):
    monkeypatch.setenv("SEGBOOK_MIRROR", mirror)
    monkeypatch.setattr(download, "PAUSES", (600,))  # waiting would show
    with pytest.raises(Unavailable, match=f"{shown}.* is not a URL: SEGBOOK_MIRROR"):
        fetch(origin, target)
    assert capsys.readouterr().out == "" and left(target) == []


# Where one cannot write


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
def test_folder_in_which_no_lock_can_be_made(origin):
    words = r"cannot write /proc/sets: .*'/proc/\.sets\.lock'"
    with pytest.raises(Unavailable, match=words):
        fetch(origin, Path("/proc/sets"))


def test_lock_that_another_never_sets_free(origin, target, monkeypatch, capsys):
    target.parent.mkdir()
    monkeypatch.setattr(download, "LONGEST", 0.1)
    with open(target.parent / ".sets.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match=r"does not let go of .*/\.sets\.lock"):
            fetch(origin, target)
    assert "waiting" in capsys.readouterr().out


def put(target):
    """The data set at its place, as from a copy: no lock was ever there."""
    for name, content in GOOD.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(content)


def test_whole_folder_is_verified_without_writing(server, origin, target):
    put(target)
    before = target.parent.stat().st_mtime_ns
    fetch(origin, target)
    assert os.listdir(target.parent) == ["sets"] and server.paths == []
    assert target.parent.stat().st_mtime_ns == before
    (target / "image/0.png").write_bytes(b"changed")
    with pytest.raises(Unavailable, match="remove the folder"):
        fetch(origin, target)
    assert os.listdir(target.parent) == ["sets"]


@pytest.mark.parametrize("shut", ["", "image"])
def test_folder_that_cannot_be_read(origin, target, monkeypatch, shut):
    """Pretended: whoever is root may read everything."""
    put(target)
    scandir = os.scandir

    def refuse(path):
        if Path(path) == target / shut:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(Unavailable, match="cannot read .*/sets: .*denied: '.*/sets"):
        fetch(origin, target)


def test_leftovers_beside_a_whole_folder_are_removed(server, origin, target):
    """As of a process that was killed just after it had moved the folder."""
    put(target)
    (target.parent / ".sets.part-abc").mkdir()
    (target.parent / ".sets.part-abc/archive.tar.gz").write_bytes(b"x")
    (target.parent / ".others.part-abc").mkdir()
    fetch(origin, target)
    assert sorted(left(target)) == [".others.part-abc", "sets"]


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
    with pytest.raises(Unavailable, match="refused: 'about.json'.*link"):
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


def spoil(packed, what):
    """Changes a zip file with the one member a/1.png, which begins at byte 37."""
    whole = bytearray(packed.read_bytes())
    central = whole.rindex(b"PK\x01\x02")
    if what == "encrypted":
        whole[6] |= 1
        whole[central + 8] |= 1
    elif what == "of an unknown kind":
        whole[8] = whole[central + 10] = 99
    elif what == "named in no alphabet":
        whole[7] |= 8
        whole[central + 9] |= 8
        whole[32] = whole[central + 48] = 255
    else:
        for place in range(50, 60):
            whole[place] ^= 255
    packed.write_bytes(whole)


@pytest.mark.parametrize("method", ["STORED", "DEFLATED", "BZIP2", "LZMA"])
@pytest.mark.parametrize(
    "what", ["encrypted", "of an unknown kind", "named in no alphabet", "damaged"]
)
def test_zip_that_cannot_be_unpacked(tmp_path, method, what):
    packed = tmp_path / "x.zip"
    with zipfile.ZipFile(packed, "w", getattr(zipfile, f"ZIP_{method}")) as archive:
        archive.writestr("a/1.png", GOOD["image/0.png"])
    spoil(packed, what)
    with pytest.raises(Unavailable, match="x.zip is damaged or locked"):
        download.unpack(packed, tmp_path / "sets", ["a"])


@pytest.mark.parametrize("kind", ["bz2", "xz"])
def test_damaged_tar_of_other_kinds(tmp_path, kind):
    packed = tmp_path / "x.tar"
    with tarfile.open(packed, f"w:{kind}") as archive:
        for k in range(3):
            info = tarfile.TarInfo(f"a/{k}.png")
            info.size = 60_000
            noise = np.random.default_rng(k).integers(256, size=60_000, dtype=np.uint8)
            archive.addfile(info, io.BytesIO(noise.tobytes()))
    whole = bytearray(packed.read_bytes())
    for k in range(len(whole) // 2, len(whole) // 2 + 2000):
        whole[k] ^= 255
    packed.write_bytes(whole)
    with pytest.raises(Unavailable, match="x.tar is damaged"):
        download.unpack(packed, tmp_path / "sets", ["a"])


def test_name_in_no_alphabet_is_a_wrong_hash(server, origin, target):
    extra = [(tarfile.TarInfo(f"{TOP}data/image/\udcff.png"), b"x")]
    server.answers = [answer(tar(GOOD, extra))]
    with pytest.raises(Unavailable, match="not the expected ones"):
        fetch(origin, target)
    assert left(target) == []


def test_archive_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "LARGEST", 1000)
    pack_zip(tmp_path / "x.zip", {"a/1": bytes(999), "b/1": bytes(999), "a/2": b"ab"})
    with pytest.raises(Unavailable, match="refused: x.zip holds over 1,000 bytes"):
        download.unpack(tmp_path / "x.zip", tmp_path / "sets", ["a"])
    download.unpack(tmp_path / "x.zip", tmp_path / "others", ["b"])


def test_disk_that_is_full_is_no_damage(tmp_path, monkeypatch):
    def fill(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download.shutil, "copyfileobj", fill)
    pack_zip(tmp_path / "x.zip", {"a/1.png": b"1"})
    with pytest.raises(OSError, match="No space left"):
        download.unpack(tmp_path / "x.zip", tmp_path / "sets", ["a"])


def test_hidden_files_are_neither_unpacked_nor_hashed(server, origin, target):
    """A Mac puts them beside files of another system, and into archives."""
    hidden = {"image/._0.png": b"x", "image/.DS_Store": b"y"}
    server.answers = [answer(tar(GOOD | hidden))]
    fetch(origin, target)
    assert_whole(target)
    (target / ".DS_Store").write_bytes(b"z")
    fetch(origin, target)


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


def test_loader_takes_the_next_source_after_any_failure(
    server, reader, monkeypatch, capsys
):
    monkeypatch.setitem(membranes.splits, "val", range(20, 21))
    for bad in (send(302, Location="http://[::1"), answer(b"PK\5\6" + bytes(18))):
        server.answers = [bad]
        assert data.load("membranes", "val", size=32).source == "sample"
        assert "trying the embedded sample" in capsys.readouterr().out


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
def process():
    """A command that neither ends nor says anything."""
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(command) as process:
        yield process
        process.kill()


def test_kaggle_that_sends_without_end(process, tmp_path, monkeypatch):
    (tmp_path / "x.zip").write_bytes(bytes(11))
    monkeypatch.setattr(download, "LARGEST", 10)
    with pytest.raises(Unavailable, match="Kaggle sends more than 10 bytes"):
        download.watch(process, tmp_path / "x.zip")


def test_kaggle_that_falls_silent_with_and_without_a_bar(
    process, tmp_path, monkeypatch
):
    (tmp_path / "x.zip").write_bytes(bytes(1 << 20))
    monkeypatch.setattr(download, "PATIENCE", 0.2)
    for quiet in (False, True):
        bar = partial(download.tqdm, disable=quiet)
        monkeypatch.setattr(download, "progress", lambda name, bar=bar: bar(desc=name))
        download.watch(process, tmp_path / "x.zip")
        assert process.poll() is None


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


def send_kaggle(server, packed):
    """Lets Kaggle's client have a zip file: it asks for the set's details first."""
    details = json.dumps({"info": {"licenses": []}}).encode()
    server.answers = [answer(details), answer(packed.read_bytes())]


def test_kaggle_download(kaggle_server, tmp_path, target, origin):
    files = {f"The set/{name}": content for name, content in GOOD.items()}
    pack_zip(tmp_path / "sent.zip", files)
    send_kaggle(kaggle_server, tmp_path / "sent.zip")
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
    send_kaggle(kaggle_server, small_landcover)
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
