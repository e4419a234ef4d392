"""The whole workflows that nodes run as children: how one is started, ended, canceled and compensated."""
