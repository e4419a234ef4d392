"""The store in one SQLite file, which is the default and needs no server.

`file` opens and checks the file, `statements` are the reads and writes of one transaction, `writer` is the thread that
commits, `lock` makes one process the owner of the file, `database` implements the port with them.
"""

from dispatcher.store.sqlite.database import SqliteDatabase

__all__ = ["SqliteDatabase"]
