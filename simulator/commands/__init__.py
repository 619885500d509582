"""One module a command: from what the user typed to what is printed. Parsing is in `cli`."""
