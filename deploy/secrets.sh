#!/bin/sh
# Makes the secrets that compose.yaml names, in a folder that only its owner can enter. Nothing that exists is changed.
#
#     deploy/secrets.sh            in ./secrets
#     deploy/secrets.sh FOLDER     elsewhere; set DMCP_SECRETS=FOLDER in .env then
#
# Run it as the user whose id the images are built with (DMCP_UID in .env; default 1000): the vault's key file has mode
# 0600 and is read by that user in the worker's containers. The other files are readable in the containers whatever their
# user is; on this machine the folder's mode keeps others out.
set -eu
umask 077

folder=${1:-secrets}
mkdir -p "$folder"
chmod 700 "$folder"

random() { # $1 hexadecimal digits
    od -An -vtx1 -N "$(($1 / 2))" /dev/urandom | tr -d ' \n'
}

put() { # file $1 with mode $2 from stdin, unless it exists
    if [ -e "$folder/$1" ]; then
        cat >/dev/null
        echo "kept $folder/$1"
    else
        cat >"$folder/.$1.new"
        chmod "$2" "$folder/.$1.new"
        mv "$folder/.$1.new" "$folder/$1"
        echo "made $folder/$1"
    fi
}

for name in postgres_password registry_password prefect_password mlflow_password; do
    random 48 | put "$name" 644
done
printf 'postgresql+psycopg://dmcp:%s@postgres:5432/dmcp' "$(cat "$folder/registry_password")" | put dmcp_registry_url 644
random 20 | put dmcp_s3_access_key 644
random 64 | put dmcp_s3_secret_key 644
put seaweedfs_s3.json 644 <<END
{"identities": [{"name": "dmcp",
  "credentials": [{"accessKey": "$(cat "$folder/dmcp_s3_access_key")", "secretKey": "$(cat "$folder/dmcp_s3_secret_key")"}],
  "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}
END
random 96 | put dmcp_gateway_secret 644
random 64 | put vault_key 600
echo "Back up $folder/vault_key, apart from the volume worker-home: without either nothing can be restored."
