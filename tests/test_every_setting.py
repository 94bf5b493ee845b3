"""Every setting changes what it says: each names a test that shows its effect."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path

import pytest

from llm_local import config

TESTS = Path(__file__).parent
TUNED = "model/test_settings.py::"
FAKES = "server/test_settings.py::"
TIERS = "model/test_tiers.py::"
BACKEND = "model/test_backend.py::"
UPSTREAM = "server/test_upstream.py::"
STRUCTURED = "server/test_structured.py::"
CONTEXT = TUNED + "test_ctx_batch_size_ubatch_size_and_threads_are_those_of_the_context"
NAMES = TUNED + "test_model_id_and_model_aliases_are_the_names_and_what_the_environment_calls_it"
SAMPLING = FAKES + "test_sampling_settings_hold_where_the_request_is_silent"
LOG = FAKES + "test_log_level_and_verbose_are_how_much_is_logged"
REACHES_THE_ENGINE = TUNED + "test_prefill_chunk_and_host_cache_mb_reach_the_engine"
WEIGHTS = BACKEND + "test_weights_are_mapped_or_read_and_locked_when_told_to"

COMMANDS = "models/test_commands.py::"
DOWNLOAD = COMMANDS + "test_each_setting_of_a_download_does_what_it_says"
KEYS = "server/test_keys.py::"
TLS = "test_tls.py::test_the_settings_say_which_files"
CONNECTION = "server/test_connection.py::"
WARM = "server/test_warm_prefixes.py::"

EFFECT = {
    "engine": UPSTREAM + "test_the_process_forwards_without_llama_cpp_and_says_what_changes_nothing",
    "model": "model/test_cli.py::test_a_damaged_file_is_one_line_and_exit_2",
    "model_id": NAMES,
    "model_aliases": NAMES,
    "upstream_url": UPSTREAM + "test_an_upstream_that_is_down_is_503_and_comes_back_by_itself",
    "upstream_api_key": UPSTREAM + "test_what_is_sent_is_the_request_in_utf8_with_their_key_and_our_id",
    "upstream_model": UPSTREAM + "test_what_is_sent_is_the_request_in_utf8_with_their_key_and_our_id",
    "models_dir": "models/test_locate.py::test_models_dir_is_where_names_are_looked_up",
    "gpu_layers": "model/test_cli.py::test_gpu_layers_on_a_cpu_build_are_refused_with_the_way_out",
    "ctx": CONTEXT,
    "seq_max": TUNED + "test_seq_max_is_the_longest_prompt_and_answer",
    "n_predict": TUNED + "test_n_predict_is_the_length_of_an_answer_that_does_not_say",
    "parallel": TUNED + "test_parallel_is_how_many_choices_there_may_be",
    "threads": CONTEXT,
    "threads_batch": CONTEXT,
    "kv_type": BACKEND + "test_smaller_kv_types_take_less_memory_and_answer_nearly_the_same",
    "flash_attention": BACKEND + "test_flash_attention_can_be_switched_off",
    "backend_sampling": TUNED + "test_backend_sampling_leaves_plain_answers_to_the_device",
    "mmap": WEIGHTS,
    "mlock": WEIGHTS,
    "batch_size": CONTEXT,
    "ubatch_size": CONTEXT,
    "host_cache_mb": REACHES_THE_ENGINE,
    "disk_cache_dir": TIERS + "test_a_conversation_survives_a_restart_on_the_disk_and_a_flipped_byte_does_not",
    "disk_cache_mb": TUNED + "test_disk_cache_mb_is_the_limit_of_the_folder_and_host_cache_mb_0_is_no_tier",
    "warm_prefixes": WARM + "test_the_first_request_with_a_warm_prompt_computes_only_what_follows",
    "target_gap_ms": "model/test_cli.py::test_the_target_gap_is_50_ms_on_a_gpu_unless_it_is_set",
    "prefill_chunk": REACHES_THE_ENGINE,
    "draft_model": TUNED + "test_draft_model_is_located_and_guesses",
    "prompt_lookup": "server/test_speculation.py::test_prompt_lookup_can_be_switched_off",
    "chat_template": TUNED + "test_chat_template_takes_the_place_of_the_ggufs_own",
    "temperature": SAMPLING,
    "top_p": SAMPLING,
    "top_k": SAMPLING,
    "min_p": SAMPLING,
    "repeat_penalty": SAMPLING,
    "grammar_engine": "server/test_tools.py::test_arguments_that_llama_grammar_would_loosen_are_named",
    "json_schema_enforce": STRUCTURED + "test_enforcement_can_be_switched_off_but_is_then_refused_not_ignored",
    "json_compact": STRUCTURED + "test_json_compact_can_be_switched_off",
    "json_close": STRUCTURED + "test_json_close_ends_an_answer_that_would_be_cut",
    "embedding": TUNED + "test_embedding_false_serves_none",
    "embedding_model": "model/test_server.py::test_a_separate_embedding_model_of_bert_type",
    "embedding_ctx": TUNED + "test_embedding_ctx_is_the_longest_input",
    "embedding_pooling": TUNED + "test_embedding_pooling_is_what_it_says",
    "host": FAKES + "test_host_and_port_are_where_it_listens",
    "port": FAKES + "test_host_and_port_are_where_it_listens",
    "api_keys": "server/test_errors.py::test_keys_are_asked_for_everywhere_but_on_health",
    "queue_max": "server/test_errors.py::test_a_full_queue_is_429_with_retry_after",
    "request_timeout": FAKES + "test_request_timeout_is_the_deadline_of_every_request",
    "send_timeout": "server/test_lifecycle.py::test_a_reader_that_takes_nothing_is_given_up",
    "drain_timeout": TUNED
    + "test_drain_timeout_is_what_a_running_answer_gets_at_shutdown_and_verbose_logs_llama_cpps_lines",
    "max_body_bytes": "server/test_errors.py::test_a_body_over_the_limit_is_413_whether_its_length_is_declared_or_not",
    "log_level": LOG,
    "verbose": LOG,
    "model_url": COMMANDS + "test_an_address_alone_names_the_model",
    "model_checksum": DOWNLOAD,
    "download_timeout": DOWNLOAD,
    "download_retries": DOWNLOAD,
    "gpu_memory_utilization": "model/test_fit.py::test_the_demand_is_what_the_settings_say",
    "api_keys_file": KEYS + "test_keys_of_both_kinds_open_the_server_and_reloading_takes_effect",
    "key_concurrency": KEYS + "test_a_key_has_only_so_many_requests_at_work_and_streams_count_to_their_end",
    "cors_origins": "server/test_cors.py::test_a_named_page_may_call_and_another_may_not",
    "ssl_certfile": TLS,
    "ssl_keyfile": TLS,
    "receive_timeout": CONNECTION + "test_a_client_that_does_not_finish_its_request_is_let_go",
    "max_connections": CONNECTION + "test_a_connection_too_many_is_503_and_another_may_come_when_one_goes",
    "max_header_bytes": CONNECTION + "test_the_limit_of_a_head_can_be_set_and_what_is_under_it_passes",
    "slow_request": "server/test_requestlog.py::test_a_slow_request_is_a_warning_from_the_set_seconds_on",
    "log_format": "test_logs.py::test_a_line_of_json_has_stable_names_and_its_time_in_utc",
    "tracing": "server/test_tracing.py::test_the_last_spans_are_sent_at_shutdown_to_where_the_standard_variables_say",
}


@lru_cache
def collected(path: Path) -> dict[str, str]:
    """Return what pytest collects in a file: the source of each test, and of the constants that they share."""
    source = path.read_text()
    lines = source.split("\n")
    found = {}
    shared = ""
    for node in ast.parse(source).body:
        first = min([node.lineno, *(mark.lineno for mark in getattr(node, "decorator_list", []))])
        text = "\n".join(lines[first - 1 : node.end_lineno])
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
            found[node.name] = text
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            shared += text + "\n"
    return {name: f"{text}\n{shared}" for name, text in found.items()}


def test_every_setting_names_the_test_of_its_effect() -> None:
    missing = sorted(set(config.Settings.model_fields) - set(EFFECT))
    assert not missing, f"write a test that shows the effect of {', '.join(missing)}, and name it in EFFECT"
    gone = sorted(set(EFFECT) - set(config.Settings.model_fields))
    assert not gone, f"no such settings: {', '.join(gone)}"


@pytest.mark.parametrize("setting", sorted(EFFECT))
def test_the_test_of_a_setting_exists_and_uses_it(setting: str) -> None:
    file, _, name = EFFECT[setting].partition("::")
    path = TESTS / file
    assert path.is_file(), f"{setting}: there is no {file}"
    source = collected(path).get(name)
    assert source is not None, f"{setting}: there is no {name} in {file}"
    names = rf"\b({setting}|{config.variable_name(setting)})\b|{config.flag_name(setting)}\b"
    assert re.search(names, source), f"{setting}: {name} does not set it"
