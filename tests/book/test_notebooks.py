"""The chapters as they are committed: clean, complete, and tied to the library in both directions."""

import re
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
CHAPTERS = sorted(BOOK.glob("*.ipynb"))
PACKAGE = ROOT / "dasvit"
FILES = {*PACKAGE.rglob("[!_]*.py"), *PACKAGE.glob("*/__init__.py")} - {*PACKAGE.glob("exercises/chapter*.py")}
MODULES = sorted(".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__") for path in FILES)
LONGEST_CELL = 40

each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
NUMBERED = [path for path in CHAPTERS if path.stem[0].isdigit()]  # the others are pages of reference


def read(path):
    return nbformat.read(path, 4)


def prose(path):
    """The Markdown of a page, whatever it is written in."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def toc_files():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    chapters = [chapter for part in toc["parts"] for chapter in part["chapters"]]
    sections = [section["file"] for chapter in chapters for section in chapter.get("sections", [])]
    return [toc["root"], *(chapter["file"] for chapter in chapters), *sections]


def api_sections():
    """Each module of the API pages with the page that its section links to, if any."""
    found = {}
    pages = "\n".join(prose(page) for page in sorted(BOOK.glob("api_*.md")))
    for section in re.split(r"^## ", pages, flags=re.MULTILINE)[1:]:
        link = re.search(r"\{doc\}`(?:[^`<]*<)?(\w+)>?`", section)
        found |= dict.fromkeys(re.findall(r"automodule:: dasvit\.([\w.]+)", section), link and link[1])
    return found


def test_chapters_are_numbered_as_their_files():
    """Links and the prose name chapters by number: the numbered parts have them in order, and nothing else."""
    parts = yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"]
    numbered = [chapter["file"] for part in parts if part.get("numbered") for chapter in part["chapters"]]
    assert numbered == [f"book/{path.stem}" for path in CHAPTERS if path.stem[0].isdigit()]


def test_every_page_is_in_the_toc():
    pages = {f"book/{path.stem}" for path in BOOK.iterdir() if path.suffix in {".ipynb", ".md"}}
    assert pages == set(toc_files())


@each_chapter
def test_no_trace_of_a_run(path):
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, 4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert text == nbformat.writes(notebook, indent=1) + "\n", "not in canonical form"
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert [i for i in ids if not re.fullmatch(r"[a-z0-9][a-z0-9-]{1,40}", i)] == []
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags", "mystnb"}, cell.id
    for cell in code_cells(path):
        assert cell.outputs == [], cell.id
        assert cell.execution_count is None, cell.id


@each_chapter
def test_cells_are_short(path):
    lengths = {cell.id: cell.source.count("\n") + 1 for cell in code_cells(path)}
    assert {name: n for name, n in lengths.items() if n > LONGEST_CELL} == {}


@each_chapter
def test_figures_have_name_caption_and_alt_text(path):
    figures = [cell for cell in code_cells(path) if "figure" in cell.metadata.get("mystnb", {})]
    assert figures, "a chapter has at least one figure"
    for cell in figures:
        assert set(cell.metadata.mystnb.figure) >= {"name", "caption"}, cell.id
        assert cell.metadata.mystnb.get("image", {}).get("alt"), f"{cell.id}: figure without alt text"


@each_chapter
def test_uses_the_library(path):
    assert any(re.search(r"^(?:import|from) dasvit\b", cell.source, re.MULTILINE) for cell in code_cells(path))


@pytest.mark.parametrize("path", NUMBERED, ids=lambda path: path.stem)
def test_ends_with_exercises_and_folded_solutions(path):
    text = prose(path)
    assert re.findall(r"^## (.*)", text, re.MULTILINE)[-1] == "Exercises"
    before, last = text.rsplit("\n## Exercises", 1)
    exercises = re.findall(r"^`{3,}\{exercise\}[^\n]*\n:label: ([\w-]+)", last, re.MULTILINE)
    solutions = re.findall(r"^`{3,}\{solution(?:-start)?\} ([\w-]+)\n:class: dropdown", last, re.MULTILINE)
    assert len(exercises) >= 3
    assert solutions == exercises
    assert "{exercise}" not in before


def test_every_module_is_on_the_api_page():
    assert sorted(api_sections()) == MODULES


@pytest.mark.parametrize(("module", "page"), api_sections().items())
def test_module_and_chapter_name_each_other(module, page):
    assert page, f"the section of dasvit.{module} on the API page links to no chapter"
    (path,) = BOOK.glob(f"{page}.*")
    assert f"{{py:mod}}`dasvit.{module}`" in prose(path), f"{path.name} does not name dasvit.{module}"


def test_ledger_is_numbered_without_gaps():
    text = prose(BOOK / "ledger.md")
    entries = re.split(r"^\(a(\d+)\)=\n", text, flags=re.MULTILINE)[1:]
    numbers, bodies = [int(n) for n in entries[::2]], entries[1::2]
    assert numbers == list(range(1, len(numbers) + 1))
    for number, body in zip(numbers, bodies, strict=True):
        assert body.startswith(f"### A{number} "), number
        fields = re.findall(r"^:([^:\n]+):", body, re.MULTILINE)
        assert fields == ["The paper", "We assume", "Why", "Where", "Otherwise"], f"A{number}"
