"""The DARTS family and its rivals: what each method varies, a row for each, and what their encoders are worth."""
