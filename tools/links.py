"""Checks a built book: its pages exist, and links inside it lead somewhere.

python tools/links.py [_build/html] prints what is wrong; the exit status is 1 then.
Links to other sites are not followed.
"""

import functools
import re
import sys
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import yaml
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[1]
ABSOLUTE = "404.html"  # its links begin with the address of the site


@functools.cache
def soup(path):
    text = path.read_text(encoding="utf-8")
    # The widgets' state is data: no need to parse it.
    text = re.sub(r"(?s)(<script[^>]*widget-state\+json[^>]*>).*?</script>", "", text)
    return BeautifulSoup(text, "html.parser")


def missing_pages(site):
    """Pages of the contents, and files that a site needs, that are not there."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    pages = [toc["root"], *(entry["file"] for entry in toc["chapters"])]
    wanted = [f"{page}.html" for page in pages]
    wanted += ["index.html", "404.html", "sitemap.xml", "search.html"]
    return [name for name in wanted if not Path(site, name).is_file()]


def broken_links(site):
    """Links, images and scripts of all pages that lead nowhere: [(page, link)]."""
    site = Path(site)
    found = []
    for path in sorted(site.rglob("*.html")):
        page = path.relative_to(site).as_posix()
        if page == ABSOLUTE or page.startswith("_static/"):
            continue
        for tag in soup(path).select("[href], [src]"):
            link = tag.get("href", tag.get("src"))
            if not leads_somewhere(site, page, link):
                found.append((page, link))
    return found


def leads_somewhere(site, page, link):
    url = urlsplit(urljoin(f"/{page}", link))
    if url.scheme or url.netloc:
        return True
    target = site / unquote(url.path).lstrip("/")
    target = target / "index.html" if target.is_dir() else target
    if not target.is_file():
        return False
    if not url.fragment or target.suffix != ".html":
        return True
    return soup(target).find(id=unquote(url.fragment)) is not None


def main():
    site = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "_build" / "html")
    wrong = [f"{name} is missing" for name in missing_pages(site)]
    wrong += [f"{page}: {link} leads nowhere" for page, link in broken_links(site)]
    print("\n".join(wrong) or f"{site}: pages and links are there")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
