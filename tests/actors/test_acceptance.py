"""The acceptance of the actor runtime: which tests hold each of its numbered sentences.

Paths are relative to the folder of all tests.
"""

from __future__ import annotations

from itertools import chain

from tests.support import missing_tests

HELD_BY = {
    1: [
        "actors/test_drain.py::test_no_turn_is_lost_or_overlaps",
        "actors/test_drain.py::test_no_message_is_left_behind",
    ],
    2: [
        "actors/test_client.py::test_a_full_mailbox_refuses_exactly_what_is_too_much",
        "actors/test_client.py::test_drop_oldest_makes_room",
        "actors/http/test_runs.py::test_a_full_mailbox_is_429",
    ],
    3: [
        "actors/test_drain.py::test_whatever_a_turn_does_it_ends_in_an_answer",
        "actors/test_drain.py::test_a_factory_that_fails_is_asked_again",
        "actors/test_drain.py::test_a_failing_dispose_is_only_logged",
    ],
    4: [
        "actors/test_stop.py::test_stop_ends_in_time_beside_an_endless_turn",
        "actors/test_stop.py::test_a_durable_store_keeps_what_has_not_ended",
    ],
    5: ["actors/test_client.py::test_one_id_runs_once"],
    6: ["actors/test_progress.py::test_watchers_see_the_same_whenever_they_come"],
    7: [
        "actors/test_client.py::test_a_queued_request_that_is_cancelled_never_runs",
        "actors/test_client.py::test_a_turn_that_looks_is_cancelled_and_leaves_nothing",
        "actors/test_client.py::test_a_turn_that_does_not_look_is_not_said_to_have_ended",
        "actors/http/test_requests.py::test_a_turn_that_does_not_listen_is_not_said_to_be_stopped",
    ],
    8: [
        "actors/test_client.py::test_a_running_turn_that_passes_its_deadline_is_expired_at_once",
        "actors/test_nested.py::test_an_ask_has_no_more_time_than_its_turn",
    ],
    9: [
        "actors/test_nested.py::test_an_actor_that_asks_one_that_waits_for_it_is_told_at_once",
        "actors/test_nested.py::test_an_actor_that_may_be_called_again_is",
        "actors/test_nested.py::test_two_that_ask_each_other_at_the_same_time",
    ],
    10: [
        "actors/test_drain.py::test_turns_that_wait_for_others_do_not_use_the_workers_up"
    ],
    11: [
        "actors/test_client.py::test_a_newer_request_supersedes_others",
        "actors/test_client.py::test_reject_refuses_while_another_request_is_pending",
        "actors/test_agent_actor.py::test_an_interrupted_turn_keeps_its_part",
        "actors/test_agent_actor.py::test_a_turn_that_is_rolled_back_leaves_no_trace",
    ],
    12: [
        "actors/test_crashes.py::test_too_many_crashes_stop_an_actor",
        "actors/test_crashes.py::test_an_agent_that_fails_stops_nothing",
    ],
    13: ["actors/test_killed.py::test_twenty_kills_lose_and_double_nothing"],
    14: [
        "actors/test_killed.py::test_a_request_that_kills_its_process_is_tried_three_times"
    ],
    15: [
        "actors/test_killed.py::test_a_worker_that_stood_still_cannot_commit",
        "storage/actors/test_contract.py::test_every_batch_changes_the_etag",
    ],
    16: [
        "actors/test_killed.py::test_every_request_ends_though_all_wake_ups_are_lost",
        "actors/test_sweep.py::test_every_request_ends_though_nobody_was_woken",
    ],
    17: [
        "actors/test_reminders.py::test_an_outage_makes_of_many_ticks_one",
        "actors/test_reminders.py::test_a_reminder_set_in_a_turn_that_failed_never_comes",
    ],
    18: [
        "actors/test_agent_actor.py::test_a_long_conversation_goes_on_after_a_restart",
        "actors/test_state.py::test_what_is_read_is_a_copy",
    ],
    19: ["actors/http/test_runs.py::test_what_cannot_be_run_leaves_nothing_behind"],
    20: [
        "actors/http/test_runs.py::test_runs_without_a_conversation_share_nothing",
        "actors/http/test_runs.py::test_a_conversation_belongs_to_who_began_it",
        "actors/http/test_runs.py::test_a_key_runs_once_also_after_a_restart",
    ],
    21: ["actors/http/test_runs.py::test_the_call_of_the_readme_is_answered"],
    22: [
        "actors/http/test_streams.py::test_a_stream_that_was_cut_is_gone_on_with",
        "actors/http/test_docs_page.py::test_the_page_shows_and_calls_the_api",
    ],
    23: ["actors/test_lives.py::test_few_of_many_actors_live_at_once"],
    24: [
        "actors/test_openai_agent.py::test_a_server_without_the_extra_starts",
        "actors/test_openai_agent.py::test_no_key_is_told_over_http",
        "actors/test_openai_agent.py::test_no_key_is_in_spans_and_metrics",
    ],
}


def test_every_sentence_is_held_by_tests_that_exist() -> None:
    """What was renamed is renamed here, too."""
    assert HELD_BY.keys() == set(range(1, 25))
    assert missing_tests(chain.from_iterable(HELD_BY.values())) == []
