"""A reader's images into a notebook: archives, uploads, Google Drive."""

import functools
import http.server
import io
import sys
import threading
import types
import zipfile
from datetime import datetime, timezone

import pytest

from utils import own_inputs
from utils.data import DataError


def packed(files):
    """A zip archive of {name: bytes}, as bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


GOOD = {"photos/a.png": b"1", "masks/a.png": b"2", "__MACOSX/._a": b"3", "list.txt": b"4"}


@pytest.fixture
def address(tmp_path):
    """Serves a folder of this machine; gives (folder, address)."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(folder)
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_an_archive_is_fetched_once_and_unpacked(address, tmp_path, capsys):
    folder, url = address
    (folder / "mine.zip").write_bytes(packed(GOOD))
    target = tmp_path / "own" / "files"
    assert own_inputs.fetch(f"{url}mine.zip", target) == target
    assert (target / "photos/a.png").read_bytes() == b"1"
    assert (target / "masks/a.png").read_bytes() == b"2"
    (folder / "mine.zip").unlink()
    own_inputs.fetch(f"{url}mine.zip", target)
    assert "nothing was fetched" in capsys.readouterr().out


@pytest.mark.parametrize("names", ["../out.png", "/out.png", "photos/../../out.png"])
def test_nothing_leads_out_of_the_folder(address, tmp_path, names):
    folder, url = address
    (folder / "bad.zip").write_bytes(packed({names: b"1"}))
    with pytest.raises(DataError, match="leads out"):
        own_inputs.fetch(f"{url}bad.zip", tmp_path / "own")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["served"]


def test_what_is_no_archive_is_named(address, tmp_path):
    folder, url = address
    (folder / "page.zip").write_text("<html>log in first</html>")
    with pytest.raises(DataError, match="no zip or tar archive"):
        own_inputs.fetch(f"{url}page.zip", tmp_path / "own")
    assert not (tmp_path / "own").exists()


def uploaded(version, files):
    """The value of an upload, as ipywidgets 7 or 8 has it."""
    if version == 7:
        return {name: {"content": content} for name, content in files.items()}
    told = {"type": "", "size": 0, "last_modified": datetime.now(timezone.utc)}
    return tuple(
        {"name": name, "content": memoryview(content), **told}
        for name, content in files.items()
    )


@pytest.mark.parametrize("version", [7, 8])
def test_files_are_uploaded_into_the_folder(version, tmp_path):
    value = uploaded(version, {"../a.png": b"1", "all.zip": packed(GOOD)})
    said = own_inputs.kept(own_inputs.contents(value), tmp_path)
    assert "2 files" in said
    assert (tmp_path / "a.png").read_bytes() == b"1"
    assert (tmp_path / "all/photos/a.png").read_bytes() == b"1"
    assert not (tmp_path / "all.zip").exists()


def test_an_upload_that_is_no_archive_says_so(tmp_path):
    said = own_inputs.kept({"all.zip": b"nothing"}, tmp_path)
    assert said.startswith("all.zip: ") and "no zip or tar" in said


def test_the_upload_is_a_widget(tmp_path):
    box = own_inputs.upload(tmp_path / "new")
    box.children[0].set_trait("value", uploaded(8, {"b.png": b"5"}))
    assert (tmp_path / "new/b.png").read_bytes() == b"5"
    assert "1 file is in" in box.children[1].value


def test_drive_is_for_colab(monkeypatch):
    with pytest.raises(DataError, match="in Colab alone"):
        own_inputs.drive("photos")
    mounted = []
    colab = types.ModuleType("google.colab")
    colab.drive = types.SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    with pytest.raises(DataError, match="no folder 'photos'"):
        own_inputs.drive("photos")
    assert mounted == ["/content/drive"]
