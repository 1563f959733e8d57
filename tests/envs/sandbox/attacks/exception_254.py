"""The same exit code, by the usual way."""

# status=nonzero
sys.exit(254)
