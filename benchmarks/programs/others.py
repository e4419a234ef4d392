"""The task queues beside us, at the fastest settings that lose nothing: plain values, both configured and shown.

"Safe" means the same for all: a task is durable before its submit returns (publisher confirms on a quorum queue; RQ has
no RabbitMQ, and its jobs are in Redis' append-only file), a task is acked only after its result is stored, and every
result is read and checked. The kind of pool, the transport of results and the number of publishing threads were tried
out, and the fastest ones are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CELERY_SETTINGS: Mapping[str, object] = {
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    "task_default_queue": "celery.bench",
    "task_default_queue_type": "quorum",
    "task_default_exchange_type": "topic",
    "task_default_delivery_mode": "persistent",
    "broker_transport_options": {"confirm_publish": True},
    "worker_prefetch_multiplier": 500,
    "worker_send_task_events": False,
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json"],
    "broker_connection_retry_on_startup": True,
    "worker_hijack_root_logger": False,
}
CELERY_THREADS = 8
CELERY_WORKER = "worker --pool threads --concurrency 4 --without-gossip --without-mingle --loglevel ERROR"
TASKIQ_WORKER = "worker --workers 1 --max-async-tasks 500 --ack-type when_saved --no-parse --log-level ERROR"
TASKIQ_PREFETCH = 500
TASKIQ_READERS = 5
RQ_BATCH = 500


@dataclass(frozen=True, slots=True)
class Other:
    """A task queue beside us: its packages, its worker as arguments of Python, its driver, and the settings to show."""

    packages: tuple[str, ...]
    worker: tuple[str, ...]
    driver: str
    settings: Mapping[str, object]


CELERY = Other(
    ("celery", "kombu", "amqp"),
    ("-m", "celery", "-A", "benchmarks.programs.celery_side:app", *CELERY_WORKER.split()),
    "benchmarks.programs.celery_side",
    {
        "worker": f"celery {CELERY_WORKER}",
        **CELERY_SETTINGS,
        "result_backend": "redis",
        "publishing threads": CELERY_THREADS,
    },
)
TASKIQ = Other(
    ("taskiq", "taskiq-aio-pika", "taskiq-redis"),
    ("-m", "taskiq", *TASKIQ_WORKER.split(), "benchmarks.programs.taskiq_side:broker"),
    "benchmarks.programs.taskiq_side",
    {
        "worker": f"taskiq {TASKIQ_WORKER}",
        "task queue": "quorum, durable; messages persistent; publisher confirms",
        "qos": TASKIQ_PREFETCH,
        "unconfirmed publishes": 500,
        "result backend": f"RedisAsyncResultBackend, {TASKIQ_READERS} readers that look every 50 ms",
    },
)
RQ = Other(
    ("rq", "redis"),
    ("-m", "benchmarks.programs.rq_side"),
    "benchmarks.programs.rq_side",
    {
        "worker": "SimpleWorker (no fork per job)",
        "submit": f"Queue.enqueue_many, {RQ_BATCH} jobs per pipeline",
        "serializer": "JSON",
        "retry": 3,
        "Redis": "appendonly yes, appendfsync everysec: up to a second may be lost with the machine",
        "RabbitMQ": "not used",
    },
)
