"""Operations that users add go wherever the paper's own go."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import own_operations
import pytest
import timm
import torch

from dasvit import (
    DataSettings,
    Genotype,
    RetrainSettings,
    SearchSettings,
    SearchSpace,
    build,
    load_data,
    retrain,
    search,
)
from dasvit.cli import main
from dasvit.counting import complexity
from dasvit.engine.hardware import Hardware
from dasvit.engine.runs import as_plain, from_plain
from dasvit.fairness import type_weights
from dasvit.operations import KINDS, Kind, register
from dasvit.plan import plan, remedies, survivors
from dasvit.plot import draw_genotype, figure_svg, plot_alpha
from dasvit.relaxation import Supernet
from dasvit.space import Operation

SPACE = SearchSpace(heads=(2,), mlp_ratios=(1.0,), extra=("dwconv:3", "gated:0.5"))
OWN = Genotype.from_json('{"format": 1, "nodes": [[[0, "dwconv:3"], [1, "msa:2"]], [[1, "skip"], [2, "gated:0.5"]]]}')
DIM, SIZES = 12, {"image_size": 8, "patch_size": 2, "in_channels": 1, "num_classes": 10}
QUICK = SearchSettings(
    dim=DIM, space=SPACE, stages=((1, 6, 1), (2, 4, 1)), batch_size=20, hardware=Hardware("cpu", "64-true")
)


@pytest.fixture(scope="module")
def data():
    return load_data(DataSettings(train_images=100, test_images=20), image_size=8)


@pytest.mark.parametrize("text", ["none", "skip", "msa:4", "mlp:0.5", "mlp:2", "dwconv:3", "dwconv:5", "gated:0.5"])
def test_parameters_and_products_are_those_of_the_module(text):
    operation = Operation.parse(text)
    assert str(operation) == text
    assert operation.spec.count(16, operation.size) == sum(
        p.numel() for p in operation.spec.make(16, operation.size).parameters()
    )
    around = Genotype.from_json('{"format": 1, "nodes": [[[0, "skip"]]]}')
    nodes = (((0, operation),),)
    one, other = (complexity(build(g, depth=1, dim=16, **SIZES), 8).macs for g in (Genotype(nodes), around))
    assert one - other == (operation.spec.macs(17, 16, operation.size) if operation.spec.macs else 0)


def test_a_search_finds_and_prunes_them(data):
    result = search(QUICK, data)
    assert result.genotype in SPACE
    assert {"dwconv:3", "gated:0.5"} <= set(result.history[0]["alpha"]["0-2"])
    assert plot_alpha(result.history)


@pytest.mark.parametrize("edges", [("0-2", "1-2"), ("0-2", "1-2", "0-3")])
def test_alpha_has_a_legend_whatever_the_number_of_edges(edges):
    row = {"stage": 0, "alpha": {edge: {"skip": 0.1, "msa:2": 0.2} for edge in edges}}
    figure = plot_alpha([row, row])
    (legend,) = [*figure.legends, *(axes.legend_ for axes in figure.axes if axes.legend_)]
    assert [text.get_text() for text in legend.get_texts()] == ["skip", "msa:2"]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("keep_ratio", [1.0, 0.5])
def test_one_hot_weights_are_the_derived_network(recompute, keep_ratio):
    """Also with the class token alone in the last layer, and where tokens would be selected: all are needed."""
    how = {"recompute": recompute, "keep_ratio": keep_ratio, "class_token_last": True}
    net = Supernet(SPACE, depth=2, dim=DIM, **how, **SIZES).double()
    weights = torch.zeros(5, 6, dtype=torch.float64)
    for edge, operation in OWN.edges:
        weights[SPACE.edges.index(edge), SPACE.operations.index(operation)] = 1
    images = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    derived = net.extract(OWN)
    torch.testing.assert_close(net(images, weights), derived(images), atol=1e-12, rtol=1e-12)
    short = build(OWN, depth=2, dim=DIM, class_token_last=True, **SIZES).double()
    short.load_state_dict(derived.state_dict())
    torch.testing.assert_close(short(images), derived(images), atol=1e-12, rtol=1e-12)


def test_tokens_are_selected_again_where_none_needs_the_grid():
    free = tuple(tuple(op for op in SPACE.operations if op.kind != "dwconv") for _ in SPACE.edges)
    nets = [Supernet(SPACE, candidates=c, depth=1, dim=DIM, keep_ratio=0.5, **SIZES) for c in (None, free)]
    tokens = [len(net.token_selection(torch.randn(1, 17, DIM))[0]) for net in nets]
    assert tokens == [17, 9]


def test_they_are_retrained_counted_planned_and_drawn(data):
    settings = RetrainSettings(
        genotype=OWN.to_json(), dim=DIM, depth=2, epochs=2, warmup_epochs=1, batch_size=20, hardware=Hardware("cpu")
    )
    assert retrain(settings, data).history[-1]["train_loss"] < 3
    assert [p.operations for p in plan(replace(QUICK, hardware=Hardware("cpu")), choice="heaviest", channels=1)] == [
        6,
        4,
    ]
    assert KINDS["dwconv"].colour in figure_svg(draw_genotype(OWN))
    weights = type_weights(torch.full((5, 6), 1 / 6), (SPACE.operations,) * 5)
    assert {name: round(float(w), 4) for name, w in weights.items()} == {"msa": 0.1667, "mlp": 0.3333, "dwconv": 0.1667}


@pytest.mark.usefixtures("_unchecked")
def test_timm_takes_them_on_images_that_are_not_square():
    model = timm.create_model(
        "dasvit_base_patch16_224", genotype=OWN.to_json(), img_size=(8, 12), patch_size=2, embed_dim=DIM, depth=1
    ).eval()
    assert model(torch.randn(2, 3, 8, 12)).shape == (2, 1000)
    assert model(torch.randn(2, 3, 10, 6)).shape == (2, 1000)


@pytest.mark.usefixtures("_unchecked")
def test_onnx_computes_the_same(tmp_path):
    import onnxruntime

    model = build(OWN, depth=2, dim=DIM, **SIZES).eval()
    images, path = torch.randn(2, 1, 8, 8), tmp_path / "own.onnx"
    torch.onnx.export(model, (images,), path, dynamo=True, input_names=["images"], verbose=False)
    (got,) = onnxruntime.InferenceSession(path).run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), model(images), atol=1e-5, rtol=1e-4)


def test_an_unknown_operation_says_how_to_add_it():
    text = OWN.to_json().replace("dwconv:3", "pool:2")
    with pytest.raises(
        ValueError,
        match=r"unknown operation 'pool:2'; known: none, skip, .* dasvit.operations.register .* DASVIT_OPERATIONS",
    ):
        Genotype.from_json(text)
    for wrong in ("dwconv", "dwconv:2", "dwconv:x", "skip:1", "gated:"):
        with pytest.raises(ValueError, match=f"unknown operation '{wrong}'"):
            Operation.parse(wrong)
    with pytest.raises(ValueError, match="unknown operation 'dwconv:4'"):
        SearchSpace(extra=("dwconv:4",))


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="there is an operation 'dwconv' already"):
        register(KINDS["dwconv"])
    for name in ("a:b", "norm", "module", "half", "train"):
        with pytest.raises(ValueError, match=f"'{name}' cannot name an operation"):
            register(replace(KINDS["dwconv"], name=name))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"module": None}, "needs a module or a scale"),
        ({"scale": 1}, "needs a module or a scale"),
        ({"module": None, "scale": 0}, "there is a zero operation already"),
        ({"few": "each"}, "cannot transform each token by itself and need the grid"),
    ],
)
def test_what_does_not_go_together_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        register(replace(KINDS["dwconv"], name="other", **change))
    assert "other" not in KINDS


class Noisy(torch.nn.Module):
    """What draws numbers, counts its calls and has a weight that is not trained."""

    def __init__(self, dim, _size):
        super().__init__()
        self.inner, self.drop = torch.nn.Linear(dim, dim), torch.nn.Dropout(0.5)
        self.still = torch.nn.Parameter(torch.eye(dim), requires_grad=False)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        self.calls += 1
        return self.drop(self.inner(x @ self.still))


@pytest.fixture
def noisy(monkeypatch):
    monkeypatch.setitem(KINDS, "noisy", Kind("noisy", Noisy))
    return SearchSpace(heads=(2,), mlp_ratios=(1.0,), extra=("noisy",))


def test_parameters_are_counted_where_no_formula_is_given(noisy):
    operation = noisy.operations[-1]
    assert operation.spec.count(DIM, None) == 2 * DIM + DIM * (DIM + 1) + DIM * DIM


def test_recomputing_leaves_alone_what_has_no_lean_form(noisy):
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        net = Supernet(noisy, depth=1, dim=DIM, recompute=recompute, **SIZES).double()
        torch.manual_seed(1)
        net(torch.ones(2, 1, 8, 8, dtype=torch.float64)).square().sum().backward()
        calls = net.get_submodule("layers.0.edges.0-2.operations.noisy.noisy").calls
        found.append((net.pos_embed.grad, int(calls)))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-12, rtol=1e-12)
    assert found[0][1] == found[1][1] == 1


@pytest.mark.parametrize("order", [1, 2])
def test_a_run_with_buffers_and_still_weights_goes_on(noisy, data, tmp_path, order):
    settings = replace(QUICK, space=noisy, stages=((1, 5, 1), (1, 4, 1)), order=order)
    first = search(settings, data, tmp_path / "run")
    again = search(settings, data, tmp_path / "run", resume=True)
    assert again.genotype == first.genotype
    last = again.supernet.state_dict()
    assert all(torch.equal(value, last[name]) for name, value in first.supernet.state_dict().items())


def test_what_has_no_lean_form_is_among_the_heaviest():
    kept = survivors(SPACE, 3, "heaviest")[0]
    assert {op.kind for op in kept} == {"dwconv", "gated", "msa"}
    settings = replace(QUICK, keep_ratio=0.5)
    assert not any("--keep-ratio" in flags for flags, _ in remedies(settings))


def test_a_command_imports_the_modules_that_are_named(monkeypatch, capsys):
    monkeypatch.setenv("DASVIT_OPERATIONS", "own_operations")
    with pytest.raises(SystemExit) as ended:
        main(["complexity", OWN.to_json(), "--dim", "24"])
    assert ended.value.code == 0
    monkeypatch.setenv("DASVIT_OPERATIONS", "no_such_module")
    with pytest.raises(SystemExit) as ended:
        main(["draw", OWN.to_json(), "-o", "x.svg"])
    assert ended.value.code == 2
    assert "DASVIT_OPERATIONS names 'no_such_module', which cannot be imported" in capsys.readouterr().err


def test_a_space_with_them_comes_back_from_its_settings():
    plain = json.loads(json.dumps(as_plain(QUICK)))
    assert from_plain(SearchSettings, plain) == QUICK


def test_processes_know_what_a_script_has_registered(tmp_path):
    """The operations and the space are a script's own: no process can import them."""
    script = tmp_path / "script.py"
    script.write_text(
        Path(own_operations.__file__).read_text()
        + """
if __name__ == "__main__":
    from dasvit import DataSettings, RetrainSettings, SearchSpace
    from dasvit.landscape import LandscapeSettings, train
    from dasvit.training_free import SPACES, DasvitSpace, TFSearchSettings, tf_search

    space = SearchSpace(heads=(2,), mlp_ratios=(1.0,), extra=("dwconv:3", "gated:0.5"))
    SPACES["own"] = DasvitSpace(space, dim=12, depth=1)
    sizes = {"image_size": 8, "patch_size": 2, "in_channels": 1, "num_classes": 3}
    scoring = TFSearchSettings("own", samples=4, indicators=("params", "snip"), **sizes)
    recipe = RetrainSettings(
        data=DataSettings(train_images=120, test_images=40), batch_size=20, dim=12, depth=1, epochs=1, warmup_epochs=0,
        val_share=0.5
    )
    settings = LandscapeSettings(recipe, space, networks=3, trainings=1)
    one, two = (tf_search(scoring, jobs=jobs).rows for jobs in (1, 2))
    assert one == two and not any("errors" in row for row in one), (one, two)
    one, two = ([row["test_correct"] for row in train(settings, jobs=jobs)] for jobs in (1, 2))
    assert one == two and len(one) == 3, (one, two)
    print("the same")
"""
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.stdout == "the same\n", done.stderr
