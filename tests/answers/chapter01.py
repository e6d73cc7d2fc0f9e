"""Right and wrong answers to the exercises of chapter 1."""

RIGHT = {
    "ex-vit-resolution": 86_098_186,
    "ex-vit-shuffle": 0,
    "ex-vit-last-layer": 238_591_488,
    "ex-vit-maps": 1_430_663_000,
}
WRONG = {
    "ex-vit-resolution": 86_097_418,  # without the class token's place
    "ex-vit-shuffle": 359,
    "ex-vit-last-layer": 1_453_954_560,  # the whole layer
    "ex-vit-maps": 119_221_000,  # of one head
}
