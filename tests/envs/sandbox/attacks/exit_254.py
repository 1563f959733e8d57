"""End with an exit code that means something to the sandbox itself: a failure is not the world's."""

# status=nonzero
os._exit(254)
