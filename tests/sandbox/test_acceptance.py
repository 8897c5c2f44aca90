"""The acceptance of the platform: which tests hold each of its numbered sentences.

Paths are relative to the folder of all tests. The twenty-third, the figures of speed, is
what `make bench` shows: no test is timed.
"""

from __future__ import annotations

from itertools import chain

from tests.support import missing_tests

HELD_BY = {
    1: [
        "sandbox/sdks/test_agent_client.py::test_an_agent_is_found_called_streamed_from_and_ended",
        "sandbox/sdks/test_agent_client.py::test_the_agent_sees_no_key_of_the_platform",
    ],
    2: [
        "sandbox/sdks/test_sandbox.py::test_a_sandbox_is",
        "sandbox/sdks/test_sandbox.py::test_every_call_is_covered_or_said_not_to_be",
    ],
    3: [
        "sandbox/control/test_app.py::test_a_sandbox_is_created_in_every_spelling",
        "sandbox/control/test_app.py::test_a_composite_id_works_on_every_path",
        "sandbox/sdks/test_sandbox.py::test_a_sandbox_is",
    ],
    4: [
        "sandbox/test_platform.py::test_refusals_through_the_edge_are_json_with_code_and_message",
        "sandbox/control/test_app.py::test_every_refusal_is_json_with_code_and_message",
        "sandbox/control/test_rows.py::test_every_route_of_a_sandbox_is_404_for_others",
        "sandbox/control/test_rows.py::test_every_route_wants_a_key",
    ],
    5: [
        "sandbox/test_watching.py::test_the_limit_of_a_key_is_its_own",
        "sandbox/test_watching.py::test_ten_creates_with_one_key_make_one",
    ],
    6: [
        "sandbox/test_platform.py::test_an_agent_that_fails_at_import_is_told_of_at_once"
    ],
    7: [
        "sandbox/test_platform.py::test_a_paused_sandbox_uses_no_cpu_and_keeps_its_memory"
    ],
    8: [
        "sandbox/test_platform.py::test_time_to_live_kills_connect_never_shortens_and_timeout_does"
    ],
    9: [
        "sandbox/life/test_crash.py::test_a_platform_that_is_started_again_goes_on_with_all",
        "sandbox/life/test_crash.py::test_not_started_again_nothing_is_left_after_the_grace",
    ],
    10: [
        "sandbox/backends/test_zygote_client.py::test_nothing_is_left_of_who_was_killed_and_creates_go_on"
    ],
    11: [
        "sandbox/life/test_chaos.py::test_ten_thousand_random_operations_from_many_threads_leak_nothing",
        "sandbox/life/test_chaos.py::test_whatever_dies_at_random_nothing_is_left",
    ],
    12: [
        "sandbox/test_platform.py::test_chunks_pass_one_by_one_and_a_reader_that_stops_stops_the_agent",
        "sandbox/test_edge.py::test_the_agent_gets_an_upload_as_it_is_sent",
    ],
    13: ["sandbox/test_edge.py::test_a_program_outside_the_sandbox_is_not_reached"],
    14: [
        "sandbox/test_edge.py::test_a_sandbox_without_public_traffic_asks_for_its_token"
    ],
    15: [
        "sandbox/test_platform.py::test_the_agents_environment_is_exactly_what_is_promised",
        "sandbox/backends/test_bubblewrap.py::test_the_environment_of_an_agent_is_exact",
        "sandbox/backends/test_zygote_client.py::test_no_variable_of_the_host_is_in_any_process_or_log",
    ],
    16: [
        "sandbox/test_security.py::test_the_files_of_the_host_are_not_there",
        "sandbox/test_security.py::test_other_sandboxes_and_the_data_directory_are_not_there",
        "sandbox/test_security.py::test_processes_of_the_host_are_not_seen_traced_or_signalled",
        "sandbox/test_security.py::test_without_internet_nothing_outside_is_reached",
        "sandbox/backends/test_bubblewrap.py::test_two_agents_bind_the_same_port",
        "sandbox/backends/test_choice.py::test_bubblewrap_without_a_helper_makes_sandboxes_without_internet",
    ],
    17: [
        "sandbox/templates/test_store.py::test_two_deploys_of_one_folder_make_one_build",
        "sandbox/test_platform.py::test_running_sandboxes_keep_the_build_they_were_made_from",
        "sandbox/test_deploying.py::test_a_deploy_that_is_killed_at_any_moment_leaves_a_whole_build",
    ],
    18: [
        "sandbox/test_platform.py::test_a_faulty_folder_is_refused_and_nothing_is_written",
        "sandbox/test_deploying.py::test_faulty_uploads_are_refused_and_nothing_is_written",
    ],
    19: [
        "sandbox/sdks/test_sandbox.py::test_a_sandbox_is",
        "sandbox/supervisor/envd/test_filesystem_service.py::test_nothing_leads_out",
        "sandbox/supervisor/envd/test_files.py::test_what_is_no_file_of_the_sandbox_is_not_sent",
    ],
    20: [
        "sandbox/supervisor/envd/test_envd.py::test_the_start_frame_comes_at_once",
        "sandbox/supervisor/envd/test_envd.py::test_each_frame_is_whole_in_one_write",
        "sandbox/supervisor/envd/test_envd.py::test_silence_is_broken_at_the_asked_interval",
        "sandbox/supervisor/envd/test_envd.py::test_a_program_is_told_from_start_to_end",
        "sandbox/supervisor/envd/test_envd.py::test_a_client_that_leaves_does_not_end_the_program",
    ],
    21: [
        "sandbox/edge/test_connection.py::test_a_bad_head_is_refused_in_json",
        "sandbox/edge/test_connection.py::test_a_port_that_cannot_be_is_400",
        "sandbox/edge/test_connection.py::test_a_slow_head_is_408_and_delays_nobody",
    ],
    22: ["cli/test_up.py::test_up_serves_until_it_is_stopped"],
}


def test_every_sentence_is_held_by_tests_that_exist() -> None:
    """All but the last; what was renamed is renamed here, too."""
    assert HELD_BY.keys() == set(range(1, 23))
    assert missing_tests(chain.from_iterable(HELD_BY.values())) == []
