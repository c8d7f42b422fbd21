META = {"venv": "ours", "backend": "sqlite", "n": 20000, "results": "yes", "notes": "as workers_sqlite, but synchronous=NORMAL: no more durable than litequeue's default"}
import workers_sqlite


class Adapter(workers_sqlite.Adapter):
    synchronous = "normal"
