"""Results for people: terminal tables (rich) and figures (matplotlib), imported when asked for."""
