from tests.services import object_home, object_server, store

__all__ = ["object_home", "object_server", "store"]
