"""A right and a wrong answer to each exercise of chapter 5."""

RIGHT = {"ch5-ex-pull": 0.5, "ch5-ex-sigmoid": 0.032, "ch5-ex-limits": 0.2, "ch5-ex-half": 0.528}
WRONG = {"ch5-ex-pull": 1, "ch5-ex-sigmoid": 0.16, "ch5-ex-limits": 0.1, "ch5-ex-half": 0.914}
