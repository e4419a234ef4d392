"""Routing: by capability, by a strategy that picks an agent, or pinned to the agent that has what is needed."""

import asyncio

from coditect import Client, Options, Strategy


async def main() -> None:
    async with Client.from_env() as client:
        # By capability: any process that offers note.add may take it.
        first = await client.submit("note.add", {"topic": "garden", "text": "buy seeds"})
        outcome = await first.outcome(timeout="20s")

        # Pinned: the process that has the notes of this topic.
        more = {"topic": "garden", "text": "dig"}
        pinned = await client.submit("note.add", more, pin=outcome.agent_id)
        assert await pinned.result(timeout="20s") == outcome.agent_id

        found = await client.submit("note.list", "garden", pin=outcome.agent_id)
        print((await found.result(timeout="20s"))["notes"])

        # By strategy: the sender picks from the registry.
        turns = Options(strategy=Strategy.ROUND_ROBIN)
        asked = [await client.submit("note.list", "garden", options=turns) for _ in range(4)]
        answers = [await handle.result(timeout="20s") for handle in asked]
        print(len({answer["agent"] for answer in answers}), "processes asked in turn")


asyncio.run(main())
