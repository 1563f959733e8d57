import atexit

atexit.register(print, "last")
print("first")

# > first
# > last
