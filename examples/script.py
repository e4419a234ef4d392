"""A script that submits tasks without an event loop and without `await`."""

from dataclasses import dataclass

from coditect import Client, Priority, TaskRejected


@dataclass
class Digest:
    sha256: str
    pid: int


with Client.sync() as client:
    handle = client.submit("text.hash", "front page", priority=Priority.P0)
    print(handle.result(Digest, timeout="20s").sha256[:8])

    pages = (f"page {number}" for number in range(20))
    digests = [handle.result(Digest, timeout="60s") for handle in client.submit_many("text.hash", pages)]
    print(len(digests), "pages")

    with client.events("task.rejected") as events:
        try:
            client.request("text.hash", ["no", "text"], timeout="20s")
        except TaskRejected as error:
            print(error.facts["reason"])
        print(next(events).type)
