"""The page "A model to use" does what it says, block by block."""

import re
from pathlib import Path

from test_cli import dasvit

PAGE = (Path(__file__).resolve().parents[1] / "book" / "model.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_every_block_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = [line.split()[1:] for block in blocks("bash") for line in block.splitlines()]
    assert [command[0] for command in commands] == ["retrain", "export"]
    assert [dasvit(*command) for command in commands] == [0, 0]
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "book/model.md", "exec"), names)
    assert "loaded" in names
    assert {path.name for path in Path("mine").iterdir()} >= {"config.json", "model.safetensors"}
