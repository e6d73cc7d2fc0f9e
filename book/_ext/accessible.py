"""What the theme and its extensions leave out for those who use a screen reader or a keyboard."""

from __future__ import annotations

from pathlib import Path

MENDED = {
    # everything on a page belongs to a landmark, the sidebar's title and search too
    'bd-sidebar-primary bd-sidebar"': 'bd-sidebar-primary bd-sidebar" role="navigation" aria-label="Book"',
    # the bibliography is a list; what this role named its entries has been withdrawn
    'role="doc-biblioentry"': 'role="listitem"',
}


def mend(folder: Path) -> None:
    """Mend every page under ``folder``."""
    for path in folder.rglob("*.html"):
        page = text = path.read_text(encoding="utf-8")
        for wrong, right in MENDED.items():
            text = text.replace(wrong, right)
        if text != page:
            path.write_text(text, encoding="utf-8")
