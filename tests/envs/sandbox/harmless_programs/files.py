from pathlib import Path

Path("a/b").mkdir(parents=True)
Path("a/b/c.txt").write_text("x" * 5)
Path("a/b/c.txt").rename("a/d.txt")
print(sorted(map(str, Path(".").rglob("*"))), Path("a/d.txt").stat().st_size)

# > ['a', 'a/b', 'a/d.txt'] 5
