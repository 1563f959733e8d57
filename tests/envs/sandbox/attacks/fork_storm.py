"""Every process makes two and ends: there is always a new one that nobody has killed yet."""

# procs=32 wall_s=1 status=timeout|signal|nonzero|ok
while True:
    try:
        os.fork()
    except OSError:
        pass
