"""Open files of the whole disk by their number (what let containers out in 2014)."""

handle = (ctypes.c_uint32 * 8)(8, 1, 2, 0)
for path in (b"/", b"/usr", b"/tmp", sys.prefix.encode()):
    refused("name_to_handle_at", 303, -100, path, handle, ctypes.create_string_buffer(8), 0)
    descriptor = os.open(path, os.O_PATH)
    refused("open_by_handle_at", 304, descriptor, handle, 0)
