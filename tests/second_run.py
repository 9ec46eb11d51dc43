"""What the second run of `.ci/run`, by an ordinary user, leaves out of the suite that root's run just went through.

Left out is what cannot depend on who runs it; everything else, and every test that is new, runs twice. The lists cannot
rot in silence: tests/test_second_run.py finds entries that name nothing or name a room of the sandbox, a test in PURE
fails in root's run if it starts a process or gives a file to somebody, and so does a test of either list that root skips
because it is root: then nobody would have run it.

An entry is a folder, a file or a test of a file, with all of its parameters.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# No process, no other user's file: parsers, tables, text. What they read is a file like any other.
PURE = (
    "tests/policies",
    "tests/protocol/test_codec.py",
    "tests/protocol/test_errors.py",
    "tests/protocol/test_launch.py",
    "tests/protocol/test_states.py",
    "tests/protocol/test_zmtp.py",
    "tests/supervisor/batch/test_journal.py",
    "tests/supervisor/batch/test_reading.py",
    "tests/supervisor/batch/test_runner.py",
    "tests/supervisor/inspection/test_gguf_header.py",
    "tests/supervisor/inspection/test_json_document.py",
    "tests/supervisor/inspection/test_safetensors_header.py",
    "tests/supervisor/monitor/test_keys.py",
    "tests/supervisor/monitor/test_reducer.py",
    "tests/supervisor/monitor/test_source.py",
    "tests/supervisor/monitor/test_view.py",
    "tests/supervisor/test_architecture_detector.py",
    "tests/supervisor/test_check.py::test_random_damage_ends_in_a_report",
    "tests/supervisor/test_check.py::test_whether_known_repositories_load_is_as_recorded",
    "tests/supervisor/test_given_pictures.py",
    "tests/supervisor/test_job_queue.py",
    "tests/supervisor/test_schema_validator.py",
    "tests/supervisor/test_signed_file.py",
    "tests/cli/test_quantities.py",
    "tests/cli/test_generate.py::test_a_free_name_is_free",
    "tests/cli/test_generate.py::test_names_from_prompts_are_harmless",
    "tests/test_detection_accuracy.py",
    "tests/test_findings_page.py",
    "tests/test_troubleshooting_page.py",
    "tests/tools/test_demo_data.py",
    "tests/tools/test_monitor_screenshots.py",
)

# These start processes, and what they claim is none of the processes' rights. Why, and where an ordinary user's run
# has the part that is about rights.
OTHERWISE_THE_SAME = {
    # Frames and failures of the worker's code. Its sandbox, as an ordinary user: tests/security, tests/supervisor,
    # tests/test_end_to_end.py.
    "tests/workers": "what a worker computes",
    "tests/test_tasks_end_to_end.py": "pixels of each task; media as an ordinary user: tests/supervisor/test_media.py, security/",
    "tests/test_drop_in.py": "pixels of SandboxedPipeline, compared with diffusers",
    "tests/supervisor/test_sandboxed_pipeline.py": "arguments and their requests; jobs as an ordinary user: test_client.py",
    "tests/test_layouts.py": "pixels of each layout",
    "tests/test_matrix.py": "pixels of tasks with layouts and plans",
    "tests/test_relatives.py": "pixels of Wan's relatives",
    "tests/test_modular.py": "pixels of modular pipelines",
    "tests/test_estimates.py": "bytes of tensors",
    "tests/test_faults.py": "which failures are survived",
    "tests/supervisor/test_mending.py": "what is decided about files; who may read which is in supervisor/inspection",
    "tests/supervisor/monitor/test_screen.py": "a terminal over supervisors that do not exist",
    "tests/supervisor/test_phase_timeouts.py": "when a phase is over; that nothing outlives its end is in test_kill_chain.py",
    "tests/supervisor/test_gpu_glance.py": "how often a library is opened",
    "tests/supervisor/test_cancel.py": "when a cancel is heard; that nothing outlives one is in test_kill_chain.py",
    "tests/supervisor/test_fallback.py": "which parts of a model load",
    "tests/supervisor/test_formats.py": "what codecs keep; files and owners are in test_delivery.py and test_outputs.py",
    "tests/supervisor/test_video_encoder.py": "what codecs keep",
    "tests/supervisor/test_frame_tensors.py": "arrays",
    "tests/supervisor/test_webp_container.py": "a container's bytes",
    "tests/supervisor/test_latent_previews.py": "pictures of latents",
    "tests/supervisor/test_gallery.py": "a page in a browser; posters' ffmpeg as an ordinary user: test_encoder.py",
    "tests/supervisor/test_metrics.py": "numbers, and an address of this machine",
    "tests/supervisor/test_load_test.py": "the report of a load",
    "tests/supervisor/test_several_videos.py": "which videos a job makes; files and owners are in test_delivery.py, test_outputs.py",
    "tests/supervisor/test_several_workers.py": "queue and pool; test_soak_jobs.py disturbs them as an ordinary user",
    "tests/supervisor/test_smoke_test.py": "the report of a short generation",
    "tests/test_trust_mode.py": "what repositories' code does to frames; the gate and the store are in supervisor/",
    "tests/test_end_to_end.py::test_every_kind_of_text_to_video_model_becomes_a_playable_file": "the kinds of models",
    # Without a cgroup the same limit is a tighter one (docs/planning.md), and recovery takes over from the plan.
    "tests/test_end_to_end.py::test_a_job_is_planned_to_stay_below_its_limit_and_the_result_says_how": "which plan it is",
    "tests/test_end_to_end.py::test_two_jobs_with_one_seed_are_equal_and_with_two_differ": "seeds",
    "tests/test_end_to_end.py::test_video_shows_its_first_frame_before_the_last_is_decoded": "streaming",
    "tests/test_end_to_end.py::test_weights_that_do_not_fit_the_config_are_refused_not_filled_with_noise": "loading",
    "tests/supervisor/test_conversion.py::test_pickled_original_generates_the_very_frames_of_the_model_it_came_from": "pixels",
    "tests/supervisor/test_conversion.py::test_every_tensor_and_size_of_other_kinds_comes_back": "tensors",
    "tests/supervisor/test_conversion.py::test_many_small_messages_and_streams_give_the_same_bytes": "the protocol",
    "tests/supervisor/test_restricted.py::test_two_passes_hooks_and_frames_one_by_one": "pixels",
    "tests/supervisor/test_restricted.py::test_what_changes_nothing_gives_the_pixels_of_the_plain_pipeline": "pixels",
    "tests/supervisor/test_restricted.py::test_what_goes_wrong_in_the_code_is_named": "words of errors",
    # Parsers and libraries in a process that measures or guides them.
    "tests/tools/test_demo_training.py": "what the demo model's training computes",
    "tests/assets": "tables against installed classes",
    "tests/fuzz": "parsers, guided by coverage",
    "tests/protocol": "the codec, the channel and the ring between two ends of one user",
    "tests/supervisor/inspection/test_cost.py": "what reading costs, measured in a process of its own",
    "tests/supervisor/test_installed.py": "sources of installed packages, compared with what Python sees",
    "tests/supervisor/test_floods.py::test_what_only_wastes_time_is_ended_by_a_deadline": "deadlines; floods that end a worker run twice",
    "tests/supervisor/test_floods.py::test_flood_of_output_does_not_grow_the_supervisor_and_the_job_succeeds": "reading a log",
    "tests/supervisor/test_floods.py::test_every_permitted_message_as_fast_as_it_can_is_no_violation": "the protocol",
    # Words, options and exit codes of the command line. Jobs of it by an ordinary user: the rest of test_generate.py,
    # test_demo.py, test_convert.py, test_download.py, test_trust.py.
    **{
        f"tests/cli/test_batch.py::test_{name}": "the journal's rules; a batch that goes on where it stopped runs twice"
        for name in (
            "a_file_that_is_somebody_elses_is_not_touched",
            "a_file_that_is_somebody_elses_is_replaced_when_that_is_asked_for",
            "a_journal_of_another_version_is_refused",
            "a_second_run_of_a_folder_is_refused_with_the_owners_pid",
            "a_status_of_nothing_is_refused",
            "a_video_without_its_record_is_found_and_not_made_again",
            "an_item_that_another_run_makes_is_waited_for",
            "ctrl_c_finishes_what_is_being_made_and_a_status_tells_who_makes_it",
            "everything_that_is_wrong_is_told_at_once",
            "failures_are_nine_and_tried_again_only_when_asked",
            "killed_at_random_moments_nothing_is_made_twice_and_nothing_is_broken",
            "one_bad_line_of_a_thousand_is_named_and_nothing_starts",
            "the_second_ctrl_c_and_sigterm_stop_at_once_and_leave_nothing_unfinished",
            "two_processes_divide_the_work_and_take_a_stale_lease_over",
            "what_a_recovery_taught_is_the_start_of_the_following_videos",
            "what_would_fail_every_video_ends_the_batch_and_fails_none",
        )
    },
    "tests/supervisor/test_notebook.py": "a kernel's event loop; jobs of programs are in test_async_client.py and test_remote.py",
    "tests/supervisor/test_web_server.py": "the example's HTTP; the socket behind it is in test_remote.py",
    "tests/supervisor/test_async_client.py": "event loops; the threads and sockets below are in test_remote.py",
    "tests/supervisor/test_event_log.py": "a list and its readers",
    "tests/cli/test_check.py": "words and exit codes",
    "tests/cli/test_scan.py": "words and exit codes",
    "tests/cli/test_completion.py": "a shell's questions",
    "tests/cli/test_diagnose.py": "the report's text",
    "tests/cli/test_main.py": "help, options and exit codes",
    "tests/cli/test_repair.py": "words; supervisor/test_repair.py writes the copy",
    "tests/cli/test_update_registry.py": "words; owners and modes of the file are in supervisor/test_registry.py",
    "tests/cli/test_demo.py::test_an_offered_variant_is_built_and_runs": "the variants; the demo model itself runs twice",
    "tests/cli/test_demo.py::test_a_dry_run_of_the_demo_writes_nothing": "options",
    "tests/cli/test_demo.py::test_demo_never_overwrites": "names; supervisor/test_outputs.py writes the files",
    "tests/cli/test_demo.py::test_demo_says_the_same_to_a_program": "the document",
    "tests/cli/test_generate.py::test_a_drawn_seed_is_told_and_repeats_the_video": "seeds",
    "tests/cli/test_generate.py::test_a_dry_run_tells_everything_and_starts_and_writes_nothing": "options",
    "tests/cli/test_generate.py::test_a_dry_run_ends_as_the_job_would": "options",
    "tests/cli/test_generate.py::test_a_prompt_from_stdin_is_bounded": "options",
    "tests/cli/test_generate.py::test_the_prompt_may_come_from_stdin_and_several_videos_are_one_document": "options",
    "tests/cli/test_generate.py::test_refusals_come_before_a_worker_and_leave_nothing": "exit codes",
    "tests/cli/test_generate.py::test_no_message_advises_turning_on_remote_code": "words",
    "tests/cli/test_generate.py::test_quiet_is_quiet": "words",
    "tests/cli/test_demo_quality.py": "what the demo model draws",
    "tests/cli/test_install_deps.py": "words and exit codes; supervisor/test_dependency_manager.py installs as anybody",
    "tests/cli/test_load_test.py": "words and exit codes",
    "tests/cli/test_operations.py": "options; owners and modes of the log are in supervisor/test_log_file.py",
    "tests/cli/test_monitor.py": "a screen; that anybody is found and attached to is in supervisor/test_control_server.py and monitor/",
    "tests/cli/test_parts_options.py": "options",
    "tests/cli/test_plan.py": "words and exit codes",
    "tests/cli/test_progress.py": "words",
    "tests/cli/test_tasks.py": "options and exit codes",
    "tests/cli/test_video_files.py": "options and words; files and owners are in supervisor/test_delivery.py",
    "tests/supervisor/test_client.py::test_silent_worker_is_ended_without_any_timeout": "deadlines",
    "tests/supervisor/test_client.py::test_worker_that_ignores_cancel_is_killed_after_its_grace": "deadlines",
    "tests/supervisor/test_kill_chain.py::test_stopped_ffmpeg_does_not_outlive_the_jobs_deadline": "deadlines",
    "tests/test_end_to_end.py::test_what_fits_with_no_plan_is_refused_before_a_worker_starts_and_the_nearest_that_fits_is_named": "words",
    "tests/cli/test_convert.py::test_json_document_has_every_file_and_nothing_else_on_stdout": "words",
    "tests/cli/test_config.py": "settings; their files' owners are in supervisor/test_settings.py",
    "tests/cli/test_generate.py::test_overwrite_and_worker_log_and_verbose": "names; supervisor/test_outputs.py writes the files",
    "tests/cli/test_generate.py::test_a_timeout_is_124_and_leaves_nothing": "deadlines",
    "tests/supervisor/test_downloader.py::test_a_server_that_trickles_is_left": "deadlines",
    # The repository itself: its pages, its wheel, its budgets.
    "tests/test_benchmarks.py": "the harness of the benchmarks",
    "tests/test_contract.py": "names",
    "tests/test_documented_commands.py": "words and options of pages; tests/cli runs them as anybody",
    "tests/test_package.py": "files of the repository",
    "tests/test_second_run.py": "this list",
    "tests/test_wheel.py": "what is in it, types, and examples, which are jobs like others",
    "tests/test_tasks_page.py": "a page",
}

LEFT_OUT = (*PURE, *OTHERWISE_THE_SAME)


def left_out(node: str) -> bool:
    """Whether the second run leaves out this folder, file or test, by its node id."""
    return _is_in(node, LEFT_OUT)


def is_pure(node: str) -> bool:
    return _is_in(node, PURE)


def _is_in(node: str, entries: tuple[str, ...]) -> bool:
    name = node.split("[", 1)[0]
    return any(name == entry or name.startswith((f"{entry}/", f"{entry}::")) for entry in entries)


class NotPure(BaseException):
    """A test in PURE did what depends on its user. No Exception, so that no code under test takes it for its own."""


_FORBIDDEN = ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.exec", "os.system", "os.chown")
_watching = False


def _audit(event: str, _arguments: tuple[object, ...]) -> None:
    if _watching and event in _FORBIDDEN:
        raise NotPure(f"{event} in a test that tests/second_run.py calls pure: it runs as root only")


@contextmanager
def watched() -> Iterator[None]:
    """Raise NotPure for whatever starts a process or changes an owner meanwhile."""
    global _watching
    _watching = True
    try:
        yield
    finally:
        _watching = False


def skipped_as_root(reason: str) -> bool:
    """Whether a test was skipped because root runs it, which must not happen to one that is left out elsewhere."""
    return os.geteuid() == 0 and "root" in reason


sys.addaudithook(_audit)
