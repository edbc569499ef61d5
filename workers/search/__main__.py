"""``python -m workers.search RECIPE.yaml``: a search without a service, on the Ray cluster it finds or a local one."""

from __future__ import annotations

from taumerge.schemas import SearchRequest
from workers.foreground import run_recipe
from workers.search.run import run_search

if __name__ == "__main__":
    run_recipe(SearchRequest, run_search)
