"""The API page has an example of each public name, and each runs as it stands."""

import re
from pathlib import Path

import pytest

import dasvit

PAGE = (Path(__file__).resolve().parents[1] / "book" / "api.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_every_public_name_has_an_example():
    used = set(re.findall(r"\w+", "\n".join(EXAMPLES)))
    assert set(dasvit.__all__) - used == {"__version__"}


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_runs_and_shows_something(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "api.md", "exec"), {})
    assert capsys.readouterr().out.strip()
