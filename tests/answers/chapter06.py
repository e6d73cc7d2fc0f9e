"""A right and a wrong answer to each exercise of chapter 6."""

RIGHT = {"ch6-ex-stage": 10, "ch6-ex-carry": 0.075, "ch6-ex-chance": 15.625, "ch6-ex-cosine": 0.25}
WRONG = {"ch6-ex-stage": 12, "ch6-ex-carry": 0.2, "ch6-ex-chance": 12.5, "ch6-ex-cosine": 0.75}
