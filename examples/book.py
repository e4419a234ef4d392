"""A workflow: a task for every chapter of a book, and a table of contents from the results."""

import asyncio

from coditect import Client, Workflow

flow = Workflow("book")
counted = flow.map("chapter.count", flow.input["chapters"], flow.item, limit=100, name="counted")
flow.task("book.bind", counted.result, name="bound")

ALICE = {"chapters": [{"title": "Down", "text": "Alice was beginning"}, {"title": "Pool", "text": "Curiouser"}]}


async def main() -> None:
    async with Client.from_env() as client:
        run = await client.start(flow, ALICE, idempotency_key="alice-1")
        print(await run.result(str, timeout="30s"))

        again = await client.start(flow, ALICE, idempotency_key="alice-1")
        print("the same workflow:", again.id == run.id, "- new:", again.new)
        async for attempt in run.attempts():
            print(attempt.node, attempt.status)


asyncio.run(main())
