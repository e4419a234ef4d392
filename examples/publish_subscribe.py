"""Publish-subscribe: events for all listeners, and a broadcast to every agent but the excluded ones."""

import asyncio

from coditect import Client


async def main() -> None:
    async with Client.from_env() as client:
        async with client.events("temperature.*") as events:
            print(await client.request("temperature.check", 31.5, timeout="20s"))
            event = await anext(events)
            print(event.type, event.subject, event.data)

        await client.broadcast("limits.changed", {"too_hot": 20.0}, exclude=["thermometer"])
        print(await client.request("temperature.check", 25.0, timeout="20s"))

        await client.broadcast("limits.changed", {"too_hot": 20.0})
        while await client.request("temperature.check", 25.0, timeout="20s") == "fine":
            continue  # a broadcast is not answered
        print("too hot from now on")


asyncio.run(main())
