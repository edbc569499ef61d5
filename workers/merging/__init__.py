"""Merging on Ray: plan from headers, shard workers, two passes, one rename."""

from workers.merging.pool import stop_shard_actors, worker_count
from workers.merging.preflight import plan_merge
from workers.merging.run import Superseded, run_merge, unnoted

__all__ = ["Superseded", "plan_merge", "run_merge", "stop_shard_actors", "unnoted", "worker_count"]
