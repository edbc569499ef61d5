"""A fault campaign: processes of a running service are killed at random times, and every job must end right."""
