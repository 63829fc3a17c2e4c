"""The repository behind the Colab, source and issue links, and the site's address.

The repository is written in `_config.yml`. A fork that publishes its own pages sets
SEGBOOK_REPOSITORY (and SEGBOOK_BRANCH) instead of changing the file. The site is where
GitHub Pages puts it, or where SEGBOOK_SITE says; the site map, the page for lost
readers and the previews of links need it. All of them land in the pages' HTML, so
none may hold what ends an attribute there.
"""

import os
import re
from urllib.parse import urlsplit

from sphinx.errors import ConfigError

REPOSITORY = re.compile(r"https://[\w.-]+(:\d+)?/[\w-]+/[\w.-]+", re.ASCII)
BRANCH = re.compile(r"[\w./+@-]+", re.ASCII)
SITE = re.compile(r"https?://[\w.-]+(:\d+)?(/[\w.~/-]*)?", re.ASCII)

# The theme's buttons open a tab of their own, and say no more than that.
BLANK = re.compile(r'<a\b(?=[^>]*\starget="_blank")(?![^>]*\srel=)')


def set_repository(app, config):
    options = config.html_theme_options
    repository = os.environ.get("SEGBOOK_REPOSITORY") or options["repository_url"]
    branch = os.environ.get("SEGBOOK_BRANCH") or options["repository_branch"]
    options["repository_url"] = checked(
        REPOSITORY, repository.strip().rstrip("/").removesuffix(".git"),
        "SEGBOOK_REPOSITORY, or the url in _config.yml,", "https://github.com/me/book",
    )  # fmt: skip
    options["repository_branch"] = checked(
        BRANCH, branch, "SEGBOOK_BRANCH, or the branch in _config.yml,", "main"
    )
    site = os.environ.get("SEGBOOK_SITE") or pages_of(options["repository_url"])
    checked(SITE, site, "SEGBOOK_SITE", "https://me.github.io/book")
    config.html_baseurl = config.ogp_site_url = site.rstrip("/") + "/"
    config.notfound_urls_prefix = urlsplit(config.html_baseurl).path


def checked(pattern, text, name, example):
    """The text, if all of it fits the pattern; a ConfigError otherwise."""
    if not pattern.fullmatch(text):
        raise ConfigError(f"{name} is to look like {example}, not like {text!r}")
    return text


def pages_of(repository):
    """https://github.com/Me/book -> https://me.github.io/book, as GitHub Pages does."""
    owner, name = urlsplit(repository).path.strip("/").split("/")
    site = f"{owner.lower()}.github.io"
    return f"https://{site}" if name.lower() == site else f"https://{site}/{name}"


def close_openers(html):
    """The HTML of a page from which a page in a new tab gets no hold of it."""
    return BLANK.sub('<a rel="noopener"', html)


def setup(app):
    # After Jupyter Book has written its own values into the options.
    app.connect("config-inited", set_repository, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
