from collections import Counter, deque
from itertools import groupby, islice, permutations

print(list(islice(permutations("abc"), 2)), Counter("hello").most_common(1), [k for k, _ in groupby("aab")])
print(deque(range(5), maxlen=2))

# > [('a', 'b', 'c'), ('a', 'c', 'b')] [('l', 2)] ['a', 'b']
# > deque([3, 4], maxlen=2)
