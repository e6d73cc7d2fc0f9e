import ast
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import dasvit

SOURCE = Path(dasvit.__file__).parent


def run(code, folder=None):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    return done.stdout.strip()


def test_every_name_is_there_and_known_to_type_checkers():
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in block.body for alias in node.names}
    assert typed == dasvit._MODULE
    for name, module in typed.items():
        assert getattr(dasvit, name).__module__ == f"dasvit.{module}"
    assert set(dir(dasvit)) == set(dasvit.__all__)


def test_a_module_is_a_module_and_a_name_is_none():
    """``import dasvit.searching`` gives a module whatever was loaded before, and no public name is one of a module."""
    found = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in SOURCE.rglob("*.py")}
    assert found & set(dasvit.__all__) == set()
    code = "import dasvit; dasvit.search; import dasvit.searching as m; print(type(m).__name__, dasvit.search)"
    assert run(code).startswith("module <function search")


def test_rooms_look_down_only():
    below = {"engine": ("engine.",), "data": ("data.", "engine.")}
    for module, needs in modules():
        if (room := below.get(module.partition(".")[0])) is not None:
            assert all(need.startswith(room) for need in needs), module


NAMING = {
    "space.py": "the candidates of the paper",
    "encoder.py": "the layer of ViT, which encoders are compared with",
    "latency.py": "the identity, against which the others are timed",
    "methods/edges.py": "which kinds share weights in one method",
}
"""Where the paper's operations are named beside their table. In ``training_free`` an MLP is a part of any network."""


def test_operations_are_named_in_their_table():
    named = set()
    for path in SOURCE.rglob("*.py"):
        texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        if texts & {"skip", "msa", "mlp"}:
            named.add(path.relative_to(SOURCE).as_posix())
    assert "operations.py" in named
    assert {name for name in named if not name.startswith("training_free/")} <= {"operations.py", *NAMING}


def sources():
    """Yield the project's modules, tests included."""
    root = Path(__file__).resolve().parents[1]
    for place in ("dasvit", "benchmarks", "tests", "book/_ext"):
        yield from (root / place).rglob("*.py")
    yield root / "conftest.py"


def test_files_and_functions_are_short():
    for path in sources():
        text = path.read_text()
        assert text.count("\n") <= 450, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


def test_the_subpackages_are_there_at_once():
    code = "import dasvit; print(dasvit.training_free.dss.__name__, dasvit.landscape.load.__name__)"
    assert run(code) == "dss load"


def test_a_copy_that_is_not_installed_works(tmp_path):
    shutil.copytree(SOURCE, tmp_path / "dasvit", ignore=shutil.ignore_patterns("__pycache__"))
    code = """
import importlib.metadata as metadata
known = metadata.version
def version(name):
    if name == "dasvit":
        raise metadata.PackageNotFoundError(name)
    return known(name)
metadata.version = version
import dasvit
from dasvit.engine.runs import provenance
print(dasvit.__file__, dasvit.__version__, provenance()["versions"]["dasvit"])
"""
    expected = f"{tmp_path}/dasvit/__init__.py {dasvit.__version__} {dasvit.__version__}"
    assert run(code, tmp_path) == expected


def test_the_version_is_written_once():
    root = Path(__file__).resolve().parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "dasvit.__version__"}
    (line,) = (line for line in (root / "dasvit/__init__.py").read_text().splitlines() if "__version__ =" in line)
    assert ast.literal_eval(line.partition("=")[2].partition("#")[0].strip()) == dasvit.__version__  # needs no import
    assert f"\nversion: {dasvit.__version__}\n" in (root / "CITATION.cff").read_text()


def test_importing_the_package_imports_neither_torch_nor_timm():
    assert run("import sys, dasvit, dasvit.cli; print({'torch', 'timm'} & set(sys.modules))") == "set()"


def modules():
    """Yield each module, and the modules that it imports from, named from the package on."""
    for path in SOURCE.rglob("*.py"):
        place = path.relative_to(SOURCE).with_suffix("").parts
        if place == ("__init__",):
            continue
        needs = []
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level and node.module:
                needs.append(".".join([*place[: len(place) - node.level], node.module]))
        yield ".".join(place).removesuffix(".__init__"), needs


def test_imports_run_downwards_only():
    """No cycle among the modules, imports inside functions included."""
    graph = {module: set(needs) for module, needs in modules()}
    while graph:
        free = {module for module, needs in graph.items() if not needs & set(graph)}
        assert free, f"a cycle among {sorted(graph)}"
        graph = {module: needs for module, needs in graph.items() if module not in free}


MODULES = {"pickle", "dill", "cloudpickle", "shelve", "marshal", "yaml", "tarfile", "zipfile"}
FUNCTIONS = {"eval", "exec", "compile", "__import__"}
METHODS = {"system", "popen", "unpack_archive", "extract_archive", "extractall"}
READERS = {f"{module}.{name}" for module in ("torch", "np", "numpy", "joblib", "yaml") for name in ("load", "save")}
ARGUMENTS = {("shell", True), ("download", True), ("weights_only", False), ("allow_pickle", True)}


def dangers(source):
    """Yield what in a module would run, unpickle, unpack or fetch something."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from {alias.name.partition(".")[0] for alias in names} & MODULES
            case ast.ImportFrom(module=module, names=names):
                yield from {str(module).partition(".")[0], *(alias.name for alias in names)} & (MODULES | METHODS)
                yield from {f"{module}.{alias.name}" for alias in names} & READERS
            case ast.Name(id=name, ctx=ast.Load()) if name in FUNCTIONS:
                yield name
            case ast.Attribute(attr=name) if name in METHODS or ast.unparse(node) in READERS:
                yield ast.unparse(node)
            case ast.keyword(arg=name, value=ast.Constant(value=value)) if (name, value) in ARGUMENTS:
                yield f"{name}={value}"


def test_nothing_is_evaluated_unpickled_unpacked_or_fetched():
    found = {path.name: list(dangers(path.read_text())) for path in SOURCE.rglob("*.py")}
    assert {name: what for name, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "line",
    [
        "eval('1')",
        "import pickle",
        "from pickle import loads",
        "import tarfile as t",
        "from shutil import unpack_archive",
        "torch.load(p)",
        "from torch import load",
        "np.load(p, allow_pickle=True)",
        "f(download=True)",
        "run(c, shell=True)",
        "os.system(c)",
    ],
)
def test_the_search_for_dangers_finds_them(line):
    assert list(dangers(line))
