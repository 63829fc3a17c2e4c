"""Builds all pages anew after a change of the styles or of these extensions.

Sphinx looks only at the sources of pages, and would keep the old styles.
"""

from pathlib import Path


def changed_pages(app, env, added, changed, removed):
    built = Path(app.outdir, f"{app.config.root_doc}.html")
    if not built.is_file():
        return []
    source = Path(app.srcdir)
    places = "_static/**/*", "_ext/*.py", "results/*/live/*"
    files = [path for place in places for path in source.glob(place)]
    newest = max(path.stat().st_mtime for path in files)
    return list(env.found_docs) if newest > built.stat().st_mtime else []


def setup(app):
    app.connect("env-get-outdated", changed_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
