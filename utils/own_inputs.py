"""A reader's images into a notebook: by upload, from an address, from Google Drive.

    folder = own_inputs.fetch("https://…/photos.zip", "own/files")
    own_inputs.upload("own/files")        # a button; several files, or one archive
    folder = own_inputs.drive("photos")   # Colab: a folder of yours, read and written
"""

import tempfile
from pathlib import Path

from utils import runtime
from utils.checkpoints import replacing
from utils.data import DataError
from utils.data.download import check_name, download, members, unpack

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")


def fetch(url, folder):
    """The files behind the address of a zip or tar archive, in a folder; its `Path`.

    What is there already is left as it is, and nothing is fetched. DataError for an
    address without an answer, and for an archive that is damaged or holds a name that
    leads out of the folder.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        print(f"{folder} is there already: nothing was fetched")
        return folder
    with tempfile.TemporaryDirectory() as place:
        packed = Path(place, "packed")
        download(url, packed)
        unpacked(packed, folder)
    return folder


def unpacked(packed, folder):
    """Unpacks a zip or tar file into a folder that is not there yet, or is empty."""
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder} is there already: remove it, or rename the archive")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        whole = Path(place, "whole")
        unpack(packed, whole, at_the_top(packed))
        if folder.is_dir():
            folder.rmdir()
        whole.rename(folder)


def at_the_top(packed):
    """The names of what lies at the top of an archive."""
    try:
        names = [name.replace("\\", "/") for name, *_ in members(packed)]
    except Exception as error:  # archives have many ways to be broken
        raise DataError(
            f"what came is no zip or tar archive, or is damaged ({error}): pack images "
            "and masks into one, or put them into a folder"
        ) from error
    for name in names:
        check_name(name)
    return sorted({name.split("/")[0] for name in names})


def upload(folder):
    """A button that takes files from the reader's machine into a folder, for Jupyter
    and Colab (ipywidgets 7 and 8); an archive is unpacked there."""
    import ipywidgets as widgets

    folder = Path(folder)
    runtime.check_writable(folder)
    button, said = widgets.FileUpload(multiple=True), widgets.HTML()

    def keep(change):
        if change["new"]:
            said.value = kept(contents(change["new"]), folder)

    button.observe(keep, "value")
    return widgets.VBox([button, said])


def contents(value):
    """{name: bytes} of an upload: ipywidgets 8 has a tuple of files, 7 a dict by name.
    """
    if isinstance(value, dict):
        return {name: bytes(file["content"]) for name, file in value.items()}
    return {file["name"]: bytes(file["content"]) for file in value}


def kept(files, folder):
    """Writes uploaded files into a folder; what to tell the reader."""
    for name, content in files.items():
        target = folder / Path(name.replace("\\", "/")).name
        with replacing(target) as file:
            file.write(content)
        if target.name.lower().endswith(ARCHIVES):
            try:
                unpacked(target, folder / target.name.partition(".")[0])
            except DataError as error:
                return f"{target.name}: {error}"
            target.unlink()
    many = f"{len(files)} files are" if len(files) > 1 else "1 file is"
    return f"{many} in {folder}."


def drive(folder):
    """A folder of the reader's Google Drive, in Colab. What a training writes below it
    outlives the session. DataError outside of Colab, or without the folder."""
    try:
        from google.colab import drive as google
    except ImportError as error:
        raise DataError("Google Drive is there in Colab alone: name a folder") from error
    google.mount("/content/drive")
    place = Path("/content/drive/MyDrive", folder)
    if not place.is_dir():
        raise DataError(f"your Drive has no folder {folder!r}: look at its name")
    return place
