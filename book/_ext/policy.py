"""A Content-Security-Policy on every page: the book's own files and the scripts it was built with, nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path

from bs4 import BeautifulSoup

# On disk a page has no origin that 'self' is sure to mean, hence file: as well; a page from a server cannot reach that.
HERE = "'self' file:"
# Styles stay 'unsafe-inline': MathJax and the theme make style elements and attributes as they run.
POLICY = (
    "default-src 'none'; script-src {here} 'unsafe-hashes' {hashes}; style-src {here} 'unsafe-inline'; "
    "img-src {here} data:; font-src {here}; connect-src {here}; form-action {here}; base-uri 'none'"
)
START = '<meta http-equiv="Content-Security-Policy"'


def policy(pages: Iterable[str]) -> str:
    """Return the policy of a book: inline scripts and handlers run only with the text they have in its pages.

    'unsafe-hashes' is what it takes for a hash to cover a handler. All pages share one policy, because the search reads
    other pages to quote from them.
    """
    inline: set[str] = set()
    for page in pages:
        soup = BeautifulSoup(page, "html.parser")
        inline |= {script.string for script in soup.find_all("script") if script.string}
        inline |= {text for tag in soup.find_all(True) for name, text in tag.attrs.items() if name.startswith("on")}
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in sorted(inline))
    return POLICY.format(here=HERE, hashes=" ".join(f"'sha256-{digest}'" for digest in digests))


def protect(folder: Path) -> None:
    """Write the policy into every page under ``folder``, where it has none yet."""
    pages = {path: path.read_text(encoding="utf-8") for path in folder.rglob("*.html")}
    tag = f'{START} content="{policy(pages.values())}">'
    for path, page in pages.items():
        if START not in page:
            path.write_text(page.replace("<head>", f"<head>\n{tag}", 1), encoding="utf-8")
