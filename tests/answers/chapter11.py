"""Right and wrong answers to the exercises of chapter 11."""

RIGHT = {
    "ch11-ex-brown": 6,
    "ch11-ex-luck": 0.63,
    "ch11-ex-shrink": 0.4383,
    "ch11-ex-score": 0.6985,
}
WRONG = {
    "ch11-ex-brown": 5.5,  # half a training
    "ch11-ex-luck": 1.0,
    "ch11-ex-shrink": 0.431,  # by the reliability of one
    "ch11-ex-score": 0.433,  # multiplied by the root
}
