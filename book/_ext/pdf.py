"""Print the book to one PDF, from the single page that ``make pdf`` has built.

python book/_ext/pdf.py _build/singlehtml/index.html _build/dasvit.pdf
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright


def print_page(page: Path, out: Path) -> None:
    """Print a page on disk when its formulas are set, with an outline and page numbers.

    Raises:
        SystemExit: If there is no Chromium.
    """
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        raise SystemExit("no chromium: install it, or name it in the environment variable CHROMIUM")
    number = '<div style="font-size: 8pt; width: 100%; text-align: center"><span class="pageNumber"></span></div>'
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        window = browser.new_page(color_scheme="light")
        window.set_default_timeout(0)
        window.goto(page.resolve().as_uri())
        window.evaluate("async () => { if (window.MathJax) await MathJax.startup.promise }")
        window.pdf(
            path=out,
            format="A4",
            display_header_footer=True,
            header_template="<span></span>",
            footer_template=number,
            prefer_css_page_size=True,
            outline=True,
            tagged=True,
        )
        browser.close()


if __name__ == "__main__":
    print_page(*map(Path, sys.argv[1:3]))
