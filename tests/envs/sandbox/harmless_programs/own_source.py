import inspect


def f():
    return 1  # one


print(inspect.getsource(f))

# > def f():
# >     return 1  # one
# >
