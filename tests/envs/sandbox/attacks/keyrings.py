"""Leave a word in a keyring for the next one who runs here."""

refused("add_key", 248, b"user", b"escaped", b"secret", 6, -4)
refused("request_key", 249, b"user", b"escaped", None, 0)
refused("keyctl", 250, 0, -4, 1, 0, 0)
