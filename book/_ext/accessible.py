"""What the theme and its extensions leave out for those who use a screen reader, a keyboard or a phone."""

from __future__ import annotations

import math
import re
from functools import partial
from pathlib import Path

MENDED = {
    # everything on a page belongs to a landmark, the sidebar's title and search too
    'bd-sidebar-primary bd-sidebar"': 'bd-sidebar-primary bd-sidebar" role="navigation" aria-label="Book"',
    # what opens a part of the table of contents has a name
    '<summary><span class="toctree-toggle"': '<summary aria-label="Pages of this part"><span class="toctree-toggle"',
    # the bibliography is a list; what this role named its entries has been withdrawn
    'role="doc-biblioentry"': 'role="listitem"',
}
FIGURE = re.compile(r'<img\b[^>]*?\bsrc="([^"]*_images/[^"]+\.svg)"[^>]*>')
LETTERS = re.compile(r'<g (?:style="[^"]*" )?transform="[^"]*scale\(([\d.]+) -')
WIDTH = re.compile(r'viewBox="0 0 ([\d.]+)')
NESTED = re.compile(r"(?<=</li>)\s*<ul>((?:(?!</?ul>).)*)</ul>", re.DOTALL)  # where a list may only have items
SMALLEST = 9.05  # pixels, of letters in a figure
PHONE = 340  # pixels that any screen has


def width_needed(svg: str) -> int:
    """Return how many pixels wide a figure has to be for its smallest letters to be read; 0 without letters.

    Matplotlib draws a letter as a path in units of a hundredth of the type's size, which the text around it scales.
    """
    sizes, whole = [100 * float(size) for size in LETTERS.findall(svg)], WIDTH.search(svg)
    return math.ceil(SMALLEST * float(whole[1]) / min(sizes)) if sizes and whole else 0


def _wide_enough(folder: Path, match: re.Match[str]) -> str:
    """Return a figure that keeps the width it needs: on a narrow screen it scrolls in a box of its own."""
    needed = width_needed((folder / match[1]).read_text(encoding="utf-8"))
    if needed <= PHONE:
        return match[0]
    rule, image = f"min-width: {needed}px", match[0]
    if 'style="' in image:
        image = image.replace('style="', f'style="{rule}; ', 1)
    else:
        image = image.replace("<img", f'<img style="{rule}"', 1)
    return f'<span class="wide-figure" tabindex="0" role="group" aria-label="Figure">{image}</span>'


def mend(folder: Path) -> None:
    """Mend every page under ``folder``."""
    for path in folder.rglob("*.html"):
        page = text = path.read_text(encoding="utf-8")
        for wrong, right in MENDED.items():
            text = text.replace(wrong, right)
        text = NESTED.sub(r"\1", text)
        text = FIGURE.sub(partial(_wide_enough, path.parent), text)
        if text != page:
            path.write_text(text, encoding="utf-8")
