"""Prefect flows and DVC helpers around the pipeline; importing this sets where Prefect keeps its things.

Settings are read by Prefect when it is imported, so they are set here, before any flow module imports it.
Whatever the environment says already wins.
"""

import os

from ikddit.checkout import checkout_root

PREFECT_DEFAULTS = {
    # Inside the checkout and git-ignored: without a writable home the temporary server dies.
    "PREFECT_HOME": str(checkout_root() / ".prefect"),
    # Its first start builds a database and takes longer than the 20 s Prefect waits.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}

for _name, _value in PREFECT_DEFAULTS.items():
    os.environ.setdefault(_name, _value)
os.makedirs(os.environ["PREFECT_HOME"], exist_ok=True)
