import csv
import json

with open("t.csv", "w", newline="") as f:
    csv.writer(f).writerows([["a", "b"], [1, "x,y"]])
print(json.dumps(list(csv.DictReader(open("t.csv")))))

# > [{"a": "1", "b": "x,y"}]
