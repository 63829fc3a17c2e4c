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
HERE = "https://site.invalid/book/"  # a book seldom is the whole site
FOLLOWED = ("https", "mailto")
LOADED = ("https", "data")
DOTS = re.compile("%2e", re.IGNORECASE)  # browsers read these as dots too


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
    """What is wrong with the links, pictures and scripts of all pages.

    Returns [(page, link, what is wrong with it)].
    """
    site = Path(site)
    found = []
    for path in sorted(site.rglob("*.html")):
        page = path.relative_to(site).as_posix()
        if page == ABSOLUTE or page.startswith("_static/"):
            continue
        for link, loaded in links_of(soup(path)):
            if wrong := fault(site, page, link, loaded):
                found.append((page, link, wrong))
    return found


def links_of(html):
    """Yields each link, and whether the page loads what it names by itself."""
    for tag in html.select("[href], [src], [poster], [action], object[data]"):
        for name in ("href", "src", "poster", "action", "data"):
            if name in tag.attrs:
                yield tag[name], name != "action" and tag.name not in ("a", "area")
    for tag in html.select("[srcset]"):
        for link in re.findall(r"([^\s,](?:\S*[^\s,])?)(?:\s[^,]*)?", tag["srcset"]):
            yield link, True


def fault(site, page, link, loaded=False):
    """What is wrong with a link, in words, or None."""
    try:
        url = urlsplit(urljoin(f"{HERE}{page}", DOTS.sub(".", link)))
        if url.scheme == "http" and loaded:
            return "is not encrypted: browsers load no http in an https page"
        if url.scheme not in ("http", *(LOADED if loaded else FOLLOWED)):
            return f"is no link for a page: {url.scheme}:"
        if not url.geturl().startswith(urljoin(HERE, "/")):
            return None  # another site
        if not url.geturl().startswith(HERE):
            return "leaves the book"
        return None if leads_somewhere(Path(site), url) else "leads nowhere"
    except (ValueError, OSError) as error:  # what no file can be called, for one
        return f"cannot be read: {error}"


def leads_somewhere(site, url):
    path = unquote(url.path.removeprefix(urlsplit(HERE).path))
    target = (site / path).resolve()
    if not target.is_relative_to(site.resolve()):
        return False
    target = target / "index.html" if target.is_dir() else target
    if not target.is_file():
        return False
    if not url.fragment or target.suffix != ".html":
        return True
    return soup(target).find(id=unquote(url.fragment)) is not None


def main():
    site = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "_build" / "html")
    wrong = [f"{name} is missing" for name in missing_pages(site)]
    wrong += [f"{page}: {link} {what}" for page, link, what in broken_links(site)]
    print("\n".join(wrong) or f"{site}: pages and links are there")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
