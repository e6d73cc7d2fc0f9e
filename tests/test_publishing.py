"""What publishes the book and the package: workflows, links of a published chapter, a wheel that chapters run from."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace

import launch
import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CHAPTERS = sorted((ROOT / "book").glob("*.ipynb"))
HOSTS = ("pypi." + "org", "pythonhosted", "download.pytorch", "conda." + "anaconda")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_what_is_there_and_may_write_nothing_by_default(path):
    told = yaml.safe_load(path.read_text())
    assert told["permissions"] == {"contents": "read"}
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    steps = [step for job in told["jobs"].values() for step in job.get("steps", [])]
    lines = [step["run"] for step in steps if "run" in step]
    named = {word for line in lines for words in re.findall(r"^make ([a-z ]+)", line) for word in words.split()}
    assert named <= targets
    for script in re.findall(r"^\.ci/\w+", "\n".join(lines), re.MULTILINE):
        assert os.access(ROOT / script, os.X_OK)
    for job in told["jobs"].values():
        if "uses" in job:
            assert (ROOT / job["uses"]).is_file()
        assert {*([job["needs"]] if isinstance(job.get("needs"), str) else job.get("needs", []))} <= set(told["jobs"])
    assert not any(host in path.read_text() for host in HOSTS)


def test_both_ends_of_torch_are_tried_on_both_systems():
    matrix = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]["quick"]["strategy"]["matrix"]
    assert {system.partition("-")[0] for system in matrix["os"]} == {"ubuntu", "macos"}
    assert matrix["torch"] == ["oldest", "newest"]


def page_of(path, monkeypatch, repository):
    if repository is None:
        monkeypatch.delenv(launch.VARIABLE, raising=False)
    else:
        monkeypatch.setenv(launch.VARIABLE, repository)
    app = SimpleNamespace(env=SimpleNamespace(doc2path=lambda name, base: path))
    context = {"body": "<h1>A chapter</h1>"}
    launch.add_links(app, path.partition(".")[0], "page.html", context, doctree=object())
    return context["body"].removeprefix("<h1>A chapter</h1>")


def test_a_published_chapter_links_to_where_it_can_be_run(monkeypatch):
    body = page_of("book/01_vit.ipynb", monkeypatch, "someone/dasvit@v1.2.3")
    addresses = re.findall(r'href="([^"]+)"', body)
    assert len(addresses) == 3
    assert all("someone/dasvit" in url and "v1.2.3" in url and url.endswith("book/01_vit.ipynb") for url in addresses)
    assert "/blob/main/" in page_of("book/01_vit.ipynb", monkeypatch, "someone/dasvit")
    assert "<script" not in body
    assert page_of("book/01_vit.ipynb", monkeypatch, None) == ""
    assert page_of("book/ledger.md", monkeypatch, "someone/dasvit") == ""
    with pytest.raises(ValueError, match="write owner/name"):
        page_of("book/01_vit.ipynb", monkeypatch, 'a/b" onclick="x')


def imports(path):
    text = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")
    return text, set(re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE))


# Names of modules that come with a dependency of another name, or with what runs any notebook.
BROUGHT = {"sklearn", "PIL", "yaml", "IPython"}


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_needs_the_package_alone(path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = {Requirement(text).name.replace("-", "_") for text in project["dependencies"]}
    text, needed = imports(path)
    assert needed - known - BROUGHT - set(sys.stdlib_module_names) == {"dasvit"}
    read = re.findall(r"""(?:Path|open)\(\s*["']([^"'{]+)["']""", text)
    assert [file for file in read if (ROOT / "book" / file).exists()] == [], "found by dasvit.results.book_folder"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what is in the wheel, built from a copy of what git has."""
    copy, folder = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("installed")
    for name in ("dasvit", "book/results"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("book/claims.yml", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    flags = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(copy / "dist")]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *flags, str(copy)], check=True, cwd=copy)
    (wheel,) = (copy / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    return folder


def test_all_recorded_results_travel_in_the_wheel(installed):
    ours = ROOT / "book" / "results"
    there = installed / "dasvit" / "book" / "results"
    assert {p.relative_to(there) for p in there.rglob("*.json")} == {p.relative_to(ours) for p in ours.rglob("*.json")}


RUN = """
import json, sys, nbformat
from nbclient import NotebookClient
nb = nbformat.read(sys.argv[1], 4)
nb.cells.insert(0, nbformat.v4.new_code_cell("import sys; sys.modules['myst_nb'] = None"))  # as if it were not there
nb.cells.append(nbformat.v4.new_code_cell("import dasvit; print(dasvit.__file__)"))
NotebookClient(nb, timeout=None).execute()
print(json.dumps(nb.cells[-1].outputs[0].text))
"""


def test_a_downloaded_chapter_runs_from_the_wheel(installed, tmp_path):
    shutil.copy(ROOT / "book" / "10_claims.ipynb", tmp_path)
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, "10_claims.ipynb"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert Path(json.loads(done.stdout.splitlines()[-1]).strip()).is_relative_to(installed)


def test_a_figure_is_as_wide_as_its_letters_need(tmp_path):
    import accessible

    text = '<svg viewBox="0 0 400 200"><g style="fill: red" transform="translate(1 2) scale({} -{})"></g></svg>'
    (tmp_path / "_images").mkdir()
    for name, scale in {"small": 0.07, "large": 0.12}.items():
        (tmp_path / "_images" / f"{name}.svg").write_text(text.format(scale, scale))
    (tmp_path / "a.html").write_text('<img alt="x" src="_images/small.svg" /><img src="_images/large.svg" />')
    accessible.mend(tmp_path)
    small, large = (tmp_path / "a.html").read_text().split("</span>")
    assert 'style="min-width: 518px"' in small  # 9.05 pixels for letters of 7 in a picture of 400
    assert large == '<img src="_images/large.svg" />'
    assert accessible.width_needed("<svg></svg>") == 0
