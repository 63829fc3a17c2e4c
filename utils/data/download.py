"""Fetches a data set: whole, verified and in one move, or not at all."""

import contextlib
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import requests
import urllib3
from filelock import FileLock, Timeout
from requests.utils import get_auth_from_url, urldefragauth
from tqdm.auto import tqdm

MIRROR = "https://codeload.github.com"  # where archives lie, unless SEGBOOK_MIRROR
TIMEOUT = (5, 30)  # seconds to connect, and to wait for the next bytes
PAUSES = (1, 2, 4)  # seconds before each new try
PATIENCE = 30  # seconds in which a server must get going
SLOWEST = 10_000  # bytes a second that must come on average, once these are over
LONGEST = 3600  # seconds for one try, and for another process that fetches the same
LARGEST = 4 << 30  # bytes of a packed file, and of what is unpacked from it
BLOCK = 1 << 16
# What requests raises, and what it lets through: a body that breaks off, a redirection
# to an address that cannot be read.
FAILURES = requests.RequestException, urllib3.exceptions.HTTPError, ValueError


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

    The folder appears only when it is whole and its hash is right. One that is there
    already is verified, for which nothing needs to be written. Raises Unavailable, and
    leaves nothing behind, otherwise.
    """
    if not os.path.exists(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with alone(target):
                if not target.exists():  # now that another process is done
                    return obtain(origin, target)
        except OSError as error:  # a full disk, a folder that may not be written
            raise Unavailable(f"cannot write {target}: {error}") from error
    remove_leftovers(target)
    verify(target, origin.sha256, "; remove the folder to fetch it")


def obtain(origin, target):
    """Makes the folder beside target, and moves it there once it is verified."""
    remove_leftovers(target)
    with tempfile.TemporaryDirectory(
        prefix=leftovers(target), dir=target.parent
    ) as scratch:
        packed = origin.download(Path(scratch))
        whole = Path(scratch, target.name)
        unpack(packed, whole, origin.wanted, origin.ending)
        verify(whole, origin.sha256)
        os.replace(whole, target)


@contextlib.contextmanager
def alone(target):
    """Lets one process at a time fetch target; a killed one sets the lock free.

    Raises OSError where no lock can be made, and Unavailable after LONGEST seconds.
    """
    path = target.parent / f".{target.name}.lock"
    path.touch()  # where that fails, as in /proc, the lock might wait for ever
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{target.name}: another process is fetching it; waiting for that")
        try:
            lock.acquire(timeout=LONGEST)
        except Timeout as error:
            raise Unavailable(f"another process does not let go of {path}") from error
    try:
        yield
    finally:
        lock.release()


def leftovers(target):
    """How the names of folders with half-done work begin."""
    return f".{target.name}.part-"


def remove_leftovers(target):
    """Removes what killed processes left beside target."""
    for stale in target.parent.glob(f"{leftovers(target)}*"):
        shutil.rmtree(stale, ignore_errors=True)


def folder_hash(folder):
    """sha256 over the sorted lines `path NUL sha256(file) LF` of folder's files.

    Without hidden files, such as a file manager leaves: nothing reads them. Raises
    OSError for what may not be read.
    """
    lines = []
    for path in everything_in(folder):
        if path.is_file() and not is_hidden(path):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            lines.append(f"{path.relative_to(folder).as_posix()}\0{digest}\n")
    text = "".join(sorted(lines))
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def everything_in(folder):
    """Yields what lies in a folder and in those in it, but for these folders."""

    def fail(error):  # otherwise a closed folder would look like an empty one
        raise error

    for here, _, names in os.walk(folder, onerror=fail):
        yield from (Path(here, name) for name in names)


def is_hidden(path):
    return Path(path).name.startswith(".")


def verify(folder, sha256, advice=""):
    """Raises Unavailable when the files in folder are not the expected ones."""
    try:
        found = folder_hash(folder)
    except OSError as error:
        raise Unavailable(f"cannot read {folder}: {error}") from error
    if found != sha256:
        raise Unavailable(
            f"the files of {folder.name} are not the expected ones "
            f"(sha256 {found[:12]}..., expected {sha256[:12]}...){advice}"
        )


# Downloading


def download(url, path):
    """Downloads url into the file path; tries again when that may help.

    Raises Unavailable. Neither messages nor the errors behind them show a password
    that the url has.
    """
    check_url(url)
    login, url = get_auth_from_url(url), urldefragauth(url)
    for pause in (*PAUSES, None):
        try:
            return stream(url, path, login if any(login) else None)
        except FAILURES as error:
            if pause is None or not may_pass(error):
                raise Unavailable(reason(url, error)) from error
            print(f"{reason(url, error)}; trying again in {pause} s")
            time.sleep(pause)


def check_url(url):
    """Raises Unavailable for what is no address of a web server."""
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return
    except ValueError:  # brackets or a port that make no sense
        pass
    shown = re.sub(r"(?s)^(\w+://)?.*@", r"\1***@", url)
    raise Unavailable(
        f"{shown!r} is not a URL: SEGBOOK_MIRROR, if set, begins with https:// or "
        "http:// and the name of a server"
    )


def stream(url, path, login=None):
    """One try: the bytes behind url into the file path, with a progress bar."""
    headers, start = {"Accept-Encoding": "identity"}, time.monotonic()
    with requests.get(
        url, stream=True, timeout=TIMEOUT, headers=headers, auth=login
    ) as response:
        response.raise_for_status()
        size = announced_size(response)
        check_limits(host_of(url), size or 0, 0)
        with path.open("wb") as file, progress(path.name, size) as bar:
            # Bytes as they arrive: a whole block of a slow server would take for ever.
            while block := response.raw.read1(BLOCK, decode_content=True):
                file.write(block)
                bar.update(len(block))
                check_limits(host_of(url), file.tell(), time.monotonic() - start)


def announced_size(response):
    """The length of the body that a server tells, None if that is no number."""
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() and len(text) < 20 else None


def check_limits(host, size, seconds):
    """Raises Unavailable if what came in some seconds is too much or too little."""
    if size > LARGEST:
        raise Unavailable(f"{host} sends more than {LARGEST:,} bytes")
    if seconds > LONGEST or (seconds > PATIENCE and size < SLOWEST * seconds):
        raise Unavailable(f"{host} is too slow: {size:,} bytes in {seconds:.0f} s")


def host_of(url):
    return urlsplit(url).netloc


def progress(name, size=None):
    return tqdm(total=size, unit="B", unit_scale=True, desc=name, leave=False)


def may_pass(error):
    """Whether a failed download may succeed a little later.

    A busy server and a broken connection pass; a refusal does not, nor an answer
    without sense, nor having no network: someone offline should not wait.
    """
    if isinstance(error, requests.HTTPError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    return not (is_senseless(error) or no_connection(error))


def no_connection(error):
    return isinstance(error, requests.ConnectionError) and isinstance(
        error.args[0], urllib3.exceptions.MaxRetryError
    )


def is_senseless(error):
    """Whether a server answered with, for instance, a redirection that is no URL."""
    return isinstance(error, (ValueError, requests.TooManyRedirects))


def reason(url, error):
    """One line on why the download failed."""
    host = host_of(url)
    if isinstance(error, requests.HTTPError):
        response = error.response
        return f"{host} answered {response.status_code} {response.reason} for {url}"
    if no_connection(error):
        return f"no connection to {host} ({type(error.args[0].reason).__name__})"
    if is_senseless(error):
        return f"{host} answered without sense ({type(error).__name__})"
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
    start = last = time.monotonic()
    seen = 0
    with progress(path.name) as bar:
        while process.poll() is None and time.monotonic() - last < PATIENCE:
            size = path.stat().st_size if path.exists() else 0
            if size > seen:
                bar.update(size - seen)
                seen, last = size, time.monotonic()
            check_limits("Kaggle", size, time.monotonic() - start)
            time.sleep(0.1)


# Unpacking


def unpack(packed, target, wanted, ending=""):
    """Unpacks the folders or files `wanted` of a tar or zip file into target.

    Each keeps its last name: a/b/image/0.png becomes image/0.png for the wanted
    a/b/image, and a/b/notes.txt becomes notes.txt. Hidden files, and files whose names
    do not end in `ending`, are left out. Only plain files are written, and only below
    target. Raises Unavailable for a name that leads elsewhere, for a link or device,
    for more than LARGEST bytes, and for a file that is damaged or cannot be unpacked.
    """
    target.mkdir(parents=True)
    try:
        write_members(packed, target, wanted, ending)
    except Unavailable:
        raise
    except Exception as error:  # archives have many ways to be broken or encrypted
        if isinstance(error, OSError) and error.errno:  # a full disk, for instance
            raise
        raise Unavailable(f"{packed.name} is damaged or locked: {error}") from error


def write_members(packed, target, wanted, ending):
    """The work of `unpack`, with whatever errors a broken file leads to."""
    room = LARGEST
    for name, kind, size, open_member in members(packed):
        check_name(name)
        path = kept_path(name, wanted)
        if path is None or kind == "folder" or not name.endswith(ending):
            continue
        if is_hidden(path):
            continue
        if kind != "file":
            raise Unavailable(f"refused: {name!r} in the archive is a {kind}")
        room -= size
        if room < 0:
            raise Unavailable(f"refused: {packed.name} holds over {LARGEST:,} bytes")
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        with open_member() as source, (target / path).open("xb") as file:
            shutil.copyfileobj(source, file, BLOCK)


def members(packed):
    """Yields (name, kind, size, function that opens it) for all in a tar or zip."""
    if zipfile.is_zipfile(packed):
        with zipfile.ZipFile(packed) as archive:
            for info in archive.infolist():
                mode = stat.S_IFMT(info.external_attr >> 16)
                special = mode not in (0, stat.S_IFREG, stat.S_IFDIR)
                kind = "folder" if info.is_dir() else "file"
                kind = "link or device" if special else kind
                open_member = partial(archive.open, info)
                yield info.filename, kind, info.file_size, open_member
        return
    with tarfile.open(packed) as archive:
        for info in archive:
            kind = "folder" if info.isdir() else "file"
            kind = kind if info.isdir() or info.isreg() else "link or device"
            yield info.name, kind, info.size, partial(archive.extractfile, info)


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
