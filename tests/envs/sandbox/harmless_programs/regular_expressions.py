import re

print(re.sub(r"(\w+) (\w+)", r"\2 \1", "b a"), re.findall(r"\d+", "a1b22"))

# > a b ['1', '22']
