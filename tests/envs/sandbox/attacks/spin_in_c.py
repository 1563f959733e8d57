"""Compute for ever in one call of C, which no exception can interrupt."""

# wall_s=0.5 status=timeout
import re

re.match(r"(a+)+$", "a" * 60 + "b")
