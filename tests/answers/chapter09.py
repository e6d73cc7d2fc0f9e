"""A right and a wrong answer to each exercise of chapter 9."""

RIGHT = {"ch9-ex-product": 197, "ch9-ex-size": 1.5, "ch9-ex-ceiling": 1.9, "ch9-ex-partial": 0.05}
WRONG = {"ch9-ex-product": 576, "ch9-ex-size": 2, "ch9-ex-ceiling": 1.35, "ch9-ex-partial": 0.4}
