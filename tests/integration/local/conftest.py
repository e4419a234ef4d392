from tests.servers import own_servers, servers

__all__ = ["own_servers", "servers"]
