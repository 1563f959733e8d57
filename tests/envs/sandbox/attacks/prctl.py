"""Get privileges back, or look as if we had some."""

if call(157, 39, 0, 0, 0, 0) != 1:
    escaped("no_new_privs is not set")
if call(157, 21, 0, 0, 0, 0) != 2:
    escaped("no seccomp filter is there")
for capability in range(41):
    # The one of 2 is said in boxes.py; an ordinary user's landlock cannot drop what it never has.
    if call(157, 23, capability, 0, 0, 0) == 1 and capability != 2 and "@UID@" == "0":
        escaped(f"capability {capability} can be had")
    if call(157, 47, 2, capability, 0, 0) == 0 and capability != 2:
        escaped(f"ambient capability {capability}")
found = (ctypes.c_uint32 * 6)()
call(125, (ctypes.c_uint32 * 2)(0x20080522, 0), found)
if any(word & ~4 for word in found):
    escaped(f"capabilities {list(found)}")
refused("set the memory map", 157, 35, 1, 0, 0, 0)
refused("keep capabilities", 157, 28, 0xFF, 0, 0, 0)
if call(157, 38, 0, 0, 0, 0) == 0:
    escaped("no_new_privs taken back")
if call(157, 22, 0, 0, 0, 0) == 0:
    escaped("seccomp taken back")
refused("hide from the monitor", 157, 4, 0, 0, 0, 0)
