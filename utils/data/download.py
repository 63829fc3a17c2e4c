"""Fetches a data set: whole, verified and in one move, or not at all."""

import contextlib
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import requests
from filelock import FileLock, Timeout
from tqdm.auto import tqdm
from urllib3.exceptions import MaxRetryError

MIRROR = "https://codeload.github.com"  # where archives lie, unless SEGBOOK_MIRROR
TIMEOUT = (5, 30)  # seconds to connect, and to wait for the next bytes
PAUSES = (1, 2, 4)  # seconds before each new try
PATIENCE = 30  # seconds that the Kaggle command may stay without a new byte
BLOCK = 1 << 16


class DataError(RuntimeError):
    """Data that cannot be used; the message says what to do."""


class Unavailable(DataError):
    """This source cannot give the data set; another one may."""


@dataclass(frozen=True)
class Archive:
    """Folders or files of a public GitHub repository at one commit.

    Of the repository's `folder`, the sub-folders or files `keep` are kept, and of these
    the files whose names end in `ending`; `sha256` is the `folder_hash` of them all.
    """

    repository: str  # owner/name
    commit: str
    folder: str
    keep: tuple[str, ...]
    sha256: str
    ending: str = ""

    def download(self, scratch):
        """Downloads into the folder scratch; returns the packed file."""
        mirror = os.environ.get("SEGBOOK_MIRROR") or MIRROR
        packed = scratch / "archive.tar.gz"
        download(f"{mirror}/{self.repository}/tar.gz/{self.commit}", packed)
        return packed

    @property
    def wanted(self):
        """The folders or files to keep, as they are named inside the packed file."""
        name = self.repository.split("/")[1]
        return [f"{name}-{self.commit}/{self.folder}/{part}" for part in self.keep]


@dataclass(frozen=True)
class Kaggle:
    """Folders or files of a Kaggle data set; the fields as for `Archive`."""

    dataset: str  # owner/name
    folder: str
    keep: tuple[str, ...]
    sha256: str
    ending: str = ""

    def download(self, scratch):
        """Downloads into the folder scratch; returns the packed file."""
        return download_kaggle(self.dataset, scratch)

    @property
    def wanted(self):
        """The folders or files to keep, as they are named inside the packed file."""
        return [f"{self.folder}/{part}" for part in self.keep]


def fetch(origin, target):
    """Puts the data set of an Archive or Kaggle into the folder target.

    The folder appears only when it is whole and its hash is right; one that is there
    already is verified. Raises Unavailable, and leaves nothing behind, otherwise.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with alone(target):
            if target.exists():
                return verify(target, origin.sha256, "; remove the folder to fetch it")
            with scratch_folder(target) as scratch:
                packed = origin.download(scratch)
                whole = scratch / target.name
                unpack(packed, whole, origin.wanted, origin.ending)
                verify(whole, origin.sha256)
                os.replace(whole, target)
    except OSError as error:  # a full disk, a folder that may not be written
        raise Unavailable(f"cannot write {target}: {error}") from error


@contextlib.contextmanager
def alone(target):
    """Lets one process at a time fetch target; a killed one sets the lock free."""
    lock = FileLock(target.parent / f".{target.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{target.name}: another process is fetching it; waiting for that")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def scratch_folder(target):
    """A folder beside target for half-done work; removes those of killed processes."""
    prefix = f".{target.name}.part-"
    for stale in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as scratch:
        yield Path(scratch)


def folder_hash(folder):
    """sha256 over the sorted lines `path NUL sha256(file) LF` of folder's files."""
    lines = []
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            lines.append(f"{path.relative_to(folder).as_posix()}\0{digest}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def verify(folder, sha256, advice=""):
    """Raises Unavailable when the files in folder are not the expected ones."""
    found = folder_hash(folder)
    if found != sha256:
        raise Unavailable(
            f"the files of {folder.name} are not the expected ones "
            f"(sha256 {found[:12]}..., expected {sha256[:12]}...){advice}"
        )


# Downloading


def download(url, path):
    """Downloads url into the file path; tries again when that may help."""
    for pause in (*PAUSES, None):
        try:
            return stream(url, path)
        except requests.RequestException as error:
            if pause is None or not may_pass(error):
                raise Unavailable(reason(url, error)) from error
            print(f"{reason(url, error)}; trying again in {pause} s")
            time.sleep(pause)


def stream(url, path):
    """One try: the bytes behind url into the file path, with a progress bar."""
    headers = {"Accept-Encoding": "identity"}
    with requests.get(url, stream=True, timeout=TIMEOUT, headers=headers) as response:
        response.raise_for_status()
        size = int(response.headers.get("Content-Length", 0)) or None
        with path.open("wb") as file, progress(path.name, size) as bar:
            for block in response.iter_content(BLOCK):
                file.write(block)
                bar.update(len(block))


def progress(name, size=None):
    return tqdm(total=size, unit="B", unit_scale=True, desc=name, leave=False)


def may_pass(error):
    """Whether a failed download may succeed a little later.

    A busy server and a broken connection pass; a refusal does not, nor does having no
    network: someone offline should not wait.
    """
    if isinstance(error, requests.HTTPError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    return not no_connection(error)


def no_connection(error):
    return isinstance(error, requests.ConnectionError) and isinstance(
        error.args[0], MaxRetryError
    )


def reason(url, error):
    """One line on why the download failed."""
    host = url.split("/")[2]
    if isinstance(error, requests.HTTPError):
        response = error.response
        return f"{host} answered {response.status_code} {response.reason} for {url}"
    if no_connection(error):
        return f"no connection to {host} ({type(error.args[0].reason).__name__})"
    return f"the connection to {host} broke ({type(error).__name__})"


def download_kaggle(dataset, scratch):
    """Downloads the Kaggle data set "owner/name"; returns its zip file.

    Runs Kaggle's own command as another process: it needs no account for most public
    data sets, which its Python functions do, and it exits when it is refused.
    """
    command = [sys.executable, "-m", "kaggle", "datasets", "download", dataset]
    log, packed = scratch / "kaggle.log", scratch / f"{dataset.split('/')[1]}.zip"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--quiet", "--path", str(scratch)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            watch(process, packed)
        finally:
            process.kill()
            process.wait()
    if process.returncode or not packed.exists():
        lines = log.read_text(errors="replace").split("\n")
        said = next((line for line in reversed(lines) if line.strip()), "no answer")
        raise Unavailable(
            f"Kaggle did not give {dataset} ({said.strip()[:200]}); if it needs an "
            "account, put a token into KAGGLE_API_TOKEN or ~/.kaggle/access_token"
        )
    return packed


def watch(process, path):
    """Shows how the file path grows until the process ends, or grows no more."""
    last = time.monotonic()
    with progress(path.name) as bar:
        while process.poll() is None and time.monotonic() - last < PATIENCE:
            size = path.stat().st_size if path.exists() else 0
            if size > bar.n:
                bar.update(size - bar.n)
                last = time.monotonic()
            time.sleep(0.1)


# Unpacking


def unpack(packed, target, wanted, ending=""):
    """Unpacks the folders or files `wanted` of a tar or zip file into target.

    Each keeps its last name: a/b/image/0.png becomes image/0.png for the wanted
    a/b/image, and a/b/notes.txt becomes notes.txt. Files whose names do not end in
    `ending` are left out. Only plain files are written, and only below target. Raises
    Unavailable for a name that leads elsewhere, for a link or device, and for a damaged
    file.
    """
    target.mkdir(parents=True)
    try:
        for name, kind, open_member in members(packed):
            check_name(name)
            path = kept_path(name, wanted)
            if path is None or kind == "folder" or not name.endswith(ending):
                continue
            if kind != "file":
                raise Unavailable(f"refused: {name} in the archive is a {kind}")
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            with open_member() as source, (target / path).open("xb") as file:
                shutil.copyfileobj(source, file, BLOCK)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise Unavailable(f"{packed.name} is damaged: {error}") from error


def members(packed):
    """Yields (name, kind, function that opens it) for all that a tar or zip holds."""
    if zipfile.is_zipfile(packed):
        with zipfile.ZipFile(packed) as archive:
            for info in archive.infolist():
                mode = stat.S_IFMT(info.external_attr >> 16)
                special = mode not in (0, stat.S_IFREG, stat.S_IFDIR)
                kind = "folder" if info.is_dir() else "file"
                kind = "link or device" if special else kind
                yield info.filename, kind, lambda info=info: archive.open(info)
        return
    with tarfile.open(packed) as archive:
        for info in archive:
            kind = "folder" if info.isdir() else "file"
            kind = kind if info.isdir() or info.isreg() else "link or device"
            yield info.name, kind, lambda info=info: archive.extractfile(info)


def check_name(name):
    """Refuses absolute names, `..` and, as Windows reads them, drives."""
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or ":" in name:
        raise Unavailable(f"refused: {name!r} in the archive leads out of its folder")


def kept_path(name, wanted):
    """Where a member goes, or None for one that is not wanted."""
    for kept in wanted:
        if name == kept or name.startswith(f"{kept}/"):
            return kept.split("/")[-1] + name[len(kept) :]
    return None
