"""Recursion in C until the stack is full."""

# status=signal|oom|nonzero
sys.setrecursionlimit(10**7)


def deeper(n):
    return [deeper(n + 1)]


deeper(0)
