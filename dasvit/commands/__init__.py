"""Commands, with their options beside them (own images)."""
