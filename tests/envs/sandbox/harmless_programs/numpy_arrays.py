import numpy as np

a = np.arange(40_000, dtype=float).reshape(200, 200)
print((a @ a).trace())
print(np.random.default_rng(0).integers(0, 100, 5))
print(np.linalg.solve(np.eye(3) * 2, np.ones(3)))

# > 16052532010000.0
# > [85 63 51 26 30]
# > [0.5 0.5 0.5]
