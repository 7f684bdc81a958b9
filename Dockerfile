# One image for all of our own services in compose.yaml: gateway, workers, Prefect server, MLflow, the command line.
# The versions are those of requirements.lock, with which the tests were run. About 6 GB, most of it torch.

FROM python:3.11-slim-bookworm

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

WORKDIR /app
RUN pip install --no-cache-dir uv
COPY requirements.lock ./
RUN uv pip install --system --no-cache --requirements requirements.lock

COPY pyproject.toml README.md params.yaml prefect.yaml ./
COPY storage storage
COPY tasks tasks
COPY flows flows
# Editable, so that the flows are where the deployments in prefect.yaml look for them: below /app.
RUN uv pip install --system --no-cache --no-deps --editable . && python -m compileall -q /app

# The user that owns the state, and that must be able to read secrets/vault_key (mode 0600).
ARG DMCP_UID=1000
RUN useradd --uid "$DMCP_UID" --home-dir /var/lib/dmcp --create-home --shell /usr/sbin/nologin dmcp \
    && install -d -o dmcp -g dmcp -m 0700 /var/lib/dmcp/home /var/lib/dmcp/data /var/lib/dmcp/mlflow
USER dmcp

ENV DMCP_HOME=/var/lib/dmcp/home DMCP_DATA=/var/lib/dmcp/data PREFECT_HOME=/tmp/prefect \
    DO_NOT_TRACK=true DVC_NO_ANALYTICS=1 PREFECT_SERVER_ANALYTICS_ENABLED=false MLFLOW_DISABLE_TELEMETRY=true \
    MPLCONFIGDIR=/tmp/matplotlib NUMBA_CACHE_DIR=/tmp/numba OMP_WAIT_POLICY=PASSIVE

CMD ["python", "-m", "flows.gateway"]
