import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from dasvit.autoformer import MAX_DISTANCE, RelativeAttention, RelativePosition, build_autoformer, relative_index

# published picks of TF-TAS: width, heads and MLP ratios layer by layer, parameters in millions with 1000 classes
PICKS = {
    "T": (192, "4333344333433", "3.5 4 3.5 3.5 4 3.5 3.5 3.5 4 4 4 4 3.5", 6.20),
    "S": (384, "66667657555767", "4 4 4 3 4 3 3 3.5 4 3.5 3.5 4 3 3.5", 23.9),
}


@pytest.mark.parametrize("name", PICKS)
def test_published_networks_have_their_size(name):
    dim, heads, ratios, millions = PICKS[name]
    with torch.device("meta"):
        model = build_autoformer(dim, [*map(int, heads)], [*map(float, ratios.split())])
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    assert round(parameters, 2 if name == "T" else 1) == millions


def test_relative_index():
    index = relative_index(16)
    middle = MAX_DISTANCE + 1
    assert index[3, 3] == middle
    assert index[2, 4] == middle + 2
    assert index[4, 2] == middle - 2
    assert index[0, 15] == index[0, 14] == 2 * MAX_DISTANCE + 1  # 15 apart is as far as 14
    assert index.min() == 1


@pytest.mark.parametrize("grid", [1, 3, 17])
def test_by_rows_and_columns_is_the_same_as_gathered(grid):
    short = RelativePosition(grid, 8).double()
    torch.nn.init.normal_(short.tables)
    gathered = RelativePosition(grid, 8, gathered=True).double()
    gathered.load_state_dict(short.state_dict())
    n = 1 + grid * grid
    q, attention = torch.randn(2, 3, n, 8).double(), torch.randn(2, 3, n, n).double().softmax(-1)
    torch.testing.assert_close(short(q, "keys"), gathered(q, "keys"), atol=1e-12, rtol=0)
    torch.testing.assert_close(short(attention, "values"), gathered(attention, "values"), atol=1e-12, rtol=0)
    vectors = gathered.vectors()
    assert (vectors[0] == vectors[0, 0]).all()
    assert (vectors[:, 0] == vectors[0, 0]).all()
    if grid == 3:  # patch (0, 1) sees patch (2, 0) two rows below, one column to the left
        rows, columns = short.tables
        torch.testing.assert_close(vectors[1 + 1, 1 + 6], rows[MAX_DISTANCE + 3] + columns[MAX_DISTANCE])


def test_relative_attention_is_its_formula():
    layer = RelativeAttention(12, num_heads=2, grid=2, head_dim=4).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(1, 5, 12, dtype=torch.double)
    q, k, v = rearrange(layer.qkv(x), "1 n (three h d) -> three h n d", three=3, h=2)
    r_k, r_v = layer.relative_keys.vectors(), layer.relative_values.vectors()
    y = torch.zeros(2, 5, 4, dtype=torch.double)
    for h in range(2):
        for i in range(5):
            logits = torch.stack([q[h, i] @ (k[h, j] + r_k[i, j]) / 2 for j in range(5)])
            attention = logits.softmax(0)
            torch.testing.assert_close(layer.intermediates(x)["attention"][0, h, i], attention)
            y[h, i] = sum(attention[j] * (v[h, j] + r_v[i, j]) for j in range(5))
    torch.testing.assert_close(layer(x)[0], layer.proj(rearrange(y, "h n d -> n (h d)")))


def test_the_mean_of_the_patches_is_classified():
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
