import ctypes
import ctypes.util

m = ctypes.CDLL("libm.so.6")
m.cos.restype = ctypes.c_double
m.cos.argtypes = [ctypes.c_double]
print(m.cos(0))

# > 1.0
