"""Leave modules named as those of the standard library in our folder: whoever imports there runs them."""

# status=ok|nonzero
code = "import os\nos.write(2, b'ESCAPED: imported by another process')\n"
names = sorted(sys.stdlib_module_names) + ["sitecustomize", "usercustomize", "envs"]
for name in names:
    if name not in ("os", "sys", "builtins"):
        with open(f"{name}.py", "w") as file:
            file.write(code)
try:
    __import__("one_that_is_not_there")  # what the next call imports is its own affair
except ImportError:
    pass
for name in names:
    if name in sys.modules and os.path.exists(f"{name}.py"):
        os.unlink(f"{name}.py")
