"""Right and wrong answers to the exercises of chapter 3."""

RIGHT = {
    "ch3-ex-rows": (-0.2222, -0.1111, 0.3333),
    "ch3-ex-xi": 1 / 6,
    "ch3-ex-forward": (0.5, 0.5),
    "ch3-ex-literal": (32_193, 7_203),
}
WRONG = {
    "ch3-ex-rows": (-1 / 6, 0, 1 / 2),  # with the plain mean
    "ch3-ex-xi": 0.5,
    "ch3-ex-forward": (1 / 3, 2 / 3),  # of the central difference
    "ch3-ex-literal": (32_768, 7_203),
}
