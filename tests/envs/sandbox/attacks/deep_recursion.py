"""Recursion to the interpreter's limit, with a traceback as long."""


# status=nonzero
def deeper(n):
    return deeper(n + 1)


deeper(0)
