"""1500 folders, each in the other: what cleans up by recursion fails."""

for _ in range(1500):
    os.mkdir("d")
    os.chdir("d")
with open("deepest.txt", "w") as file:
    file.write("x")
