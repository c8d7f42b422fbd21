"""The rules by which jobs move, for jobs in memory: what `Store` promises, without waiting and without a clock.

Every public call is one atomic step: it decides whether it may do what it is asked for before it changes anything, and
none suspends. A call is over with `Work.finish`: its events become visible and waiters are woken.
"""
