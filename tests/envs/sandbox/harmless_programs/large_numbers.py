import math

print(len(str(3**8000)), math.comb(60, 30), sum(range(10**6)))

# > 3817 118264581564861424 499999500000
