import asyncio


async def one(n):
    await asyncio.sleep(0.01)
    return n


async def main():
    print(await asyncio.gather(*map(one, range(4))))
    p = await asyncio.create_subprocess_exec("echo", "hi", stdout=-1)
    print((await p.communicate())[0])


asyncio.run(main())

# > [0, 1, 2, 3]
# > b'hi\n'
