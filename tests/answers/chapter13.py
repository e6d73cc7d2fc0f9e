"""Right and wrong answers to the exercises of chapter 13."""

RIGHT = {"ch13-ex-best": 80, "ch13-ex-needed": 66, "ch13-ex-part": 0}
WRONG = {
    "ch13-ex-best": 75,  # of three
    "ch13-ex-needed": 10,
    "ch13-ex-part": 0.5,
}
