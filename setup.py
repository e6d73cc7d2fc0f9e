"""Beside pyproject.toml: recorded results travel in the wheel, so that a chapter runs without the repository."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class WithResults(build_py):
    """Copies what chapters read into the package; an editable install reads it where it is."""

    def run(self) -> None:
        """Build as usual, then copy."""
        super().run()
        if self.editable_mode:
            return
        book = Path(self.build_lib) / "dasvit" / "book"
        shutil.rmtree(book, ignore_errors=True)
        shutil.copytree(ROOT / "book" / "results", book / "results", ignore=shutil.ignore_patterns("*.part"))
        shutil.copy(ROOT / "book" / "claims.yml", book)


setup(cmdclass={"build_py": WithResults})
