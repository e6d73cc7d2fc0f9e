"""Right and wrong answers to the exercises of chapter 2."""

RIGHT = {
    "ex-space-attention": (768, 612),
    "ex-space-mirror": 5322,
    "ex-space-vit": '{"format": 1, "inputs": 1, "nodes": [[[0, "skip"]], [[0, "skip"], [1, "msa:4"]], [[2, "mlp:4"]]]}',
    "ex-space-depth": 3,
}
WRONG = {
    "ex-space-attention": (768, 768),  # names counted twice
    "ex-space-mirror": 5586,
    "ex-space-vit": '{"format": 1, "inputs": 1, "nodes": [[[0, "msa:4"]], [[1, "mlp:4"]]]}',
    "ex-space-depth": 0.5,
}
