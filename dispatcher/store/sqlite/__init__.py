"""The store in one SQLite file: the embedded default.

`file` opens and checks it, `statements` are the reads and writes of one transaction, `writer` is the thread that
commits, `holder` the lock that says which process is writing, `database` puts them behind the port.
"""

from dispatcher.store.sqlite.database import SqliteDatabase
from dispatcher.store.sqlite.holder import Holder

__all__ = ["Holder", "SqliteDatabase"]
