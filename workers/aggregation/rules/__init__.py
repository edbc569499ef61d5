"""The rules, one file each. A new file here with a subclass of ``Rule`` is a new rule; nothing else changes."""
