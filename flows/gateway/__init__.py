"""The gateway: the platform's HTTP interface, for people who have a token and nothing else.

    python -m flows.gateway                         # on DMCP_GATEWAY_HOST and DMCP_GATEWAY_PORT
    app = create_app(settings())                    # the same for a server of one's own (flows/gateway/app.py)

It knows users, grants and requests from the registry, and hands bytes from and to the object store. It never holds a
key and restores nothing: it starts the Prefect deployment `restore` with a request's id, and a worker does the rest.

    app.py        the factory: middleware, routers, start and stop
    state.py      what one gateway process holds open: registry, stores, limiter, space for uploads
    auth.py       who is calling: a bearer token, or the cookie of the pages
    errors.py     one shape of errors, and which status each class has
    limits.py     rates: calls of a token, failed logins of an address
    workspace.py  disk space for what is on its way, bounded and removed whatever happens (intake.py: what comes in)
    transfers.py  uploads and downloads that have to get on; parts of a file
    frame.py      what is around every call: its id, headers, a line in the log
    schemas.py    what goes in and out, as OpenAPI documents it (parameters.py: of addresses and queries)
    idempotency.py  a call that is sent again starts nothing twice
    queries.py    lists, page by page, and objects that are looked up for one user
    me.py datasets.py access.py restorations.py uploads.py results.py events.py owner.py operator.py health.py
                  one router a topic
    background.py what it does besides answering: dispatch, anchor the audit log, remove what nobody fetches
    openapi.py metrics.py logs.py pages*.py
                  the document and its page, /metrics, the log, and the pages for people

Nobody learns of what is another's: it answers 404 just like what does not exist.
"""
