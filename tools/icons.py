"""Cuts the icons that the pages use out of the theme's fonts: two small files.

The fonts are Font Awesome's, free under the SIL Open Font License 1.1. To be run again
when a page shows an icon that is not in NAMES, or with a new version of the theme.
"""

import re
from pathlib import Path

import pydata_sphinx_theme
from fontTools import subset

ROOT = Path(__file__).resolve().parents[1]
THEME = Path(pydata_sphinx_theme.__file__).parent / "theme/pydata_sphinx_theme/static"
FONTS = THEME / "vendor/fontawesome/webfonts"
NAMES = {
    "solid-900": [
        "magnifying-glass", "list", "sun", "moon", "circle-half-stroke", "lightbulb",
        "expand", "bars", "arrow-up", "file-pdf", "file", "download", "angle-right",
        "angle-left", "angle-down", "chevron-down", "rocket", "link", "xmark", "pencil",
        "circle-check", "circle-info", "triangle-exclamation", "circle-exclamation",
        "circle-xmark", "bell", "share", "magnifying-glass-minus",
        "arrow-up-right-from-square",
    ],
    "brands-400": ["github"],
}  # fmt: skip


def code(name, css):
    """The character of an icon, as the theme's style sheet gives it."""
    return chr(int(re.search(rf'\.fa-{name}:before[^{{]*{{content:"\\(\w+)"', css)[1], 16))


def cut(font, names, css):
    options = subset.Options(flavor="woff", desubroutinize=True)
    loaded = subset.load_font(FONTS / f"fa-{font}.ttf", options)
    cutter = subset.Subsetter(options)
    cutter.populate(text="".join(code(name, css) for name in names))
    cutter.subset(loaded)
    target = ROOT / f"_static/icons-{font}.woff"
    subset.save_font(loaded, target, options)
    print(f"{target.relative_to(ROOT)}: {target.stat().st_size:,} bytes")


def main():
    css = (THEME / "styles/pydata-sphinx-theme.css").read_text(encoding="utf-8")
    for font, names in NAMES.items():
        cut(font, names, css)


if __name__ == "__main__":
    main()
