# needs level 3
import multiprocessing as mp

ctx = mp.get_context("fork")
q = ctx.Queue()
p = ctx.Process(target=lambda: q.put("from the child"))
p.start()
print(q.get(timeout=20))
p.join()

# > from the child
