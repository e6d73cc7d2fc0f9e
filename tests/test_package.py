import ast
import subprocess
import sys
from pathlib import Path

import dasvit

SOURCE = Path(dasvit.__file__).parent


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_every_name_is_there_and_known_to_type_checkers():
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in block.body for alias in node.names}
    assert typed == dasvit._MODULE
    for name, module in typed.items():
        assert getattr(dasvit, name).__module__ == f"dasvit.{module}"
    assert set(dir(dasvit)) == set(dasvit.__all__)


def test_functions_win_over_modules_of_their_name():
    code = "import dasvit.retrain, dasvit; print(callable(dasvit.retrain), callable(dasvit.search))"
    assert run(code) == "True True"


def test_the_subpackage_is_there_at_once():
    assert run("import dasvit; print(dasvit.training_free.dss.__name__)") == "dss"


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


def test_nothing_is_pickled_or_evaluated():
    banned = {"pickle", "eval", "exec", "argparse", "dill", "cloudpickle", "shelve", "marshal"}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = {node.id} if isinstance(node, ast.Name) else set()
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = {node.module.partition(".")[0]}
            assert not names & banned, f"{path.name} uses {names & banned}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in {("torch", "load"), ("torch", "save")}, path.name
