"""Shapes and types of every call into dasvit are checked at run time, except in long tests, which would take longer."""

from jaxtyping import install_import_hook

install_import_hook("dasvit", "typechecker.check")

import jaxtyping  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from dasvit.data.sources import DataSettings, load_data  # noqa: E402

torch.set_num_threads(1)  # the tests run two at a time on two cores


@pytest.hookimpl(tryfirst=True)  # before the fixtures of the test, which may be a module's
def pytest_runtest_setup(item):
    """Leave the checks out of long tests, where they take a quarter of the time; quick ones call the same functions."""
    jaxtyping.config.update("jaxtyping_disable", item.get_closest_marker("long") is not None)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def _unchecked():
    """Leave the checks out: what traces a network hands on sizes that are no numbers, or cannot look into a check."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def digits():
    return load_data(DataSettings(), image_size=8)


@pytest.fixture(scope="session")
def few_digits():
    return load_data(DataSettings(train_images=200, test_images=50), image_size=8)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """Return what each command of :mod:`victim` comes to when nothing happens to it."""
    from victim import COMMANDS, finish, left

    folder = tmp_path_factory.mktemp("undisturbed")
    for command, arguments in COMMANDS.items():
        assert finish(arguments, folder / command, folder / "log") == 0, (folder / "log").read_text()
    return {command: left(folder / command) for command in COMMANDS}
