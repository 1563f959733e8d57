import os
import shutil

os.mkdir("a")
open("a/f", "w").write("x")
shutil.copytree("a", "b")
shutil.copy2("a/f", "g")
shutil.make_archive("z", "zip", "a")
shutil.unpack_archive("z.zip", "c")
shutil.rmtree("a")
print(sorted(os.listdir(".")), os.listdir("c"))

# > ['b', 'c', 'g', 'z.zip'] ['f']
