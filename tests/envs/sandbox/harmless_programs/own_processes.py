import os

pid = os.fork()
if pid == 0:
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
r, w = os.pipe()
os.write(w, b"abc")
print(os.read(r, 9), os.getpid() > 0, os.cpu_count() > 0)

# > 7
# > b'abc' True True
