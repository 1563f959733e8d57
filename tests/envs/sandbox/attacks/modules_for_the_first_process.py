"""Leave modules named as those of the standard library in our folder: whoever imports there runs them."""

# status=ok|nonzero
code = "import os\nos.write(2, b'ESCAPED: imported by another process')\n"
names = sorted(sys.stdlib_module_names) + ["sitecustomize", "usercustomize", "envs"]
for name in names:
    if name not in ("os", "sys", "builtins"):
        with open(f"{name}.py", "w") as file:
            file.write(code)
# The next call starts the same interpreter afresh: its own imports are its own affair, so only ours must be gone.
for name in names:
    os.unlink(f"{name}.py") if os.path.exists(f"{name}.py") and name in sys.modules else None
