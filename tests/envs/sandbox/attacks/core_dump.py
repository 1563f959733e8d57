"""A core dump: a file in our folder, or the input of a program that the host runs as root."""

# status=signal
import resource

if resource.getrlimit(resource.RLIMIT_CORE)[1] > 1:
    escaped("core dumps are allowed")
os.abort()
