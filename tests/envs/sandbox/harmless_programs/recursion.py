def f(n):
    return n and 1 + f(n - 1)


print(f(900))

# > 900
