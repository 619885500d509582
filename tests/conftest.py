"""Shared test helpers: a small analytic cost model and set-ups without model or hardware."""
