"""The README and its picture say what is recorded, and what the README names is there."""

import re
from pathlib import Path

import readme

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()
RENEW = "python book/_ext/readme.py"


def test_the_findings_are_those_of_the_recorded_files():
    assert TEXT.count(readme.BEGIN) == TEXT.count(readme.END) == 1
    told = TEXT.partition(readme.BEGIN)[2].partition(readme.END)[0].strip()
    assert told == readme.block(), f"renew it: {RENEW}"
    assert len(told.splitlines()) == readme.COUNT


def test_the_picture_shows_the_recorded_numbers():
    svg = (ROOT / readme.PICTURE).read_text()
    assert readme.described(svg) == readme.drawn(), f"renew it: {RENEW}"
    assert len(svg) < 100_000
    assert readme.described(readme.picture()) == readme.drawn()


def test_every_file_that_is_named_exists():
    links = re.findall(r'\]\(([^)]+)\)|src="([^"]+)"', TEXT)
    files = [one or other for one, other in links if "://" not in one]
    assert len(files) > 10
    assert [name for name in files if not (ROOT / name).is_file()] == []


def test_the_library_is_used_as_it_is():
    import dasvit

    code = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)[1]
    compile(code, "README.md", "exec")
    names = set(re.findall(r"dasvit\.(\w+)", code))
    assert [name for name in names if not hasattr(dasvit, name)] == []
