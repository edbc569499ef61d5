"""A merge on a cluster of two nodes with a fake V100 each: ``two_nodes.py BODY``. Prints the node of each worker."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import ray
from ray.cluster_utils import Cluster

from taumerge.schemas import MergeRequest
from workers.merging import run_merge
from workers.merging.pool import NAMESPACE
from workers.settings import WorkerSettings


def main() -> None:
    cluster = Cluster()
    for _ in range(2):
        cluster.add_node(
            num_cpus=1, num_gpus=1, resources={"accelerator_type:V100": 1}, include_dashboard=False
        )
    try:
        ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
        request = MergeRequest.model_validate(json.loads(sys.argv[1]))
        settings = WorkerSettings(accelerator_type="V100", worker_memory=2**28)
        result = run_merge(request, settings, lambda progress: None, detached=True)
        print(json.dumps({"result": result.model_dump(mode="json"), "workers": shares()}))
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]


def shares() -> list[dict[str, Any]]:
    """Node and resident bytes of each shard worker."""

    def share(actor: Any) -> dict[str, Any]:
        node = ray.get_runtime_context().get_node_id()
        return {"node": node, "bytes": actor._worker._resident.used}

    names = [one["name"] for one in ray.util.list_named_actors(all_namespaces=True)]
    actors = [ray.get_actor(name, NAMESPACE) for name in names if name.startswith("shard-")]
    found: list[dict[str, Any]] = ray.get([actor.__ray_call__.remote(share) for actor in actors])
    return found


if __name__ == "__main__":
    main()
