"""A script that forgets to close its client, or forks, or is ended in the middle: argument 1 says which."""

from __future__ import annotations

import os
import sys
import threading

from coditect.errors import SetupError
from coditect.sync import SyncClient
from tests.unit.sync.scene import FleetClient, Hall


class Telling(FleetClient):
    """Says that it was left."""

    async def __aexit__(self, *ending: object) -> None:
        await super().__aexit__(None, None, None)
        os.write(1, b"left\n")


def _fork(client: SyncClient) -> None:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    with client.__class__(Telling()) as own:
        os.write(1, own.name[:7].encode() + b"\n")
    try:
        client.request("hall.say", 1)
    except SetupError as error:
        os.write(1, f"{error.sentence}\n".encode())
    client.close()
    sys.exit()


def main(what: str) -> None:
    hall = Hall()
    client = Telling(hall.agent).sync().open()
    os.write(1, f"{client.request('hall.say', 'said')}\n".encode())
    match what:
        case "fork":
            _fork(client)
            os.write(1, f"{client.request('hall.say', 'said again')}\n".encode())
        case "fail":
            raise RuntimeError(what)
        case "wait":
            threading.Thread(target=client.submit("hall.hold").result, daemon=True).start()
            hall.held.wait()


if __name__ == "__main__":
    main(sys.argv[1])
