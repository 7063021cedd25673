"""Triggers as pure batch functions on stored rows."""
