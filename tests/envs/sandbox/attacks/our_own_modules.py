"""Import the library, whose environments know their answers, or find what we were forked from."""

import gc
import types

for name in ("envs", "envs.sandbox", "rewards", "rollout", "rl", "recipes", "scripts", "tests"):
    forbidden(f"import {name}", __import__, name)
ours = [name for name in sys.modules if name.split(".")[0] in ("envs", "rewards", "rollout", "rl", "recipes")]
if ours:
    escaped(f"loaded: {ours}")
frame, seen = sys._getframe(), []
while frame is not None:
    seen.append(frame)
    frame = frame.f_back
for thing in [*gc.get_objects(), *(value for frame in seen for value in frame.f_locals.values())]:
    if isinstance(thing, types.ModuleType) and thing.__name__.split(".")[0] in (
        "rewards",
        "rollout",
        "rl",
        "torch",
        "ray",
    ):
        escaped(f"the module {thing.__name__}")
    if type(thing).__name__ == "socket":
        try:
            thing.send(b'{"op": "done", "status": 0}')
            escaped("a socket of the launcher")
        except OSError:
            pass
