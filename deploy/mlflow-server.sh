#!/bin/sh
# MLflow for a team: runs and registry in PostgreSQL, artifacts through the server to S3, a login for everybody.
# Everything is set by environment variables (team.env.example, docs/operations.md).
set -eu
: "${MLFLOW_BACKEND_STORE_URI:?is not set: postgresql://user:password@host:5432/mlflow}"
: "${MLFLOW_ARTIFACTS_DESTINATION:?is not set: s3://bucket/mlflow}"
: "${MLFLOW_FLASK_SERVER_SECRET_KEY:?is not set: a long random string}"
: "${MLFLOW_AUTH_ADMIN_PASSWORD:?is not set: the password of user admin, at least 12 characters}"
: "${IKDDIT_AUTH_DATABASE_URI:?is not set: postgresql://user:password@host:5432/mlflow_auth}"

# MLflow reads these from a file only. The cache spares hashing the password anew for every file of a model.
umask 077
folder=$(mktemp -d)
export MLFLOW_AUTH_CONFIG_PATH="$folder/basic_auth.ini"
cat > "$MLFLOW_AUTH_CONFIG_PATH" <<EOF
[mlflow]
default_permission = ${IKDDIT_AUTH_DEFAULT_PERMISSION:-READ}
database_uri = $(printf '%s' "$IKDDIT_AUTH_DATABASE_URI" | sed 's/%/%%/g')
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = ${IKDDIT_AUTH_CACHE_SECONDS:-60}
EOF

export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false  # its job runner is not used here
export MLFLOW_DISABLE_TELEMETRY="${MLFLOW_DISABLE_TELEMETRY:-true}"
exec "${IKDDIT_PYTHON:-python}" -m mlflow server --app-name basic-auth \
    --host "${MLFLOW_HOST:-127.0.0.1}" --port "${MLFLOW_PORT:-5000}" --workers "${MLFLOW_WORKERS:-2}"
