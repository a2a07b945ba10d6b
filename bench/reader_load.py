"""The open dashboards of bench/readers.py, run by it in a process with DuckDB 1.5.4: a connection a reader.

    PYTHONPATH=<site with duckdb 1.5.4> python bench/reader_load.py <load.json> <readers> <refresh seconds>

Only duckdb and the standard library are imported here. Each reader runs all queries of one dashboard, at a moment of
its own within every <refresh seconds>, until stdin ends; then one JSON object on stdout says what came of it.
"""

import json
import sys
import threading
import time
from pathlib import Path

import duckdb


def main() -> None:
    load = json.loads(Path(sys.argv[1]).read_text())
    readers, pause = int(sys.argv[2]), float(sys.argv[3])
    stop, lock = threading.Event(), threading.Lock()
    seconds: list[float] = []
    failed: list[str] = []
    database = duckdb.connect(load["catalog"], read_only=True)

    def read(number: int, con: duckdb.DuckDBPyConnection) -> None:
        queries = load["dashboards"][number % len(load["dashboards"])]
        due = time.monotonic() + pause * number / readers
        while not stop.wait(max(0.0, due - time.monotonic())):
            started = time.monotonic()
            for sql in queries:
                try:
                    con.execute(sql).fetchall()
                except duckdb.Error as error:
                    with lock:
                        failed.append(str(error))
            with lock:
                seconds.append(time.monotonic() - started)
            due = max(due + pause, time.monotonic())

    threads = [threading.Thread(target=read, args=(number, database.cursor())) for number in range(readers)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    ordered = [round(one, 2) for one in sorted(seconds)]
    told = {"dashboards drawn": len(ordered), "failed panels": len(failed), "examples": failed[:3]}
    told["a dashboard, s"] = {"p50": ordered[len(ordered) // 2], "max": ordered[-1]} if ordered else {}
    print(json.dumps(told | {"readers' CPU s": round(time.process_time(), 1)}))


if __name__ == "__main__":
    main()
