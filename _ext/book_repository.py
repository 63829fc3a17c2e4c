"""The address of the repository behind the Colab, source and issue links.

It is written in `_config.yml`. A fork that publishes its own pages sets
SEGBOOK_REPOSITORY (and SEGBOOK_BRANCH) instead of changing the file.
"""

import os


def set_repository(app, config):
    options = config.html_theme_options
    for variable, option in (
        ("SEGBOOK_REPOSITORY", "repository_url"),
        ("SEGBOOK_BRANCH", "repository_branch"),
    ):
        if os.environ.get(variable):
            options[option] = os.environ[variable]


def setup(app):
    # After Jupyter Book has written its own values into the options.
    app.connect("config-inited", set_repository, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
