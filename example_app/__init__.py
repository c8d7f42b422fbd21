"""A small shop: people sign up, buy, and ask for reports; everything slow happens in jobs.

Read `emails` first, then `reports`, `prices` and `billing`, then `app`, which wires them. `python -m example_app` runs
it all.
"""
