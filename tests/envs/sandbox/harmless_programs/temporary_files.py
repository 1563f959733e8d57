import os
import tempfile

with tempfile.TemporaryDirectory() as d, tempfile.NamedTemporaryFile(dir=d) as f:
    f.write(b"x" * 10)
    f.flush()
    print(os.path.getsize(f.name))
print(os.path.exists(d))

# > 10
# > False
