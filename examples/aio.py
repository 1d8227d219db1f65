"""python minscoop.py -n 2 examples/aio.py

asyncio: coroutines await calls that run in the pool; the event loop goes on meanwhile.
"""
import asyncio
import time

from minscoop import futures


def slow_square(n):
    time.sleep(0.2)
    return n * n


async def tick(ended):
    while not ended.is_set():
        print("the loop goes on")
        await asyncio.sleep(0.1)


async def main():
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    ticking = asyncio.create_task(tick(ended))
    wrapped = [asyncio.wrap_future(futures.submit(slow_square, n)) for n in range(6)]
    print(await loop.run_in_executor(futures, slow_square, 20), await asyncio.gather(*wrapped))
    ended.set()
    await ticking


if __name__ == "__main__":
    asyncio.run(main())
