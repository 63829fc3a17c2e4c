"""Fetches MathJax and onnxruntime-web with npm into .vendor/, for OFFLINE=1.

Only what the pages load is kept, in the layout that `_ext/book_scripts.py`
copies into the built site. Does nothing where they lie there already.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "_ext"))

from book_live import RUNTIME  # noqa: E402
from book_scripts import MATHJAX, VENDOR  # noqa: E402

# Beside each script, what it loads by itself: fonts and TeX extensions, WebAssembly.
KEEP = {
    MATHJAX: ("es5/output/chtml/fonts/woff-v2/", "es5/input/tex/extensions/"),
    RUNTIME["module"]: (RUNTIME["wasm"].path,),
}


def fetch(script, folder):
    """Downloads one package; npm checks its hash. Returns the archive."""
    npm = shutil.which("npm")
    if not npm:
        sys.exit("npm is not installed: install Node.js, or build without OFFLINE=1")
    name = f"{script.package}@{script.version}"
    print(f"npm: {name}", flush=True)
    command = [npm, "pack", name, "--silent", "--pack-destination", str(folder)]
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        sys.exit(f"npm could not fetch {name}: is there a network?")
    return next(folder.glob("*.tgz"))


def unpack(archive, script, target):
    kept = tuple(f"package/{path}" for path in (script.path, *KEEP[script]))
    with tarfile.open(archive) as tar:
        for member in tar:
            path = Path(target, member.name.removeprefix("package/"))
            wanted = member.name.startswith(kept) and path.suffix != ".map"
            if member.isfile() and wanted:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(tar.extractfile(member).read())


def main():
    versions = "".join(f"{script.package}@{script.version}\n" for script in KEEP)
    done = VENDOR / "versions.txt"  # written last
    if done.is_file() and done.read_text() == versions:
        return
    shutil.rmtree(VENDOR, ignore_errors=True)
    for script in KEEP:
        with tempfile.TemporaryDirectory() as folder:
            archive = fetch(script, Path(folder))
            unpack(archive, script, VENDOR / script.package)
    done.write_text(versions)


if __name__ == "__main__":
    main()
