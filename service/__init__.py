"""The service: HTTP, the job table, the runner."""

import os

# Ray reads it when it is imported; it would drop log lines that look alike, though they are about different jobs.
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
