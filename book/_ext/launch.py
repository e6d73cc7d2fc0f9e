"""Links that open a chapter elsewhere, on a site that is published from a repository."""

from __future__ import annotations

import os
import re
from html import escape

VARIABLE = "DASVIT_REPOSITORY"
"""Environment variable with the repository of the published book, as ``owner/name`` or ``owner/name@branch``."""
COLAB = "https://colab.research.google.com/github/{name}/blob/{branch}/{path}"
BINDER = "https://mybinder.org/v2/gh/{name}/{branch}?labpath={path}"
SOURCE = "https://github.com/{name}/blob/{branch}/{path}"


def links(repository: str, path: str) -> str:
    """Return the links of a chapter as HTML: plain ones, which load nothing until they are followed.

    Raises:
        ValueError: If the repository is not written as ``owner/name`` or ``owner/name@branch``.
    """
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", repository)
    if match is None:
        raise ValueError(f"{VARIABLE} is {repository!r}: write owner/name or owner/name@branch")
    name, branch = match[1], match[2] or "main"
    places = {"Colab": COLAB, "Binder": BINDER, "the repository": SOURCE}
    found = (
        f'<a class="reference external" href="{escape(url.format(name=name, branch=branch, path=path))}">{place}</a>'
        for place, url in places.items()
    )
    install = f"%pip install git+https://github.com/{name}@{branch}"
    return f'<p class="launch">Open in {" · ".join(found)}. On Colab, run <code>{escape(install)}</code> first.</p>'


def add_links(app, pagename, templatename, context, doctree):
    """Put the links of a chapter behind its text, where the site knows its repository."""
    repository, source = os.environ.get(VARIABLE), app.env.doc2path(pagename, base=False) if doctree else ""
    if repository and str(source).endswith(".ipynb"):
        context["body"] += links(repository, str(source))
