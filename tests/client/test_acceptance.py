"""The acceptance of the client: which tests hold each of its numbered sentences.

Paths are relative to the folder of all tests.
"""

from __future__ import annotations

from itertools import chain

from tests.support import missing_tests

HELD_BY = {
    1: [
        "client/test_wire_table.py::test_every_request_is_as_it_is_written",
        "client/test_envd.py::test_is_one_frame_with_exactly_this",
        "client/test_envd.py::test_an_agent_is_started_and_waited_for",
        "client/test_client.py::test_the_key_never_reaches_the_agent",
    ],
    2: [
        "wire/test_sse.py::test_events_do_not_depend_on_the_cut",
        "wire/test_sse.py::test_a_messy_stream_is_read_as_the_standard_says",
        "wire/test_sse.py::test_another_parser_reads_the_same",
        "wire/test_sse.py::test_an_unfinished_block_is_dropped_and_reported",
        "client/test_events.py::test_cuts_make_no_difference",
        "client/test_events.py::test_an_unfinished_event_is_dropped_and_told",
    ],
    3: [
        "wire/test_sse.py::test_a_growing_event_is_refused_before_its_end_in_bounded_memory",
        "client/test_stream.py::test_too_large_an_event_is_refused_before_it_is_sent",
    ],
    4: [
        "transport/test_transport.py::test_a_deadline_holds",
        "client/test_errors.py::test_no_server_stretches_the_deadline",
    ],
    5: [
        "transport/test_transport.py::test_retry_after_is_waited_for",
        "transport/test_transport.py::test_a_long_retry_after_is_the_callers_to_wait_for",
        "client/test_errors.py::test_each_kind_of_retry_after",
        "client/test_errors.py::test_a_retry_after_too_long_to_wait_for",
    ],
    6: [
        "transport/test_transport.py::test_a_kept_connection_that_was_closed_is_replaced",
        "transport/test_transport.py::test_a_fresh_connection_that_breaks_is_not_sent_again",
        "client/test_errors.py::test_a_kept_connection_that_was_closed_is_replaced",
        "client/test_errors.py::test_a_bare_agent_is_not_run_twice",
    ],
    7: ["client/test_fork.py::test_child_and_parent_keep_apart"],
    8: [
        "transport/test_streams.py::test_close_wakes_the_reader",
        "client/test_stream.py::test_both_threads_go_on_at_once",
    ],
    9: [
        "client/test_stream.py::test_a_cut_makes_no_difference",
        "client/test_stream.py::test_bare_dialect_is_cut_for_good",
    ],
    10: [
        "transport/test_transport.py::test_secrets_stay_secret",
        "transport/test_notifications.py::test_records_hold_no_secret",
        "client/test_errors.py::test_secrets_stay_secret",
        "client/test_plugins.py::test_no_record_holds_a_secret",
        "client/batch/test_batch_journal.py::test_holds_no_secret_and_no_request",
    ],
    11: [
        "client/test_on_platform.py::test_an_agent_that_dies_at_once",
        "client/test_on_platform.py::test_an_agent_that_is_never_ready",
        "client/test_launch.py::test_an_unreadable_agent_document",
        "client/test_launch.py::test_ctrl_c_leaves_nothing",
        "client/test_launch.py::test_ctrl_c_while_invoking_leaves_nothing",
    ],
    12: [
        "client/test_on_platform.py::test_pause_and_resume",
        "client/test_session.py::test_paused_session_sends_nothing",
    ],
    13: [
        "client/test_on_platform.py::test_conversation_of_many_threads",
        "client/test_on_platform.py::test_conversation_of_many_processes",
        "client/test_client.py::test_same_id_with_another_template_is_another",
    ],
    14: [
        "client/test_on_platform.py::test_conversation_whose_sandbox_was_killed",
        "client/test_client.py::test_a_dead_one_is_replaced",
    ],
    15: [
        "client/test_template.py::test_fifty_threads_cause_one_request",
        "client/test_template.py::test_a_fresh_deployment_is_seen",
        "client/test_template.py::test_one_bad_record_hides_no_other",
        "client/test_template.py::test_both_tags_are_needed",
        "client/test_on_platform.py::test_a_fresh_deployment_is_found",
    ],
    16: [
        "client/test_on_platform.py::test_bad_requests_make_no_sandbox",
        "client/test_client.py::test_bad_request_is_refused_before_anything_is_sent",
        "client/test_agent_runtime.py::test_bad_payloads_send_nothing",
    ],
    17: [
        "client/test_on_platform.py::test_attached_in_another_process",
        "client/test_attach.py::test_detached_and_attached",
        "client/test_attach.py::test_attaching_by_state",
    ],
    18: [
        "client/batch/test_batch_journal.py::test_a_batch_survives_the_end_of_its_program",
        "client/batch/test_batch_journal.py::test_with_another_request_or_template_is_refused_before_anything_runs",
        "client/batch/test_journal.py::test_of_a_journal_cut_anywhere_is_that_of_its_whole_lines",
    ],
    19: [
        "client/batch/test_batch.py::test_never_more_is_taken_ahead",
        "client/batch/test_batch.py::test_they_can_be_returned",
        "client/batch/test_batch.py::test_the_first_one_is_raised_and_ends_all",
    ],
    20: [
        "test_exceptions.py::test_every_error_survives_pickle_and_copy",
        "client/test_errors.py::test_every_attribute_survives_a_journey",
        "client/test_errors.py::test_earlier_failures_travel_with_an_error",
        "client/test_errors.py::test_each_fault_is_one_class",
        "client/test_errors.py::test_a_certificate_that_is_not_trusted",
        "client/test_errors.py::test_a_peer_that_speaks_no_tls",
        "client/test_errors.py::test_a_proxy_that_is_of_no_use",
        "client/test_errors.py::test_nobody_answers",
    ],
    21: [
        "client/test_auth_over_sockets.py::test_a_changed_byte_is_refused",
        "client/test_auth_over_sockets.py::test_a_nonce_serves_once",
        "client/test_auth_over_sockets.py::test_a_clock_that_is_wrong_is_refused",
        "client/test_auth_over_sockets.py::test_eight_threads_and_no_secret_on_the_wire",
    ],
    22: [
        "client/test_futures.py::test_of_a_running_call_ends_it",
        "client/test_stream.py::test_the_agent_is_asked_to_stop",
    ],
    23: [
        "client/sites/test_visitor.py::test_first_bytes_come_before_the_agent_says_anything",
        "client/test_django.py::test_a_visitor_who_leaves_ends_the_run_and_its_sandbox",
        "client/test_flask.py::test_a_visitor_who_leaves_ends_the_run_and_its_sandbox",
        "examples/test_sites.py::test_a_visitor_who_leaves_ends_the_run",
        "examples/test_sites.py::test_forked_workers_answer_each_visitor_and_share_no_socket",
    ],
    24: [
        "aio/test_stream.py::test_cancelling_a_silent_read_takes_less_than_a_second",
        "aio/test_stream.py::test_leaving_frees_the_thread_and_ends_the_sandbox",
        "aio/test_parity.py::test_the_classes_have_the_same_names",
        "aio/test_parity.py::test_methods_take_the_same_arguments",
    ],
    25: [
        "client/test_session.py::test_bare_answers_of_the_field",
        "client/test_session.py::test_bare_dialect_ends_with_its_body",
        "client/test_session.py::test_bare_dialect_failure_is_its_last_event",
        "client/test_session.py::test_failures_are_typed",
    ],
}


def test_every_sentence_is_held_by_tests_that_exist() -> None:
    """All twenty-five; what was renamed is renamed here, too."""
    assert HELD_BY.keys() == set(range(1, 26))
    assert missing_tests(chain.from_iterable(HELD_BY.values())) == []
