"""Merging on Ray: plan from headers, shard workers, two passes, one rename."""

from workers.merging.pool import stop_shard_actors, worker_count
from workers.merging.preflight import plan_merge
from workers.merging.run import LEFT_TO_OTHERS, Superseded, run_merge, unnoted

__all__ = [
    "LEFT_TO_OTHERS",
    "Superseded",
    "plan_merge",
    "run_merge",
    "stop_shard_actors",
    "unnoted",
    "worker_count",
]
