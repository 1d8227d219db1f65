"""python minscoop.py -n 2 examples/aio.py

asyncio: coroutines await calls that run in the pool; the event loop goes on meanwhile.
"""
import asyncio

from minscoop import futures


def factorial(n):
    return n * factorial(n - 1) if n else 1


async def tick():
    print("the loop goes on")


async def main():
    loop = asyncio.get_running_loop()
    ran = loop.run_in_executor(futures, factorial, 20)
    wrapped = [asyncio.wrap_future(futures.submit(factorial, n)) for n in range(6)]
    await tick()
    print(await ran, await asyncio.gather(*wrapped))


if __name__ == "__main__":
    asyncio.run(main())
