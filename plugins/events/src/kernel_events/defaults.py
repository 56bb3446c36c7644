"""Values that the options show and other modules use. Imports nothing."""

EXCHANGE = "celeryev"
BUFFER = 10_000
"""Events that wait at most; some 10 MB."""
