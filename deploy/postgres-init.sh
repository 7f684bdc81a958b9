#!/bin/bash
# Run by the image of PostgreSQL when its volume is new: a role and a database of its own for each who needs one.
set -euo pipefail

make_database() { # name of role and database, file with its password
    psql --no-psqlrc -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres \
        -v name="$1" -v password="$(cat "$2")" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name" ENCODING 'UTF8' TEMPLATE template0;
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
SQL
}

secrets=${SECRETS:-/run/secrets}
make_database dmcp "$secrets/registry_password"
make_database prefect "$secrets/prefect_password"
make_database mlflow "$secrets/mlflow_password"
