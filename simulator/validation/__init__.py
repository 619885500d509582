"""Measured runs of real servers, simulated row by row and compared: `headway validate`."""
