"""The repository behind the Colab, source and issue links, and the site's address.

The repository is written in `_config.yml`. A fork that publishes its own pages sets
SEGBOOK_REPOSITORY (and SEGBOOK_BRANCH) instead of changing the file. The site is where
GitHub Pages puts it, or where SEGBOOK_SITE says; the site map, the page for lost
readers and the previews of links need it.
"""

import os
from urllib.parse import urlsplit


def set_repository(app, config):
    options = config.html_theme_options
    for variable, option in (
        ("SEGBOOK_REPOSITORY", "repository_url"),
        ("SEGBOOK_BRANCH", "repository_branch"),
    ):
        if os.environ.get(variable):
            options[option] = os.environ[variable]
    site = os.environ.get("SEGBOOK_SITE") or pages_of(options["repository_url"])
    config.html_baseurl = config.ogp_site_url = site.rstrip("/") + "/"
    config.notfound_urls_prefix = urlsplit(config.html_baseurl).path


def pages_of(repository):
    """https://github.com/Me/book -> https://me.github.io/book, as GitHub Pages does."""
    owner, name = urlsplit(repository).path.strip("/").split("/")
    site = f"{owner.lower()}.github.io"
    return f"https://{site}" if name.lower() == site else f"https://{site}/{name}"


def setup(app):
    # After Jupyter Book has written its own values into the options.
    app.connect("config-inited", set_repository, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
