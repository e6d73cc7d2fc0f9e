"""Right and wrong answers to the exercises of chapter 10."""

RIGHT = {
    "ch10-ex-time": 49.7,
    "ch10-ex-seeds": 5.33,
    "ch10-ex-share": (0.129, 0.842),
    "ch10-ex-behind": 18.5,
}
WRONG = {
    "ch10-ex-time": 36.4,  # by the printed figures
    "ch10-ex-seeds": 2.3,  # the root forgotten
    "ch10-ex-share": (7.7, 50.5),  # minutes for hours
    "ch10-ex-behind": 15,
}
