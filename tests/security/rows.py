"""Every row of the threat model with the tests that try it, for docs/containment.md.

    python -m tests.security.rows            prints the table
    python -m tests.security.rows --write    puts it into docs/containment.md

`tests/security/test_containment_document.py` checks that the document has this table, and that each named test exists.
"""

from __future__ import annotations

import sys

from tests.sandbox.harness import REPOSITORY

DOCUMENT = REPOSITORY / "docs" / "containment.md"
BEGIN, END = "<!-- rows: begin (python -m tests.security.rows --write) -->", "<!-- rows: end -->"

# The attacks of the tables, each made without the sandbox, within it, by repository code, and with each layer alone.
SUITE = (
    "tests/security/test_attacks.py::test_attack_works_without_the_sandbox",
    "tests/security/test_attacks.py::test_attack_fails_in_the_sandbox",
    "tests/security/test_attacks.py::test_attack_fails_with_one_layer_alone",
    "tests/security/test_repository_code.py::test_attack_by_repository_code_fails",
)
BWRAP = "tests/security/test_attacks_in_bwrap.py::test_attack_fails_in_a_bubblewrap"
INSIDE = (SUITE[3], BWRAP)

TESTS: dict[str, tuple[str, ...]] = {
    "T1": (*SUITE, BWRAP, "tests/sandbox/test_bwrap.py::test_it_holds_before_any_layer_of_ours_is_entered"),
    "T2": (
        *SUITE,
        BWRAP,
        "tests/security/test_repository_code.py::test_what_a_worker_wrote_does_not_outlive_it",
        "tests/security/test_attacks_in_bwrap.py::test_nothing_at_all_can_be_written_there",
    ),
    "T3": (*SUITE, BWRAP, "tests/security/test_bounds.py::test_a_failed_name_look_up_does_not_hang"),
    "T4": (
        *INSIDE,
        "tests/security/test_repository_code.py::test_secret_is_found_where_the_zygote_is_not_between",
        "tests/cli/test_generate.py::test_no_secret_of_the_environment_is_in_the_memory_of_zygote_and_worker",
        "tests/sandbox/test_launch.py::test_worker_inherits_nothing_but_memory",
    ),
    "T5": (*SUITE, BWRAP),
    "T6": (*SUITE, BWRAP),
    "T7": (
        *SUITE,
        BWRAP,
        "tests/security/test_incidents.py::test_flagrant_call_is_held_and_its_caller_killed",
        "tests/security/test_incidents.py::test_a_held_call_is_not_executed_even_when_nobody_listens_any_more",
    ),
    "T8": (
        *SUITE,
        BWRAP,
        "tests/security/test_bounds.py::test_private_memory_is_bounded_without_a_cgroup",
        "tests/security/test_bounds.py::test_memory_of_every_kind_is_bounded_by_a_cgroup",
        "tests/security/test_bounds.py::test_threads_are_bounded",
        "tests/security/test_bounds.py::test_scratch_is_bounded_in_bytes_and_files",
        "tests/security/test_bounds.py::test_processor_time_is_bounded_by_a_cgroup",
        "tests/security/test_containment_document.py::test_polling_is_late_by_a_bounded_amount",
        "tests/supervisor/test_client.py::test_flood_of_output_neither_fills_memory_nor_stops_the_job",
        "tests/supervisor/test_gpu_memory.py::test_worker_over_its_gpu_memory_is_really_killed_and_the_next_job_works",
    ),
    "T9": (
        *SUITE,
        "tests/supervisor/test_client.py::test_worker_that_hangs_is_ended_by_the_jobs_deadline",
        "tests/supervisor/test_client.py::test_silent_worker_is_ended_without_any_timeout",
        "tests/supervisor/test_kill_chain.py::test_nothing_outlives_a_killed_program_and_the_next_start_removes_its_leftovers",
        "tests/supervisor/test_kill_chain.py::test_soak_of_workers_killed_at_random_moments_leaves_no_trace",
        "tests/supervisor/test_bwrap.py::test_nothing_outlives_its_supervisor_or_its_bwrap",
    ),
    "T10": (
        "tests/security/test_incidents.py::test_violation_is_an_incident_with_bounded_evidence",
        "tests/supervisor/test_client.py::test_misbehaving_worker_is_a_typed_error_and_leaves_nothing",
        "tests/supervisor/test_floods.py::test_flood_ends_its_worker_at_once_and_costs_the_supervisor_little",
        "tests/protocol/test_codec.py::test_malformed_message_is_a_violation",
        "tests/protocol/test_states.py::test_any_sequence_of_messages_moves_through_the_table_or_is_a_violation",
        "tests/protocol/test_zmtp.py::test_random_bytes_raise_nothing_but_violations",
    ),
    "T11": (
        *INSIDE,
        "tests/security/test_repository_code.py::test_memory_without_seals_can_be_resized",
        "tests/protocol/test_ring.py::test_every_frame_of_every_allowed_size_lies_inside_the_ring",
        "tests/supervisor/test_client.py::test_misbehaving_worker_is_a_typed_error_and_leaves_nothing",
    ),
    "T12": (
        "tests/policies/test_models.py::test_refusal_names_its_cause",
        "tests/security/test_scan_opens_no_door.py::test_a_pickle_that_a_scan_calls_safe_is_refused_all_the_same",
        "tests/security/test_restricted_sandbox.py::test_attack_by_restricted_code_without_its_policy_fails",
        "tests/security/test_restricted_sandbox.py::test_a_worker_for_restricted_code_is_confined_as_any_other",
        "tests/security/test_restricted_escapes.py::test_escape_is_refused_or_denied",
        "tests/test_package.py::test_nothing_that_runs_code_from_data_is_called",
    ),
    "T13": (
        "tests/policies/test_models.py::test_refusal_names_its_cause",
        "tests/workers/test_loader.py::test_code_named_by_a_config_is_never_run",
        "tests/workers/test_loader.py::test_a_class_that_is_not_on_the_list_is_not_imported",
        "tests/security/test_approvals.py::test_the_same_code_under_another_commit",
        "tests/security/test_approvals.py::test_a_blob_that_was_overwritten",
        "tests/security/test_approvals.py::test_an_approval_gives_safe_mode_nothing",
    ),
    "T14": (
        "tests/security/test_lying_metadata.py::test_a_reader_that_believes_is_harmed",
        "tests/security/test_lying_metadata.py::test_a_lie_is_refused_soon_with_little_memory_and_no_process",
        "tests/security/test_lying_metadata.py::test_what_changed_after_the_check_is_not_loaded",
        "tests/sandbox/test_view.py::test_file_replaced_after_admission_is_refused",
    ),
    "T15": (
        "tests/security/test_output_injection.py::test_the_attack_works_on_a_sink_that_does_not_clean",
        "tests/security/test_output_injection.py::test_what_a_worker_reports_is_harmless_in_error_terminal_and_json",
        "tests/security/test_output_injection.py::test_what_a_worker_prints_is_harmless_in_the_log_and_in_the_error",
        "tests/security/test_output_injection.py::test_hostile_names_in_a_model_folder_are_harmless_on_the_command_line",
    ),
    "T16": (
        "tests/security/test_downgrade.py::test_lower_tier_that_the_policy_names_is_used_and_told",
        "tests/security/test_downgrade.py::test_machine_that_lacks_a_mechanism_runs_nothing_by_default",
        "tests/security/test_downgrade.py::test_what_every_tier_has_cannot_be_given_up_by_naming_a_lower_one",
        "tests/security/test_downgrade.py::test_worker_whose_report_is_not_what_was_ordered_gets_no_model",
        "tests/security/test_downgrade.py::test_file_that_came_with_a_download_cannot_lower_the_tier",
        "tests/sandbox/test_bwrap.py::test_a_bubblewrap_that_does_not_make_what_it_must_is_refused_and_dead",
    ),
    "T17": (
        "tests/security/test_hostile_policy.py::test_hostile_settings_stop_a_generation_at_once",
        "tests/security/test_hostile_policy.py::test_a_job_can_narrow_a_limit_and_never_widen_it",
        "tests/policies/test_policy.py::test_malformed_policy_is_refused_whole_and_names_its_source",
        "tests/policies/test_policy.py::test_no_combination_with_a_widening_field_gets_through",
        "tests/supervisor/test_settings.py::test_working_folder_cannot_loosen",
    ),
    "T18": (
        "tests/security/test_scan_opens_no_door.py::test_what_decides_and_loads_imports_no_scanner",
        "tests/security/test_scan_opens_no_door.py::test_a_pickle_that_a_scan_calls_safe_is_refused_all_the_same",
    ),
    "T19": (
        "tests/security/test_hostile_media.py::test_hostile_files_end_in_a_refusal_and_the_worker_stays",
        "tests/security/test_hostile_media.py::test_an_error_text_of_a_decoder_is_cleaned",
        "tests/supervisor/test_media.py::test_what_is_no_regular_file_is_refused_at_once",
        "tests/supervisor/test_media.py::test_the_copy_has_the_bytes_and_nobody_can_change_it",
        "tests/workers/test_frames.py::test_files_of_a_job_are_taken_exactly_and_others_are_closed",
    ),
}


def table() -> str:
    """Return the table, one line for each row; a file is named once for all its tests, and the suite has a column."""
    lines = ["| row | attacks | and |", "|---|---|---|"]
    for row, tests in TESTS.items():
        suite = ["all four ways"] if set(SUITE) <= set(tests) else ["as repository code"] if SUITE[3] in tests else []
        suite += ["in a bubblewrap"] if BWRAP in tests else []
        files: dict[str, list[str]] = {}
        for test in tests:
            path, _, name = test.partition("::")
            if test not in (*SUITE, BWRAP):
                files.setdefault(path, []).append(name.removeprefix("test_").replace("_", " "))
        cells = [f"`{path}` ({'; '.join(names)})" for path, names in files.items()]
        lines.append(f"| {row} | {', '.join(suite)} | {', '.join(cells)} |")
    return "\n".join(lines) + "\n"


def replace_table(document: str) -> str:
    """Return the document with this table between its marks."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n{END}{after}"


if __name__ == "__main__":
    if "--write" in sys.argv:
        DOCUMENT.write_text(replace_table(DOCUMENT.read_text()))
    else:
        print(table(), end="")
