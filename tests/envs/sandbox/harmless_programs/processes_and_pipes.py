import multiprocessing as mp


def work(end):
    end.send(sum(end.recv()))


if __name__ == "__main__":
    ctx = mp.get_context("fork")
    ours, theirs = ctx.Pipe()
    process = ctx.Process(target=work, args=(theirs,))
    process.start()
    ours.send([1, 2, 3])
    print(ours.recv())
    process.join()
    print(process.exitcode)

# > 6
# > 0
