"""YAML that knows its lines, and errors in a user's words."""
