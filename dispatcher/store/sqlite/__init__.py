"""The store in one SQLite file: the embedded default.

`file` opens and checks it, `statements` are the reads and writes of one transaction, `writer` is the thread that
commits, `lock` makes one process the owner of the file, `database` puts them behind the port.
"""

from dispatcher.store.sqlite.database import SqliteDatabase

__all__ = ["SqliteDatabase"]
