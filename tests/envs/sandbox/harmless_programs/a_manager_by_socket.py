# needs level 3
import multiprocessing as mp

if __name__ == "__main__":
    with mp.get_context("fork").Manager() as m:
        d = m.dict(a=1)
        print(dict(d))

# > {'a': 1}
