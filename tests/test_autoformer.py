import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from dasvit.autoformer import MAX_DISTANCE, RelativeAttention, build_autoformer, relative_index, token_slots

# published picks of TF-TAS: width, heads and MLP ratios layer by layer, parameters in millions with 1000 classes
PICKS = {
    "T": (192, "4333344333433", "3.5 4 3.5 3.5 4 3.5 3.5 3.5 4 4 4 4 3.5", 6.20),
    "S": (384, "66667657555767", "4 4 4 3 4 3 3 3.5 4 3.5 3.5 4 3 3.5", 23.9),
}


@pytest.mark.parametrize("name", PICKS)
def test_published_networks_have_their_size(name):  # ledger A26
    dim, heads, ratios, millions = PICKS[name]
    with torch.device("meta"):
        model = build_autoformer(dim, [*map(int, heads)], [*map(float, ratios.split())])
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    assert round(parameters, 2 if name == "T" else 1) == millions


def test_relative_index():
    slots = token_slots(16)
    rows, columns = relative_index(slots, 16).unbind(1)
    token = 1 + 16 * 2 + 3  # row 2, column 3
    middle = MAX_DISTANCE + 1
    assert slots[token].tolist() == [2, 3]
    assert (rows[token, 2], rows[token, 4], columns[token, 0]) == (middle, middle + 2, middle - 3)
    assert (rows[0] == 0).all()
    assert (rows[:, 16] == 0).all()
    assert columns[1, 15] == columns[1, 14] == 2 * MAX_DISTANCE + 1  # 15 apart is as far as 14
    assert rows[1:, :16].min() == 1


def make(grid, gathered=False, heads=2):
    layer = RelativeAttention(12, heads, grid, head_dim=4, gathered=gathered).double()
    torch.manual_seed(1)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


def test_relative_attention_is_its_formula():
    layer, grid = make(2), 2
    x = torch.randn(1, 5, 12, dtype=torch.double)
    q, k, v = rearrange(layer.qkv(x), "1 n (three h d) -> three h n d", three=3, h=2)

    def vector(tables, i, j):
        if i == 0 or j == 0:
            return tables[0, 0] + tables[1, 0]
        (r, c), (r_, c_) = divmod(i - 1, grid), divmod(j - 1, grid)
        return tables[0, r_ - r + MAX_DISTANCE + 1] + tables[1, c_ - c + MAX_DISTANCE + 1]

    y = torch.zeros(2, 5, 4, dtype=torch.double)
    for h in range(2):
        for i in range(5):
            keys = [k[h, j] + vector(layer.relative_keys.tables, i, j) for j in range(5)]
            attention = torch.stack([q[h, i] @ key / 2 for key in keys]).softmax(0)
            torch.testing.assert_close(layer.intermediates(x)["attention"][0, h, i], attention)
            y[h, i] = sum(attention[j] * (v[h, j] + vector(layer.relative_values.tables, i, j)) for j in range(5))
    torch.testing.assert_close(layer(x)[0], layer.proj(rearrange(y, "h n d -> n (h d)")))


@pytest.mark.parametrize("grid", [1, 3, 17])
def test_as_one_attention_it_is_the_same_as_gathered(grid):
    short, gathered = make(grid), make(grid, gathered=True)
    x = torch.randn(2, 1 + grid * grid, 12, dtype=torch.double)
    torch.testing.assert_close(short(x), gathered(x), atol=1e-11, rtol=0)
    gradients = [torch.autograd.grad(layer(x).square().sum(), list(layer.parameters())) for layer in (short, gathered)]
    torch.testing.assert_close(*gradients, atol=1e-8, rtol=1e-9)


def test_the_mean_of_the_patches_is_classified():  # ledger A29
    model = build_autoformer(24, [1, 2], [2, 3.5], image_size=8, patch_size=2, num_classes=5, relative_position=False)
    images = torch.randn(2, 3, 8, 8)
    features = model.forward_features(images)
    torch.testing.assert_close(model(images), F.linear(features[:, 1:].mean(1), model.head.weight, model.head.bias))
    assert model.layers[1].attn.qkv.weight.shape == (3 * 2 * 64, 24)
    assert model.layers[1].mlp.fc1.weight.shape == (84, 24)
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-5}


def test_layers_must_agree():
    with pytest.raises(ValueError, match="2 layers by their heads, 3 by their MLP ratios"):
        build_autoformer(24, [1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="patch_size 3 does not divide image_size 8"):
        build_autoformer(24, [1], [1], image_size=8, patch_size=3)


@pytest.mark.parametrize("gathered", [False, True])
def test_the_first_tokens_alone(gathered):
    layer, x = make(3, gathered), torch.randn(2, 10, 12, dtype=torch.double)
    torch.testing.assert_close(layer(x, 1), layer(x)[:, :1], atol=1e-12, rtol=0)
