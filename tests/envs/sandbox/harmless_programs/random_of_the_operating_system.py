import os
import random

print(len(os.urandom(9)), random.SystemRandom().random() < 1, len(open("/dev/urandom", "rb").read(5)))

# > 9 True 5
