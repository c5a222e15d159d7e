"""Check the health of the container: exit with 0 if /readyz answers 200, else with 1 and the reason. Plain Python."""

import http.client
import os
import sys

connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("FRCNN_PORT", "8000")), timeout=4)
try:
    connection.request("GET", "/readyz")
    status = connection.getresponse().status
except OSError as error:
    sys.exit(f"no answer: {error}")
if status != 200:
    sys.exit(f"/readyz answered {status}")
