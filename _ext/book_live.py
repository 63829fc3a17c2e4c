"""Live networks: their files in the built site, and the elements that show them.

`<segbook-live name="unet">…</segbook-live>` in a page stands for the network of which
`make export` has left a manifest in results/. Here it gets its picture and the size of
what a reader would fetch, and the page the module `_static/live.mjs`, which other pages
do without. What runs the graphs, onnxruntime-web (MIT licence), comes as MathJax does:
from a CDN, checked by its hash, or from the copy of `tools/vendor.py`.
"""

import json
import os
import re
import shutil
from html import escape
from pathlib import Path

from book_scripts import Script
from sphinx.errors import ExtensionError

RUNTIME = {
    "module": Script(
        "onnxruntime-web",
        "1.30.0",
        "dist/ort.wasm.bundle.min.mjs",
        "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
    ),
    "wasm": Script(
        "onnxruntime-web",
        "1.30.0",
        "dist/ort-wasm-simd-threaded.wasm",
        "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
    ),
}
PACKED = 3.7e6  # bytes of the runtime, as a server packs them
ELEMENT = re.compile(r"<segbook-live\b([^>]*)>")
ATTRIBUTE = re.compile(r'\b(name|beside)="([^"]*)"')


def manifests(root):
    """name -> the manifest of each live network in results/, a path."""
    found = sorted(Path(root).glob("results/*/live/main.json"))
    return {path.parents[1].name: path for path in found}


def read(root, name, page):
    """The manifest of a network; ExtensionError, with what to do, if there is none."""
    known = manifests(root)
    if name not in known:
        raise ExtensionError(
            f"{page}: there is no live network {name!r}, but {', '.join(known)}; "
            f"make export CHAPTER={name} makes one"
        )
    return json.loads(known[name].read_text(encoding="utf-8"))


def megabytes(networks):
    """What a reader would fetch, as words."""
    files = {n["name"]: n["graph"]["bytes"] + n["weights"]["bytes"] for n in networks}
    return f"{(PACKED + sum(files.values())) / 1e6:.0f} MB"


def completed(found, root, page, static):
    """The opening tag of an element with all that it needs, and its picture."""
    told = dict(ATTRIBUTE.findall(found[1]))
    if "name" not in told:
        raise ExtensionError(f"{page}: a segbook-live without a name")
    networks = [read(root, name, page) for name in told.values()]
    if networks[0]["classes"] != networks[-1]["classes"]:
        raise ExtensionError(f"{page}: {told} do not have the same classes")
    picture = networks[0]["picture"]
    source = f"{static}/live/{networks[0]['name']}/{picture['file']}"
    return (
        f'<segbook-live{found[1]} data-size="{megabytes(networks)}">'
        f'<img slot="picture" class="dark-light" src="{escape(source)}" '
        f'alt="{escape(picture["alt"])}" width="{picture["width"]}" '
        f'height="{picture["height"]}">'
    )


def complete_elements(app, page, template, context, doctree):
    body = context.get("body", "")
    if not ELEMENT.search(body):
        return
    static = context["pathto"]("_static", 1)
    body = ELEMENT.sub(lambda f: completed(f, app.srcdir, page, static), body)
    script = f'<script type="module" src="{static}/live.mjs"></script>'
    context["body"] = f"{body}\n{script}"


def runtime():
    """Where the page finds what runs the graphs, seen from the folder of networks."""
    local = "../vendor/{0.package}/{0.path}"
    offline = os.environ.get("SEGBOOK_OFFLINE")
    return {
        name: {
            "url": local.format(script) if offline else script.url,
            "integrity": script.integrity,
        }
        for name, script in RUNTIME.items()
    }


def copy_networks(app, error):
    if error or app.builder.format != "html":
        return
    target = Path(app.outdir, "_static", "live")
    for name, manifest in manifests(app.srcdir).items():
        shutil.copytree(manifest.parent, target / name, dirs_exist_ok=True)
        told = json.loads(manifest.read_text(encoding="utf-8"))
        for part in ("graph", "weights"):
            shutil.copy(manifest.parents[1] / told[part]["file"], target / name)
    if target.is_dir():
        (target / "runtime.json").write_text(json.dumps(runtime(), indent=1))


def setup(app):
    app.connect("html-page-context", complete_elements)
    app.connect("build-finished", copy_networks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
