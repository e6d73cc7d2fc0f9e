"""A right and a wrong answer to each exercise of chapter 7."""

RIGHT = {"ch7-ex-adamw": 0.97778, "ch7-ex-images": 6876, "ch7-ex-best": 1.16, "ch7-ex-seeds": 11}
WRONG = {"ch7-ex-adamw": 0.97, "ch7-ex-images": 3438, "ch7-ex-best": 5, "ch7-ex-seeds": 10}
