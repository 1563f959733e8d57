import traceback

try:
    [][1]
except IndexError:
    print(traceback.format_exc().splitlines()[-1], "[][1]" in traceback.format_exc())

# > IndexError: list index out of range True
