"""`python -m flows.gateway`: serve on DMCP_GATEWAY_HOST and DMCP_GATEWAY_PORT until the process is told to stop.

What it logs goes to stderr, one JSON object a line (`logs.py`).
"""

import sys

import uvicorn

from flows.gateway.app import create_app
from flows.gateway.logs import configure
from storage.errors import DmcpError
from storage.registry import open_registry
from storage.settings import settings

GRACE_SECONDS = 20


def main() -> int:
    """Serve; the exit code."""
    try:
        conf = settings()
        configure(conf)
        app = create_app(conf)
        open_registry(conf).close()  # what is wrong with it is told here in one line
    except DmcpError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    uvicorn.run(
        app,
        host=conf.gateway_host,
        port=conf.gateway_port,
        access_log=False,  # `frame.py` has one line a call logged, without the query
        log_config=None,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=GRACE_SECONDS,
        limit_concurrency=4096,
        h11_max_incomplete_event_size=64 << 10,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
