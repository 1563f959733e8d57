"""Close our outputs, and write to them."""

# status=ok|nonzero
print("before", flush=True)
for descriptor in (0, 1, 2):
    os.close(descriptor)
print("after")
