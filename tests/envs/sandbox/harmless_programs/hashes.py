import hashlib
import secrets
import uuid

print(hashlib.sha256(b"a").hexdigest()[:8], len(secrets.token_hex(4)), uuid.uuid4().version)

# > ca978112 8 4
