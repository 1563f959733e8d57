"""Change the clock, the names, or the life of the machine."""

refused("settimeofday", 164, (ctypes.c_long * 2)(0, 0), None)
refused("clock_settime", 227, 0, (ctypes.c_long * 2)(0, 0))
refused("adjtimex", 159, ctypes.create_string_buffer(256))
refused("clock_adjtime", 305, 0, ctypes.create_string_buffer(256))
refused("sethostname", 170, b"escaped", 7)
refused("setdomainname", 171, b"escaped", 7)
refused("reboot", 169, 0xFEE1DEAD, 672274793, 0, None)
refused("syslog", 103, 3, None, 0)
refused("acct", 163, b"x")
refused("sync", 162)
refused("syncfs", 306, os.open("/usr", os.O_RDONLY))
