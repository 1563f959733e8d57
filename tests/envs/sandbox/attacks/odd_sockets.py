"""Sockets of other families, and raw ones: netlink, packet, vsock, the kernel's cryptography, bluetooth."""

for family in [*range(3, 10), *range(11, 46)]:
    for kind in (1, 2, 3, 5):
        refused(f"socket family {family} type {kind}", 41, family, kind, 0)
        refused(f"family {family} with bits above it", 41, family | 1 << 32, kind, 0)
for family in (2, 10):
    for protocol in (1, 255):
        refused(f"a raw socket of family {family}", 41, family, 3, protocol)
