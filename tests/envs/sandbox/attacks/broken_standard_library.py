"""Break the modules that our caller still needs, and what it was given."""

# status=ok|nonzero|timeout|signal wall_s=2
import builtins

for name in list(sys.modules):
    if name not in ("sys", "builtins", "__main__", "os", "posix"):
        sys.modules[name].__dict__.clear()
sys.stdout = sys.stderr = sys.excepthook = None
sys.modules.clear()
builtins.__dict__.clear()
