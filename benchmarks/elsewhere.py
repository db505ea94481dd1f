"""Starts a real server for each sink that needs one, and prints the `sinks` settings that carry to all of them.

    python benchmarks/elsewhere.py FOLDER

Ends, and they with it, when its stdin is closed. They would run on other machines: here they take what is left over.
"""

import json
import os
import sys
from contextlib import ExitStack, closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from servers import KafkaCluster, RedisServer, S3Server


def main(folder: Path) -> None:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with ExitStack() as stack:
        for name in ("redis", "s3"):
            (folder / name).mkdir(parents=True)
        redis = stack.enter_context(closing(RedisServer(folder / "redis")))
        kafka = stack.enter_context(closing(KafkaCluster()))
        s3 = stack.enter_context(closing(S3Server(folder / "s3")))  # its keys are `test`
        settings = {
            "sqlite": {"path": str(folder / "trades.sqlite")},
            "redis": {"url": redis.url},
            "kafka": {"brokers": kafka.brokers},
            "object_store": {"uri": s3.uri},
        }
        print(json.dumps(settings), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
