"""Search for the best rule, its parameters and λ on resident shards."""

from workers.search.plan import check_search
from workers.search.run import run_search

__all__ = ["check_search", "run_search"]
