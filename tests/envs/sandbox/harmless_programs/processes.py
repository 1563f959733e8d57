# needs level 3
import multiprocessing as mp


def square(n):
    return n * n


if __name__ == "__main__":
    with mp.get_context("fork").Pool(3) as pool:
        print(pool.map(square, range(6)))

# > [0, 1, 4, 9, 16, 25]
