"""A right and a wrong answer to each exercise of chapter 8."""

RIGHT = {"ch8-ex-tokens": 1536, "ch8-ex-classes": [29, 61], "ch8-ex-swap": 5.04, "ch8-ex-larger": 4.8}
WRONG = {"ch8-ex-tokens": 768, "ch8-ex-classes": (28, 61), "ch8-ex-swap": 9.9, "ch8-ex-larger": 4}
