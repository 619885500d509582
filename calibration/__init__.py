"""Measured kernel times in, fitted cost tables out.

`tables` are the measurements with their provenance; importers (`aiconfigurator`) fill them from
other people's; `gate` refuses what no chip can produce; `fit` turns them into the curves that
`simulator.costs.fitted` evaluates; `evaluate` states their held-out error.
"""
