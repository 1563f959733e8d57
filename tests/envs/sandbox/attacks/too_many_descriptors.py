"""Open until nothing can be opened any more, and end so."""

# status=ok
kept = []
try:
    while True:
        kept.append(os.dup(0))
except OSError:
    pass
if len(kept) > 260:
    escaped(f"{len(kept)} descriptors")
