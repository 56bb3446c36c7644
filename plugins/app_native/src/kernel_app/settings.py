"""The settings: Celery's lowercase names, their defaults, and the object that holds an application's own.

A name that is not in the table is an error that names the nearest one. Names of other result backends
(mongodb, s3 ...) are accepted by their prefix: the backend reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .exceptions import ConfigError

DEFAULT_URL = "sqlite:///kw.db"
"""Broker and results when nothing is set: one file in the working directory."""

DAY_S = 86400

DEFAULTS: dict[str, Any] = {
    # general
    "accept_content": ("json",),
    "result_accept_content": None,
    "enable_utc": True,
    "timezone": None,
    "imports": (),
    "include": (),
    # broker
    "broker_url": DEFAULT_URL,
    "broker_read_url": None,
    "broker_write_url": None,
    "broker_transport": None,
    "broker_transport_options": {},
    "broker_connection_timeout": 4,
    "broker_connection_retry": True,
    "broker_connection_retry_on_startup": None,
    "broker_connection_max_retries": 100,
    "broker_channel_error_retry": False,
    "broker_failover_strategy": None,
    "broker_heartbeat": 120,
    "broker_heartbeat_checkrate": 3.0,
    "broker_login_method": None,
    "broker_native_delayed_delivery_queue_type": "quorum",
    "broker_pool_limit": 10,
    "broker_pool_acquire_timeout": None,
    "broker_use_ssl": False,
    # remote control and events
    "control_exchange": "celery",
    "control_queue_ttl": 300.0,
    "control_queue_expires": 10.0,
    "control_queue_exclusive": True,
    "control_queue_durable": False,
    "event_exchange": "celeryev",
    "event_queue_prefix": "celeryev",
    "event_queue_expires": 60.0,
    "event_queue_ttl": 5.0,
    "event_queue_exclusive": True,
    "event_queue_durable": False,
    "event_serializer": "json",
    # tasks; task_acks_late is True here: a message is acknowledged when its task has run
    "task_acks_late": True,
    "task_max_deliveries": 3,
    "task_unknown_max_returns": 5,
    "task_acks_on_failure_or_timeout": True,
    "task_acks_on_failure": None,
    "task_acks_on_timeout": None,
    "task_always_eager": False,
    "task_eager_propagates": False,
    "task_store_eager_result": False,
    "task_annotations": None,
    "task_compression": None,
    "task_create_missing_queues": True,
    "task_create_missing_queue_type": "classic",
    "task_create_missing_queue_exchange_type": None,
    "task_default_queue": "celery",
    "task_default_queue_type": "classic",
    "task_default_exchange": None,
    "task_default_exchange_type": "direct",
    "task_default_routing_key": None,
    "task_default_delivery_mode": 2,
    "task_default_rate_limit": None,
    "task_default_priority": None,
    "task_inherit_parent_priority": False,
    "task_ignore_result": False,
    "task_store_errors_even_if_ignored": False,
    "task_protocol": 2,
    "task_publish_retry": True,
    "task_publish_retry_policy": {"max_retries": 3, "interval_start": 0, "interval_max": 1, "interval_step": 0.2},
    "task_queues": None,
    "task_queue_max_priority": None,
    "task_routes": None,
    "task_reject_on_worker_lost": None,
    "task_retry_on_worker_lost": False,
    "task_remote_tracebacks": False,
    "task_repr_maxlevels": 3,
    "task_send_sent_event": False,
    "task_serializer": "json",
    "task_soft_time_limit": None,
    "task_time_limit": None,
    "task_track_started": False,
    "task_allow_error_cb_on_chord_header": False,
    # ours: bytes of a message's body, as it came and after decompression; larger ones are refused
    "task_max_body_bytes": 16 * 1024 * 1024,
    # worker: read by `kw run`, here so that an application may set them
    "worker_concurrency": None,
    "worker_pool": "prefork",
    "worker_pool_start_method": "fork",
    "worker_pool_putlocks": True,
    "worker_pool_restarts": False,
    "worker_lease": 15.0,
    "worker_prefetch_multiplier": 4,
    "worker_disable_prefetch": False,
    "worker_eta_task_limit": None,
    "worker_enable_prefetch_count_reduction": True,
    "worker_detect_quorum_queues": True,
    "worker_max_tasks_per_child": None,
    "worker_max_memory_per_child": None,
    "worker_lost_wait": 10.0,
    "worker_proc_alive_timeout": 4.0,
    "worker_autoscaler": None,
    "worker_timer_precision": 1.0,
    "worker_enable_remote_control": True,
    "worker_send_task_events": False,
    "worker_state_db": None,
    "worker_direct": False,
    "worker_disable_rate_limits": False,
    "worker_deduplicate_successful_tasks": False,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "worker_soft_shutdown_timeout": 0.0,
    "worker_enable_soft_shutdown_on_idle": False,
    "worker_hijack_root_logger": False,
    "worker_log_color": None,
    "worker_log_format": None,
    "worker_task_log_format": None,
    "worker_log_datefmt": None,
    "worker_task_log_datefmt": None,
    "worker_redirect_stdouts": False,
    "worker_redirect_stdouts_level": "WARNING",
    "worker_logfile": None,
    "worker_pidfile": None,
    "worker_uid": None,
    "worker_gid": None,
    "worker_umask": None,
    "worker_executable": None,
    # results
    "result_backend": DEFAULT_URL,
    "result_expires": DAY_S,
    "result_failure_expires": None,
    "result_chord_expires": None,
    "result_serializer": "json",
    "result_compression": None,
    "result_extended": False,
    "result_cache_max": -1,
    "result_persistent": None,
    "result_backend_transport_options": {},
    "result_chord_join_timeout": 3.0,
    "result_chord_retry_interval": 1.0,
    "result_backend_always_retry": False,
    "result_backend_max_retries": None,
    "result_backend_base_sleep_between_retries_ms": 10,
    "result_backend_max_sleep_between_retries_ms": 10000,
    "result_backend_thread_safe": False,
    # beat
    "beat_schedule": {},
    "beat_scheduler": None,
    "beat_schedule_filename": "celerybeat-schedule",
    "beat_max_loop_interval": 0,
    "beat_sync_every": 0,
    "beat_cron_starting_deadline": None,
    "beat_enable_remote_control": False,
    "beat_remote_control_max_tick_age": None,
    # Redis results
    "redis_host": None,
    "redis_port": None,
    "redis_db": None,
    "redis_username": None,
    "redis_password": None,
    "redis_max_connections": None,
    "redis_socket_timeout": None,
    "redis_socket_connect_timeout": None,
    "redis_retry_on_timeout": False,
    "redis_socket_keepalive": None,
    "redis_backend_use_ssl": None,
    "redis_backend_health_check_interval": None,
    "redis_backend_credential_provider": None,
    "redis_client_name": None,
    # signed messages
    "security_key": None,
    "security_key_password": None,
    "security_certificate": None,
    "security_cert_store": None,
    "security_digest": "sha256",
}

_OTHER_BACKENDS = (
    "database_",
    "cache_backend",
    "mongodb_",
    "couchbase_",
    "arangodb_",
    "cassandra_",
    "s3_",
    "azureblockblob_",
    "gcs_",
    "cosmosdbsql_",
    "elasticsearch_",
    "dynamodb_",
)

_SHORT = {"broker": "broker_url", "backend": "result_backend"}
"""Keywords of Celery's constructor that mean a setting."""


class Settings(Mapping[str, Any]):
    """The settings of one application: what was set, over the defaults.

    Read as attributes or by key; change with `update` or by assigning. Any thread may read; changing is for the
    time before the first message is sent, but is honoured later too.
    """

    version: int
    """Grows with each change, so that what was computed from the settings can be computed again."""
    _changed: set[str]

    def __init__(self, values: Mapping[str, Any]) -> None:
        # Values are plain instance attributes: several are read for each message sent.
        self.__dict__.update(
            {name: dict(value) if type(value) is dict else value for name, value in DEFAULTS.items()},
            version=0,
            _changed=set(),
        )
        self.update(values)

    def update(self, values: Mapping[str, Any] | None = None, /, **settings: Any) -> None:
        """Set several. Nothing is changed when one name is unknown.

        :raises ConfigError: an unknown name; the text has the nearest known one.
        """
        wanted = {_SHORT.get(name, name): value for name, value in {**(values or {}), **settings}.items()}
        for name in wanted:
            if not is_setting(name):
                raise ConfigError(_unknown(name))
        self.__dict__.update(wanted)
        self._changed.update(wanted)
        self.__dict__["version"] += 1

    def explicit(self) -> dict[str, Any]:
        """What was set, without the defaults."""
        return {name: self.__dict__[name] for name in sorted(self._changed)}

    def __getitem__(self, name: str) -> Any:
        if name not in DEFAULTS and name not in self._changed:
            raise KeyError(name)
        return self.__dict__[name]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(_unknown(name))

    def __setattr__(self, name: str, value: Any) -> None:
        self.update({name: value})

    def __setitem__(self, name: str, value: Any) -> None:
        self.update({name: value})

    def __iter__(self) -> Iterator[str]:
        yield from DEFAULTS
        yield from self._changed - DEFAULTS.keys()

    def __len__(self) -> int:
        return len(DEFAULTS.keys() | self._changed)

    def __repr__(self) -> str:
        return f"<Settings: {', '.join(sorted(self._changed)) or 'defaults'}>"  # values may be secret


def is_setting(name: str) -> bool:
    """Whether an application may set this name."""
    return name in DEFAULTS or name.startswith(_OTHER_BACKENDS)


def _unknown(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name.lower(), DEFAULTS, n=1, cutoff=0.5)
    return f"there is no setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
