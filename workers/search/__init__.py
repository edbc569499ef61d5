"""Search for the best rule, its parameters and λ on resident shards."""
