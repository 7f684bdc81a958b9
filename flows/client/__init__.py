"""The platform's client: protected images go to a gateway, the originals come back, for those who hold a grant.

    from flows.client import Client, restore

    with Client("https://dmcp.example", "dmcp_...") as client:
        for dataset in client.datasets():
            print(dataset.name, dataset.granted)
        restore(client, "my-images", Path("restored"))      # or "cifar10@latest"; broken off: call it again, it goes on

    connection.py  one gateway: calls that are tried again where that is safe, errors as classes of `storage/errors.py`
    api.py         `Client`: one method for each thing that a gateway does; it returns the gateway's own models
    events.py      following a restoration: server-sent events, else asking now and then
    transfer.py    files in both directions, with digests; downloads go on where they broke off
    packing.py     a folder as one tar, always the same for the same files
    job.py         what is remembered beside OUT, so that the same call again goes on
    restoring.py   all of it in one call: pack, hand in, follow, download, write
    login.py       address and token for the command line, in HOME/remote.json

Neither torch nor Prefect nor MLflow is needed, nor anything of the owner's side: no registry, no object store, no key.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flows.client.api import Client
    from flows.client.restoring import fetch, restore

__all__ = ["Client", "fetch", "restore"]


def __getattr__(name: str) -> Any:
    """What is exported, imported when it is first asked for."""
    if name == "Client":
        from flows.client.api import Client

        return Client
    if name in ("fetch", "restore"):
        from flows.client import restoring as module

        return getattr(module, name)
    raise AttributeError(name)
