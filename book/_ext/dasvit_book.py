"""Sphinx side of the book: local MathJax, a cache keyed on the package, a policy, links to other projects."""

from __future__ import annotations

import functools
import importlib
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar

import api_index
import claims
import torch
from accessible import mend
from bookcache import cache_path, fingerprint
from docutils import nodes
from docutils.statemachine import StringList
from evidence import numbers
from explorer import write
from launch import add_links
from policy import protect
from presets_table import table
from recorded import ROOT, page, results
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

from dasvit.engine.provenance import CODE

TORCH = "https://docs.pytorch.org/docs/stable/"
PYTHON = "https://docs.python.org/3/library/"
SHAPES = "https://docs.kidger.site/jaxtyping/api/array/"
HUB = "https://huggingface.co/docs/huggingface_hub/package_reference/"
NUMPY = "https://numpy.org/doc/stable/reference/"
# What signatures and docstrings name outside this project. Sphinx would fetch an inventory for each
# site; the book is built offline, so the few addresses stand here.
LINKS = {
    "torch.Tensor": TORCH + "tensors.html#torch.Tensor",
    "torch.device": TORCH + "tensor_attributes.html#torch.device",
    "torch.dtype": TORCH + "tensor_attributes.html#torch.dtype",
    "torch.Generator": TORCH + "generated/torch.Generator.html",
    "torch.optim.Optimizer": TORCH + "optim.html#torch.optim.Optimizer",
    "torch.optim.AdamW": TORCH + "generated/torch.optim.AdamW.html",
    "torch.optim.lr_scheduler.LambdaLR": TORCH + "generated/torch.optim.lr_scheduler.LambdaLR.html",
    "torch.optim.lr_scheduler.LRScheduler": TORCH + "generated/torch.optim.lr_scheduler.LRScheduler.html",
    "torch.utils._python_dispatch.TorchDispatchMode": TORCH + "notes/extending.html",
    "numpy.ndarray": NUMPY + "generated/numpy.ndarray.html",
    "numpy.typing.ArrayLike": NUMPY + "typing.html#numpy.typing.ArrayLike",
    "numpy.random.Generator": NUMPY + "random/generator.html",
    "matplotlib.axes.Axes": "https://matplotlib.org/stable/api/axes_api.html",
    "matplotlib.figure.Figure": "https://matplotlib.org/stable/api/figure_api.html",
    "huggingface_hub.hub_mixin.PyTorchModelHubMixin": HUB + "mixins#huggingface_hub.PyTorchModelHubMixin",
    "lightning_fabric.Fabric": "https://lightning.ai/docs/fabric/stable/api/fabric_methods.html",
    "timm.utils.model_ema.ModelEmaV3": "https://github.com/huggingface/pytorch-image-models",
    "pathlib.Path": PYTHON + "pathlib.html#pathlib.Path",
    "random.Random": PYTHON + "random.html#random.Random",
    "dasvit.engine.flags.T": PYTHON + "typing.html#typing.TypeVar",
    "dasvit.engine.spread.Piece": PYTHON + "typing.html#typing.TypeVar",
    "dasvit.engine.spread.Made": PYTHON + "typing.html#typing.TypeVar",
    "dasvit.operations.Piece": PYTHON + "typing.html#typing.TypeVar",
    "dasvit.operations.Made": PYTHON + "typing.html#typing.TypeVar",
    "syne_tune.blackbox_repository.blackbox_tabular.BlackboxTabular": "https://syne-tune.readthedocs.io",
    "dasvit.training_free.statistics.Key": PYTHON + "typing.html#typing.TypeVar",
    "contextlib.AbstractContextManager": PYTHON + "contextlib.html#contextlib.AbstractContextManager",
    "PIL.Image.Image": "https://pillow.readthedocs.io/en/stable/reference/Image.html#PIL.Image.Image",
    "collections.OrderedDict": PYTHON + "collections.html#collections.OrderedDict",
    "collections.abc.Callable": PYTHON + "collections.abc.html#collections.abc.Callable",
    "collections.abc.Iterable": PYTHON + "collections.abc.html#collections.abc.Iterable",
    "collections.abc.Iterator": PYTHON + "collections.abc.html#collections.abc.Iterator",
    "collections.abc.Mapping": PYTHON + "collections.abc.html#collections.abc.Mapping",
    "collections.abc.MutableMapping": PYTHON + "collections.abc.html#collections.abc.MutableMapping",
    "collections.abc.Sequence": PYTHON + "collections.abc.html#collections.abc.Sequence",
}
# Where a class reports another module than the one its documentation uses.
ALIASES = {
    "torch._C.Generator": "torch.Generator",
    "torch.optim.optimizer.Optimizer": "torch.optim.Optimizer",
    "lightning_fabric.fabric.Fabric": "lightning_fabric.Fabric",
}
# A class's own signature names things as its module imported them.
ALIASES |= {name.rpartition(".")[2]: name for name in LINKS}


def _configure(app, config):
    if config.nb_execution_mode == "cache":
        config.nb_execution_cache_path = str(cache_path())
    config.dasvit_fingerprint = fingerprint()


def _copy_mathjax(app, exc):
    if exc is None and app.builder.format == "html":
        # the package's directory has a hyphen: no import statement can name it
        package = Path(importlib.import_module("sphinx-mathjax-offline").__file__).parent
        out = Path(app.outdir, "_static", "mathjax")
        out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(package / "static/mathjax/tex-svg-full.js", out / "tex-svg-full.js")


def _explore(app, exc):
    if exc is None and app.builder.name == "html":
        write(Path(app.outdir, "_static"))


def _single(app, exc):
    """Put the single page of the book where its addresses are right: Sphinx writes them as from the root."""
    if exc is None and app.builder.name == "singlehtml":
        page = Path(app.outdir, "book", "intro.html")
        text = page.read_text(encoding="utf-8").replace('href="book/intro.html#', 'href="#')
        Path(app.outdir, "index.html").write_text(text, encoding="utf-8")
        page.unlink()


def _protect(app, exc):
    if exc is None and app.builder.format == "html":
        for template in Path(app.outdir, "_static").glob("*.html"):  # of the theme; no pages
            template.unlink()
        for sources in Path(app.outdir, "_static").rglob("*.map"):  # of the theme's scripts and styles; 3 MB
            sources.unlink()
        mend(Path(app.outdir))
        protect(Path(app.outdir))


def _address(target):
    if target.startswith("jaxtyping.") or target in {"Bool", "Float", "Int"}:  # as a class names them itself
        return SHAPES
    layer = re.fullmatch(r"(?:torch\.)?nn\.(?:\w+\.)*([A-Z]\w*)", target)
    if layer and hasattr(torch.nn, layer[1]):
        return f"{TORCH}generated/torch.nn.{layer[1]}.html"
    return LINKS.get(ALIASES.get(target, target))


def _link_elsewhere(app, env, node, contnode):
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    if target.startswith("'"):  # the shape in Float[Tensor, 'b n d']: no name, hence no link
        return contnode
    if url := _address(target):
        return nodes.reference("", "", contnode, internal=False, refuri=url)
    # Autodoc leaves a class's type aliases unresolved: find them among what this project documents.
    found = env.get_domain("py").find_obj(env, None, None, target, "obj", 1)
    if len(found) != 1:
        return None
    name, entry = found[0]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, name)


def _number_as_the_paper(app, env):
    """An equation labelled ``eq-5`` is the paper's (5); all others count by chapter, (3.1), (3.2), …"""
    for figures in env.toc_fignumbers.values():
        equations, own = figures.get("displaymath", {}), 0
        for label, (*chapter, _) in equations.items():
            if paper := re.fullmatch(r"equation-eq-(\d+)", label):
                equations[label] = (int(paper[1]),)
            else:
                own += 1
                equations[label] = (*chapter, own)


def _on_one_page_as_on_many(app):
    """Write what extensions have taught the pages of a book on its single page too, which they forget."""
    known = app.registry.translation_handlers
    known["singlehtml"] = known.get("html", {}) | known.get("singlehtml", {})


def _own_sources_only(app, env):
    """Leave out of the sources' index what Sphinx found no source of, or it would link to pages that are not there."""
    modules = getattr(env, "_viewcode_modules", {})
    for name in [name for name, entry in modules.items() if not entry]:
        del modules[name]


class Generated(SphinxDirective):
    """Markdown that is made when the book is built, and again when what it is made of has changed."""

    optional_arguments = 1
    classes: ClassVar[list[str]] = []

    def run(self):
        for path in self.sources():
            self.env.note_dependency(str(path))
        found = nodes.container(classes=self.classes)
        lines = StringList(self.lines(*self.arguments), source=self.name)
        self.state.nested_parse(lines, self.content_offset, found)
        return [found]


def _number(name, rawtext, text, lineno, inliner, options=None, content=None):
    """A number by its name in :mod:`evidence`, so that no page types it."""
    env = inliner.document.settings.env
    for path in results():
        env.note_dependency(str(path))
    return [nodes.Text(str(_known()[text]))], []


def generated(lines: Callable[..., list[str]], sources: Callable[[], Iterable[Path]], *classes: str):
    """Return a directive of the lines that a function makes of its argument."""
    content = {"lines": staticmethod(lines), "sources": staticmethod(sources), "classes": list(classes)}
    return type("Directive", (Generated,), content)


def _code():
    return [path for pattern in CODE for path in ROOT.glob(pattern)]


DIRECTIVES = {
    "recorded-results": generated(page, lambda: [*results(), *_code()], "recorded"),
    "claims": generated(claims.lines_of, lambda: [ROOT / "book" / "claims.yml", *results()], "recorded"),
    "presets-table": generated(table, _code, "full-width"),
    "api": generated(api_index.lines_of, lambda: [*_code(), *(ROOT / "book").glob("api_*.md")]),
}


@functools.cache
def _known():
    return numbers()


def _keep_colons(self):
    """Napoleon takes what precedes a colon in an attribute's docstring for its type; here it is prose."""
    return "", self._dedent(self._consume_to_end())


def setup(app):
    GoogleDocstring._consume_inline_attribute = _keep_colons
    for name, directive in DIRECTIVES.items():
        app.add_directive(name, directive)
    app.add_role("number", _number)
    app.add_config_value("dasvit_fingerprint", "", "env")
    app.connect("config-inited", _configure, priority=100)
    app.connect("builder-inited", _on_one_page_as_on_many)
    app.connect("env-check-consistency", _number_as_the_paper)
    app.connect("env-check-consistency", _own_sources_only)
    app.connect("missing-reference", _link_elsewhere)
    app.connect("html-page-context", add_links)
    app.connect("build-finished", _copy_mathjax)
    app.connect("build-finished", _explore)
    app.connect("build-finished", _single)
    app.connect("build-finished", _protect)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
