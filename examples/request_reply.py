"""Request-reply: submit a task, and get its value or the reason why there is none."""

import asyncio

from coditect import Client, TaskFailed


async def main() -> None:
    async with Client.from_env() as client:
        order = {"items": [{"name": "tea", "count": 2}, {"name": "coffee"}]}
        handle = await client.submit("order.total", order)
        print(await handle.result(timeout="20s"))

        try:
            await client.request("price.quote", {"name": "gold"}, timeout="20s")
        except TaskFailed as error:
            print(error.facts["message"])


asyncio.run(main())
