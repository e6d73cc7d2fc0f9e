"""A right and a wrong answer to each exercise of chapter 4."""

RIGHT = {"ex-tokens-break-even": 2, "ex-tokens-class": 0.25, "ex-tokens-all": 3.4, "ex-tokens-maps": 61 / 196}
WRONG = {"ex-tokens-break-even": 1, "ex-tokens-class": 0.5, "ex-tokens-all": 4, "ex-tokens-maps": 62 / 197}
